//! How the appliance is as a whole: in the status, for monitors, on the listener and in the figures.

use serde_json::{Value, json};

use crate::appliance::{Appliance, text};
use crate::http::Request;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

const IDLE: &str = "command = [\"sleep\", \"3600\"]\nready = \"exec\"";

/// Returns what `status` says of the whole.
fn health(appliance: &Appliance) -> Value {
    appliance.status()["health"].clone()
}

/// Returns the line of `status --check`, which ends with `code`.
fn check(appliance: &Appliance, code: i32) -> String {
    appliance.refit(&["status", "--check"]).ends_with(code).stdout.trim().to_owned()
}

fn figure(appliance: &Appliance) -> String {
    let text = Request::new(&appliance.socket(), "GET", "/metrics").send().text();
    let line = text.lines().find(|line| line.starts_with("refit_health ")).expect("the figure");
    line.to_owned()
}

#[test]
fn the_whole_is_as_bad_as_its_worst_part() {
    let release = Release::shop("1.0.0").component("helper", IDLE);
    let mut appliance = Appliance::new(&release).start();
    assert_eq!(health(&appliance), json!({ "state": "well", "reasons": [] }));
    assert_eq!((check(&appliance, 0).as_str(), figure(&appliance).as_str()), ("well", "refit_health 0"));

    appliance.refit(&["component", "stop", "helper"]).ends_with(0);
    assert_eq!(health(&appliance), json!({ "state": "degraded", "reasons": ["component helper is stopped"] }));
    assert_eq!(check(&appliance, 1), "degraded: component helper is stopped");
    assert_eq!(figure(&appliance), "refit_health 1");
    appliance.refit(&["status"]).ends_with(0);
    let told = appliance.refit(&["status", "--check", "--json"]).ends_with(1).objects().remove(0);
    assert_eq!(told["health"]["state"], "degraded", "{told}");

    // The only component that anybody is served by.
    appliance.refit(&["component", "stop", "shop"]).ends_with(0);
    assert!(check(&appliance, 2).starts_with("down: no component that has a listener serves; "));
    assert_eq!(figure(&appliance), "refit_health 2");
    assert!(appliance.refit(&["status"]).ends_with(0).stdout.contains("down: no component that has a listener serves"));
    appliance.refit(&["component", "start", "shop"]).ends_with(0);
    appliance.refit(&["component", "start", "helper"]).ends_with(0);
    assert_eq!(check(&appliance, 0), "well");

    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    assert!(check(&appliance, 2).starts_with("down: the site is Idle; "));
    appliance.stop();
    appliance.refit(&["status", "--check"]).complains_with(69);
}

#[test]
fn one_that_crashes_again_and_again_is_seen_between_two_crashes() {
    let words = "command = [\"sh\", \"-c\", \"sleep 0.3\"]\nready = \"exec\"\n\
                 restart = { policy = \"always\", backoff = \"10ms..10ms\", limit = \"1000/1m\" }";
    let appliance = Appliance::new(&Release::shop("1.0.0").component("weak", words)).start();
    eventually(LIMIT, "the crashes are seen while it runs", || {
        let status = appliance.status();
        let weak = crate::appliance::component(&status, "weak");
        let reasons = status["health"]["reasons"].to_string();
        weak["state"] == "running" && reasons.contains("component weak ended by itself")
    });
    assert!(text(&health(&appliance)["state"]) != "well");
}
