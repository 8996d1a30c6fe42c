//! An update in which several components overlap: the old processes serve until all of the new release is ready.

use std::path::PathBuf;

use serde_json::Value;

use crate::appliance::{Appliance, component, text};
use crate::commit::Install;
use crate::process;
use crate::readiness::SERVE;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// What takes too long does so soon.
const SOON: &str = "start_timeout = \"3s\"";

/// Returns a component of `release` that serves on a listener of its own name.
fn serves(release: Release, name: &str, begins: &str, keys: &str) -> Release {
    let version = release.version().to_owned();
    let words = format!("command = [\"python3\", \"lib/serve.py\", \"{version}\", \"{begins}\"]");
    let keys = format!("{words}\nlisteners = [\"{name}\"]\nready = \"listen\"\n{keys}");
    release.listener(name).component(name, &keys)
}

fn overlaps(release: Release, name: &str, begins: &str, keys: &str) -> Release {
    serves(release, name, begins, &format!("handover = \"overlap\"\n{keys}"))
}

fn release(version: &str) -> Release {
    Release::bare(version).file("lib/serve.py", SERVE)
}

/// Returns two overlapping components, of which the second one starts after the first.
fn pair(version: &str, second: &str, keys: &str) -> Release {
    let both = overlaps(release(version), "a", "at_once", "");
    overlaps(both, "b", second, &format!("after = [\"a\"]\n{keys}"))
}

fn note(appliance: &Appliance, what: &str) -> PathBuf {
    appliance.home().join("data").join(what)
}

fn noted(appliance: &Appliance, what: &str) -> f64 {
    std::fs::read_to_string(note(appliance, what)).expect("noted").parse().expect("a time")
}

fn state(appliance: &Appliance, name: &str) -> Value {
    component(&appliance.status(), name)
}

/// Asserts that the processes `old` serve, which were never told to stop, and that nothing of 1.1.0 is left.
fn assert_untouched(appliance: &Appliance, old: &[(&str, i32)]) {
    for (name, pid) in old {
        assert_eq!(appliance.component_pid(name), *pid, "{name} serves on");
        assert!(!note(appliance, &format!("told-{name}-1.0.0")).exists(), "{name} was told to stop");
        assert_eq!(text(&state(appliance, name)["state"]), "running");
    }
    let is_new = |pid: &i32| process::arguments(*pid).is_some_and(|words| words.contains(&"1.1.0".to_owned()));
    eventually(LIMIT, "the new processes are gone", || !process::of_home(appliance.home()).iter().any(is_new));
}

fn pids<'a>(appliance: &Appliance, names: &[&'a str]) -> Vec<(&'a str, i32)> {
    names.iter().map(|name| (*name, appliance.component_pid(name))).collect()
}

#[test]
fn old_processes_are_told_to_stop_when_all_of_the_new_release_is_ready() {
    let appliance = Appliance::new(&pair("1.0.0", "at_once", "")).start();
    let old = pids(&appliance, &["a", "b"]);
    appliance.install(&pair("1.1.0", "late", ""), &[]).ends_with(0);
    for (name, pid) in old {
        eventually(LIMIT, "the old one has ended", || !process::is_alive(pid));
        assert_eq!(text(&state(&appliance, name)["release"]), "1.1.0");
    }
    let accepts = noted(&appliance, "accepting-b-1.1.0");
    let told = noted(&appliance, "told-a-1.0.0");
    assert!(told > accepts, "the old a was told to stop {:.3} s before the new b accepted", accepts - told);
    // From then on a component is replaced by itself.
    let old = appliance.component_pid("a");
    appliance.refit(&["component", "restart", "a"]).ends_with(0);
    eventually(LIMIT, "the old one has ended", || !process::is_alive(old));
}

#[test]
fn a_component_that_is_not_ready_costs_no_other_one_its_process() {
    let appliance = Appliance::new(&pair("1.0.0", "at_once", "")).start();
    let old = pids(&appliance, &["a", "b"]);
    let failed = appliance.install(&pair("1.1.0", "never", SOON), &[]).complains_with(70);
    assert!(failed.contains("component b did not start"), "{failed}");
    assert_untouched(&appliance, &old);
    appliance.install(&pair("1.2.0", "at_once", ""), &[]).ends_with(0);
}

#[test]
fn nor_does_one_that_does_not_overlap() {
    let all = |version: &str, last: &str| {
        let first = overlaps(release(version), "a", "at_once", "");
        serves(first, "c", last, &format!("after = [\"a\"]\nhandover = \"restart\"\n{SOON}"))
    };
    let appliance = Appliance::new(&all("1.0.0", "at_once")).start();
    let old = pids(&appliance, &["a"]);
    let failed = appliance.install(&all("1.1.0", "exits"), &[]).complains_with(70);
    assert!(failed.contains("component c did not start"), "{failed}");
    assert_untouched(&appliance, &old);
    assert_eq!(text(&state(&appliance, "c")["release"]), "1.0.0");
}

#[test]
fn a_crash_of_the_runtime_in_the_middle_leaves_the_old_ones_serving() {
    let appliance = Appliance::new(&pair("1.0.0", "at_once", "")).start();
    let old = pids(&appliance, &["a", "b"]);
    let installing = Install::begin(&appliance, &pair("1.1.0", "never", ""), &[]);
    eventually(LIMIT, "the new a is ready", || {
        note(&appliance, "accepting-a-1.1.0").exists()
            && appliance.try_status().is_some_and(|status| {
                let shown = component(&status, "b");
                text(&component(&status, "a")["state"]) == "running" && text(&shown["state"]) == "starting"
            })
    });
    appliance.kill_runtime();
    drop(installing);
    appliance.settled("1.0.0");
    assert_untouched(&appliance, &old);
}

#[test]
fn a_new_process_that_ends_while_others_still_start_leaves_the_old_ones_serving() {
    let all = |version: &str, first: &str, second: &str| {
        let both = overlaps(release(version), "a", first, "");
        overlaps(both, "b", second, "after = [\"a\"]")
    };
    let appliance = Appliance::new(&all("1.0.0", "at_once", "at_once")).start();
    let old = pids(&appliance, &["a", "b"]);
    appliance.install(&all("1.1.0", "dies", "late"), &[]).complains_with(70);
    assert_untouched(&appliance, &old);
}
