//! [`Server`]: accepts connections, serves them, and parks those that are idle when it stops.
//!
//! It is handed its listeners, each with the router that answers there, and binds none itself. What it answers, to whom, and
//! who hears that it began are others' affairs.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use bytes::Bytes;
use refit_base::clock::monotonic_ns;
use refit_base::lock;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::RemoteAddress;
use super::connection::{self, End, Origin};
use super::limit::{Connections, PARKED_MAX, Promise};
use super::traffic::Traffic;
use crate::process::caller::Caller;

/// A listener, and what answers there.
#[derive(Debug)]
pub struct Endpoint {
    /// The listener's name, by which its parked connections find it again.
    pub name: &'static str,
    /// The listener.
    pub socket: Socket,
    /// What answers.
    pub router: Router,
}

/// A listener, by kind.
#[derive(Debug)]
pub enum Socket {
    /// The kernel says who is at the other end of its connections: requests have a `Caller`.
    Unix(UnixListener),
    /// Nobody says who that is.
    Tcp(TcpListener),
}

/// A connection that waits between two requests, for the next process image.
#[derive(Debug)]
pub struct Parked {
    /// The name of the listener that it was accepted from.
    pub listener: String,
    /// The connection.
    pub socket: OwnedFd,
    /// What was read and belongs to no request yet.
    pub read: Bytes,
    /// Whether it was said to end after each answer: there were more than are carried.
    pub is_surplus: bool,
}

/// Serves HTTP from its beginning to its end, once.
pub struct Server {
    endpoints: Vec<Endpoint>,
    drain_grace: Duration,
    stopping: CancellationToken,
    serving: Mutex<JoinSet<()>>,
    stopped_accepting_ns: Mutex<Option<u64>>,
    /// Whether connections are parked when the server stops: only if another image follows.
    park: Arc<AtomicBool>,
    /// How many connections the next image is promised.
    promises: Arc<AtomicUsize>,
    /// Connections of the image before until the beginning, and those for the next image after the end.
    parked: Arc<Mutex<Vec<Parked>>>,
}

/// What is done with the two ends of a connection, by kind of socket.
struct Ends<S> {
    /// Returns who is at the other end.
    caller: fn(&S) -> Option<Arc<Caller>>,
    /// Returns where that is.
    address: fn(&S) -> Option<IpAddr>,
    /// Returns the socket for the next image.
    into_socket: fn(S) -> io::Result<OwnedFd>,
}

impl Server {
    /// Returns a server of `endpoints`, which cancels `stopping` when it stops. `parked` are the connections of the image before.
    pub fn new(
        endpoints: Vec<Endpoint>,
        stopping: CancellationToken,
        drain_grace: Duration,
        parked: Vec<Parked>,
    ) -> Self {
        Self {
            endpoints,
            drain_grace,
            stopping,
            serving: Mutex::new(JoinSet::new()),
            stopped_accepting_ns: Mutex::new(None),
            park: Arc::new(AtomicBool::new(false)),
            promises: Arc::default(),
            parked: Arc::new(Mutex::new(parked)),
        }
    }

    /// Returns when it stopped accepting, on the monotonic clock.
    pub fn stopped_accepting_ns(&self) -> Option<u64> {
        *lock(&self.stopped_accepting_ns)
    }

    /// Returns the connections that wait for the next image: as many as are carried, and first those that were not told that they end.
    pub fn take_parked(&self) -> Vec<Parked> {
        let mut parked = std::mem::take(&mut *lock(&self.parked));
        parked.sort_by_key(|parked| parked.is_surplus); // stable
        parked.truncate(PARKED_MAX);
        parked
    }

