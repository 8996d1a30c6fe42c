//! What a release shares with its neighbours: found by content, read again only where it may have changed.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use refit_base::Reported;
use refit_fixtures::tools::{assert_passed, in_namespace};
use refit_fixtures_vendor::{Home, Vendor, noise, options, policy, put};
use refit_updater::manifest::Body;
use refit_updater::receive::Receiver;
use refit_updater::release::{FileProblem, Release};
use refit_updater::trust::Trust;
use refit_updater::{Digest, Store};
use semver::Version;
use serde_json::{Value, json};

const LIBRARY: &str = "lib/libshop.so";
const LIBRARY_BYTES: u64 = 29;
const CONFIG_BYTES: u64 = 13;

fn records_path(home: &Home) -> PathBuf {
    home.dir.path().join("releases/.checked.json")
}

fn records(home: &Home) -> Value {
    serde_json::from_slice(&fs::read(records_path(home)).unwrap()).unwrap()
}

/// The record that a file has when it was checked as it is now, without its digest.
fn looks(path: &Path) -> Value {
    let found = fs::symlink_metadata(path).unwrap();
    json!({
        "device": found.dev(), "inode": found.ino(), "size": found.len(),
        "modified": [found.mtime(), found.mtime_nsec()], "changed": [found.ctime(), found.ctime_nsec()],
    })
}

/// Asserts that every file of every release is known as it looks now, and that nothing else is.
fn assert_all_known(home: &Home) {
    let mut expected = Vec::new();
    for release in home.store.releases().unwrap() {
        for file in release.manifest.files() {
            if let Body::Regular { size, sha256, .. } = &file.body
                && *size > 0
            {
                let mut record = looks(&release.dir.join(&file.path));
                record["sha256"] = json!(sha256);
                expected.push(record.to_string());
            }
        }
    }
    let mut found: Vec<String> =
        records(home)["files"].as_array().unwrap().iter().map(|record| record.to_string()).collect();
    expected.sort();
    expected.dedup(); // one file can have many names
    found.sort();
    assert_eq!(found, expected);
}

/// Writes other bytes into an installed file, with the size and the time of modification that it had.
fn alter(release: &Release, name: &str) {
    let path = release.dir.join(name);
    let before = fs::metadata(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"A", 0).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    fs::set_permissions(&path, before.permissions()).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.len(), before.mtime_nsec()), (after.len(), after.mtime_nsec()));
}

#[test]
fn links_and_removals_leave_every_file_known() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        let release = home.install(&vendor.package(version));
        home.policy.current = Some(release.version);
    }
    home.store.remove(&Version::new(1, 0, 0)).unwrap();
    assert_all_known(&home);
    // One that is received and waits shares files, too.
    let received = home.receive(&vendor.package("1.3.0")).unwrap();
    home.store.remove(&Version::new(1, 1, 0)).unwrap();
    home.store.admit(received, &[]).unwrap();
    assert_all_known(&home);
    // Received twice: the second tree goes, and with it names of shared files.
    let package = vendor.package("1.4.0");
    home.receive(&package).unwrap();
    let received = home.receive(&package).unwrap();
    home.store.admit(received, &[]).unwrap();
    assert_all_known(&home);
}

#[test]
fn what_was_written_to_is_read_again() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    let first = home.install(&vendor.package("1.0.0"));
    home.policy.current = Some(first.version.clone());
    alter(&first, LIBRARY);
    let received = home.receive(&vendor.package("1.1.0")).unwrap();
    assert_eq!(received.linked_bytes, CONFIG_BYTES);
    let second = home.store.admit(received, &[]).unwrap();
    home.assert_whole(&second);
    // The whole one is shared from now on.
    home.policy.current = Some(second.version);
    let received = home.receive(&vendor.package("1.2.0")).unwrap();
    assert_eq!(received.linked_bytes, LIBRARY_BYTES + CONFIG_BYTES);
    home.assert_whole(&home.store.admit(received, &[]).unwrap());
}

