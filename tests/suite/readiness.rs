//! When a server counts as ready, and whether trying it costs its clients anything: a small server that serves one connection
//! after the other, as many real ones do, is updated while old and new share its listener.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use refit_fixtures::tools::{as_root, cannot_try, missing};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use crate::appliance::{Appliance, component, text};
use crate::load::LoadOptions;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// The server: see its own text.
pub(crate) const SERVE: &str = include_str!("readiness/serve.py");
/// A held connection would stop the server for 3 s.
const SILENCE_MAX: Duration = Duration::from_millis(1500);

fn server(version: &str, begins: &str, keys: &str) -> Release {
    let words = format!("command = [\"python3\", \"lib/serve.py\", \"{version}\", \"{begins}\"]");
    let keys = format!("{words}\nlisteners = [\"http\"]\n{keys}");
    Release::bare(version).listener("http").component("web", &keys).file("lib/serve.py", SERVE)
}

fn overlapping(version: &str, begins: &str) -> Release {
    server(version, begins, "handover = \"overlap\"\nready = \"listen\"")
}

/// Requests on new connections only: the server closes each after its answer.
pub(crate) fn requests() -> LoadOptions {
    LoadOptions {
        new_per_second: 50,
        keepalive_connections: 0,
        slow_connections: 0,
        path: "/".to_owned(),
        ..LoadOptions::default()
    }
}

/// Returns when, by its own clock, a process of this version did something.
fn noted(appliance: &Appliance, what: &str, version: &str) -> f64 {
    let path = appliance.home().join(format!("data/{what}-{version}"));
    fs::read_to_string(path).expect("noted").parse().expect("a time")
}

#[test]
fn a_server_that_listens_late_takes_over_only_when_it_accepts() {
    let appliance = Appliance::new(&overlapping("1.0.0", "at_once")).start();
    let first = appliance.component_pid("web");
    let load = appliance.load(requests());
    load.wait_for_version("1.0.0", LIMIT).expect("version 1 answers");

    appliance.install(&overlapping("1.1.0", "late"), &[]).ends_with(0);
    load.wait_for_version("1.1.0", LIMIT).expect("version 2 answers");
    eventually(LIMIT, "version 1 has ended", || !process::is_alive(first));
    let report = load.finish();
    report.assert_clean();
    assert!(report.longest_gap < SILENCE_MAX, "nobody answered for {:?}", report.longest_gap);
    let (accepts, told) = (noted(&appliance, "accepting", "1.1.0"), noted(&appliance, "told", "1.0.0"));
    assert!(told > accepts, "the old one was told to stop {:.3} s before the new one accepted", accepts - told);
}

#[test]
fn a_server_that_never_listens_or_exits_leaves_the_old_one_serving() {
    let appliance = Appliance::new(&overlapping("1.0.0", "at_once")).start();
    let first = appliance.component_pid("web");
    let load = appliance.load(requests());
    load.wait_for_version("1.0.0", LIMIT).expect("version 1 answers");
    let never = server("1.1.0", "never", "handover = \"overlap\"\nready = \"listen\"\nstart_timeout = \"2s\"");
    for (release, reason) in [
        (never, "was not ready within 2 s; a process that is not its own accepts on the listener http"),
        (overlapping("1.2.0", "exits"), "ended with status 3 before it was ready"),
    ] {
        let failed = appliance.install(&release, &[]).complains_with(70);
        assert!(failed.contains(reason), "{failed}");
        assert_eq!(appliance.component_pid("web"), first, "the old process serves on");
    }
    let report = load.finish();
    report.assert_clean();
    assert_eq!(report.versions_seen, ["1.0.0"]);
    assert!(report.longest_gap < SILENCE_MAX, "nobody answered for {:?}", report.longest_gap);
    assert!(!appliance.home().join("data/told-1.0.0").exists(), "the old process was told to stop");
}

#[test]
fn one_that_counts_as_ready_at_once_takes_over_only_when_it_accepts() {
    for ready in ["started", "exec"] {
        let keys = format!("handover = \"overlap\"\nready = \"{ready}\"");
        let appliance = Appliance::new(&server("1.0.0", "at_once", &keys)).start();
        let first = appliance.component_pid("web");
        let never = server("1.1.0", "never", &format!("{keys}\nstart_timeout = \"2s\""));
        let failed = appliance.install(&never, &[]).complains_with(70);
        assert!(failed.contains("a process that is not its own accepts on the listener http"), "{failed}");
        assert_eq!(appliance.component_pid("web"), first, "the old process serves on");
        appliance.install(&server("1.2.0", "late", &keys), &[]).ends_with(0);
        let (accepts, told) = (noted(&appliance, "accepting", "1.2.0"), noted(&appliance, "told", "1.0.0"));
        assert!(told > accepts, "the old one was told to stop {:.3} s before the new one accepted", accepts - told);
        // Without another process it is ready at once, as it says.
        appliance.refit(&["component", "stop", "web"]).ends_with(0);
        appliance.refit(&["component", "start", "web"]).ends_with(0);
    }
}

