//! The kernel's table of TCP sockets, proc_net_tcp(5): slower than asking for one socket, and there in every sandbox.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::socket::Socket;

/// Returns the sockets at the port of `local` whose state `wanted` names.
///
/// # Errors
/// The table cannot be read.
pub(super) fn sockets(local: SocketAddr, wanted: impl Fn(u8) -> bool) -> io::Result<Vec<Socket>> {
    let read = |path| sockets_in(BufReader::new(File::open(path)?), local.port(), &wanted);
    // A listener for both families has its IPv4 connections among those of IPv6.
    let mut found = match read("/proc/self/net/tcp6") {
        Ok(found) => found,
        Err(_) if local.is_ipv4() => Vec::new(), // a system without IPv6
        Err(error) => return Err(error),
    };
    if local.is_ipv4() {
        found.extend(read("/proc/self/net/tcp")?);
    }
    Ok(found)
}

fn sockets_in(table: impl BufRead, port: u16, wanted: &impl Fn(u8) -> bool) -> io::Result<Vec<Socket>> {
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let line = line?;
        if let Some(socket) = socket(&line).filter(|socket| socket.local.port() == port && wanted(socket.state)) {
            found.push(socket);
        }
    }
    Ok(found)
}

/// Columns: 1 and 2 are the addresses, 3 is the state, 4 is `tx_queue:rx_queue`, 9 the inode; a listener's receive queue counts
/// connections.
fn socket(line: &str) -> Option<Socket> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, queues, _, _, _, _, inode, ..] = columns.as_slice() else { return None };
    Some(Socket {
        state: u8::from_str_radix(state, 16).ok()?,
        local: address(local)?,
        remote: address(remote)?,
        inode: inode.parse().ok()?,
        waiting: u32::from_str_radix(queues.split_once(':')?.1, 16).ok()?,
        places: None,
    })
}

/// Reads an address: words of 32 bits in the machine's own order, each in hexadecimal, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok();
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        32 => {
            let mut bytes = [0; 16];
            for (part, at) in bytes.chunks_exact_mut(4).zip((0..32).step_by(8)) {
                part.copy_from_slice(&word(at)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::bind::bind;
    use crate::handover::fd;

    #[test]
    fn the_table_shows_what_the_kernel_holds() {
        for text in ["127.0.0.1:0", "[::1]:0"] {
            let listener = bind(text.parse().expect("an address")).expect("bound");
            let local = listener.local_addr().expect("an address");
            let client = std::net::TcpStream::connect(local).expect("connected");
            let found = sockets(local, |_| true).expect("read");
            let inode = fd::inode(&listener).expect("open");
            let listening = found.iter().find(|socket| socket.inode == inode).expect("the listener");
            assert_eq!((listening.local, listening.waiting), (local, 1));
            let other = client.local_addr().expect("an address");
            let waiting = found.iter().find(|socket| socket.remote == other).expect("the other end");
            assert_eq!(waiting.inode, 0);
        }
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        let table = "  sl  local_address\n\n 0: 0100007F:1F90 00000000:0000\n";
        assert_eq!(sockets_in(table.as_bytes(), 8080, &|_| true).expect("read"), vec![]);
    }
}
