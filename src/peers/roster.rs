//! [`Peers`]: all who are on the bus, by name, and what they may take up together.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::{Bucket, lock};
use refit_bus::{Bus, Level, State};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::limits::{
    FLUSH_MAX, HELLOS, NAME_BYTES_MAX, NAMELESS_MAX, PEERS_MAX, PEERS_PER_COMPONENT_MAX, PUBLICATIONS_MAX, REQUESTS,
    WARNINGS,
};
use super::messages::{Notice, notification};
use super::peer::{Key, Peer};
use super::protocol::{PeerError, shortened};
use super::shares::Shares;
use super::{DOWN, UP};
use crate::access::operators::Operators;
use crate::access::principal::Principal;
use crate::carry::Registry;
use crate::config::Config;
use crate::requests::Requests;
use crate::wire::event::PeerChanged;
use crate::wire::{self, Event};

/// What the peers need.
pub struct Parts {
    /// The bus.
    pub bus: Bus,
    /// Who knows the launch tokens, keeps tickets and events.
    pub registry: Arc<Registry>,
    /// What the components may do.
    pub config: Arc<Config>,
    /// Who takes requests.
    pub requests: Arc<dyn Requests>,
}

#[derive(Default)]
struct Known {
    named: BTreeMap<Key, Arc<Peer>>,
    /// Connections without a hello, oldest first, each with what ends it.
    nameless: Vec<(u64, CancellationToken)>,
    newest: u64,
    /// By component; the operator has no name.
    hellos: BTreeMap<Option<String>, Bucket>,
    /// By component: what it asks over HTTP.
    asks: BTreeMap<String, Bucket>,
}

/// All peers.
pub struct Peers {
    pub(super) parts: Parts,
    /// Which accounts of the machine run the appliance.
    pub(super) operators: Arc<Operators>,
    known: Mutex<Known>,
    /// Held while it is decided who is called, and the bus is told.
    pub(super) deciding: Mutex<()>,
    /// Counts the peers that came and went.
    changes: watch::Sender<u64>,
    /// The accepting, the connections, and what they began that must be finished without them.
    tasks: Mutex<JoinSet<()>>,
    /// Which place each component has in the order: those of one place depend on nothing of each other.
    places: BTreeMap<String, usize>,
    /// What is used of each component's time in a transition.
    pub(super) shares: Shares,
    publications: Arc<Semaphore>,
    stopping: CancellationToken,
    why: Mutex<&'static str>,
    /// What may still be said about refused connections, and how many nobody was told of.
    warnings: Mutex<(Bucket, u64)>,
}

impl Peers {
    /// Returns the peers, none yet; the channels of the appliance are declared. Root and this process's account are the operators.
    pub fn new(parts: Parts) -> Self {
        Self::with_operators(parts, Arc::default())
    }

    /// Returns the peers of an appliance that has these `operators`.
    pub(crate) fn with_operators(parts: Parts, operators: Arc<Operators>) -> Self {
        for channel in parts.config.channels.iter().map(String::as_str).chain([UP, DOWN]) {
            parts.bus.declare(channel);
        }
        let waves = crate::component::waves(&parts.config);
        let of_wave = |(place, wave): (usize, Vec<String>)| wave.into_iter().map(move |name| (name, place));
        Self {
            places: waves.into_iter().enumerate().flat_map(of_wave).collect(),
            parts,
            operators,
            known: Mutex::default(),
            deciding: Mutex::default(),
            changes: watch::channel(0).0,
            tasks: Mutex::default(),
            shares: Shares::default(),
            publications: Arc::new(Semaphore::new(PUBLICATIONS_MAX)),
            stopping: CancellationToken::new(),
            why: Mutex::new("exit"),
            warnings: Mutex::new((Bucket::new(WARNINGS), 0)),
        }
    }

    /// Returns all peers.
    pub fn all(&self) -> Vec<wire::Peer> {
        lock(&self.known).named.values().map(|peer| peer.view()).collect()
    }

    /// Returns the peers of a component.
    pub fn of(&self, component: &str) -> Vec<wire::Peer> {
        self.all().into_iter().filter(|peer| peer.component.as_deref() == Some(component)).collect()
    }

    /// Tells every peer a state of the site.
    pub fn send_state(&self, state: State) {
        let message = notification(Notice::State { state: state.into() });
        for peer in lock(&self.known).named.values() {
            drop(peer.send(&message)); // one that does not read is cut off
        }
    }

