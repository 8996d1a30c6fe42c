//! What the ticket of a reload says: who was asked, how, and what each answered. It is `done` only if somebody was asked and all
//! said yes.

use std::fs;

use serde_json::{Value, json};

use crate::appliance::{Appliance, Ran, component, text};
use crate::http::Request;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

const HUP: &str = include_str!("reload/hup.py");

/// Adds a component that `reload/hup.py` is, in this mode.
fn told_by_signal(release: Release, name: &str, mode: &str) -> Release {
    let keys = format!(
        "command = [\"python3\", \"lib/hup.py\", \"{mode}\"]\nready = \"notify\"\nreload_signal = \"HUP\"\n\
         restart = {{ policy = \"on-failure\", backoff = \"10ms..20ms\", limit = \"5/1m\" }}"
    );
    release.component(name, &keys).file("lib/hup.py", HUP)
}

/// Returns the members `a` of `one` and `b` of `two`, which listen to reload, and `told`, which is told by a signal.
fn all() -> Release {
    let keys = "stop_timeout = \"1s\"\nrestart = { policy = \"always\", backoff = \"10ms..20ms\", limit = \"9/1m\" }";
    let release = Release::bare("1.0.0").member("one", &["a", "reload=10", "--limit"], keys);
    told_by_signal(release.member("two", &["b", "reload=20", "--limit"], keys), "told", "handles")
}

fn reload(appliance: &Appliance) -> (Ran, Value) {
    let ran = appliance.refit(&["bus", "request", "reload", "--json"]);
    let ticket = ran.objects()[0]["ticket"].clone();
    assert_eq!(ticket["exit"], ran.code, "{ticket}");
    (ran, ticket)
}

/// Returns what a ticket says of those who were asked: name, how, phase, answer. The runtime's own part is left out.
fn asked(ticket: &Value) -> Vec<String> {
    let all = ticket["asked"].as_array().unwrap_or_else(|| panic!("nobody: {ticket}")).iter();
    all.filter(|one| one["how"] != "runtime")
        .map(|one| ["name", "how", "phase", "answer"].map(|key| text(&one[key])).join(" "))
        .collect()
}

/// Has the member `name` do `deed` at the next reloads.
fn plan(appliance: &Appliance, name: &str, deed: &str) {
    fs::write(appliance.home().join(format!("data/reload-{name}")), deed).expect("written");
}

fn forget_plan(appliance: &Appliance, name: &str) {
    fs::remove_file(appliance.home().join(format!("data/reload-{name}"))).expect("removed");
}

fn wait_all_running(appliance: &Appliance) {
    until(LIMIT, "everybody is on the bus", || {
        let status = appliance.try_status()?;
        let is_there = |name: &str| {
            let found = component(&status, name);
            let listens = name == "told" || found["peers"].as_array().is_some_and(|peers| !peers.is_empty());
            found["state"] == "running" && listens
        };
        ["one", "two", "told"].iter().all(|name| is_there(name)).then_some(())
    });
}

#[test]
fn a_reload_that_asks_nobody_is_not_done() {
    let appliance = Appliance::new(&Release::bare("1.0.0").part("plain", &[], "")).start();
    let (ran, ticket) = reload(&appliance);
    assert_eq!((ran.code, &ticket["state"]), (70, &json!("failed")), "{ticket}");
    assert!(text(&ticket["reason"]).contains("nobody was asked"), "{ticket}");
    assert_eq!(asked(&ticket), ["plain none prepare skipped"]);
    let told = appliance.refit(&["bus", "request", "reload"]).complains_with(70);
    assert!(told.contains("reload failed: nobody was asked") && told.contains("reload_signal"), "{told}");

    let empty = Appliance::new(&Release::bare("1.0.0")).start();
    let told = empty.refit(&["bus", "request", "reload"]).complains_with(70);
    assert!(told.contains("nobody was asked: nobody listens to it; nothing has changed"), "{told}");
    assert_eq!(empty.status()["bus"]["state"], "Running");
}

