//! Whether a certain process accepts from a listener that others may accept from, too.
//!
//! A connection is made, and held until it is accepted; its other end then has a number, which the accepting process has among
//! its descriptors. It is closed at once after that look.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::kernel::{self, End};
use super::{CONNECT_MAX, is_accepting_kind, reachable};
use crate::handover::fd;

/// For so long the connection is looked at all the time: most servers accept at once, and some close as soon.
const AT_ONCE: Duration = Duration::from_millis(2);
/// How often it is looked at then: as soon as it is accepted, the server waits for it.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// After so long without an accept the looks become rarer: then the server has something else to do.
const SOON: Duration = Duration::from_millis(50);
/// How often it is looked at from then on.
const LOOK_AGAIN_LATER: Duration = Duration::from_millis(5);
/// How often a crowded queue is looked at: each look reads all connections.
const LOOK_AGAIN_CROWDED: Duration = Duration::from_millis(50);

/// The processes among which the one is looked for that has accepted a connection.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    /// Those that are asked about.
    pub theirs: Vec<i32>,
    /// Others that may accept, too.
    pub others: Vec<i32>,
}

/// Who has taken a connection.
#[derive(Debug)]
pub enum Taken {
    /// One of the processes that are asked about.
    Theirs,
    /// One of the others: that says nothing about these.
    Others,
    /// A process, and none of the candidates.
    Stranger,
    /// A process, which closed it before it could be found.
    Closed,
    /// A process has it, and the descriptors of some that are asked about cannot be read by this account.
    Hidden(Hidden),
    /// No process, for so long.
    Nobody,
}

/// A connection whose owner could not be found.
#[derive(Debug)]
pub struct Hidden {
    /// The number of the accepted socket, as in `socket:[NUMBER]`.
    pub inode: u64,
    /// The processes that could not be looked into.
    pub processes: Vec<i32>,
}

/// Makes a connection to `listener`, or `count` at the same time, and returns who accepts them within `limit`: those that are asked
/// about, if they accept one. A connection comes with what could not be seen: as long as it is open, a process that can look into
/// them has something to find.
///
/// With a crowded queue no connection is made: there are others to look at.
///
/// # Errors
/// The listener is not one that accepts, the connection is refused, or the kernel cannot be asked.
pub async fn taken_by(
    listener: &TcpListener,
    candidates: impl Fn() -> Candidates + Clone + Send + 'static,
    count: u32,
    limit: Duration,
) -> io::Result<(Taken, Option<TcpStream>)> {
    if !is_accepting_kind(listener)? {
        return Err(io::Error::other("it does not listen"));
    }
    let server = reachable(listener)?;
    let until = Instant::now() + limit;
    let queue = loop {
        let queue = kernel::queue(listener)?;
        if !queue.is_crowded() {
            break queue;
        }
        let look = candidates.clone();
        if blocking(move || one_is_theirs(server, &look().theirs)).await?? {
            return Ok((Taken::Theirs, None));
        }
        if Instant::now() >= until {
            return Ok((Taken::Nobody, None));
        }
        tokio::time::sleep(LOOK_AGAIN_CROWDED).await;
    };
    let find = candidates.clone();
    let known = blocking(find).await?;
    let count = if queue.is_crowded_with(count) { 1 } else { count };
    let defers = fd::defers_accept(listener);
    let (taken, connection) =
        take(count, || take_one(server, defers, known.clone(), candidates.clone(), limit)).await?;
    let is_known = matches!(taken, Taken::Theirs);
    Ok((taken, connection.filter(|_| !is_known)))
}

/// Makes `count` connections to `server` at the same time, and returns who accepts them within `limit`: those that are asked about, if
/// they accept one, with that connection. It is none if the queue is full for so long.
///
/// # Errors
/// The connection is refused, or the kernel cannot be asked.
pub async fn connect(
    server: SocketAddr,
    candidates: impl Fn() -> Candidates + Clone + Send + 'static,
    count: u32,
    limit: Duration,
) -> io::Result<(Taken, Option<TcpStream>)> {
    let known = blocking(candidates.clone()).await?;
    take(count, || take_one(server, false, known.clone(), candidates.clone(), limit)).await
}

