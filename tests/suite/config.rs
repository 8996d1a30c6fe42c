//! The live configuration: what an admin wrote survives updates, and a rollback finds the old one as it was.

use std::fs;
use std::path::PathBuf;

use crate::appliance::Appliance;
use crate::http::{At, Request};
use crate::release::Release;

fn live(appliance: &Appliance, version: &str) -> PathBuf {
    appliance.home().join("config").join(version).join("shop.toml")
}

fn read(appliance: &Appliance, version: &str) -> String {
    fs::read_to_string(live(appliance, version)).expect("read the live configuration")
}

fn first_page(appliance: &Appliance) -> String {
    Request::new(&At::Tcp(appliance.address("http")), "GET", "/").send().text()
}

#[test]
fn an_admins_edit_is_merged_into_the_next_release_and_a_rollback_finds_the_old_file() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    assert!(first_page(&appliance).contains("Welcome to 1.0.0."));
    let edited = read(&appliance, "1.0.0").replace("unit = \"m\"", "unit = \"ft\" # as my customers want it");
    fs::write(live(&appliance, "1.0.0"), &edited).expect("edit it");

    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    let merged = read(&appliance, "1.1.0");
    assert!(merged.contains("unit = \"ft\" # as my customers want it"), "the admin's line: {merged}");
    assert!(merged.contains("Welcome to 1.1.0."), "the vendor's line: {merged}");
    assert!(first_page(&appliance).contains("Welcome to 1.1.0."));
    assert_eq!(read(&appliance, "1.0.0"), edited, "the old file is untouched");

    let later = merged.replace("unit = \"ft\"", "unit = \"yd\"");
    fs::write(live(&appliance, "1.1.0"), later).expect("edit it");
    appliance.refit(&["rollback"]).ends_with(0);
    assert_eq!(read(&appliance, "1.0.0"), edited, "as it was");
    assert!(first_page(&appliance).contains("Welcome to 1.0.0."));
}

#[test]
fn an_edit_of_the_same_line_wins_over_the_vendors() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let edited = read(&appliance, "1.0.0").replace("Welcome to 1.0.0.", "Ahoy.");
    fs::write(live(&appliance, "1.0.0"), edited).expect("edit it");
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    let merged = read(&appliance, "1.1.0");
    assert!(merged.contains("greeting = \"Ahoy.\"") && !merged.contains("<<<<"), "{merged}");
    assert!(first_page(&appliance).contains("Ahoy."));
}

#[test]
fn a_failed_update_leaves_the_live_configuration_alone() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let edited = read(&appliance, "1.0.0").replace("unit = \"m\"", "unit = \"ft\"");
    fs::write(live(&appliance, "1.0.0"), &edited).expect("edit it");
    let bad = Release::shop_with("1.2.0", ", \"--fault\", \"exit-at-start\"");
    appliance.install(&bad, &[]).complains_with(70);
    appliance.settled("1.0.0");
    assert_eq!(read(&appliance, "1.0.0"), edited);
    // And the next good one gets the edit all the same.
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    assert!(read(&appliance, "1.1.0").contains("unit = \"ft\""));
}

#[test]
fn the_machines_own_settings_hold_for_every_release() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let listeners = appliance.status()["listeners"].clone();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    let status = appliance.settled("1.1.0");
    assert_eq!(status["listeners"], listeners, "local.toml names the addresses, whatever the release says");
    assert!(listeners.to_string().contains(&appliance.address("http").to_string()), "{listeners}");
}
