//! The power is cut at each named point of an update, each time that the update passes it: what starts again is the old
//! release or the new one, whole, and the next update works.
//!
//! Needs the feature `fault`. A power cut is the end of every process at once; what the page cache holds stays, so this shows
//! the order of the steps, and not the syncs.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use refit_updater::durable;

use crate::appliance::{Appliance, end_all, refit};
use crate::load::LoadOptions;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// More passages than one update has of any point: a loop that does not end is a mistake of the test.
const PASSAGES_MAX: u32 = 60;

fn fault_file(appliance: &Appliance) -> PathBuf {
    appliance.scratch().join("fault")
}

/// Asks for an abort at the `passage`-th time that `point` is passed from now on.
fn arm(appliance: &Appliance, point: &str, passage: u32) {
    // Beside, then renamed: the runtime never sees half of it.
    let beside = appliance.scratch().join("fault.new");
    fs::write(&beside, format!("{point} {passage}")).expect("write the fault file");
    fs::rename(&beside, fault_file(appliance)).expect("rename the fault file");
}

/// Returns whether the power was cut, and not the update completed.
fn wait_cut(appliance: &Appliance, install: &mut Child) -> bool {
    until(LIMIT, "the update is cut, or over", || {
        if !fault_file(appliance).exists() {
            return Some(true);
        }
        install.try_wait().expect("wait for the installation").map(|_| false)
    })
}

/// Ends every process of the appliance at once. The guard is halted first: it must not come to act on what it sees.
fn cut_power(appliance: &mut Appliance) {
    process::send(appliance.guard_pid(), Signal::SIGSTOP);
    end_all(appliance.home());
    appliance.kill_guard();
}

/// Asserts that the appliance runs one of the two releases, whole, and answers. Returns which.
fn assert_whole(appliance: &Appliance, point: &str, passage: u32) -> String {
    let version = until(LIMIT, &format!("the appliance is settled after the cut at {point} {passage}"), || {
        let status = appliance.try_status()?;
        let settled = status["update"].is_null() && status["release"]["state"] == "good";
        settled.then(|| status["release"]["version"].as_str().expect("a version").to_owned())
    });
    assert!(version == "1.0.0" || version == "1.1.0", "{version} after the cut at {point} {passage}");
    appliance.refit(&["verify"]).ends_with(0);
    let load = appliance.load(LoadOptions::default());
    load.wait_for_version(&version, LIMIT).expect("the shop answers");
    load.finish().assert_clean();
    version
}

/// Begins to install `release` with these options.
fn begin_install(appliance: &Appliance, release: &Release, options: &[&str]) -> Child {
    let mut install = refit();
    install.arg("install").arg(release.package()).args(options).arg("--home").arg(appliance.home());
    install.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start the installation")
}

/// Cuts the power, and starts the appliance anew.
fn cut_and_start(appliance: &mut Appliance, mut install: Child) {
    cut_power(appliance);
    install.kill().ok(); // it may have noticed by itself
    install.wait().expect("collect the installation");
    appliance.run_guard();
    appliance.wait_running();
}

/// Cuts the power at each passage of `point`, until an update passes it no more. Returns how often it was cut.
fn cut_at(point: &str) -> u32 {
    assert!(refit_updater::fault::POINTS.contains(&point), "{point} is no point");
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let next = Release::shop("1.1.0");
    for passage in 1..=PASSAGES_MAX {
        arm(&appliance, point, passage);
        let mut install = begin_install(&appliance, &next, &[]);
        if !wait_cut(&appliance, &mut install) {
            install.wait().expect("collect the installation");
            fs::remove_file(fault_file(&appliance)).ok(); // the update did not pass so often
            appliance.settled("1.1.0");
            return passage - 1;
        }
        cut_and_start(&mut appliance, install);
        let version = assert_whole(&appliance, point, passage);
        if version == "1.1.0" {
            appliance.refit(&["rollback"]).ends_with(0);
            eventually(LIMIT, "the rollback is settled", || appliance.status()["release"]["version"] == "1.0.0");
        }
    }
    panic!("an update passes {point} more than {PASSAGES_MAX} times");
}

/// The runtime dies between the commit and the news of it: whoever waits is told all the same.
#[test]
fn a_crash_after_the_commit_keeps_nobody_waiting() {
    let appliance = Appliance::new(&Release::bare("1.0.0"));
    let appliance = appliance.local(|text| text.replace("[update]", "[update]\nkeep = 2")).start();
    appliance.install(&Release::bare("1.1.0"), &[]).ends_with(0);
    arm(&appliance, "pruned", 1);
    let ran = appliance.install(&Release::bare("1.2.0"), &["--json"]).ends_with(0);
    assert!(!fault_file(&appliance).exists(), "the runtime was aborted");
    assert_eq!(ran.objects().last().expect("a last line")["ticket"]["state"], "done");
    appliance.settled("1.2.0");
    assert_eq!(appliance.history()[0]["outcome"], "done");
}

/// A repair that is cut leaves an appliance that serves, and less to repair.
#[test]
fn power_cut_while_the_release_that_runs_is_repaired() {
    // What the shop does without, for it is started with the damage, too.
    let names = ["share/one.txt", "share/two.txt", "share/three.txt"];
    let shop = names.iter().fold(Release::shop("1.0.0"), |shop, name| shop.file(name, &format!("this is {name}\n")));
    let mut appliance = Appliance::new(&shop).start();
    let release = appliance.home().join("releases/1.0.0");
    for passage in 1..=PASSAGES_MAX {
        for name in names {
            let path = release.join(name);
            durable::set_owner_write(path.parent().expect("a directory")).expect("make it writable");
            durable::remove_tree(&path).expect("remove a file");
        }
        arm(&appliance, "renamed", passage);
        let mut install = begin_install(&appliance, &shop, &["--allow-downgrade"]);
        if !wait_cut(&appliance, &mut install) {
            assert!(install.wait().expect("collect the installation").success());
            fs::remove_file(fault_file(&appliance)).ok(); // the repair did not pass so often
            appliance.settled("1.0.0");
            appliance.refit(&["verify"]).ends_with(0);
            assert!(passage > 3, "each of the three files was renamed");
            return;
        }
        cut_and_start(&mut appliance, install);
        appliance.settled("1.0.0");
        appliance.install(&shop, &["--allow-downgrade"]).ends_with(0);
        assert_whole(&appliance, "renamed", passage);
    }
    panic!("a repair passes more than {PASSAGES_MAX} renames");
}

macro_rules! cuts {
    ($($name:ident: $point:literal,)*) => {
        $(#[test]
        fn $name() {
            assert!(cut_at($point) > 0, "no update passes {}", $point);
        })*

        #[test]
        fn every_point_of_an_update_is_cut_at() {
            let cut = [$($point),*];
            // Nothing is pruned by a first update; the updater's own tests cut there.
            let left: Vec<&&str> =
                refit_updater::fault::POINTS.iter().filter(|point| !cut.contains(point)).collect();
            assert_eq!(left, [&"pruned"]);
        }
    };
}

cuts! {
    power_cut_when_a_tree_is_unpacked: "unpacked",
    power_cut_when_something_is_renamed: "renamed",
    power_cut_when_a_package_is_staged: "staged",
    power_cut_when_a_file_is_ready_to_be_replaced: "temp_synced",
    power_cut_when_a_file_was_replaced: "switched",
    power_cut_when_trust_was_saved: "trust_saved",
    power_cut_when_a_release_was_admitted: "admitted",
    power_cut_when_a_configuration_was_merged: "config_merged",
}
