//! `refit bus`: what the commands print and how they end.

use std::fs::File;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::appliance::{Appliance, refit};
use crate::release::Release;
use crate::wait::{LIMIT, until};

fn appliance() -> Appliance {
    let release = Release::bare("1.0.0")
        .channels(&["work", "silent"])
        .member("one", &["a", "work=20", "reload=50"], "")
        .member("two", &["b", "work=30"], "");
    Appliance::new(&release).start()
}

#[test]
fn the_state_is_one_word_or_everything() {
    let appliance = appliance();
    assert_eq!(appliance.refit(&["bus", "state"]).ends_with(0).stdout, "Running\n");
    let all = appliance.refit(&["bus", "state", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!(all["state"], "Running");
    let channel = |name: &str| {
        let channels = all["channels"].as_array().expect("a list");
        channels.iter().find(|channel| channel["name"] == name).unwrap_or_else(|| panic!("{name}: {all}")).clone()
    };
    assert_eq!((&channel("work")["built_in"], channel("silent")["listeners"].clone()), (&json!(false), json!([])));
    assert!(channel("work")["listeners"].as_array().is_some_and(|names| names.contains(&json!("one/a"))), "{all}");
    assert_eq!(channel("stop")["built_in"], true);
    let peer = all["peers"].as_array().expect("a list").iter().find(|peer| peer["name"] == "one/a").expect("a peer");
    assert_eq!((&peer["component"], &peer["channels"]["work"]["priority"]), (&json!("one"), &json!(20)), "{peer}");
}

#[test]
fn a_publication_prints_a_line_for_each_listener_and_its_status_says_whether_one_failed() {
    let appliance = appliance();
    let good = appliance.refit(&["bus", "publish", "work", "{\"n\": 1}"]).ends_with(0);
    let lines: Vec<&str> = good.stdout.lines().collect();
    assert!(lines.len() == 3 && lines[1].starts_with("one/a") && lines[2].starts_with("two/b"), "{}", good.stdout);
    let bad = appliance.refit(&["bus", "publish", "work", "{\"do\": \"fail\", \"to\": \"a\"}"]).ends_with(70);
    assert!(bad.stdout.contains("as it was told"), "{}", bad.stdout);
    let silent = appliance.refit(&["bus", "publish", "silent"]).ends_with(0);
    assert!(silent.stdout.contains("nobody listens on silent"), "{}", silent.stdout);
    let unknown = appliance.refit(&["bus", "publish", "nowhere"]).complains_with(64);
    assert!(unknown.contains("there is no channel \"nowhere\""), "{unknown}");
    let built_in = appliance.refit(&["bus", "publish", "stop"]).complains_with(64);
    assert!(built_in.contains("make a request instead"), "{built_in}");
    appliance.refit(&["bus", "publish", "work", "{not json"]).complains_with(64);
}

#[test]
fn a_request_without_waiting_gives_the_ticket() {
    let appliance = appliance();
    let ticket = appliance.refit(&["bus", "request", "reload", "--no-wait", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!(ticket["ticket"]["request"], "reload", "{ticket}");
    let already = appliance.refit(&["bus", "request", "start", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!(already["ticket"]["state"], "already", "{already}");
    let exit = appliance.refit(&["bus", "request", "exit", "--json"]).ends_with(0).objects().remove(0);
    let ticket = &exit["ticket"];
    assert_eq!((&ticket["request"], &ticket["state"], &ticket["exit"]), (&json!("exit"), &json!("done"), &json!(0)));
}

/// A `refit bus watch` that writes into a file.
struct Watch {
    child: Child,
    path: std::path::PathBuf,
}

impl Watch {
    fn begin(appliance: &Appliance, name: &str, options: &[&str]) -> Self {
        let path = appliance.scratch().join(name);
        let mut command = refit();
        command.args(["bus", "watch"]).args(options).arg("--home").arg(appliance.home());
        let child =
            command.stdout(File::create(&path).expect("a file")).stderr(Stdio::null()).spawn().expect("started");
        Self { child, path }
    }

    /// Waits for a line; `ask` is done again and again until it comes, because a watch sees only what comes after it.
    fn wait(&self, what: &str, mut ask: impl FnMut(), found: impl Fn(&str) -> bool) -> String {
        until(LIMIT, what, || {
            ask();
            let text = std::fs::read_to_string(&self.path).expect("read");
            text.lines().find(|line| found(line)).map(str::to_owned)
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.child.kill().ok(); // gone already is as good
        self.child.wait().ok();
    }
}

#[test]
fn watch_is_a_timeline_of_sentences_and_with_json_lines() {
    let appliance = appliance();
    let people = Watch::begin(&appliance, "people", &[]);
    let programs = Watch::begin(&appliance, "programs", &["--json"]);
    let fail = || drop(appliance.refit(&["bus", "publish", "work", "{\"do\": \"fail\", \"to\": \"a\"}"]));
    let line = people.wait("the failure is told", fail, |line| line.contains("as it was told"));
    assert!(line.contains("publish    on work: 2 listeners, 1 failed: one/a: as it was told"), "{line}");
    assert!(!line.contains('\x1b'), "no colours in a file: {line}");
    let line = programs.wait("the failure is told", fail, |line| line.contains("as it was told"));
    let event: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&event["event"], &event["data"]["channel"]), (&json!("bus.publication"), &json!("work")), "{event}");

    appliance.refit(&["bus", "request", "reload"]).ends_with(0);
    let line = people.wait("the reload is told", || (), |line| line.contains("is in force"));
    assert!(line.contains("reload     generation 1 is in force"), "{line}");
    people.wait("who asked is told", || (), |line| line.contains("(local) asks for reload: accepted"));
    // It goes on after the runtime was replaced.
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    people.wait("the next image is told", || (), |line| line.contains("the next image took over"));
    people.wait("the peers are told", || (), |line| line.contains("peer       one/a is on the bus"));
}
