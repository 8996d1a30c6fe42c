//! The runtime's end of its link to the guard: what the guard collected, and whether it still lives.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::sync::watch;

use crate::carry::Registry;
use crate::handover::fd;
use crate::handover::reaped::Reaped;

/// How many ends of processes are remembered; they are asked for at once, if at all.
const REAPED_MAX: usize = 256;
/// The longest message of the guard.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Reads what the guard says until it is gone. Returns then.
pub(super) async fn listen(channel: OwnedFd, reaped: watch::Sender<BTreeMap<i32, String>>) -> io::Result<()> {
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
pub(super) async fn feed_watchdog(registry: std::sync::Arc<Registry>, limit: Duration) {
    loop {
        registry.tell_guard("WATCHDOG=1", &[]);
        tokio::time::sleep(limit / 3).await;
    }
}
