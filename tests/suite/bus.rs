//! Components on the bus as a user sees them: one alone, one that was killed, one that an update changes.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::appliance::{Appliance, component, text};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// An end within this time is no deadline of 30 s that has passed.
const FAST: Duration = Duration::from_secs(15);

/// Returns a release whose components start in the order database, cache and queue, web, report.
pub(crate) fn four(version: &str) -> Release {
    Release::bare(version)
        .part("web", &[], "needs = [\"cache\"]\nafter = [\"queue\"]")
        .part("queue", &[], "after = [\"database\"]")
        .part("cache", &[], "needs = [\"database\"]")
        .part("database", &[], "")
}

pub(crate) fn generation(appliance: &Appliance) -> u64 {
    appliance.status()["runtime"]["generation"].as_u64().expect("a number")
}

/// Waits until a component is in this state; returns what the status says of it.
fn wait_state(appliance: &Appliance, name: &str, state: &str) -> serde_json::Value {
    until(LIMIT, &format!("{name} is {state}"), || {
        let found = component(&appliance.try_status()?, name);
        (found["state"] == state).then_some(found)
    })
}

#[test]
fn one_component_is_stopped_started_and_restarted_alone() {
    let appliance = Appliance::new(&four("1.0.0")).start();
    let (web, cache) = (appliance.component_pid("web"), appliance.component_pid("cache"));
    appliance.refit(&["component", "stop", "web"]).ends_with(0);
    let stopped = component(&appliance.status(), "web");
    assert_eq!((&stopped["state"], stopped["pid"].is_null()), (&"stopped".into(), true), "{stopped}");
    assert!(!process::is_alive(web));
    appliance.refit(&["component", "start", "web"]).ends_with(0);
    let second = appliance.component_pid("web");
    assert_ne!(second, web);
    appliance.refit(&["component", "restart", "web"]).ends_with(0);
    assert_ne!(appliance.component_pid("web"), second);
    assert_eq!(appliance.component_pid("cache"), cache, "nobody else was touched");
    let logs = appliance.refit(&["component", "logs", "web", "--json"]).ends_with(0).objects();
    assert_eq!(logs.iter().filter(|line| line["line"] == "web is up").count(), 3, "{logs:?}");
    let list = appliance.refit(&["component", "list", "--json"]).ends_with(0).objects();
    assert_eq!(list[0]["components"].as_array().expect("a list").len(), 4);
}

#[test]
fn a_component_that_was_killed_comes_back() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let shop = appliance.component_pid("shop");
    let inodes = process::listening_inodes(appliance.address("http").port());
    process::send(shop, Signal::SIGKILL);
    let back = until(LIMIT, "the shop is back", || {
        let found = component(&appliance.try_status()?, "shop");
        (found["state"] == "running" && found["pid"] != shop).then_some(found)
    });
    assert_eq!((&back["restarts"], &back["generation"]), (&1.into(), &2.into()), "{back}");
    assert_eq!(process::listening_inodes(appliance.address("http").port()), inodes);
    let load = appliance.load(crate::load::LoadOptions::default());
    load.finish().assert_clean();
}

#[test]
fn a_component_that_keeps_dying_is_given_up() {
    let keys = "restart = { policy = \"on-failure\", backoff = \"10ms..20ms\", limit = \"2/1m\" }";
    let appliance = Appliance::new(&Release::bare("1.0.0").part("frail", &["--dies"], keys));
    let mut appliance = appliance;
    appliance.run_guard();
    appliance.wait_running();
    let failed = wait_state(&appliance, "frail", "failed");
    assert_eq!(failed["restarts"], 2, "{failed}");
    let reason = text(&failed["reason"]);
    assert!(reason.contains("status 3") && reason.contains("not started again"), "{reason}");
    assert_eq!(appliance.status()["bus"]["state"], "Running", "one component is not the site");
    assert_eq!(appliance.order(), ["start frail"; 3]);
}

#[test]
fn components_begin_with_no_signal_blocked_before_and_after_an_exec() {
    let sleeper = |version: &str| {
        Release::bare(version)
            .component("plain", "command = [\"sleep\", \"600\"]\nready = \"started\"\nstop_timeout = \"30s\"")
            .file("lib/version.txt", version)
    };
    let mut appliance = Appliance::new(&sleeper("1.0.0")).start();
    let first = appliance.component_pid("plain");
    assert_eq!(process::blocked_signals(first), 0);
    appliance.install(&sleeper("1.1.0"), &[]).ends_with(0);
    let second = appliance.component_pid("plain");
    assert_ne!(first, second);
    assert_eq!(process::blocked_signals(second), 0);
    process::send(appliance.guard_pid(), Signal::SIGTERM);
    assert_eq!(appliance.wait_guard(FAST).code(), Some(0), "SIGTERM ends a program that knows nothing of it");
}

#[test]
fn an_update_touches_only_the_components_that_it_changes() {
    let two = |version: &str, word: &str| {
        Release::bare(version)
            .part("same", &[], "files = [\"lib/part.py\"]")
            .part("other", &[], "files = [\"lib/part.py\", \"lib/word.txt\"]")
            .file("lib/word.txt", word)
    };
    let appliance = Appliance::new(&two("1.0.0", "one")).start();
    let before = (appliance.component_pid("same"), appliance.component_pid("other"));
    appliance.install(&two("1.1.0", "two"), &[]).ends_with(0);
    let status = appliance.settled("1.1.0");
    assert_eq!(appliance.component_pid("same"), before.0, "{status}");
    assert_ne!(appliance.component_pid("other"), before.1, "{status}");
    let releases = ["same", "other"].map(|name| text(&component(&status, name)["release"]));
    assert_eq!(releases, ["1.0.0", "1.1.0"]);
    let mut order = appliance.order();
    assert_eq!(order.split_off(2), ["stop other", "start other"], "what the update did");
}

#[test]
fn an_update_starts_what_is_new_and_ends_what_is_no_more() {
    let appliance = Appliance::new(&Release::bare("1.0.0").part("old", &[], "")).start();
    appliance.install(&Release::bare("1.1.0").part("new", &[], ""), &[]).ends_with(0);
    let status = appliance.settled("1.1.0");
    assert_eq!(status["components"].as_array().expect("a list").len(), 1);
    assert_eq!(component(&status, "new")["state"], "running");
    eventually(LIMIT, "the old one has ended", || appliance.order().contains(&"stop old".to_owned()));
    assert_eq!(appliance.processes().len(), 3);
}

#[test]
fn requests_at_the_same_time_all_get_an_outcome() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let first = generation(&appliance);
    let asked = ["restart", "reload", "restart", "reload", "start"];
    thread::scope(|scope| {
        let appliance = &appliance;
        let asking = asked.map(|name| scope.spawn(move || (name, appliance.refit(&["bus", "request", name]))));
        for one in asking {
            let (name, ran) = one.join().expect("no panic");
            assert!([0, 70].contains(&ran.code), "{name}: {} {}", ran.code, ran.stderr);
        }
    });
    let status = appliance.settled("1.0.0");
    assert!(status["runtime"]["generation"].as_u64().is_some_and(|now| now > first));
}

#[test]
fn a_restart_is_done_when_the_next_runtime_runs() {
    let appliance = Appliance::new(&four("1.0.0")).start();
    for _ in 0..5 {
        let before = generation(&appliance);
        appliance.refit(&["bus", "request", "restart"]).ends_with(0);
        let status = appliance.status();
        assert_eq!(
            (&status["bus"]["state"], &status["runtime"]["generation"]),
            (&"Running".into(), &(before + 1).into()),
            "{status}"
        );
    }
}
