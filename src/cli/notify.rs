//! `refit notify`: what a component, or a service of systemd, says on `NOTIFY_SOCKET`, from a program that cannot.
//!
//! The supervisor looks at the process that sent a notification, and that process must still be there: a barrier, sent after it, is
//! answered when everything before it has been taken.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use refit_base::{Exit, Report, Reported};
use rustix::pipe::{PipeFlags, pipe_with};

use super::context::Context;
use crate::config;
use crate::handover::notify;

#[derive(Debug, clap::Args)]
pub(super) struct Notify {
    /// What to say, such as READY=1 or STATUS="loading prices": one notification.
    #[arg(required = true, value_name = "KEY=VALUE")]
    fields: Vec<String>,
    /// How long to wait until it has been taken.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = config::duration)]
    timeout: Duration,
}

/// Why nothing was said, or nobody knows whether it was taken.
#[derive(Debug, thiserror::Error)]
enum NotifyError {
    /// A word of the command line is not a field.
    #[error("{word:?} is not a field of a notification")]
    Field { word: String },
    /// All fields together are longer than a notification may be.
    #[error("a notification of {bytes} bytes is too long: at most {}", notify::DATAGRAM_BYTES_MAX)]
    TooLong { bytes: usize },
    /// Nobody supervises this process, or it is not wanted to report.
    #[error("NOTIFY_SOCKET is not set")]
    NoSocket,
    /// The supervisor cannot be reached.
    #[error("cannot reach {}", socket.display())]
    Unreachable {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// This process cannot make what a barrier takes.
    #[error("cannot make a barrier")]
    Barrier(#[source] io::Error),
    /// It was not taken in time.
    #[error("not taken within {} s", waited.as_secs_f32())]
    NotTaken { waited: Duration },
}

impl Reported for NotifyError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Field { .. } => Report::new(
                "field_refused",
                Exit::Usage,
                "write KEY=VALUE on one line, such as READY=1; refit sends the BARRIER itself",
            ),
            Self::TooLong { .. } => Report::new("notification_too_long", Exit::Usage, "shorten the STATUS"),
            Self::NoSocket => Report::new(
                "socket_unknown",
                Exit::Unavailable,
                "run this command in a component, whose notify_access is not \"none\", or in a service of systemd",
            ),
            Self::Unreachable { .. } => Report::new(
                "supervisor_unreachable",
                Exit::Unavailable,
                "run this command as the account of the component, while the component runs",
            ),
            Self::Barrier(_) => Report::new("system_refused", Exit::Failed, "check the limits of the system"),
            Self::NotTaken { .. } => Report::new(
                "notification_not_taken",
                Exit::TryLater,
                "it may still be taken; the supervisor is busy or restarting: try again, or wait longer with --timeout",
            ),
        }
    }
}

/// Sends a notification and waits until it has been taken. Returns the exit status.
pub(super) fn run(context: &Context, notify: &Notify) -> Exit {
    match send(context.process.path("NOTIFY_SOCKET").as_deref(), &notify.fields, notify.timeout) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

fn send(socket: Option<&Path>, fields: &[String], limit: Duration) -> Result<(), NotifyError> {
    let deadline = Instant::now() + limit;
    if let Some(word) = fields.iter().find(|word| !is_field(word)) {
        return Err(NotifyError::Field { word: word.clone() });
    }
    let text = fields.join("\n");
    if text.len() > notify::DATAGRAM_BYTES_MAX {
        return Err(NotifyError::TooLong { bytes: text.len() });
    }
    let path = socket.ok_or(NotifyError::NoSocket)?;
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::WouldBlock {
            return NotifyError::NotTaken { waited: limit }; // there was no place in the supervisor's queue
        }
        NotifyError::Unreachable { socket: path.to_owned(), source }
    };
    let socket = notify::connect(path, limit.max(Duration::from_millis(1))).map_err(failed)?;
    notify::send(&socket, &text, &[]).map_err(failed)?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| NotifyError::Barrier(error.into()))?;
    notify::send(&socket, "BARRIER=1", &[writer.as_fd()]).map_err(failed)?;
    drop(writer); // the supervisor's is the last one now
    if is_closed_by(&reader, deadline).map_err(NotifyError::Barrier)? {
        Ok(())
    } else {
        Err(NotifyError::NotTaken { waited: limit })
    }
}

/// Returns whether `word` is one field: a key, an equals sign, and a value on the same line.
fn is_field(word: &str) -> bool {
    let is_key = |key: &str| {
        !key.is_empty() && key != "BARRIER" && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    word.split_once('=').is_some_and(|(key, _)| is_key(key)) && !word.contains(['\n', '\r', '\0'])
}

/// Waits until nobody holds the other end of the pipe, at most until `deadline`. Returns whether that is so.
fn is_closed_by(reader: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true), // nobody writes there: it was closed
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_a_key_and_a_value_on_one_line() {
        let rows = ["READY=1", "STATUS=", "STATUS=a=b c", "X_REFIT=ü"];
        assert!(rows.iter().all(|word| is_field(word)));
        let rows = ["READY", "=1", "", "READY=1\nWATCHDOG=trigger", "BARRIER=1", "A B=1", "STATUS=a\0b"];
        assert!(rows.iter().all(|word| !is_field(word)));
    }
}
