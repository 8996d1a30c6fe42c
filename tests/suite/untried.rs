//! Releases that have not proved good here, chosen while nothing runs: each is tried at the next start, and what was good before comes back.

use std::fs;

use refit_updater::durable;

use crate::appliance::Appliance;
use crate::release::Release;
use crate::wait::LIMIT;

/// Returns an appliance at rest: 1.0.0 is good, 1.1.0 is the current one, and 1.3.0 has failed.
fn with_a_failed_release() -> Appliance {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.install(&Release::crashing("1.3.0"), &[]).ends_with(70);
    appliance.settled("1.1.0");
    appliance.stop();
    appliance
}

/// Starts an appliance that is to run `version` in the end.
fn starts(appliance: &mut Appliance, version: &str) {
    appliance.run_guard();
    appliance.wait_running();
    appliance.settled(version);
}

fn remove_program(appliance: &Appliance, version: &str) {
    let dir = appliance.home().join("releases").join(version);
    durable::make_dirs_writable(&dir).expect("made writable");
    fs::remove_file(dir.join("bin/shop")).expect("removed");
}

/// Asserts that 1.3.0 was tried last, and failed.
fn assert_tried(appliance: &Appliance, from: &str) {
    let newest = &appliance.history()[0];
    assert_eq!((&newest["from"], &newest["to"]), (&from.into(), &"1.3.0".into()), "{newest}");
    assert_eq!(newest["outcome"], "rolled-back", "{newest}");
    let list = appliance.refit(&["releases", "--json"]).ends_with(0).objects().remove(0);
    let found = list["releases"].as_array().expect("a list").iter().find(|release| release["version"] == "1.3.0");
    assert_eq!(found.expect("it is there")["state"], "failed", "{list}");
}

#[test]
fn a_release_that_failed_is_tried_again_and_the_good_one_comes_back() {
    let mut appliance = with_a_failed_release();
    for command in ["install", "rollback", "recover"] {
        let ran = appliance.refit(&[command, "1.3.0"]).ends_with(0);
        assert!(ran.stdout.contains("is tried next"), "{command}: {}", ran.stdout);
        assert!(ran.stdout.contains("if it fails, release 1.1.0 runs again"), "{command}: {}", ran.stdout);
        starts(&mut appliance, "1.1.0");
        assert_tried(&appliance, "1.1.0");
        appliance.stop();
    }
    // Chosen, and given up before it was started.
    appliance.refit(&["install", "1.3.0"]).ends_with(0);
    let ran = appliance.refit(&["recover", "1.1.0"]).ends_with(0);
    assert!(ran.stdout.contains("release 1.1.0 is whole and runs next"), "{}", ran.stdout);
    starts(&mut appliance, "1.1.0");
    appliance.stop();
    // A release that was good, and has failed since, is none that proved good.
    let journal = appliance.home().join("state.json");
    let text = fs::read_to_string(&journal).expect("read");
    fs::write(&journal, text.replace("\"good\": [", "\"good\": [\"1.3.0\",")).expect("written");
    let ran = appliance.refit(&["rollback", "1.3.0"]).ends_with(0);
    assert!(ran.stdout.contains("is tried next"), "{}", ran.stdout);
    starts(&mut appliance, "1.1.0");
    assert_tried(&appliance, "1.1.0");
}

#[test]
fn the_way_back_of_a_trial_leads_to_a_release_that_is_whole() {
    let mut appliance = with_a_failed_release();
    remove_program(&appliance, "1.1.0");
    let ran = appliance.refit(&["recover", "1.3.0"]).ends_with(0);
    assert!(ran.stdout.contains("if it fails, release 1.0.0 runs again"), "{}", ran.stdout);
    starts(&mut appliance, "1.0.0");
    assert_tried(&appliance, "1.0.0");
}

#[test]
fn where_nothing_is_left_to_go_back_to_it_runs_as_a_first_release_does() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::crashing("1.3.0"), &[]).ends_with(70);
    appliance.settled("1.0.0");
    appliance.stop();
    remove_program(&appliance, "1.0.0");
    let ran = appliance.refit(&["recover", "1.3.0"]).ends_with(0);
    assert!(ran.stdout.contains("without a trial"), "{}", ran.stdout);
    appliance.run_guard();
    assert_ne!(appliance.wait_guard(LIMIT).code(), Some(0), "it ends, as a first start does");
    assert!(!appliance.log().contains("going back"), "{}", appliance.log());
    // The way out: the package of the good one, with nothing but the failed one beside.
    appliance.install(&Release::shop("1.0.0"), &["--allow-downgrade"]).ends_with(0);
    starts(&mut appliance, "1.0.0");
    appliance.refit(&["verify"]).ends_with(0);
}

#[test]
fn without_a_journal_what_never_ended_well_is_tried_too() {
    let mut appliance = with_a_failed_release();
    for name in ["state.json", "state.json.copy"] {
        fs::remove_file(appliance.home().join(name)).expect("removed");
    }
    let ran = appliance.refit(&["recover", "1.3.0"]).ends_with(0);
    assert!(ran.stdout.contains("if it fails, release 1.1.0 runs again"), "{}", ran.stdout);
    starts(&mut appliance, "1.1.0");
    assert_tried(&appliance, "1.1.0");
}
