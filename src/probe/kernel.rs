//! What the kernel knows of TCP sockets: by socket diagnosis, sock_diag(7), or from [`table`](super::table) where a sandbox
//! does not let it be asked.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::socket::Socket;
use super::table;
use crate::handover::fd;

/// The longest answer that the kernel gives at once: it fills no more than this, whatever the buffer.
const ANSWER_BYTES_MAX: usize = 32 * 1024;

/// The other end of a connection to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It waits to be accepted.
    Waiting,
    /// A process has it: the number of its socket.
    Held(u64),
    /// It was accepted, and closed since.
    Closed,
}

/// How many connections wait for a listener, and how many may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queue {
    pub(super) waiting: u32,
    pub(super) places: Option<u32>,
}

impl Queue {
    /// Returns whether one more connection could keep out a client's.
    pub(super) fn is_crowded(self) -> bool {
        self.is_crowded_with(0)
    }

    /// Returns whether it would be crowded after `count` more connections.
    pub(super) fn is_crowded_with(self, count: u32) -> bool {
        self.places.is_some_and(|places| self.waiting.saturating_add(count) > places / 2)
    }
}

/// Returns how many connections wait for `listener`.
///
/// # Errors
/// The kernel cannot be asked, or does not know the listener: it belongs to another network namespace.
pub(super) fn queue(listener: &TcpListener) -> io::Result<Queue> {
    let inode = fd::inode(listener)?;
    let local = listener.local_addr()?;
    let listening = dump(local, StateFlags::LISTEN).or_else(|_| table::sockets(local, |state| state == TCP_LISTEN))?;
    let found = listening.into_iter().find(|socket| socket.inode == inode);
    let socket = found.ok_or_else(|| io::Error::other("the kernel's table does not show it"))?;
    Ok(Queue { waiting: socket.waiting, places: socket.places })
}

/// Returns what became of the server's end of the connection from `client` to `server`.
///
/// # Errors
/// The kernel cannot be asked.
pub(super) fn end(server: SocketAddr, client: SocketAddr) -> io::Result<End> {
    end_seen_by(&Diagnosis::open(), server, client)
}

/// Does as [`end`], again and again without opening anything.
///
/// # Errors
/// The kernel cannot be asked.
pub(super) fn end_seen_by(diagnosis: &Diagnosis, server: SocketAddr, client: SocketAddr) -> io::Result<End> {
    let socket = match exact(diagnosis, server, client) {
        Ok(Some(socket)) if socket.state != TCP_LISTEN => Some(socket),
        // Nothing was found, or nothing can be: without socket diagnosis both look alike.
        Ok(_) | Err(_) => {
            let ends = |address: SocketAddr| (address.ip().to_canonical(), address.port()); // without the interface
            let all = table::sockets(server, |state| state != TCP_LISTEN)?;
            all.into_iter().find(|socket| ends(socket.remote) == ends(client))
        }
    };
    Ok(match socket {
        Some(Socket { inode: 0, state: TCP_ESTABLISHED | TCP_CLOSE_WAIT | TCP_SYN_RECV, .. }) => End::Waiting,
        Some(Socket { inode: inode @ 1.., .. }) => End::Held(inode),
        // What no process has in any other state was closed by the one that had it.
        Some(_) | None => End::Closed,
    })
}

/// Returns the connections at `local` that a process has, or that wait for one.
///
/// # Errors
/// The kernel cannot be asked.
pub(super) fn connections(local: SocketAddr) -> io::Result<Vec<Socket>> {
    dump(local, StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT)
        .or_else(|_| table::sockets(local, |state| state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT))
}

/// Returns the sockets at the port of `local` that are in one of `states`.
fn dump(local: SocketAddr, states: StateFlags) -> io::Result<Vec<Socket>> {
    let nowhere = SocketAddr::new(unspecified(local), 0);
    let from = SocketAddr::new(unspecified(local), local.port());
    Diagnosis::open().ask(&request(from, nowhere, states), NLM_F_REQUEST | NLM_F_DUMP)
}

