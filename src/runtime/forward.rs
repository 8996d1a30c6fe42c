//! Connections that waited at a listener in whose place another one listens: each is made anew there, and both ends are joined.
//!
//! What comes in at one end is written to the other first and taken away then, so that the two sockets are all that there is of a
//! connection at any moment: the next image goes on with them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use refit_base::lock;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use rustix::process::{Resource, getrlimit};
use tokio::io::Interest;
use tokio::net::TcpSocket;

use crate::handover::beside::made_anew;
use crate::handover::{Named, names};
use crate::probe::acceptor::{Candidates, Taken, owner_of};

/// How often it is looked whether a process has accepted one.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The most that the next image is given: as many as wait at one listener (`net.core.somaxconn`), and their names fit into one variable of
/// its environment.
const HANDED_OVER_MAX: usize = 4096;
/// So many descriptors are left for everything else that the next image opens.
const DESCRIPTORS_LEFT: usize = 128;
/// How much is moved at once.
const PIECE_BYTES: usize = 16 << 10;

/// A connection and the one that was made for it.
type Joined = [tokio::net::TcpStream; 2];

/// The connections that waited.
#[derive(Default)]
pub(super) struct Waited {
    /// Those from which nothing was read yet, since nobody has accepted them: they can be made anew once more.
    unread: Mutex<BTreeMap<usize, TcpStream>>,
    /// Those that a process has accepted: both ends.
    joined: Mutex<BTreeMap<usize, Arc<Joined>>>,
}

/// Those that the image before has handed over.
#[derive(Default)]
pub(super) struct HandedOver {
    pub(super) unread: Vec<TcpStream>,
    pub(super) joined: Vec<[TcpStream; 2]>,
}

impl HandedOver {
    /// Returns them, as [`Waited::take`] has named them.
    pub(super) fn new(unread: Vec<Named>, joined: Vec<Named>) -> Self {
        let mut ends: BTreeMap<String, Vec<TcpStream>> = BTreeMap::new();
        for part in joined {
            let number = part.name.split('.').next().unwrap_or_default().to_owned();
            ends.entry(number).or_default().push(TcpStream::from(part.descriptor));
        }
        Self {
            unread: unread.into_iter().map(|part| TcpStream::from(part.descriptor)).collect(),
            joined: ends.into_values().filter_map(|ends| ends.try_into().ok()).collect(),
        }
    }
}

impl Waited {
    /// Returns those of `found`.
    ///
    /// # Errors
    /// The async runtime takes none.
    pub(super) fn new(found: HandedOver) -> io::Result<Arc<Self>> {
        let count = found.unread.len();
        let mut joined = BTreeMap::new();
        for (number, [here, there]) in found.joined.into_iter().enumerate() {
            joined.insert(count + number, Arc::new([into_async(here)?, into_async(there)?]));
        }
        let unread = Mutex::new(found.unread.into_iter().enumerate().collect());
        Ok(Arc::new(Self { unread, joined: Mutex::new(joined) }))
    }

    /// Serves them until the last has ended, or it is cancelled.
    pub(super) async fn forward(self: Arc<Self>) {
        let waiting: Vec<usize> = lock(&self.unread).keys().copied().collect();
        let numbers: Vec<usize> = waiting.iter().chain(lock(&self.joined).keys()).copied().collect();
        if numbers.is_empty() {
            return;
        }
        if !waiting.is_empty() {
            let connections = waiting.len();
            tracing::info!(connections, "what waited at a listener goes on at the one in its place");
        }
        // In one task: when that is cancelled nothing is on the way from one end to the other.
        let mut all: FuturesUnordered<_> = numbers.into_iter().map(|number| self.serve(number)).collect();
        while all.next().await.is_some() {}
    }

    async fn serve(&self, number: usize) {
        if let Err(error) = self.join(number).await {
            tracing::debug!(%error, "a connection that waited at a listener is over");
        }
        lock(&self.unread).remove(&number);
        lock(&self.joined).remove(&number);
    }