/// Makes `count` connections, each as `one` does, and returns the first that those accept who are asked about. One that others accept is
/// closed at once: they may serve one after the other.
async fn take<F: Future<Output = io::Result<(Taken, Option<TcpStream>)>>>(
    count: u32,
    one: impl Fn() -> F,
) -> io::Result<(Taken, Option<TcpStream>)> {
    let mut all: FuturesUnordered<_> = (0..count.max(1)).map(|_| one()).collect();
    let mut best = (Taken::Nobody, None);
    while let Some(made) = all.next().await {
        let (taken, connection) = made?;
        if matches!(taken, Taken::Theirs) {
            return Ok((taken, connection));
        }
        if matches!(best.0, Taken::Nobody | Taken::Closed) {
            let is_hidden = matches!(taken, Taken::Hidden(_));
            best = (taken, connection.filter(|_| is_hidden));
        }
    }
    Ok(best)
}

/// Makes one connection and returns who accepts it, and the connection.
async fn take_one(
    server: SocketAddr,
    defers: bool,
    known: Candidates,
    candidates: impl Fn() -> Candidates + Clone + Send + 'static,
    limit: Duration,
) -> io::Result<(Taken, Option<TcpStream>)> {
    let begun = Instant::now();
    // In a thread of its own up to the first look: what is closed soon is not there any more when another one is awake.
    let look = {
        let (known, candidates) = (known.clone(), candidates.clone());
        move || connect_and_look(server, defers, limit, known, candidates)
    };
    let (connection, client) = match blocking(look).await?? {
        Look::Taken(taken, connection) => return Ok((taken, connection)),
        Look::Waits(connection, client) => (connection, client),
    };
    loop {
        let waited = begun.elapsed();
        match kernel::end(server, client)? {
            End::Held(inode) => {
                let taken = blocking(move || owner(inode, known, candidates)).await?;
                return Ok((unless_closed(taken, &kernel::end(server, client)?), Some(connection)));
            }
            End::Closed => return Ok((Taken::Closed, Some(connection))),
            End::Waiting if waited >= limit => return Ok((Taken::Nobody, Some(connection))),
            End::Waiting if waited < SOON => tokio::time::sleep(LOOK_AGAIN).await,
            End::Waiting => tokio::time::sleep(LOOK_AGAIN_LATER).await,
        }
    }
}

/// What came of the first look at a connection.
enum Look {
    Taken(Taken, Option<TcpStream>),
    /// No process has accepted it yet: the connection, and its own end.
    Waits(TcpStream, SocketAddr),
}

/// Makes a connection, and looks at it all the time for as long as most servers need to accept.
fn connect_and_look(
    server: SocketAddr,
    defers: bool,
    limit: Duration,
    known: Candidates,
    candidates: impl Fn() -> Candidates,
) -> io::Result<Look> {
    let diagnosis = kernel::Diagnosis::open();
    let connection = match TcpStream::connect_timeout(&server, limit.min(CONNECT_MAX)) {
        Ok(connection) => connection,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(Look::Taken(Taken::Nobody, None)), // it is full
        Err(error) => return Err(error),
    };
    let client = connection.local_addr()?;
    if defers {
        // Without data such a listener keeps it to itself; its end it hands on. One that was closed already is as good.
        drop(connection.shutdown(Shutdown::Write));
    }
    let begun = Instant::now();
    loop {
        match kernel::end_seen_by(&diagnosis, server, client)? {
            End::Held(inode) => {
                let taken = owner(inode, known, candidates);
                let now = kernel::end_seen_by(&diagnosis, server, client)?;
                return Ok(Look::Taken(unless_closed(taken, &now), Some(connection)));
            }
            End::Closed => return Ok(Look::Taken(Taken::Closed, Some(connection))),
            End::Waiting if begun.elapsed() >= AT_ONCE => return Ok(Look::Waits(connection, client)),
            End::Waiting => std::thread::yield_now(),
        }
    }
}

