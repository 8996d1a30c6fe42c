//! The directories below `data/` that a component is given: made with its account before its process starts.
//!
//! Other components may write below `data/`, so each step is taken from a descriptor and follows no link. A link that an admin has
//! made is accepted where it leads to a place below `data/`, and what lies there is left as it is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, fchown};
use refit_base::Cause;
use refit_bus::Failure;
use refit_updater::modes;
use rustix::fs::{Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, open, openat, openat2};
use rustix::io::Errno;

use super::spawn::Account;
use crate::config::Component;

/// Makes the directories of `component`, which runs as `account`, below `data`.
///
/// # Errors
/// One of them is not there and cannot be made, or leads elsewhere.
pub(super) fn make_all(component: &Component, account: Account, data: &Path) -> Result<(), Failure> {
    for dir in &component.data {
        make(dir, component.user.is_some(), account, data).map_err(|(at, error)| {
            let at = at.display();
            let reason = match Errno::from_io_error(&error) {
                Some(Errno::XDEV) => format!(
                    "cannot use data/{dir}: {at} is a link that leads out of data/; mount what it leads to there, or make it a directory"
                ),
                Some(Errno::PERM) => format!(
                    "cannot give data/{dir} to the component's account: {at}: {error}; run Refit as root, or make the directory with `chown`"
                ),
                Some(_) | None => format!("cannot make data/{dir}: {at}: {error}"),
            };
            Failure::new(reason).with_cause(Cause::of(&error))
        })?;
    }
    Ok(())
}

/// Makes `dir`, one step after the other. `is_theirs` says that the account is one of the component's own.
fn make(dir: &str, is_theirs: bool, account: Account, data: &Path) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        |error: Errno| (path, io::Error::from(error))
    };
    let top = open(data, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH, Mode::empty()).map_err(at(data))?;
    let mut path = data.to_owned();
    let mut above: Option<OwnedFd> = None;
    for name in Path::new(dir) {
        path.push(name);
        let parent = above.as_ref().map_or(top.as_fd(), OwnedFd::as_fd);
        match step(parent, Path::new(name), is_theirs, account, &path).map_err(at(&path))? {
            Some(next) => above = Some(next),
            // The rest of the way is the admin's.
            None => return follow(top.as_fd(), Path::new(dir)).map_err(at(&path)),
        }
    }
    Ok(())
}

/// Makes the directory `name` in `parent` unless it is there, gives it to the account, and returns it; `None` if it is a link.
fn step(
    parent: BorrowedFd<'_>,
    name: &Path,
    is_theirs: bool,
    account: Account,
    path: &Path,
) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let is_new = match mkdirat(parent, name, Mode::from_bits_truncate(modes::PRIVATE_DIR)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error),
    };
    let made = match openat(parent, name, flags, Mode::empty()) {
        Ok(made) => made,
        Err(Errno::LOOP | Errno::NOTDIR) if is_link(parent, name) => return Ok(None),
        // It is another's, who is not this account: its process will find out what it may do there.
        Err(Errno::ACCESS) if !is_new => openat(parent, name, flags | OFlags::PATH, Mode::empty())?,
        Err(error) => return Err(error),
    };
    let was = fstat(&made)?;
    if is_new || (is_theirs && was.st_uid != account.uid) {
        if was.st_uid != account.uid || was.st_gid != account.gid {
            let owner = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
            fchown(&made, Some(owner.0), Some(owner.1)).map_err(|error| Errno::from_raw_os_error(error as i32))?;
        }
        if is_new {
            // After the owner: one that is given away loses nothing of its mode.
            fchmod(&made, Mode::from_bits_truncate(modes::of("data/*")))?;
        } else {
            tracing::warn!(path = %path.display(), was = was.st_uid, now = account.uid,
                "a directory of data/ belonged to another account, and belongs to the component's now; what is in it was left as it is");
        }
    }
    Ok(Some(made))
}

fn is_link(parent: BorrowedFd<'_>, name: &Path) -> bool {
    rustix::fs::readlinkat(parent, name, Vec::new()).is_ok()
}

/// Finds out whether the links in `dir` lead to a directory below `top`.
fn follow(top: BorrowedFd<'_>, dir: &Path) -> Result<(), Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
    openat2(top, dir, flags, Mode::empty(), ResolveFlags::BENEATH).map(drop)
}
