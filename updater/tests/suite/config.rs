//! The live configuration across an update and back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use refit_fixtures_vendor::{Home, Vendor, options, put, snapshot};
use refit_updater::config::{Clash, Existing, Live, Outcome, merge_config};
use refit_updater::release::Store;
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
    let clash = Outcome::Conflict { new_default: "sub/clash.conf.new".to_owned(), because: Clash::Lines };
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

    // Back to 1.0.0: as it was. Forward again: merged anew, with what was made of 1.1.0 meanwhile.
    put(&next, "plain.conf", b"edited later", 0o644);
    put(&next, "shop.conf", text("green", 2).as_bytes(), 0o600);
    fs::remove_file(next.join("fresh.conf")).unwrap();
    assert!(merge_config(&home.store, Some(&two), &one, Existing::Keep).unwrap().kept_existing);
    assert_eq!(snapshot(&live), before);
    put(&live, "shop.conf", text("black", 1).as_bytes(), 0o600);
    let report = merge_config(&home.store, Some(&one), &two, Existing::Replace).unwrap();
    assert_eq!((read("plain.conf"), next.join("fresh.conf").exists()), ("edited later".to_owned(), false));
    assert_eq!((read("shop.conf"), read("shop.conf.old")), (text("black", 2), text("green", 2)));
    assert_eq!(became_of(&report, "plain.conf"), Some(Outcome::Restored));
    assert_eq!(became_of(&report, "shop.conf"), Some(Outcome::Beside { earlier: "shop.conf.old".to_owned() }));
    assert_eq!(fs::read_dir(home.store.staging_dir()).unwrap().count(), 0);

    // Once more: the edits are still there, although the merge before brought them back.
    let same = snapshot(&next);
    let report = merge_config(&home.store, Some(&one), &two, Existing::Replace).unwrap();
    assert_eq!(snapshot(&next), same);
    assert_eq!(became_of(&report, "plain.conf"), Some(Outcome::Restored));
    assert_eq!(became_of(&report, "shop.conf"), Some(Outcome::Merged), "it was not edited since");
    // What is configured anew in 1.0.0 counts where nothing was edited in 1.1.0.
    put(&live, "shop.conf", text("white", 1).as_bytes(), 0o600);
    merge_config(&home.store, Some(&one), &two, Existing::Replace).unwrap();
    assert_eq!((read("shop.conf"), read("shop.conf.old")), (text("white", 2), text("green", 2)));
}

fn became_of(report: &refit_updater::config::MergeReport, name: &str) -> Option<Outcome> {
    report.files.iter().find(|file| file.path == name).map(|file| file.outcome.clone())
}

/// Gives `path` an access list that lets the account 4713 read, as `setfacl -m u:4713:r` does.
fn let_read(path: &Path) {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (kind, allowed, number) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 4_713), (4, 0, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)]
    {
        list.extend(kind.to_le_bytes().into_iter().chain(allowed.to_le_bytes()).chain(number.to_le_bytes()));
    }
    rustix::fs::setxattr(path, "system.posix_acl_access", &list, rustix::fs::XattrFlags::empty()).unwrap();
}

fn list_of(path: &Path) -> Vec<u8> {
    let mut list = vec![0; 256];
    let length = rustix::fs::getxattr(path, "system.posix_acl_access", &mut list[..]).unwrap_or(0);
    list[..length].to_vec()
}

