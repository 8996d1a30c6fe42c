//! What the mounts that paths lie on let be done with them.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatVfsMountFlags, StatxFlags, statvfs, statx};

/// Returns whether a rename may lead from one directory to the other: it crosses neither to another file system or subvolume, nor to
/// another mount of the same one, rename(2).
///
/// # Errors
/// One of them cannot be looked at.
pub fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    // A kernel before 5.8 tells no mount, and says 0 of both.
    let place = |path| {
        let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
        io::Result::Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id))
    };
    Ok(place(one)? == place(other)?)
}

/// Returns whether the file at `path` lies where no program may be executed.
pub fn is_noexec(path: &Path) -> bool {
    statvfs(path).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::NOEXEC))
}
