//! Keys outside: whom they sign for, and the programs that sign with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use refit_author::keys::{KeyRole, KeyStatus, Keys, Rotation, Setup, role_named};
use refit_base::Reported;
use refit_fixtures::tools::{missing, put_program};
use refit_fixtures_vendor::{ALL, Home, Vendor, far, put, rotation, snapshot};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::keys::{key_files, says, try_pack};

/// A program that signs with a key of OpenSSL, as a security module would.
fn device(dir: &Path, kind: &[&str], sign: &str) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let openssl = |arguments: &[&str]| Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
    let made = openssl(&[&["genpkey", "-out", "secret.pem"], kind].concat());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(openssl(&["pkey", "-in", "secret.pem", "-pubout", "-out", "device.pem"]).status.success());
    let script = format!("#!/bin/sh\nset -e\ncat >\"$1\"\n{sign}\nrm \"$1\"\n");
    put_program(&dir.join("sign"), &script);
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
        put_program(&dir.join("sign"), &format!("#!/bin/sh\n{script}\n"));
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
