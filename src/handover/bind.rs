//! Address -> socket that listens there.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// How many connections may wait while nobody accepts: a second of what a small machine can serve.
pub const BACKLOG: i32 = 1024;
/// Returns a listener on `address`, blocking, as a service manager hands them to programs.
///
/// # Errors
/// The address is in use, or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    listen(open(address, false)?)
}

/// Returns a socket that has `address` and does not listen yet; `beside` others, which agree, if so wanted.
pub(super) fn open(address: SocketAddr, beside: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A connection of an earlier life in TIME_WAIT is no reason to refuse; a listener of somebody else still is.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, beside)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Has `socket` listen, and lets no other one beside it from then on.
pub(super) fn listen(socket: OwnedFd) -> io::Result<TcpListener> {
    rustix::net::listen(&socket, BACKLOG)?;
    sockopt::set_socket_reuseport(&socket, false)?;
    Ok(TcpListener::from(socket))
}
