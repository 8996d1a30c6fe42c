//! What is packed is what is installed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::AtomicBool;

use refit_author::inspect::inspect;
use refit_base::{Exit, Reported};
use refit_fixtures_vendor::{Home, Vendor, far, noise, now, options, put, snapshot};
use refit_updater::manifest::Codec;
use refit_updater::receive::ReceiveProgress;
use refit_updater::release::{FileProblem, StoreError};
use refit_updater::trust::Trust;
use semver::Version;

#[test]
fn a_release_arrives_as_it_was_packed() {
    for codec in [Codec::Zstd, Codec::Gzip] {
        let vendor = Vendor::new();
        let tree = vendor.tree("1.0.0");
        let big = [noise(1, 5 << 20), vec![0; 3 << 20], noise(2, 1 << 20)].concat();
        put(&tree, "share/big", &big, 0o644);
        put(&tree, "share/copy-of-big", &big, 0o600);
        put(&tree, "share/link-of-big", &big, 0o644);
        let (path, package, report) = vendor.pack_file(&tree, &refit_author::pack::PackOptions { codec, ..options() });
        assert!(report.payload_bytes < 7 << 20, "a content is stored once: {}", report.payload_bytes);

        let home = Home::new(&vendor);
        let mut steps = Vec::new();
        let cancel = AtomicBool::new(false);
        let received = home.receiver(&cancel).receive(&package[..], &mut |step| steps.push(step)).unwrap();
        assert!(matches!(steps[0], ReceiveProgress::Verified { .. }));
        assert_eq!(steps.last(), Some(&ReceiveProgress::Syncing));
        assert_eq!((received.digest, received.expired, received.linked_bytes), (report.digest, None, 0));
        let again = home.store.received(&received.digest).unwrap().unwrap();
        assert_eq!(again.manifest, received.manifest);
        let release = home.store.admit(received, &[]).unwrap();
        home.assert_whole(&release);
        assert!(home.store.received(&release.digest).unwrap().is_none());
        assert_eq!(fs::read_dir(home.store.staging_dir()).unwrap().count(), 0);

        // Beside the manifest, and without write permissions, it is the same tree.
        let packed = snapshot(&tree);
        let installed: Vec<_> = snapshot(&release.dir)
            .into_iter()
            .filter(|(path, ..)| !path.starts_with(release.dir.join(".refit")))
            .collect();
        assert_eq!(packed.len(), installed.len());
        for ((one, mode, content), (other, installed_mode, installed_content)) in packed.iter().zip(&installed) {
            assert_eq!(one.strip_prefix(&tree).unwrap(), other.strip_prefix(&release.dir).unwrap());
            assert!(content == installed_content, "{}", one.display());
            let is_link = mode & 0o170_000 == 0o120_000;
            assert_eq!(if is_link { *mode } else { mode & !0o222 }, *installed_mode, "{}", one.display());
        }
        let file = |name: &str| fs::metadata(release.dir.join(name)).unwrap();
        assert_eq!(file("share/big").ino(), file("share/link-of-big").ino());
        assert_ne!(file("share/big").ino(), file("share/copy-of-big").ino());
        assert!(file("share/big").blocks() * 512 < big.len() as u64, "zeros became a hole");

        let seen = inspect(&path, Some(vendor.keys.root()), true, now()).unwrap();
        assert!(seen.trusted && seen.checked && !seen.expired);
        assert_eq!((seen.digest, &seen.manifest), (release.digest, &release.manifest));
        assert_eq!(seen.expires, far());
        assert!(!inspect(&path, None, false, now()).unwrap().trusted);
        let other = Vendor::new();
        assert!(inspect(&path, Some(other.keys.root()), true, now()).is_err());
    }
}

#[test]
fn an_empty_release_is_a_release() {
    let vendor = Vendor::new();
    let tree = vendor.dir.path().join("tiny");
    put(&tree, "appliance.toml", b"[appliance]\nname = \"shop\"\nversion = \"1.0.0\"\n", 0o644);
    let home = Home::new(&vendor);
    home.assert_whole(&home.install(&vendor.pack(&tree, &options())));
}

#[test]
fn what_a_kept_release_has_is_linked_if_it_is_whole() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    let first = home.install(&vendor.package("1.0.0"));
    home.policy.current = Some(first.version.clone());
    let received = home.receive(&vendor.package("1.1.0")).unwrap();
    assert_eq!(received.linked_bytes, 29 + 13); // the library and the configuration file
    let second = home.store.admit(received, &[]).unwrap();
    home.assert_whole(&second);
    let ino =
        |release: &refit_updater::release::Release, name: &str| fs::metadata(release.dir.join(name)).unwrap().ino();
    assert_eq!(ino(&first, "lib/libshop.so"), ino(&second, "lib/libshop.so"));
    assert_ne!(ino(&first, "bin/shop"), ino(&second, "bin/shop"));

    // The disk altered what both share: the third brings its own.
    let path = second.dir.join("lib/libshop.so");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[3] ^= 1;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    let report = home.store.verify(&second.version, &mut |_| {}).unwrap();
    assert_eq!(report.problems.len(), 1);
    assert_eq!((report.problems[0].path.as_str(), report.problems[0].what), ("lib/libshop.so", FileProblem::Content));
    home.policy.current = Some(second.version);
    let third = home.install(&vendor.package("1.2.0"));
    home.assert_whole(&third);

    // Same content, other permissions: a copy, not a link.
    let tree = vendor.tree("1.3.0");
    put(&tree, "lib/libshop.so", b"a library that stays the same", 0o755);
    let fourth = home.install(&vendor.pack(&tree, &options()));
    home.assert_whole(&fourth);
    assert_ne!(ino(&third, "lib/libshop.so"), ino(&fourth, "lib/libshop.so"));
}

