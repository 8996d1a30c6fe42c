//! A listener beside one that this appliance holds already, whose address covers its own: `0.0.0.0:80` beside `127.0.0.1:80`.
//!
//! The kernel allows that to sockets of one account that agree (`SO_REUSEPORT`, socket(7)), and gives a connection to the more specific
//! one. So the older one stops listening as soon as the newer is there: it takes nothing in any more, what waits in its queue is
//! accepted, and it keeps its address for the way back.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::Timeout;
use rustix::net::sockopt::{set_socket_reuseport, set_socket_timeout, socket_acceptconn};
use rustix::net::{Shutdown, shutdown};

use super::bind::{bind, listen, open};
use super::fd;

/// How long an accept may wait for a connection that waits already.
const ACCEPT_MAX: Duration = Duration::from_millis(1);

/// Returns whether two listeners cannot have these addresses side by side, unless both agree: an address of no particular host is all of them,
/// and one of IPv6 is all of IPv4, too.
pub fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    if one.port() != other.port() || one.port() == 0 {
        return false; // any free port is never one that is taken
    }
    let (one, other) = (one.ip(), other.ip());
    let covers = |all: IpAddr, some: IpAddr| all.is_unspecified() && (all.is_ipv6() || some.is_ipv4());
    one.to_canonical() == other.to_canonical() || covers(one, other) || covers(other, one)
}

/// Returns a listener on `address`. Those of `held` that are in its way allow it meanwhile.
///
/// # Errors
/// The address is in use, or not ours.
pub fn bind_beside(address: SocketAddr, held: &[&TcpListener]) -> io::Result<TcpListener> {
    let in_the_way = in_the_way(address, held);
    if in_the_way.is_empty() {
        return bind(address);
    }
    agreed(&in_the_way, || listen(open(address, true)?))
}

/// Finds out whether a listener on `address` can be had beside `held`. None is there at any time: clients would wait at it.
///
/// # Errors
/// The address is in use, or not ours.
pub fn try_beside(address: SocketAddr, held: &[&TcpListener]) -> io::Result<()> {
    let in_the_way = in_the_way(address, held);
    if in_the_way.is_empty() {
        return bind(address).map(drop);
    }
    agreed(&in_the_way, || open(address, true).map(drop))
}

fn in_the_way<'a>(address: SocketAddr, held: &[&'a TcpListener]) -> Vec<&'a TcpListener> {
    held.iter().copied().filter(|other| other.local_addr().is_ok_and(|other| clash(other, address))).collect()
}

/// Does `bind` while `listeners` let another one of this account have their port.
fn agreed<T>(listeners: &[&TcpListener], bind: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    for listener in listeners {
        set_socket_reuseport(listener, true)?;
    }
    let bound = bind();
    for listener in listeners {
        set_socket_reuseport(listener, false)?;
    }
    bound
}

/// Has `listener`, which stopped, listen again, beside `held`.
///
/// # Errors
/// Another program has its port.
pub fn listen_again(listener: &TcpListener, held: &[&TcpListener]) -> io::Result<()> {
    fd::let_in(listener)?;
    if socket_acceptconn(listener)? {
        return Ok(());
    }
    let mut agreeing = in_the_way(listener.local_addr()?, held);
    agreeing.push(listener);
    agreed(&agreeing, || listen(listener.try_clone()?.into()).map(drop))
}

/// Has `listener`, from which no process accepts, listen no more. Returns the connections that waited.
///
/// # Errors
/// The kernel refuses.
pub fn stop_listening(listener: &TcpListener) -> io::Result<Vec<TcpStream>> {
    // Who comes now tries again, and finds the other one: the end of the listener would be theirs, too.
    fd::keep_out(listener)?;
    set_socket_timeout(listener, Timeout::Recv, Some(ACCEPT_MAX))?;
    let mut waiting = Vec::new();
    while let Ok((connection, _)) = listener.accept() {
        waiting.push(connection);
    }
    set_socket_timeout(listener, Timeout::Recv, None)?;
    shutdown(listener, Shutdown::Read)?;
    Ok(waiting)
}

/// Returns where a connection that waited at a listener that stopped is made anew: its own address, at which another one listens by now;
/// and from where: the client's address is another machine's, so that it comes from the address that it was made to.
///
/// # Errors
/// It is over.
pub fn made_anew(connection: &TcpStream) -> io::Result<(SocketAddr, IpAddr)> {
    let (here, peer) = (connection.local_addr()?, connection.peer_addr()?);
    let from = if peer.ip().to_canonical().is_loopback() { peer.ip() } else { here.ip() };
    Ok((SocketAddr::new(here.ip().to_canonical(), here.port()), from.to_canonical()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn addresses_that_exclude_each_other() {
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "0.0.0.0:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80", "[::]:81", false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
            ("0.0.0.0:0", "127.0.0.1:0", false),
        ] {
            let [one_is, other_is] = [one, other].map(|text| text.parse().expect("an address"));
            assert_eq!((clash(one_is, other_is), clash(other_is, one_is)), (expected, expected), "{one} {other}");
        }
    }

    /// Returns two addresses with a free port.
    fn pair(one: &str, other: &str) -> (SocketAddr, SocketAddr) {
        let port =
            bind("127.0.0.1:0".parse().expect("an address")).and_then(|free| free.local_addr()).expect("bound").port();
        let at = |text: &str| SocketAddr::new(text.parse().expect("an address"), port);
        (at(one), at(other))
    }

    #[test]
    fn a_listener_moves_to_an_address_that_covers_it_and_back() {
        for (one, other) in [
            ("127.0.0.1", "0.0.0.0"),
            ("0.0.0.0", "127.0.0.1"),
            ("127.0.0.1", "::"),
            ("::", "127.0.0.1"),
            ("::1", "::"),
        ] {
            let (old_at, new_at) = pair(one, other);
            let old = bind(old_at).expect("bound");
            assert!(bind(new_at).is_err(), "{one} {other}");
            try_beside(new_at, &[&old]).expect("it can be had");
            let client_at = if one == "::1" { "[::1]:0" } else { "127.0.0.1:0" };
            let mut client_at: SocketAddr = client_at.parse().expect("an address");
            client_at.set_port(old_at.port());
            let mut early = TcpStream::connect(client_at).expect("connected");
            early.write_all(b"early").expect("sent");

            let new = bind_beside(new_at, &[&old]).expect("bound");
            let mut waited = stop_listening(&old).expect("stopped");
            assert_eq!(waited.len(), 1, "{one} {other}");
            let mut read = [0; 5];
            waited[0].read_exact(&mut read).expect("read");
            assert_eq!(&read, b"early");
            assert_eq!(made_anew(&waited[0]).expect("made anew").0, client_at);
            TcpStream::connect(client_at).expect("connected");
            new.accept().expect("the new one takes it");

            listen_again(&old, &[&new]).expect("it listens again");
            drop(stop_listening(&new).expect("stopped"));
            TcpStream::connect(client_at).expect("connected");
            old.accept().expect("the old one takes it");
            assert!(bind(new_at).is_err(), "nobody else can have it");
        }
    }
}
