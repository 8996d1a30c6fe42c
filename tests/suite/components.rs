//! What a component may do and what becomes of it: how it begins, how it says that it lives, how it ends, with all it started.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use refit_fixtures::tools::cannot_try;
use serde_json::Value;

use crate::appliance::{Appliance, Ran, component, text};
use crate::process;
use crate::release::{REFIT, Release};
use crate::wait::{LIMIT, eventually, until};

/// A component that behaves as its arguments say: see its own text.
const ODD: &str = include_str!("components/odd.py");

/// Returns a release whose one component, `odd`, behaves as `behaviour` says, with these keys.
pub(crate) fn odd(behaviour: &[&str], keys: &str) -> Release {
    with_odd(Release::bare("1.0.0"), "odd", behaviour, keys)
}

/// Adds a component `name` that behaves as `behaviour` says, with these keys.
pub(crate) fn with_odd(release: Release, name: &str, behaviour: &[&str], keys: &str) -> Release {
    let words: String = behaviour.iter().map(|word| format!(", \"{word}\"")).collect();
    release.component(name, &format!("command = [\"python3\", \"lib/odd.py\"{words}]\n{keys}")).file("lib/odd.py", ODD)
}

/// Has the machine say that there are to be no control groups.
pub(crate) fn without_groups(local: String) -> String {
    format!("[runtime]\ncgroups = false\n\n{local}")
}

/// Returns what a status says of the component `odd`.
pub(crate) fn of(appliance: &Appliance) -> Value {
    component(&appliance.status(), "odd")
}

/// Waits until the component `odd` is in `state`, and returns what the status says of it.
pub(crate) fn in_state(appliance: &Appliance, state: &str) -> Value {
    until(LIMIT, &format!("the component is {state}"), || {
        let found = component(&appliance.try_status()?, "odd");
        (found["state"] == state).then_some(found)
    })
}

/// Returns what the component wrote to `name` among its data, once it has.
pub(crate) fn data(appliance: &Appliance, name: &str) -> String {
    let path = appliance.home().join("data").join(name);
    until(LIMIT, &format!("the component wrote {name}"), || {
        fs::read_to_string(&path).ok().filter(|text| !text.is_empty())
    })
}

/// Returns the process that got away under this name.
pub(crate) fn pid_in(appliance: &Appliance, name: &str) -> i32 {
    until(LIMIT, "the number is whole", || data(appliance, name).strip_suffix('\n')?.parse().ok())
}

fn reason(of: &Value) -> String {
    text(&of["reason"])
}

/// Asserts that the appliance does not start because of the component, and returns what was printed.
fn fails_to_start(release: &Release) -> String {
    let mut appliance = Appliance::new(release);
    appliance.run_guard();
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(70));
    assert_eq!(appliance.processes(), Vec::<i32>::new(), "nothing is left");
    appliance.log()
}

#[test]
fn each_way_of_being_ready_is_found_out() {
    let mut release = Release::bare("1.0.0").listener("http");
    for (name, behaviour, ready) in [("a", "plain", "notify"), ("c", "silent", "exec"), ("d", "silent", "started")] {
        release = with_odd(release, name, &[behaviour], &format!("ready = \"{ready}\""));
    }
    let release = with_odd(release, "odd", &["accept"], "ready = \"listen\"\nlisteners = [\"http\"]");
    let appliance = Appliance::new(&release).start();
    for name in ["a", "odd", "c", "d"] {
        assert_eq!(component(&appliance.status(), name)["state"], "running", "{name}");
    }
}

