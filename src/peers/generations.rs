//! Who is called: of several generations of a component's processes, one.
//!
//! While an update overlaps, the old process and the new one are both on the bus, under the same names. The old one is called until
//! the new one serves; then the new one is, and the old one hears nothing more on its channels until it ends. It may still ask,
//! publish and log. If the new one ends before it serves, nothing has changed for the old one. A rollback is the same with the
//! releases exchanged.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use refit_base::lock;
use refit_bus::{self as bus, Level, State, Subscription};

use super::external::External;
use super::limits::CALL_LIMIT_MAX;
use super::peer::Peer;
use super::roster::Peers;
use super::shares;
use super::verbs::Listening;
use crate::access::principal::Principal;
use crate::config::TRANSITIONS;
use crate::wire::Place;

impl Peers {
    /// Returns whether the process that `principal` is would be called now.
    pub(super) fn is_called(&self, principal: &Principal) -> bool {
        let asked = principal.component_name().and_then(|name| self.parts.registry.asked_generation(name));
        asked.is_none_or(|asked| asked == principal.generation())
    }

    /// Adds a place to those where a peer listens. It is called there as soon as its generation is.
    pub(super) fn listen(self: &Arc<Self>, peer: &Arc<Peer>, Listening { channel, place }: Listening) {
        let _deciding = lock(&self.deciding);
        lock(&peer.channels).insert(channel.clone(), place);
        if !peer.is_called() {
            return;
        }
        if shares_place(peer, &channel) {
            lock(&peer.placed).remove(&channel); // it may have another place, or limit, than before
            self.arrange(peer, &channel);
        } else {
            self.subscribe(peer, &channel, place);
        }
    }

    /// Removes a place. Returns whether there was one.
    pub(super) fn unlisten(self: &Arc<Self>, peer: &Arc<Peer>, channel: &str) -> bool {
        let _deciding = lock(&self.deciding);
        let was_there = lock(&peer.channels).remove(channel).is_some();
        if peer.is_called() {
            self.unsubscribe(peer, channel);
            self.arrange(peer, channel);
        }
        was_there
    }

    /// Has nobody call a peer any more: its connection has ended.
    pub(super) fn silence(self: &Arc<Self>, peer: &Arc<Peer>) {
        let _deciding = lock(&self.deciding);
        peer.has_left.store(true, Ordering::Relaxed);
        if peer.called.swap(false, Ordering::Relaxed) {
            for channel in peer.view().channels.keys() {
                self.unsubscribe(peer, channel);
                self.arrange(peer, channel);
            }
        }
    }

    /// Has those called who are to be, after the processes of `component` have changed.
    pub(super) fn decide(self: &Arc<Self>, component: &str) {
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
                    self.unsubscribe(peer, channel);
                }
            }
            peer.called.store(false, Ordering::Relaxed);
            let generation = peer.principal.generation();
            let text = format!("{} of generation {generation} is not called any more: {asked} serves", peer.name);
            self.parts.bus.log(Level::Info, text);
        }
        for peer in &coming {
            for (channel, place) in peer.view().channels {
                if !shares_place(peer, &channel) {
                    self.subscribe(peer, &channel, place);
                }
            }
            peer.called.store(true, Ordering::Relaxed);
            self.parts.bus.log(Level::Info, format!("{} of generation {asked} is called from now on", peer.name));
        }
        if let Some(peer) = coming.first() {
            for channel in TRANSITIONS {
                self.arrange(peer, channel);
            }
        }
    }

    /// Returns how long all peers of the component that `peer` belongs to may take together on `channel`.
    pub(super) fn time_on(&self, peer: &Peer, channel: &str) -> Duration {
        let definition = peer.principal.component_name().and_then(|name| self.parts.config.component(name));
        definition.map_or(CALL_LIMIT_MAX, |component| component.time_on(channel))
    }

    /// Puts the peers of the component that `peer` belongs to into their order on `channel`. Where the whole site goes somewhere all of them
    /// stand where their component does, and their priorities say which of them comes first, also among those of components that stand
    /// beside it.
    fn arrange(self: &Arc<Self>, peer: &Peer, channel: &str) {
        let Some(component) = peer.principal.component_name().filter(|_| shares_place(peer, channel)) else { return };
        let listening: Vec<(Arc<Peer>, Place)> = self
            .connections_beside(component)
            .into_iter()
            .filter(|peer| peer.is_called())
            .filter_map(|peer| {
                let place = lock(&peer.channels).get(channel).copied()?;
                Some((peer, place))
            })
            .collect();
        let names: Vec<(String, i32)> =
            listening.iter().map(|(peer, place)| (peer.name.clone(), place.priority)).collect();
        for ((peer, place), after) in listening.iter().zip(shares::chain(&names)) {
            if lock(&peer.placed).get(channel) != Some(&after) {
                lock(&peer.placed).insert(channel.to_owned(), after);
                self.subscribe(peer, channel, *place);
            }
        }
    }

    fn unsubscribe(&self, peer: &Peer, channel: &str) {
        lock(&peer.placed).remove(channel);
        self.parts.bus.unsubscribe(channel, &peer.name);
    }

    /// Makes a peer a listener. It stands where its component stands, after the component itself.
    fn subscribe(self: &Arc<Self>, peer: &Arc<Peer>, channel: &str, place: Place) {
        let component = peer.principal.component_name();
        let definition = component.and_then(|name| self.parts.config.component(name));
        let mut order = definition.map(crate::component::order).unwrap_or_default();
        order.after.extend(component.map(str::to_owned));
        if shares_place(peer, channel) {
            order.after.extend(lock(&peer.placed).get(channel).into_iter().flatten().cloned());
        } else {
            order.priority = place.priority;
        }
        let is_up = matches!(self.parts.bus.state(), State::Starting | State::Running);
        let listener = Arc::new(External { peer: Arc::clone(peer), peers: Arc::clone(self) });
        let mut subscription = Subscription::new(channel, peer.name.as_str(), listener)
            .order(order)
            .shown_priority(place.priority)
            .joined(is_up)
            .reverts(place.reverts);
        if let Some(component) = component {
            subscription = subscription.group(component);
        }
        if let Some(limit) = place.limit() {
            subscription = subscription.limit(limit);
        }
        self.parts.bus.subscribe(subscription);
    }
}

/// Returns whether a peer shares its place on `channel` with the others of its component: where the whole site goes somewhere.
fn shares_place(peer: &Peer, channel: &str) -> bool {
    peer.principal.component_name().is_some() && TRANSITIONS.contains(&channel)
}
