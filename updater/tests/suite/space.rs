//! Disks that are too small, and disks that fill while a package is unpacked.
//!
//! A full disk is made in a child of this test: with a file system in memory of its own where a user may mount one, and with
//! a limit on the size of files where not. Both are tried by every user; what the machine does not allow is said.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use nix::sys::resource::{Resource, setrlimit};
use refit_base::{Exit, Reported};
use refit_fixtures::tools::{assert_passed, child, in_namespace};
use refit_fixtures_vendor::{Home, Vendor, noise, options, put};
use refit_updater::receive::{ReceiveError, ReceiveProgress};

/// Names, to a child, the directory in which it is to work.
const DIR_VARIABLE: &str = "SUITE_SPACE_DIR";
/// Names, to a child, what to do there.
const CASE_VARIABLE: &str = "SUITE_SPACE_CASE";
/// Less than a file of the release has.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The test that the children are.
const CHILD: &str = "space::child_meets_its_limit";

/// A home in `dir`, and the package of a release with `bytes` that no codec makes smaller.
fn home_in(dir: &Path, bytes: usize) -> (Home, Vec<u8>) {
    let vendor = Vendor::new();
    let tree = vendor.tree("1.0.0");
    for number in 0..4 {
        put(&tree, &format!("share/noise-{number}"), &noise(number, bytes / 4), 0o644);
    }
    let package = vendor.pack(&tree, &options());
    (Home::new_in(&vendor, dir), package)
}

/// Not a test by itself: what the children of the tests below do.
#[test]
#[ignore = "run by the tests below, each with a limit"]
fn child_meets_its_limit() {
    let dir = PathBuf::from(std::env::var_os(DIR_VARIABLE).expect("its parent names the directory"));
    let case = std::env::var(CASE_VARIABLE).unwrap();
    let (home, package) = home_in(&dir, 12 << 20);
    let before = home.snapshot();
    if case == "limit" {
        setrlimit(Resource::RLIMIT_FSIZE, FILE_BYTES_MAX, FILE_BYTES_MAX).unwrap();
    }
    let filler = dir.join("filler");
    let mut progressed = false;
    let mut fill = |progress: ReceiveProgress| {
        if let ReceiveProgress::Unpacking { bytes, bytes_total } = progress {
            progressed = true;
            if case == "full" && bytes > bytes_total / 3 && !filler.exists() {
                let mut file = File::create(&filler).unwrap();
                while file.write_all(&[1; 1 << 16]).is_ok() {}
                while file.write_all(&[1]).is_ok() {}
            }
        }
    };
    let result = home.receiver(&AtomicBool::new(false)).receive(&package[..], &mut fill);
    let error = result.unwrap_err();
    assert_eq!(error.exit(), Exit::Disk, "{error}");
    assert_eq!(home.snapshot(), before, "something was left behind");
    match (case.as_str(), &error) {
        ("full" | "limit", ReceiveError::File(_)) => assert!(progressed),
        ("small", ReceiveError::NoSpace { .. }) | ("inodes", ReceiveError::NoInodes { .. }) => assert!(!progressed),
        _other => panic!("{case}: {error:?}"),
    }
}

/// A file that must not grow past a size ends the work as a full disk does.
#[test]
fn a_file_that_cannot_be_written_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // The signal that comes with the limit would end the child.
    let (child, mut shell) = (child(CHILD), Command::new("sh"));
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(child.get_program()).args(child.get_args());
    assert_passed(&shell.env(DIR_VARIABLE, dir.path()).env(CASE_VARIABLE, "limit").output().unwrap());
}

#[test]
fn a_full_disk_leaves_nothing() {
    for (case, size) in [("full", "size=28m"), ("small", "size=10m"), ("inodes", "size=64m,nr_inodes=80")] {
        let dir = tempfile::tempdir().unwrap();
        let setup = format!("mount -t tmpfs -o {size} tmpfs \"${DIR_VARIABLE}\"");
        let variables = [(DIR_VARIABLE, dir.path().as_os_str()), (CASE_VARIABLE, case.as_ref())];
        let Some(output) = in_namespace(&setup, CHILD, &variables) else { return };
        assert_passed(&output);
    }
}

#[test]
fn holes_need_no_space() {
    let vendor = Vendor::new();
    let tree = vendor.tree("1.0.0");
    let path = tree.join("share/sparse");
    let file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(1, 100_000), 20 << 20).unwrap();
    let (_, package, report) = vendor.pack_file(&tree, &options());
    assert_eq!(report.totals.hole_bytes, (64 << 20) - (2 << 16));
    assert!(report.payload_bytes < 200_000);
    let home = Home::new(&vendor);
    let release = home.install(&package);
    home.assert_whole(&release);
    let installed = fs::metadata(release.dir.join("share/sparse")).unwrap();
    assert_eq!(installed.len(), 64 << 20);
    assert!(installed.blocks() * 512 < 1 << 20, "{} blocks", installed.blocks());
}