/// Only root can give files away.
#[test]
fn owner_mode_and_attributes_survive_an_update() {
    if !refit_fixtures::tools::as_root() {
        return;
    }
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let [one, two] = ["1.0.0", "1.1.0"].map(|version| Version::parse(version).unwrap());
    let pack = |version: &str, looser: u32| {
        let tree = vendor.tree(version);
        put(&tree, "config/secret.conf", format!("default of {version}").as_bytes(), 0o644);
        put(&tree, "config/same.conf", b"same", 0o644);
        put(&tree, "config/mode.conf", b"same", looser);
        put(&tree, "config/sub/a.conf", format!("a of {version}").as_bytes(), 0o644);
        if version == "1.1.0" {
            put(&tree, "config/sub/b.conf", b"new", 0o640);
        }
        home.install(&vendor.pack(&tree, &options()));
    };
    pack("1.0.0", 0o644);
    merge_config(&home.store, None, &one, Existing::Replace).unwrap();
    let live = home.store.config_dir(&one);
    let set = |name: &str, uid: u32, mode: u32| {
        std::os::unix::fs::chown(live.join(name), Some(uid), Some(uid)).unwrap();
        fs::set_permissions(live.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    set("secret.conf", 4_711, 0o600); // not edited: the default of 1.1.0 comes into it
    set("same.conf", 4_711, 0o400);
    set("sub", 4_712, 0o2750);
    put(&live, "own.conf", b"own", 0o644);
    set("own.conf", 4_711, 0o000);
    let_read(&live.join("same.conf"));
    let user = rustix::fs::setxattr(live.join("own.conf"), "user.note", b"mine", rustix::fs::XattrFlags::empty());
    std::os::unix::fs::symlink("own.conf", live.join("link")).unwrap();
    std::os::unix::fs::lchown(live.join("link"), Some(4_711), Some(4_711)).unwrap();
    std::os::unix::fs::chown(&live, None, Some(4_714)).unwrap();

    pack("1.1.0", 0o600);
    merge_config(&home.store, Some(&one), &two, Existing::Replace).unwrap();
    let next = home.store.config_dir(&two);
    let looks = |name: &str| {
        let found = fs::symlink_metadata(next.join(name)).unwrap();
        (found.uid(), found.gid(), found.permissions().mode() & 0o7777)
    };
    assert_eq!(fs::read_to_string(next.join("secret.conf")).unwrap(), "default of 1.1.0");
    assert_eq!(looks("secret.conf"), (4_711, 4_711, 0o600));
    assert_eq!(looks("same.conf"), (4_711, 4_711, fs::metadata(live.join("same.conf")).unwrap().mode() & 0o7777));
    assert!(!list_of(&next.join("same.conf")).is_empty());
    assert_eq!(list_of(&next.join("same.conf")), list_of(&live.join("same.conf")));
    assert_eq!(looks("sub"), (4_712, 4_712, 0o2750));
    assert_eq!(looks("sub/b.conf"), (4_712, 4_712, 0o640), "a new one belongs to whom its directory belongs to");
    assert_eq!(looks("own.conf"), (4_711, 4_711, 0o000));
    assert_eq!((looks("link").0, looks("link").1), (4_711, 4_711));
    assert_eq!(looks("").1, 4_714, "the group of the configuration itself");
    assert_eq!(looks("mode.conf").2, 0o600, "nobody changed it but the release");
    if user.is_ok() {
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(next.join("own.conf"), "user.note", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"mine");
    }
    let times = [&live, &next].map(|dir| fs::metadata(dir.join("own.conf")).unwrap().modified().unwrap());
    assert_eq!(times[0], times[1]);
}

/// The account as which [`as_the_owner`] looks.
const OWNER: u32 = 4_711;
/// Where its home is.
const HOME: &str = "REFIT_TEST_HOME";

/// Root reads everything, so another account looks; and only root can pack such files, and become another account.
#[test]
fn what_its_owner_may_not_read_is_not_damaged_and_is_carried_over() {
    if !refit_fixtures::tools::as_root() {
        return;
    }
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    for version in ["1.0.0", "1.1.0"] {
        let tree = vendor.tree(version);
        put(&tree, "config/closed.conf", b"closed", 0o200);
        put(&tree, "share/none", b"none", 0o000);
        put(&tree, "share/closed/in", b"in", 0o400);
        fs::set_permissions(tree.join("share/closed"), fs::Permissions::from_mode(0o311)).unwrap();
        home.install(&vendor.pack(&tree, &options()));
    }
    merge_config(&home.store, None, &Version::new(1, 0, 0), Existing::Replace).unwrap();
    let live = home.store.config_dir(&Version::new(1, 0, 0));
    put(&live, "own.conf", b"own", 0o200);
    put(&live, "none.conf", b"none", 0o000);
    let owner = format!("{OWNER}:{OWNER}");
    let chown = Command::new("chown").args(["-hR", &owner]).arg(home.dir.path()).status().unwrap();
    assert!(chown.success());
    // By this name, whatever directories lead to it.
    let mut child = Command::new("/proc/self/exe");
    child.args(refit_fixtures::tools::child("config::as_the_owner").get_args());
    let output = child.env(HOME, home.dir.path()).uid(OWNER).gid(OWNER).output().unwrap();
    refit_fixtures::tools::assert_passed(&output);
}

#[test]
#[ignore = "run by what_its_owner_may_not_read_is_not_damaged_and_is_carried_over, as another account"]
fn as_the_owner() {
    let store = Store::open(Path::new(&std::env::var_os(HOME).unwrap())).unwrap();
    let [one, two] = [Version::new(1, 0, 0), Version::new(1, 1, 0)];
    for version in [&one, &two] {
        assert_eq!(store.verify(version, &mut |_| {}).unwrap().problems, []);
    }
    let report = merge_config(&store, Some(&one), &two, Existing::Replace).unwrap();
    assert_eq!(report.conflicts().count(), 0, "{report:?}");
    for (name, mode) in [("own.conf", 0o200), ("none.conf", 0o000)] {
        for version in [&one, &two] {
            let found = fs::metadata(store.config_dir(version).join(name)).unwrap();
            assert_eq!(
                (found.permissions().mode() & 0o777, found.len()),
                (mode, name.len() as u64 - 5),
                "{name} of {version}"
            );
        }
    }
    // A directory of its own that it may not read is named, and stays where it was.
    let closed = store.config_dir(&one).join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let report = merge_config(&store, Some(&one), &two, Existing::Replace).unwrap();
    assert!(matches!(became_of(&report, "closed"), Some(Outcome::NotCarried { .. })), "{report:?}");
    let unread: Vec<_> = Live::read(&store.config_dir(&one)).unread.into_iter().map(|unread| unread.path).collect();
    assert_eq!(unread, ["closed", "none.conf", "own.conf"]);
}