#[test]
fn a_ticket_says_who_was_asked_how_and_what_each_answered() {
    let appliance = Appliance::new(&all()).start();
    let (ran, ticket) = reload(&appliance);
    assert_eq!((ran.code, &ticket["state"]), (0, &json!("done")), "{ticket}");
    let mut everybody = asked(&ticket);
    everybody.sort();
    assert_eq!(everybody, ["one/a bus commit ok", "told signal commit ok", "two/b bus commit ok"]);
    let shown = appliance.refit(&["bus", "request", "reload"]).ends_with(0).stdout;
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 4, "a line for each below their heads: {shown}");
    assert!(lines.iter().any(|line| line[..3] == ["told", "SIGHUP", "ok"]), "{shown}");
    assert!(lines.iter().any(|line| line[..3] == ["one/a", "bus", "ok"]), "{shown}");

    // One refuses: all or nothing, and nobody is sent a signal.
    plan(&appliance, "b", "prepare fail");
    let (ran, ticket) = reload(&appliance);
    assert_eq!((ran.code, &ticket["state"]), (70, &json!("failed")), "{ticket}");
    let mut everybody = asked(&ticket);
    everybody.sort();
    assert_eq!(everybody, ["one/a bus abort ok", "told signal abort ok", "two/b bus prepare refused"]);
    assert!(text(&ticket["reason"]).contains("refused by two/b: as it was told; nothing has changed"), "{ticket}");
    // Several refuse: each has its line, with its priority.
    plan(&appliance, "a", "prepare fail");
    let told = appliance.refit(&["bus", "request", "reload"]).ends_with(70).stderr;
    let refused: Vec<&str> = told.lines().filter(|line| line.contains("as it was told")).map(str::trim).collect();
    assert_eq!(refused, ["one/a: as it was told (priority 10)", "two/b: as it was told (priority 20)"], "{told}");
    eventually(LIMIT, "the log has a line for each", || {
        let log = appliance.log();
        refused.iter().all(|line| log.lines().any(|written| written.ends_with(line)))
    });
    forget_plan(&appliance, "a");
    plan(&appliance, "b", "prepare hang");
    let (_, ticket) = reload(&appliance);
    assert!(asked(&ticket).contains(&"two/b bus prepare timeout".to_owned()), "{ticket}");
    plan(&appliance, "b", "commit fail");
    let (ran, ticket) = reload(&appliance);
    assert_eq!((ran.code, &ticket["state"]), (70, &json!("failed")), "{ticket}");
    assert!(asked(&ticket).contains(&"two/b bus commit failed".to_owned()), "{ticket}");
    assert!(text(&ticket["reason"]).contains("in force except for two/b: as it was told"), "{ticket}");
    forget_plan(&appliance, "b");

    // Stopped: not asked, and the others are.
    appliance.refit(&["component", "stop", "told"]).ends_with(0);
    appliance.refit(&["component", "stop", "two"]).ends_with(0);
    let (ran, ticket) = reload(&appliance);
    assert_eq!((ran.code, &ticket["state"]), (0, &json!("done")), "{ticket}");
    let mut everybody = asked(&ticket);
    everybody.sort();
    assert_eq!(everybody, ["one/a bus commit ok", "told signal prepare skipped", "two none prepare skipped"]);
    let told = ticket["asked"].as_array().expect("a list").iter().find(|one| one["name"] == "told").expect("told");
    assert_eq!(told["reason"], "it is stopped");
}

