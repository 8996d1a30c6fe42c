//! What the peers of one component may and may not do to everybody else: where they listen, how long they take, whom they come before.

use std::fs;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::raw::Raw;
use super::release;
use crate::appliance::{Appliance, component, text};
use crate::process;
use crate::wait::{LIMIT, eventually, until};

/// What a stop or reload may take whose component has a second for it: it, the grace, and what a busy machine needs.
const SOON: Duration = Duration::from_secs(15);

/// Returns the token of a component's process.
fn token(appliance: &Appliance, name: &str) -> Value {
    let environment = fs::read(format!("/proc/{}/environ", appliance.component_pid(name))).expect("its environment");
    let environment = String::from_utf8(environment).expect("text");
    json!(environment.split('\0').find_map(|word| word.strip_prefix("REFIT_TOKEN=")).expect("a token"))
}

/// Says hello as a process of the component `owner`, or of the operator. Returns the connection, or why it was refused.
fn try_hello(appliance: &Appliance, owner: Option<&str>, channels: &Value) -> Result<Raw, Value> {
    let mut raw = Raw::connect(&appliance.bus());
    let mut said = json!({ "version": 1, "channels": channels });
    if let Some(owner) = owner {
        said["token"] = token(appliance, owner);
    }
    raw.ask("hello", said).map(|_| raw)
}

/// Attaches a peer that never answers: it would like to have five minutes.
fn silent(appliance: &Appliance, owner: &str, channel: &str, priority: i32) -> Raw {
    let place = json!([{ "channel": channel, "priority": priority, "limit_ms": 300_000 }]);
    try_hello(appliance, Some(owner), &place).expect("welcome")
}

/// Attaches a peer that answers each call, and says on `called` what it was called for, until the appliance ends.
fn willing(appliance: &Appliance, owner: &str, channels: &[&str], priority: i32, called: &Sender<String>) {
    let places: Vec<Value> =
        channels.iter().map(|channel| json!({ "channel": channel, "priority": priority })).collect();
    let mut raw = try_hello(appliance, Some(owner), &json!(places)).expect("welcome");
    let (called, name) = (called.clone(), format!("{owner} {priority}"));
    std::thread::spawn(move || {
        while let Some(message) = raw.next() {
            if message["method"] == "call" {
                let params = &message["params"];
                let what = params["phase"].as_str().or_else(|| params["channel"].as_str()).unwrap_or_default();
                called.send(format!("{what} {name}")).ok(); // the test is over
                raw.answer(&message, Value::Null);
            }
        }
    });
}

fn of<'a>(calls: &'a [String], what: &str) -> Vec<&'a str> {
    calls.iter().filter_map(|call| call.strip_prefix(what)?.strip_prefix(' ')).collect()
}

fn all(calls: &Receiver<String>) -> Vec<String> {
    calls.try_iter().collect()
}

#[test]
fn a_component_listens_where_the_whole_site_goes_only_with_the_right() {
    let release = release()
        .member("plain", &["p"], "#listen = ")
        .member("asks", &["q"], "allow = [\"reload\"]\n#listen = ")
        .member("listens", &["r"], "allow = [\"reload\"]\nlisten = [\"stop\"]");
    let appliance = Appliance::new(&release).start();
    let place = |channel: &str| json!([{ "channel": channel }]);
    for (owner, good, bad) in [
        // What happens to it, it may hear of; only who may ask for a reload may refuse one.
        ("plain", &["work", "log", "component.up", "component.down", "start", "stop", "exit"][..], &["reload"][..]),
        ("asks", &["reload", "work", "stop"], &[]),
        ("listens", &["stop", "work"], &["start", "exit", "reload"]),
    ] {
        for channel in bad {
            let refused = try_hello(&appliance, Some(owner), &place(channel)).err().expect("refused");
            assert_eq!((&refused["code"], &refused["data"]["code"]), (&json!(-32014), &json!("not_permitted")));
            let message = text(&refused["message"]);
            assert!(message.contains(channel) && message.contains(&format!("the component {owner}")), "{message}");
            assert!(text(&refused["data"]["remedy"]).contains("`listen`"), "{refused}");
            let mut there = try_hello(&appliance, Some(owner), &place("work")).expect("welcome");
            let refused = there.ask("subscribe", json!({ "channel": channel })).expect_err("no right");
            assert_eq!(refused["data"]["code"], "not_permitted", "{refused}");
        }
        for channel in good {
            try_hello(&appliance, Some(owner), &place(channel)).expect(channel);
        }
    }
    try_hello(&appliance, None, &place("stop")).expect("the operator may");
    eventually(LIMIT, "the refusal is on the log", || {
        appliance.log().contains("reload is not among what appliance.toml lets the component plain listen to")
    });
}

