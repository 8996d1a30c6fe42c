//! Updates that were cut short, and an appliance at rest since: the update is over, and its release is tried again when it is chosen.

use std::fs;

use nix::sys::signal::Signal;

use crate::appliance::Appliance;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// Starts an appliance that is to run `version` in the end.
fn starts(appliance: &mut Appliance, version: &str) {
    appliance.run_guard();
    appliance.wait_running();
    appliance.settled(version);
}

#[test]
fn a_release_whose_trial_was_cut_short_is_tried_again() {
    let appliance = Appliance::new(&Release::shop("1.0.0"));
    let mut appliance = appliance.local(|text| text.replace("probation = \"300ms\"", "probation = \"10m\"")).start();
    // The edit is made before the trial, and goes along into the release.
    let edited = appliance.home().join("config/1.0.0/shop.toml");
    let text = fs::read_to_string(&edited).expect("read").replace("unit = \"m\"", "unit = \"mile\"");
    fs::write(&edited, text).expect("edited");
    let digest = {
        let ran = appliance.install(&Release::shop("1.1.0"), &["--stage-only", "--json"]).ends_with(0);
        ran.objects().last().expect("a line")["data"]["digest"].as_str().expect("a digest").to_owned()
    };
    let body = serde_json::json!({ "digest": digest });
    let asked = crate::http::Request::new(&appliance.socket(), "POST", "/api/v1/updates").json(&body).send();
    assert_eq!(asked.status, 202, "{asked:?}");
    eventually(LIMIT, "1.1.0 is on trial", || {
        let status = appliance.try_status().unwrap_or_default();
        status["release"]["version"] == "1.1.0" && status["bus"]["state"] == "Running"
    });
    let runtime = appliance.runtime_pid();
    appliance.kill_guard();
    process::send(runtime, Signal::SIGKILL);
    appliance.set_local(|text| text.replace("probation = \"10m\"", "probation = \"300ms\""));
    let ran = appliance.refit(&["install", "1.1.0"]).ends_with(0);
    assert!(ran.stdout.contains("is tried next"), "{}", ran.stdout);
    starts(&mut appliance, "1.1.0");
    let history = appliance.history();
    assert_eq!((&history[0]["to"], &history[0]["outcome"]), (&"1.1.0".into(), &"done".into()), "{history:?}");
    let config = fs::read_to_string(appliance.home().join("config/1.1.0/shop.toml")).expect("read");
    assert!(config.contains("unit = \"mile\""), "{config}");
}

#[test]
fn an_update_that_was_cut_short_is_over_for_the_commands_at_rest() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    appliance.stop();
    // One that waits for its trial is not removed, and the command says how it is given up.
    appliance.install(&Release::shop("1.2.0"), &[]).ends_with(0);
    for version in ["1.1.0", "1.2.0"] {
        let line = appliance.refit(&["releases", "remove", version]).complains_with(70);
        assert!(
            line.contains("1.1.0 -> 1.2.0, which the next start tries") && line.contains("`refit recover VERSION`"),
            "{line}"
        );
    }
    assert!(appliance.refit(&["verify"]).ends_with(0).stdout.contains("release 1.2.0"));
    // Cut short: the start of the trial is in the journal, and nothing runs.
    let journal = appliance.home().join("state.json");
    let text = fs::read_to_string(&journal).expect("read").replace("\"starts_left\": 1", "\"starts_left\": 0");
    fs::write(&journal, &text).expect("written");
    assert!(appliance.refit(&["verify"]).ends_with(0).stdout.contains("release 1.1.0"), "it runs next");
    let list = appliance.refit(&["recover", "--json"]).ends_with(0).objects().remove(0);
    let current: Vec<_> =
        list["releases"].as_array().expect("a list").iter().filter(|one| one["current"] == true).collect();
    assert_eq!(current[0]["version"], "1.1.0", "{list}");
    let line = appliance.refit(&["releases", "remove", "1.1.0"]).complains_with(70);
    assert!(!line.contains("wait"), "{line}");
    appliance.refit(&["releases", "remove", "1.2.0"]).ends_with(0);
    assert!(!appliance.home().join("releases/1.2.0").exists());
    starts(&mut appliance, "1.1.0");
    let newest = &appliance.history()[0];
    assert_eq!((&newest["to"], &newest["outcome"]), (&"1.2.0".into(), &"rolled-back".into()), "{newest}");
}