#[test]
fn a_listener_that_dies_during_a_reload_is_gone_and_not_done() {
    let appliance = Appliance::new(&all()).start();
    for phase in ["prepare", "commit"] {
        wait_all_running(&appliance);
        plan(&appliance, "b", &format!("{phase} die"));
        let (ran, ticket) = reload(&appliance);
        forget_plan(&appliance, "b");
        assert_eq!((ran.code, &ticket["state"]), (70, &json!("failed")), "{ticket}");
        assert!(asked(&ticket).contains(&format!("two/b bus {phase} gone")), "{ticket}");
        assert!(text(&ticket["reason"]).contains("SIGKILL"), "{ticket}");
    }
    // One that dies of another's time, between its own yes and the commit.
    wait_all_running(&appliance);
    plan(&appliance, "b", "prepare parricide");
    let (ran, ticket) = reload(&appliance);
    forget_plan(&appliance, "b");
    assert_eq!((ran.code, &ticket["state"]), (70, &json!("failed")), "{ticket}");
    assert!(asked(&ticket).contains(&"one/a bus commit gone".to_owned()), "{ticket}");
    wait_all_running(&appliance);
    let (ran, ticket) = reload(&appliance);
    assert_eq!(ran.code, 0, "all are asked again: {ticket}");
}

#[test]
fn a_program_that_ignores_its_reload_signal_refuses_the_reload() {
    let release = told_by_signal(Release::bare("1.0.0").member("one", &["a", "reload=10"], ""), "told", "ignores");
    let appliance = Appliance::new(&release).start();
    let (ran, ticket) = reload(&appliance);
    assert_eq!((ran.code, &ticket["state"]), (70, &json!("failed")), "{ticket}");
    assert!(text(&ticket["reason"]).contains("ignores SIGHUP"), "{ticket}");
    let mut everybody = asked(&ticket);
    everybody.sort();
    assert_eq!(everybody, ["one/a bus abort ok", "told signal prepare refused"]);
}

#[test]
fn a_program_that_ends_of_its_reload_signal_has_failed_and_the_ticket_says_what_follows() {
    for (mode, how) in [("exits", "status 9"), ("default", "SIGHUP")] {
        let release = told_by_signal(Release::bare("1.0.0").member("one", &["a", "reload=10"], ""), "told", mode);
        let appliance = Appliance::new(&release).start();
        let pid = appliance.component_pid("told");
        let (ran, ticket) = reload(&appliance);
        assert_eq!((ran.code, &ticket["state"]), (70, &json!("failed")), "{ticket}");
        let mut everybody = asked(&ticket);
        everybody.sort();
        assert_eq!(everybody, ["one/a bus commit ok", "told signal commit gone"]);
        let reason = text(&ticket["reason"]);
        let expected = format!("the process {pid} got SIGHUP, its reload_signal, and ");
        assert!(reason.contains(&expected) && reason.contains(how), "{reason}");
        assert!(reason.contains("it is started again"), "{reason}");
        until(LIMIT, "it serves again", || {
            let found = component(&appliance.try_status()?, "told");
            (found["state"] == "running" && found["pid"] != pid).then_some(())
        });
    }
}

#[test]
fn the_answer_to_a_request_is_always_that_it_was_accepted() {
    let appliance = Appliance::new(&all()).start();
    for _ in 0..30 {
        let post =
            Request::new(&appliance.socket(), "POST", "/api/v1/bus/requests").json(&json!({ "request": "reload" }));
        let ticket = post.send().json()["ticket"].clone();
        assert_eq!((&ticket["state"], ticket.get("asked")), (&json!("accepted"), None), "{ticket}");
        let id = text(&ticket["id"]);
        let path = format!("/api/v1/bus/requests/{id}?wait_ms=20000");
        let done = Request::new(&appliance.socket(), "GET", &path).send().json()["ticket"].clone();
        assert_eq!((&done["state"], asked(&done).len()), (&json!("done"), 3), "{done}");
    }
}

#[test]
fn a_component_that_had_to_be_killed_is_started_again_by_a_restart() {
    let release = Release::bare("1.0.0").member("one", &["a", "--deaf"], "stop_timeout = \"300ms\"");
    let appliance = Appliance::new(&release).start();
    let first = appliance.component_pid("one");
    let ran = appliance.refit(&["component", "restart", "one"]).ends_with(0);
    assert!(ran.stdout.contains("one: running"), "{}", ran.stdout);
    assert!(ran.stderr.contains("was killed"), "{}", ran.stderr);
    assert_ne!(appliance.component_pid("one"), first);
}