#[test]
fn all_peers_of_a_component_share_its_time_at_a_stop() {
    let appliance =
        Appliance::new(&release().member("one", &["a"], "listen = [\"stop\"]\nstop_timeout = \"1s\"")).start();
    let mut peers: Vec<Raw> = (0..6).map(|number| silent(&appliance, "one", "stop", number * 10)).collect();
    let begun = Instant::now();
    let stopping = std::thread::scope(|scope| {
        let stop = scope.spawn(|| appliance.refit(&["bus", "request", "stop"]));
        // In the middle of it another one comes: it is part of the next stop.
        assert_eq!(peers[5].next_of("call")["params"]["reason"], "stop");
        let mut late = silent(&appliance, "one", "stop", 0);
        let stopped = stop.join().expect("no panic");
        assert!(
            late.ask("state", Value::Null).is_err() || late.aside.iter().all(|message| message["method"] != "call")
        );
        stopped
    });
    stopping.ends_with(0);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    for peer in &mut peers[..5] {
        let call = peer.next_of("call");
        assert_eq!(call["params"]["deadline_ms"], 0, "nothing is left for it: {call}");
        assert_eq!(peer.next_of("cancel")["params"]["id"], call["id"]);
    }
    let status = appliance.status();
    let causes: Vec<String> =
        status["faults"].as_array().expect("faults").iter().map(|fault| text(&fault["cause"])).collect();
    assert!(causes.iter().any(|cause| cause.contains("not done within 1 s")), "{causes:?}");
    let shared = "not waited for: all that listens of the component one shares 1 s";
    assert_eq!(causes.iter().filter(|cause| cause.starts_with(shared)).count(), 5, "{causes:?}");
}

#[test]
fn and_at_each_phase_of_a_reload() {
    let keys = "listen = [\"reload\"]\nreload_timeout = \"1s\"";
    let appliance =
        Appliance::new(&release().member("one", &["a"], keys).member("two", &["b", "reload=10"], "")).start();
    let peers: Vec<Raw> = (0..4).map(|number| silent(&appliance, "one", "reload", number)).collect();
    let begun = Instant::now();
    let refused = appliance.refit(&["bus", "request", "reload", "--json"]).ends_with(70).objects().remove(0);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let asked = refused["ticket"]["asked"].as_array().expect("a list");
    let of_one: Vec<&Value> = asked.iter().filter(|one| one["component"] == "one").map(|one| &one["answer"]).collect();
    assert_eq!(of_one, vec![&json!("timeout"); 4], "{refused}");
    drop(peers);
    appliance.wait_peers("one", &["one/a"]);
    appliance.refit(&["bus", "request", "reload"]).ends_with(0);
}

