//! The runtime's end of its link to the guard: what the guard keeps and collected, and whether it still lives.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use refit_bus::{Bus, Origin, Request};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::sync::watch;

use super::error::{RuntimeError, io_error};
use super::hand_over::Sockets;
use crate::carry::Registry;
use crate::handover::listener::Listeners;
use crate::handover::reaped::Reaped;
use crate::handover::{fd, names};

/// How many ends of processes are remembered; they are asked for at once, if at all.
const REAPED_MAX: usize = 256;
/// The longest message of the guard.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Reads what the guard says until it is gone; then this image has to end.
pub(super) async fn listen_until_lost(channel: OwnedFd, reaped: watch::Sender<BTreeMap<i32, String>>, bus: Bus) {
    if let Err(error) = listen(channel, reaped).await {
        tracing::warn!(%error, "cannot hear the guard");
    }
    tracing::error!("the guard is gone; ending, so that the next one finds a clean place");
    drop(bus.request(Request::Exit, Origin("guard lost".to_owned())));
}

/// Reads what the guard says until it is gone. Returns then.
async fn listen(channel: OwnedFd, reaped: watch::Sender<BTreeMap<i32, String>>) -> io::Result<()> {
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
        if let Ok(message) = serde_json::from_slice::<Reaped>(&bytes[..read.min(MESSAGE_BYTES_MAX)]) {
            reaped.send_modify(|all| {
                if all.len() >= REAPED_MAX {
                    all.clear();
                }
                all.insert(message.pid, message.how);
            });
        }
    }
}

/// Tells the guard again and again that the runtime is alive, at a third of the time after which it would be ended.
pub(super) async fn feed_watchdog(registry: Arc<Registry>, limit: Duration) {
    loop {
        registry.tell_guard("WATCHDOG=1", &[]);
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
        let fresh = listeners.is_fresh(&part.name);
        if fresh || !had.contains(&part.name) {
            registry.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={}", part.name), &[]);
            registry.store(&part.name, &part.descriptor);
        }
    }
    for name in had {
        if !described.iter().any(|part| part.name == *name) {
            registry.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
        }
    }
    for (name, socket, inherited) in
        [(names::API, &sockets.api, sockets.api_inherited), (names::BUS, &sockets.bus, sockets.bus_inherited)]
    {
        if !inherited {
            let socket = socket.try_clone().map_err(io_error("duplicate a socket of the runtime's own"))?;
            // One whose name is gone may be kept there still.
            registry.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
            registry.store(name, &OwnedFd::from(socket));
        }
    }
    Ok(())
}
