//! Keys and roots: who can sign what, how a root follows another, and that appliances follow.

use std::fs::{self};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;
use refit_author::keys::{KeyRole, Keys, KeysError, Passphrase, Rotation, Setup};
use refit_author::pack::pack;
use refit_base::Reported;
use refit_fixtures_vendor::{ALL, Home, Vendor, far, options, put, rotation};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::making::{rotate_sealed, sealed};

pub(crate) fn says(text: &'static str) -> Arc<Passphrase<'static>> {
    Arc::new(move |_| Ok(Some(Zeroizing::new(text.to_owned()))))
}

/// Packs the small release with these keys.
pub(crate) fn try_pack(vendor: &Vendor, keys: &Keys, version: &str) -> Result<Vec<u8>, String> {
    let out = vendor.out("with-keys.refit");
    pack(&vendor.tree(version), &out, keys, &options(), &mut |_| {}).map_err(|error| error.to_string())?;
    Ok(fs::read(&out).unwrap())
}

pub(crate) fn key_files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn made_once_and_read_again() {
    let dir = TempDir::new().unwrap();
    let keys = dir.path().join("keys");
    let made = Keys::init(&keys, "2100-01-01T00:00:00.5Z".parse().unwrap()).unwrap();
    let read = Keys::open(&keys).unwrap();
    assert_eq!((made.root(), made.root_version()), (read.root(), read.root_version()));
    assert_eq!(made.root_version().1, "2100-01-01T00:00:00Z".parse::<Timestamp>().unwrap(), "whole seconds");
    assert_eq!(key_files(&keys), ["1.root.json", "refit.key.pem"]);
    let mode = fs::metadata(keys.join("refit.key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = Keys::init(&keys, far()).unwrap_err();
    assert!(again.to_string().ends_with("holds keys already"), "{again}");
}

#[test]
fn what_is_no_directory_of_keys() {
    fn check(name: &str, bytes: &[u8], expected: &str) {
        let dir = TempDir::new().unwrap();
        Keys::init(dir.path(), far()).unwrap();
        put(dir.path(), name, bytes, 0o600);
        let error = Keys::open(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with(expected), "{error}");
        assert!(!error.remedy().is_empty());
    }
    check("refit.key.pem", b"nothing", "is no ed25519 key in PKCS#8");
    check("1.root.json", b"{}", "is no root, or not the one its name says");
    check("hsm.key.toml", b"command = 3", "does not describe a key with `public` and `command`");
    check("hsm.key.toml", b"public = \"none.pem\"\ncommand = []", "none.pem");
    for timeout in ["soon", "-1s", "0s", "25h"] {
        let text = format!("public = \"none.pem\"\ncommand = [\"./sign\"]\ntimeout = \"{timeout}\"\n");
        check("hsm.key.toml", text.as_bytes(), "does not describe a key with `public` and `command`");
    }
    let empty = TempDir::new().unwrap();
    assert!(matches!(Keys::open(empty.path()), Err(KeysError::NoRoot { .. })));
}

#[test]
fn a_threshold_needs_so_many_keys_and_an_offline_root_its_medium() {
    let vendor = Vendor::new();
    let (online, stick) = (vendor.dir.path().join("online"), vendor.dir.path().join("stick"));
    let setup = Setup {
        root_keys: 3,
        root_threshold: 2,
        separate_roles: true,
        root_dir: Some(stick.clone()),
        ..Setup::one_key(far())
    };
    Keys::create(&online, &setup).unwrap();
    assert_eq!(key_files(&online), ["1.root.json", "snapshot.key.pem", "targets.key.pem", "timestamp.key.pem"]);
    assert_eq!(key_files(&stick), ["root-1.key.pem", "root-2.key.pem", "root-3.key.pem"]);

    // Packages need no root key; a new root needs two.
    let keys = Keys::open(&online).unwrap();
    try_pack(&vendor, &keys, "1.0.0").unwrap();
    let error = keys.rotate(&rotation(&["targets"])).unwrap_err();
    assert_eq!(error.to_string(), "role root needs 2 signatures, 0 of its keys are here");
    fs::remove_file(stick.join("root-1.key.pem")).unwrap();
    let open = || Keys::open_with(&online, std::slice::from_ref(&stick), says("")).unwrap();
    open().rotate(&rotation(&["targets"])).unwrap();
    fs::remove_file(stick.join("root-3.key.pem")).unwrap();
    let before = (key_files(&online), key_files(&stick));
    let error = open().rotate(&rotation(&["targets"])).unwrap_err();
    assert_eq!(error.to_string(), "role root needs 2 signatures, 1 of its keys are here");
    assert_eq!((key_files(&online), key_files(&stick)), before);

    let impossible = Setup { root_threshold: 3, root_keys: 2, ..Setup::one_key(far()) };
    let error = Keys::create(&vendor.dir.path().join("impossible"), &impossible).unwrap_err();
    assert_eq!(error.to_string(), "a threshold of 3 cannot be met with 2 keys");
}

#[test]
fn appliances_follow_a_rotation_through_any_package() {
    let vendor = Vendor::new();
    let dir = vendor.dir.path().join("keys");
    let old = Home::new(&vendor);
    let (first, first_key) = (vendor.package("1.0.0"), fs::read(dir.join("refit.key.pem")).unwrap());
    old.receive(&first).unwrap();

    let (keys, rotated) =
        Keys::open(&dir).unwrap().rotate(&rotation(&["root", "timestamp", "snapshot", "targets"])).unwrap();
    assert_eq!(rotated.version, 2);
    assert_eq!(rotated.retired, [dir.join("retired/refit.key.pem")]);
    let (keys, rotated) = keys.rotate(&rotation(&[])).unwrap();
    assert_eq!((rotated.version, rotated.made, rotated.retired), (3, vec![], vec![]), "the date alone");
    assert_eq!(Keys::open(&dir).unwrap().root(), keys.root());

    // One package brings the appliance from root 1 to root 3; it is remembered.
    let next = try_pack(&vendor, &keys, "1.1.0").unwrap();
    old.receive(&next).unwrap();
    assert_eq!(old.trust.root().unwrap(), keys.root());
    // What the retired key signed is not accepted any more, be it new or old.
    let before = old.snapshot();
    assert_eq!(old.receive(&first).unwrap_err().code(), "signature_invalid");
    put(&dir, "stolen/refit.key.pem", &first_key, 0o600);
    put(&dir, "stolen/1.root.json", &fs::read(dir.join("1.root.json")).unwrap(), 0o600);
    let stolen = try_pack(&vendor, &Keys::open(&dir.join("stolen")).unwrap(), "9.0.0").unwrap();
    assert_eq!(old.receive(&stolen).unwrap_err().code(), "signature_invalid");
    assert_eq!(old.snapshot(), before);
    // An appliance that never saw the newer root cannot know.
    Home::new(&vendor).receive(&stolen).unwrap();
}

#[test]
fn a_passphrase_protects_the_key_and_is_asked_for_when_it_signs() {
    let vendor = Vendor::new();
    let dir = vendor.dir.path().join("sealed");
    let setup = Setup { passphrase: Some(Zeroizing::new("plank and nail".to_owned())), ..Setup::one_key(far()) };
    Keys::create(&dir, &setup).unwrap();
    assert_eq!(key_files(&dir), ["1.root.json", "refit.key.pem", "refit.pub.pem"]);
    let text = fs::read_to_string(dir.join("refit.key.pem")).unwrap();
    assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{text}");

    let error = try_pack(&vendor, &Keys::open(&dir).unwrap(), "1.0.0").unwrap_err();
    assert!(error.ends_with("is protected by a passphrase"), "{error}");
    let wrong = Keys::open_with(&dir, &[], says("plank and screw")).unwrap();
    let error = try_pack(&vendor, &wrong, "1.0.0").unwrap_err();
    assert!(error.ends_with("cannot be opened with this passphrase"), "{error}");

    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let right: Arc<Passphrase<'static>> = Arc::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Zeroizing::new("plank and nail".to_owned())))
    });
    let keys = Keys::open_with(&dir, &[], right).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nobody is asked before it is needed");
    let package = try_pack(&vendor, &keys, "1.0.0").unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1, "three signatures, one question");
    let trusting = Vendor { dir: TempDir::new().unwrap(), keys };
    Home::new(&trusting).receive(&package).unwrap();

    // The public key beside it is that of another key.
    let other = Vendor::new();
    let foreign = Setup { passphrase: Some(Zeroizing::new("x".to_owned())), ..Setup::one_key(far()) };
    Keys::create(&other.dir.path().join("sealed"), &foreign).unwrap();
    fs::copy(other.dir.path().join("sealed/refit.key.pem"), dir.join("refit.key.pem")).unwrap();
    let error = try_pack(&vendor, &Keys::open_with(&dir, &[], says("x")).unwrap(), "1.0.0").unwrap_err();
    assert!(error.ends_with("is not the private key of the public key beside it"), "{error}");
}