    /// Takes the right to have a publication under way.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn permit(&self) -> Result<OwnedSemaphorePermit, PeerError> {
        Arc::clone(&self.publications)
            .try_acquire_owned()
            .map_err(|_| PeerError::TooMany { what: "publications under way", max: PUBLICATIONS_MAX })
    }

    /// Has `work` be finished, whoever began it and is gone since.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Says on the log that a connection was refused, unless too many were.
    pub(super) fn warn(&self, text: &str) {
        let mut warnings = lock(&self.warnings);
        if warnings.0.take().is_err() {
            warnings.1 += 1;
            return;
        }
        let more = std::mem::take(&mut warnings.1);
        drop(warnings);
        let more = if more > 0 { format!("; {more} more since the last one") } else { String::new() };
        self.parts.bus.log(Level::Warning, format!("{text}{more}"));
    }

    /// Counts a hello.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn may_come(&self, principal: &Principal) -> Result<(), PeerError> {
        let component = principal.component_name().map(str::to_owned);
        let mut known = lock(&self.known);
        let bucket = known.hellos.entry(component).or_insert_with(|| Bucket::new(HELLOS));
        bucket.take().map_err(|_| PeerError::TooFast { what: "connections", per_second: HELLOS.per_second })
    }

    /// Counts what a component wants changed over HTTP: on the bus each connection counts for itself.
    ///
    /// # Errors
    /// There is too much.
    pub(crate) fn may_ask(&self, component: &str) -> Result<(), PeerError> {
        let mut known = lock(&self.known);
        let bucket = known.asks.entry(component.to_owned()).or_insert_with(|| Bucket::new(REQUESTS));
        bucket.take().map_err(|_| PeerError::TooFast { what: "requests", per_second: REQUESTS.per_second })
    }

    /// Adds a connection without a hello. Returns its number; the oldest of too many ends.
    pub(super) fn admit(&self, ending: &CancellationToken) -> u64 {
        let mut known = lock(&self.known);
        if known.nameless.len() >= NAMELESS_MAX {
            known.nameless.remove(0).1.cancel();
        }
        known.newest += 1;
        let number = known.newest;
        known.nameless.push((number, ending.clone()));
        number
    }

    /// Removes a connection that did not say hello, or has.
    pub(super) fn unadmit(&self, number: u64) {
        lock(&self.known).nameless.retain(|(other, _)| *other != number);
    }

    /// Returns the whole name that `wanted` means for `principal`, if it may have it and nobody has.
    fn name(known: &Known, wanted: Option<&str>, principal: &Principal, pid: Option<i32>) -> Result<String, PeerError> {
        let begin = principal.component_name().map_or_else(|| "@".to_owned(), |component| format!("{component}/"));
        let Some(wanted) = wanted else {
            let pid = pid.unwrap_or(0);
            let names = std::iter::once(format!("{begin}{pid}"));
            let mut names = names.chain((2..).map(|number: u32| format!("{begin}{pid}.{number}")));
            let free = names.find(|name| !known.named.keys().any(|(other, _)| other == name));
            return free.ok_or(PeerError::TooMany { what: "connections", max: PEERS_MAX });
        };
        // The whole name may be said, too: whoever says another's wants to be somebody else.
        let name = match (wanted.strip_prefix(&begin), wanted.contains(['/', '@'])) {
            (Some(name), _) => name,
            (None, false) => wanted,
            (None, true) => return Err(PeerError::NotYours { name: shortened(wanted) }),
        };
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(good) {
            return Err(PeerError::Name { name: shortened(name) });
        }
        Ok(format!("{begin}{name}"))
    }

    /// Returns the connections of a component's processes.
    pub(super) fn connections_of(&self, component: &str) -> Vec<Arc<Peer>> {
        let known = lock(&self.known);
        let own = |peer: &&Arc<Peer>| peer.principal.component_name() == Some(component);
        known.named.values().filter(own).map(Arc::clone).collect()
    }

    /// Returns the connections of the processes of all components that have the place of `component` in the order.
    pub(super) fn connections_beside(&self, component: &str) -> Vec<Arc<Peer>> {
        let place = self.places.get(component);
        let is_beside = |peer: &&Arc<Peer>| {
            peer.principal.component_name().is_some_and(|name| name == component || self.places.get(name) == place)
        };
        lock(&self.known).named.values().filter(is_beside).map(Arc::clone).collect()
    }

    /// Gives a connection its name; `welcome` is what it is told first. While an update overlaps, two generations of a component's
    /// processes may have one name; within a generation it is unique.
    pub(super) fn enlist(
        &self,
        wanted: Option<&str>,
        principal: &Principal,
        who: (Option<i32>, u32),
        socket: Option<OwnedFd>,
        welcome: impl FnOnce(&Peer),
    ) -> Result<Arc<Peer>, PeerError> {
        let _deciding = lock(&self.deciding);
        let mut known = lock(&self.known);
        if known.named.len() >= PEERS_MAX {
            return Err(PeerError::TooMany { what: "connections", max: PEERS_MAX });
        }
        let is_own = |peer: &&Arc<Peer>| {
            let other = &peer.principal;
            (other.component_name(), other.generation()) == (principal.component_name(), principal.generation())
        };
        let own = known.named.values().filter(is_own).count();
        if principal.component_name().is_some() && own >= PEERS_PER_COMPONENT_MAX {
            return Err(PeerError::TooMany { what: "connections of one component", max: PEERS_PER_COMPONENT_MAX });
        }
        let name = Self::name(&known, wanted, principal, who.0)?;
        let key = (name.clone(), principal.generation());
        if known.named.contains_key(&key) {
            return Err(PeerError::NameTaken { name });
        }
        let peer = Arc::new(Peer::new(name, principal.clone(), who, socket, self.is_called(principal)));
        let resumes = principal.serves() && self.parts.registry.generation() > 1 && !self.parts.bus.ran();
        peer.resumes.store(resumes, Ordering::Relaxed);
        // Before anybody else can tell it anything: states that change from here on come after it.
        welcome(&peer);
        known.named.insert(key, Arc::clone(&peer));
        drop(known);
        self.changes.send_modify(|count| *count += 1);
        Ok(peer)
    }

    /// Waits until the name of a connection of the process `pid` is free, if the same process has it: that connection broke, and
    /// nobody has noticed yet.
    pub(super) async fn name_free(&self, key: &Key, pid: Option<i32>, limit: Duration) {
        let mut changes = self.changes.subscribe();
        let wait = async {
            while lock(&self.known).named.get(key).is_some_and(|other| other.pid == pid) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        drop(tokio::time::timeout(limit, wait).await);
    }

    /// Publishes that a peer has come.
    pub(super) fn publish_up(self: &Arc<Self>, peer: &Peer) {
        let event = Event::PeerUp(about(peer, None));
        self.publish(UP, event, Level::Debug, format!("{} is on the bus", peer.name));
    }

    /// Removes a peer and publishes why it is gone.
    pub(super) fn remove(self: &Arc<Self>, peer: &Peer, reason: &str, level: Level) {
        lock(&self.known).named.remove(&peer.key());
        self.changes.send_modify(|count| *count += 1);
        let event = Event::PeerDown(about(peer, Some(reason)));
        self.publish(DOWN, event, level, format!("{} is off the bus: {reason}", peer.name));
    }

    fn publish(self: &Arc<Self>, channel: &'static str, event: Event, level: Level, text: String) {
        self.parts.bus.log(level, text);
        let about = event.data().unwrap_or_default(); // there is nothing in it that JSON cannot say
        self.parts.registry.events.publish(event);
        if self.stopping.is_cancelled() {
            return; // nobody is left to be told
        }
        let bus = self.parts.bus.clone();
        self.spawn(async move { drop(bus.publish(channel, about).await) });
    }

    /// Ends every connection, saying why.
    pub(super) async fn end(&self, why: &'static str) {
        *lock(&self.why) = why;
        self.stopping.cancel();
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        let ended = async { while tasks.join_next().await.is_some() {} };
        drop(tokio::time::timeout(FLUSH_MAX * 4, ended).await);
        tasks.shutdown().await;
    }

    /// Returns what is cancelled when all connections end, and why they do.
    pub(super) fn ending(&self) -> (CancellationToken, &'static str) {
        (self.stopping.clone(), *lock(&self.why))
    }
}

/// Returns what is told of a peer that has come, or is gone for this reason.
fn about(peer: &Peer, reason: Option<&str>) -> PeerChanged {
    let component = peer.principal.component_name();
    PeerChanged {
        component: component.map(str::to_owned),
        generation: component.map(|_| peer.principal.generation()),
        peer: peer.name.clone(),
        reason: reason.map(str::to_owned),
    }
}