#[test]
fn verification_names_every_difference() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let release = home.install(&vendor.package("1.0.0"));
    let dir = &release.dir;
    for name in ["bin", "lib", "share", "."] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["bin", "lib", "share"] {
        assert!(!home.store.verify(&release.version, &mut |_| {}).unwrap().problems.is_empty(), "{name}");
    }
    put(dir, "bin/shop", b"the shop 1.0", 0o555);
    put(dir, "share/more", b"", 0o444);
    fs::remove_file(dir.join("share/empty")).unwrap();
    fs::remove_file(dir.join("lib/libshop.so.1")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("lib/libshop.so.1")).unwrap();
    fs::remove_dir(dir.join("share/nothing")).unwrap();
    put(dir, "share/nothing", b"", 0o444);
    for name in ["bin", "lib", "share"] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o555)).unwrap();
    }
    let report = home.store.verify(&release.version, &mut |_| {}).unwrap();
    let mut found: Vec<_> = report.problems.iter().map(|problem| (problem.path.as_str(), problem.what)).collect();
    found.sort_by_key(|(path, _)| *path);
    assert_eq!(
        found,
        [
            ("bin/shop", FileProblem::Size),
            ("lib/libshop.so.1", FileProblem::Target),
            ("share/empty", FileProblem::Missing),
            ("share/more", FileProblem::Unexpected),
            ("share/nothing", FileProblem::Type),
        ]
    );
}

#[test]
fn a_program_that_may_not_be_executed_is_damage_and_is_put_right() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let release = home.install(&vendor.package("1.0.0"));
    let damage = || home.store.find_damage(&release.version, &mut || {}).unwrap().map(|damage| damage.to_string());
    for (path, bits, expected) in [
        ("bin/shop", 0o444, Some("bin/shop: not executable")),
        ("bin/shop", 0o544, Some("bin/shop: not executable")),
        ("bin/shop", 0o755, None),
        ("lib/libshop.so", 0o600, None),
    ] {
        let path = release.dir.join(path);
        fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
        assert_eq!(damage().as_deref(), expected, "{bits:o}");
        assert!(!home.store.repair_modes_of(&release.version).repairs.is_empty(), "{bits:o}");
        assert_eq!(damage(), None, "{bits:o}");
        home.assert_whole(&release);
    }
}

#[test]
fn releases_come_and_go() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let [one, two] = ["1.0.0", "1.1.0"].map(|version| Version::parse(version).unwrap());
    let first_package = vendor.package("1.0.0");
    let first = home.install(&first_package);
    home.install(&vendor.package("1.1.0"));
    assert_eq!(home.store.current().unwrap(), None);
    home.store.point_current(&one).unwrap();
    assert_eq!(home.store.current().unwrap(), Some(one.clone()));
    let versions: Vec<_> = home.store.releases().unwrap().into_iter().map(|release| release.version).collect();
    assert_eq!(versions, [one.clone(), two.clone()]);

    // The same again is the release that is there.
    assert_eq!(home.install(&first_package).digest, first.digest);
    // Another one of the same version is refused, unless it may go.
    let tree = vendor.tree("1.1.0");
    put(&tree, "bin/shop", b"another shop 1.1.0", 0o755);
    let other = vendor.pack(&tree, &options());
    let received = home.receive(&other).unwrap();
    assert!(matches!(home.store.admit(received, &[]), Err(StoreError::Occupied { .. })));
    let received = home.receive(&other).unwrap();
    let release = home.store.admit(received, std::slice::from_ref(&two)).unwrap();
    assert_eq!(fs::read(release.dir.join("bin/shop")).unwrap(), b"another shop 1.1.0");
    home.assert_whole(&release);

    assert!(matches!(home.store.remove(&one), Err(StoreError::IsCurrent { .. })));
    home.store.remove(&two).unwrap();
    assert!(matches!(home.store.release(&two), Err(StoreError::Unknown { .. })));
    home.receive(&other).unwrap();
    home.store.empty_staging().unwrap();
    assert_eq!(fs::read_dir(home.store.staging_dir()).unwrap().count(), 0);
    home.assert_whole(&first);
}

#[test]
fn work_that_is_cancelled_leaves_nothing() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let before = home.snapshot();
    let cancel = AtomicBool::new(false);
    let mut stop_at_payload = |step| {
        if matches!(step, ReceiveProgress::Verified { .. }) {
            cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let package = vendor.package("1.0.0");
    let error = home.receiver(&cancel).receive(&package[..], &mut stop_at_payload).unwrap_err();
    assert_eq!((error.exit(), error.code()), (Exit::TryLater, "cancelled"));
    assert_eq!(home.snapshot(), before);
}

#[test]
fn trust_is_given_once() {
    let (vendor, other) = (Vendor::new(), Vendor::new());
    let home = Home::new(&vendor);
    Trust::install_root(home.dir.path(), vendor.keys.root()).unwrap();
    assert!(Trust::install_root(home.dir.path(), other.keys.root()).is_err());
    assert!(Trust::open(other.dir.path()).is_err());
    fs::remove_file(home.dir.path().join("trust/packages.json")).unwrap();
    let error = home.receive(&vendor.package("1.0.0")).unwrap_err();
    assert_eq!(error.code(), "trust_unreadable", "a lost memory is no new beginning");
}
