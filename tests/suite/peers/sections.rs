//! Sections A to F of the cases once more, with listeners in other processes: over the socket, in one order with everybody else.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::raw::Raw;
use super::two;
use crate::appliance::Appliance;
use crate::wait::{LIMIT, eventually};

/// What a probe does when it is called.
#[derive(Clone)]
enum Deed {
    Answer(Value),
    Fail(&'static str),
    Hang,
}

/// What was called, in order: name, channel and phase, state.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<(String, Value)>>>);

impl Journal {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(line, _)| line.clone()).collect()
    }

    fn arguments(&self) -> Vec<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, value)| value.clone()).collect()
    }
}

/// Attaches a probe that lives until the appliance ends, or closes it.
fn probe(bus: &Path, journal: &Journal, name: &str, channels: Value, deed: Deed) -> JoinHandle<()> {
    let mut raw = Raw::hello(bus, json!({ "name": name, "channels": channels }));
    let (journal, name) = (journal.clone(), name.to_owned());
    std::thread::spawn(move || {
        while let Some(message) = raw.next() {
            if message["method"] != "call" {
                continue;
            }
            let params = &message["params"];
            let what = params["phase"].as_str().or_else(|| params["channel"].as_str()).unwrap_or_default();
            let line = format!("{what} {name}");
            let mut lines = journal.0.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push((line, params["argument"].clone()));
            drop(lines);
            match &deed {
                Deed::Answer(value) => raw.answer(&message, value.clone()),
                Deed::Fail(why) if params["phase"] == "abort" => raw.answer(&message, json!(why)),
                Deed::Fail(why) => {
                    raw.say(&json!({ "jsonrpc": "2.0", "id": message["id"], "error": { "code": 1, "message": why } }));
                }
                Deed::Hang => {}
            }
        }
    })
}

/// Who listens and answers, however busy the machine is.
fn listens(channel: &str, priority: i32) -> Value {
    json!([{ "channel": channel, "priority": priority, "limit_ms": 20_000 }])
}

/// Who listens and never answers.
fn hangs(channel: &str, priority: i32) -> Value {
    json!([{ "channel": channel, "priority": priority, "limit_ms": 300 }])
}

fn outcomes(answers: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().trim_start_matches('@').to_owned();
    answers.iter().map(|answer| (text(&answer["listener"]), text(&answer["outcome"]))).collect()
}

fn state(appliance: &Appliance) -> Value {
    appliance.status()["bus"]["state"].clone()
}

#[test]
fn b001_external_priority_decides_and_the_argument_arrives_unchanged() {
    let appliance = two();
    let journal = Journal::default();
    for priority in [100, 51, 0, 49] {
        let deed = Deed::Answer(json!(priority));
        probe(&appliance.bus(), &journal, &priority.to_string(), listens("echo", priority), deed);
    }
    let argument = json!({ "deep": [1, { "text": "\u{e4}" }], "to": "nobody" });
    let answers = appliance.publish("echo", &argument);
    assert_eq!(journal.lines(), ["echo 0", "echo 49", "echo 51", "echo 100"]);
    assert!(journal.arguments().iter().all(|seen| *seen == argument), "{:?}", journal.arguments());
    let values: Vec<&Value> =
        answers.iter().filter(|answer| answer["value"].is_i64()).map(|one| &one["value"]).collect();
    assert_eq!(values, [&json!(0), &json!(49), &json!(51), &json!(100)], "b005: in the order of the calls");
}

#[test]
fn b003_external_all_are_called_although_one_fails_and_good_results_survive() {
    let appliance = two();
    let journal = Journal::default();
    let bus = appliance.bus();
    probe(&bus, &journal, "first", listens("echo", 10), Deed::Answer(json!(1)));
    probe(&bus, &journal, "bad", listens("echo", 20), Deed::Fail("no such thing"));
    probe(&bus, &journal, "silent", hangs("echo", 25), Deed::Hang);
    probe(&bus, &journal, "last", listens("echo", 30), Deed::Answer(json!(3)));
    let answers = appliance.publish("echo", &json!({ "to": "nobody" }));
    let expected = [("first", "ok"), ("bad", "failed"), ("silent", "timeout"), ("last", "ok"), ("one/a", "ok")];
    let expected: Vec<_> = expected.iter().map(|(name, what)| ((*name).to_owned(), (*what).to_owned())).collect();
    assert_eq!(outcomes(&answers), expected, "b006: a line for each");
    assert_eq!((&answers[0]["value"], &answers[3]["value"]), (&json!(1), &json!(3)));
    assert!(answers[1]["reason"].as_str().is_some_and(|why| why.contains("no such thing")), "{}", answers[1]);
}

