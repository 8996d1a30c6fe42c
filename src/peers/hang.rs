//! Processes that do not even read what they are asked.
//!
//! Who listens where the whole site goes somewhere and does not answer in time has failed there, and that is all, as long as something of
//! it still reads: it may be slow. A process of which nothing reads hangs, as one that is stopped does, and would be waited for again
//! and again. It is ended like one that falls silent, whether or not it has a watchdog, and its restart policy says what follows.

use std::sync::Arc;
use std::time::Duration;

use refit_bus::Level;
use tokio_util::sync::CancellationToken;

use super::peer::Peer;
use super::roster::Peers;
use crate::awake;

/// How long after its time it is looked at again: after a pause of the machine it needs a processor first.
const SECOND_LOOK: Duration = Duration::from_millis(500);
/// A process has at least so long to read what it is asked: a busy machine may not let it.
const PATIENCE_MIN: Duration = Duration::from_secs(1);

impl Peers {
    /// Has a peer of a component, which was just sent a call, be watched until the call is `answered`. It may take as long as its
    /// component may take to end.
    pub(super) fn watch_for_hang(self: &Arc<Self>, peer: &Arc<Peer>, answered: CancellationToken) {
        let Some(name) = peer.principal.component_name() else { return };
        let Some(patience) = self.parts.config.component(name).map(|component| component.stop_timeout) else { return };
        let (own, peer) = (Arc::clone(self), Arc::clone(peer));
        self.spawn(async move {
            let (heard, (stopping, _)) = (peer.heard(), own.ending());
            let over = async {
                tokio::select! {
                    () = answered.cancelled() => {}
                    () = stopping.cancelled() => {}
                }
            };
            tokio::pin!(over);
            for wait in [patience.max(PATIENCE_MIN), SECOND_LOOK] {
                if awake::timeout(wait, &mut over).await.is_some() || peer.heard() != heard || !peer.has_unread() {
                    return;
                }
            }
            if let Some(name) = peer.principal.component_name() {
                let text = format!("{} does not read what it is asked: the component {name} hangs", peer.name);
                own.parts.bus.log(Level::Warning, text);
                own.parts.registry.note_hung(name, peer.principal.generation());
            }
        });
    }
}
