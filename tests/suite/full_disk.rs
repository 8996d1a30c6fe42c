//! A disk that a release on trial fills: the previous release serves, at once and after every start, while it is full.
//!
//! The home lies on a small file system in memory, which is mounted in a child of this test: root may mount, and in a user
//! namespace of its own everybody, where the machine allows it.

use std::fs::{self, OpenOptions};
use std::io::Write;

use refit_updater::spare::{SPARE_BYTES, SPARE_FILE};

use crate::appliance::{Appliance, text};
use crate::load::LoadOptions;
use crate::mounting::{assert_may_mount, assert_passes_where_it_may_mount, end_at_once, onto_a_small_disk, unmount};
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// Takes every byte that is left.
fn fill(appliance: &Appliance) {
    let path = appliance.home().join("data/more");
    let mut file = OpenOptions::new().append(true).create(true).open(path).expect("open");
    while file.write_all(&[1; 1 << 16]).is_ok() {}
    while file.write_all(&[1]).is_ok() {}
}

/// Ends every process at once, and starts anew.
fn cut_power(appliance: &mut Appliance) {
    end_at_once(appliance);
    fill(appliance);
    appliance.run_guard();
    appliance.wait_running();
}

fn assert_serves(appliance: &Appliance, version: &str) {
    appliance.settled(version);
    let load = appliance.load(LoadOptions::default());
    load.wait_for_version(version, LIMIT).expect("the shop answers");
    load.finish().assert_clean();
}

/// Not a test by itself: what the child of the next one does.
#[test]
#[ignore = "run by the next test, where it may mount"]
fn child_serves_from_a_full_disk() {
    assert_may_mount();
    let appliance = Appliance::new(&Release::shop("1.0.0"));
    onto_a_small_disk(appliance.home());
    let mut appliance = appliance.start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");

    let fills = "command = [\"sh\", \"-c\", \"cat /dev/zero > $REFIT_DATA/full; exit 3\"]";
    let line = appliance.install(&Release::shop("1.2.0").component("filler", fills), &[]).complains_with(70);
    assert!(line.contains("rolled back to 1.1.0"), "{line}");
    fill(&appliance);
    assert_serves(&appliance, "1.1.0");
    let newest = appliance.history().first().expect("an entry").clone();
    assert_eq!((text(&newest["outcome"]), text(&newest["to"])), ("rolled-back".into(), "1.2.0".into()));
    cut_power(&mut appliance);
    assert_serves(&appliance, "1.1.0");

    appliance.refit(&["rollback"]).ends_with(0);
    fill(&appliance);
    assert_serves(&appliance, "1.0.0");
    cut_power(&mut appliance);
    assert_serves(&appliance, "1.0.0");

    for name in ["full", "more"] {
        fs::remove_file(appliance.home().join("data").join(name)).expect("make room");
    }
    appliance.install(&Release::shop("1.3.0"), &[]).ends_with(0);
    assert_serves(&appliance, "1.3.0");
    eventually(LIMIT, "blocks are put aside again", || {
        fs::metadata(appliance.home().join(SPARE_FILE)).is_ok_and(|spare| spare.len() == SPARE_BYTES)
    });
    end_at_once(&mut appliance);
    unmount(appliance.home());
}

#[test]
fn a_release_that_fills_the_disk_on_trial_ends_in_the_previous_one() {
    assert_passes_where_it_may_mount("full_disk::child_serves_from_a_full_disk");
}
