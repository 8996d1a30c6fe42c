//! HTTP, both sides of it. This room knows how it is spoken, and no resource, account or release.
//!
//! [`server`] accepts from the listeners that it is handed; [`connection`] is one connection, served or parked; [`body`] a
//! request's body, read to its end although it was answered early. `limit` how many connections
//! there are, and which give way, `traffic` what each waits for; [`fetch`] is the client; [`stall`] tells when a line that
//! brings next to nothing is given up.

pub(crate) mod body;
pub(crate) mod connection;
pub(crate) mod fetch;
mod limit;
pub(crate) mod server;
pub(crate) mod stall;
mod traffic;

/// Where a connection over TCP comes from: an extension of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemoteAddress(pub(crate) std::net::IpAddr);

pub use server::{Endpoint, Parked, Server, Socket};