#[test]
fn what_is_said_of_the_root_holds_for_no_other_role() {
    let vendor = Vendor::new();
    let shown = |keys: &Keys| -> Vec<(u64, usize)> {
        keys.status().iter().map(|status| (status.threshold, status.keys.len())).collect()
    };
    let (dir, stick) = (vendor.dir.path().join("keys"), vendor.dir.path().join("stick"));
    let several = Rotation { root_keys: Some(3), root_threshold: Some(2), ..rotation(&ALL) };
    let (keys, _) = Keys::open(&dir).unwrap().rotate(&several).unwrap();
    assert_eq!(shown(&keys), [(2, 3), (1, 1), (1, 1), (1, 1)]);
    let (keys, _) = keys.rotate(&Rotation { root_threshold: Some(3), ..rotation(&ALL) }).unwrap();
    assert_eq!(shown(&keys), [(3, 3), (1, 1), (1, 1), (1, 1)]);

    // A root that is put away leaves the keys behind that are needed every day.
    let dir = vendor.dir.path().join("other");
    let keys = Keys::init(&dir, far()).unwrap();
    keys.rotate(&Rotation { root_dir: Some(stick.clone()), ..rotation(&ALL) }).unwrap();
    assert_eq!(key_files(&dir), ["1.root.json", "2.root.json", "online-v2.key.pem", "retired"]);
    assert_eq!(key_files(&stick), ["root-v2.key.pem"]);
    try_pack(&vendor, &Keys::open(&dir).unwrap(), "1.0.0").unwrap();
}

