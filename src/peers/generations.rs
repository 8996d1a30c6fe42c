//! Who is called: of several generations of a component's processes, one.
//!
//! While an update overlaps, the old process and the new one are both on the bus, under the same names. The old one is called until
//! the new one serves; then the new one is, and the old one hears nothing more on its channels until it ends. It may still ask,
//! publish and log. If the new one ends before it serves, nothing has changed for the old one. A rollback is the same with the
//! releases exchanged.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use refit_base::lock;
use refit_bus::{self as bus, Level, Order, State, Subscription};

use super::peer::{External, Peer};
use super::roster::Peers;
use super::verbs::Listening;
use crate::access::principal::Principal;

impl Peers {
    /// Returns whether the process that `principal` is would be called now.
    pub(super) fn is_called(&self, principal: &Principal) -> bool {
        let asked = principal.component_name().and_then(|name| self.parts.registry.asked_generation(name));
        asked.is_none_or(|asked| asked == principal.generation())
    }

    /// Adds a place to those where a peer listens. It is called there as soon as its generation is.
    pub(super) fn listen(&self, peer: &Arc<Peer>, listening: Listening) {
        let _deciding = lock(&self.deciding);
        if peer.is_called() {
            self.subscribe(peer, &listening);
        }
        lock(&peer.channels).insert(listening.channel, listening.place);
    }

    /// Removes a place. Returns whether there was one.
    pub(super) fn unlisten(&self, peer: &Peer, channel: &str) -> bool {
        let _deciding = lock(&self.deciding);
        if peer.is_called() {
            self.parts.bus.unsubscribe(channel, &peer.name);
        }
        lock(&peer.channels).remove(channel).is_some()
    }

    /// Has nobody call a peer any more: its connection has ended.
    pub(super) fn silence(&self, peer: &Peer) {
        let _deciding = lock(&self.deciding);
        peer.has_left.store(true, Ordering::Relaxed);
        if peer.called.swap(false, Ordering::Relaxed) {
            for channel in peer.view().channels.keys() {
                self.parts.bus.unsubscribe(channel, &peer.name);
            }
        }
    }

    /// Has those called who are to be, after the processes of `component` have changed.
    pub(super) fn decide(&self, component: &str) {
        let _deciding = lock(&self.deciding);
        let Some(asked) = self.parts.registry.asked_generation(component) else { return };
        let peers: Vec<Arc<Peer>> =
            self.connections_of(component).into_iter().filter(|peer| !peer.has_left.load(Ordering::Relaxed)).collect();
        let is_asked = |peer: &&Arc<Peer>| peer.principal.generation() == asked;
        let coming: Vec<&Arc<Peer>> = peers.iter().filter(is_asked).filter(|peer| !peer.is_called()).collect();
        for peer in peers.iter().filter(|peer| !is_asked(peer) && peer.is_called()) {
            for channel in peer.view().channels.keys() {
                // Taken over in one step, so that no publication finds nobody; but a transition goes on with whom it began:
                // who has not prepared a reload is not told to commit it.
                let successor = coming.iter().find(|other| other.name == peer.name);
                let taken_over = successor.is_some_and(|other| lock(&other.channels).contains_key(channel));
                if !taken_over || bus::BUILT_IN.contains(&channel.as_str()) {
                    self.parts.bus.unsubscribe(channel, &peer.name);
                }
            }
            peer.called.store(false, Ordering::Relaxed);
            let generation = peer.principal.generation();
            let text = format!("{} of generation {generation} is not called any more: {asked} serves", peer.name);
            self.parts.bus.log(Level::Info, text);
        }
        for peer in coming {
            for (channel, place) in peer.view().channels {
                self.subscribe(peer, &Listening { channel, place });
            }
            peer.called.store(true, Ordering::Relaxed);
            self.parts.bus.log(Level::Info, format!("{} of generation {asked} is called from now on", peer.name));
        }
    }

    /// Makes a peer a listener. It stands where its component stands, after the component itself.
    fn subscribe(&self, peer: &Arc<Peer>, Listening { channel, place }: &Listening) {
        let component = peer.principal.component_name();
        let definition = component.and_then(|name| self.parts.config.component(name));
        let mut order = definition.map(crate::component::order).unwrap_or_default();
        order = Order { priority: place.priority, ..order };
        order.after.extend(component.map(str::to_owned));
        let is_up = matches!(self.parts.bus.state(), State::Starting | State::Running);
        let listener = Arc::new(External(Arc::clone(peer)));
        let mut subscription = Subscription::new(channel, &peer.name, listener).order(order).joined(is_up);
        if let Some(component) = component {
            subscription = subscription.group(component);
        }
        if let Some(limit) = place.limit() {
            subscription = subscription.limit(limit);
        }
        self.parts.bus.subscribe(subscription);
    }
}