#[test]
fn another_file_under_the_name_is_read() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    let first = home.install(&vendor.package("1.0.0"));
    home.policy.current = Some(first.version.clone());
    let path = first.dir.join(LIBRARY);
    let (before, lib) = (fs::metadata(&path).unwrap(), first.dir.join("lib"));
    fs::set_permissions(&lib, Permissions::from_mode(0o755)).unwrap();
    put(&lib, "libshop.so", &noise(3, LIBRARY_BYTES as usize), 0o444);
    fs::File::open(&path).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let received = home.receive(&vendor.package("1.1.0")).unwrap();
    assert_eq!(received.linked_bytes, CONFIG_BYTES);
    home.assert_whole(&home.store.admit(received, &[]).unwrap());
}

/// The records are what is asked, and not the disk; and when the disk turns out to be another, they go.
#[test]
fn what_is_known_is_not_read_until_a_verification_finds_it_altered() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    let first = home.install(&vendor.package("1.0.0"));
    home.policy.current = Some(first.version.clone());
    // A disk that changes bytes and nothing else: the record is made to fit.
    let path = first.dir.join(LIBRARY);
    alter(&first, LIBRARY);
    let mut forged = records(&home);
    for record in forged["files"].as_array_mut().unwrap() {
        if record["inode"] == json!(fs::metadata(&path).unwrap().ino()) {
            let sha256 = record["sha256"].clone();
            *record = looks(&path);
            record["sha256"] = sha256;
        }
    }
    put(&home.dir.path().join("releases"), ".checked.json", forged.to_string().as_bytes(), 0o644);
    let received = home.receive(&vendor.package("1.1.0")).unwrap();
    assert_eq!(received.linked_bytes, LIBRARY_BYTES + CONFIG_BYTES);
    let second = home.store.admit(received, &[]).unwrap();
    let report = home.store.verify(&second.version, &mut |_| {}).unwrap();
    assert_eq!((report.problems.len(), report.problems[0].what), (1, FileProblem::Content));
    assert!(!records_path(&home).exists());
    home.policy.current = Some(second.version);
    let received = home.receive(&vendor.package("1.2.0")).unwrap();
    assert_eq!(received.linked_bytes, CONFIG_BYTES);
    home.assert_whole(&home.store.admit(received, &[]).unwrap());
}

#[test]
fn records_that_cannot_be_used_cost_time_and_nothing_else() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    let release = home.install(&vendor.package("1.0.0"));
    home.policy.current = Some(release.version);
    let whole = fs::read(records_path(&home)).unwrap();
    let other_format = String::from_utf8(whole.clone()).unwrap().replace("\"format\":1", "\"format\":2");
    for (number, bytes) in
        [b"".as_slice(), &whole[..whole.len() / 2], b"[]", other_format.as_bytes()].iter().enumerate()
    {
        put(&home.dir.path().join("releases"), ".checked.json", bytes, 0o644);
        let received = home.receive(&vendor.package(&format!("1.{}.0", number + 1))).unwrap();
        assert_eq!(received.linked_bytes, LIBRARY_BYTES + CONFIG_BYTES);
        let release = home.store.admit(received, &[]).unwrap();
        home.assert_whole(&release);
        home.policy.current = Some(release.version);
    }
    // A directory in their place: nothing can be noted, and everything goes on.
    fs::remove_file(records_path(&home)).unwrap();
    fs::create_dir(records_path(&home)).unwrap();
    home.assert_whole(&home.install(&vendor.package("1.9.0")));
}

#[test]
fn a_kept_file_with_other_permissions_is_copied_and_counts_as_written() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    home.policy.current = Some(home.install(&vendor.package("1.0.0")).version);
    let tree = vendor.tree("1.1.0");
    fs::set_permissions(tree.join(LIBRARY), Permissions::from_mode(0o700)).unwrap();
    let received = home.receive(&vendor.pack(&tree, &options())).unwrap();
    assert_eq!(received.linked_bytes, CONFIG_BYTES);
    assert_eq!(received.written_bytes, received.manifest.installed_bytes() - CONFIG_BYTES);
    home.assert_whole(&home.store.admit(received, &[]).unwrap());
}