#[test]
fn one_that_is_not_ready_in_time_says_what_was_missing() {
    let keys = "ready = \"notify\"\nstart_timeout = \"500ms\"";
    let log = fails_to_start(&odd(&["silent"], keys));
    assert!(log.contains("it never said anything on NOTIFY_SOCKET"), "{log}");
    // One that closes the socket, or removes it, is one that says nothing.
    let log = fails_to_start(&odd(&["unlinked"], keys));
    assert!(log.contains("it never said anything on NOTIFY_SOCKET"), "{log}");
    let log = fails_to_start(&with_odd(
        Release::bare("1.0.0").listener("http"),
        "odd",
        &["silent"],
        "ready = \"listen\"\nlisteners = [\"http\"]\nstart_timeout = \"500ms\"",
    ));
    assert!(log.contains("was not ready within"), "{log}");
}

#[test]
fn one_that_says_why_it_failed_is_believed() {
    let log = fails_to_start(&odd(&["errno"], "ready = \"notify\""));
    assert!(log.contains("ended with status 4 before it was ready"), "{log}");
    assert!(log.contains("it said why: No space left on device"), "{log}");
}

#[test]
fn a_last_word_is_heard_although_the_end_is_known_at_the_same_time() {
    let keys = "ready = \"notify\"\nrestart = { policy = \"no\" }";
    let appliance = Appliance::new(&odd(&["last_word"], keys)).start();
    let (runtime, odd) = (appliance.runtime_pid(), appliance.component_pid("odd"));
    // The runtime gets no processor until both have happened.
    process::send(runtime, Signal::SIGSTOP);
    fs::write(appliance.home().join("data/go"), "").expect("written");
    eventually(LIMIT, "the component has ended", || !process::is_alive(odd));
    process::send(runtime, Signal::SIGCONT);
    let found = reason(&in_state(&appliance, "failed"));
    assert!(found.contains("it said why: No space left on device"), "{found}");
}

#[test]
fn a_slow_start_that_asks_for_more_time_gets_it() {
    let appliance = Appliance::new(&odd(&["slow", "8"], "ready = \"notify\"\nstart_timeout = \"6s\"")).start();
    let found = of(&appliance);
    assert_eq!((&found["state"], &found["status"]), (&"running".into(), &"migrating".into()), "{found}");
}

#[test]
fn a_slow_stop_that_asks_for_more_time_gets_it() {
    let appliance = Appliance::new(&odd(&["slow_stop", "5"], "ready = \"notify\"\nstop_timeout = \"3s\"")).start();
    appliance.refit(&["component", "stop", "odd"]).ends_with(0);
    let found = of(&appliance);
    assert_eq!((&found["state"], &found["reason"]), (&"stopped".into(), &Value::Null), "{found}");
}

#[test]
fn one_that_does_not_hear_sigterm_is_killed_and_that_is_said() {
    let appliance = Appliance::new(&odd(&["deaf"], "ready = \"notify\"\nstop_timeout = \"300ms\"")).start();
    let pid = appliance.component_pid("odd");
    let said = appliance.refit(&["component", "stop", "odd"]).complains_with(70);
    assert!(said.contains("did not end within") && said.contains("was killed"), "{said}");
    assert!(!process::is_alive(pid));
    assert!(reason(&in_state(&appliance, "stopped")).contains("did not end within"));
}

#[test]
fn noise_on_the_notify_socket_is_bounded_reported_and_does_no_harm() {
    let release = with_odd(odd(&["noise"], "ready = \"notify\""), "calm", &["plain", "calm"], "ready = \"notify\"");
    let appliance = Appliance::new(&release).start();
    until(LIMIT, "the last word is heard", || (of(&appliance)["status"] == "done").then_some(()));
    assert_eq!(component(&appliance.status(), "calm")["status"], "calm");
    for what in ["more than 4096 bytes", "without KEY=VALUE lines", "MAINPID is not supported", "it has to wait"] {
        eventually(LIMIT, &format!("{what:?} is said"), || appliance.log().contains(what));
        let log = appliance.log();
        assert_eq!(log.matches(what).count(), 1, "{what:?} is said once: {log}");
    }
}

