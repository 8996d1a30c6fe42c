//! A reload that has to be confirmed, from outside: asked for at every door, shown everywhere, and reverted when nobody confirms it,
//! whatever happens meanwhile.

use std::fs;

use serde_json::{Value, json};

use crate::appliance::{Appliance, component, text};
use crate::http::Request;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

const HUP: &str = include_str!("reload/hup.py");

/// Returns the members `a` of `one`, which may ask for a reload, and `b` of `two`, which may not; both can revert.
fn both(version: &str) -> Release {
    let keys = "stop_timeout = \"1s\"\nrestart = { policy = \"always\", backoff = \"10ms..20ms\", limit = \"9/1m\" }";
    Release::bare(version)
        .channels(&["work"])
        .member("one", &["a", "reload=10", "work=10", "--limit", "--reverts"], &format!("{keys}\nallow = [\"reload\"]"))
        .member("two", &["b", "reload=20", "work=20", "--limit", "--reverts"], keys)
}

impl Appliance {
    /// Asks over HTTP, and waits for the outcome. Returns the ticket.
    fn asked_for(&self, body: &Value) -> Value {
        let answer = Request::new(&self.socket(), "POST", "/api/v1/bus/requests").json(body).send().json();
        let id = text(&answer["ticket"]["id"]);
        Request::new(&self.socket(), "GET", &format!("/api/v1/bus/requests/{id}?wait_ms=20000")).send().json()["ticket"]
            .clone()
    }

    /// Waits until the reload of this ticket is confirmed or reverted. Returns the ticket.
    fn over(&self, ticket: &Value) -> Value {
        let path = format!("/api/v1/bus/requests/{}", text(&ticket["id"]));
        until(LIMIT, "the wait is over", || {
            let ticket = Request::new(&self.socket(), "GET", &path).try_send().ok()?.json()["ticket"].clone();
            let state = ticket["confirmation"]["state"].as_str()?.to_owned();
            (state != "waiting" && state != "reverting").then_some(ticket)
        })
    }

    /// Returns what the history says of the reloads that had to be confirmed, newest first.
    fn reloads(&self) -> Vec<Value> {
        self.history().into_iter().filter(|entry| entry["kind"] == "reload").collect()
    }

    /// Waits until the newest line of the history that is a reload's ended so. Returns it.
    fn ended_so(&self, step: &str, outcome: &str, count: usize) -> Value {
        until(LIMIT, &format!("the history has {count} reloads"), || (self.reloads().len() == count).then_some(()));
        let newest = self.reloads().remove(0);
        assert_eq!((&newest["step"], &newest["outcome"]), (&json!(step), &json!(outcome)), "{newest}");
        newest
    }

    /// Returns the phases of reloads that the members were called for, from the `skip`th on.
    fn phases(&self, skip: usize) -> Vec<String> {
        let phases = self.order().into_iter().filter_map(|line| line.strip_prefix("reload-").map(str::to_owned));
        phases.skip(skip).collect()
    }

    /// Has the member `a` ask. Returns what it was told.
    fn has_asked(&self, member: &str, argument: &Value) -> Value {
        let mut argument = argument.clone();
        (argument["do"], argument["to"]) = (json!("request"), json!(member));
        let ran = self.refit(&["bus", "publish", "work", &argument.to_string(), "--json"]).ends_with(0);
        let answers = ran.objects()[0]["report"]["answers"].as_array().expect("answers").clone();
        let own = answers.into_iter().find(|answer| text(&answer["listener"]).ends_with(&format!("/{member}")));
        own.expect("it listens")["value"].clone()
    }

    fn unconfirmed(&self) -> Value {
        self.status()["bus"]["unconfirmed"].clone()
    }