#[test]
fn a_priority_says_who_comes_first_within_the_component_only() {
    let rights = "listen = [\"reload\", \"stop\"]";
    let release = release()
        .member("one", &["a"], rights)
        .member("two", &["b"], &format!("after = [\"one\"]\n{rights}"))
        .member("last", &["c"], &format!("priority = 60\n{rights}"));
    let appliance = Appliance::new(&release).start();
    let (called, calls) = channel();
    let channels = ["reload", "stop"];
    for (owner, priority) in
        [("two", -1_000_000), ("last", -5), ("one", 1_000_000), ("one", 7), ("two", 3), ("one", -9), ("last", -7)]
    {
        willing(&appliance, owner, &channels, priority, &called);
    }
    appliance.refit(&["bus", "request", "reload"]).ends_with(0);
    let seen = all(&calls);
    let in_order = ["one -9", "one 7", "one 1000000", "two -1000000", "two 3", "last -7", "last -5"];
    let within = |seen: &[&str], owner: &str| -> Vec<String> {
        seen.iter().filter(|name| name.starts_with(owner)).map(|name| (*name).to_owned()).collect()
    };
    let prepared = of(&seen, "prepare");
    for owner in ["one", "two", "last"] {
        assert_eq!(within(&prepared, owner), within(&in_order, owner), "{prepared:?}");
    }
    let place = |seen: &[&str], name: &str| seen.iter().position(|other| *other == name).expect("called");
    assert!(place(&prepared, "one -9") < place(&prepared, "two -1000000"), "{prepared:?}");
    assert!(place(&prepared, "two 3") < place(&prepared, "last -7"), "not before those that come first: {prepared:?}");
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    let seen = all(&calls);
    let stopped = of(&seen, "stop");
    for owner in ["one", "two", "last"] {
        let mut reversed = within(&in_order, owner);
        reversed.reverse();
        assert_eq!(within(&stopped, owner), reversed, "{stopped:?}");
    }
    assert!(place(&stopped, "last -5") < place(&stopped, "two 3"), "{stopped:?}");
    assert!(place(&stopped, "two -1000000") < place(&stopped, "one -9"), "{stopped:?}");
}

#[test]
fn a_process_that_does_not_even_read_is_ended_without_a_watchdog() {
    let keys =
        "stop_timeout = \"1s\"\nrestart = { policy = \"on-failure\", backoff = \"10ms..20ms\", limit = \"9/1m\" }";
    let appliance = Appliance::new(&release().member("one", &["a", "reload=50", "stop=50", "--limit"], keys)).start();
    let stopped = appliance.component_pid("one");
    process::send(stopped, Signal::SIGSTOP);
    let refused = appliance.refit(&["bus", "request", "reload"]).ends_with(70).stderr;
    assert!(refused.contains("one/a: not done within 2 s"), "{refused}");
    let next = until(LIMIT, "another process serves", || {
        let found = component(&appliance.try_status()?, "one").clone();
        (found["state"] == "running" && found["pid"] != stopped).then_some(found)
    });
    assert_eq!(next["restarts"], 1, "{next}");
    assert!(appliance.log().contains("one/a does not read what it is asked: the component one hangs"));
    appliance.wait_peers("one", &["one/a"]);
    appliance.refit(&["bus", "request", "reload"]).ends_with(0);

    // At a stop it is killed, and has not its time once more.
    process::send(appliance.component_pid("one"), Signal::SIGSTOP);
    let begun = Instant::now();
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let faults = appliance.status()["faults"].to_string();
    assert!(faults.contains("did not read what it was asked on the bus, and was killed"), "{faults}");
}

#[test]
fn one_whose_listener_hangs_while_the_process_reads_is_left_alone() {
    let keys = "stop_timeout = \"200ms\"\nrestart = { policy = \"on-failure\" }";
    let appliance = Appliance::new(&release().member("one", &["a", "reload=50", "--limit"], keys)).start();
    let pid = appliance.component_pid("one");
    fs::write(appliance.home().join("data/reload-a"), "prepare hang").expect("written");
    for _ in 0..2 {
        appliance.refit(&["bus", "request", "reload"]).ends_with(70);
    }
    fs::remove_file(appliance.home().join("data/reload-a")).expect("removed");
    appliance.refit(&["bus", "request", "reload"]).ends_with(0);
    assert_eq!(appliance.component_pid("one"), pid);
}

#[test]
fn a_peer_that_fails_a_start_does_not_end_an_appliance_that_ran() {
    let appliance = Appliance::new(&release().member("one", &["a"], "")).start();
    let mut fails = try_hello(&appliance, None, &json!([{ "channel": "start" }])).expect("welcome");
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    let failed = std::thread::scope(|scope| {
        let start = scope.spawn(|| appliance.refit(&["bus", "request", "start"]));
        let call = fails.next_of("call");
        fails.say(&json!({ "id": call["id"], "error": { "code": 1, "message": "not today" } }));
        start.join().expect("no panic").ends_with(70).stderr
    });
    assert!(failed.contains("not today"), "{failed}");
    eventually(LIMIT, "the site runs", || appliance.status()["bus"]["state"] == "Running");
    assert_eq!(component(&appliance.status(), "one")["state"], "running");
}