#[test]
fn one_that_falls_silent_is_ended_by_its_watchdog_and_started_again() {
    let keys = "ready = \"notify\"\nwatchdog = \"2s\"\nrestart = { backoff = \"10ms..10ms\", limit = \"100/1m\" }";
    let appliance = Appliance::new(&odd(&["tick", "20"], keys)).start();
    let first = appliance.component_pid("odd");
    assert_eq!(data(&appliance, "watchdog"), "2000000 True");
    until(LIMIT, "it was started again", || (of(&appliance)["restarts"].as_u64() >= Some(1)).then_some(()));
    assert!(!process::is_alive(first));
    assert_eq!(pid_of_first_line(&data(&appliance, "last-tick")), first, "as long as it gave signs of life it lived");
    eventually(LIMIT, "the reason is on the log", || {
        appliance.log().contains("watchdog: it gave no sign of life for 2 s")
    });
}

fn pid_of_first_line(text: &str) -> i32 {
    text.lines().next().expect("a line").parse().expect("a PID")
}

#[test]
fn without_a_restart_the_watchdog_is_the_reason_of_the_failure() {
    let keys = "ready = \"notify\"\nrestart = { policy = \"no\" }\n";
    let stubborn = Appliance::new(&odd(&["tick", "1", "stubborn"], &format!("{keys}watchdog = \"2s\""))).start();
    let trigger = Appliance::new(&odd(&["trigger"], keys)).start();
    let found = reason(&in_state(&trigger, "failed"));
    assert!(found.starts_with("watchdog: it said itself that it hangs, and was ended by signal: 6"), "{found}");
    let found = reason(&in_state(&stubborn, "failed"));
    assert!(found.starts_with("watchdog: ") && found.contains("signal: 9"), "SIGABRT is blocked: {found}");
}

#[test]
fn one_that_is_unhealthy_is_reported_or_started_again_as_it_says() {
    for (action, again) in [("report", false), ("restart", true)] {
        let keys = format!(
            "ready = \"notify\"\nrestart = {{ backoff = \"10ms..10ms\" }}\nhealth = {{ command = [\"python3\", \
             \"lib/odd.py\", \"probe\"], interval = \"50ms\", timeout = \"20s\", threshold = 2, action = \"{action}\" }}"
        );
        let appliance = Appliance::new(&odd(&["plain"], &keys)).start();
        let healthy = || (of(&appliance)["health"] == "healthy").then(|| appliance.component_pid("odd"));
        let pid = until(LIMIT, "it is healthy", healthy);
        let bad = appliance.home().join("data/bad");
        fs::write(&bad, "").expect("write the file");
        if again {
            until(LIMIT, "it was started again", || (of(&appliance)["restarts"].as_u64() >= Some(1)).then_some(()));
            for what in ["was unhealthy: the health command ended with", "the file is there"] {
                eventually(LIMIT, &format!("{what:?} is on the log"), || appliance.log().contains(what));
            }
        } else {
            let found =
                until(LIMIT, "it is unhealthy", || Some(of(&appliance)).filter(|found| found["health"] == "unhealthy"));
            assert!(reason(&found).contains("the file is there"), "{found}");
        }
        fs::remove_file(bad).expect("remove the file");
        let after = until(LIMIT, "it is healthy again", healthy);
        assert_eq!(after != pid, again, "{action}");
    }
}

#[test]
fn a_health_command_ends_at_its_limit_with_all_it_started() {
    let keys = "ready = \"notify\"\nstart_timeout = \"8s\"\nworking_directory = \"lib\"\nhealth = { command = [\"python3\", \"odd.py\", \
                \"probe_hang\"], interval = \"60s\", timeout = \"8s\", threshold = 1 }";
    let release = Release::bare("1.0.0")
        .component("odd", &format!("command = [\"python3\", \"odd.py\", \"plain\"]\n{keys}"))
        .file("lib/odd.py", ODD);
    for local in [|text| text, without_groups as fn(String) -> String] {
        let appliance = Appliance::new(&release).local(local).start();
        let found =
            until(LIMIT, "it is unhealthy", || Some(of(&appliance)).filter(|found| found["health"] == "unhealthy"));
        assert!(reason(&found).contains("the health command did not end within 8 s"), "{found}");
        let state: Value = serde_json::from_str(&data(&appliance, "probe-env")).expect("JSON");
        let directory = appliance.home().join("releases/1.0.0/lib");
        assert_eq!(state, serde_json::json!([true, "odd", directory]), "as the component is started");
        assert!(!process::is_alive(pid_in(&appliance, "probe-away")));
        assert_eq!(found["state"], "running");
    }
}

