//! The socket on which one process of a component reports: where it lies, and which account can reach it.
//!
//! Each process has one of its own, in a directory of its own, which only its account can enter: what others send there would
//! not be believed, but would take its place in the queue. Modes are set and not left to the umask.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::spawn::Account;
use crate::carry::CarriedInstance;
use crate::handover::notify;
use crate::home::{Home, names};

/// The longest path that fits into a socket's address: a component uses the path as it is.
const PATH_BYTES_MAX: usize = 107;
/// Where the directory lies if the home's own path is longer than that.
const SHORT_PLACES: [&str; 2] = ["/run", "/tmp"];
/// The name of such a directory begins so.
const SHORT_PREFIX: &str = "refit-";
/// The name of a socket in its directory.
const NAME: &str = "socket";

/// Binds the socket of the process `id`, which runs as `account`. Returns it with its path.
///
/// # Errors
/// The directory or the socket cannot be made; what is left is removed by [`tidy`].
pub(super) fn bind(home: &Home, id: &str, account: Account) -> io::Result<(UnixDatagram, PathBuf)> {
    let own = geteuid();
    let dir = match new_dir(&home.notify(), id) {
        // The disk has become so while the guard runs: then nothing can lead to it either.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => short_dir()?,
        dir => dir?,
    };
    let path = dir.join(NAME);
    let socket = notify::bind(&path)?;
    if account.uid != own.as_raw() && own.is_root() {
        chown(&path, Some(account.uid), None)?;
        // Its group may pass, and the account alone may use the socket; neither may put anything there.
        chown(&dir, None, Some(account.gid))?;
        fs::set_permissions(&dir, Permissions::from_mode(0o710))?;
    }
    names::give_second_name(home, &path, &names::key_of_process(id));
    Ok((socket, path))
}

/// Makes the directory of the process `id` in that of all sockets, or, where its path is too long, another one to which a link leads.
fn new_dir(all: &Path, id: &str) -> io::Result<PathBuf> {
    make_all(all)?;
    let dir = all.join(id);
    remove(&dir)?;
    if dir.join(NAME).as_os_str().len() <= PATH_BYTES_MAX {
        return make_dir(dir);
    }
    let short = short_dir()?;
    symlink(&short, dir)?; // so that it is found again when nobody knows of it any more
    Ok(short)
}

/// Makes the directories again in which the socket of the process `instance` lies, at `path`, where they are gone.
///
/// # Errors
/// One cannot be made.
pub fn make_place(home: &Home, instance: &CarriedInstance, path: &Path) -> io::Result<()> {
    let (own, all) = (geteuid(), home.notify());
    make_all(&all)?;
    let place = all.join(&instance.id);
    let Some(dir) = path.parent() else { return Ok(()) };
    if dir != place && fs::symlink_metadata(&place).is_err() && dir.starts_with(&all) {
        return Ok(()); // as an older release had it: all sockets in one directory
    }
    if fs::symlink_metadata(dir).is_err() {
        make_dir(dir.to_owned())?;
        if instance.account.is_some_and(|account| account != own.as_raw()) {
            fs::set_permissions(dir, Permissions::from_mode(0o711))?; // the account alone may use the socket
        }
    }
    if dir != place && fs::symlink_metadata(&place).is_err() {
        symlink(dir, place)?;
    }
    Ok(())
}

/// Removes the socket of the process `instance`, of which nothing is known any more.
pub fn remove_of(home: &Home, instance: &CarriedInstance) {
    if let Some(path) = &instance.notify_path
        && let Err(error) = remove_socket(home, &instance.id, path)
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a notify socket");
    }
}

/// Makes the directory of all sockets.
fn make_all(all: &Path) -> io::Result<()> {
    fs::create_dir_all(all)?;
    // Only root starts processes of other accounts, who have to get through and have nothing to look for.
    fs::set_permissions(all, Permissions::from_mode(if geteuid().is_root() { 0o711 } else { 0o700 }))
}

/// Binds a socket in the place of the one at `path`, which got lost, for a process that runs as `account`.
///
/// # Errors
/// It cannot be made.
pub(super) fn bind_again(path: &Path, account: Option<u32>) -> io::Result<UnixDatagram> {
    remove(path)?;
    let socket = notify::bind(path)?;
    // An older release told nothing of it; it is closed when the process is adopted.
    if let Some(account) = account {
        close_to_others(path, account)?;
    }
    Ok(socket)
}

/// Closes the socket at `path`, which an older release left open to every account, to all but `account`.
///
/// # Errors
/// It is not there, or cannot be changed.
pub(super) fn close_to_others(path: &Path, account: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    if account != geteuid().as_raw() { chown(path, Some(account), None) } else { Ok(()) }
}

/// Returns where the socket of the process `id` lies of which an older release says nothing: it bound it where it kept all of them,
/// or took it over from a newer release. `None` if it is in neither place.
pub(super) fn find(home: &Home, id: &str) -> Option<PathBuf> {
    [home.notify().join(id).join(NAME), home.notify().join(format!("{id}.sock"))].into_iter().find(|path| path.exists())
}

/// Removes the socket of the process `id` at `path`, and its directory if that is its own.
///
/// # Errors
/// Something of it is still there.
pub(super) fn remove_socket(home: &Home, id: &str, path: &Path) -> io::Result<()> {
    let place = home.notify().join(id);
    if fs::symlink_metadata(&place).is_ok_and(|found| found.is_symlink()) {
        remove(&place)?;
    }
    match (path.file_name(), path.parent()) {
        (Some(name), Some(dir)) if name == NAME => remove(dir),
        (_, _) => remove(path),
    }
}

/// Removes what is left of processes other than `kept`.
pub fn tidy(home: &Home, kept: &BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(home.notify()) else { return }; // there was none yet
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !kept.contains(name.strip_suffix(".sock").unwrap_or(&name))
            && let Err(error) = remove(&entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove an old notify socket");
        }
    }
}

/// Removes a file, or a directory with all in it, also the one that a link of ours leads to. One that is not there is no error.
fn remove(path: &Path) -> io::Result<()> {
    if let Ok(target) = fs::read_link(path)
        && is_short_dir(&target)
    {
        remove(&target)?;
    }
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes a directory that was not there, for this account alone.
fn make_dir(path: PathBuf) -> io::Result<PathBuf> {
    DirBuilder::new().mode(0o700).create(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o700))?; // a umask may have taken the owner's, too
    Ok(path)
}

fn short_dir() -> io::Result<PathBuf> {
    let name = format!("{SHORT_PREFIX}{}", hex::encode(rand::random::<[u8; 16]>()));
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for place in SHORT_PLACES {
        match make_dir(Path::new(place).join(&name)) {
            Ok(dir) => return Ok(dir),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Returns whether `path` is a directory that [`short_dir`] may have made for this account.
fn is_short_dir(path: &Path) -> bool {
    let is_token = |token: &str| token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(SHORT_PREFIX));
    path.parent().is_some_and(|place| SHORT_PLACES.iter().any(|short| place == Path::new(short)))
        && name.is_some_and(is_token)
        && fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw())
}
