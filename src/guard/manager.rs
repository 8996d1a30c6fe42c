//! The service manager above the guard: what it hears, without ever holding the guard up.
//!
//! One that reads slowly hears everything later, in order; one that does not read hears nothing. Each report is sent without waiting and
//! kept until there is room, for a service manager that misses `READY=1` would end what serves.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::say::{Complaints, say};
use crate::handover::outbox::{Flushed, Outbox};
use crate::handover::{channel, notify};

/// How long the last report waits for room, when the guard ends.
const LAST_WAIT: Duration = Duration::from_millis(200);
/// For a socket that is never waited on; the system wants a limit all the same.
const CONNECT_MAX: Duration = Duration::from_millis(200);

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    socket: Option<UnixDatagram>,
    outbox: Outbox,
    /// It had no room at the last look.
    is_full: bool,
    complaints: Complaints,
}

impl ServiceManager {
    /// Returns the one that reads at `address`. One that cannot be reached is as good as none, and that is said.
    pub(super) fn connect(address: Option<&Path>) -> Self {
        let socket = address.and_then(|address| match notify::connect(address, CONNECT_MAX) {
            Ok(socket) => Some(socket),
            Err(error) => {
                say(&format!("cannot reach the service manager: {error}"));
                None
            }
        });
        Self { socket, ..Self::default() }
    }

    /// Passes on what it is to know of a report of the runtime: readiness, status, watchdog, and the descriptors to keep.
    pub(super) fn pass_on(&mut self, report: &notify::Notification, descriptors: &[OwnedFd]) {
        let lines: Vec<String> = report
            .fields
            .iter()
            // What is between the guard and the runtime means nothing, or something else, above.
            .filter(|(key, _)| key != "WATCHDOG_USEC" && key != "RELOADING" && !channel::OURS.contains(&key.as_str()))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if !lines.is_empty() {
            self.tell(&lines.join("\n"), descriptors);
        }
    }

    /// Tells it `text`, with these descriptors.
    pub(super) fn tell(&mut self, text: &str, descriptors: &[OwnedFd]) {
        if self.socket.is_none() {
            return;
        }
        let kept: io::Result<Vec<OwnedFd>> = descriptors.iter().map(OwnedFd::try_clone).collect();
        match kept.map(|kept| self.outbox.push(text, kept)) {
            Ok(true) => self.flush(),
            Ok(false) => self.complain("it has not read for long, and no more is kept for it"),
            Err(error) => self.complain(&error.to_string()),
        }
    }

    /// Tells it what it had no room for, as far as it has now.
    pub(super) fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        let flushed = self.outbox.flush(socket);
        self.is_full = matches!(flushed, Ok(Flushed::NoRoom));
        match flushed {
            Ok(Flushed::All) => {}
            Ok(Flushed::NoRoom | Flushed::NotNow) => self.complain("it does not read; trying again"),
            Err(error) => self.complain(&error.to_string()),
        }
    }

    /// Returns what to wait for until there is room for what is kept.
    pub(super) fn wants_room(&self) -> Option<PollFd<'_>> {
        let socket = self.socket.as_ref().filter(|_| self.is_full)?;
        Some(PollFd::new(socket.as_fd(), PollFlags::POLLOUT))
    }

    /// Waits a moment for it to hear the last word: nobody tells it any more afterwards.
    pub(super) fn say_last(&mut self) {
        let Some(mut wanted) = self.wants_room() else { return };
        let limit = PollTimeout::try_from(LAST_WAIT).unwrap_or(PollTimeout::MAX);
        if poll(std::slice::from_mut(&mut wanted), limit) == Ok(1) {
            self.flush();
        }
    }

    fn complain(&mut self, why: &str) {
        self.complaints.say("manager", &format!("cannot report to the service manager: {why}"));
    }
}