    /// Returns the names and data of the events about reloads that have to be confirmed.
    fn steps_told(&self) -> Vec<(String, Value)> {
        let lines = Request::new(&self.socket(), "GET", "/api/v1/events?after=0")
            .header("Accept", "application/x-ndjson")
            .stream()
            .expect("a stream");
        // What is asked for now is told of last.
        let end = self.asked_for(&json!({ "request": "start" }));
        assert_eq!(end["state"], "already");
        let mut found = Vec::new();
        let mut starts = self.log().matches("request start of ").count();
        for line in lines {
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            if event["event"] == "bus.request" && event["data"]["request"] == "start" {
                starts -= 1;
                if starts == 0 {
                    return found;
                }
            }
            if text(&event["event"]).starts_with("bus.reload.") {
                found.push((text(&event["event"]), event["data"].clone()));
            }
        }
        panic!("the events ended")
    }
}

#[test]
fn a_reload_waits_where_everybody_sees_it_and_is_confirmed() {
    let appliance = Appliance::new(&both("1.0.0")).start();
    assert_eq!(appliance.unconfirmed(), Value::Null);
    let asked = appliance.refit(&["bus", "request", "reload", "--confirm-within", "10m"]).ends_with(0).stdout;
    let waits = "waits to be confirmed until ";
    assert!(asked.contains(waits) && asked.contains("refit bus request confirm"), "{asked}");

    let waiting = appliance.unconfirmed();
    assert_eq!((&waiting["generation"], &waiting["restores"]), (&json!(1), &json!(false)), "{waiting}");
    assert_eq!(waiting["listeners"], json!(["one/a", "two/b"]));
    assert!(text(&waiting["origin"]).ends_with("(local)"), "{waiting}");
    assert!(text(&waiting["until"]) > text(&waiting["since"]) && asked.contains(&text(&waiting["until"])), "{waiting}");
    let state = appliance.refit(&["bus", "state"]).ends_with(0).stdout;
    assert!(state.starts_with("Running\n") && state.contains(waits), "{state}");
    let all = appliance.refit(&["bus", "state", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!(all["unconfirmed"], waiting);
    let peer = all["peers"].as_array().expect("a list").iter().find(|peer| peer["name"] == "two/b").expect("a peer");
    assert_eq!(peer["channels"]["reload"]["reverts"], true, "{peer}");
    let status = appliance.refit(&["status"]).ends_with(0).stdout;
    assert!(status.contains(waits), "{status}");

    // Nothing else changes meanwhile, and both doors say what to do.
    let second = appliance.refit(&["bus", "request", "reload"]).complains_with(70);
    assert!(second.contains("has to be confirmed first: request confirm"), "{second}");
    let second = appliance.asked_for(&json!({ "request": "reload", "confirm_within": "1m" }));
    assert_eq!((&second["state"], &second["exit"]), (&json!("refused"), &json!(70)), "{second}");

    // Whoever may not reload may not confirm.
    let refused = appliance.has_asked("b", &json!({ "request": "confirm" }))["ticket"].clone();
    assert_eq!(refused["state"], "refused");
    assert!(text(&refused["reason"]).contains("reload is not among what appliance.toml allows"), "{refused}");
    assert_ne!(appliance.unconfirmed(), Value::Null);
    let confirmed = appliance.has_asked("a", &json!({ "request": "confirm" }))["ticket"].clone();
    assert_eq!(confirmed["state"], "accepted", "{confirmed}");
    eventually(LIMIT, "nothing waits", || appliance.unconfirmed() == Value::Null);
    assert_eq!(appliance.refit(&["bus", "state"]).ends_with(0).stdout, "Running\n");
    let again = appliance.refit(&["bus", "request", "confirm"]).complains_with(70);
    assert!(again.contains("no reload waits to be confirmed"), "{again}");

    let entry = appliance.ended_so("confirmed", "done", 1);
    assert!(text(&entry["who"]).ends_with("(local)"), "{entry}");
    assert_eq!(entry["reason"], "confirmed by component one");
    assert_eq!((&entry["from"], &entry["to"]), (&json!("1.0.0"), &json!("1.0.0")));
    let shown = appliance.refit(&["history"]).ends_with(0).stdout;
    assert!(
        shown.lines().any(|line| line.contains(" reload ") && line.contains("confirmed by component one")),
        "{shown}"
    );
    let told = appliance.steps_told();
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["bus.reload.waiting", "bus.reload.confirmed"]);
    assert_eq!((&told[0].1["until"], &told[1].1["by"]), (&waiting["until"], &json!("component one")));
    assert!(!appliance.phases(0).iter().any(|line| line.starts_with("revert")), "{:?}", appliance.phases(0));
    // The next one is as any other.
    appliance.refit(&["bus", "request", "reload"]).ends_with(0);
    let json = appliance.refit(&["bus", "request", "reload", "--confirm-within", "10m", "--json"]).ends_with(0);
    let ticket = json.objects()[0]["ticket"].clone();
    assert_eq!((&ticket["state"], &ticket["confirmation"]["state"]), (&json!("done"), &json!("waiting")), "{ticket}");
    appliance.refit(&["bus", "request", "confirm"]).ends_with(0);
    assert_eq!(appliance.over(&ticket)["confirmation"]["state"], "confirmed");
}

#[test]
fn one_that_nobody_confirms_is_reverted_and_what_fails_is_a_fault() {
    let appliance = Appliance::new(&both("1.0.0")).start();
    let ticket = appliance.asked_for(&json!({ "request": "reload", "confirm_within": "300ms" }));
    assert_eq!(ticket["state"], "done", "{ticket}");
    let over = appliance.over(&ticket);
    let confirmation = &over["confirmation"];
    assert_eq!((&over["state"], &confirmation["state"]), (&json!("done"), &json!("reverted")), "{over}");
    assert_eq!(confirmation["reason"], "it was not confirmed within 0.3 s");
    let expected = ["prepare a", "prepare b", "commit a", "commit b", "revert b", "revert a"];
    assert_eq!(appliance.phases(0), expected);
    let entry = appliance.ended_so("reverted", "rolled-back", 1);
    assert_eq!(entry["reason"], "it was not confirmed within 0.3 s");
    let told: Vec<String> = appliance.steps_told().into_iter().map(|(name, _)| name).collect();
    assert_eq!(told, ["bus.reload.waiting", "bus.reload.reverting", "bus.reload.reverted"]);
    let late = appliance.refit(&["bus", "request", "confirm"]).complains_with(70);
    assert!(late.contains("no reload waits to be confirmed"), "{late}");
    assert_eq!(appliance.status()["faults"], json!([]));

    // A component that asks is told each step. One that fails to go back, and one that never answers, are faults; the rest goes back.
    for (number, (deed, why)) in [("fail", "as it was told"), ("hang", "within")].into_iter().enumerate() {
        fs::write(appliance.home().join("data/reload-b"), format!("revert {deed}")).expect("written");
        let body = json!({ "request": "reload", "confirm_within": "300ms" });
        let asked = appliance.has_asked("a", &body)["ticket"].clone();
        let over = appliance.over(&asked);
        let reason = text(&over["confirmation"]["reason"]);
        assert!(reason.contains("not reverted: two/b: ") && reason.contains(why), "{reason}");
        assert!(appliance.phases(6 * (number + 1)).ends_with(&["revert b".to_owned(), "revert a".to_owned()]));
        let faults = appliance.status()["faults"].as_array().expect("a list").clone();
        assert_eq!(faults.len(), number + 1, "{faults:?}");
        assert_eq!(
            (&faults[number]["component"], &faults[number]["phase"]),
            (&json!("two/b"), &json!("revert a reload"))
        );
        appliance.ended_so("reverted", "failed", number + 2);
        let heard = || appliance.order().into_iter().filter(|line| line.starts_with("ticket-") && line.ends_with(" a"));
        eventually(LIMIT, "the asker was told how it ended", || {
            heard().filter(|line| line.starts_with("ticket-reverted")).count() == number + 1
        });
        assert_eq!(heard().next().as_deref(), Some("ticket-waiting a"));
    }
}

#[test]
fn a_component_that_is_told_by_a_signal_refuses_unless_the_asker_restores() {
    let keys = "command = [\"python3\", \"lib/hup.py\", \"handles\"]\nready = \"notify\"\nreload_signal = \"HUP\"";
    let appliance = Appliance::new(&both("1.0.0").component("signalled", keys).file("lib/hup.py", HUP)).start();
    let refused = appliance.refit(&["bus", "request", "reload", "--confirm-within", "10m"]).complains_with(70);
    assert!(refused.contains("refused by signalled: it cannot revert") && refused.contains("`restores`"), "{refused}");
    assert!(appliance.phases(0).is_empty(), "nobody was called: {:?}", appliance.phases(0));
    assert_eq!((appliance.unconfirmed(), appliance.reloads().len()), (Value::Null, 0));
    let told = |count: usize| {
        let logs = appliance.refit(&["component", "logs", "signalled"]).ends_with(0).stdout;
        logs.contains(&format!("told {count}")) && !logs.contains(&format!("told {}", count + 1))
    };

    let body = json!({ "request": "reload", "confirm_within": "300ms", "restores": true });
    let ticket = appliance.asked_for(&body);
    assert_eq!((&ticket["state"], &ticket["confirmation"]["state"]), (&json!("done"), &json!("waiting")), "{ticket}");
    let over = appliance.over(&ticket);
    assert_eq!(over["confirmation"]["reason"], "it was not confirmed within 0.3 s");
    let phases = appliance.phases(4);
    assert_eq!(phases, ["revert b", "revert a", "prepare a", "prepare b", "commit a", "commit b"]);
    eventually(LIMIT, "it was told twice", || told(2));
    // Stopped, it has no part, and is in nobody's way.
    appliance.refit(&["component", "stop", "signalled"]).ends_with(0);
    appliance.refit(&["bus", "request", "reload", "--confirm-within", "10m"]).ends_with(0);
    appliance.refit(&["bus", "request", "confirm"]).ends_with(0);

    for (body, words) in [
        (json!({ "request": "reload", "confirm_within": "soon" }), "is not a duration"),
        (json!({ "request": "reload", "confirm_within": "0s" }), "is not between 100 ms and 24 h"),
        (json!({ "request": "reload", "confirm_within": "3d" }), "confirm_within"),
        (json!({ "request": "reload", "restores": true }), "it needs confirm_within"),
        (json!({ "request": "stop", "confirm_within": "2m" }), "only a reload can wait to be confirmed"),
        (json!({ "request": "confirm", "confirm_within": "2m" }), "only a reload can wait to be confirmed"),
    ] {
        let answer = Request::new(&appliance.socket(), "POST", "/api/v1/bus/requests").json(&body).send();
        assert_eq!(answer.status, 400, "{body}");
        let problem = answer.json();
        assert_eq!(problem["code"], "bad_request");
        assert!(text(&problem["detail"]).contains(words), "{problem}");
    }
    for words in
        [&["stop", "--confirm-within", "2m"][..], &["reload", "--restores"], &["reload", "--confirm-within", "soon"]]
    {
        let mut all = vec!["bus", "request"];
        all.extend(words);
        appliance.refit(&all).complains_with(64);
    }
    assert_eq!(appliance.status()["bus"]["state"], "Running");
}

#[test]
fn what_ends_or_replaces_the_runtime_reverts_first_and_a_crash_is_told_of() {
    let mut appliance = Appliance::new(&both("1.0.0")).start();
    let wait = json!({ "request": "reload", "confirm_within": "10m" });

    // A restart in place: reverted before anything stops, and the next image has nothing to wait for.
    let ticket = appliance.asked_for(&wait);
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    let over = appliance.over(&ticket);
    assert_eq!(over["confirmation"]["reason"], "it was not confirmed before the restart of the site");
    let order = appliance.order();
    let place =
        |words: &str| order.iter().position(|line| line == words).unwrap_or_else(|| panic!("{words}: {order:?}"));
    assert!(place("reload-revert a") < place("state-Stopping b"), "{order:?}");
    appliance.ended_so("reverted", "rolled-back", 1);
    assert_eq!(appliance.unconfirmed(), Value::Null);

    // An update.
    until(LIMIT, "both are on the bus", || {
        let status = appliance.try_status()?;
        let has_peer = |name: &str| component(&status, name)["peers"].as_array().is_some_and(|peers| !peers.is_empty());
        (has_peer("one") && has_peer("two")).then_some(())
    });
    appliance.asked_for(&wait);
    let next = both("1.1.0");
    appliance.install(&next, &[]).ends_with(0);
    appliance.settled("1.1.0");
    let entry = appliance.ended_so("reverted", "rolled-back", 2);
    assert_eq!(
        (&entry["reason"], &entry["to"]),
        (&json!("it was not confirmed before the update of the site"), &json!("1.0.0"))
    );

    // A crash: nobody can revert, the next runtime says so.
    let ticket = appliance.asked_for(&wait);
    assert_eq!(ticket["confirmation"]["state"], "waiting", "{ticket}");
    let pids = [appliance.component_pid("one"), appliance.component_pid("two")];
    appliance.kill_runtime();
    let over = appliance.over(&ticket);
    assert_eq!((&over["state"], &over["confirmation"]["state"]), (&json!("done"), &json!("lost")), "{over}");
    let entry = appliance.ended_so("lost", "failed", 3);
    assert!(text(&entry["reason"]).contains("the runtime ended before it was confirmed or reverted"), "{entry}");
    assert_eq!(appliance.unconfirmed(), Value::Null);
    assert!(appliance.steps_told().iter().any(|(name, _)| name == "bus.reload.lost"));
    assert_eq!([appliance.component_pid("one"), appliance.component_pid("two")], pids);
    appliance.kill_runtime();
    assert_eq!(appliance.reloads().len(), 3, "it is told once");

    // The end of the appliance.
    until(LIMIT, "both are on the bus", || {
        let ticket = appliance.asked_for(&wait);
        let listeners = appliance.unconfirmed()["listeners"].as_array()?.len();
        if listeners == 2 && ticket["state"] == "done" {
            return Some(());
        }
        appliance.refit(&["bus", "request", "confirm"]).ends_with(0);
        None
    });
    let before = appliance.reloads().len();
    appliance.refit(&["bus", "request", "exit"]).ends_with(0);
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0));
    let lines = fs::read_to_string(appliance.home().join("history.jsonl")).expect("read");
    let reloads: Vec<Value> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let reloads: Vec<&Value> = reloads.iter().filter(|entry| entry["kind"] == "reload").collect();
    assert_eq!(reloads.len(), before + 1, "{lines}");
    assert_eq!(reloads.last().expect("one")["reason"], "it was not confirmed before the exit of the site");
}

#[test]
fn a_process_that_took_the_place_of_one_that_committed_is_told_to_revert() {
    let appliance = Appliance::new(&both("1.0.0")).start();
    let ticket = appliance.asked_for(&json!({ "request": "reload", "confirm_within": "10m" }));
    let first = appliance.component_pid("two");
    appliance.refit(&["component", "restart", "two"]).ends_with(0);
    assert_ne!(appliance.component_pid("two"), first);
    appliance.refit(&["component", "stop", "one"]).ends_with(0);
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    let over = appliance.over(&ticket);
    let reason = text(&over["confirmation"]["reason"]);
    assert!(
        reason.contains("before the stop of the site; not reverted: one/a: it was gone before it could revert"),
        "{reason}"
    );
    assert_eq!(appliance.phases(4), ["revert b"]);
    appliance.ended_so("reverted", "failed", 1);
    assert_eq!(appliance.status()["faults"], json!([]), "what is stopped reads what is on the disk when it starts");
}
