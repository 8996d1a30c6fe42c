//! [`Server`]: the API on the bus. It starts first and stops last, so that everything between can be watched.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::serve::Listener;
use bytes::Bytes;
use refit_base::clock::monotonic_ns;
use refit_bus::{self as bus, Bus, Call, Failure, StopReason, Subscription, Work};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{self, End, Peer};
use super::{App, access, routes};
use crate::carry::Carry;
use crate::process::caller::Caller;

/// Binding is done before: a start only begins to accept.
const START_MAX: Duration = Duration::from_secs(5);
/// Who may use the API's Unix socket: the runtime's account and its group.
pub const SOCKET_MODE: u32 = 0o660;

/// A connection that waits between two requests, for the next process image.
#[derive(Debug)]
pub struct Parked {
    /// The listener that it was accepted from: `api` or `admin`.
    pub listener: String,
    /// The connection.
    pub socket: OwnedFd,
    /// What was read and belongs to no request yet.
    pub read: Bytes,
}

/// The name of the API's Unix socket among the listeners of parked connections.
const LOCAL: &str = "api";
/// How many connections are parked: each is a descriptor of the handover. The others end as if they had been idle too long.
const PARKED_MAX: usize = 256;

/// The API on the bus.
pub struct Server {
    app: Arc<App>,
    socket: UnixListener,
    admin: Option<TcpListener>,
    drain_grace: Duration,
    /// What the image before left: when it stopped accepting.
    before: Carry,
    serving: Mutex<JoinSet<()>>,
    stopped_accepting_ns: Mutex<Option<u64>>,
    /// Whether connections are parked when the server stops: only if another image follows.
    park: Arc<AtomicBool>,
    /// Connections of the image before until the start, and those for the next image after the stop.
    parked: Arc<Mutex<Vec<Parked>>>,
}

/// What is done with the two ends of a connection, by kind of socket.
struct Ends<S> {
    /// Returns who is at the other end.
    peer: fn(&S) -> Option<Peer>,
    /// Returns the socket for the next image.
    into_socket: fn(S) -> io::Result<OwnedFd>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Returns a server of `app` on the Unix socket and, if there is one, the admin listener. `parked` are the connections of
    /// the image before.
    pub fn new(
        app: Arc<App>,
        socket: UnixListener,
        admin: Option<TcpListener>,
        before: Carry,
        parked: Vec<Parked>,
    ) -> Self {
        let drain_grace = app.config.update.drain_grace;
        Self {
            app,
            socket,
            admin,
            drain_grace,
            before,
            serving: Mutex::new(JoinSet::new()),
            stopped_accepting_ns: Mutex::new(None),
            park: Arc::new(AtomicBool::new(false)),
            parked: Arc::new(Mutex::new(parked)),
        }
    }

    /// Returns when it stopped accepting, on the monotonic clock.
    pub fn stopped_accepting_ns(&self) -> Option<u64> {
        *lock(&self.stopped_accepting_ns)
    }

    /// Returns the connections that wait for the next image.
    pub fn take_parked(&self) -> Vec<Parked> {
        std::mem::take(&mut *lock(&self.parked))
    }