#[test]
fn a_new_key_takes_the_name_of_no_other_file() {
    let vendor = Vendor::new();
    let dir = vendor.dir.path().join("keys");
    // A key that somebody prepared; another file only looks like one.
    let other = Vendor::new();
    fs::copy(other.dir.path().join("keys/refit.key.pem"), dir.join("root-v2-2.key.pem")).unwrap();
    put(&dir, "online-v2.pub.pem", b"a device's", 0o644);
    let several = Rotation { root_keys: Some(2), ..rotation(&ALL) };
    let (keys, rotated) = Keys::open(&dir).unwrap().rotate(&several).unwrap();
    let made = ["root-v2_2-1.key.pem", "root-v2_2-2.key.pem", "online-v2_2.key.pem"].map(|name| dir.join(name));
    assert_eq!(rotated.made, made);
    assert_eq!(rotated.retired, [dir.join("retired/refit.key.pem")]);
    assert_eq!(fs::read(dir.join("online-v2.pub.pem")).unwrap(), b"a device's");
    try_pack(&vendor, &keys, "1.0.0").unwrap();
}

#[test]
fn only_keys_that_were_used_are_retired() {
    let (vendor, next) = (Vendor::new(), Vendor::new());
    let (dir, box_of_next) = (vendor.dir.path().join("keys"), next.dir.path().join("keys"));
    let open = || Keys::open_with(&dir, std::slice::from_ref(&box_of_next), says("")).unwrap();
    let (_, rotated) = open().rotate(&rotation(&[])).unwrap();
    assert_eq!(rotated.retired, Vec::<PathBuf>::new(), "a key that waits for its root stays where it is");
    open().rotate(&rotation(&ALL)).unwrap();
    // A key that a root has named is found again after the power failed before it was put aside.
    fs::copy(dir.join("retired/refit.key.pem"), dir.join("refit.key.pem")).unwrap();
    let (_, rotated) = open().rotate(&rotation(&[])).unwrap();
    assert_eq!(rotated.retired, [dir.join("retired/refit.key.pem")]);
    assert_eq!(key_files(&box_of_next), ["1.root.json", "refit.key.pem"]);
}

