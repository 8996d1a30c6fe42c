//! The runtime's end of its link to the guard: what the guard keeps and collected, and whether it still lives.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use refit_bus::{Bus, Origin, Request};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::sync::watch;

use super::error::{RuntimeError, io_error};
use super::hand_over::Sockets;
use crate::carry::Registry;
use crate::handover::channel::{self, ToRuntime};
use crate::handover::listener::Listeners;
use crate::handover::{fd, names, notify};

/// How many ends of processes are remembered; they are asked for at once, if at all.
const REAPED_MAX: usize = 256;
/// How long a report to an older guard may wait for a place in its queue.
const GUARD_WAIT_MAX: Duration = Duration::from_secs(1);
/// The longest message of the guard.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Returns where the guard hears this image: on the channel, if `environment` says that it reads there, or else at `notify`, its
/// `NOTIFY_SOCKET`. `None` without a guard.
///
/// # Errors
/// There is a guard, and no way to it: it would take this image for one that hangs.
pub(super) fn connect(
    environment: &BTreeMap<OsString, OsString>,
    notify: Option<&Path>,
    channel: Option<&OwnedFd>,
) -> io::Result<Option<OwnedFd>> {
    if let Some(channel) = channel
        && environment.contains_key(OsStr::new(channel::VARIABLE))
    {
        return Ok(Some(channel.try_clone()?));
    }
    let Some(path) = notify else { return Ok(None) };
    Ok(Some(notify::connect(path, GUARD_WAIT_MAX)?.into()))
}

/// Reads what the guard says until it is gone; then this image has to end.
pub(super) async fn listen_until_lost(
    channel: OwnedFd,
    reaped: watch::Sender<BTreeMap<i32, String>>,
    registry: Arc<Registry>,
    bus: Bus,
) {
    if let Err(error) = listen(channel, reaped, &registry).await {
        tracing::warn!(%error, "cannot hear the guard");
    }
    tracing::error!("the guard is gone; ending, so that the next one finds a clean place");
    drop(bus.request(Request::Exit, Origin("guard lost".to_owned())));
}

/// Reads what the guard says until it is gone. Returns then.
async fn listen(channel: OwnedFd, reaped: watch::Sender<BTreeMap<i32, String>>, registry: &Registry) -> io::Result<()> {
    let channel = fd::watch(channel)?;
    loop {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let read = channel
            .async_io(Interest::READABLE, |channel| {
                Ok(rustix::net::recv(channel.as_fd(), &mut bytes, RecvFlags::DONTWAIT)?.0)
            })
            .await?;
        if read == 0 {
            return Ok(());
        }
        match serde_json::from_slice(&bytes[..read.min(MESSAGE_BYTES_MAX)]) {
            Ok(ToRuntime::Reaped { pid, how }) => reaped.send_modify(|all| {
                if all.len() >= REAPED_MAX {
                    all.clear();
                }
                all.insert(pid, how);
            }),
            // Not at once: it may have no descriptors for a while.
            Ok(ToRuntime::Missing { missing }) => registry.note_lacking(missing),
            Err(_) => {} // a newer guard says more
        }
    }
}

/// Tells the guard again and again that the runtime is alive, at a third of the time after which it would be ended, and gives it what
/// it lacks.
pub(super) async fn feed_watchdog(registry: Arc<Registry>, limit: Duration) {
    loop {
        registry.tell_guard("WATCHDOG=1");
        registry.give_lacking();
        tokio::time::sleep(limit / 3).await;
    }
}

/// Gives the guard what it does not keep yet under its present name, and has it drop what is not wanted any more.
pub(super) fn store_with_guard(
    registry: &Registry,
    listeners: &Listeners,
    had: &[String],
    sockets: &Sockets,
) -> Result<(), RuntimeError> {
    let described = listeners.describe().map_err(io_error("describe the listeners"))?;
    for part in &described {
        if listeners.is_fresh(&part.name) || !had.contains(&part.name) || registry.is_lacking(&part.name) {
            registry.replace_stored(&part.name, part.descriptor.try_clone().map_err(io_error("duplicate a listener"))?);
        }
    }
    for name in had {
        if !described.iter().any(|part| part.name == *name) {
            registry.drop_stored(name);
        }
    }
    for (name, socket, inherited) in
        [(names::API, &sockets.api, sockets.api_inherited), (names::BUS, &sockets.bus, sockets.bus_inherited)]
    {
        if !inherited || registry.is_lacking(name) {
            // One whose name is gone may be kept there still.
            let socket = socket.try_clone().map_err(io_error("duplicate a socket of the runtime's own"))?;
            registry.replace_stored(name, OwnedFd::from(socket));
        }
    }
    Ok(())
}
