//! The queue of a listener: those who connect while no process accepts wait in it.

use std::io;
use std::net::TcpListener;

use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};

use super::kernel;
use crate::handover::bind::BACKLOG;

/// Gives `listener` its whole queue again. A program that calls `listen` with a number of its own changes it for everybody who shares
/// the socket, and one that shuts it down closes it for everybody; one that makes it longer is left alone.
///
/// # Errors
/// The kernel refuses. Of a socket of another kind nothing is asked.
pub fn restore(listener: &TcpListener) -> io::Result<()> {
    let is_connected = rustix::net::getpeername(listener).is_ok();
    if socket_type(listener)? != SocketType::STREAM || is_connected {
        return Ok(());
    }
    let whole = u32::try_from(BACKLOG).unwrap_or(0);
    let is_whole = socket_acceptconn(listener)?
        && kernel::queue(listener).is_ok_and(|queue| queue.places.is_some_and(|places| places >= whole));
    if !is_whole {
        rustix::net::listen(listener, BACKLOG)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::net::Shutdown;

    use super::*;
    use crate::handover::bind::bind;

    fn places(listener: &TcpListener) -> Option<u32> {
        kernel::queue(listener).expect("asked").places
    }

    #[test]
    fn a_queue_is_made_longer_and_never_shorter() {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let whole = places(&listener);
        rustix::net::listen(&listener, 5).expect("shorter");
        assert_eq!(places(&listener), Some(5));
        restore(&listener).expect("restored");
        assert_eq!(places(&listener), whole);
        rustix::net::listen(&listener, BACKLOG * 2).expect("longer");
        let longer = places(&listener);
        restore(&listener).expect("left alone");
        assert_eq!(places(&listener), longer);
    }

    #[test]
    fn one_that_was_shut_down_listens_again() {
        let free = bind("127.0.0.1:0".parse().expect("an address")).and_then(|listener| listener.local_addr());
        let listener = bind(free.expect("a free port")).expect("bound");
        rustix::net::shutdown(&listener, Shutdown::Both).expect("shut down");
        assert!(!socket_acceptconn(&listener).expect("asked"));
        restore(&listener).expect("restored");
        assert!(socket_acceptconn(&listener).expect("asked"));
        assert!(std::net::TcpStream::connect(listener.local_addr().expect("an address")).is_ok());
    }

    #[test]
    fn datagrams_have_no_queue_of_that_kind() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        restore(&TcpListener::from(std::os::fd::OwnedFd::from(socket))).expect("left alone");
    }
}
