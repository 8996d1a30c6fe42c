//! Many components in one chain, and a runtime that is killed while they start or stop.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::adoption::{ask, is_done, kill_runtime};
use crate::appliance::Appliance;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// So many: a document of all is written several times while they start.
const COUNT: usize = 20;

/// A chain in which each component needs the one before it.
fn chain() -> Release {
    (0..COUNT).fold(Release::bare("1.0.0"), |release, index| {
        let needs = index.checked_sub(1).map(|before| format!("needs = [\"m{before}\"]")).unwrap_or_default();
        release
            .component(&format!("m{index}"), &format!("command = [\"sleep\", \"1000\"]\nready = \"started\"\n{needs}"))
    })
}

/// Returns the components' processes, as the runtime knows them.
fn known(status: &Value) -> BTreeSet<i32> {
    let components = status["components"].as_array().expect("a list");
    components.iter().filter_map(|component| i32::try_from(component["pid"].as_i64()?).ok()).collect()
}

/// Returns the components' processes that there are.
fn sleepers(appliance: &Appliance) -> BTreeSet<i32> {
    let sleeps =
        |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(b"sleep\0"));
    appliance.processes().into_iter().filter(sleeps).collect()
}

/// Waits until each component has one process, and nothing else of them is there.
fn each_runs_once(appliance: &Appliance) {
    eventually(LIMIT, "each component has its process, and no other is left", || {
        let status = appliance.status();
        let known = known(&status);
        status["bus"]["state"] == "Running" && known.len() == COUNT && known == sleepers(appliance)
    });
}

#[test]
fn a_runtime_that_is_killed_while_many_start_leaves_each_of_them_once() {
    let appliance = Appliance::new(&chain()).start();
    for at in [1, COUNT - 6] {
        appliance.refit(&["bus", "request", "stop"]).ends_with(0);
        assert_eq!(sleepers(&appliance), BTreeSet::new());
        let asked = ask(&appliance, &["bus", "request", "start"]);
        eventually(LIMIT, "some run", || sleepers(&appliance).len() >= at);
        kill_runtime(&appliance);
        each_runs_once(&appliance);
        is_done(asked);
    }
}

#[test]
fn a_runtime_that_is_killed_while_many_stop_leaves_none() {
    let appliance = Appliance::new(&chain()).start();
    for left in [COUNT - 1, 5] {
        let asked = ask(&appliance, &["bus", "request", "stop"]);
        eventually(LIMIT, "some have ended", || sleepers(&appliance).len() <= left);
        kill_runtime(&appliance);
        is_done(asked);
        eventually(LIMIT, "nothing is left", || sleepers(&appliance).is_empty());
        eventually(LIMIT, "the site rests", || appliance.status()["bus"]["state"] == "Idle");
        assert_eq!(known(&appliance.status()), BTreeSet::new());
        appliance.refit(&["bus", "request", "start"]).ends_with(0);
        each_runs_once(&appliance);
    }
}

#[test]
fn what_runs_is_kept_over_a_kill_that_follows_a_start_at_once() {
    let appliance = Appliance::new(&chain()).start();
    for name in ["m19", "m0"] {
        appliance.refit(&["component", "restart", name]).ends_with(0);
        let before = sleepers(&appliance);
        // Nothing of it is older than what a document may be.
        process::send(appliance.runtime_pid(), Signal::SIGKILL);
        each_runs_once(&appliance);
        assert_eq!(sleepers(&appliance), before, "after {name}");
    }
}
