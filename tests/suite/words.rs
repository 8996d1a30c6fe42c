//! What a component's definition says in its own words: references that are filled in when a process starts, the signal that
//! ends it, and the variable by which servers pass on their sockets.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::appliance::{Appliance, Ran, component, refit, text};
use crate::components::{data, in_state, odd, with_odd};
use crate::process;
use crate::release::{Release, Vendor};
use crate::wait::{LIMIT, eventually, until};

/// Every variable that Refit gives a component.
const VARIABLES: [&str; 9] = [
    "REFIT_BUS",
    "REFIT_COMPONENT",
    "REFIT_CONFIG",
    "REFIT_DATA",
    "REFIT_HOME",
    "REFIT_RELEASE",
    "REFIT_SOCKET",
    "REFIT_TOKEN",
    "REFIT_VERSION",
];

#[test]
fn words_variables_and_directory_are_filled_in_when_a_process_starts() {
    let all = VARIABLES.map(|name| format!("{name}=${{{name}}}")).join(" ");
    let keys = format!(
        "command = [\"python3\", \"${{REFIT_RELEASE}}/lib/odd.py\", \"describe\", \"--dir=${{REFIT_DATA}}/x\", \
         \"fd://${{listener.spare}},${{listener.http}}\", \"$HOME ${{HOME}} $1 $ $$x $${{REFIT_DATA}} ${{REFIT_DATA:-x}}\", \
         \"${{REFIT_MINE}}\"]\nready = \"notify\"\nlisteners = [\"http\", \"spare\"]\ndirectory = \"${{REFIT_DATA}}/..here\"\n\
         pass = \"NGINX\"\nenv = {{ ALL = \"{all}\", PRICE = \"5$$\", PORT = \"${{listener.spare}}\", REFIT_MINE = \"my ${{REFIT_VERSION}}\" }}\n\
         health = {{ command = [\"${{REFIT_RELEASE}}/bin/check\", \"${{REFIT_DATA}}/checked\", \"${{REFIT_COMPONENT}}\"], \
         interval = \"50ms\", timeout = \"20s\" }}"
    );
    let release = odd(&["plain"], "ready = \"notify\"").listener("http").listener("spare");
    let release =
        release.component("web", &keys).program_text("bin/check", "#!/bin/sh\necho \"$2 ${NGINX-none}\" > \"$1\"\n");
    let appliance = Appliance::new(&release);
    let here = appliance.home().join("data/..here");
    fs::create_dir_all(&here).expect("its directory");
    let appliance = appliance.start();

    let found: Value = serde_json::from_str(&data(&appliance, "found")).expect("JSON");
    let (home, words) = (appliance.home().to_str().expect("text"), &found["argv"]);
    assert_eq!(words[0], format!("{home}/releases/1.0.0/lib/odd.py"));
    let expected = json!([
        "describe",
        format!("--dir={home}/data/x"),
        "fd://4,3",
        "$HOME ${HOME} $1 $ $x ${REFIT_DATA} ${REFIT_DATA:-x}",
        "my 1.0.0",
    ]);
    assert_eq!(Value::from(words.as_array().expect("words")[1..].to_vec()), expected);
    assert_eq!(text(&found["cwd"]), here.to_str().expect("text"));
    let environment = &found["env"];
    let all = VARIABLES.map(|name| format!("{name}={}", text(&environment[name]))).join(" ");
    assert_eq!(text(&environment["ALL"]), all);
    let filled = ["PRICE", "PORT", "REFIT_MINE", "NGINX"].map(|name| text(&environment[name]));
    assert_eq!(filled, ["5$", "4", "my 1.0.0", "3;4;"]);
    assert_eq!(data(&appliance, "checked"), "web none\n", "the health command has the same language, and no listeners");
}