    /// Takes those that are not over, for the next image. Those that it cannot have are closed, and it is said how many.
    pub(super) fn take(&self) -> Vec<Named> {
        let mut taken = Vec::new();
        let joined = std::mem::take(&mut *lock(&self.joined));
        let unread = std::mem::take(&mut *lock(&self.unread));
        let all = joined.len() + unread.len();
        let (mut kept, mut room) = (0, room());
        for (number, ends) in joined {
            let Some([here, there]) = Arc::into_inner(ends) else { continue };
            let (Ok(here), Ok(there)) = (here.into_std(), there.into_std()) else { continue };
            if taken.len() + 2 > HANDED_OVER_MAX {
                break;
            }
            kept += 1;
            for (end, socket) in [("0", here), ("1", there)] {
                taken.push(Named { name: format!("{}{number}.{end}", names::JOINED), descriptor: socket.into() });
            }
        }
        for (number, connection) in unread {
            // It takes another descriptor when it is made anew.
            if taken.len() + 1 > HANDED_OVER_MAX || room == 0 {
                break;
            }
            (kept, room) = (kept + 1, room - 1);
            taken.push(Named { name: format!("{}{number}", names::WAITED), descriptor: connection.into() });
        }
        if kept < all {
            let closed = all - kept;
            tracing::warn!(closed, kept, "the next image cannot have all connections that waited at a listener");
        }
        taken
    }

    async fn join(&self, number: usize) -> io::Result<()> {
        let known = lock(&self.joined).get(&number).map(Arc::clone);
        let ends = match known {
            Some(ends) => ends,
            None => self.make_anew(number).await?,
        };
        let [here, there] = &*ends;
        tokio::try_join!(pass_on(here, there), pass_on(there, here)).map(drop)
    }

    /// Makes a connection anew, and waits until a process has accepted it.
    async fn make_anew(&self, number: usize) -> io::Result<Arc<Joined>> {
        let over = || io::Error::from(io::ErrorKind::NotConnected);
        let (to, from) = lock(&self.unread).get(&number).ok_or_else(over).and_then(made_anew)?;
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(from, 0))?;
        let there = socket.connect(to).await?;
        let own = there.local_addr()?;
        while matches!(owner_of(to, own, Candidates::default).await?, Taken::Nobody) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let here = lock(&self.unread).remove(&number).ok_or_else(over)?;
        let ends = Arc::new([into_async(here)?, there]);
        lock(&self.joined).insert(number, Arc::clone(&ends));
        Ok(ends)
    }
}

/// Returns how many descriptors may be open besides those that are.
fn room() -> usize {
    let limit =
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    limit.saturating_sub(open).saturating_sub(DESCRIPTORS_LEFT)
}

fn into_async(connection: TcpStream) -> io::Result<tokio::net::TcpStream> {
    connection.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(connection)
}

/// Passes on what comes in at `from`, up to its end.
async fn pass_on(from: &tokio::net::TcpStream, to: &tokio::net::TcpStream) -> io::Result<()> {
    loop {
        from.readable().await?;
        to.writable().await?;
        match move_piece(from, to) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}

/// Moves what there is to `to`. Returns how many bytes; 0 at the end, which is passed on, too.
fn move_piece(from: &tokio::net::TcpStream, to: &tokio::net::TcpStream) -> io::Result<usize> {
    let mut bytes = [0; PIECE_BYTES];
    let peek = || Ok(recv(from, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1);
    let count = from.try_io(Interest::READABLE, peek)?;
    if count == 0 {
        shutdown(to, Shutdown::Write)?;
        return Ok(0);
    }
    let written = to.try_write(&bytes[..count])?;
    let mut left = written;
    while left > 0 {
        // It was there a moment ago, and nobody else reads.
        left -= recv(from, &mut bytes[..left], RecvFlags::DONTWAIT)?.1;
    }
    Ok(written)
}