/// Returns who has `taken` a connection that is at this `end` by now: one that was closed while its owner was looked for had one that nobody
/// found.
fn unless_closed(taken: Taken, end: &End) -> Taken {
    match (taken, end) {
        (Taken::Stranger, End::Closed | End::Waiting) => Taken::Closed,
        (taken, End::Held(_) | End::Closed | End::Waiting) => taken,
    }
}

/// Returns who has accepted the connection from `client` to `server`, which is open.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn owner_of(
    server: SocketAddr,
    client: SocketAddr,
    candidates: impl Fn() -> Candidates + Send + 'static,
) -> io::Result<Taken> {
    match kernel::end(server, client)? {
        End::Held(inode) => blocking(move || owner(inode, Candidates::default(), candidates)).await,
        End::Closed => Ok(Taken::Closed),
        End::Waiting => Ok(Taken::Nobody),
    }
}

/// Does what reads files of the kernel: not on an async worker.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Returns whether one of `processes` has a connection that was made to `server`.
fn one_is_theirs(server: SocketAddr, processes: &[i32]) -> io::Result<bool> {
    let held = kernel::connections(server)?;
    let numbers: BTreeSet<u64> = held.iter().map(|socket| socket.inode).filter(|inode| *inode != 0).collect();
    Ok(processes.iter().any(|pid| sockets_of(*pid).is_ok_and(|all| !all.is_disjoint(&numbers))))
}

/// Returns who has the socket `inode`: of those that were `known` or, since a server may have started the process meanwhile, those
/// that there are by now.
fn owner(inode: u64, known: Candidates, candidates: impl Fn() -> Candidates) -> Taken {
    let mut hidden = Vec::new();
    // While the connection is open, the process goes on having it: the first look is for those that close it soon.
    for Candidates { theirs, others } in std::iter::once(known).chain(std::iter::once_with(candidates)) {
        let look = find_owner(&theirs, inode);
        if look.has {
            return Taken::Theirs;
        }
        if find_owner(&others, inode).has {
            return Taken::Others;
        }
        hidden = look.hidden;
    }
    if hidden.is_empty() { Taken::Stranger } else { Taken::Hidden(Hidden { inode, processes: hidden }) }
}

/// What the descriptors of some processes have shown.
struct Found {
    /// One of them has the socket.
    has: bool,
    /// Those that could not be looked into.
    hidden: Vec<i32>,
}

fn find_owner(processes: &[i32], inode: u64) -> Found {
    let mut hidden = Vec::new();
    for pid in processes {
        match sockets_of(*pid) {
            Ok(sockets) if sockets.contains(&inode) => return Found { has: true, hidden },
            Err(_) if lives(*pid) => hidden.push(*pid),
            Ok(_) | Err(_) => {} // one that has ended accepts nothing
        }
    }
    Found { has: false, hidden }
}

