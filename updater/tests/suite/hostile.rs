//! The hostile corpus without an appliance: what `refit` refuses, this crate refuses by itself.

use std::fs;
use std::sync::atomic::AtomicBool;

use refit_base::{Exit, Reported};
use refit_fixtures::hostile::{Workshop, corpus};
use refit_fixtures_vendor::{Vendor, chain, now, snapshot};
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
        Receiver { store: &store, trust: &trust, policy, cancel: &cancel }.receive(package, &mut |_| {})
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
