//! Who listens where: the channels that are declared, and the listeners of each.
//!
//! A publication calls those who listen when it begins. Whoever is removed meanwhile is not called: once `remove` returns, no
//! call of that listener begins any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::lock;

use crate::call::Listener;
use crate::gate::{Closed, Gate};
use crate::hold::Hold;
use crate::order::{Cycle, Order, Row, waves, waves_of_any};

/// The channels of the site's own life, in the order of a life, and the one of what happens.
pub const BUILT_IN: [&str; 6] = [ENTER, START, STOP, EXIT, RELOAD, LOG];
/// Once per process image, before anything else.
pub const ENTER: &str = "enter";
/// The components come up.
pub const START: &str = "start";
/// The components go down.
pub const STOP: &str = "stop";
/// The last clean-up.
pub const EXIT: &str = "exit";
/// New settings, in two phases.
pub const RELOAD: &str = "reload";
/// What happens, for people.
pub const LOG: &str = "log";

/// How many names of unknown channels are remembered, so that each is reported once: a loop of typos must not fill the memory.
const UNKNOWN_MAX: usize = 1000;
/// A listener on a channel.
#[derive(Clone)]
pub struct Subscription {
    pub(crate) channel: String,
    pub(crate) name: Arc<str>,
    pub(crate) group: Option<Arc<str>>,
    pub(crate) order: Order,
    pub(crate) limit: Option<Duration>,
    pub(crate) listener: Arc<dyn Listener>,
    shown_priority: Option<i32>,
    joined: bool,
    only_checks: bool,
    reverts: bool,
    component: Option<ComponentId>,
    hold: Arc<Hold>,
}

impl Subscription {
    /// Returns a subscription to `channel` under a `name` that is unique on it.
    pub fn new(channel: impl Into<String>, name: impl Into<Arc<str>>, listener: Arc<dyn Listener>) -> Self {
        Self {
            channel: channel.into(),
            name: name.into(),
            group: None,
            order: Order::default(),
            limit: None,
            listener,
            shown_priority: None,
            joined: false,
            only_checks: false,
            reverts: false,
            component: None,
            hold: Arc::default(),
        }
    }

    /// Sets the priority: lower is earlier.
    #[must_use]
    pub const fn priority(mut self, priority: i32) -> Self {
        self.order.priority = priority;
        self
    }

    /// Sets the priority that reports and faults show, where that is not the one that decides: a listener whose place another one gives
    /// it has a priority of its own among its like.
    #[must_use]
    pub const fn shown_priority(mut self, priority: i32) -> Self {
        self.shown_priority = Some(priority);
        self
    }

    /// Sets the whole place in the order.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Makes it one of the listeners of the component `group`: who depends on that component waits for them all.
    #[must_use]
    pub fn group(mut self, group: impl Into<Arc<str>>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Sets how long one call may take.
    #[must_use]
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Says that it came when the site was up, or coming up, and counts as started: it is called at the next stop, although no
    /// start ever called it.
    #[must_use]
    pub const fn joined(mut self, joined: bool) -> Self {
        self.joined = joined;
        self
    }

    /// Says that it may refuse a reload and has nothing to reload itself: a reload that finds only such listeners has asked nobody.
    #[must_use]
    pub const fn only_checks(mut self) -> Self {
        self.only_checks = true;
        self
    }

    /// Says whether it keeps the generation before until it prepares the next one, and puts it back into force in the phase `Revert`.
    /// One that does not refuses a reload that has to be confirmed.
    #[must_use]
    pub const fn reverts(mut self, reverts: bool) -> Self {
        self.reverts = reverts;
        self
    }
}

/// Why somebody cannot be attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The name is taken.
    #[error("there is a component {name} on the bus already")]
    Taken {
        /// The name.
        name: String,
    },
    /// Components would wait for each other.
    #[error(transparent)]
    Cycle(#[from] Cycle),
}

/// A component that is attached: whoever takes its name after it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ComponentId(u64);

/// A listener with its place.
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    pub(crate) group: Option<Arc<str>>,
    pub(crate) order: Order,
    pub(crate) limit: Option<Duration>,
    pub(crate) listener: Arc<dyn Listener>,
    /// Its priority, for people.
    pub(crate) priority: i32,
    /// Whether it counts as started without having been called: until the first start that calls it.
    joined: AtomicBool,
    /// Whether it may refuse a reload and has nothing to reload itself.
    pub(crate) only_checks: bool,
    /// Whether it can go back from a generation that it has committed.
    pub(crate) reverts: bool,
    /// The component whose life it is part of.
    pub(crate) component: Option<ComponentId>,
    pub(crate) hold: Arc<Hold>,
    gate: Gate<Self>,
}