#[test]
fn one_that_ends_well_at_once_is_down_and_says_so() {
    let appliance = Appliance::new(&odd(&["quit"], "ready = \"started\"")).start();
    let found = in_state(&appliance, "stopped");
    assert!(reason(&found).contains("ended with status 0, without having been asked to"), "{found}");

    let keys = "ready = \"started\"\nrestart = { policy = \"always\", backoff = \"1ms..1ms\", limit = \"2/1m\" }";
    let appliance = Appliance::new(&odd(&["quit"], keys)).start();
    let found = in_state(&appliance, "failed");
    assert!(reason(&found).contains("ended 3 times within 60 s, not started again"), "{found}");
    assert_eq!(found["restarts"], 2);
}

#[test]
fn one_that_announces_its_end_is_understood() {
    let appliance = Appliance::new(&odd(&["stops"], "ready = \"notify\"\nrestart = { policy = \"no\" }")).start();
    let found = reason(&in_state(&appliance, "failed"));
    assert!(found.contains("ended with status 3"), "{found}");
}

#[test]
fn one_that_goes_to_the_background_is_ended_and_told_so() {
    let keys = "ready = \"exec\"\nrestart = { policy = \"no\" }";
    for local in [|text| text, without_groups as fn(String) -> String] {
        let appliance = Appliance::new(&odd(&["daemon"], keys)).local(local).start();
        let found = reason(&in_state(&appliance, "failed"));
        assert!(found.contains("ended with status 0") && found.contains("it left 1 process behind"), "{found}");
        assert!(!process::is_alive(pid_in(&appliance, "away")));
    }
    let log = fails_to_start(&odd(&["daemon"], "ready = \"notify\""));
    assert!(log.contains("before it was ready") && log.contains("it left 1 process behind"), "{log}");
}

/// Asserts that whatever the component started is gone when it is stopped, and when it is killed.
fn nothing_survives(local: fn(String) -> String) {
    let names = ["away", "away-too", "child"];
    let keys = "ready = \"notify\"\nrestart = { policy = \"no\" }";
    for killed in [false, true] {
        let appliance = Appliance::new(&odd(&["crowd"], keys)).local(local).start();
        let pids = names.map(|name| pid_in(&appliance, name));
        assert!(pids.iter().all(|pid| process::is_alive(*pid)), "they live as long as it does");
        if killed {
            process::send(appliance.component_pid("odd"), Signal::SIGKILL);
            let found = reason(&in_state(&appliance, "failed"));
            assert!(found.contains("it left 3 processes behind"), "{found}");
        } else {
            appliance.refit(&["component", "stop", "odd"]).ends_with(0);
        }
        assert!(pids.iter().all(|pid| !process::is_alive(*pid)), "none is left");
    }
}

#[test]
fn nothing_that_a_component_started_survives_it() {
    nothing_survives(|text| text);
}

#[test]
fn nothing_that_a_component_started_survives_it_without_control_groups_either() {
    nothing_survives(without_groups);
}

#[test]
fn what_a_component_started_ends_with_it_also_under_the_next_runtime() {
    for local in [|text| text, without_groups as fn(String) -> String] {
        let appliance = Appliance::new(&odd(&["crowd"], "ready = \"notify\"")).local(local).start();
        let pids = ["away", "child"].map(|name| pid_in(&appliance, name));
        let pid = appliance.component_pid("odd");
        appliance.kill_runtime();
        assert_eq!(appliance.component_pid("odd"), pid, "it lived on");
        appliance.refit(&["component", "stop", "odd"]).ends_with(0);
        assert!(pids.iter().all(|pid| !process::is_alive(*pid)), "none is left");
    }
}

