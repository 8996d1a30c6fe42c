//! Keys and roots: who can sign what, how a root follows another, and that appliances follow.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;
use refit_fixtures::tools::missing;
use refit_updater::keys::{KeyRole, KeyStatus, Keys, KeysError, Passphrase, Rotation, Setup, role_named};
use refit_updater::pack::pack;
use serde_json::json;
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::support::{Home, Vendor, far, in_namespace, options, put, snapshot};

fn rotation(roles: &[&'static str]) -> Rotation {
    Rotation {
        roles: roles.iter().copied().collect(),
        root_expires: far(),
        root_keys: None,
        root_threshold: None,
        root_dir: None,
        outside: Vec::new(),
        passphrase: None,
    }
}

fn says(text: &'static str) -> Arc<Passphrase<'static>> {
    Arc::new(move |_| Ok(Some(Zeroizing::new(text.to_owned()))))
}

/// Packs the small release with these keys.
fn try_pack(vendor: &Vendor, keys: &Keys, version: &str) -> Result<Vec<u8>, String> {
    let out = vendor.out("with-keys.refit");
    pack(&vendor.tree(version), &out, keys, &options(), &mut |_| {}).map_err(|error| error.to_string())?;
    Ok(fs::read(&out).unwrap())
}

fn key_files(dir: &Path) -> Vec<String> {
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
    assert_eq!(old.receive(&first).unwrap_err().code(), "signature-invalid");
    put(&dir, "stolen/refit.key.pem", &first_key, 0o600);
    put(&dir, "stolen/1.root.json", &fs::read(dir.join("1.root.json")).unwrap(), 0o600);
    let stolen = try_pack(&vendor, &Keys::open(&dir.join("stolen")).unwrap(), "9.0.0").unwrap();
    assert_eq!(old.receive(&stolen).unwrap_err().code(), "signature-invalid");
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

/// A program that signs with a key of OpenSSL, as a security module would.
fn device(dir: &Path, kind: &[&str], sign: &str) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let openssl = |arguments: &[&str]| Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
    let made = openssl(&[&["genpkey", "-out", "secret.pem"], kind].concat());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(openssl(&["pkey", "-in", "secret.pem", "-pubout", "-out", "device.pem"]).status.success());
    let script = format!("#!/bin/sh\nset -e\ncat >\"$1\"\n{sign}\nrm \"$1\"\n");
    put(dir, "sign", script.as_bytes(), 0o755);
    fs::set_permissions(dir.join("sign"), Permissions::from_mode(0o755)).unwrap();
    let description = dir.join("device.key.toml");
    put(dir, "device.key.toml", b"public = \"device.pem\"\ncommand = [\"./sign\", \"input\"]\n", 0o644);
    description
}

#[test]
fn a_command_signs_for_a_key_that_never_leaves_its_device() {
    if missing(&["openssl"]) {
        return;
    }
    let vendor = Vendor::new();
    let kinds: [(&str, &[&str], &str); 3] = [
        ("ed25519", &["-algorithm", "ed25519"], "openssl pkeyutl -sign -rawin -inkey secret.pem -in \"$1\""),
        (
            "p256",
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            "openssl dgst -sha256 -sign secret.pem \"$1\"",
        ),
        (
            "rsa",
            &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            "openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest -sign secret.pem \"$1\"",
        ),
    ];
    for (name, kind, sign) in kinds {
        let dir = vendor.dir.path().join(name);
        let description = device(&dir, kind, sign);
        let setup = Setup { outside: vec![(KeyRole::Targets, description)], ..Setup::one_key(far()) };
        Keys::create(&dir, &Setup { separate_roles: true, ..setup }).unwrap();
        let keys = Keys::open(&dir).unwrap();
        let package = try_pack(&vendor, &keys, "1.0.0").unwrap();
        Home::new(&Vendor { dir: TempDir::new().unwrap(), keys }).receive(&package).unwrap();
    }
}

#[test]
fn a_command_that_fails_or_lies_signs_nothing() {
    fn check(vendor: &Vendor, dir: &Path, script: &str, expected: &str) {
        put(dir, "sign", format!("#!/bin/sh\n{script}\n").as_bytes(), 0o755);
        fs::set_permissions(dir.join("sign"), Permissions::from_mode(0o755)).unwrap();
        let error = try_pack(vendor, &Keys::open(dir).unwrap(), "1.0.0").unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let vendor = Vendor::new();
    let dir = vendor.dir.path().join("device");
    // The public key of somebody's, in a file: enough to enter it into a root.
    let setup = Setup { passphrase: Some(Zeroizing::new("x".to_owned())), ..Setup::one_key(far()) };
    Keys::create(&vendor.dir.path().join("other"), &setup).unwrap();
    fs::create_dir_all(&dir).unwrap();
    fs::copy(vendor.dir.path().join("other/refit.pub.pem"), dir.join("device.pem")).unwrap();
    put(&dir, "device.key.toml", b"public = \"device.pem\"\ncommand = [\"./sign\"]\n", 0o644);
    let outside = vec![(KeyRole::Targets, dir.join("device.key.toml"))];
    Keys::create(&dir, &Setup { outside, separate_roles: true, ..Setup::one_key(far()) }).unwrap();

    check(
        &vendor,
        &dir,
        "cat >/dev/null; echo token is locked >&2; exit 3",
        "ended with exit status: 3: token is locked",
    );
    // It is heard to its end: whoever says much does not die of it.
    check(&vendor, &dir, "head -c 100000 /dev/zero >&2 || exit 9; exit 3", "ended with exit status: 3");
    check(&vendor, &dir, "cat >/dev/null; echo signature", "gave 10 bytes that are no signature");
    check(&vendor, &dir, "exit 0", "gave 0 bytes that are no signature");
    check(&vendor, &dir, "exec head -c 1000000 /dev/zero", "ended with signal");
    let hasty = b"public = \"device.pem\"\ncommand = [\"./sign\"]\ntimeout = \"2s\"\n";
    put(&dir, "device.key.toml", hasty, 0o644);
    check(&vendor, &dir, "echo touch the token >&2; exec sleep 100", "gave no signature within 2 s: touch the token");
    fs::remove_file(dir.join("sign")).unwrap();
    let error = try_pack(&vendor, &Keys::open(&dir).unwrap(), "1.0.0").unwrap_err();
    assert!(error.starts_with("cannot run"), "{error}");
}

/// What a vendor has: keys in a directory of their own, and two devices.
struct Office {
    vendor: Vendor,
    keys: PathBuf,
    stick: PathBuf,
}

impl Office {
    fn new() -> Self {
        let vendor = Vendor::new();
        for name in ["hsm", "ci"] {
            let sign = "openssl pkeyutl -sign -rawin -inkey secret.pem -in \"$1\"";
            device(&vendor.dir.path().join(name), &["-algorithm", "ed25519"], sign);
        }
        Self { keys: vendor.dir.path().join("k"), stick: vendor.dir.path().join("stick"), vendor }
    }

    /// Returns the keys outside that these words, such as `root=hsm`, name.
    fn outside(&self, words: &[&str]) -> Vec<(KeyRole, PathBuf)> {
        let named = |word: &&str| {
            let (role, device) = word.split_once('=').unwrap();
            (role_named(role).unwrap(), self.vendor.dir.path().join(device).join("device.key.toml"))
        };
        words.iter().map(named).collect()
    }

    /// Returns what follows a key outside: as [`Self::outside`], and nothing for `root=none`.
    fn next(&self, words: &[&str]) -> Vec<(KeyRole, Option<PathBuf>)> {
        let named = |word: &&str| match word.strip_suffix("=none") {
            Some(role) => (role_named(role).unwrap(), None),
            None => {
                let (role, file) = self.outside(&[*word]).remove(0);
                (role, Some(file))
            }
        };
        words.iter().map(named).collect()
    }

    /// Returns which keys each role has, such as `root 1 of 1: k/root`, once they have signed a package.
    fn signers(&self, keys: &Keys) -> Vec<String> {
        try_pack(&self.vendor, keys, "1.0.0").unwrap();
        let short = |path: &PathBuf| {
            let path = path.strip_prefix(self.vendor.dir.path()).unwrap().to_str().unwrap();
            path.strip_suffix("/device.key.toml").or(path.strip_suffix(".key.pem")).unwrap().to_owned()
        };
        let role = |status: KeyStatus| {
            let mut files: Vec<String> = status.keys.iter().map(|(_, file)| short(file.as_ref().unwrap())).collect();
            files.sort();
            format!("{} {} of {}: {}", status.role, status.threshold, files.len(), files.join(" "))
        };
        keys.status().into_iter().map(role).collect()
    }
}

const ALL: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];

#[test]
fn a_key_outside_signs_for_the_roles_it_is_named_for() {
    fn check(outside: &[&str], change: fn(&Office, &mut Setup), expected: &[&str; 4]) {
        let office = Office::new();
        let mut setup = Setup { outside: office.outside(outside), ..Setup::one_key(far()) };
        change(&office, &mut setup);
        let keys = Keys::create(&office.keys, &setup).unwrap();
        assert_eq!(office.signers(&keys), expected, "{outside:?}");
        // A medium gets keys of the root or is left alone.
        let on_stick = expected[0].contains("stick/");
        assert_eq!(office.stick.exists(), on_stick, "{outside:?}");
    }
    if missing(&["openssl"]) {
        return;
    }
    // The root has a key of its own: others are needed where releases are made.
    let root = "root 1 of 1: k/root";
    let [timestamp, snapshot, targets] =
        ["timestamp", "snapshot", "targets"].map(|role| format!("{role} 1 of 1: k/online"));
    check(&["targets=ci"], |_, _| {}, &[root, &timestamp, &snapshot, "targets 1 of 1: ci"]);
    check(
        &["timestamp=ci", "targets=hsm"],
        |_, _| {},
        &[root, "timestamp 1 of 1: ci", "snapshot 1 of 1: k/snapshot", "targets 1 of 1: hsm"],
    );
    check(
        &["timestamp=ci", "snapshot=ci", "targets=ci"],
        |_, _| {},
        &[root, "timestamp 1 of 1: ci", "snapshot 1 of 1: ci", "targets 1 of 1: ci"],
    );
    check(&["root=hsm"], |_, _| {}, &["root 1 of 1: hsm", &timestamp, &snapshot, &targets]);
    check(
        &["root=hsm", "targets=ci", "timestamp=hsm"],
        |_, _| {},
        &["root 1 of 1: hsm", "timestamp 1 of 1: hsm", "snapshot 1 of 1: k/snapshot", "targets 1 of 1: ci"],
    );
    // The threshold is the root's, also where it shares its keys.
    check(
        &["root=hsm", "root=ci", "targets=ci", "targets=hsm"],
        |_, setup| setup.root_threshold = 2,
        &["root 2 of 2: ci hsm", &timestamp, &snapshot, "targets 1 of 2: ci hsm"],
    );
    check(
        &["targets=ci"],
        |office, setup| {
            (setup.root_keys, setup.root_threshold) = (3, 2);
            setup.root_dir = Some(office.stick.clone());
        },
        &["root 2 of 3: stick/root-1 stick/root-2 stick/root-3", &timestamp, &snapshot, "targets 1 of 1: ci"],
    );
    check(
        &["root=hsm"],
        |office, setup| setup.root_dir = Some(office.stick.clone()),
        &["root 1 of 1: hsm", &timestamp, &snapshot, &targets],
    );
    check(
        &["root=hsm"],
        |_, setup| setup.separate_roles = true,
        &[
            "root 1 of 1: hsm",
            "timestamp 1 of 1: k/timestamp",
            "snapshot 1 of 1: k/snapshot",
            "targets 1 of 1: k/targets",
        ],
    );

    // Named twice, it is still one key.
    let office = Office::new();
    let setup =
        Setup { outside: office.outside(&["root=hsm", "root=hsm"]), root_threshold: 2, ..Setup::one_key(far()) };
    let error = Keys::create(&office.keys, &setup).unwrap_err();
    assert_eq!(error.to_string(), "a threshold of 2 cannot be met with 1 keys");
    // Who has nothing but the key of the targets cannot replace the root.
    let setup = Setup { outside: office.outside(&["targets=ci"]), ..Setup::one_key(far()) };
    Keys::create(&office.keys, &setup).unwrap();
    let stolen = office.vendor.dir.path().join("ci");
    fs::copy(office.keys.join("1.root.json"), stolen.join("1.root.json")).unwrap();
    let error = Keys::open(&stolen).unwrap().rotate(&rotation(&ALL)).unwrap_err();
    assert_eq!(error.to_string(), "role root needs 1 signatures, 0 of its keys are here");
}

#[test]
fn a_rotation_gives_keys_outside_to_the_roles_they_are_named_for() {
    fn check(roles: &[&'static str], outside: &[&str], change: fn(&Office, &mut Rotation), expected: &[&str; 4]) {
        let office = Office::new();
        let keys = Keys::init(&office.keys, far()).unwrap();
        let mut rotation = Rotation { outside: office.next(outside), ..rotation(roles) };
        change(&office, &mut rotation);
        let (keys, rotated) = keys.rotate(&rotation).unwrap();
        assert_eq!(office.signers(&keys), expected, "{roles:?} {outside:?}");
        let used = expected.iter().any(|role| role.ends_with("k/refit"));
        assert_eq!(rotated.retired.is_empty(), used, "{:?}", rotated.retired);
    }
    if missing(&["openssl"]) {
        return;
    }
    let [timestamp, snapshot] = ["timestamp", "snapshot"].map(|role| format!("{role} 1 of 1: k/online-v2"));
    check(&ALL, &["targets=ci"], |_, _| {}, &["root 1 of 1: k/root-v2", &timestamp, &snapshot, "targets 1 of 1: ci"]);
    check(
        &ALL,
        &["root=hsm", "targets=ci"],
        |_, _| {},
        &["root 1 of 1: hsm", &timestamp, &snapshot, "targets 1 of 1: ci"],
    );
    let [root, old_timestamp, old_snapshot, _] = ALL.map(|role| format!("{role} 1 of 1: k/refit"));
    check(&["targets"], &["targets=ci"], |_, _| {}, &[&root, &old_timestamp, &old_snapshot, "targets 1 of 1: ci"]);
    check(
        &["root", "targets"],
        &["root=hsm"],
        |_, _| {},
        &["root 1 of 1: hsm", &old_timestamp, &old_snapshot, "targets 1 of 1: k/targets-v2"],
    );
    check(
        &ALL,
        &["targets=ci"],
        |_, rotation| (rotation.root_keys, rotation.root_threshold) = (Some(3), Some(2)),
        &["root 2 of 3: k/root-v2-1 k/root-v2-2 k/root-v2-3", &timestamp, &snapshot, "targets 1 of 1: ci"],
    );

    // What is not rotated gets no keys, and whoever named some for it is told.
    let office = Office::new();
    let keys = || {
        let dir = office.vendor.dir.path().join("keys");
        (key_files(&dir), Keys::open(&dir).unwrap())
    };
    let (before, found) = keys();
    let told = Rotation { outside: office.next(&["root=hsm"]), ..rotation(&["targets"]) };
    let error = found.rotate(&told).unwrap_err();
    let expected = "keys of role root are named or counted, and it is not among the roles that get new ones";
    assert_eq!(error.to_string(), expected);
    let (after, found) = keys();
    let error = found.rotate(&Rotation { root_keys: Some(2), ..rotation(&["targets"]) }).unwrap_err();
    assert_eq!((error.to_string().as_str(), after), (expected, before));
}

#[test]
fn a_key_outside_is_not_followed_by_one_in_a_file_unless_somebody_says_so() {
    fn check(told: &[&str], brought: &[&str], roles: &[&'static str], expected: Result<&[&str; 4], &str>) {
        let office = Office::new();
        let outside = office.outside(&["root=hsm", "targets=ci"]);
        Keys::create(&office.keys, &Setup { outside, separate_roles: true, ..Setup::one_key(far()) }).unwrap();
        let with: Vec<PathBuf> = brought.iter().map(|name| office.vendor.dir.path().join(name)).collect();
        let keys = Keys::open_with(&office.keys, &with, says("")).unwrap();
        let before = snapshot(office.vendor.dir.path());
        let result = keys.rotate(&Rotation { outside: office.next(told), ..rotation(roles) });
        match (result, expected) {
            (Ok((keys, _)), Ok(expected)) => assert_eq!(office.signers(&keys), expected),
            (Err(error), Err(expected)) => {
                assert!(error.to_string().starts_with(expected), "{error}");
                assert!(error.remedy().contains("--external ROLE=FILE") && error.remedy().contains("--role"));
                assert!(!error.is_disk());
                assert_eq!(snapshot(office.vendor.dir.path()), before);
            }
            (result, expected) => panic!("{told:?} {brought:?} {roles:?}: {result:?}, not {expected:?}"),
        }
    }
    if missing(&["openssl"]) {
        return;
    }
    let both = ["hsm", "ci"];
    check(&[], &both, &ALL, Err("the key of role root is outside ("));
    check(&["root=hsm"], &both, &ALL, Err("the key of role targets is outside ("));
    check(&["targets=none"], &both, &["root", "targets"], Err("the key of role root is outside ("));
    // Whether a key that is not here is outside, nobody can tell.
    check(&["root=hsm"], &["hsm"], &ALL, Err("no key of role targets is here; it may be outside"));
    let [timestamp, snapshot] = ["timestamp", "snapshot"].map(|role| format!("{role} 1 of 1: k/{role}-v2"));
    let [old_timestamp, old_snapshot] = ["timestamp", "snapshot"].map(|role| format!("{role} 1 of 1: k/{role}"));
    let (root, targets) = ("root 1 of 1: hsm", "targets 1 of 1: ci");
    check(&["root=hsm", "targets=ci"], &both, &ALL, Ok(&[root, &timestamp, &snapshot, targets]));
    check(&[], &both, &["timestamp"], Ok(&[root, &timestamp, &old_snapshot, targets]));
    check(
        &["targets=none"],
        &["hsm"],
        &["targets"],
        Ok(&[root, &old_timestamp, &old_snapshot, "targets 1 of 1: k/targets-v2"]),
    );
    check(&[], &both, &[], Ok(&[root, &old_timestamp, &old_snapshot, targets]));

    // Keys that refit makes are all of one kind: one of another is outside, also where only some of a role's are here.
    let office = Office::new();
    let away = office.vendor.dir.path().join("away");
    let curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let mut outside = office.outside(&["root=hsm"]);
    outside.push((KeyRole::Root, device(&away, &curve, "exit 1")));
    // The other is one in a file, as somebody may have prepared it.
    outside[0].1 = office.vendor.dir.path().join("keys/refit.key.pem");
    Keys::create(&office.keys, &Setup { outside, ..Setup::one_key(far()) }).unwrap();
    let keys = Keys::open_with(&office.keys, &[office.vendor.dir.path().join("keys")], says("")).unwrap();
    let error = keys.rotate(&rotation(&["root"])).unwrap_err();
    assert!(error.to_string().starts_with("the key of role root is outside ("), "{error}");
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

/// Writes the list of files that an interrupted run made: directory, name, content, key.
fn leave_list(keys: &Path, root: &str, files: &[(&Path, &str, &[u8], &str)]) {
    let digest = |bytes| refit_updater::Digest::of(bytes).to_string();
    let files: Vec<_> = files
        .iter()
        .map(|(dir, name, bytes, key)| json!({"dir": dir, "name": name, "digest": digest(bytes), "key": key}))
        .collect();
    let list = json!({"format": 1, "root": root, "files": files});
    put(keys, ".making.json", list.to_string().as_bytes(), 0o644);
}

/// Returns the names in `dir`, without those of content that was being written when a process died: nothing reads them.
fn lasting(dir: &Path) -> Vec<String> {
    key_files(dir).into_iter().filter(|name| !name.starts_with(".tmp")).collect()
}

#[test]
fn what_an_interrupted_run_left_is_removed_and_nothing_else() {
    let id = |keys: &Keys| keys.status()[0].keys[0].0.clone();
    let other = Vendor::new();
    let left = fs::read(other.dir.path().join("keys/refit.key.pem")).unwrap();
    let (name, left_id) = ("targets-v2.key.pem", id(&other.keys));
    let check = |gone: bool, list: &dyn Fn(&Path)| {
        let vendor = Vendor::new();
        let dir = vendor.dir.path().join("keys");
        put(&dir, name, &left, 0o600);
        list(&dir);
        // Nobody has to know of it.
        try_pack(&vendor, &Keys::open(&dir).unwrap(), "1.0.0").unwrap();
        let (keys, rotated) = Keys::open(&dir).unwrap().rotate(&rotation(&["targets"])).unwrap();
        try_pack(&vendor, &keys, "1.0.0").unwrap();
        assert_eq!(rotated.made, [dir.join(if gone { name } else { "targets-v2_2.key.pem" })]);
        assert_eq!(fs::read(dir.join(name)).unwrap() == left, !gone);
        assert!(!dir.join(".making.json").exists());
    };
    let listed = [(Path::new("/nowhere"), name, &left[..], left_id.as_str())];
    check(true, &|dir| leave_list(dir, "2.root.json", &listed));
    check(true, &|dir| {
        leave_list(dir, "2.root.json", &listed);
        put(dir, ".targets-v2.key.pem.new", b"-----BEGIN PRIV", 0o600);
    });
    check(false, &|_| {});
    check(false, &|dir| leave_list(dir, "1.root.json", &listed)); // it is there: that run came to its end
    check(false, &|dir| put(dir, ".making.json", b"somebody's", 0o644));
    check(false, &|dir| put(dir, ".making.json", b"{\"format\":2,\"root\":\"2.root.json\",\"files\":[]}", 0o644));
    // The name alone is not enough.
    check(false, &|dir| leave_list(dir, "2.root.json", &[(dir, name, b"another", &left_id)]));

    // What a root names stays, whatever a list says; and what somebody names for the next one, too.
    let vendor = Vendor::new();
    let dir = vendor.dir.path().join("keys");
    let own = fs::read(dir.join("refit.key.pem")).unwrap();
    put(&dir, name, &left, 0o600);
    leave_list(
        &dir,
        "9.root.json",
        &[(&dir, "refit.key.pem", &own, &id(&vendor.keys)), (&dir, "../keys/targets-v2.key.pem", &left, &left_id)],
    );
    let outside = vec![(KeyRole::Targets, Some(dir.join(name)))];
    let (keys, _) = Keys::open(&dir).unwrap().rotate(&Rotation { outside, ..rotation(&["targets"]) }).unwrap();
    try_pack(&vendor, &keys, "1.0.0").unwrap();
    assert_eq!(lasting(&dir), ["1.root.json", "2.root.json", "refit.key.pem", name]);

    // A medium comes back somewhere else.
    let stick = vendor.dir.path().join("stick");
    put(&stick, "root-v3.key.pem", &left, 0o600);
    put(&stick, ".root-v3.pub.pem.new", b"-----BEG", 0o644);
    let away = Path::new("/media/away");
    leave_list(
        &dir,
        "3.root.json",
        &[(away, "root-v3.key.pem", &left, "00"), (away, "root-v3.pub.pem", b"a public key", "00")],
    );
    let put_away = Rotation { root_dir: Some(stick.clone()), ..rotation(&["root"]) };
    let (_, rotated) = keys.rotate(&put_away).unwrap();
    assert_eq!(rotated.made, [stick.join("root-v3.key.pem")]);
    assert_eq!(key_files(&stick), ["root-v3.key.pem"]);
    assert_ne!(fs::read(stick.join("root-v3.key.pem")).unwrap(), left);

    // The first keys are made where the first keys were being made.
    let (dir, stick) = (other.dir.path().join("new"), other.dir.path().join("stick"));
    put(&dir, "online.key.pem", &own, 0o600);
    put(&stick, "root.key.pem", &left, 0o600);
    let setup = Setup { root_dir: Some(stick.clone()), ..Setup::one_key(far()) };
    assert!(matches!(Keys::create(&dir, &setup), Err(KeysError::Exists { .. })), "they may be somebody's");
    leave_list(&dir, "1.root.json", &[(&dir, "online.key.pem", &own, "00"), (&stick, "root.key.pem", &left, "00")]);
    Keys::create(&dir, &setup).unwrap();
    assert_eq!(
        (key_files(&dir), key_files(&stick)),
        (names(&["1.root.json", "online.key.pem"]), names(&["root.key.pem"]))
    );
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn one_run_at_a_time_changes_a_directory() {
    let vendor = Vendor::new();
    let dir = vendor.dir.path().join("keys");
    let before = key_files(&dir);
    let late = Keys::open(&dir).unwrap();
    let locked = fs::File::open(&dir).unwrap();
    locked.try_lock().unwrap();
    let error = Keys::open(&dir).unwrap().rotate(&rotation(&ALL)).unwrap_err();
    assert!(matches!(error, KeysError::Busy { .. }), "{error}");
    assert_eq!(key_files(&dir), before);
    locked.unlock().unwrap();
    Keys::open(&dir).unwrap().rotate(&rotation(&ALL)).unwrap();
    // One that has read the roots before does not write the same root again.
    let root = fs::read(dir.join("2.root.json")).unwrap();
    let error = late.rotate(&rotation(&ALL)).unwrap_err();
    assert!(matches!(error, KeysError::Busy { .. }), "{error}");
    assert_eq!(fs::read(dir.join("2.root.json")).unwrap(), root);
}

/// Names, to a child, the directory in which it is to make keys.
const DIR_VARIABLE: &str = "SUITE_KEYS_DIR";

/// Keys in files of every kind: the root's on a medium, and all with a passphrase.
fn sealed(dir: &Path) -> Setup {
    let passphrase = Some(Zeroizing::new("x".to_owned()));
    Setup { root_dir: Some(dir.join("stick")), passphrase, ..Setup::one_key(far()) }
}

fn open_sealed(dir: &Path) -> Keys {
    Keys::open_with(&dir.join("keys"), &[dir.join("stick")], says("x")).unwrap()
}

fn rotate_sealed(dir: &Path) -> Result<(), KeysError> {
    open_sealed(dir).rotate(&Rotation { passphrase: sealed(dir).passphrase, ..rotation(&ALL) }).map(|_| ())
}

/// Not a test by itself: what the child of the test below does.
#[test]
#[cfg(feature = "fault")]
fn child_makes_keys() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE).map(PathBuf::from) else { return };
    if dir.join("keys/1.root.json").exists() {
        rotate_sealed(&dir).unwrap();
    } else {
        Keys::create(&dir.join("keys"), &sealed(&dir)).unwrap();
    }
}

#[test]
#[cfg(feature = "fault")]
fn wherever_making_keys_dies_the_next_run_goes_on() {
    use std::os::unix::process::ExitStatusExt;
    /// Returns the names of both directories that are there when all is in order and the newest root is `version`.
    fn expected(version: u64) -> [Vec<String>; 2] {
        let suffix = if version == 1 { String::new() } else { format!("-v{version}") };
        let mut keys: Vec<String> = (1..=version).map(|version| format!("{version}.root.json")).collect();
        keys.extend(["key", "pub"].map(|kind| format!("online{suffix}.{kind}.pem")));
        let mut stick: Vec<String> = ["key", "pub"].map(|kind| format!("root{suffix}.{kind}.pem")).into();
        if version > 1 {
            keys.push("retired".to_owned());
            stick.insert(0, "retired".to_owned());
        }
        [keys, stick]
    }
    let vendor = Vendor::new();
    let prepared = fs::read(vendor.dir.path().join("keys/refit.key.pem")).unwrap();
    let mut deaths = 0;
    for (first, point) in
        [true, false].iter().flat_map(|first| ["temp_synced", "switched", "renamed"].map(|at| (*first, at)))
    {
        for nth in 1.. {
            let at = TempDir::new().unwrap();
            let dir = at.path();
            if !first {
                Keys::create(&dir.join("keys"), &sealed(dir)).unwrap();
                put(&dir.join("keys"), "prepared.key.pem", &prepared, 0o600);
            }
            put(dir, "fault", format!("{point} {nth}").as_bytes(), 0o644);
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "keys::child_makes_keys"]).env(DIR_VARIABLE, dir);
            let status = child.env("REFIT_FAULT_FILE", dir.join("fault")).output().unwrap().status;
            if first && !dir.join("keys/1.root.json").exists() {
                Keys::create(&dir.join("keys"), &sealed(dir)).unwrap();
            }
            // Whatever happened, the keys are whole, sign, and are followed by others.
            try_pack(&vendor, &open_sealed(dir), "1.0.0").unwrap();
            rotate_sealed(dir).unwrap();
            let keys = open_sealed(dir);
            try_pack(&vendor, &keys, "1.0.0").unwrap();
            let [mut names, stick] = expected(keys.root_version().0);
            if !first {
                names.push("prepared.key.pem".to_owned());
                assert_eq!(fs::read(dir.join("keys/prepared.key.pem")).unwrap(), prepared);
            }
            names.sort();
            let found = ["keys", "stick"].map(|name| {
                let dir = dir.join(name);
                // A public key may lie behind when its key was put aside right before.
                let behind = |name: &String| {
                    let key = name.strip_suffix(".pub.pem").map(|stem| format!("retired/{stem}.key.pem"));
                    key.is_some_and(|key| dir.join(key).exists())
                };
                lasting(&dir).into_iter().filter(|name| !behind(name)).collect::<Vec<_>>()
            });
            assert_eq!(found, [names, stick], "{first} {point} {nth}");
            // What has a name that nothing reads holds no secret.
            for (path, _, content) in snapshot(dir) {
                let is_temporary = path.file_name().unwrap().to_str().unwrap().starts_with(".tmp");
                assert!(!is_temporary || !String::from_utf8_lossy(&content).contains("PRIVATE KEY"), "{path:?}");
            }
            if status.success() {
                break;
            }
            assert_eq!(status.signal(), Some(6), "{point} {nth}");
            deaths += 1;
        }
    }
    assert!(deaths >= 2 * (2 + 2 + 4), "the list and the root, and four files of keys: {deaths}");
}

/// Not a test by itself: what the child of the test below does.
#[test]
fn child_makes_keys_on_a_full_disk() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE).map(PathBuf::from) else { return };
    let filler = fs::File::create(dir.join("filler")).unwrap();
    let mut full = 0;
    let fill = || {
        let mut length = 0;
        while std::os::unix::fs::FileExt::write_all_at(&filler, &[1; 4096], length).is_ok() {
            length += 4096;
        }
        length
    };
    // A page more at a time, until there is space enough.
    let mut meets_its_limit = |what: &dyn Fn() -> Result<(), KeysError>, is_new: bool| {
        let mut length = fill();
        let before = is_new.then(|| snapshot(&dir.join("keys")));
        while let Err(error) = what() {
            assert!(error.is_disk() && error.remedy().contains("free space"), "{error}");
            let now = snapshot(&dir.join("keys"));
            assert!(before.as_ref().map_or(now.is_empty(), |before| *before == now), "{now:?}");
            assert!(fs::read_dir(dir.join("stick")).map_or(0, Iterator::count) <= 2, "its keys, if it has any");
            full += 1;
            length -= 4096;
            filler.set_len(length).unwrap();
        }
    };
    meets_its_limit(&|| Keys::create(&dir.join("keys"), &sealed(&dir)).map(|_| ()), false);
    meets_its_limit(&|| rotate_sealed(&dir), true);
    assert_eq!(open_sealed(&dir).root_version().0, 2);
    assert!(full >= 2 * 6, "the list, four files of keys and the root: {full}");
    eprintln!("the disk was full {full} times");
}

#[test]
fn a_full_disk_leaves_the_keys_as_they_were() {
    let dir = TempDir::new().unwrap();
    let setup = format!("mount -t tmpfs -o size=64k tmpfs \"${DIR_VARIABLE}\"");
    let child = "keys::child_makes_keys_on_a_full_disk";
    let Some(output) = in_namespace(&setup, child, &[(DIR_VARIABLE, dir.path().as_os_str())]) else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("the disk was full"), "{text}");
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