#[test]
fn b009_external_who_subscribes_twice_is_called_once_at_its_new_place() {
    let appliance = two();
    let mut raw = Raw::hello(&appliance.bus(), json!({ "name": "twice" }));
    for priority in [10, 90] {
        raw.ask("subscribe", json!({ "channel": "echo", "priority": priority, "limit_ms": 300 })).expect("subscribed");
    }
    let order = || outcomes(&appliance.publish("echo", &json!({ "to": "nobody" })));
    let names: Vec<String> = order().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["one/a", "twice"]);
    for _ in 0..2 {
        raw.ask("unsubscribe", json!({ "channel": "echo" })).expect("a superfluous one is no error");
    }
    let names: Vec<String> = order().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["one/a"]);
}

#[test]
fn b039_external_every_stop_and_start_listener_is_called_and_one_that_hangs_skips_nobody() {
    let appliance = two();
    let journal = Journal::default();
    let bus = appliance.bus();
    let both = |priority: i32| {
        json!([
            { "channel": "start", "priority": priority, "limit_ms": 5000 },
            { "channel": "stop", "priority": priority, "limit_ms": 300 },
        ])
    };
    probe(&bus, &journal, "ten", both(10), Deed::Answer(Value::Null));
    probe(&bus, &journal, "hangs", hangs("stop", 20), Deed::Hang);
    probe(&bus, &journal, "thirty", both(30), Deed::Answer(Value::Null));
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    let mut stopped = journal.lines();
    stopped.sort();
    assert_eq!(stopped, ["stop hangs", "stop ten", "stop thirty"]);
    assert_eq!(state(&appliance), "Idle", "b051: not stuck");
    let faults = appliance.status()["faults"].to_string();
    assert!(faults.contains("@hangs") && faults.contains("not done within 0.3 s"), "{faults}");
    appliance.refit(&["bus", "request", "start"]).ends_with(0);
    let started: Vec<String> = journal.lines().into_iter().filter(|line| line.starts_with("start")).collect();
    assert_eq!(
        (started, state(&appliance)),
        (vec!["start ten".to_owned(), "start thirty".to_owned()], json!("Running"))
    );
}

#[test]
fn b063_external_a_wait_ends_at_once_when_it_is_so_and_with_its_limit_when_it_is_not() {
    let appliance = two();
    let mut raw = Raw::hello(&appliance.bus(), json!({ "name": "waits" }));
    let there = raw.ask("wait", json!({ "states": ["Running"], "limit_ms": 60_000 })).expect("b060: it is there");
    assert_eq!(there["state"], "Running");
    let late = raw.ask("wait", json!({ "states": ["Idle"], "limit_ms": 100 })).expect_err("the limit has passed");
    assert!(late.to_string().contains("timeout"), "{late}");
}

#[test]
fn b072_external_one_refuses_a_reload_and_everybody_else_aborts() {
    let appliance = two();
    let journal = Journal::default();
    let bus = appliance.bus();
    probe(&bus, &journal, "a", listens("reload", 10), Deed::Answer(Value::Null));
    probe(&bus, &journal, "b", listens("reload", 20), Deed::Fail("the key does not match"));
    probe(&bus, &journal, "c", listens("reload", 30), Deed::Answer(Value::Null));
    let ran = appliance.refit(&["bus", "request", "reload"]).ends_with(70);
    assert!(ran.stderr.contains("the key does not match"), "{}", ran.stderr);
    eventually(LIMIT, "both have heard of the end", || journal.lines().len() == 5);
    assert_eq!(journal.lines(), ["prepare a", "prepare b", "prepare c", "abort c", "abort a"]);
    assert_eq!(state(&appliance), "Running");
}
