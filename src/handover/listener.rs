//! [`Listeners`]: name -> socket. The only place that binds an appliance's listener.
//!
//! A listener is bound once in the life of an appliance and then handed from image to image. One whose address a new release
//! changes is kept aside until that release has proved good: going back must find it as it was.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::Named;
use super::fd;
use super::inherit::Inheritance;
use crate::awake;

/// How many connections may wait while nobody accepts: a second of what a small machine can serve.
pub const BACKLOG: i32 = 1024;
/// The beginning of the names of listeners that are kept aside.
const ASIDE: &str = "aside.";

/// A listener that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the listener {name}")]
pub struct BindError {
    /// The listener.
    pub name: String,
    /// Its address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The appliance's listeners.
#[derive(Debug, Default)]
pub struct Listeners {
    bound: BTreeMap<String, TcpListener>,
    aside: Vec<(String, TcpListener)>,
    /// Those among `bound` that were not handed over under their name.
    fresh: Vec<String>,
}

impl Listeners {
    /// Returns the listeners that `wanted` names: handed over where there is one of that name and address, bound otherwise.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn adopt(wanted: &BTreeMap<String, SocketAddr>, inherited: &mut Inheritance) -> Result<Self, BindError> {
        let mut aside: Vec<(String, TcpListener)> =
            inherited.take_all(ASIDE).into_iter().map(|part| (part.name, TcpListener::from(part.descriptor))).collect();
        let mut bound = BTreeMap::new();
        let mut fresh = Vec::new();
        for (name, address) in wanted {
            let fits = |listener: &TcpListener| {
                listener
                    .local_addr()
                    .is_ok_and(|local| local == *address || (address.port() == 0 && local.ip() == address.ip()))
            };
            let handed = inherited.take(name).map(TcpListener::from);
            let listener = match handed {
                Some(listener) if fits(&listener) => Some(listener),
                Some(other) => {
                    aside.push((name.clone(), other));
                    None
                }
                None => None,
            };
            if listener.is_none() {
                fresh.push(name.clone());
            }
            let listener = listener.or_else(|| {
                let position = aside.iter().position(|(other, listener)| other == name && fits(listener))?;
                Some(aside.remove(position).1)
            });
            let listener = match listener {
                Some(listener) => listener,
                None => bind(*address).map_err(|source| BindError { name: name.clone(), address: *address, source })?,
            };
            bound.insert(name.clone(), listener);
        }
        Ok(Self { bound, aside, fresh })
    }

    /// Keeps a listener that no component of this release wants: the previous release may.
    pub fn keep_aside(&mut self, part: Named) {
        self.aside.push((part.name, TcpListener::from(part.descriptor)));
    }

    /// Returns whether the listener `name` was not handed over under that name.
    pub fn is_fresh(&self, name: &str) -> bool {
        self.fresh.iter().any(|fresh| fresh == name)
    }

    /// Closes what is kept aside: the release that does not want it has proved good. Returns their names as they are described.
    pub fn close_aside(&mut self) -> Vec<String> {
        self.aside.drain(..).map(|(name, _)| format!("{ASIDE}{name}")).collect()
    }

    /// Returns the listener `name`.
    pub fn get(&self, name: &str) -> Option<&TcpListener> {
        self.bound.get(name)
    }

    /// Returns each listener's name and the address it is really bound to.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.bound.iter().filter_map(|(name, listener)| Some((name.clone(), listener.local_addr().ok()?))).collect()
    }

    /// Returns a duplicate of everything, for the next image or the guard's store.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn describe(&self) -> io::Result<Vec<Named>> {
        let aside = self.aside.iter().map(|(name, listener)| (format!("{ASIDE}{name}"), listener));
        self.bound
            .iter()
            .map(|(name, listener)| (name.clone(), listener))
            .chain(aside)
            .map(|(name, listener)| Ok(Named { name, descriptor: OwnedFd::from(listener.try_clone()?) }))
            .collect()
    }
}

/// Returns a listener on `address`, blocking, as a service manager hands them to programs.
///
/// # Errors
/// The address is in use, or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A connection of an earlier life in TIME_WAIT is no reason to refuse; a listener of somebody else still is.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Makes a real connection to `listener` and returns whether somebody accepts it within `limit`.
///
/// A connection alone proves nothing, since the kernel makes it: the listener's queue has to become shorter or empty, too,
/// which only an accept does. Under load it may never be seen empty.
///
/// # Errors
/// The connection is refused, or the kernel's table cannot be read.
pub async fn answers(listener: &TcpListener, limit: Duration) -> io::Result<bool> {
    /// How often the queue is looked at: the kernel tells nobody when it becomes shorter.
    const LOOK_AGAIN: Duration = Duration::from_millis(5);
    /// Every so many looks the connection itself is looked up: the whole table of a busy appliance is long.
    const LOOK_CLOSER: u32 = 20;
    let mut address = listener.local_addr()?;
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr =
            if address.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    let inode = fd::inode(listener)?;
    let probe = async {
        let connection = tokio::net::TcpStream::connect(address).await?;
        let own = connection.local_addr()?;
        let (mut before, mut looks) = (0, 0);
        loop {
            let waiting = queued(inode, &address)?;
            if waiting == 0 || waiting < before {
                break;
            }
            looks += 1;
            // A server that shakes hands in its one thread takes this connection, waits for its first byte, and takes no other.
            if looks % LOOK_CLOSER == 0 && is_accepted(open_table(&address)?, address.port(), own.port())? {
                break;
            }
            before = waiting;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        drop(connection);
        Ok(())
    };
    match awake::timeout(limit, probe).await {
        Some(result) => result.map(|()| true),
        None => Ok(false),
    }
}

/// Returns how many connections wait to be accepted by the listener whose socket is `inode`, at an address like `address`.
fn queued(inode: u64, address: &SocketAddr) -> io::Result<u32> {
    Ok(queued_in(open_table(address)?, inode)?.unwrap_or(0))
}

/// Opens the kernel's table of connections of the family of `address`.
fn open_table(address: &SocketAddr) -> io::Result<impl BufRead> {
    let table = if address.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    Ok(BufReader::new(File::open(table)?))
}

/// Returns whether the connection from the port `own` to a listener at `port` of this machine was accepted. Its other end is
/// nobody's (inode 0) until then, established or on the way there, or not there if the queue is full; afterwards it has an owner, or was
/// closed.
fn is_accepted(table: impl BufRead, port: u16, own: u16) -> io::Result<bool> {
    const ESTABLISHED: &str = "01";
    const SYN_RECV: &str = "03";
    let port_of = |column: &str| u16::from_str_radix(column.rsplit_once(':')?.1, 16).ok();
    for line in table.lines().skip(1) {
        let line = line?;
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, _, _, _, _, _, inode, ..] = columns.as_slice() else { continue };
        if port_of(local) == Some(port) && port_of(remote) == Some(own) {
            return Ok(*inode != "0" || ![ESTABLISHED, SYN_RECV].contains(state));
        }
    }
    Ok(false)
}

