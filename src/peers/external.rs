//! [`External`]: a peer as a listener of the bus.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use refit_bus::{self as bus, Call, Failure, Listener, LogEntry, Work};
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::peer::Peer;
use super::roster::Peers;
use crate::config::TRANSITIONS;

/// A peer on one channel.
pub(super) struct External {
    pub(super) peer: Arc<Peer>,
    pub(super) peers: Arc<Peers>,
}

impl External {
    /// Calls the peer where the whole site goes somewhere: in the time that it shares with the others of its component.
    async fn call_in_transition(&self, mut call: Call) -> Result<Value, Failure> {
        let Self { peer, peers } = self;
        let (owner, all) = (peer.principal.component_name(), peers.time_on(peer, &call.channel));
        let (left, _share) = peers.shares.begin(owner, &call, all);
        let of_whom = owner.map_or_else(|| "the operator".to_owned(), |name| format!("the component {name}"));
        let shared = format!("all that listens of {of_whom} shares {} s", all.as_secs_f32());
        let own = call.limit;
        call.limit = own.min(left);
        let cancelled = call.cancelled();
        let waiting = peer.begin(&call)?;
        let answered = CancellationToken::new();
        peers.watch_for_hang(peer, answered.clone());
        if left.is_zero() {
            return Err(Failure::late(format!("not waited for: {shared}, which are over"))); // it is told so, too
        }
        // The bus keeps the limit of this one call, and gives it the grace; only the rest of a shared time is kept here.
        let over = async { if left < own { tokio::time::sleep(left).await } else { std::future::pending().await } };
        // Cancel-safe: who is not waited for any more is told when the wait is dropped.
        tokio::select! {
            answer = waiting.answer(cancelled) => {
                answered.cancel();
                answer
            }
            () = over => Err(Failure::late(format!("not done within {} s: {shared}", left.as_secs_f32()))),
        }
    }
}

impl Listener for External {
    fn call(self: Arc<Self>, call: Call) -> Work {
        let peer = Arc::clone(&self.peer);
        Box::pin(async move {
            if *call.channel == *bus::LOG {
                if let Ok(entry) = LogEntry::deserialize(&call.argument) {
                    peer.send_log(entry);
                }
                return Ok(Value::Null);
            }
            if *call.channel == *bus::START && peer.resumes.swap(false, Ordering::Relaxed) {
                return Ok(Value::Null); // it serves already, since before this image
            }
            if TRANSITIONS.contains(&&*call.channel) {
                return self.call_in_transition(call).await;
            }
            let cancelled = call.cancelled();
            peer.begin(&call)?.answer(cancelled).await
        })
    }
}
