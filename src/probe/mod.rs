//! Trying a listener from outside: whether a process accepts its connections, and which.
//!
//! A connection alone proves nothing, since the kernel makes it. What the kernel tells of its other end ([`kernel`]) does: it
//! belongs to no process until one accepts it. [`answer`] asks whether any process accepts, [`acceptor`] whether a certain one
//! does; [`queue`] gives clients their places back. Neither keeps a server waiting: a server that handles one connection after the other would serve nobody meanwhile.

pub mod acceptor;
pub mod answer;
mod kernel;
pub mod queue;
mod socket;
mod table;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use tokio::net::TcpStream;

/// The kernel answers a connection over the loopback at once, or not at all while the queue is full.
const CONNECT_MAX: Duration = Duration::from_millis(500);

/// Returns the address at which this machine reaches `listener`.
fn reachable(listener: &TcpListener) -> io::Result<SocketAddr> {
    let mut address = listener.local_addr()?;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    Ok(address)
}

/// Returns whether `listener` is a socket that connections are accepted from, now: not one for datagrams, nor one that was shut down.
fn is_accepting_kind(listener: &TcpListener) -> io::Result<bool> {
    Ok(socket_type(listener)? == SocketType::STREAM && socket_acceptconn(listener)?)
}

/// Connects to `server` within `limit`. `None` if its queue is full.
///
/// # Errors
/// The connection is refused.
async fn connect(server: SocketAddr, limit: Duration) -> io::Result<Option<TcpStream>> {
    match tokio::time::timeout(limit.min(CONNECT_MAX), TcpStream::connect(server)).await {
        Ok(connected) => connected.map(Some),
        Err(_) => Ok(None),
    }
}
