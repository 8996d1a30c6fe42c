//! The socket that peers come from, on the bus: accepting begins when the process enters and ends when it exits.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use refit_bus::{self as bus, Call, Failure, StopReason, Subscription, Work};
use serde_json::Value;
use tokio::task::JoinSet;

use super::connection;
use super::limits::FLUSH_MAX;
use super::roster::Peers;

/// Binding is done before: a start only begins to accept.
const BEGIN_MAX: Duration = Duration::from_secs(5);
/// The pause after an accept that failed: no descriptor is left, and the next try would fail, too.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Puts the peers, who come from `socket`, on the bus: they may come when the process enters, and are the last to go, together
/// with the API.
pub fn attach(peers: &Arc<Peers>, socket: UnixListener) {
    let name = "refit.peers";
    let bus = &peers.parts.bus;
    let told = Arc::downgrade(peers);
    peers.parts.registry.watch(move |component| {
        if let Some(peers) = told.upgrade() {
            peers.decide(component);
        }
    });
    let acceptor = Arc::new(Acceptor { peers: Arc::clone(peers), socket });
    bus.subscribe(Subscription::new(bus::ENTER, name, Arc::clone(&acceptor) as _).priority(i32::MIN).limit(BEGIN_MAX));
    bus.subscribe(Subscription::new(bus::EXIT, name, acceptor).priority(i32::MAX).limit(BEGIN_MAX));
}

/// Accepts connections, and serves each in a task of its own.
struct Acceptor {
    peers: Arc<Peers>,
    socket: UnixListener,
}

impl Acceptor {
    fn begin(&self) -> io::Result<()> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixListener::from_std(socket)?;
        let peers = Arc::clone(&self.peers);
        self.peers.spawn(async move {
            let (stopping, _) = peers.ending();
            let mut connections = JoinSet::new();
            loop {
                // Cancel-safe: accepting and joining take from queues.
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => break,
                    Some(_) = connections.join_next() => {}
                    accepted = socket.accept() => match accepted {
                        Ok((stream, _)) => drop(connections.spawn(connection::serve(Arc::clone(&peers), stream))),
                        Err(error) => {
                            peers.parts.bus.log_error("cannot accept a connection to the bus", &error);
                            tokio::time::sleep(ACCEPT_AGAIN).await;
                        }
                    },
                }
            }
            drop(socket); // the appliance's own duplicate stays open
            let ended = async { while connections.join_next().await.is_some() {} };
            drop(tokio::time::timeout(FLUSH_MAX * 2, ended).await);
            connections.shutdown().await;
        });
        Ok(())
    }
}

impl bus::Listener for Acceptor {
    fn call(self: Arc<Self>, call: Call) -> Work {
        Box::pin(async move {
            match call.reason {
                None => self.begin().map_err(|error| Failure::new(format!("cannot accept peers: {error}")))?,
                Some(StopReason::Replace(_)) => self.peers.end("replace").await,
                Some(StopReason::Stop | StopReason::Exit | StopReason::Undo) => self.peers.end("exit").await,
            }
            Ok(Value::Null)
        })
    }
}
