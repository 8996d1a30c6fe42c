//! The hostile corpus without an appliance: what `refit` refuses, this crate refuses by itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::AtomicBool;

use refit_base::{Exit, Reported};
use refit_fixtures::hostile::{Workshop, corpus};
use refit_fixtures_vendor::{Home, Vendor, chain, now, snapshot};
use refit_updater::durable;
use refit_updater::package::Package;
use refit_updater::receive::{Policy, ReceiveError, Receiver};
use refit_updater::release::Store;
use refit_updater::trust::{Expired, Trust};
use tempfile::TempDir;

#[test]
fn every_package_of_the_corpus_is_refused() {
    let vendor = Vendor::new();
    let first = Workshop::new(&vendor.package("1.0.0"), 5);
    let workshop = Workshop::new(&vendor.package("1.1.0"), 6);
    let dir = TempDir::new().unwrap();
    let store = Store::init(dir.path()).unwrap();
    let trust = Trust::install_root(dir.path(), &first.root()).unwrap();
    let mut policy = Policy {
        appliance: Some("shop".to_owned()),
        arch: "x86_64".to_owned(),
        current: None,
        allow_downgrade: false,
        expired: Expired::Refuse,
        now: now(),
    };
    let take = |package: &[u8], policy: &Policy| -> Result<_, ReceiveError> {
        let cancel = AtomicBool::new(false);
        Receiver { store: &store, trust: &trust, policy, cancel: &cancel, room: None }.receive(package, &mut |_| {})
    };
    let received = take(&first.honest(), &policy).unwrap();
    policy.current = Some(received.manifest.version().clone());
    store.admit(received, &[]).unwrap();
    let before = snapshot(dir.path());
    let mut wrong = Vec::new();
    for attack in corpus() {
        match take(&attack.package(&workshop), &policy) {
            Ok(received) => {
                fs::remove_dir_all(received.dir).ok();
                wrong.push(format!("{} was not refused", attack.name));
            }
            Err(error) => {
                let message = chain(&error);
                let missing = attack.says.iter().find(|word| !message.contains(word.as_str()));
                if let Some(word) = missing {
                    wrong.push(format!("{}: {word:?} is not in: {message:.600}", attack.name));
                }
                if error.exit() != Exit::Refused {
                    wrong.push(format!("{}: {:?}: {message:.600}", attack.name, error.exit()));
                }
            }
        }
        if snapshot(dir.path()) != before {
            wrong.push(format!("{} left something", attack.name));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(fs::read_dir(store.staging_dir()).unwrap().count(), 0);
    take(&workshop.honest(), &policy).unwrap();
}

/// A release of the time before hooks were refused: it runs, and is repaired from its own package.
#[test]
fn a_release_with_hooks_that_is_installed_is_received_again_and_no_other() {
    let vendor = Vendor::new();
    let workshop = Workshop::new(&vendor.package("1.0.0"), 1);
    let with_hook = |name: &str| {
        workshop.with_release(|release| {
            release.add_directory("hooks");
            release.add_empty(name);
        })
    };
    let (package, other) = (with_hook("hooks/migrate"), with_hook("hooks/another"));
    let mut home = Home::new(&vendor);
    home.trust = Trust::reset(home.dir.path(), &workshop.root()).unwrap();
    let refuse = |home: &Home, package: &[u8]| {
        let error = home.receive(package).unwrap_err();
        assert_eq!((error.exit(), error.code()), (Exit::Refused, "hooks_not_run"));
        assert!(error.to_string().contains("hooks/"), "{error}");
    };
    refuse(&home, &package);
    let release = home.install(&workshop.honest());
    refuse(&home, &package);

    durable::make_dirs_writable(&release.dir).unwrap();
    fs::create_dir(release.dir.join("hooks")).unwrap();
    durable::write_new(&release.dir.join("hooks/migrate"), b"", 0o444).unwrap();
    fs::set_permissions(release.dir.join("hooks"), Permissions::from_mode(0o555)).unwrap();
    let manifest = Package::open(&package[..]).unwrap().manifest().to_vec();
    durable::replace_with_mode(&release.dir.join(".refit"), "manifest.json", &manifest, 0o444).unwrap();
    let installed = home.store.release(&release.version).unwrap();
    assert_eq!(installed.manifest.hook(), Some("hooks/migrate"));
    home.receive(&package).unwrap();
    refuse(&home, &other);
}
