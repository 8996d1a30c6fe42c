//! A component that cannot start while the others serve: at a restart in place, after a crash, after a stop, on the way back.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::appliance::{Appliance, component};
use crate::process::{is_alive, send};
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// A release with a component that serves, one that starts only where its working directory is, and one that needs that.
fn with_tool(version: &str, place: &Path) -> Release {
    // Another argument in each release: an update does not keep the process.
    let script = format!("exec python3 \\\"$REFIT_RELEASE/lib/part.py\\\" tool --of {version}");
    let tool = format!(
        "command = [\"sh\", \"-c\", \"{script}\"]\nready = \"notify\"\nworking_directory = \"{}\"\nrestart = {{ policy = \
         \"on-failure\", backoff = \"20ms..100ms\", limit = \"1000/1m\" }}",
        place.display()
    );
    Release::bare(version).part("web", &[], "").component("tool", &tool).part("user", &[], "needs = [\"tool\"]")
}

fn states(status: &Value) -> Vec<String> {
    ["web", "tool", "user"]
        .iter()
        .map(|name| component(status, name)["state"].as_str().expect("text").to_owned())
        .collect()
}

/// Asserts that `web` is the process `pid`, and that `tool` is tried again and comes up, with what needs it, when it can.
fn comes_up(appliance: &Appliance, pid: i32, place: &Path) {
    let status = appliance.status();
    assert_eq!(status["bus"]["state"], "Running", "{status}");
    assert_eq!(appliance.component_pid("web"), pid, "what serves was not touched");
    let tool = component(&status, "tool");
    assert!(matches!(tool["state"].as_str(), Some("backoff" | "starting")), "{tool}");
    assert!(tool["reason"].as_str().is_some_and(|reason| reason.contains(place.to_str().expect("text"))), "{tool}");
    fs::create_dir(place).expect("make the directory");
    eventually(LIMIT, "everything runs", || states(&appliance.status()) == ["running"; 3]);
    assert_eq!(appliance.component_pid("web"), pid);
}

#[test]
fn a_component_that_cannot_start_at_a_restart_in_place_does_not_end_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("place");
    fs::create_dir(&place).expect("make a directory");
    let appliance = Appliance::new(&with_tool("1.0.0", &place)).start();
    let (web, guard) = (appliance.component_pid("web"), appliance.guard_pid());
    // Other settings: the restart does not keep that process.
    let change = |text: &str| {
        let path = appliance.home().join("local.toml");
        let local = fs::read_to_string(&path).expect("read");
        let local = local.split("\n[[component]]").next().expect("a beginning").to_owned();
        fs::write(&path, format!("{local}\n[[component]]\nname = \"tool\"\nenv = {{ TIMES = \"{text}\" }}\n"))
            .expect("write");
    };
    change("1");
    fs::remove_dir(&place).expect("remove");
    let line = appliance.refit(&["bus", "request", "restart"]).ends_with(70).stderr;
    assert!(line.contains("the appliance runs without tool: cannot change to"), "{line}");
    comes_up(&appliance, web, &place);
    // A runtime that crashes is another start, and so is one after a stop.
    fs::remove_dir(&place).expect("remove");
    send(appliance.component_pid("tool"), Signal::SIGKILL);
    eventually(LIMIT, "it is down", || component(&appliance.status(), "tool")["state"] == "backoff");
    let user = appliance.component_pid("user");
    appliance.kill_runtime();
    eventually(LIMIT, "what needs it goes on", || component(&appliance.status(), "user")["state"] == "running");
    assert_eq!(appliance.component_pid("user"), user);
    comes_up(&appliance, web, &place);
    fs::remove_dir(&place).expect("remove");
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    let line = appliance.refit(&["bus", "request", "start"]).ends_with(70).stderr;
    assert!(line.contains("tool: cannot change to"), "{line}");
    assert_eq!(component(&appliance.status(), "user")["state"], "stopped", "it is not started without what it needs");
    comes_up(&appliance, appliance.component_pid("web"), &place);
    // What came up late is stopped with the others.
    let pids: Vec<i32> = ["web", "tool", "user"].iter().map(|name| appliance.component_pid(name)).collect();
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    assert_eq!(states(&appliance.status()), ["stopped"; 3]);
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(appliance.guard_pid(), guard);
}

#[test]
fn a_component_that_cannot_start_on_the_way_back_does_not_end_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("place");
    fs::create_dir(&place).expect("make a directory");
    let appliance = Appliance::new(&with_tool("1.0.0", &place)).start();
    let web = appliance.component_pid("web");
    fs::remove_dir(&place).expect("remove");
    let ran = appliance.install(&with_tool("1.1.0", &place), &[]).ends_with(70);
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains("tool"), "{} {}", ran.stdout, ran.stderr);
    appliance.settled("1.0.0");
    comes_up(&appliance, web, &place);
    let history = appliance.history();
    assert_eq!(history[0]["component"], "tool", "{history:?}");
}

#[test]
fn a_first_start_that_fails_still_ends_the_appliance() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut appliance = Appliance::new(&with_tool("1.0.0", &dir.path().join("nowhere")));
    appliance.run_guard();
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(70));
    assert!(appliance.log().contains("cannot change to"), "{}", appliance.log());
    assert_eq!(appliance.processes(), [] as [i32; 0]);
}
