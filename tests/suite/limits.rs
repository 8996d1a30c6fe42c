//! Limits of a component: whatever `refit status` says that keeps one, does.

use std::fs;
use std::path::{Path, PathBuf};

use refit_fixtures::tools::cannot_try;
use serde_json::{Value, json};

use crate::appliance::{Appliance, text};
use crate::components::{in_state, odd, of, without_groups};
use crate::wait::{LIMIT, until};

const KEYS: &str = "ready = \"notify\"\nrestart = { policy = \"no\" }\n";

/// Returns the directory of a process's control group of version 2.
fn group_of(pid: i32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .map(|mount| Path::new(mount).join(&own))
        .find(|dir| dir.join("cgroup.procs").is_file())
}

/// Returns the hard limit of a process, as the kernel names and shows it.
fn rlimit(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process lives");
    let line = text.lines().find(|line| line.starts_with(name)).expect("the kernel knows the limit");
    line[name.len()..].split_whitespace().nth(1).expect("a hard limit").to_owned()
}

/// Asserts that each limit of the component is kept by what the status says.
fn assert_kept(found: &Value) {
    let pid = i32::try_from(found["pid"].as_i64().expect("a PID")).expect("a PID");
    let rows = [
        ("memory", 512 << 20, "memory.max", "536870912", Some("Max address space")),
        ("cpu", 50, "cpu.max", "50000 100000", None),
        ("files", 64, "", "", Some("Max open files")),
        ("processes", 40, "pids.max", "40", Some("Max processes")),
    ];
    for (name, value, file, in_group, of_process) in rows {
        let limit = &found["limits"][name];
        assert_eq!(limit["value"], value, "{name}: {found}");
        match (limit["by"].as_str(), of_process) {
            (Some("cgroup"), _) => {
                let group = group_of(pid).expect("it has a group");
                let written = fs::read_to_string(group.join(file)).expect("the group has the limit");
                assert_eq!(written.trim(), in_group, "{name}");
            }
            (Some("rlimit"), Some(kernel)) => assert_eq!(rlimit(pid, kernel), value.to_string(), "{name}"),
            (Some("none"), None) => assert_eq!(name, "cpu"),
            (Some("none"), Some(_)) => {
                assert_eq!(name, "processes");
                assert!(nix::unistd::geteuid().is_root(), "only those of root are not counted");
            }
            (by, _) => panic!("{name} is kept by {by:?}"),
        }
    }
}

#[test]
fn what_keeps_a_limit_is_said_and_true() {
    let keys = format!("{KEYS}limits = {{ memory = \"512MiB\", cpu = \"50%\", files = 64, processes = 40 }}");
    for local in [|text| text, without_groups as fn(String) -> String] {
        let appliance = Appliance::new(&odd(&["plain"], &keys)).local(local).start();
        let found = of(&appliance);
        assert_kept(&found);
        let shown = appliance.refit(&["status"]).ends_with(0).stdout;
        let by = text(&found["limits"]["memory"]["by"]);
        let line = shown.lines().find(|line| line.starts_with("limits of odd: ")).expect("a line about limits");
        assert!(line.contains(&format!("memory 512.00 MiB ({by})")), "{line}");
        if found["limits"]["cpu"]["by"] == "none" {
            assert!(line.contains("cpu 50% (not enforced)"), "{line}");
        }
        // The next runtime knows it as well.
        appliance.kill_runtime();
        assert_eq!(of(&appliance)["limits"], found["limits"]);
    }
}

#[test]
fn without_limits_there_is_nothing_to_say() {
    let appliance = Appliance::new(&odd(&["plain"], KEYS)).start();
    assert_eq!(of(&appliance)["limits"], json!({}));
    assert!(!appliance.refit(&["status"]).ends_with(0).stdout.contains("limits of"));
}

#[test]
fn one_that_takes_more_memory_than_it_may_fails() {
    let keys = format!("{KEYS}limits = {{ memory = \"128MiB\" }}");
    for local in [|text| text, without_groups as fn(String) -> String] {
        let appliance = Appliance::new(&odd(&["hog"], &keys)).local(local).start();
        let found = in_state(&appliance, "failed");
        assert!(!appliance.home().join("data/unlimited").exists(), "{found}");
        let reason = text(&found["reason"]);
        match found["limits"]["memory"]["by"].as_str() {
            Some("cgroup") => assert!(reason.contains("more memory than its limit allows"), "{reason}"),
            Some("rlimit") => assert!(reason.contains("ended with status 9"), "{reason}"),
            by => panic!("kept by {by:?}"),
        }
    }
}

#[test]
fn control_groups_go_with_what_they_were_for() {
    let mut appliance = Appliance::new(&odd(&["plain"], KEYS)).start();
    let pid = appliance.component_pid("odd");
    let Some(first) = group_of(pid).filter(|dir| dir.ends_with("odd-1")) else {
        // Nobody lets us have groups here: the component is in ours.
        assert_eq!(group_of(pid), group_of(appliance.runtime_pid()));
        return cannot_try("this machine lets nobody have control groups");
    };
    let home = first.parent().expect("below the home's").to_owned();
    appliance.refit(&["component", "restart", "odd"]).ends_with(0);
    assert!(!first.exists());
    assert_eq!(group_of(appliance.component_pid("odd")), Some(home.join("odd-2")));
    // A runtime and a guard that were killed remove nothing; the next ones do.
    fs::create_dir(home.join("odd-99")).expect("a group of nobody");
    appliance.kill_runtime();
    until(LIMIT, "what was left is removed", || (!home.join("odd-99").exists()).then_some(()));
    assert!(home.join("odd-2").is_dir(), "this one is still in use");
    appliance.stop();
    assert!(!home.exists());
}
