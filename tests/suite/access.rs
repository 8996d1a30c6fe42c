//! Who may do what: every route against everybody who can ask, and what a component that got away, or that shares a group, may not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use refit_fixtures::tools::as_root;
use serde_json::{Value, json};

use crate::appliance::{Appliance, text};
use crate::components::{data, without_groups};
use crate::http::Request;
use crate::process;
use crate::release::Release;

/// What a component can be allowed.
const ALLOWED: [&str; 9] = ["start", "stop", "reload", "restart", "exit", "update", "rollback", "read", ""];
/// A group and an account that every machine has, and numbers that none needs to know.
const GROUP: &str = "daemon";
const STRANGER: (u32, u32) = (4_711, 4_712);
/// A component that does nothing.
const IDLE: &str = "command = [\"sleep\", \"3600\"]\nready = \"exec\"";
/// A component that leaves a process behind, and what that asks.
const AWAY: &str = include_str!("access/away.py");

/// Who asks.
enum Who {
    Nobody,
    Page,
    Root,
    /// A component with this in its `allow`.
    Component(&'static str),
}

impl Who {
    fn all() -> Vec<Self> {
        [Self::Nobody, Self::Page, Self::Root].into_iter().chain(ALLOWED.map(Self::Component)).collect()
    }

    fn name(&self) -> String {
        match self {
            Self::Nobody => "nobody".to_owned(),
            Self::Page => "the page".to_owned(),
            Self::Root => "the operator".to_owned(),
            Self::Component(allowed) => format!("a component with {allowed:?}"),
        }
    }

    /// Returns whether what takes this permission is for it.
    fn may(&self, permission: &str) -> bool {
        match (self, permission) {
            (_, "public") | (Self::Page | Self::Root, _) => true,
            (Self::Nobody, _) => false,
            (Self::Component(_), "status" | "ticket" | "the request" | "publish") => true,
            (Self::Component(allowed), permission) => *allowed == permission,
        }
    }

