//! Who listens where: the channels that are declared, and the listeners of each.
//!
//! A publication calls those who listen when it begins. Whoever is removed meanwhile is not called: once `remove` returns, no
//! call of that listener begins any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use refit_base::lock;

use crate::call::Listener;
use crate::order::{Cycle, Order, Row, waves};

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
/// How long a removal waits for a call that is just beginning on another thread. Two listeners that remove each other while
/// both begin would wait for ever.
const BEGIN_WAIT_MAX: Duration = Duration::from_secs(1);

/// A listener on a channel.
#[derive(Clone)]
pub struct Subscription {
    pub(crate) channel: String,
    pub(crate) name: String,
    pub(crate) group: Option<String>,
    pub(crate) order: Order,
    pub(crate) limit: Option<Duration>,
    pub(crate) listener: Arc<dyn Listener>,
    shown_priority: Option<i32>,
    joined: bool,
    only_checks: bool,
}

impl Subscription {
    /// Returns a subscription to `channel` under a `name` that is unique on it.
    pub fn new(channel: impl Into<String>, name: impl Into<String>, listener: Arc<dyn Listener>) -> Self {
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
    pub fn group(mut self, group: impl Into<String>) -> Self {
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

/// A listener with its place.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) group: Option<String>,
    pub(crate) order: Order,
    pub(crate) limit: Option<Duration>,
    pub(crate) listener: Arc<dyn Listener>,
    /// Its priority, for people.
    pub(crate) priority: i32,
    /// Whether it counts as started without having been called: until the first start that calls it.
    joined: AtomicBool,
    /// Whether it may refuse a reload and has nothing to reload itself.
    pub(crate) only_checks: bool,
    gate: Gate,
}

impl Entry {
    pub(crate) fn row(&self) -> Row<'_> {
        Row { name: &self.name, group: self.group.as_deref(), order: &self.order }
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

/// Why nobody may pass a gate any more.
#[derive(Clone)]
enum Closed {
    Removed,
    Replaced(Arc<Entry>),
}

#[derive(Default)]
struct Passing {
    closed: Option<Closed>,
    threads: Vec<ThreadId>,
}

/// Where every call of a listener begins: closed by its removal.
#[derive(Default)]
struct Gate {
    inner: Mutex<Passing>,
    left: Condvar,
}

/// Who is in a gate; leaves it when dropped, also by a panic.
struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let own = thread::current().id();
        let mut passing = lock(&self.0.inner);
        if let Some(place) = passing.threads.iter().position(|thread| *thread == own) {
            passing.threads.swap_remove(place);
        }
        self.0.left.notify_all();
    }
}

impl Gate {
    fn enter(&self) -> Result<Inside<'_>, Closed> {
        let mut passing = lock(&self.inner);
        if let Some(closed) = &passing.closed {
            return Err(closed.clone());
        }
        passing.threads.push(thread::current().id());
        drop(passing);
        Ok(Inside(self))
    }

    /// Closes the gate and waits for who is in it; a listener may close its own.
    fn close(&self, why: Closed) {
        let own = thread::current().id();
        let mut passing = lock(&self.inner);
        passing.closed = Some(why);
        let others = |passing: &mut Passing| passing.threads.iter().any(|thread| *thread != own);
        let waited = self.left.wait_timeout_while(passing, BEGIN_WAIT_MAX, others);
        drop(waited);
    }
}

/// The listeners of a channel when a publication begins.
pub(crate) struct Snapshot {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// Whether the channel was declared, or somebody ever listened there.
    pub(crate) known: bool,
    /// Whether this is the first time that an unknown name is seen.
    pub(crate) first: bool,
}

#[derive(Default)]
struct Channels {
    declared: BTreeSet<String>,
    unknown: BTreeSet<String>,
    entries: BTreeMap<String, Vec<Arc<Entry>>>,
    components: BTreeSet<String>,
}

/// All channels.
pub(crate) struct Registry(Mutex<Channels>);

impl Registry {
    pub(crate) fn new() -> Self {
        let declared = BUILT_IN.into_iter().map(str::to_owned).collect();
        Self(Mutex::new(Channels { declared, ..Channels::default() }))
    }

