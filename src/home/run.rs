//! Where the sockets of an appliance are whose disk is read-only: in a directory in memory, `/run/refit-HOME` or `/dev/shm/refit-HOME`, with a
//! digest of the home's path for its name. The guard makes it, and removes it when the disk can be written to again.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;
use refit_updater::digest::Digest;
use refit_updater::{durable, modes};

/// File systems in memory that every Linux has; the first may be root's alone.
const IN_MEMORY: [&str; 2] = ["/run", "/dev/shm"];
/// How much of the digest is enough to tell the homes of one machine apart.
const DIGEST_CHARS: usize = 16;

/// Returns the directory in memory that the guard of `home` uses, if it does.
pub(super) fn in_memory(home: &Path) -> Option<PathBuf> {
    let owner = fs::metadata(home).ok()?.uid();
    places(home).into_iter().find(|place| is_ours(place, owner))
}

/// Makes the directory in memory if the disk of `home` is read-only, and removes it if not. Only the guard may, which holds the lock.
///
/// # Errors
/// None can be made.
pub(super) fn choose(home: &Path) -> io::Result<bool> {
    let there = in_memory(home);
    if !is_read_only(home) {
        return there.map_or(Ok(false), |place| durable::remove_tree(&place).map(|()| false));
    }
    if there.is_some() {
        return Ok(true);
    }
    let mut result = Ok(false);
    for place in places(home) {
        result = durable::create_dirs(&place, modes::of("run")).map(|()| true);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Returns whether nothing can be written to the disk of `home`.
pub(super) fn is_read_only(home: &Path) -> bool {
    statvfs(home).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

fn places(home: &Path) -> [PathBuf; 2] {
    let digest = Digest::of(home.as_os_str().as_encoded_bytes()).to_string();
    IN_MEMORY.map(|dir| Path::new(dir).join(format!("refit-{}", &digest[..DIGEST_CHARS])))
}

/// Returns whether `place` is a directory that only the home's owner, root or this account has made: everybody may make one in `/dev/shm`.
fn is_ours(place: &Path, owner: u32) -> bool {
    fs::symlink_metadata(place).is_ok_and(|found| {
        let made_by = found.uid();
        found.is_dir()
            && found.mode() & 0o022 == 0
            && (made_by == owner || made_by == 0 || made_by == geteuid().as_raw())
    })
}