#[test]
fn one_that_hides_from_everybody_ends_with_the_appliance_at_the_latest() {
    for local in [|text| text, without_groups as fn(String) -> String] {
        let mut appliance = Appliance::new(&odd(&["unknown"], "ready = \"notify\"")).local(local).start();
        let hidden = pid_in(&appliance, "away");
        assert!(process::is_alive(hidden));
        appliance.stop();
        assert!(!process::is_alive(hidden));
    }
}

#[test]
fn a_component_begins_clean() {
    let keys = "ready = \"notify\"\nlisteners = [\"http\"]\numask = \"0027\"\nno_new_privs = true\n\
                working_directory = \"lib\"\nenv = { COLOUR = \"green\" }\nwatchdog = \"1h\"";
    let release = Release::bare("1.0.0").listener("http").file("lib/odd.py", ODD);
    let release = release.component("odd", &format!("command = [\"python3\", \"odd.py\", \"describe\"]\n{keys}"));
    let keys = keys.replace("notify", "exec");
    let release = release.component("still", &format!("command = [\"sleep\", \"infinity\"]\n{keys}"));
    let appliance = Appliance::new(&release).start();
    let found: Value = serde_json::from_str(&data(&appliance, "found")).expect("JSON");
    let pid = appliance.component_pid("odd");

    let descriptors: Vec<&String> = found["fds"].as_object().expect("numbers").keys().collect();
    assert_eq!(descriptors, ["0", "1", "2", "3"], "streams and listener: {}", found["fds"]);
    assert_eq!(found["fds"]["0"], "/dev/null");
    assert!(text(&found["fds"]["3"]).starts_with("socket:"));
    for (mask, expected) in [("SigBlk", "0000000000000000"), ("NoNewPrivs", "1")] {
        assert_eq!(found["status"][mask], expected, "{mask}");
    }
    assert_eq!((&found["sid"], &found["pgid"]), (&pid.into(), &pid.into()), "a session and a group of its own");
    assert_eq!(found["umask"], 0o027);
    assert_eq!(text(&found["cwd"]), appliance.home().join("releases/1.0.0/lib").to_str().expect("text"));

    // The interpreter may be a script that adds variables of its own: this one is none.
    let still = appliance.component_pid("still");
    let bytes = until(LIMIT, "its program runs", || {
        fs::read(format!("/proc/{still}/environ")).ok().filter(|_| process::program(still) != Path::new(REFIT))
    });
    let text = String::from_utf8(bytes).expect("text");
    let environment: BTreeMap<&str, &str> =
        text.split_terminator('\0').map(|line| line.split_once('=').expect("a variable")).collect();
    let expected = [
        "COLOUR",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
        "PATH",
        "REFIT_COMPONENT",
        "REFIT_CONFIG",
        "REFIT_DATA",
        "REFIT_HOME",
        "REFIT_RELEASE",
        "REFIT_SOCKET",
        "REFIT_TOKEN",
        "REFIT_VERSION",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    ];
    // What else Refit says in its own name is its own.
    let keys: Vec<&str> =
        environment.keys().copied().filter(|key| expected.contains(key) || !key.starts_with("REFIT_")).collect();
    assert_eq!(keys, expected);
    let own = still.to_string();
    assert_eq!((environment["COLOUR"], environment["LISTEN_PID"]), ("green", own.as_str()));
    assert_eq!((environment["WATCHDOG_PID"], environment["WATCHDOG_USEC"]), (own.as_str(), "3600000000"));
}