#[test]
fn a_server_whose_children_accept_is_found_by_them() {
    let appliance = Appliance::new(&overlapping("1.0.0", "forks")).start();
    let load = appliance.load(requests());
    load.wait_for_version("1.0.0", LIMIT).expect("version 1 answers");
    appliance.install(&overlapping("1.1.0", "forks"), &[]).ends_with(0);
    load.wait_for_version("1.1.0", LIMIT).expect("version 2 answers");
    load.finish().assert_clean();
    let (accepts, told) = (noted(&appliance, "accepting", "1.1.0"), noted(&appliance, "told", "1.0.0"));
    assert!(told > accepts, "the old one was told to stop {:.3} s before the new one accepted", accepts - told);
}

#[test]
fn a_server_that_the_kernel_wakes_after_the_old_one_is_found_all_the_same() {
    // Without load the old process takes every connection that comes alone.
    let appliance = Appliance::new(&overlapping("1.0.0", "exclusive")).start();
    appliance.install(&overlapping("1.1.0", "exclusive"), &[]).ends_with(0);
    assert_eq!(text(&component(&appliance.status(), "web")["release"]), "1.1.0");
}

#[test]
fn a_server_in_a_pid_namespace_of_its_own_is_found() {
    if !as_root() {
        return;
    }
    if missing(&["unshare"]) {
        return cannot_try("unshare is missing");
    }
    let release = |version: &str| {
        let words = format!("\"python3\", \"lib/serve.py\", \"{version}\", \"at_once\"");
        let command = format!("command = [\"unshare\", \"--fork\", \"--pid\", \"--kill-child\", {words}]");
        let keys = "listeners = [\"http\"]\nhandover = \"overlap\"\nready = \"listen\"\nstop_timeout = \"1s\"";
        Release::bare(version)
            .listener("http")
            .component("web", &format!("{command}\n{keys}"))
            .file("lib/serve.py", SERVE)
    };
    let appliance = Appliance::new(&release("1.0.0")).start();
    appliance.install(&release("1.1.0"), &[]).ends_with(0);
    assert_eq!(text(&component(&appliance.status(), "web")["release"]), "1.1.0");
}

#[test]
fn a_server_that_closes_the_shared_listener_closes_it_for_nobody_else() {
    let keys = "handover = \"restart\"\nready = \"listen\"";
    let release = |version: &str| server(version, "shuts", keys);
    let appliance = Appliance::new(&release("1.0.0")).start();
    appliance.install(&release("1.1.0"), &[]).ends_with(0);
    assert_eq!(text(&component(&appliance.status(), "web")["release"]), "1.1.0");
}

#[test]
fn a_server_that_closes_each_connection_soon_is_ready_and_found_dead_by_nobody() {
    let appliance = Appliance::new(&overlapping("1.0.0", "closes")).start();
    appliance.install(&overlapping("1.1.0", "closes"), &[]).ends_with(0);
    assert_eq!(component(&appliance.status(), "web")["state"], "running");
}

#[test]
fn trying_a_listener_does_not_stop_a_server_that_serves_one_after_the_other() {
    let keys = "handover = \"restart\"\nready = \"exec\"";
    let appliance = Appliance::new(&server("1.0.0", "at_once", keys)).start();
    let load = appliance.load(requests());
    load.wait_for_version("1.0.0", LIMIT).expect("version 1 answers");
    appliance.install(&server("1.1.0", "at_once", keys), &[]).ends_with(0);
    load.wait_for_version("1.1.0", LIMIT).expect("version 2 answers");
    appliance.refit(&["rollback"]).ends_with(0);
    let report = load.finish();
    report.assert_clean();
    assert!(report.longest_gap < SILENCE_MAX, "nobody answered for {:?}", report.longest_gap);
}

/// Returns a port that no other process gets as long as the socket lives, except one that shares it on purpose.
fn kept_port() -> (TcpListener, u16) {
    let kind = (AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC);
    let socket = socket_with(kind.0, kind.1, kind.2, None).expect("a socket");
    sockopt::set_socket_reuseport(&socket, true).expect("shared");
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("bound");
    let socket = TcpListener::from(socket); // which does not listen
    let port = socket.local_addr().expect("an address").port();
    (socket, port)
}

