//! A process that dies at any of the named points leaves a home that the next one can go on with.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::AtomicBool;

use refit_fixtures::tools::{assert_passed, child};
use refit_fixtures_vendor::{Home, Vendor, now, put};
use refit_updater::config::{Existing, merge_config};
use refit_updater::fault::POINTS;
use refit_updater::receive::{Policy, Receiver};
use refit_updater::release::Store;
use refit_updater::trust::{Expired, Trust};
use semver::Version;

/// Names, to the child, the home in which it is to work.
const HOME_VARIABLE: &str = "SUITE_CRASH_HOME";

/// Not a test by itself: what the child of the test below does.
#[test]
#[ignore = "run by the test below, until a point at which it dies"]
fn child_updates_a_home() {
    let home = PathBuf::from(std::env::var_os(HOME_VARIABLE).expect("its parent names the home"));
    let (store, trust) = (Store::open(&home).unwrap(), Trust::open(&home).unwrap());
    store.empty_staging().unwrap();
    let mut before: Option<Version> = None;
    for version in ["1.0.0", "1.1.0"] {
        let package = std::fs::read(home.join("data").join(version)).unwrap();
        let policy = Policy {
            appliance: None,
            arch: "x86_64".to_owned(),
            current: before.clone(),
            allow_downgrade: false,
            expired: Expired::Warn,
            now: now(),
        };
        let cancel = AtomicBool::new(false);
        let receiver = Receiver { store: &store, trust: &trust, policy: &policy, cancel: &cancel, room: None };
        let received = receiver.receive(&package[..], &mut |_| {}).unwrap();
        let release = store.admit(received, &[]).unwrap();
        merge_config(&store, before.as_ref(), &release.version, Existing::Replace).unwrap();
        store.point_current(&release.version).unwrap();
        before = Some(release.version);
    }
    store.remove(&Version::new(1, 0, 0)).unwrap();
}

fn run_child(home: &Path, point: Option<&str>) -> Output {
    let mut child = child("crash::child_updates_a_home");
    child.env(HOME_VARIABLE, home).env_remove("REFIT_FAULT");
    if let Some(point) = point {
        child.env("REFIT_FAULT", point);
    }
    child.output().unwrap()
}

#[test]
fn a_home_survives_every_point() {
    let vendor = Vendor::new();
    let packages = ["1.0.0", "1.1.0"].map(|version| (version, vendor.package(version)));
    for point in POINTS {
        let home = Home::new(&vendor);
        for (version, package) in &packages {
            put(&home.dir.path().join("data"), version, package, 0o644);
        }
        let status = run_child(home.dir.path(), Some(point)).status;
        assert_eq!(status.signal(), Some(6), "the child did not come to {point}");
        for release in home.store.releases().unwrap() {
            home.assert_whole(&release);
        }
        if let Some(current) = home.store.current().unwrap() {
            home.store.release(&current).unwrap();
        }
        assert_passed(&run_child(home.dir.path(), None));
        let version = Version::new(1, 1, 0);
        assert_eq!(home.store.versions().unwrap(), std::slice::from_ref(&version));
        home.assert_whole(&home.store.release(&version).unwrap());
        assert!(home.store.config_dir(&version).join("shop.conf").is_file());
    }
}
