//! The handover: how descriptors and what is known about them get from one process image to the next.
//!
//! One image describes what it holds as a list of named descriptors ([`Named`]) in the order in which they are to be found
//! again; among them is one sealed file in memory ([`memfd`]) with everything else that has to survive. The next image finds
//! them by `LISTEN_FDS` and `LISTEN_FDNAMES` ([`inherit`]), whether it was exec'ed by the image before it, started by the
//! guard after a crash, or by a service manager. [`exec`] is the moment between.

pub mod beside;
pub mod bind;
pub mod channel;
pub mod exec;
pub mod fd;
pub mod inherit;
pub mod listener;
pub mod memfd;
pub mod notify;
pub mod outbox;
pub mod spawn;
pub mod unix;

use std::os::fd::OwnedFd;

/// A descriptor and the name by which the next process image knows it.
#[derive(Debug)]
pub struct Named {
    /// The name, without a colon.
    pub name: String,
    /// The descriptor.
    pub descriptor: OwnedFd,
}

/// The names of descriptors that are not an appliance's listeners; a listener's name cannot contain a dot.
pub mod names {
    /// The guard's channel to the runtime.
    pub const GUARD: &str = "refit.guard";
    /// The lock of the home.
    pub const LOCK: &str = "refit.lock";
    /// The listener of the API's Unix socket.
    pub const API: &str = "refit.api";
    /// The listener of the socket of those who take part in the bus.
    pub const BUS: &str = "refit.bus";
    /// The beginning of the names of the sealed state, a number follows.
    pub const STATE: &str = "refit.state.";
    /// The beginning of the names of parked connections: listener, dot, number follow.
    pub const PARKED: &str = "refit.parked.";
    /// The beginning of the names of connections that waited at a listener in whose place another one listens; a number follows.
    pub const WAITED: &str = "refit.waited.";
    /// The beginning of the names of such connections that a process has accepted by now: number, dot, which end follow.
    pub const JOINED: &str = "refit.joined.";
    /// The sealed file with what was told of single processes, a line each. A runtime that does not know of it takes it for a descriptor of
    /// a process that is gone.
    pub const PROCESSES: &str = "refit.instance.documents";
    /// The beginning of the names of a component's descriptors: instance, dot, which one follow.
    pub const INSTANCE: &str = "refit.instance.";
}