impl Entry {
    pub(crate) fn row(&self) -> Row<'_> {
        Row { name: &self.name, group: self.group.as_deref(), order: &self.order }
    }

    /// Returns whether it stands behind `other`, or behind the component that it belongs to.
    pub(crate) fn depends_on(&self, other: &Self) -> bool {
        let is_other = |on: &String| **on == *other.name || other.group.as_deref() == Some(on);
        self.order.needs.iter().chain(&self.order.after).any(is_other)
    }

    /// Returns whether it counts as started without having been called.
    pub(crate) fn has_joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }

    /// Records that a start is about to call it: from now on only that says whether it started.
    pub(crate) fn is_to_start(&self) {
        self.joined.store(false, Ordering::Relaxed);
    }

    /// Begins a call: returns what `begin` does with the listener, or `None` if it was removed. One that was replaced meanwhile
    /// is called as what it was replaced by: who is subscribed all the time misses no call.
    pub(crate) fn begin<T>(&self, begin: impl FnOnce(&Arc<dyn Listener>) -> T) -> Option<T> {
        let mut replaced_by: Option<Arc<Self>> = None;
        loop {
            let entry = replaced_by.as_deref().unwrap_or(self);
            let closed = match entry.gate.enter() {
                Ok(_inside) => return Some(begin(&entry.listener)),
                Err(closed) => closed,
            };
            match closed {
                Closed::Removed => return None,
                Closed::Replaced(next) => replaced_by = Some(next),
            }
        }
    }
}

/// Listeners in the order of their calls: wave after wave.
pub(crate) type Waves = Vec<Vec<Arc<Entry>>>;

/// The listeners of a channel when a publication begins.
pub(crate) struct Snapshot {
    pub(crate) channel: Arc<str>,
    pub(crate) waves: Arc<Waves>,
    /// Whether the channel was declared, or somebody ever listened there.
    pub(crate) known: bool,
    /// Whether this is the first time that an unknown name is seen.
    pub(crate) first: bool,
}

/// One channel that is known.
struct Channel {
    name: Arc<str>,
    /// By the number of their registration.
    entries: BTreeMap<u64, Arc<Entry>>,
    numbers: HashMap<Arc<str>, u64>,
    /// How many listeners stand behind each name.
    wanted: HashMap<String, usize>,
    /// In the order of their calls, until somebody comes or goes.
    waves: Option<Arc<Waves>>,
}

impl Channel {
    fn new(name: &str) -> Self {
        let (entries, numbers, wanted) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { name: name.into(), entries, numbers, wanted, waves: None }
    }

    fn waves(&mut self) -> Arc<Waves> {
        let entries = &self.entries;
        let waves = self.waves.get_or_insert_with(|| {
            let entries: Vec<&Arc<Entry>> = entries.values().collect();
            let rows: Vec<_> = entries.iter().map(|entry| entry.row()).collect();
            let in_order = |wave: Vec<usize>| wave.into_iter().map(|index| Arc::clone(entries[index])).collect();
            Arc::new(waves_of_any(&rows).into_iter().map(in_order).collect())
        });
        Arc::clone(waves)
    }