#[test]
fn what_an_ancestor_ignored_or_blocked_is_not_inherited() {
    let script = "trap '' HUP INT QUIT TERM USR1 USR2 PIPE CHLD; exec \"$0\" launch -- \
                  grep -E '^Sig(Ign|Blk):' /proc/self/status";
    let ran = Ran::of(Command::new("sh").arg("-c").arg(script).arg(REFIT)).ends_with(0);
    assert_eq!(ran.stdout, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[test]
fn b102_a_component_runs_as_the_account_that_it_names_with_its_umask_each_time() {
    let Ok(Some(nobody)) = nix::unistd::User::from_name("nobody") else {
        return cannot_try("there is no account nobody");
    };
    let gid = nobody.gid.as_raw();
    let keys = "ready = \"notify\"\nuser = \"nobody\"\nsupplementary_groups = []\numask = \"0027\"";
    let appliance = Appliance::new(&odd(&["describe"], keys));
    if !nix::unistd::geteuid().is_root() {
        // Nobody but root can become somebody else: that is said, and nothing runs.
        let mut appliance = appliance;
        appliance.run_guard();
        assert_eq!(appliance.wait_guard(LIMIT).code(), Some(70));
        assert!(appliance.log().contains("cannot become the account nobody"), "{}", appliance.log());
        return cannot_try("to become the account nobody takes root");
    }
    for dir in [appliance.scratch(), appliance.home()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("open the way to the release");
    }
    let appliance = appliance.start();
    let expected = serde_json::json!({
        "uid": nobody.uid.as_raw(), "gid": gid, "groups": [], "home": nobody.dir.to_str().expect("text"),
    });
    for times in 1..=2 {
        let lines: Vec<String> = until(LIMIT, "it has said who it is", || {
            let ran = appliance.refit(&["component", "logs", "odd"]).ends_with(0);
            let said = ran.stdout.lines().filter_map(|line| line.find("{\"uid\"").map(|at| line[at..].to_owned()));
            let said: Vec<String> = said.collect();
            (said.len() == times).then_some(said)
        });
        let found: Value = serde_json::from_str(&lines[times - 1]).expect("JSON");
        assert_eq!(found, expected);
        let status =
            fs::read_to_string(format!("/proc/{}/status", appliance.component_pid("odd"))).expect("its status");
        assert!(status.contains("Umask:\t0027\n"), "{status}");
        appliance.refit(&["bus", "request", "stop"]).ends_with(0);
        appliance.refit(&["bus", "request", "start"]).ends_with(0);
    }
    for file in fs::read_dir(appliance.home().join("log/odd")).expect("its log").flatten() {
        assert_eq!(file.metadata().expect("its mode").permissions().mode() & 0o007, 0, "nobody else reads the log");
    }
}

#[test]
fn a_reload_reaches_a_component_as_the_signal_that_it_names() {
    let release = odd(&["reload"], "ready = \"notify\"\nreload_signal = \"HUP\"");
    let appliance = Appliance::new(&with_odd(release, "plain", &["plain"], "ready = \"notify\"")).start();
    let pids = ["odd", "plain"].map(|name| appliance.component_pid(name));
    appliance.refit(&["bus", "request", "reload"]).ends_with(0);
    assert_eq!(data(&appliance, "reloaded"), format!("{}\n", pids[0]));
    assert_eq!(["odd", "plain"].map(|name| appliance.component_pid(name)), pids, "nothing was restarted");
}

#[test]
fn a_stop_does_not_wait_for_a_start_that_comes_again() {
    let keys = "ready = \"notify\"\nstart_timeout = \"1h\"\nrestart = { backoff = \"1ms..1ms\" }";
    let appliance = Appliance::new(&odd(&["once"], keys)).start();
    process::send(appliance.component_pid("odd"), Signal::SIGKILL);
    let second = pid_in(&appliance, "second");
    assert_eq!(of(&appliance)["state"], "starting");
    appliance.refit(&["component", "stop", "odd"]).ends_with(0);
    assert_eq!(of(&appliance)["state"], "stopped");
    assert!(!process::is_alive(second));
}