/// Returns whether there is a process of this number, whatever the system shows of it.
fn lives(pid: i32) -> bool {
    let process = rustix::process::Pid::from_raw(pid);
    process.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

/// Returns whether one of `processes` has the socket with the number `inode`. `None` if none has, as far as could be seen, and one
/// could not be looked into.
pub fn has_socket(processes: &[i32], inode: u64) -> Option<bool> {
    let look = find_owner(processes, inode);
    if look.has { Some(true) } else { look.hidden.is_empty().then_some(false) }
}

/// Returns the numbers of the sockets that a process has open.
///
/// # Errors
/// It has ended, or belongs to an account whose processes this one may not look into.
fn sockets_of(pid: i32) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let link = match fs::read_link(entry?.path()) {
            Ok(link) => link,
            // Root may list them without the right to look at them.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Err(_) => continue, // closed meanwhile
        };
        let number: Option<u64> =
            link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        found.extend(number);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::bind::bind;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(10);

    fn own() -> Vec<i32> {
        vec![rustix::process::getpid().as_raw_pid()]
    }

    fn theirs() -> Candidates {
        Candidates { theirs: own(), others: Vec::new() }
    }

    fn others() -> Candidates {
        Candidates { theirs: Vec::new(), others: own() }
    }

    fn accepting(listener: &TcpListener) -> std::thread::JoinHandle<Duration> {
        let accepting = listener.try_clone().expect("cloned");
        std::thread::spawn(move || {
            let (mut stream, _) = accepting.accept().expect("accepted");
            let begun = Instant::now();
            assert_eq!(io::Read::read(&mut stream, &mut [0; 16]).expect("read"), 0);
            begun.elapsed()
        })
    }

    #[tokio::test]
    async fn the_process_that_accepts_is_found_by_its_descriptors() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let listener = bind(address.parse().expect("an address")).expect("bound");
            let server = accepting(&listener);
            assert!(matches!(taken_by(&listener, theirs, 1, LONG).await.expect("tried").0, Taken::Theirs), "{address}");
            assert!(server.join().expect("joined") < Duration::from_secs(1), "the probe held the server");
        }
    }

    #[tokio::test]
    async fn what_another_process_accepts_says_nothing() {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        for (candidates, is_right) in [
            (others as fn() -> Candidates, (|taken| matches!(taken, Taken::Others)) as fn(&Taken) -> bool),
            (Candidates::default, |taken| matches!(taken, Taken::Stranger)),
        ] {
            let server = accepting(&listener);
            let (taken, _) = taken_by(&listener, candidates, 1, LONG).await.expect("tried");
            assert!(is_right(&taken), "{taken:?}");
            server.join().expect("joined");
        }
        assert!(matches!(taken_by(&listener, theirs, 1, SHORT).await.expect("tried").0, Taken::Nobody));
    }

    #[tokio::test]
    async fn one_of_many_connections_is_enough() {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let server = accepting(&listener);
        assert!(matches!(taken_by(&listener, theirs, 4, LONG).await.expect("tried").0, Taken::Theirs));
        server.join().expect("joined");
    }

    #[tokio::test]
    async fn a_socket_that_takes_no_connections_is_an_error() {
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let listener = TcpListener::from(std::os::fd::OwnedFd::from(datagrams));
        assert!(taken_by(&listener, theirs, 1, SHORT).await.is_err());
    }

    #[tokio::test]
    async fn a_listener_that_waits_for_data_is_tried_with_the_end_of_it() {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        fd::defer_accept(&listener);
        let server = accepting(&listener);
        let (taken, _) = taken_by(&listener, theirs, 1, LONG).await.expect("tried");
        assert!(matches!(taken, Taken::Theirs | Taken::Closed), "{taken:?}");
        server.join().expect("joined");
    }

    #[tokio::test]
    async fn with_a_crowded_queue_the_connections_of_others_tell_it() {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        rustix::net::listen(&listener, 2).expect("a shorter queue");
        let address = listener.local_addr().expect("an address");
        let connect = || TcpStream::connect(address).expect("connected");
        let served = (connect(), listener.accept().expect("accepted"));
        let waiting = [connect(), connect(), connect()];
        assert!(matches!(taken_by(&listener, theirs, 1, SHORT).await.expect("tried").0, Taken::Theirs));
        drop(served);
        assert!(matches!(taken_by(&listener, theirs, 1, SHORT).await.expect("tried").0, Taken::Nobody));
        assert_eq!(kernel::queue(&listener).expect("asked").waiting, 3, "the probe took a place");
        drop(waiting);
    }
}
