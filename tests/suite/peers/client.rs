//! The client in plain Python, used from several threads.

use std::fs;

use serde_json::json;

use super::release;
use crate::appliance::{Appliance, text};
use crate::wait::{LIMIT, eventually};

/// Returns an appliance with one member `a`, which listens on `work`, `echo` and `reload` and may ask for a reload.
fn one() -> Appliance {
    let words = ["a", "work=20", "echo=50", "reload=50"];
    Appliance::new(&release().member("one", &words, "allow = [\"reload\", \"restart\"]")).start()
}

#[test]
fn a_thread_that_waits_for_a_reload_does_not_keep_its_process_from_answering_it() {
    let appliance = one();
    for _ in 0..5 {
        let ticket = appliance.told(&json!({ "do": "outcome", "request": "reload" }));
        assert_eq!(ticket["state"], "done", "{ticket}");
        let asked = ticket["asked"].as_array().expect("a list");
        assert!(asked.iter().any(|one| one["name"] == "one/a" && one["answer"] == "ok"), "{ticket}");
    }
    let commits = appliance.order().iter().filter(|line| *line == "reload-commit a").count();
    assert_eq!(commits, 5);
    // Inside the call of the very reload a wait would wait for itself.
    fs::write(appliance.home().join("data/reload-a"), "prepare inside").expect("written");
    let refused = appliance.refit(&["bus", "request", "reload"]).complains_with(70);
    assert!(refused.contains("one/a") && refused.contains("cannot wait"), "{refused}");
}

#[test]
fn many_threads_publish_at_once_and_each_gets_its_own_answer() {
    let appliance = one();
    let wrong = appliance.told(&json!({ "do": "hammer", "threads": 12, "rounds": 40 }));
    assert_eq!(wrong, json!([]), "an answer went astray");
    assert_eq!(appliance.publish("work", &json!({ "do": "pid" })).len(), 1, "it is on the bus as before");
}

#[test]
fn a_thread_that_waits_for_a_restart_hears_of_it_from_the_next_runtime() {
    let appliance = one();
    let generation = appliance.status()["runtime"]["generation"].as_u64().expect("a number");
    fs::write(appliance.home().join("data/restart-a"), "").expect("written");
    eventually(LIMIT, "the member has asked and heard", || {
        appliance.order().iter().any(|line| line == "restarted-done a")
    });
    assert!(appliance.status()["runtime"]["generation"].as_u64() > Some(generation));
}

#[test]
fn a_child_of_a_fork_has_no_connection_until_it_makes_its_own() {
    let appliance = one();
    let said = appliance.told(&json!({ "do": "fork" }));
    assert!(text(&said[0]).contains("after a fork"), "{said}");
    assert_eq!((&said[1], &said[2]), (&json!("one/child"), &json!("Running")));
    assert_eq!(appliance.publish("work", &json!({ "do": "pid" })).len(), 1, "the parent's connection is whole");
}

#[test]
fn a_peer_is_closed_from_another_thread() {
    let release = release().member("one", &["a", "work=20", "--linger"], "restart = { policy = \"no\" }");
    let appliance = Appliance::new(&release).start();
    // Whether its answer comes before its end is its own affair.
    appliance.publish("work", &json!({ "do": "close" }));
    appliance.wait_peers("one", &[]);
    eventually(LIMIT, "serve() has returned", || appliance.order().contains(&"closed a".to_owned()));
}
