//! The socket on which the runtime reports, by the name that it is told: made again when somebody removed it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use refit_updater::{durable, modes};

use crate::handover::notify::{self, Notification};
use crate::home::Home;

/// The socket.
#[derive(Debug)]
pub(super) struct Inbox {
    path: PathBuf,
    socket: UnixDatagram,
    /// Its file: device and number.
    file: (u64, u64),
}

impl Inbox {
    /// Binds the socket of `home`.
    ///
    /// # Errors
    /// It cannot be bound; one that was there may be gone.
    pub(super) fn bind(home: &Home) -> io::Result<Self> {
        durable::create_dirs(&home.run(), modes::of("run"))?;
        let path = home.guard_socket();
        remove_stale(&path)?;
        let socket = notify::bind(&path)?;
        socket.set_nonblocking(true)?;
        let file = file(&path)?;
        Ok(Self { path, socket, file })
    }

    /// Binds it again unless its name leads to it. For the time when no runtime runs, which could be connected to it.
    ///
    /// # Errors
    /// It cannot be bound; this one is as it was.
    pub(super) fn restore(&mut self, home: &Home) -> io::Result<()> {
        if file(&self.path).is_ok_and(|found| found == self.file) {
            return Ok(());
        }
        *self = Self::bind(home)?;
        Ok(())
    }

    /// Returns the descriptor to poll.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns the next report.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub(super) fn receive(&self) -> io::Result<Notification> {
        notify::receive(self.socket.as_fd())
    }
}

fn file(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
