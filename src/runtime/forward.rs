//! Connections that waited at a listener in whose place another one listens: each is made anew there, and both ends are joined.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::lock;
use tokio::io::copy_bidirectional;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::handover::beside::made_anew;
use crate::handover::{Named, names};
use crate::probe::acceptor::{Candidates, Taken, owner_of};

/// How often it is looked whether a process has accepted one.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The most that the next image is given: it needs descriptors for more.
const HANDED_OVER_MAX: usize = 200;

/// The connections that waited.
#[derive(Default)]
pub(super) struct Waited {
    /// Those from which nothing was read yet, since nobody has accepted them: the next image may have them.
    unread: Mutex<BTreeMap<usize, TcpStream>>,
}

impl Waited {
    /// Returns those of `connections`.
    pub(super) fn new(connections: Vec<TcpStream>) -> Arc<Self> {
        Arc::new(Self { unread: Mutex::new(connections.into_iter().enumerate().collect()) })
    }

    /// Serves them until the last has ended, or it is cancelled.
    pub(super) async fn forward(self: Arc<Self>) {
        let numbers: Vec<usize> = lock(&self.unread).keys().copied().collect();
        if numbers.is_empty() {
            return;
        }
        tracing::info!(connections = numbers.len(), "what waited at a listener goes on at the one in its place");
        let mut all = JoinSet::new();
        for number in numbers {
            let waited = Arc::clone(&self);
            all.spawn(async move {
                if let Err(error) = waited.join(number).await {
                    tracing::debug!(%error, "a connection that waited at a listener is over");
                    lock(&waited.unread).remove(&number);
                }
            });
        }
        while all.join_next().await.is_some() {}
    }

    /// Takes those that nobody has accepted.
    pub(super) fn take(&self) -> Vec<Named> {
        let unread = std::mem::take(&mut *lock(&self.unread));
        let named = |(number, connection): (usize, TcpStream)| Named {
            name: format!("{}{number}", names::WAITED),
            descriptor: connection.into(),
        };
        unread.into_iter().take(HANDED_OVER_MAX).map(named).collect()
    }

    async fn join(&self, number: usize) -> io::Result<()> {
        let over = || io::Error::from(io::ErrorKind::NotConnected);
        let (to, from) = lock(&self.unread).get(&number).ok_or_else(over).and_then(made_anew)?;
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(from, 0))?;
        let mut there = socket.connect(to).await?;
        let own = there.local_addr()?;
        while matches!(owner_of(to, own, Candidates::default).await?, Taken::Nobody) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let here = lock(&self.unread).remove(&number).ok_or_else(over)?;
        here.set_nonblocking(true)?;
        let mut here = tokio::net::TcpStream::from_std(here)?;
        copy_bidirectional(&mut here, &mut there).await.map(drop)
    }
}