    pub(crate) fn declare(&self, channel: &str) {
        lock(&self.0).declared.insert(channel.to_owned());
    }

    /// Returns every known channel with the names of its listeners.
    pub(crate) fn channels(&self) -> BTreeMap<String, Vec<String>> {
        let channels = lock(&self.0);
        let mut all: BTreeMap<String, Vec<String>> =
            channels.declared.iter().map(|name| (name.clone(), Vec::new())).collect();
        for (channel, entries) in &channels.entries {
            all.insert(channel.clone(), entries.iter().map(|entry| entry.name.clone()).collect());
        }
        all
    }

    /// Returns whether anybody ever declared `channel` or subscribed to it.
    pub(crate) fn knows(&self, channel: &str) -> bool {
        let channels = lock(&self.0);
        channels.declared.contains(channel) || channels.entries.contains_key(channel)
    }

    /// Adds a listener. One of the same name on the same channel is replaced, and takes its new place in the order.
    pub(crate) fn add(&self, subscription: Subscription) {
        let Subscription { channel, name, group, order, limit, listener, shown_priority, joined, only_checks } =
            subscription;
        let priority = shown_priority.unwrap_or(order.priority);
        let joined = AtomicBool::new(joined);
        let gate = Gate::default();
        let entry = Arc::new(Entry { name, group, order, limit, listener, priority, joined, only_checks, gate });
        let replaced = {
            let mut channels = lock(&self.0);
            let entries = channels.entries.entry(channel).or_default();
            match entries.iter().position(|other| other.name == entry.name) {
                Some(place) => Some((std::mem::replace(&mut entries[place], Arc::clone(&entry)), entry)),
                None => {
                    entries.push(entry);
                    None
                }
            }
        };
        if let Some((replaced, by)) = replaced {
            replaced.gate.close(Closed::Replaced(by));
        }
    }

    /// Removes a listener; one that is not there is no error. No call of it begins after the return.
    pub(crate) fn remove(&self, channel: &str, name: &str) -> bool {
        let removed = {
            let mut channels = lock(&self.0);
            let Some(entries) = channels.entries.get_mut(channel) else { return false };
            let Some(place) = entries.iter().position(|entry| entry.name == name) else { return false };
            entries.remove(place)
        };
        removed.gate.close(Closed::Removed);
        true
    }

    /// Adds the listeners of a component, or none of them.
    pub(crate) fn attach(&self, name: &str, subscriptions: Vec<Subscription>) -> Result<(), AttachError> {
        {
            let mut channels = lock(&self.0);
            if channels.components.contains(name) {
                return Err(AttachError::Taken { name: name.to_owned() });
            }
            for subscription in &subscriptions {
                let there = channels.entries.get(&subscription.channel).map(Vec::as_slice).unwrap_or_default();
                let own = Row { name, group: None, order: &subscription.order };
                let rows: Vec<Row<'_>> = there.iter().map(|entry| entry.row()).chain([own]).collect();
                waves(&rows)?;
            }
            channels.components.insert(name.to_owned());
        }
        for subscription in subscriptions {
            self.add(subscription);
        }
        Ok(())
    }

    /// Removes every listener of this name, on every channel.
    pub(crate) fn detach(&self, name: &str) {
        let names: Vec<String> = {
            let mut channels = lock(&self.0);
            channels.components.remove(name);
            channels.entries.keys().cloned().collect()
        };
        for channel in names {
            self.remove(&channel, name);
        }
    }

    /// Removes every listener.
    pub(crate) fn clear(&self) {
        let entries = std::mem::take(&mut lock(&self.0).entries);
        for entry in entries.into_values().flatten() {
            entry.gate.close(Closed::Removed);
        }
    }

    pub(crate) fn snapshot(&self, channel: &str) -> Snapshot {
        let mut channels = lock(&self.0);
        let entries = channels.entries.get(channel).cloned();
        let known = entries.is_some() || channels.declared.contains(channel);
        let first = !known && channels.unknown.len() < UNKNOWN_MAX && channels.unknown.insert(channel.to_owned());
        Snapshot { entries: entries.unwrap_or_default(), known, first }
    }
}
