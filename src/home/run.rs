//! Where the sockets of an appliance are whose disk is read-only: in a directory in memory, `/run/refit-HOME` or `/dev/shm/refit-HOME`, with a
//! digest of the home's path for its name, and a number after it where another account has made one of that name. The guard makes it, and
//! removes it when the disk can be written to again.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Uid, User, geteuid};
use refit_updater::digest::Digest;
use refit_updater::{durable, modes};

/// File systems in memory that every Linux has; the first may be root's alone.
const IN_MEMORY: [&str; 2] = ["/run", "/dev/shm"];
/// So many other names are tried where another account has made a directory of the name: everybody may, in `/dev/shm`.
const OTHERS_MAX: u32 = 64;
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
    let owner = fs::metadata(home)?.uid();
    make_first(places(home), owner).map(|()| true)
}

/// Makes the first of `places` that can be had.
///
/// # Errors
/// None can: what was in the way of the last one.
fn make_first(places: impl IntoIterator<Item = PathBuf>, owner: u32) -> io::Result<()> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for place in places {
        result = durable::create_dirs(&place, modes::of("run")).and_then(|()| {
            // What was there before may be anybody's.
            if is_ours(&place, owner) { Ok(()) } else { Err(in_the_way(&place)) }
        });
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Says that something of another account has the place of a directory.
fn in_the_way(place: &Path) -> io::Error {
    let owner = fs::symlink_metadata(place).map_or(0, |found| found.uid());
    let name = User::from_uid(Uid::from_raw(owner)).ok().flatten().map_or_else(|| owner.to_string(), |user| user.name);
    let place = place.display();
    io::Error::other(format!(
        "its disk is read-only, and {place} is in the way, which the account {name} has made: remove it"
    ))
}

/// Returns whether nothing can be written to the disk of `home`.
pub(super) fn is_read_only(home: &Path) -> bool {
    statvfs(home).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

fn places(home: &Path) -> Vec<PathBuf> {
    let digest = Digest::of(home.as_os_str().as_encoded_bytes()).to_string();
    let name = format!("refit-{}", &digest[..DIGEST_CHARS]);
    let others = (1..=OTHERS_MAX).map(|number| format!("{name}.{number}"));
    let names: Vec<String> = std::iter::once(name.clone()).chain(others).collect();
    IN_MEMORY.iter().flat_map(|dir| names.iter().map(|name| Path::new(dir).join(name))).collect()
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_that_is_not_ours_is_left_for_the_next_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        let own = geteuid().as_raw();
        fs::create_dir(&one).expect("made");
        fs::set_permissions(&one, fs::Permissions::from_mode(0o777)).expect("set"); // as if it were somebody else's
        make_first([one.clone(), other.clone()], own).expect("the other one");
        assert!(is_ours(&other, own) && !is_ours(&one, own));
        let said = make_first([one.clone()], own).expect_err("it is in the way").to_string();
        assert!(said.contains(&one.display().to_string()) && said.contains("remove it"), "{said}");
        std::os::unix::fs::symlink(&other, dir.path().join("link")).expect("linked");
        assert!(make_first([dir.path().join("link")], own).is_err(), "a link leads anywhere");
    }
}
