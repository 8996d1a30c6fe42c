//! The descriptors of a process that an earlier image started: as they were handed over, and those that got lost made anew.
//!
//! A runtime that is killed before the guard has taken them leaves a process without them. It serves all the same: its output is read
//! again, and it is heard when it next reports.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;

use rustix::fs::OFlags;

use super::notify_socket;
use crate::carry::{CarriedInstance, Descriptors, FoundDescriptors, Registry};
use crate::handover::Named;
use crate::home::Home;
use crate::process::handle::Handle;

/// Takes the descriptors of `carried` from `parts`, and makes those anew that are not there. `None` if one is not there and the process
/// has ended.
pub(super) fn find(
    carried: &CarriedInstance,
    parts: &mut Vec<Named>,
    home: &Home,
    registry: &Registry,
) -> Option<Descriptors> {
    let mut found = FoundDescriptors::take(&carried.id, parts);
    let named = found.notify.is_some().then(|| bind_if_nameless(carried, home)).flatten();
    if named.is_some() {
        found.notify = None;
    }
    let missing = found.missing();
    if !missing.is_empty() {
        Handle::open(carried.pid, Some(carried.start_ticks)).ok()?;
    }
    let FoundDescriptors { notify, stdout, stderr } = found;
    let made = (|| {
        Ok(Descriptors {
            notify: notify.or(named).map_or_else(|| bind_again(carried), Ok)?,
            stdout: stdout.map_or_else(|| open_again(carried.pid, 1), Ok)?,
            stderr: stderr.map_or_else(|| open_again(carried.pid, 2), Ok)?,
        })
    })();
    let made = made.inspect_err(|error: &io::Error| {
        tracing::error!(instance.id = carried.id, %error, "cannot hear a process any more; it is ended");
    });
    let descriptors = made.ok()?;
    for part in &missing {
        registry.note_lost(&carried.id, part);
    }
    if !missing.is_empty() {
        tracing::warn!(instance.id = carried.id, ?missing, "descriptors of a process got lost, and were made anew");
    }
    Some(descriptors)
}

/// Returns a socket in the place of the one on which the process reports, if that has no name any more, and can be had.
fn bind_if_nameless(carried: &CarriedInstance, home: &Home) -> Option<OwnedFd> {
    let path = carried.notify_path.as_ref().filter(|path| fs::symlink_metadata(path).is_err())?;
    let bound = notify_socket::make_place(home, carried, path).and_then(|()| bind_again(carried));
    bound.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot bind a notify socket again")).ok()
}

/// Returns a socket in the place of the one on which the process reported.
fn bind_again(carried: &CarriedInstance) -> io::Result<OwnedFd> {
    let Some(path) = &carried.notify_path else { return Ok(UnixDatagram::unbound()?.into()) };
    Ok(notify_socket::bind_again(path, carried.account)?.into())
}

/// Returns the reading end of the pipe that is the descriptor `number` of the process; of an empty one if it has another there now.
fn open_again(pid: i32, number: i32) -> io::Result<OwnedFd> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let opened = File::options().read(true).custom_flags(nonblocking).open(format!("/proc/{pid}/fd/{number}"));
    match opened {
        Ok(file) if file.metadata()?.file_type().is_fifo() => Ok(file.into()),
        Ok(_) | Err(_) => Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?.0),
    }
}
