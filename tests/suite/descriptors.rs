//! No descriptor stays by accident: after fifty updates all processes hold what they held after the first.

use std::collections::BTreeMap;

use crate::appliance::Appliance;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// How many updates and rollbacks.
const SWITCHES: usize = 50;

/// So many looks in a row that show the same, and no connection, are no moment in between.
const LOOKS: u32 = 20;

type Kinds = BTreeMap<String, usize>;

/// Returns what the process holds while it rests.
fn at_rest(pid: i32) -> Kinds {
    let mut last = (Kinds::new(), 0);
    until(LIMIT, "the descriptors stay the same", || {
        // Where everything waits for a processor, a request or a probe lasts for many looks.
        let rests = process::connections(pid).is_empty();
        let now = process::descriptors(pid);
        last = if rests && now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (last.1 >= LOOKS).then(|| last.0.clone())
    })
}

/// Waits until only the four processes are there that belong to the appliance at rest.
fn settle(appliance: &Appliance, version: &str) {
    appliance.settled(version);
    eventually(LIMIT, "old processes are gone", || appliance.processes().len() == 4);
}

/// Where the runtime writes what components print: a file for each.
const LOG: &str = "~/home/log/";

/// Asserts that every descriptor of a process is of a kind that it should have.
fn assert_kinds(appliance: &Appliance, who: &str, pid: i32, expected: &[&str]) {
    let home = appliance.scratch().to_str().expect("text");
    for kind in process::descriptors(pid).keys() {
        let kind = kind.replace(home, "~");
        let kind = if kind.starts_with(LOG) { LOG.to_owned() } else { kind };
        assert!(expected.contains(&kind.as_str()), "{who} holds {kind}: {:?}", process::descriptors(pid));
    }
}

#[test]
fn fifty_updates_leave_no_descriptor_behind() {
    let appliance = Appliance::new(&Release::voyage("1.0.0"))
        .local(|text| text.replace("probation = \"300ms\"", "probation = \"10ms\""))
        .start();
    appliance.install(&Release::voyage("1.1.0"), &[]).ends_with(0);
    settle(&appliance, "1.1.0");
    let (guard, runtime) = (appliance.guard_pid(), appliance.runtime_pid());
    let before = (at_rest(guard), at_rest(runtime), at_rest(appliance.component_pid("shop")));

    for number in 1..=SWITCHES {
        appliance.refit(&["rollback"]).ends_with(0);
        appliance.settled(if number.is_multiple_of(2) { "1.1.0" } else { "1.0.0" });
    }
    settle(&appliance, "1.1.0");
    assert_eq!(appliance.runtime_pid(), runtime);
    let after = (at_rest(guard), at_rest(runtime), at_rest(appliance.component_pid("shop")));
    assert_eq!(before, after, "guard, runtime, shop");

    let anonymous = ["anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[signalfd]", "anon_inode:[pidfd]"];
    let common = ["/dev/null", "socket", "pipe", "pidfd", "memfd", "~/home/run/lock", LOG];
    let mut expected = [anonymous.as_slice(), common.as_slice()].concat();
    let watching = [expected.as_slice(), &["anon_inode:inotify"]].concat(); // the names of its sockets
    assert_kinds(&appliance, "the runtime", runtime, &watching);
    expected.retain(|kind| *kind != LOG);
    expected.extend(["~/guard-1.log", "~/home", "~/home/run/turn"]); // the home is locked, and so is the turn to start a runtime
    assert_kinds(&appliance, "the guard", guard, &expected);
    for name in ["shop", "stock"] {
        let pid = appliance.component_pid(name);
        assert_kinds(&appliance, name, pid, &["/dev/null", "socket", "pipe", "anon_inode:[signalfd]"]);
    }
}