#[test]
fn ready_by_health_is_the_first_success_and_recovery_is_not_illness() {
    // It binds its own port, two seconds after its start; three failures would make a process ill that has been well.
    let (_kept, port) = kept_port();
    let serve = format!(
        "import socket, subprocess, sys, time, os\n\
         time.sleep(2)\n\
         listener = socket.create_server((\"127.0.0.1\", {port}), reuse_port=True)\n\
         os.set_inheritable(listener.fileno(), True)\n\
         os.environ[\"SERVE_FD\"] = str(listener.fileno())\n\
         os.execvp(\"python3\", [\"python3\", \"lib/serve.py\", sys.argv[1], \"at_once\"])\n"
    );
    let release = |version: &str, ready: &str| {
        let health = format!(
            "health = {{ http = \"http://127.0.0.1:{port}/\", interval = \"100ms\", timeout = \"1s\", threshold = 3 }}"
        );
        let keys = format!(
            "command = [\"python3\", \"lib/own.py\", \"{version}\"]\nready = \"{ready}\"\nhandover = \"restart\"\n{health}"
        );
        Release::bare(version).component("db", &keys).file("lib/own.py", &serve).file("lib/serve.py", SERVE)
    };
    let appliance = Appliance::new(&release("1.0.0", "health")).start();
    assert!(appliance.home().join("data/accepting-db-1.0.0").exists(), "it counted as ready before it could be");
    // Whether its definition says so or not, the time until it is well belongs to its start.
    appliance.install(&release("1.1.0", "exec"), &[]).ends_with(0);
    appliance.install(&release("1.2.0", "health"), &[]).ends_with(0);
    assert_eq!(component(&appliance.status(), "db")["health"], "healthy");
}

#[test]
fn what_the_old_process_answers_on_a_shared_listener_is_nobody_elses_health() {
    let release = |version: &str, begins: &str, probe: &str| {
        let keys = format!(
            "handover = \"overlap\"\nready = \"listen\"\nstart_timeout = \"2s\"\n\
             health = {{ {probe}, interval = \"100ms\", timeout = \"1s\", threshold = 3 }}"
        );
        server(version, begins, &keys)
    };
    let appliance = Appliance::new(&server("1.0.0", "lingers", "handover = \"overlap\"\nready = \"listen\"")).start();
    let address = appliance.address("http");
    let probe = format!("http = \"http://{address}/\"");
    let failed = appliance.install(&release("1.1.0", "sick", &probe), &[]).complains_with(70);
    assert!(failed.contains("503 Service Unavailable") || failed.contains("503 Sick"), "{failed}");
    appliance.install(&release("1.2.0", "at_once", &probe), &[]).ends_with(0);
    assert_eq!(component(&appliance.status(), "web")["health"], "healthy");
}

#[test]
fn a_component_that_an_update_keeps_takes_no_part_in_the_health_of_others() {
    // Its own address is known only when it is there: the machine's settings name it.
    let health = "{ http = \"http://127.0.0.1:9/\", interval = \"100ms\", timeout = \"1s\", threshold = 3 }";
    let release = |version: &str| {
        let keys = format!("handover = \"overlap\"\nready = \"listen\"\nhealth = {health}");
        server(version, "at_once", &keys).component("idle", "command = [\"sleep\", \"600\"]")
    };
    let appliance = Appliance::new(&release("1.0.0"));
    let address = appliance.address("http");
    let health = format!("\n[[component]]\nname = \"web\"\nhealth = {{ http = \"http://{address}/\" }}\n");
    let appliance = appliance.local(|text| text + &health).start();
    let idle = appliance.component_pid("idle");
    for version in ["1.1.0", "1.2.0"] {
        appliance.install(&release(version), &[]).ends_with(0);
        assert_eq!(component(&appliance.status(), "web")["health"], "healthy");
        assert_eq!(appliance.component_pid("idle"), idle, "it is kept");
    }
}

/// Returns a release of two servers that share the listener; the second is checked as `keys` say.
fn sharing(version: &str, first: &str, second: &str, keys: &str) -> Release {
    let command = |begins| format!("command = [\"python3\", \"lib/serve.py\", \"{version}\", \"{begins}\"]");
    let common = "listeners = [\"http\"]\nstart_timeout = \"2s\"";
    Release::bare(version)
        .listener("http")
        .component("web", &format!("{}\n{common}\nhandover = \"overlap\"\nready = \"listen\"", command(first)))
        .component("second", &format!("{}\n{common}\nafter = [\"web\"]\n{keys}", command(second)))
        .file("lib/serve.py", SERVE)
}