/// Returns what `config check` and `pack` say of a release with these keys, both the same.
fn refused(dir: &Path, keys: &str) -> String {
    fs::create_dir_all(dir.join("bin")).expect("a directory");
    fs::write(dir.join("bin/web"), "#!/bin/sh\n").expect("written");
    Ran::of(std::process::Command::new("chmod").arg("755").arg(dir.join("bin/web"))).ends_with(0);
    let text = format!(
        "[appliance]\nname = \"shop\"\nversion = \"1.0.0\"\n[listeners]\nhttp = \"127.0.0.1:8080\"\n\
         https = \"127.0.0.1:8081\"\n[[component]]\nname = \"web\"\n{keys}\n"
    );
    fs::write(dir.join("appliance.toml"), text).expect("written");
    let checked = Ran::of(refit().args(["config", "check"]).arg(dir)).ends_with(78).stdout;
    assert_eq!(checked.lines().count(), 1, "{checked}");
    let mut pack = refit();
    pack.arg("pack").arg(dir).arg("-o").arg(dir.join("out.refit")).arg("--keys").arg(Vendor::get().keys());
    let packed = Ran::of(&mut pack).complains_with(78);
    assert!(packed.contains(checked.trim_end()), "{packed} does not say {checked}");
    checked
}

#[test]
fn what_cannot_be_filled_in_is_refused_before_it_is_packed() {
    let dir = tempfile::tempdir().expect("a directory");
    let web = "command = [\"bin/web\"]\nlisteners = [\"http\"]";
    for (keys, expected) in [
        (
            "command = [\"bin/web\", \"${REFIT_DTA}\"]".to_owned(),
            "appliance.toml:9:11: there is no ${REFIT_DTA}: use one of ${REFIT_BUS}, ${REFIT_COMPONENT}, ${REFIT_CONFIG}, \
             ${REFIT_DATA}, ${REFIT_HOME}, ${REFIT_RELEASE}, ${REFIT_SOCKET}, ${REFIT_VERSION}; write $$ for a dollar",
        ),
        ("command = [\"${REFIT_RELEASE}/bin/wep\"]".to_owned(), "there is no program \"${REFIT_RELEASE}/bin/wep\""),
        (
            format!("{web}\nenv = {{ A = \"1\", B = \"${{REFIT_DTA}}\" }}"),
            "appliance.toml:11:18: B: there is no ${REFIT_DTA}",
        ),
        (format!("{web}\nworking_directory = \"${{REFIT_DTA}}\""), "appliance.toml:11:21: there is no ${REFIT_DTA}"),
        (format!("{web}\ndirectory = \"${{listener.htp}}\""), "the component \"web\" has ${listener.http}"),
        (
            format!("{web}\nhealth = {{ command = [\"bin/web\", \"${{REFIT_DTA}}\"] }}"),
            "there is no ${REFIT_DTA}: use one of",
        ),
        (format!("{web}\nhealth = {{ command = [\"bin/web\", \"${{listener.http}}\"] }}"), "gets no listeners"),
        ("command = [\"bin/web\", \"fd@${listener.http}\"]".to_owned(), "the component \"web\" has no listeners"),
        (
            "command = [\"bin/web\", \"${REFIT_TOKEN}\"]".to_owned(),
            "every account of the machine could read ${REFIT_TOKEN}",
        ),
        (format!("{web}\nstop_signal = \"KILL\""), "appliance.toml:11:15: no program can handle KILL"),
        (format!("{web}\nstop_signal = \"quit\""), "\"quit\" is no stop_signal: use one of TERM, INT, QUIT, HUP, "),
        (format!("{web}\nstop_signal = \"3\""), "\"3\" is no stop_signal"),
        (format!("{web}\npass = \"LISTEN_FDS\""), "LISTEN_FDS is set by refit itself"),
        (format!("{web}\npass = \"3X\""), "\"3X\" cannot be a variable of an environment"),
        (format!("{web}\npass = \"NGINX\"\nenv = {{ NGINX = \"7;\" }}"), "env sets NGINX, too: remove it there"),
        (
            format!("{web}\nreload_signal = \"HUP\"\nreload_check = [\"bin/web\", \"${{REFIT_DTA}}\"]"),
            "appliance.toml:12:16: there is no ${REFIT_DTA}",
        ),
        (format!("{web}\nreload_signal = \"HUP\"\nreload_check = [\"bin/none\"]"), "there is no program \"bin/none\""),
        (format!("{web}\nreload_check = [\"bin/web\"]"), "a reload_check needs a reload_signal"),
        (format!("{web}\nreload_signal = \"HUP\"\nreload_check = []"), "the reload_check is empty"),
        ("command = [\"bin/web\"]\npass = \"NGINX\"".to_owned(), "pass needs listeners"),
    ] {
        let said = refused(dir.path(), &keys);
        assert!(said.contains(expected), "{keys}: {said}");
    }
}

