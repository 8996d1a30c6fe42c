//! Unix sockets below a home of any depth, and the runtime's own two listeners on them.
//!
//! The address of a Unix socket holds 107 bytes; a home may lie deeper than that. The directory is then opened and the socket
//! is named through `/proc/self/fd/N/NAME`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The longest path that fits into an address, without the zero at its end.
const PATH_BYTES_MAX: usize = 107;

/// As many connections as the kernel allows may wait to be accepted.
const BACKLOG_MAX: i32 = i32::MAX;

/// Returns a path to the same file as `path` that fits into a socket's address, and what has to stay open meanwhile.
///
/// A directory that cannot be opened leaves the path as it is: using it then says what is wrong.
pub fn short_path(path: &Path) -> (PathBuf, Option<File>) {
    let long = path.as_os_str().as_bytes().len() > PATH_BYTES_MAX;
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) if long => match File::open(dir) {
            Ok(dir) => (Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name), Some(dir)),
            Err(_) => (path.to_owned(), None),
        },
        (_, _) => (path.to_owned(), None),
    }
}

/// Calls `act` with a path to the same file as `path` that fits into a socket's address.
///
/// # Errors
/// Those of `act`.
pub fn with_short_path<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (path, dir) = short_path(path);
    let result = act(&path);
    drop(dir);
    result
}

/// A socket of the runtime's own cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind the socket {}", path.display())]
pub struct SocketError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Returns the listener on `path`, and whether it is the one handed over: a new one, that `mode` says who may use, is made where
/// there is none or its name is gone. It belongs to `group`, if there is one that it can be given to.
///
/// # Errors
/// The socket cannot be bound.
pub fn listener(
    path: PathBuf,
    mode: u32,
    group: Option<u32>,
    inherited: Option<UnixListener>,
) -> Result<(UnixListener, bool), SocketError> {
    if let Some(listener) = inherited
        && let Ok(there) = path.symlink_metadata()
    {
        if group.is_some_and(|group| there.gid() != group) {
            give(&path, group).map_err(|source| SocketError { path, source })?;
        }
        return Ok((listener, true));
    }
    let bind = || {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        with_short_path(&path, |path| Ok(rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?))?;
        // Before anybody can connect: until it listens nobody can.
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        give(&path, group)?;
        rustix::net::listen(&socket, BACKLOG_MAX)?;
        Ok((UnixListener::from(socket), false))
    };
    bind().map_err(|source| SocketError { path, source })
}

/// Gives the file to `group`. An account that is not root's gives to its own groups only; what cannot be given stays as it is.
fn give(path: &Path, group: Option<u32>) -> io::Result<()> {
    match lchown(path, None, group) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::warn!(path = %path.display(), ?group, "cannot give the socket to the group: this account is not a member");
            Ok(())
        }
        result => result,
    }
}