    fn request(&self, appliance: &Appliance, method: &str, path: &str) -> Request {
        match self {
            Self::Nobody => Request::new(&appliance.admin(), method, path),
            Self::Page => {
                let password = BASE64.encode(format!("admin:{}", appliance.password()));
                Request::new(&appliance.admin(), method, path).header("Authorization", &format!("Basic {password}"))
            }
            Self::Root => Request::new(&appliance.socket(), method, path),
            Self::Component(allowed) => {
                let token = token(appliance.component_pid(&component_with(allowed)));
                Request::new(&appliance.socket(), method, path).header("Authorization", &format!("Bearer {token}"))
            }
        }
    }
}

fn component_with(allowed: &str) -> String {
    if allowed.is_empty() { "bare".to_owned() } else { format!("may-{allowed}") }
}

/// Returns the launch token of a process.
fn token(pid: i32) -> String {
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("read the environment");
    let variables = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let token = variables.filter_map(|variable| variable.strip_prefix("REFIT_TOKEN=").map(str::to_owned)).next();
    token.expect("a token")
}

#[test]
fn every_route_is_for_those_whom_the_table_names() {
    let release = ALLOWED.iter().fold(Release::bare("1.0.0"), |release, allowed| {
        let keys = if allowed.is_empty() { String::new() } else { format!("allow = [\"{allowed}\"]") };
        release.component(&component_with(allowed), &format!("{IDLE}\n{keys}"))
    });
    let appliance = Appliance::new(&release).start();
    let table = refit::api::routes_with_permissions();
    assert!(table.len() > 25, "{table:?}");
    for (method, path, permission) in &table {
        let path = path.replace("{name}", "no-such").replace("{action}", "stop").replace("{version}", "9.9.9");
        let path = path.replace("{id}", "no-such").replace("{digest}", &"0".repeat(64));
        for who in Who::all() {
            // A stream would go on. What changes something is asked for in a way that is refused behind the door.
            let method = if path.ends_with("events") { "HEAD" } else { method.as_str() };
            let asked = who.request(&appliance, method, &path).body(b"not JSON".to_vec());
            let status = asked.send().status;
            let expected = match (who.may(permission), &who) {
                (true, _) => ![401, 403].contains(&status),
                (false, Who::Nobody) => status == 401,
                (false, _) => status == 403,
            };
            assert!(expected, "{method} {path}, which takes {permission}, of {}: {status}", who.name());
        }
    }
    // What is in no row: nobody learns whether it exists, and everybody else does.
    for (method, path, status) in [("GET", "/api/v1/no-such", 404), ("PATCH", "/api/v1/status", 405)] {
        for who in Who::all() {
            let expected = if matches!(who, Who::Nobody) { 401 } else { status };
            let answer = who.request(&appliance, method, path).send();
            assert_eq!(answer.status, expected, "{method} {path} of {}", who.name());
        }
    }
    assert_eq!(Request::new(&appliance.admin(), "GET", "/no-such").send().status, 404);
    the_request_itself_is_looked_at(&appliance);
    assert_eq!(appliance.status()["bus"]["state"], "Running", "nothing was changed");
}

#[test]
fn the_documentation_has_the_same_table() {
    let text = include_str!("../../docs/security.md");
    let section = text.split("\n| route | takes |\n|---|---|\n").nth(1).expect("the table");
    let rows = section.lines().take_while(|line| line.starts_with('|')).map(str::to_owned);
    let of_code = refit::api::routes_with_permissions();
    let of_code = of_code.iter().map(|(method, path, permission)| format!("| `{method} {path}` | {permission} |"));
    assert_eq!(rows.collect::<BTreeSet<_>>(), of_code.collect::<BTreeSet<_>>());
}

/// Every request by every component; and each sees the tickets of its own.
fn the_request_itself_is_looked_at(appliance: &Appliance) {
    let post = |who: &Who, request: &str| {
        who.request(appliance, "POST", "/api/v1/bus/requests").json(&json!({ "request": request })).send()
    };
    let own = Who::Component("reload");
    let reload = post(&own, "reload");
    assert_eq!(reload.status, 202, "{}", reload.text());
    let ticket = format!("/api/v1/bus/requests/{}", text(&reload.json()["ticket"]["id"]));
    for (who, status) in [
        (own, 200),
        (Who::Component("read"), 200),
        (Who::Component("start"), 403),
        (Who::Page, 200),
        (Who::Root, 200),
        (Who::Nobody, 401),
    ] {
        assert_eq!(who.request(appliance, "GET", &ticket).send().status, status, "{}", who.name());
    }
    for allowed in ALLOWED {
        for request in ["start", "stop", "restart", "exit", "update", "rollback"] {
            if allowed != request {
                let answer = post(&Who::Component(allowed), request);
                assert_eq!(answer.status, 403, "{request} of a component with {allowed:?}: {}", answer.text());
            }
        }
    }
    assert_eq!(post(&Who::Component("start"), "start").status, 202, "what is so already is no harm");
    let lower = Request::new(&appliance.admin(), "GET", "/api/v1/status");
    let password = BASE64.encode(format!("admin:{}", appliance.password()));
    assert_eq!(lower.header("Authorization", &format!("basic {password}")).send().status, 200, "in any case");
}

#[test]
fn a_process_that_got_away_from_its_component_is_not_the_operator() {
    let release = Release::bare("1.0.0")
        .component("loose", "command = [\"python3\", \"lib/away.py\"]\nready = \"exec\"\ndata = [\"loose\"]")
        .file("lib/away.py", AWAY);
    let with_groups = Appliance::new(&release).start();
    let without_groups = Appliance::new(&release).local(without_groups).start();
    for appliance in [with_groups, without_groups] {
        for (asked, expected) in [("bare", "403"), ("deep", "403"), ("with the token of nobody", "403")] {
            assert_eq!(data(&appliance, &format!("loose/{}", asked.replace(' ', "-"))), expected, "{asked}");
        }
        let hello: Value = serde_json::from_str(&data(&appliance, "loose/bus")).expect("an answer");
        assert!(hello["error"].is_object(), "{hello}");
        assert_eq!(appliance.status()["bus"]["state"], "Running");
    }
}

/// Asks for the status as another account, and returns what was printed: the HTTP status, or why there is none.
fn status_as(uid: u32, gid: u32, socket: &Path) -> String {
    const ASK: &str = "import sys, socket
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    s.sendall(b'GET /api/v1/history HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n')
    print(s.makefile().readline().split()[1])
except OSError as error:
    print(error.strerror)";
    let ran = Command::new("python3").args(["-c", ASK]).arg(socket).uid(uid).gid(gid).output().expect("run python3");
    String::from_utf8_lossy(&ran.stdout).trim().to_owned()
}

#[test]
fn members_of_the_group_that_is_named_are_operators_and_components_never() {
    if !as_root() {
        return;
    }
    let group = nix::unistd::Group::from_name(GROUP).expect("read").expect("there").gid.as_raw();
    let named = |local: String| format!("[api]\noperators = \"{GROUP}\"\n\n{local}");
    let release = Release::bare("1.0.0").component("part", &format!("{IDLE}\nuser = \"nobody\""));
    let mut appliance = Appliance::new(&release).local(named).start();
    for dir in [appliance.scratch(), appliance.home()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("open the way");
    }
    let socket = appliance.home().join("run/refit.sock");
    let nobody = nix::unistd::User::from_name("nobody").expect("read").expect("there").uid.as_raw();
    assert_eq!(status_as(STRANGER.0, group, &socket), "200");
    assert_eq!(status_as(STRANGER.0, STRANGER.1, &socket), "Permission denied");
    assert_eq!(status_as(nobody, group, &socket), "403", "the account of a component");
    // Somebody else opens the socket: what counts is who asks.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("open it");
    assert_eq!(status_as(STRANGER.0, STRANGER.1, &socket), "403");

    // The account of a component may not be a member: nothing starts so, nor is an update taken.
    let shared = Release::bare("1.1.0").component("part", &format!("{IDLE}\nuser = \"nobody\"\ngroup = \"{GROUP}\""));
    let line = appliance.install(&shared, &[]).complains_with(70);
    assert!(line.contains("the account of the component part is a member"), "{line}");
    appliance.stop();
    let first = Appliance::new(&shared).local(named);
    let line = first.refit(&["config", "check"]).complains_with(78);
    assert!(line.contains(&format!("names the group {GROUP:?}")), "{line}");
    let line = first.refit(&["run"]).complains_with(78);
    assert!(line.contains("the account of the component part is a member"), "{line}");
    let absent = Appliance::new(&release).local(|local| named(local).replace(GROUP, "no-such-group"));
    let line = absent.refit(&["config", "check"]).complains_with(78);
    assert!(line.contains("which is not on this machine"), "{line}");
    assert!(process::of_home(absent.home()).is_empty());
}