/// A component that says by which signal it was told to end, under this name.
fn told(version: &str, name: &str, keys: &str) -> Release {
    with_odd(Release::bare(version), "odd", &["told", name], &format!("ready = \"notify\"\n{keys}"))
}

#[test]
fn each_way_of_being_stopped_begins_with_the_signal_that_the_component_names() {
    let keys = "stop_signal = \"SIGQUIT\"\nhandover = \"overlap\"\nrestart = { backoff = \"10ms..10ms\" }\n\
                health = { command = [\"python3\", \"lib/odd.py\", \"probe\"], interval = \"50ms\", timeout = \"20s\", \
                threshold = 1, action = \"restart\" }";
    let appliance = Appliance::new(&told("1.0.0", "one", keys)).start();
    let lines = |count: usize| {
        until(LIMIT, "it was told", || Some(data(&appliance, "told")).filter(|told| told.lines().count() == count))
    };
    appliance.refit(&["component", "restart", "odd"]).ends_with(0);
    assert_eq!(lines(1), "one SIGQUIT\n");
    let bad = appliance.home().join("data/bad");
    until(LIMIT, "it is healthy", || (in_state(&appliance, "running")["health"] == "healthy").then_some(()));
    fs::write(&bad, "").expect("written");
    assert_eq!(lines(2), "one SIGQUIT\n".repeat(2), "because it is unhealthy");
    fs::remove_file(&bad).expect("removed");
    // The next runtime knows it, too, and so does a release that names another signal for its own process.
    until(LIMIT, "it runs again", || (in_state(&appliance, "running")["health"] == "healthy").then_some(()));
    appliance.kill_runtime();
    appliance.install(&told("1.1.0", "two", "stop_signal = \"USR1\"\nhandover = \"overlap\""), &[]).ends_with(0);
    assert_eq!(lines(3), "one SIGQUIT\n".repeat(3), "by the update");
    appliance.refit(&["rollback"]).ends_with(0);
    eventually(LIMIT, "the newer process was told", || data(&appliance, "told").ends_with("two SIGUSR1\n"));
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    let last = data(&appliance, "told");
    assert_eq!(last.lines().skip(3).collect::<Vec<_>>(), ["two SIGUSR1", "one SIGQUIT"]);
}

#[test]
fn a_component_that_no_runtime_stops_is_told_by_its_signal_too() {
    let mut appliance = Appliance::new(&told("1.0.0", "one", "stop_signal = \"INT\"")).start();
    let pids = [appliance.runtime_pid(), appliance.component_pid("odd")];
    appliance.kill_guard();
    process::send(pids[0], Signal::SIGKILL);
    eventually(LIMIT, "the runtime is gone", || !process::is_alive(pids[0]));
    appliance.run_guard();
    appliance.wait_running();
    assert_eq!(data(&appliance, "told"), "one SIGINT\n");
    assert_ne!(component(&appliance.status(), "odd")["pid"], pids[1]);
}

