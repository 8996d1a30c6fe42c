//! Homes of which a part is a mount of its own, and homes from which nothing may be executed.
//!
//! The mounts are made in a child of the test: root may mount, and in a user namespace of its own everybody, where the machine
//! allows it.

use std::fs;
use std::path::Path;

use crate::appliance::{Appliance, Ran, refit};
use crate::mounting::{assert_may_mount, assert_passes_where_it_may_mount, bind, mount, onto_a_small_disk, unmount};
use crate::release::{Release, Vendor};

/// Takes an appliance whose directories `parts` were made mounts by `divide` through updates, an edit and ways back.
fn lives_on(parts: &[&str], divide: fn(&Path)) {
    let release = |version: &str| Release::shop(version).file("config/colours.conf", "red\ngreen\nblue\n");
    let appliance = Appliance::new(&release("1.0.0"));
    for part in parts {
        divide(&appliance.home().join(part));
    }
    let mut appliance = appliance.start();
    let colours = |version: &str| appliance_file(appliance.home(), version);
    fs::write(colours("1.0.0"), "red\ngreen\nblue\nblack\n").expect("an edit");
    for version in ["1.1.0", "1.2.0"] {
        appliance.install(&release(version), &[]).ends_with(0);
        assert_eq!(fs::read_to_string(colours(version)).expect("read"), "red\ngreen\nblue\nblack\n", "{parts:?}");
    }
    appliance.refit(&["rollback"]).ends_with(0);
    let exits = "command = [\"sh\", \"-c\", \"exit 3\"]";
    let line = appliance.install(&release("1.3.0").component("broken", exits), &[]).complains_with(70);
    assert!(line.contains("rolled back to 1.1.0"), "{line}");
    // What a kept release lost comes from its package, beside the others.
    let damaged = appliance.home().join("releases/1.2.0/lib/prices.txt");
    refit_updater::durable::make_dirs_writable(&appliance.home().join("releases/1.2.0")).expect("writable");
    fs::remove_file(&damaged).expect("damaged");
    appliance.install(&release("1.2.0"), &[]).ends_with(0);
    appliance.settled("1.2.0");
    assert!(damaged.exists(), "{parts:?}");
    appliance.stop();
    appliance.run_guard();
    appliance.wait_running();
    for left in ["releases/.staging", "config/.staging"] {
        assert!(!appliance.home().join(left).exists(), "{left} of {parts:?}");
    }
    assert_eq!(fs::read_dir(appliance.home().join("staging")).expect("read").count(), 0, "{parts:?}");
    appliance.stop();
    for part in parts {
        unmount(&appliance.home().join(part));
    }
}

fn appliance_file(home: &Path, version: &str) -> std::path::PathBuf {
    home.join("config").join(version).join("colours.conf")
}

/// Not a test by itself: what the child of the next one does.
#[test]
#[ignore = "run by the next test, where it may mount"]
fn child_updates_across_mounts() {
    assert_may_mount();
    lives_on(&["releases"], bind);
    lives_on(&["config"], onto_a_small_disk);
    lives_on(&["staging"], onto_a_small_disk);
    lives_on(&["releases", "config", "staging", "trust", "data"], bind);
}

#[test]
fn an_update_needs_no_rename_from_one_mount_to_another() {
    assert_passes_where_it_may_mount("mounts::child_updates_across_mounts");
}

/// Not a test by itself: what the child of the next one does.
#[test]
#[ignore = "run by the next test, where it may mount"]
fn child_finds_that_nothing_may_be_executed() {
    assert_may_mount();
    let dir = tempfile::tempdir().expect("a directory");
    mount(&["-t", "tmpfs", "-o", "size=256m,noexec", "tmpfs"], dir.path());
    let home = dir.path().join("home");
    let vendor = Vendor::get();
    let brings = || Release::shop("1.0.0");
    let mut init = refit();
    init.arg("init").arg(brings().package()).arg("--root").arg(vendor.root()).arg("--home").arg(&home);
    let line = Ran::of(&mut init).complains_with(78);
    assert!(line.contains("noexec") && line.contains("bin/"), "{line}");
    assert!(!home.exists(), "nothing is left");
    unmount(dir.path());

    // Later: a start is refused, and so is an update, whose predecessor goes on.
    let appliance = Appliance::new(&Release::bare("1.0.0").component("idle", "command = [\"sleep\", \"600\"]"));
    bind(appliance.home());
    mount(&["-o", "remount,bind,noexec"], appliance.home());
    let mut appliance = appliance.start();
    let line = appliance.install(&Release::shop("1.1.0"), &[]).complains_with(70);
    assert!(line.contains("noexec"), "{line}");
    appliance.settled("1.0.0");
    assert_eq!(appliance.history()[0]["cause"], "machine", "the release is as good as any");
    appliance.stop();
    mount(&["-o", "remount,bind,exec"], appliance.home());
    appliance.run_guard();
    appliance.wait_running();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.stop();
    mount(&["-o", "remount,bind,noexec"], appliance.home());
    let line = Ran::of(refit().args(["run", "--with-parent", "--home"]).arg(appliance.home())).complains_with(78);
    assert!(line.contains("noexec"), "{line}");
    unmount(appliance.home());
}

#[test]
fn a_home_from_which_nothing_may_be_executed_is_refused() {
    assert_passes_where_it_may_mount("mounts::child_finds_that_nothing_may_be_executed");
}
