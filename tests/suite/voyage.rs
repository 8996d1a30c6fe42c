//! One whole voyage under load: good updates, rollbacks that were asked for, and every kind of bad update.

use std::time::Duration;

use serde_json::json;

use crate::appliance::{Appliance, component, pid_of, text};
use crate::http;
use crate::load::{Load, LoadOptions};
use crate::process;
use crate::release::{Release, with_one_byte_changed};
use crate::wait::{LIMIT, eventually, until};

/// What the shop's clients do in this test.
fn options() -> LoadOptions {
    LoadOptions {
        new_per_second: 200,
        keepalive_connections: 20,
        keepalive_period: Duration::from_millis(100),
        slow_connections: 3,
        slow_path: "/slow?ms=300".to_owned(),
        ..LoadOptions::default()
    }
}

/// What must be the same after every update.
struct Constant {
    runtime: i32,
    inode: u64,
}

impl Constant {
    fn of(appliance: &Appliance) -> Self {
        let inodes = process::listening_inodes(appliance.address("http").port());
        assert_eq!(inodes.len(), 1, "the shop has one socket");
        Self { runtime: appliance.runtime_pid(), inode: inodes[0] }
    }

    fn assert(&self, appliance: &Appliance) {
        assert_eq!(appliance.runtime_pid(), self.runtime, "the runtime's PID has changed");
        self.assert_socket(appliance);
    }

    fn assert_socket(&self, appliance: &Appliance) {
        assert_eq!(process::listening_inodes(appliance.address("http").port()), [self.inode], "the shop's socket");
        for pid in [appliance.runtime_pid(), appliance.component_pid("shop")] {
            assert!(process::socket_inodes(pid).contains(&self.inode), "process {pid} has the shop's socket");
        }
    }
}

/// Asserts that `version` is what runs, down to the program that the runtime executes.
fn assert_runs(appliance: &Appliance, load: &Load, version: &str) {
    let status = appliance.settled(version);
    let expected = appliance.home().join("releases").join(version).join("bin/refit");
    assert_eq!(process::program(pid_of(&status["runtime"])), expected);
    assert_eq!(component(&status, "shop")["release"], version);
    load.wait_for_version(version, LIMIT).expect("the clients see the release");
}

#[test]
fn good_updates_and_rollbacks_under_load_are_not_noticed() {
    let appliance = Appliance::new(&Release::voyage("1.0.0")).start();
    let load = appliance.load(options());
    let constant = Constant::of(&appliance);
    let mut generation = appliance.status()["runtime"]["generation"].as_u64().expect("a number");
    let mut went = |version: &str, outcome: (&str, &str, &str)| {
        assert_runs(&appliance, &load, version);
        constant.assert(&appliance);
        let status = appliance.status();
        generation += 1;
        assert_eq!(status["runtime"]["generation"], generation, "each is one exec");
        let newest = &appliance.history()[0];
        let found = (text(&newest["kind"]), text(&newest["from"]), text(&newest["to"]));
        assert_eq!((found.0.as_str(), found.1.as_str(), found.2.as_str()), outcome, "{newest}");
        assert_eq!((&newest["outcome"], newest["reason"].is_null()), (&"done".into(), true), "{newest}");
        assert_eq!(status["previous"], outcome.1);
    };
    let mut current = "1.0.0".to_owned();
    for minor in 1..=10 {
        let next = format!("1.{minor}.0");
        appliance.install(&Release::voyage(&next), &[]).ends_with(0);
        went(&next, ("update", &current, &next));
        current = next;
        if minor % 3 == 0 {
            let back = format!("1.{}.0", minor - 1);
            appliance.refit(&["rollback"]).ends_with(0);
            went(&back, ("rollback", &current, &back));
            current = back;
        }
    }
    let report = load.finish();
    report.assert_clean();
    assert!(report.slow_ok > 0, "{report}");
    assert_eq!(appliance.history().len(), 13);
    assert!(appliance.history().iter().all(|entry| entry["outcome"] == "done"));
}

/// What the history must say of a bad package.
struct Ending {
    reason: &'static str,
    component: Option<&'static str>,
    output: Option<&'static str>,
}

fn bad_update(bad: &Release, expected: &Ending) -> Appliance {
    let appliance = Appliance::new(&Release::voyage("1.0.0")).start();
    let load = appliance.load(options());
    let constant = Constant::of(&appliance);
    let shop = appliance.component_pid("shop");
    let line = appliance.install(bad, &[]).complains_with(70);
    assert!(line.contains(expected.reason), "{line}");
    assert_runs(&appliance, &load, "1.0.0");
    constant.assert_socket(&appliance);
    load.finish().assert_clean();
    assert_eq!(appliance.component_pid("shop"), shop, "the old shop was never touched");

    let entry = &appliance.history()[0];
    assert_eq!(entry["outcome"], "rolled-back", "{entry}");
    assert_eq!((&entry["from"], &entry["to"]), (&"1.0.0".into(), &bad.version().into()));
    assert!(text(&entry["reason"]).contains(expected.reason), "{entry}");
    assert_eq!(entry["component"].as_str(), expected.component, "{entry}");
    if let Some(output) = expected.output {
        assert!(entry["output"].to_string().contains(output), "{entry}");
    }
    let releases = appliance.refit(&["releases", "--json"]).ends_with(0).objects();
    let marked = releases[0]["releases"].as_array().expect("a list").iter().find(|row| row["version"] == bad.version());
    assert!(marked.is_none_or(|row| row["state"] == "failed" && row["reason"].is_string()), "{marked:?}");
    appliance
}

