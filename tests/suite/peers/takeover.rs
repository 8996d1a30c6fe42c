//! Two generations of a component on the bus, while an update overlaps: one name, and who is called under it.

use std::fs;
use std::thread;

use serde_json::{Value, json};

use crate::appliance::{Appliance, component, text};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// Python as root would write beside the signed files, and a rollback finds them damaged.
const KEYS: &str = "handover = \"overlap\"\nstop_timeout = \"60s\"\nenv = { PYTHONDONTWRITEBYTECODE = \"1\" }";

/// Returns a release whose one component overlaps; an old process of it stays until it is killed.
fn overlapping(version: &str, words: &[&str]) -> Release {
    let words: Vec<&str> = ["a", "work=20", "reload=50", "--deaf"].iter().chain(words).copied().collect();
    Release::bare(version).channels(&["work"]).member("one", &words, KEYS).file("lib/version.txt", version)
}

/// Which processes are connected as `one/a`, by generation, and whether each is called.
fn names(appliance: &Appliance) -> Vec<(u64, bool)> {
    let Some(status) = appliance.try_status() else { return Vec::new() };
    let peers = component(&status, "one")["peers"].as_array().cloned().unwrap_or_default();
    assert!(peers.iter().all(|peer| peer["name"] == "one/a"), "{peers:?}");
    peers.iter().map(|peer| (peer["generation"].as_u64().expect("a number"), peer["called"] == true)).collect()
}

fn wait_names(appliance: &Appliance, expected: &[(u64, bool)]) {
    eventually(LIMIT, &format!("on the bus are {expected:?}"), || names(appliance) == expected);
}

/// Returns the process that answers under the name.
fn who(appliance: &Appliance) -> i64 {
    let answers = appliance.publish("work", &json!({ "do": "pid" }));
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers[0]["value"].as_i64().unwrap_or_else(|| panic!("{answers:?}"))
}

/// Reloads. Returns the ticket, and the processes that have committed it.
fn reload(appliance: &Appliance) -> (Value, Vec<i64>) {
    let journal = appliance.home().join("data/order");
    let before = fs::read_to_string(&journal).unwrap_or_default().len();
    let ran = appliance.refit(&["bus", "request", "reload", "--json"]);
    let ticket = ran.objects()[0]["ticket"].clone();
    let after = fs::read_to_string(&journal).expect("read")[before..].to_owned();
    let pids = after.lines().filter_map(|line| line.strip_prefix("reload-commit a ")?.parse().ok()).collect();
    (ticket, pids)
}

/// Reloads, and asserts that the process `pid`, and no other, took part and said yes.
fn assert_reloads(appliance: &Appliance, pid: i64) {
    let (ticket, pids) = reload(appliance);
    assert_eq!((&ticket["state"], pids), (&json!("done"), vec![pid]), "{ticket}");
    let asked: Vec<&Value> =
        ticket["asked"].as_array().expect("a list").iter().filter(|one| one["how"] != "runtime").collect();
    assert_eq!((asked.len(), &asked[0]["name"], &asked[0]["answer"]), (1, &json!("one/a"), &json!("ok")), "{ticket}");
}

#[test]
fn a_newcomer_takes_the_name_over_when_it_is_ready_and_a_rollback_takes_it_back() {
    let appliance = Appliance::new(&overlapping("1.0.0", &[])).start();
    wait_names(&appliance, &[(1, true)]);
    let first = i64::from(appliance.component_pid("one"));
    assert_reloads(&appliance, first);
    thread::scope(|scope| {
        let install = scope.spawn(|| appliance.install(&overlapping("1.1.0", &["--hold"]), &[]));
        wait_names(&appliance, &[(1, true), (2, false)]);
        assert_eq!(who(&appliance), first, "the newcomer is not ready");
        fs::write(appliance.home().join("data/go"), "").expect("written");
        install.join().expect("no panic").ends_with(0);
    });
    wait_names(&appliance, &[(1, false), (2, true)]);
    let second = i64::from(appliance.component_pid("one"));
    assert_eq!(who(&appliance), second);
    assert!(process::is_alive(i32::try_from(first).expect("a PID")), "the old process drains, and is still on the bus");
    assert_reloads(&appliance, second);

    // The next runtime finds both, in any order.
    appliance.kill_runtime();
    wait_names(&appliance, &[(1, false), (2, true)]);
    assert_reloads(&appliance, second);

    appliance.refit(&["rollback"]).ends_with(0);
    wait_names(&appliance, &[(1, false), (2, false), (3, true)]);
    let third = i64::from(appliance.component_pid("one"));
    assert!(third != second && third != first);
    assert_eq!(who(&appliance), third);
    assert_reloads(&appliance, third);
}

#[test]
fn the_old_process_goes_on_when_the_newcomer_ends_before_it_is_ready() {
    let appliance = Appliance::new(&overlapping("1.0.0", &[])).start();
    let first = i64::from(appliance.component_pid("one"));
    let failed = thread::scope(|scope| {
        let install = scope.spawn(|| appliance.install(&overlapping("1.1.0", &["--hold"]), &[]));
        wait_names(&appliance, &[(1, true), (2, false)]);
        fs::write(appliance.home().join("data/die"), "").expect("written");
        install.join().expect("no panic").ends_with(70)
    });
    assert!(failed.stderr.contains("before it was ready"), "{}", failed.stderr);
    appliance.settled("1.0.0");
    wait_names(&appliance, &[(1, true)]);
    assert_eq!((who(&appliance), i64::from(appliance.component_pid("one"))), (first, first));
    assert_reloads(&appliance, first);
}

#[test]
fn two_processes_of_one_generation_never_have_one_name_and_the_second_tries_again() {
    let appliance = Appliance::new(&overlapping("1.0.0", &[])).start();
    wait_names(&appliance, &[(1, true)]);
    let taken = appliance.publish("work", &json!({ "do": "twin" })).remove(0);
    assert_eq!(taken["value"]["code"], "name", "{taken}");
    assert!(text(&taken["value"]["refused"]).contains("one/a is taken"), "{taken}");
    let said = until(LIMIT, "it was said", || {
        let logs = appliance.refit(&["component", "logs", "one"]).ends_with(0).stdout;
        logs.contains("trying again").then_some(logs)
    });
    assert_eq!(said.matches("trying again").count(), 1, "said once: {said}");
    wait_names(&appliance, &[(1, true)]);
}