#[test]
fn one_that_does_not_hear_its_stop_signal_is_killed_and_that_is_said() {
    let keys = "ready = \"notify\"\nstop_timeout = \"200ms\"\nstop_signal = \"WINCH\"";
    let appliance = Appliance::new(&odd(&["plain"], keys)).start();
    let said = appliance.refit(&["component", "stop", "odd"]).complains_with(70);
    assert!(said.contains("of being asked to by SIGWINCH, and was killed"), "{said}");
}

#[test]
fn a_program_that_is_made_on_the_machine_is_found_when_it_is_started() {
    let keys = "command = [\"${REFIT_DATA}/tools/odd\", \"plain\", \"made\"]\nready = \"notify\"\n\
                working_directory = \"${REFIT_DATA}/tools\"";
    let release = with_odd(Release::bare("1.0.0"), "first", &["plain"], "ready = \"notify\"").component("odd", keys);
    let appliance = Appliance::new(&release);
    let tools = appliance.home().join("data/tools");
    fs::create_dir_all(&tools).expect("its directory");
    let script = "#!/bin/sh\nexec python3 \"$REFIT_RELEASE/lib/odd.py\" \"$@\"\n";
    refit_fixtures::tools::put_program(&tools.join("odd"), script);
    let appliance = appliance.start();
    assert_eq!(component(&appliance.status(), "odd")["status"], "made");
    appliance.refit(&["config", "check"]).ends_with(0);
}

#[test]
fn a_reload_signal_may_be_written_with_sig() {
    let appliance = Appliance::new(&odd(&["reload"], "ready = \"notify\"\nreload_signal = \"SIGHUP\"")).start();
    let pid = appliance.component_pid("odd");
    appliance.refit(&["bus", "request", "reload"]).ends_with(0);
    assert_eq!(data(&appliance, "reloaded"), format!("{pid}\n"));
}

#[test]
fn a_program_that_knows_only_signals_has_a_check_that_refuses_a_reload() {
    let script = "#!/bin/sh\necho \"checking $1 with $NGINX in $PWD\"\nreadlink /proc/self/fd/3\n\
                  test -e \"$REFIT_DATA/good\" && exit 0\necho \"site.conf:7: unknown directive\" >&2\necho \"test failed\" >&2\nexit 1\n";
    let keys = "command = [\"python3\", \"lib/odd.py\", \"reload\"]\nready = \"notify\"\nlisteners = [\"http\"]\npass = \"NGINX\"\n\
                reload_signal = \"HUP\"\nreload_check = [\"bin/check\", \"fd@${listener.http}\"]";
    let release = with_odd(Release::bare("1.0.0"), "other", &["plain"], "ready = \"notify\"").listener("http");
    let appliance = Appliance::new(&release.component("odd", keys).program_text("bin/check", script)).start();
    let refused = appliance.refit(&["bus", "request", "reload", "--json"]).ends_with(70);
    let ticket = &refused.objects()[0]["ticket"];
    let reason = text(&ticket["reason"]);
    let begin = "refused by odd: its reload_check ended with exit status: 1: checking fd@3 with 3; in ";
    assert!(reason.starts_with(begin) && reason.contains("socket:["), "{reason}");
    assert!(reason.contains("; site.conf:7: unknown directive; test failed; nothing has changed"), "{reason}");
    let asked =
        ticket["asked"].as_array().expect("a list").iter().find(|one| one["name"] == "odd").expect("it was asked");
    assert_eq!((&asked["phase"], &asked["answer"]), (&"prepare".into(), &"refused".into()), "{asked}");
    assert!(!appliance.home().join("data/reloaded").exists(), "it was not told");
    fs::write(appliance.home().join("data/good"), "").expect("written");
    appliance.refit(&["bus", "request", "reload"]).ends_with(0);
    assert_eq!(data(&appliance, "reloaded"), format!("{}\n", appliance.component_pid("odd")));
}