#[test]
fn b089_a_component_that_exits_at_start_is_rolled_back_unnoticed() {
    let bad = Release::shop_with("1.2.0", ", \"--fault\", \"exit-at-start\"");
    let output = Some("no index for schema 2");
    bad_update(&bad, &Ending { reason: "component shop", component: Some("shop"), output });
}

#[test]
fn b089_a_component_that_never_becomes_healthy_is_rolled_back_unnoticed() {
    // Until the first success it may still come up.
    let soon = |text: String| text.replace("name = \"shop\"\n", "name = \"shop\"\nstart_timeout = \"5s\"\n");
    let appliance = Appliance::new(&Release::voyage("1.0.0")).local(soon).start();
    let load = appliance.load(options());
    let constant = Constant::of(&appliance);
    let bad = Release::shop_with("1.3.0", ", \"--fault\", \"never-healthy\"");
    let line = appliance.install(&bad, &[]).complains_with(70);
    assert!(line.contains("is unhealthy") && line.contains("503"), "{line}");
    assert_runs(&appliance, &load, "1.0.0");
    constant.assert(&appliance);
    load.finish().assert_clean();
    let entry = &appliance.history()[0];
    assert_eq!((&entry["outcome"], &entry["component"]), (&"rolled-back".into(), &"shop".into()), "{entry}");
    assert!(text(&entry["reason"]).contains("503"), "{entry}");
}

#[test]
fn b089_a_runtime_that_crashes_at_once_is_rolled_back_and_the_shop_survives_it() {
    let reason = "signal 6";
    let output = Some("cannot map the session table");
    let appliance = bad_update(&Release::crashing("1.4.0"), &Ending { reason, component: None, output });
    assert!(appliance.log().contains("going back to 1.0.0"), "{}", appliance.log());
}

/// A component that is unhealthy for nobody and healthy as soon as there is a file `data/well`.
const HEALTH: &str = "health = { command = [\"python3\", \"lib/health.py\"], interval = \"50ms\", timeout = \"60s\" }";
const HEALTH_PY: &str =
    "import os, time\nwhile not os.path.exists(os.environ['REFIT_DATA'] + '/well'):\n    time.sleep(0.02)\n";

#[test]
fn what_somebody_has_stopped_proves_nothing() {
    let release = |version| Release::bare(version).part("a", &[], HEALTH).file("lib/health.py", HEALTH_PY);
    let appliance = Appliance::new(&release("1.0.0"))
        .local(|text| text.replace("probation = \"300ms\"", "probation = \"10ms\""))
        .start();
    let staged = appliance.install(&release("1.1.0"), &["--stage-only", "--json"]).ends_with(0).objects().remove(0);
    let answer = http::Request::new(&appliance.socket(), "POST", "/api/v1/updates");
    let answer = answer.json(&json!({ "digest": staged["data"]["digest"] })).send();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let step = |expected: &str| {
        until(LIMIT, &format!("the trial is {expected}"), || {
            let status = appliance.try_status()?;
            let on_trial = status["release"]["state"] == "trial";
            (on_trial && text(&status["update"]["step"]).starts_with(expected)).then_some(())
        });
    };
    let runs = || eventually(LIMIT, "it runs", || appliance.status()["bus"]["state"] == "Running");
    step("watching release 1.1.0");
    runs();
    appliance.refit(&["component", "stop", "a"]).ends_with(0);
    step("waiting: component a is stopped");
    appliance.refit(&["component", "start", "a"]).ends_with(0);
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    step("waiting: the site is stopped");
    let well = appliance.home().join("data/well");
    std::fs::write(well, "").expect("written");
    appliance.refit(&["bus", "request", "start"]).ends_with(0);
    appliance.settled("1.1.0");
}

#[test]
fn a_package_with_one_byte_changed_is_refused_and_leaves_nothing() {
    let appliance = Appliance::new(&Release::voyage("1.0.0")).start();
    let load = appliance.load(options());
    let constant = Constant::of(&appliance);
    let before = (appliance.status()["runtime"]["generation"].clone(), appliance.component_pid("shop"));
    let hostile = with_one_byte_changed(&Release::voyage("1.5.0").package(), appliance.scratch());
    let line = appliance.install_package(&hostile, &[]).complains_with(65);
    assert!(line.contains("a frame differs from its signed digest"), "{line}");
    constant.assert(&appliance);
    assert_runs(&appliance, &load, "1.0.0");
    load.finish().assert_clean();
    let after = (appliance.status()["runtime"]["generation"].clone(), appliance.component_pid("shop"));
    assert_eq!(before, after);
    assert!(!appliance.home().join("releases/1.5.0").exists());
    assert!(appliance.history().is_empty(), "nothing was tried");
    let left = std::fs::read_dir(appliance.home().join("staging")).expect("staging").count();
    assert_eq!(left, 0, "staging is empty");
}
