//! Owner, mode, access list and extended attributes of a configuration are edits as its content is: going back and forward, and orphaned.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use refit_fixtures::tools::as_root;
use refit_fixtures_vendor::{Home, Vendor, options, put};
use refit_updater::config::{Existing, MergeReport, Outcome, merge_config, remove_orphans};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use semver::Version;

const ONE: Version = Version::new(1, 0, 0);
const TWO: Version = Version::new(1, 1, 0);

/// Edits the configuration in a directory.
type Edit = fn(&Path);

/// Returns a home with both releases, of which the second has its configuration from the first.
fn forward(vendor: &Vendor) -> Home {
    let home = Home::new(vendor);
    for version in [ONE, TWO] {
        let tree = vendor.tree(&version.to_string());
        for name in ["mode.conf", "owner.conf", "both.conf", "sub/in.conf", "note.conf", "plain.conf"] {
            put(&tree, &format!("config/{name}"), b"default", 0o644);
        }
        home.install(&vendor.pack(&tree, &options()));
    }
    merge_config(&home.store, None, &ONE, Existing::Replace).unwrap();
    merge_config(&home.store, Some(&ONE), &TWO, Existing::Replace).unwrap();
    home
}

fn forward_again(home: &Home) -> MergeReport {
    merge_config(&home.store, Some(&ONE), &TWO, Existing::Replace).unwrap()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Sets an attribute. Returns whether the file system keeps it.
fn note(path: &Path, value: &[u8]) -> bool {
    setxattr(path, "user.note", value, XattrFlags::empty()).is_ok()
}

fn noted(path: &Path) -> Option<Vec<u8>> {
    let mut value = [0; 64];
    getxattr(path, "user.note", &mut value[..]).ok().map(|length| value[..length].to_vec())
}

fn outcomes(report: &MergeReport) -> BTreeMap<&str, &Outcome> {
    report.files.iter().map(|file| (file.path.as_str(), &file.outcome)).collect()
}

/// Makes the record that an older program wrote: what files hold, and no more.
fn forget_rights(home: &Home) {
    let path = home.dir.path().join("config/.merged").join(TWO.to_string());
    let mut record: BTreeMap<String, String> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record.retain(|name, _| !name.starts_with('/'));
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
}

#[test]
fn edits_of_rights_alone_are_there_again_after_going_back_and_forward() {
    let vendor = Vendor::new();
    for is_old_record in [false, true] {
        let home = forward(&vendor);
        let two = home.store.config_dir(&TWO);
        chmod(&two.join("mode.conf"), 0o600);
        chmod(&two.join("sub"), 0o2710);
        put(&two, "both.conf", b"edited", 0o640);
        let keeps_notes = note(&two.join("note.conf"), b"mine");
        let is_root = as_root();
        if is_root {
            chown(two.join("owner.conf"), Some(1_234), Some(1_235)).unwrap();
            chown(two.join("sub"), Some(1_234), None).unwrap();
            chmod(&two.join("sub"), 0o2710);
            chown(two.join("both.conf"), Some(1_234), None).unwrap();
        }
        if is_old_record {
            forget_rights(&home);
        }
        for round in 0..3 {
            let report = forward_again(&home);
            let what = format!("old record: {is_old_record}, round {round}");
            assert_eq!(mode(&two.join("mode.conf")), 0o600, "{what}");
            assert_eq!(mode(&two.join("sub")), 0o2710, "{what}");
            assert_eq!(fs::read(two.join("both.conf")).unwrap(), b"edited", "{what}");
            assert_eq!(mode(&two.join("both.conf")), 0o640, "{what}");
            assert_eq!(mode(&two.join("plain.conf")), 0o644, "{what}");
            if keeps_notes {
                assert_eq!(noted(&two.join("note.conf")).as_deref(), Some(b"mine".as_slice()), "{what}");
            }
            if is_root {
                let owner = |name: &str| fs::metadata(two.join(name)).map(|found| (found.uid(), found.gid())).unwrap();
                assert_eq!(owner("owner.conf"), (1_234, 1_235), "{what}");
                assert_eq!((owner("sub").0, owner("both.conf").0), (1_234, 1_234), "{what}");
                assert_eq!(owner("sub/in.conf").0, 0, "{what}");
                assert_eq!(outcomes(&report)["owner.conf"], &Outcome::Restored, "{what}");
            }
            let said = outcomes(&report);
            assert_eq!(said["mode.conf"], &Outcome::Restored, "{what}");
            assert_eq!(said["plain.conf"], &Outcome::Unchanged, "{what}");
            assert!(!two.join("mode.conf.old").exists(), "{what}");
        }
    }
}

#[test]
fn an_edit_of_rights_that_does_not_go_together_with_a_later_one_lies_beside() {
    let vendor = Vendor::new();
    let home = forward(&vendor);
    let (one, two) = (home.store.config_dir(&ONE), home.store.config_dir(&TWO));
    chmod(&two.join("mode.conf"), 0o600);
    chmod(&one.join("mode.conf"), 0o640);
    chmod(&two.join("plain.conf"), 0o600);
    fs::remove_file(one.join("plain.conf")).unwrap();
    let report = forward_again(&home);
    assert_eq!((mode(&two.join("mode.conf")), mode(&two.join("mode.conf.old"))), (0o640, 0o600));
    assert_eq!(outcomes(&report)["mode.conf"], &Outcome::Beside { earlier: "mode.conf.old".to_owned() });
    assert!(!two.join("plain.conf").exists());
    assert_eq!(mode(&two.join("plain.conf.old")), 0o600);
    assert_eq!(report.conflicts().count(), 2, "{report:?}");
}

#[test]
fn rights_that_were_not_edited_follow_what_is_configured_now() {
    let vendor = Vendor::new();
    let home = forward(&vendor);
    let (one, two) = (home.store.config_dir(&ONE), home.store.config_dir(&TWO));
    let keeps_notes = note(&one.join("note.conf"), b"first");
    chmod(&one.join("mode.conf"), 0o600);
    forward_again(&home);
    assert_eq!(mode(&two.join("mode.conf")), 0o600);
    // It was carried over and is not an edit of this release: what is set now counts.
    chmod(&one.join("mode.conf"), 0o640);
    if keeps_notes {
        rustix::fs::removexattr(one.join("note.conf"), "user.note").unwrap();
    }
    let report = forward_again(&home);
    assert_eq!(mode(&two.join("mode.conf")), 0o640);
    assert_eq!(noted(&two.join("note.conf")), None);
    assert_eq!(report.conflicts().count(), 0, "{report:?}");
}

#[test]
fn an_orphaned_configuration_with_edited_rights_stays() {
    let vendor = Vendor::new();
    let edits: [(&str, Edit); 4] = [
        ("nothing", |_| ()),
        ("a file's mode", |dir| chmod(&dir.join("mode.conf"), 0o600)),
        ("a directory's mode", |dir| chmod(&dir.join("sub"), 0o700)),
        ("an attribute, or a mode where none is kept", |dir| {
            if !note(&dir.join("note.conf"), b"mine") {
                chmod(&dir.join("note.conf"), 0o400);
            }
        }),
    ];
    for (name, edit) in edits {
        let home = forward(&vendor);
        home.store.point_current(&ONE).unwrap();
        let two = home.store.config_dir(&TWO);
        edit(&two);
        refit_updater::durable::remove_tree(&home.store.release_dir(&TWO)).unwrap();
        let orphans = remove_orphans(&home.store, &ONE, &[]).unwrap();
        assert_eq!(two.exists(), name != "nothing", "{name}: {orphans:?}");
        assert_eq!(orphans.edited.len(), usize::from(name != "nothing"), "{name}");
    }
    if as_root() {
        let home = forward(&vendor);
        home.store.point_current(&ONE).unwrap();
        let two = home.store.config_dir(&TWO);
        chown(two.join("owner.conf"), Some(1_234), None).unwrap();
        refit_updater::durable::remove_tree(&home.store.release_dir(&TWO)).unwrap();
        assert_eq!(remove_orphans(&home.store, &ONE, &[]).unwrap().edited, [two]);
    }
}

/// Only root may set them.
#[test]
fn what_a_program_may_do_and_what_only_root_sees_survives() {
    if !as_root() {
        return;
    }
    let vendor = Vendor::new();
    let home = forward(&vendor);
    let path = home.store.config_dir(&ONE).join("mode.conf");
    // `cap_net_bind_service=ep`, as linux/capability.h has it.
    let capability = [[1, 0, 0, 2], [0, 4, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
    let sets = [("security.capability", capability.as_slice()), ("trusted.note", b"mine")];
    let set: Vec<_> =
        sets.iter().filter(|(name, value)| setxattr(&path, *name, value, XattrFlags::empty()).is_ok()).collect();
    forward_again(&home);
    for (name, value) in set {
        let mut found = [0; 64];
        let length = getxattr(home.store.config_dir(&TWO).join("mode.conf"), *name, &mut found[..]).unwrap();
        assert_eq!(&found[..length], *value, "{name}");
    }
}