    /// Puts `entry` where one of its name stands, or at the end. Returns the one that it replaces.
    fn put(&mut self, entry: Arc<Entry>, next: &mut u64) -> Option<Arc<Entry>> {
        self.waves = None;
        for on in entry.order.needs.iter().chain(&entry.order.after) {
            *self.wanted.entry(on.clone()).or_default() += 1;
        }
        let number = *self.numbers.entry(Arc::clone(&entry.name)).or_insert_with(|| {
            *next += 1;
            *next
        });
        let replaced = self.entries.insert(number, entry);
        if let Some(replaced) = &replaced {
            self.forget_wanted(&replaced.order);
        }
        replaced
    }

    fn take(&mut self, name: &str) -> Option<Arc<Entry>> {
        let entry = self.entries.remove(&self.numbers.remove(name)?)?;
        self.waves = None;
        self.forget_wanted(&entry.order);
        Some(entry)
    }

    fn take_all(&mut self) -> Vec<Arc<Entry>> {
        let empty = Self::new(&self.name);
        std::mem::replace(self, empty).entries.into_values().collect()
    }

    fn forget_wanted(&mut self, order: &Order) {
        for on in order.needs.iter().chain(&order.after) {
            if let Some(count) = self.wanted.get_mut(on) {
                *count -= 1;
                if *count == 0 {
                    self.wanted.remove(on);
                }
            }
        }
    }

    /// Checks that a listener `name` of this `order` would not wait for itself.
    fn check(&self, name: &str, order: &Order) -> Result<(), Cycle> {
        let waits_for_itself = order.needs.iter().chain(&order.after).any(|on| on == name);
        // Who stands behind nobody, or before nobody, is in no circle.
        if !waits_for_itself && (order.is_free() || !self.wanted.contains_key(name)) {
            return Ok(());
        }
        let others = self.entries.values().filter(|entry| *entry.name != *name).map(|entry| entry.row());
        let rows: Vec<Row<'_>> = others.chain([Row { name, group: None, order }]).collect();
        waves(&rows).map(drop)
    }
}

#[derive(Default)]
struct Channels {
    known: BTreeMap<String, Channel>,
    unknown: BTreeSet<String>,
    /// The names of the components.
    components: BTreeSet<String>,
    /// The number of the last registration.
    last: u64,
}

impl Channels {
    fn channel(&mut self, name: &str) -> &mut Channel {
        self.known.entry(name.to_owned()).or_insert_with(|| Channel::new(name))
    }

    /// Adds a listener. Returns the one that it replaces.
    fn add(&mut self, subscription: Subscription) -> Option<(Arc<Entry>, Arc<Entry>)> {
        let (joined, shown) = (subscription.joined, subscription.shown_priority);
        let (only_checks, reverts) = (subscription.only_checks, subscription.reverts);
        let Subscription { channel, name, group, order, limit, listener, component, hold, .. } = subscription;
        let priority = shown.unwrap_or(order.priority);
        let (joined, gate) = (AtomicBool::new(joined), Gate::default());
        let entry = Arc::new(Entry {
            name,
            group,
            order,
            limit,
            listener,
            priority,
            joined,
            only_checks,
            reverts,
            component,
            hold,
            gate,
        });
        let mut last = self.last;
        let replaced = self.channel(&channel).put(Arc::clone(&entry), &mut last);
        self.last = last;
        replaced.map(|replaced| (replaced, entry))
    }
}

/// Closes the gates of those who were replaced.
fn close_replaced(replaced: impl IntoIterator<Item = (Arc<Entry>, Arc<Entry>)>) {
    for (replaced, by) in replaced {
        replaced.gate.close(Closed::Replaced(by));
        replaced.gate.wait(&replaced.hold);
    }
}

/// All channels.
pub(crate) struct Registry(Mutex<Channels>);

impl Registry {
    pub(crate) fn new() -> Self {
        let mut channels = Channels::default();
        for name in BUILT_IN {
            channels.channel(name);
        }
        Self(Mutex::new(channels))
    }

    pub(crate) fn declare(&self, channel: &str) {
        lock(&self.0).channel(channel);
    }

