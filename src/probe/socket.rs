//! A TCP socket, as the kernel tells of it.

use std::net::SocketAddr;

/// A TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) state: u8,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// Zero as long as no process has it.
    pub(super) inode: u64,
    /// Of a listener: how many connections wait to be accepted.
    pub(super) waiting: u32,
    /// Of a listener: how many may wait. `None` if the kernel does not say.
    pub(super) places: Option<u32>,
}
