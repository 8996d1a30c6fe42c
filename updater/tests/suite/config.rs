//! The live configuration across an update and back.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use refit_fixtures_vendor::{Home, Vendor, options, put, snapshot};
use refit_updater::config::{Existing, Outcome, merge_config};
use semver::Version;

#[test]
fn edits_survive_an_update_and_a_rollback_finds_its_own() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let [one, two] = ["1.0.0", "1.1.0"].map(|version| Version::parse(version).unwrap());
    let text = |colour: &str, size: u32| format!("colour = {colour}\n\n[a]\nx = 1\n\n[b]\ny = 2\n\nsize = {size}\n");

    let tree = vendor.tree("1.0.0");
    put(&tree, "config/shop.conf", text("red", 1).as_bytes(), 0o640);
    put(&tree, "config/plain.conf", b"plain 1", 0o644);
    put(&tree, "config/sub/clash.conf", b"clash 1", 0o644);
    put(&tree, "config/old.conf", b"old", 0o644);
    home.install(&vendor.pack(&tree, &options()));
    let report = merge_config(&home.store, None, &one, Existing::Replace).unwrap();
    assert!(report.files.iter().all(|file| file.outcome == Outcome::Added), "{report:?}");
    let live = home.store.config_dir(&one);
    assert_eq!(fs::metadata(live.join("shop.conf")).unwrap().permissions().mode() & 0o777, 0o640);

    put(&live, "shop.conf", text("blue", 1).as_bytes(), 0o600);
    put(&live, "sub/clash.conf", b"clash by the admin", 0o644);
    put(&live, "own.conf", b"the admin's own", 0o644);
    let before = snapshot(&live);

    let tree = vendor.tree("1.1.0");
    put(&tree, "config/shop.conf", text("red", 2).as_bytes(), 0o640);
    put(&tree, "config/plain.conf", b"plain 2", 0o644);
    put(&tree, "config/sub/clash.conf", b"clash 2", 0o644);
    put(&tree, "config/fresh.conf", b"fresh", 0o644);
    home.install(&vendor.pack(&tree, &options()));
    let report = merge_config(&home.store, Some(&one), &two, Existing::Replace).unwrap();
    let found: Vec<_> = report.files.iter().map(|file| (file.path.as_str(), file.outcome.clone())).collect();
    let clash = Outcome::Conflict { new_default: "sub/clash.conf.new".to_owned() };
    assert_eq!(
        found,
        [
            ("fresh.conf", Outcome::Added),
            ("old.conf", Outcome::Removed),
            ("own.conf", Outcome::KeptAdmin),
            ("plain.conf", Outcome::Updated),
            ("shop.conf", Outcome::Merged),
            ("sub/clash.conf", clash),
        ]
    );
    assert_eq!(report.conflicts().count(), 1);
    let next = home.store.config_dir(&two);
    let read = |name: &str| fs::read_to_string(next.join(name)).unwrap();
    assert_eq!(read("shop.conf"), text("blue", 2));
    assert_eq!(read("plain.conf"), "plain 2");
    assert_eq!((read("sub/clash.conf"), read("sub/clash.conf.new")), ("clash by the admin".into(), "clash 2".into()));
    assert_eq!((read("own.conf"), read("fresh.conf")), ("the admin's own".into(), "fresh".into()));
    assert!(!next.join("old.conf").exists());
    assert_eq!(fs::metadata(next.join("shop.conf")).unwrap().permissions().mode() & 0o777, 0o600);

    // Back to 1.0.0: as it was. Forward again: merged anew.
    put(&next, "plain.conf", b"edited later", 0o644);
    assert!(merge_config(&home.store, Some(&two), &one, Existing::Keep).unwrap().kept_existing);
    assert_eq!(snapshot(&live), before);
    merge_config(&home.store, Some(&one), &two, Existing::Replace).unwrap();
    assert_eq!(read("plain.conf"), "plain 2");
    assert_eq!(fs::read_dir(home.store.staging_dir()).unwrap().count(), 0);
}