    /// Begins to accept, and goes on with the connections of the image before.
    ///
    /// # Errors
    /// A socket cannot be used; those before it are served.
    pub fn begin(&self) -> io::Result<()> {
        let mut parked = self.take_parked();
        let mut serving = lock(&self.serving);
        for Endpoint { name, socket, router } in &self.endpoints {
            let waiting = parked.extract_if(.., |parked| parked.listener == *name);
            match socket {
                Socket::Unix(socket) => {
                    let waiting = adopt(waiting, |socket| tokio::net::UnixStream::from_std(socket.into()))?;
                    let socket = socket.try_clone()?;
                    socket.set_nonblocking(true)?;
                    let socket = tokio::net::UnixListener::from_std(socket)?;
                    let ends = Ends::<tokio::net::UnixStream> {
                        caller: |stream| {
                            let peer = stream.peer_cred().ok()?;
                            Some(Arc::new(Caller::new(peer.uid(), peer.pid())))
                        },
                        address: |_| None,
                        into_socket: |stream| Ok(stream.into_std()?.into()),
                    };
                    serving.spawn(self.accepting(name, socket, router.clone(), waiting, ends));
                }
                Socket::Tcp(socket) => {
                    let waiting = adopt(waiting, |socket| tokio::net::TcpStream::from_std(socket.into()))?;
                    let socket = socket.try_clone()?;
                    socket.set_nonblocking(true)?;
                    let socket = tokio::net::TcpListener::from_std(socket)?;
                    let ends = Ends::<tokio::net::TcpStream> {
                        caller: |_| None,
                        address: |stream| Some(stream.peer_addr().ok()?.ip()),
                        into_socket: |stream| Ok(stream.into_std()?.into()),
                    };
                    serving.spawn(self.accepting(name, socket, router.clone(), waiting, ends));
                }
            }
        }
        Ok(())
    }

    /// Accepts from `listener` until the server stops, and serves what it accepts and what is `waiting`; ends when every
    /// connection has ended or is parked.
    fn accepting<L: Listener>(
        &self,
        name: &'static str,
        mut listener: L,
        router: Router,
        waiting: Vec<(L::Io, Bytes)>,
        ends: Ends<L::Io>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let stopping = self.stopping.clone();
        let (park, parked) = (Arc::clone(&self.park), Arc::clone(&self.parked));
        let (connections, promises) = (Connections::new(), Arc::clone(&self.promises));
        let serve = {
            let stopping = stopping.clone();
            move |socket, read| {
                let (address, traffic) = ((ends.address)(&socket), Arc::new(Traffic::default()));
                // Without a place it is closed: whoever comes later finds one, when others have been answered.
                let seat = connections.admit(address, &traffic)?;
                let promise = Promise::new(&promises);
                let (caller, address) = ((ends.caller)(&socket), address.map(RemoteAddress));
                let origin = Origin { caller, address, traffic, seat, promise };
                Some(connection::serve(socket, origin, read, router.clone(), stopping.clone(), Arc::clone(&park)))
            }
        };
        async move {
            let ended = |end: Result<End<L::Io>, tokio::task::JoinError>| {
                let Ok(End::Parked { socket, read, is_surplus }) = end else { return };
                match (ends.into_socket)(socket) {
                    Ok(socket) => lock(&parked).push(Parked { listener: name.to_owned(), socket, read, is_surplus }),
                    Err(error) => tracing::warn!(listener.name = name, %error, "cannot park a connection"),
                }
            };
            let mut connections = JoinSet::new();
            for serving in waiting.into_iter().filter_map(|(socket, read)| serve(socket, read)) {
                connections.spawn(serving);
            }
            loop {
                // Cancel-safe: accepting and joining take from queues.
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => break,
                    Some(end) = connections.join_next() => ended(end),
                    (socket, _) = listener.accept() => if let Some(serving) = serve(socket, Bytes::new()) {
                        connections.spawn(serving);
                    },
                }
            }
            drop(listener); // the appliance's own duplicate stays open
            while let Some(end) = connections.join_next().await {
                ended(end);
            }
        }
    }

    /// Ends accepting, drains for a while, and parks what is idle if this process image is `replaced`. A `hurry`
    /// ends the draining.
    pub async fn drain(&self, replaced: bool, hurry: &CancellationToken) {
        self.park.store(replaced, Ordering::Release);
        *lock(&self.stopped_accepting_ns) = Some(monotonic_ns());
        self.stopping.cancel();
        let mut serving = std::mem::take(&mut *lock(&self.serving));
        // Cancel-safe: dropping the set ends the connections that are left.
        tokio::select! {
            () = async { while serving.join_next().await.is_some() {} } => {}
            () = tokio::time::sleep(self.drain_grace) => {}
            () = hurry.cancelled() => {}
        }
        serving.shutdown().await;
    }
}

/// Returns the sockets of parked connections, each with what was read of the next request.
fn adopt<S>(
    parked: impl Iterator<Item = Parked>,
    socket: impl Fn(OwnedFd) -> io::Result<S>,
) -> io::Result<Vec<(S, Bytes)>> {
    parked.map(|parked| Ok((socket(parked.socket)?, parked.read))).collect()
}
