//! The access list of a release's live configuration: besides its owner, who may look into it.
//!
//! A list of POSIX (`getfacl`) is a value beside the directory's mode. Its own files keep their modes: what nobody else may enter
//! needs no more.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use refit_updater::modes::{CONFIG_DIR, CONFIG_DIR_WITHOUT_LISTS};
use rustix::fs::{OFlags, XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// Where Linux keeps the list (`linux/xattr.h`).
const NAME: &str = "system.posix_acl_access";
/// Its version (`linux/posix_acl_xattr.h`).
const VERSION: u32 = 2;
/// Whom an entry is for (`linux/posix_acl.h`).
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;
/// The number of an entry that is for no account of its own.
const NOBODY: u32 = u32::MAX;
/// What an entry may allow.
const READ_AND_ENTER: u16 = 0o5;
const ALL: u16 = 0o7;

/// Lets the accounts `users`, besides the owner, look into the directory `dir`, and no others than its group. What is so already
/// is not touched. Returns whether that could be done: a file system without access lists opens the directory to all that know
/// the names of its files.
///
/// # Errors
/// It is not there, is not a directory, or cannot be changed.
pub fn let_in(dir: &Path, users: &BTreeSet<u32>) -> io::Result<bool> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let dir = OpenOptions::new().read(true).custom_flags(flags).open(dir)?;
    let owner = dir.metadata()?.uid();
    let users: BTreeSet<u32> = users.iter().copied().filter(|user| *user != owner && *user != 0).collect();
    if users.is_empty() {
        return match fremovexattr(&dir, NAME) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => set_mode(&dir, CONFIG_DIR).map(|()| true),
            Err(error) => Err(error.into()),
        };
    }
    let list = list(&users);
    let mut now = vec![0; list.len() + 1];
    if fgetxattr(&dir, NAME, &mut now).is_ok_and(|length| now[..length] == list[..]) {
        return Ok(true);
    }
    match fsetxattr(&dir, NAME, &list, XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOTSUP) => set_mode(&dir, CONFIG_DIR_WITHOUT_LISTS).map(|()| false),
        Err(error) => Err(error.into()),
    }
}

fn set_mode(dir: &File, mode: u32) -> io::Result<()> {
    if dir.metadata()?.mode() & 0o777 == mode {
        return Ok(());
    }
    dir.set_permissions(Permissions::from_mode(mode))
}

/// Returns the list that lets `users` in, as the kernel keeps it: entries in the order of their kinds, then of their numbers.
fn list(users: &BTreeSet<u32>) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    let mut add = |kind: u16, allowed: u16, number: u32| {
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&allowed.to_le_bytes());
        bytes.extend_from_slice(&number.to_le_bytes());
    };
    add(OWNER, ALL, NOBODY);
    for user in users {
        add(USER, READ_AND_ENTER, *user);
    }
    add(OWNING_GROUP, READ_AND_ENTER, NOBODY);
    add(MASK, READ_AND_ENTER, NOBODY);
    add(OTHERS, 0, NOBODY);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_one_entry_for_each_account() {
        assert_eq!(list(&BTreeSet::new()).len(), 4 + 4 * 8);
        let two = list(&BTreeSet::from([65_534, 1]));
        assert_eq!(two.len(), 4 + 6 * 8);
        assert_eq!(two[..4], [2, 0, 0, 0]);
        assert_eq!(two[12..28], [2, 0, 5, 0, 1, 0, 0, 0, 2, 0, 5, 0, 0xfe, 0xff, 0, 0]);
    }
}