    /// Returns every known channel with the names of its listeners.
    pub(crate) fn channels(&self) -> BTreeMap<String, Vec<String>> {
        let channels = lock(&self.0);
        let names = |channel: &Channel| channel.entries.values().map(|entry| (*entry.name).to_owned()).collect();
        channels.known.iter().map(|(name, channel)| (name.clone(), names(channel))).collect()
    }

    /// Returns whether anybody ever declared `channel` or subscribed to it.
    pub(crate) fn knows(&self, channel: &str) -> bool {
        lock(&self.0).known.contains_key(channel)
    }

    /// Adds a listener. One of the same name on the same channel is replaced, and takes its new place in the order.
    pub(crate) fn add(&self, subscription: Subscription) {
        let replaced = lock(&self.0).add(subscription);
        close_replaced(replaced);
    }

    /// Removes a listener; one that is not there is no error. No call of it begins after the return.
    pub(crate) fn remove(&self, channel: &str, name: &str) -> bool {
        let removed = lock(&self.0).known.get_mut(channel).and_then(|channel| channel.take(name));
        let Some(removed) = removed else { return false };
        removed.gate.close(Closed::Removed);
        removed.gate.wait(&removed.hold);
        true
    }

    /// Adds the listeners of a component, or none of them.
    pub(crate) fn attach(&self, name: &str, subscriptions: Vec<Subscription>) -> Result<(), AttachError> {
        let replaced: Vec<_> = {
            let mut channels = lock(&self.0);
            if channels.components.contains(name) {
                return Err(AttachError::Taken { name: name.to_owned() });
            }
            for subscription in &subscriptions {
                if let Some(channel) = channels.known.get(&subscription.channel) {
                    channel.check(name, &subscription.order)?;
                }
            }
            channels.components.insert(name.to_owned());
            channels.last += 1;
            let (component, hold) = (Some(ComponentId(channels.last)), Arc::<Hold>::default());
            let own = |one: Subscription| Subscription { component, hold: Arc::clone(&hold), ..one };
            subscriptions.into_iter().filter_map(|one| channels.add(own(one))).collect()
        };
        close_replaced(replaced);
        Ok(())
    }

    /// Removes every listener of this name, on every channel.
    pub(crate) fn detach(&self, name: &str) {
        let removed: Vec<Arc<Entry>> = {
            let mut channels = lock(&self.0);
            channels.components.remove(name);
            channels.known.values_mut().filter_map(|channel| channel.take(name)).collect()
        };
        for entry in &removed {
            entry.gate.close(Closed::Removed);
        }
        for entry in removed {
            entry.gate.wait(&entry.hold);
        }
    }

    /// Removes every listener. Nobody is waited for: the bus has ended, and calls nobody any more.
    pub(crate) fn clear(&self) {
        let entries: Vec<Arc<Entry>> = lock(&self.0).known.values_mut().flat_map(Channel::take_all).collect();
        for entry in entries {
            entry.gate.close(Closed::Removed);
        }
    }

    /// Returns the listener `name` of `channel`.
    pub(crate) fn find(&self, channel: &str, name: &str) -> Option<Arc<Entry>> {
        let channels = lock(&self.0);
        let channel = channels.known.get(channel)?;
        channel.entries.get(channel.numbers.get(name)?).cloned()
    }

    /// Returns the listeners of `channel` in the order of their registration.
    pub(crate) fn listeners(&self, channel: &str) -> Vec<Arc<Entry>> {
        lock(&self.0).known.get(channel).map(|channel| channel.entries.values().cloned().collect()).unwrap_or_default()
    }

    /// Returns the listeners of `channel` in the order of their calls.
    pub(crate) fn snapshot(&self, channel: &str) -> Snapshot {
        let mut channels = lock(&self.0);
        if let Some(known) = channels.known.get_mut(channel) {
            let (channel, waves) = (Arc::clone(&known.name), known.waves());
            return Snapshot { channel, waves, known: true, first: false };
        }
        let first = channels.unknown.len() < UNKNOWN_MAX && channels.unknown.insert(channel.to_owned());
        Snapshot { channel: channel.into(), waves: Arc::default(), known: false, first }
    }
}
