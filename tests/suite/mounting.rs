//! Mounts, for the tests that need one. They are made in a child of the test: root may mount, and in a user namespace of its own
//! everybody, where the machine allows it.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use refit_fixtures::tools::{assert_passed, in_namespace};

use crate::appliance::{Appliance, end_all};
use crate::process;

/// Says that this process may mount.
const VARIABLE: &str = "SUITE_MOUNTS";

/// Runs the test `child`, by its whole name, where it may mount.
pub(crate) fn assert_passes_where_it_may_mount(child: &str) {
    // Whether anything may be mounted shows before the child begins.
    let setup = "dir=$(mktemp -d) && mount -t tmpfs tmpfs \"$dir\" && umount \"$dir\" && rmdir \"$dir\"";
    let Some(output) = in_namespace(setup, child, &[(VARIABLE, "1".as_ref())]) else { return };
    assert_passed(&output);
}

/// Asserts that this is a child of [`assert_passes_where_it_may_mount`].
pub(crate) fn assert_may_mount() {
    assert!(std::env::var_os(VARIABLE).is_some(), "its parent lets it mount");
}

/// Runs `mount` with these words, and with the place where it mounts.
pub(crate) fn mount(words: &[&str], at: &Path) {
    assert!(Command::new("mount").args(words).arg(at).status().expect("run mount").success(), "{words:?}");
}

/// Has `dir` be another mount of the file system that it lies on.
pub(crate) fn bind(dir: &Path) {
    mount(&["--bind", dir.to_str().expect("text")], dir);
}

/// Moves `dir` to a file system of its own, of 64 MiB. Beneath it only an empty directory is left.
pub(crate) fn onto_a_small_disk(dir: &Path) {
    let script = "mv \"$1\" \"$1.away\" && mkdir \"$1\" && mount -t tmpfs -o size=64m tmpfs \"$1\" && \
                  cp -a \"$1.away/.\" \"$1\" && chmod -R u+w \"$1.away\" && rm -r \"$1.away\"";
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(dir).status().expect("run sh");
    assert!(status.success(), "{status}");
}

/// Mounts `dir` over itself, so that it cannot be written to until it is unmounted.
pub(crate) fn read_only(dir: &Path) {
    bind(dir);
    mount(&["-o", "remount,bind,ro"], dir);
}

/// Ends every process of the appliance at once.
pub(crate) fn end_at_once(appliance: &mut Appliance) {
    process::send(appliance.guard_pid(), Signal::SIGSTOP);
    end_all(appliance.home());
    appliance.kill_guard();
}

/// Unmounts what is mounted at `at`, even if it is in use.
pub(crate) fn unmount(at: &Path) {
    assert!(Command::new("umount").arg("-l").arg(at).status().expect("run umount").success());
}