#[test]
fn what_is_put_aside_overwrites_nothing_and_stays_together() {
    let at = TempDir::new().unwrap();
    let dir = at.path();
    Keys::create(&dir.join("keys"), &sealed(dir)).unwrap();
    put(&dir.join("stick"), "retired/root.pub.pem", b"somebody's", 0o644);
    put(&dir.join("keys"), "retired/online.key.pem", b"somebody's", 0o600);
    put(&dir.join("keys"), "retired/2", b"a file", 0o600);
    rotate_sealed(dir).unwrap();
    assert_eq!(key_files(&dir.join("stick")), ["retired", "root-v2.key.pem", "root-v2.pub.pem"]);
    assert_eq!(key_files(&dir.join("stick/retired")), ["2", "root.pub.pem"]);
    assert_eq!(key_files(&dir.join("stick/retired/2")), ["root.key.pem", "root.pub.pem"]);
    assert_eq!(fs::read(dir.join("stick/retired/root.pub.pem")).unwrap(), b"somebody's");
    assert_eq!(key_files(&dir.join("keys/retired")), ["2", "3", "online.key.pem"]);
    assert_eq!(key_files(&dir.join("keys/retired/3")), ["online.key.pem", "online.pub.pem"]);
    assert_eq!(fs::read(dir.join("keys/retired/online.key.pem")).unwrap(), b"somebody's");

    // The description of a key outside takes its public key along, unless another needs it, too.
    for shared in [false, true] {
        let (dir, box_dir) = (at.path().join(format!("k-{shared}")), at.path().join(format!("box-{shared}")));
        let public = fs::read(at.path().join("keys/online-v2.pub.pem")).unwrap();
        put(&box_dir, "device.pem", &public, 0o644);
        put(&box_dir, "sign", b"#!/bin/sh\n", 0o755);
        let description = b"public = \"device.pem\"\ncommand = [\"./sign\"]\n";
        put(&box_dir, "device.key.toml", description, 0o644);
        if shared {
            put(&box_dir, "second.key.toml", description, 0o644);
        }
        let outside = vec![(KeyRole::Targets, box_dir.join("device.key.toml"))];
        Keys::create(&dir, &Setup { outside, ..Setup::one_key(far()) }).unwrap();
        let keys = Keys::open_with(&dir, std::slice::from_ref(&box_dir), says("")).unwrap();
        let made = Rotation { outside: vec![(KeyRole::Targets, None)], ..rotation(&["targets"]) };
        let (_, rotated) = keys.rotate(&made).unwrap();
        assert_eq!(rotated.retired, [box_dir.join("retired/device.key.toml")]);
        assert_eq!(key_files(&box_dir.join("retired")), ["device.key.toml", "device.pem"]);
        assert_eq!(fs::read(box_dir.join("retired/device.pem")).unwrap(), public);
        let left: &[&str] =
            if shared { &["device.pem", "retired", "second.key.toml", "sign"] } else { &["retired", "sign"] };
        assert_eq!(key_files(&box_dir), left);
        Keys::open_with(&dir, &[box_dir], says("")).unwrap();
    }
}