/// A name has no permissions of its own: a file that somebody changed the permissions of is not given another one.
#[test]
fn a_kept_file_whose_permissions_were_changed_is_copied() {
    for bits in [0o777, 0o400, 0o2444, 0o4555] {
        let vendor = Vendor::new();
        let mut home = Home::new(&vendor);
        let first = home.install(&vendor.package("1.0.0"));
        home.policy.current = Some(first.version.clone());
        fs::set_permissions(first.dir.join(LIBRARY), Permissions::from_mode(bits)).unwrap();
        let received = home.receive(&vendor.package("1.1.0")).unwrap();
        assert_eq!(received.linked_bytes, CONFIG_BYTES, "{bits:o}");
        let second = home.store.admit(received, &[]).unwrap();
        home.assert_whole(&second);

        // The same when the altered file is one whose content is known without reading it.
        let mut known = records(&home);
        let mut record = looks(&first.dir.join(LIBRARY));
        record["sha256"] = json!(Digest::of(b"a library that stays the same"));
        known["files"].as_array_mut().unwrap().push(record);
        put(&home.dir.path().join("releases"), ".checked.json", known.to_string().as_bytes(), 0o644);
        home.store.remove(&second.version).unwrap();
        let received = home.receive(&vendor.package("1.2.0")).unwrap();
        assert_eq!(received.linked_bytes, CONFIG_BYTES, "{bits:o}");
        home.assert_whole(&home.store.admit(received, &[]).unwrap());
        // What one release was spoilt by stays with it.
        let report = home.store.verify(&first.version, &mut |_| {}).unwrap();
        assert_eq!((report.problems.len(), report.problems[0].what), (1, FileProblem::Mode), "{bits:o}");
    }
}

/// A whole file of an older release is shared before a spoilt one of a newer release is copied.
#[test]
fn a_kept_file_that_can_be_shared_comes_before_one_that_cannot() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    home.policy.current = Some(home.install(&vendor.package("1.0.0")).version);
    let second = home.install(&vendor.package("1.1.0"));
    home.policy.current = Some(second.version.clone());
    let (path, lib) = (second.dir.join(LIBRARY), second.dir.join("lib"));
    fs::set_permissions(&lib, Permissions::from_mode(0o755)).unwrap();
    put(&lib, "libshop.so", b"a library that stays the same", 0o777);
    assert_eq!(fs::metadata(path).unwrap().nlink(), 1);
    let received = home.receive(&vendor.package("1.2.0")).unwrap();
    assert_eq!(received.linked_bytes, LIBRARY_BYTES + CONFIG_BYTES);
    home.assert_whole(&home.store.admit(received, &[]).unwrap());
}

/// Name, to a child, a home below an overlay, and where the packages are.
const HOME_VARIABLE: &str = "SUITE_SHARING_HOME";
const PACKAGES_VARIABLE: &str = "SUITE_SHARING_PACKAGES";

/// Not a test by itself: what the child of the next one does.
#[test]
#[ignore = "run by the next test, below an overlay"]
fn child_updates_a_home_below_an_overlay() {
    let [dir, packages] = [HOME_VARIABLE, PACKAGES_VARIABLE]
        .map(|variable| PathBuf::from(std::env::var_os(variable).expect("its parent names the directories")));
    let (store, trust) = (Store::open(&dir).unwrap(), Trust::open(&dir).unwrap());
    for version in ["1.1.0", "1.2.0"] {
        let package = fs::read(packages.join(version)).unwrap();
        let (policy, cancel) = (policy(), AtomicBool::new(false));
        let receiver = Receiver { store: &store, trust: &trust, policy: &policy, cancel: &cancel, room: None };
        let release = store.admit(receiver.receive(&package[..], &mut |_| {}).unwrap(), &[]).unwrap();
        assert_eq!(store.verify(&release.version, &mut |_| {}).unwrap().problems, []);
    }
}