    fn begin(&self) -> io::Result<()> {
        let app = routes(Arc::clone(&self.app));
        let (mut local_waiting, mut admin_waiting) = (Vec::new(), Vec::new());
        for Parked { listener, socket, read } in self.take_parked() {
            if listener == LOCAL {
                let stream = std::os::unix::net::UnixStream::from(socket);
                local_waiting.push((tokio::net::UnixStream::from_std(stream)?, read));
            } else {
                let stream = std::net::TcpStream::from(socket);
                admin_waiting.push((tokio::net::TcpStream::from_std(stream)?, read));
            }
        }
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixListener::from_std(socket)?;
        let local: Router = app.clone().layer(from_fn_with_state(Arc::clone(&self.app), access::trust_socket));
        let mut serving = lock(&self.serving);
        let ends = Ends::<tokio::net::UnixStream> {
            peer: |stream| {
                let peer = stream.peer_cred().ok()?;
                Some(Peer(Arc::new(Caller::new(peer.uid(), peer.pid()))))
            },
            into_socket: |stream| Ok(stream.into_std()?.into()),
        };
        serving.spawn(self.accepting(LOCAL, socket, local, local_waiting, ends));
        if let Some(admin) = &self.admin {
            let admin = admin.try_clone()?;
            admin.set_nonblocking(true)?;
            let admin = tokio::net::TcpListener::from_std(admin)?;
            let behind: Router = app.layer(from_fn_with_state(Arc::clone(&self.app), access::require_account));
            let name = crate::config::ADMIN;
            let ends =
                Ends::<tokio::net::TcpStream> { peer: |_| None, into_socket: |stream| Ok(stream.into_std()?.into()) };
            serving.spawn(self.accepting(name, admin, behind, admin_waiting, ends));
        }
        drop(serving);
        self.tell_handover();
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
        let stopping = self.app.stopping.clone();
        let (park, parked) = (Arc::clone(&self.park), Arc::clone(&self.parked));
        let serve = {
            let stopping = stopping.clone();
            move |socket, read| {
                let peer = (ends.peer)(&socket);
                connection::serve(socket, peer, read, router.clone(), stopping.clone(), Arc::clone(&park))
            }
        };
        async move {
            let ended = |end: Result<End<L::Io>, tokio::task::JoinError>| {
                let Ok(End::Parked(socket, read)) = end else { return };
                let mut parked = lock(&parked);
                if parked.len() >= PARKED_MAX {
                    return;
                }
                match (ends.into_socket)(socket) {
                    Ok(socket) => parked.push(Parked { listener: name.to_owned(), socket, read }),
                    Err(error) => tracing::warn!(listener.name = name, %error, "cannot park a connection"),
                }
            };
            let mut connections = JoinSet::new();
            for (socket, read) in waiting {
                connections.spawn(serve(socket, read));
            }
            loop {
                // Cancel-safe: accepting and joining take from queues.
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => break,
                    Some(end) = connections.join_next() => ended(end),
                    (socket, _) = listener.accept() => drop(connections.spawn(serve(socket, Bytes::new()))),
                }
            }
            drop(listener); // the appliance's own duplicate stays open
            while let Some(end) = connections.join_next().await {
                ended(end);
            }
        }
    }

    /// Publishes how long nobody accepted, if there was an image before this one.
    fn tell_handover(&self) {
        let Some(stopped) = self.before.stopped_accepting_ns else { return };
        let now = monotonic_ns();
        let since = |then: Option<u64>| then.map(|then| now.saturating_sub(then) / 1_000);
        let data = json!({
            "listener": crate::config::ADMIN,
            "gap_us": since(Some(stopped)),
            "exec_to_accept_us": since(self.before.exec_ns),
        });
        self.app.context.registry.events.publish("handover", data);
    }
}

impl Server {
    /// Puts the server on the bus: the first to enter, the last to leave, so that everything between can be watched.
    pub fn attach(self: &Arc<Self>, bus: &Bus) {
        let name = "refit.api";
        bus.subscribe(Subscription::new(bus::ENTER, name, Arc::clone(self) as _).priority(i32::MIN).limit(START_MAX));
        let limit = self.drain_grace + START_MAX;
        bus.subscribe(Subscription::new(bus::EXIT, name, Arc::clone(self) as _).priority(i32::MAX).limit(limit));
    }

    /// Ends accepting, drains for a while, and parks what is idle if this process image is `replaced`.
    async fn drain(&self, replaced: bool, hurry: &CancellationToken) {
        self.park.store(replaced, Ordering::Release);
        *lock(&self.stopped_accepting_ns) = Some(monotonic_ns());
        self.app.stopping.cancel();
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

impl bus::Listener for Server {
    fn call(self: Arc<Self>, call: Call) -> Work {
        Box::pin(async move {
            match call.reason {
                None => self.begin().map_err(|error| Failure::new(format!("cannot serve the API: {error}")))?,
                Some(StopReason::Replace(_)) => self.drain(true, &call.cancelled).await,
                Some(StopReason::Stop | StopReason::Exit | StopReason::Undo) => {
                    self.drain(false, &call.cancelled).await;
                }
            }
            Ok(Value::Null)
        })
    }
}
