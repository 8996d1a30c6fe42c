//! `kill -9` of the runtime, of the guard, and of both: with an appliance at rest, and in the middle of a trial.

use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::appliance::{Appliance, text};
use crate::load::LoadOptions;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

fn shop() -> Appliance {
    Appliance::new(&Release::shop("1.0.0"))
}

/// Returns an appliance whose trials last until somebody ends them.
fn patient() -> Appliance {
    shop().local(|text| text.replace("probation = \"300ms\"", "probation = \"10m\""))
}

fn wait_trial(appliance: &Appliance) {
    eventually(LIMIT, "release 1.1.0 is on trial and runs", || {
        appliance.try_status().is_some_and(|status| {
            status["release"]["version"] == "1.1.0"
                && status["release"]["state"] == "trial"
                && status["update"]["phase"] == "probation"
        })
    });
}

/// Ends guard and runtime at once: the guard must not come to start another runtime.
fn kill_guard_and_runtime(appliance: &mut Appliance) {
    let runtime = appliance.runtime_pid();
    process::send(appliance.guard_pid(), Signal::SIGSTOP);
    process::send(runtime, Signal::SIGKILL);
    appliance.kill_guard();
    eventually(LIMIT, "the runtime is gone", || !process::is_alive(runtime));
}

/// Asserts that the appliance runs `version` and answers.
fn assert_serves(appliance: &Appliance, version: &str) {
    appliance.settled(version);
    let load = appliance.load(LoadOptions::default());
    load.wait_for_version(version, LIMIT).expect("the shop answers");
    load.finish().assert_clean();
}

fn newest(appliance: &Appliance) -> Value {
    appliance.history().first().expect("the history has an entry").clone()
}

#[test]
fn a_killed_runtime_is_replaced_and_no_client_of_the_shop_notices() {
    let appliance = shop().start();
    let load = appliance.load(LoadOptions::default());
    let (guard, shop) = (appliance.guard_pid(), appliance.component_pid("shop"));
    let stock = appliance.component_pid("stock");
    for number in 1..=2 {
        let generation = appliance.status()["runtime"]["generation"].as_u64().expect("a number");
        appliance.kill_runtime();
        let status = appliance.settled("1.0.0");
        assert_eq!(status["runtime"]["generation"], generation + 1, "kill {number}");
        assert_eq!(status["guard"]["pid"], guard);
        let pids = (appliance.component_pid("shop"), appliance.component_pid("stock"));
        assert_eq!(pids, (shop, stock), "kill {number}: both were adopted");
        load.wait_for_ok(100, LIMIT).expect("the shop goes on");
    }
    load.finish().assert_clean();
    assert_eq!(appliance.processes().len(), 4, "nothing was started twice");
}

#[test]
fn a_runtime_that_was_killed_can_still_be_updated_and_rolled_back() {
    let appliance = shop().start();
    let load = appliance.load(LoadOptions::default());
    appliance.kill_runtime();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.kill_runtime();
    appliance.refit(&["rollback"]).ends_with(0);
    load.wait_for_version("1.0.0", LIMIT).expect("the first release answers");
    load.finish().assert_clean();
}

/// Starts the next guard and asserts that it serves and that none of `old` is left.
fn assert_next_guard_starts_cleanly(appliance: &mut Appliance, old: &[i32]) {
    appliance.run_guard();
    appliance.wait_running();
    for pid in old {
        assert!(!process::is_alive(*pid), "process {pid} is left of the life before");
    }
    assert_serves(appliance, "1.0.0");
    assert_eq!(appliance.processes().len(), 4);
}

#[test]
fn after_the_guard_was_killed_the_next_one_starts_cleanly() {
    let mut appliance = shop().start();
    let old = [appliance.runtime_pid(), appliance.component_pid("shop"), appliance.component_pid("stock")];
    appliance.kill_guard();
    assert_next_guard_starts_cleanly(&mut appliance, &old);
}

#[test]
fn after_guard_and_runtime_were_killed_the_next_guard_ends_the_orphans_and_starts_cleanly() {
    let mut appliance = shop().start();
    let old = [appliance.component_pid("shop"), appliance.component_pid("stock")];
    kill_guard_and_runtime(&mut appliance);
    assert!(old.into_iter().all(process::is_alive), "the components are orphans now");
    assert_next_guard_starts_cleanly(&mut appliance, &old);
}

#[test]
fn a_runtime_killed_during_a_trial_means_rollback() {
    let appliance = patient().start();
    let load = appliance.load(LoadOptions::default());
    thread::scope(|scope| {
        let install = scope.spawn(|| appliance.install(&Release::shop("1.1.0"), &[]));
        wait_trial(&appliance);
        process::send(appliance.runtime_pid(), Signal::SIGKILL);
        let line = install.join().expect("no panic").complains_with(70);
        assert!(line.contains("signal 9"), "{line}");
    });
    appliance.settled("1.0.0");
    load.wait_for_version("1.0.0", LIMIT).expect("the previous release answers");
    load.finish().assert_clean();
    let entry = newest(&appliance);
    assert_eq!(entry["outcome"], "rolled-back", "{entry}");
    assert_eq!((&entry["from"], &entry["to"]), (&"1.0.0".into(), &"1.1.0".into()));
    assert!(text(&entry["reason"]).contains("the runtime was ended by signal 9"), "{entry}");
}

#[test]
fn guard_and_runtime_killed_during_a_trial_mean_the_previous_release_at_the_next_start() {
    let mut appliance = patient().start();
    let staged = appliance.install(&Release::shop("1.1.0"), &["--stage-only", "--json"]).ends_with(0).objects();
    let digest =
        staged.iter().find(|object| object["event"] == "package.received").expect("received")["data"]["digest"].clone();
    crate::http::Request::new(&appliance.socket(), "POST", "/api/v1/updates")
        .json(&serde_json::json!({ "digest": digest }))
        .send();
    wait_trial(&appliance);
    kill_guard_and_runtime(&mut appliance);
    appliance.run_guard();
    appliance.wait_running();
    assert_serves(&appliance, "1.0.0");
    let entry = newest(&appliance);
    assert_eq!((&entry["outcome"], &entry["to"]), (&"rolled-back".into(), &"1.1.0".into()), "{entry}");
    assert!(text(&entry["reason"]).contains("power cut or kill"), "{entry}");
    assert_eq!(appliance.processes().len(), 4);
}
