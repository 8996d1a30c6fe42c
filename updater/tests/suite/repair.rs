//! A release that runs is damaged, and put right from its package.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use refit_fixtures_vendor::{Home, Vendor, noise, options, put, snapshot};
use refit_updater::durable;
use refit_updater::release::{Received, Release, StoreError};

/// Something that happens to a release.
type Damage = fn(&Path);

/// Does `damage` in a directory that nobody may write to.
fn in_dir(dir: &Path, damage: impl FnOnce()) {
    let before = fs::metadata(dir).unwrap().permissions();
    durable::set_owner_write(dir).unwrap();
    damage();
    if dir.is_dir() {
        fs::set_permissions(dir, before).unwrap();
    }
}

const DAMAGES: [(&str, Damage); 12] = [
    ("a file is missing", |dir| in_dir(&dir.join("bin"), || fs::remove_file(dir.join("bin/shop")).unwrap())),
    ("other content", |dir| {
        in_dir(&dir.join("bin"), || put(dir, "bin/shop", b"the shop 9.9.9", 0o555));
    }),
    ("other permissions", |dir| {
        fs::set_permissions(dir.join("lib/libshop.so"), Permissions::from_mode(0o777)).unwrap();
    }),
    ("an empty file is longer", |dir| in_dir(&dir.join("share"), || put(dir, "share/empty", b"not", 0o444))),
    ("a link points elsewhere", |dir| {
        in_dir(&dir.join("lib"), || {
            fs::remove_file(dir.join("lib/libshop.so.1")).unwrap();
            durable::symlink(Path::new("/dev/null"), &dir.join("lib/libshop.so.1")).unwrap();
        });
    }),
    ("a directory is missing", |dir| {
        in_dir(dir, || durable::remove_tree(&dir.join("share")).unwrap());
    }),
    ("a directory has other permissions", |dir| {
        fs::set_permissions(dir.join("share/nothing"), Permissions::from_mode(0o700)).unwrap();
    }),
    ("a directory is a file", |dir| {
        in_dir(dir, || {
            durable::remove_tree(&dir.join("config")).unwrap();
            put(dir, "config", b"", 0o444);
        });
    }),
    ("a file is a directory", |dir| {
        in_dir(&dir.join("bin"), || {
            fs::remove_file(dir.join("bin/shop")).unwrap();
            put(dir, "bin/shop/deep/file", b"", 0o444);
            fs::set_permissions(dir.join("bin/shop"), Permissions::from_mode(0o500)).unwrap();
        });
    }),
    ("a directory is a link to a whole copy", |dir| {
        in_dir(dir, || {
            let copy = dir.parent().unwrap().parent().unwrap().join("data/copy");
            durable::set_owner_write(&dir.join("share")).unwrap();
            durable::rename(&dir.join("share"), &copy).unwrap();
            durable::symlink(&copy, &dir.join("share")).unwrap();
        });
    }),
    ("something was added", |dir| {
        in_dir(&dir.join("lib"), || put(dir, "lib/added/deep/file", b"", 0o644));
    }),
    ("the manifest is damaged", |dir| {
        in_dir(&dir.join(".refit"), || put(dir, ".refit/manifest.json", b"{}", 0o644));
    }),
];

/// A home in which a release runs, and its package received once more.
fn running(vendor: &Vendor) -> (Home, Release, Vec<u8>) {
    let mut home = Home::new(vendor);
    let tree = vendor.tree("1.0.0");
    put(&tree, "share/noise", &noise(3, 300_000), 0o644);
    let package = vendor.pack(&tree, &options());
    let release = home.install(&package);
    home.store.point_current(&release.version).unwrap();
    home.policy.current = Some(release.version.clone());
    home.policy.allow_downgrade = true;
    (home, release, package)
}

fn receive(home: &Home, package: &[u8]) -> Received {
    home.receive(package).unwrap()
}

#[test]
fn whatever_is_damaged_of_the_release_that_runs_is_put_right() {
    let vendor = Vendor::new();
    for (name, damage) in DAMAGES {
        let (home, release, package) = running(&vendor);
        let (before, inode) = (snapshot(&release.dir), fs::metadata(&release.dir).unwrap().ino());
        let untouched = fs::metadata(release.dir.join("appliance.toml")).unwrap().ino();
        damage(&release.dir);
        let received = receive(&home, &package);
        assert!(home.store.repair(&received).unwrap() > 0, "{name}");
        home.assert_whole(&release);
        assert_eq!(snapshot(&release.dir), before, "{name}");
        // The directory is the one that programs run in, and what was whole is not touched.
        assert_eq!(fs::metadata(&release.dir).unwrap().ino(), inode, "{name}");
        assert_eq!(fs::metadata(release.dir.join("appliance.toml")).unwrap().ino(), untouched, "{name}");
        assert_eq!(home.store.repair(&received).unwrap(), 0, "{name}");
        home.store.admit(received, &[]).unwrap();
        assert_eq!(fs::read_dir(home.store.staging_dir()).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn everything_at_once_is_put_right() {
    let vendor = Vendor::new();
    let (home, release, package) = running(&vendor);
    let before = snapshot(&release.dir);
    for path in ["bin", "lib", "share", "config"] {
        in_dir(&release.dir, || durable::remove_tree(&release.dir.join(path)).unwrap());
    }
    in_dir(&release.dir, || put(&release.dir, "lib", b"", 0o600));
    let received = receive(&home, &package);
    assert!(home.store.repair(&received).unwrap() > 0);
    assert_eq!(snapshot(&release.dir), before);
    home.assert_whole(&release);
}

#[test]
fn the_damaged_release_that_runs_is_not_replaced_as_a_whole_and_the_error_says_what_it_is() {
    let vendor = Vendor::new();
    let (home, release, package) = running(&vendor);
    fs::set_permissions(release.dir.join("bin/shop"), Permissions::from_mode(0o777)).unwrap();
    let error = home.store.admit(receive(&home, &package), &[]).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert_eq!(error.to_string(), "release 1.0.0, which runs, is damaged: bin/shop: other permissions");
    assert!(release.dir.join("bin/shop").exists());
}

/// A release that does not run is replaced as a whole.
#[test]
fn a_damaged_release_that_is_kept_is_replaced() {
    let vendor = Vendor::new();
    let (mut home, first, package) = running(&vendor);
    let second = home.install(&vendor.package("1.1.0"));
    home.store.point_current(&second.version).unwrap();
    home.policy.current = Some(second.version);
    for (name, damage) in DAMAGES.into_iter().filter(|(name, _)| *name != "the manifest is damaged") {
        durable::remove_tree(&home.dir.path().join("data/copy")).unwrap();
        damage(&first.dir);
        home.store.admit(receive(&home, &package), &[]).unwrap();
        let report = home.store.verify(&first.version, &mut |_| {}).unwrap();
        assert_eq!(report.problems, [], "{name}");
    }
}