/// Returns the socket at `local` that is connected with `remote`, or else a listener there.
fn exact(diagnosis: &Diagnosis, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
    match diagnosis.ask(&request(local, remote, StateFlags::all()), NLM_F_REQUEST) {
        Ok(found) => Ok(found.into_iter().next()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn unspecified(address: SocketAddr) -> IpAddr {
    match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn request(local: SocketAddr, remote: SocketAddr, states: StateFlags) -> InetRequest {
    InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: 0,
            cookie: [0xff; 8],
        },
    }
}

/// Where the kernel is asked.
pub(super) struct Diagnosis(io::Result<OwnedFd>);

impl Diagnosis {
    /// Opens a way to the kernel; one that a sandbox forbids is an error of each question.
    pub(super) fn open() -> Self {
        let kind = (AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC);
        Self(rustix::net::socket_with(kind.0, kind.1, kind.2, Some(netlink::SOCK_DIAG)).map_err(io::Error::from))
    }

    /// Asks the kernel and returns all that it answers. It answers at once: nothing is waited for.
    fn ask(&self, request: &InetRequest, flags: u16) -> io::Result<Vec<Socket>> {
        let socket = self.0.as_ref().map_err(|error| io::Error::from(error.kind()))?;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let message = NetlinkPayload::from(SockDiagMessage::InetRequest(request.clone()));
        let mut message = NetlinkMessage::new(header, message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        rustix::net::send(socket, &bytes, SendFlags::empty())?;
        answers(socket, flags & NLM_F_DUMP != 0)
    }
}

/// Reads the kernel's answers: one, or those of a dump up to its end.
fn answers(socket: &OwnedFd, to_the_end: bool) -> io::Result<Vec<Socket>> {
    let garbled = |error: netlink_packet_core::DecodeError| io::Error::other(error.to_string());
    let mut found = Vec::new();
    let mut bytes = vec![0; ANSWER_BYTES_MAX];
    loop {
        let (count, _) = rustix::net::recv(socket, &mut bytes[..], RecvFlags::empty())?;
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(garbled)?;
            if matches!(message.payload, NetlinkPayload::Done(_)) {
                return Ok(found);
            }
            if let NetlinkPayload::Error(error) = &message.payload {
                return Err(error.to_io());
            }
            if let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) = &message.payload {
                found.push(Socket::from(&**response));
            }
            // Each message begins at a multiple of four.
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
        if !to_the_end {
            return Ok(found);
        }
    }
}

impl From<&InetResponse> for Socket {
    fn from(response: &InetResponse) -> Self {
        let header = &response.header;
        let id = &header.socket_id;
        Self {
            state: header.state,
            local: SocketAddr::new(id.source_address, id.source_port),
            remote: SocketAddr::new(id.destination_address, id.destination_port),
            inode: header.inode.into(),
            waiting: header.recv_queue,
            places: Some(header.send_queue),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::handover::bind::bind;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_other_end_waits_is_held_and_is_closed() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let listener = bind(address(local)).expect("bound");
            let server = listener.local_addr().expect("an address");
            let client = TcpStream::connect(server).expect("connected");
            let from = client.local_addr().expect("an address");
            assert_eq!(end(server, from).expect("asked"), End::Waiting);
            assert_eq!(queue(&listener).expect("asked").waiting, 1);
            let (accepted, _) = listener.accept().expect("accepted");
            let inode = fd::inode(&accepted).expect("open");
            assert_eq!(end(server, from).expect("asked"), End::Held(inode));
            assert!(connections(server).expect("asked").iter().any(|socket| socket.inode == inode));
            assert_eq!(queue(&listener).expect("asked").waiting, 0);
            drop(accepted);
            assert_eq!(end(server, from).expect("asked"), End::Closed);
        }
    }

    #[test]
    fn a_listener_for_both_families_is_found_by_either() {
        let listener = bind(address("[::]:0")).expect("bound");
        let port = listener.local_addr().expect("an address").port();
        for server in [SocketAddr::from(([127, 0, 0, 1], port)), address(&format!("[::1]:{port}"))] {
            let client = TcpStream::connect(server).expect("connected");
            let from = client.local_addr().expect("an address");
            assert_eq!(end(server, from).expect("asked"), End::Waiting, "{server}");
            let (accepted, _) = listener.accept().expect("accepted");
            assert_eq!(end(server, from).expect("asked"), End::Held(fd::inode(&accepted).expect("open")), "{server}");
            let tabled = table::sockets(server, |_| true).expect("read");
            assert!(tabled.iter().any(|socket| socket.inode == fd::inode(&accepted).expect("open")), "{server}");
        }
    }

    #[test]
    fn a_connection_whose_client_has_gone_still_waits() {
        let listener = bind(address("127.0.0.1:0")).expect("bound");
        let server = listener.local_addr().expect("an address");
        let client = TcpStream::connect(server).expect("connected");
        let from = client.local_addr().expect("an address");
        client.shutdown(std::net::Shutdown::Write).expect("half closed");
        assert_eq!(end(server, from).expect("asked"), End::Waiting);
    }

    #[test]
    fn a_queue_is_crowded_when_half_of_its_places_are_taken() {
        assert!(!Queue { waiting: 2, places: Some(5) }.is_crowded());
        assert!(Queue { waiting: 3, places: Some(5) }.is_crowded());
        assert!(!Queue { waiting: 3, places: None }.is_crowded());
    }
}