#[test]
fn one_that_never_accepts_beside_a_server_on_its_listener_is_not_ready() {
    let listens = "handover = \"overlap\"\nready = \"listen\"";
    let appliance = Appliance::new(&sharing("1.0.0", "at_once", "at_once", listens)).start();
    let second = appliance.component_pid("second");
    for (version, first) in [("1.1.0", "at_once"), ("1.2.0", "closes")] {
        let failed = appliance.install(&sharing(version, first, "never", listens), &[]).complains_with(70);
        assert!(failed.contains("component second did not start: was not ready within 2 s"), "{failed}");
    }
    assert_eq!(appliance.component_pid("second"), second, "it serves on");
}

#[test]
fn what_a_component_on_the_same_listener_answers_is_nobody_elses_health() {
    for (anywhere, is_http) in [("http = \"http://127.0.0.1:9/\"", true), ("tcp = \"127.0.0.1:9\"", false)] {
        let keys = format!("ready = \"exec\"\nhealth = {{ {anywhere}, interval = \"100ms\", timeout = \"1s\" }}");
        let appliance = Appliance::new(&sharing("1.0.0", "at_once", "at_once", &keys));
        // Its own address is known only when it is there: the machine's settings name it.
        let address = appliance.address("http");
        let probe = if is_http { format!("http = \"http://{address}/\"") } else { format!("tcp = \"{address}\"") };
        let setting = format!("\n[[component]]\nname = \"second\"\nhealth = {{ {probe} }}\n");
        let appliance = appliance
            .local(|text| text.replace("start_timeout = \"20s\"", "start_timeout = \"4s\"") + &setting)
            .start();
        appliance.install(&sharing("1.1.0", "at_once", "at_once", &keys), &[]).ends_with(0);
        assert_eq!(component(&appliance.status(), "second")["health"], "healthy", "{probe}");
        let failed = appliance.install(&sharing("1.2.0", "at_once", "never", &keys), &[]).complains_with(70);
        assert!(failed.contains("another process answers its health probe"), "{probe}: {failed}");
        appliance.settled("1.1.0");
    }
}

#[test]
fn processes_that_only_their_own_account_may_look_into_are_found_out_with_it() {
    if !as_root() {
        return;
    }
    if missing(&["setpriv"]) {
        return cannot_try("setpriv is missing");
    }
    let keys = "handover = \"overlap\"\nready = \"listen\"\nuser = \"daemon\"";
    let release = |version: &str, begins: &str| server(version, begins, keys);
    let mut appliance = Appliance::new(&release("1.0.0", "at_once"));
    appliance.run_guard_through(&["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]);
    appliance.wait_running();
    appliance.install(&release("1.1.0", "late"), &[]).ends_with(0);
    let pid = appliance.component_pid("web");
    assert!(fs::read_dir(format!("/proc/{pid}/fd")).is_ok(), "this test may look into it");
    let failed = appliance.install(&server("1.2.0", "never", &format!("{keys}\nstart_timeout = \"2s\"")), &[]);
    let failed = failed.complains_with(70);
    assert!(failed.contains("a process that is not its own accepts on the listener http"), "{failed}");
    assert_eq!(text(&component(&appliance.status(), "web")["release"]), "1.1.0");
}

/// Returns how many connections may wait at `address`, as `ss` shows it.
fn places(address: std::net::SocketAddr) -> u32 {
    let listening = std::process::Command::new("ss").args(["-Hltn", &format!("sport = :{}", address.port())]).output();
    let listening = String::from_utf8(listening.expect("run ss").stdout).expect("text");
    listening.split_whitespace().nth(2).expect("a number").parse().expect("a number")
}

#[test]
fn a_program_cannot_shrink_the_queue_for_those_after_it() {
    if missing(&["ss"]) {
        return cannot_try("ss is missing");
    }
    let keys = "ready = \"listen\"\nenv = { QUEUE = \"5\" }";
    let appliance = Appliance::new(&server("1.0.0", "at_once", keys)).start();
    let whole = places(appliance.address("admin"));
    assert!(whole > 5, "the queue of the page has {whole} places");
    assert_eq!(places(appliance.address("http")), whole, "once it is ready");
    // A program that shrinks it later, too: the queue is whole when the next process needs it.
    appliance.install(&server("1.1.0", "at_once", keys), &[]).ends_with(0);
    assert_eq!(places(appliance.address("http")), whole, "after an update");
    appliance.refit(&["component", "stop", "web"]).ends_with(0);
    assert_eq!(places(appliance.address("http")), whole, "while nothing serves");
}