/// A factory image that is never written to, with an overlay above it: there a file has another inode once it gets a name.
#[test]
fn a_home_below_an_overlay_is_updated() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let pack = |version: &str| {
        let tree = vendor.tree(version);
        for name in ["share/one", "share/other"] {
            put(&tree, name, b"one file with two names", 0o644);
        }
        vendor.pack(&tree, &options())
    };
    home.install(&pack("1.0.0"));
    let (lower, beside) = (home.dir.path(), tempfile::tempdir().unwrap());
    for version in ["1.1.0", "1.2.0"] {
        fs::write(beside.path().join(version), pack(version)).unwrap();
    }
    let setup = format!(
        "cd \"${PACKAGES_VARIABLE}\" && mkdir upper work && mount -t overlay -o \
         \"userxattr,index=off,lowerdir=${HOME_VARIABLE},upperdir=upper,workdir=work\" overlay \"${HOME_VARIABLE}\""
    );
    let variables = [(HOME_VARIABLE, lower.as_os_str()), (PACKAGES_VARIABLE, beside.path().as_os_str())];
    let child = "sharing::child_updates_a_home_below_an_overlay";
    let Some(output) = in_namespace(&setup, child, &variables) else { return };
    assert_passed(&output);
}

#[test]
fn the_holes_of_a_kept_file_survive_other_permissions() {
    const SIZE: u64 = 64 << 20;
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    for (version, mode) in [("1.0.0", 0o644), ("1.1.0", 0o755)] {
        let tree = vendor.tree(version);
        put(&tree, "share/sparse", b"a beginning", mode);
        let file = OpenOptions::new().write(true).open(tree.join("share/sparse")).unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(b"an end", SIZE - 6).unwrap();
        let release = home.install(&vendor.pack(&tree, &options()));
        home.assert_whole(&release);
        let found = fs::metadata(release.dir.join("share/sparse")).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (SIZE, mode & 0o555));
        assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
        home.policy.current = Some(release.version);
    }
}

/// File systems limit the names of a file, ext4 to 65,000, and a release shares one of its neighbour's.
#[test]
fn more_files_have_one_content_than_a_file_can_have_names() {
    const FILES: u64 = 66_000;
    const CONTENT: &[u8] = b"the same";
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    let tree = vendor.tree("1.0.0");
    for number in 0..FILES {
        let dir = tree.join(format!("share/{}", number / 1_000));
        let first = dir.join("first");
        if number % 1_000 == 0 {
            fs::create_dir(&dir).unwrap();
            fs::write(first, CONTENT).unwrap();
        } else {
            fs::hard_link(first, dir.join(number.to_string())).unwrap(); // quicker to make than a file
        }
    }
    for (version, shared_min) in [("1.0.0", 0), ("1.1.0", FILES / 2 * CONTENT.len() as u64)] {
        let description = format!("[appliance]\nname = \"shop\"\nversion = \"{version}\"\n");
        put(&tree, "appliance.toml", description.as_bytes(), 0o644);
        let received = home.receive(&vendor.pack(&tree, &options())).unwrap();
        assert!(received.linked_bytes >= shared_min, "{} of {shared_min} bytes", received.linked_bytes);
        let release = home.store.admit(received, &[]).unwrap();
        home.assert_whole(&release);
        home.policy.current = Some(release.version);
    }
}

#[test]
fn a_file_whose_frames_are_signed_and_whose_digest_is_that_of_another_is_refused() {
    let vendor = Vendor::new();
    let tree = vendor.tree("1.0.0");
    let content = noise(1, 5 << 19); // three frames
    put(&tree, "share/big", &content, 0o644);
    let path = tree.join("share/big");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let out = vendor.out("package.refit");
    // The vendor's machine lies: after the file was hashed it is another, with the same size and time.
    let mut lied = false;
    let mut lie = |progress: refit_author::pack::PackProgress| {
        if progress.bytes == progress.bytes_total && !lied {
            lied = true;
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(b"other", 3 << 19).unwrap();
            file.set_modified(modified).unwrap();
        }
    };
    refit_author::pack::pack(&tree, &out, &vendor.keys, &options(), &mut lie).unwrap();
    assert!(lied);
    let home = Home::new(&vendor);
    let before = home.snapshot();
    let error = home.receive(&fs::read(&out).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "\"share/big\": its frames decode to other content than was signed");
    assert_eq!(error.code(), "content_invalid");
    assert_eq!(home.snapshot(), before);
}