/// Columns of proc_net_tcp(5): 3 is the state, 4 is `tx_queue:rx_queue`, 9 the inode; a listener's receive queue counts
/// connections.
///
/// Listeners come first, so that the tens of thousands of connections of a busy appliance are not read.
fn queued_in(table: impl BufRead, inode: u64) -> io::Result<Option<u32>> {
    const LISTEN: &str = "0A";
    for line in table.lines().skip(1) {
        let line = line?;
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, state, queues, _, _, _, _, found, ..] = columns.as_slice() else { continue };
        if *state == LISTEN && found.parse() == Ok(inode) {
            return Ok(queues.split_once(':').and_then(|(_, waiting)| u32::from_str_radix(waiting, 16).ok()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(address: SocketAddr) -> BTreeMap<String, SocketAddr> {
        BTreeMap::from([("http".to_owned(), address)])
    }
    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn a_listener_is_adopted_by_name_and_address_and_kept_aside_otherwise() {
        let mut nothing = Inheritance::default();
        let first = Listeners::adopt(&wanted(any()), &mut nothing).expect("bound");
        let address = first.get("http").expect("http").local_addr().expect("an address");

        let mut inherited = Inheritance::new(first.describe().expect("described"));
        let second = Listeners::adopt(&wanted(address), &mut inherited).expect("adopted");
        assert_eq!(fd::inode(second.get("http").expect("http")).ok(), fd::inode(first.get("http").expect("http")).ok());

        let other = bind(any()).and_then(|l| l.local_addr()).expect("a free port");
        let mut inherited = Inheritance::new(second.describe().expect("described"));
        let third = Listeners::adopt(&wanted(other), &mut inherited).expect("bound elsewhere");
        assert_eq!(third.addresses(), vec![("http".to_owned(), other)]);

        let mut inherited = Inheritance::new(third.describe().expect("described"));
        let back = Listeners::adopt(&wanted(address), &mut inherited).expect("found again");
        assert_eq!(fd::inode(back.get("http").expect("http")).ok(), fd::inode(first.get("http").expect("http")).ok());
    }

    #[tokio::test]
    async fn a_listener_that_nobody_accepts_from_does_not_answer() {
        let listener = bind(any()).expect("bound");
        assert!(!answers(&listener, Duration::from_millis(100)).await.expect("connected"));
        let accepting = listener.try_clone().expect("cloned");
        let thread = std::thread::spawn(move || (0..2).all(|_| accepting.accept().is_ok()));
        assert!(answers(&listener, Duration::from_secs(5)).await.expect("connected"));
        assert!(thread.join().expect("joined"));
    }

    #[tokio::test]
    async fn a_server_that_waits_for_the_first_byte_of_the_only_connection_it_takes_answers() {
        use std::io::Read;
        use std::net::TcpStream;
        let listener = bind(any()).expect("bound");
        let address = listener.local_addr().expect("bound");
        let accepting = listener.try_clone().expect("cloned");
        // The queue is as long after the accept as it was before.
        let thread = std::thread::spawn(move || {
            let (mut taken, _) = accepting.accept()?;
            let _waits = TcpStream::connect(address)?;
            taken.read(&mut [0])
        });
        assert!(answers(&listener, Duration::from_secs(5)).await.expect("connected"));
        assert_eq!(thread.join().expect("joined").expect("closed"), 0);
    }

    #[test]
    fn a_connection_is_accepted_when_it_has_an_owner_or_was_closed() {
        let row = |remote: &str, state: &str, inode: u32| {
            let begin = "head\n   0: 0100007F:1F90 0100007F:";
            format!(
                "{begin}{remote} {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100 0 0 10 0\n"
            )
        };
        let rows = [
            (row("9C40", "01", 0), false),
            (row("9C40", "01", 4242), true),
            (row("9C40", "04", 0), true),
            (row("9C40", "03", 0), false),
            (row("9C41", "01", 4242), false),
        ];
        for (table, expected) in rows {
            assert_eq!(is_accepted(table.as_bytes(), 8080, 40_000).expect("read"), expected, "{table}");
        }
    }

    #[test]
    fn the_queue_is_read_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0\n";
        assert_eq!(queued_in(table.as_bytes(), 4242).expect("read"), Some(3));
        assert_eq!(queued_in(table.as_bytes(), 1).expect("read"), None);
    }
}
