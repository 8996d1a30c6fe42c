//! Keys on their way to the disk: runs that are interrupted, disks that are full, two at a time.

use std::fs;
use std::path::{Path, PathBuf};

use refit_author::keys::{KeyRole, Keys, KeysError, Rotation, Setup};
use refit_base::Reported;
use refit_fixtures::tools::{assert_passed, in_namespace};
use refit_fixtures_vendor::{ALL, Vendor, far, put, rotation, snapshot};
use serde_json::json;
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::keys::{key_files, says, try_pack};

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
pub(crate) fn sealed(dir: &Path) -> Setup {
    let passphrase = Some(Zeroizing::new("x".to_owned()));
    Setup { root_dir: Some(dir.join("stick")), passphrase, ..Setup::one_key(far()) }
}

fn open_sealed(dir: &Path) -> Keys {
    Keys::open_with(&dir.join("keys"), &[dir.join("stick")], says("x")).unwrap()
}

pub(crate) fn rotate_sealed(dir: &Path) -> Result<(), KeysError> {
    open_sealed(dir).rotate(&Rotation { passphrase: sealed(dir).passphrase, ..rotation(&ALL) }).map(|_| ())
}

/// Not a test by itself: what the child of the test below does.
#[test]
#[cfg(feature = "fault")]
#[ignore = "run by the test below, until a point at which it dies"]
fn child_makes_keys() {
    let dir = PathBuf::from(std::env::var_os(DIR_VARIABLE).expect("its parent names the directory"));
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
            let mut child = refit_fixtures::tools::child("making::child_makes_keys");
            let output = child.env(DIR_VARIABLE, dir).env("REFIT_FAULT_FILE", dir.join("fault")).output().unwrap();
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
            if output.status.success() {
                assert_passed(&output);
                break;
            }
            assert_eq!(output.status.signal(), Some(6), "{point} {nth}");
            deaths += 1;
        }
    }
    assert!(deaths >= 2 * (2 + 2 + 4), "the list and the root, and four files of keys: {deaths}");
}

/// Not a test by itself: what the child of the test below does.
#[test]
#[ignore = "run by the test below, on a small disk"]
fn child_makes_keys_on_a_full_disk() {
    let dir = PathBuf::from(std::env::var_os(DIR_VARIABLE).expect("its parent names the directory"));
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
}

#[test]
fn a_full_disk_leaves_the_keys_as_they_were() {
    let dir = TempDir::new().unwrap();
    let setup = format!("mount -t tmpfs -o size=64k tmpfs \"${DIR_VARIABLE}\"");
    let child = "making::child_makes_keys_on_a_full_disk";
    let Some(output) = in_namespace(&setup, child, &[(DIR_VARIABLE, dir.path().as_os_str())]) else { return };
    assert_passed(&output);
}
