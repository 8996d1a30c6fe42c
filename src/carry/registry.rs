//! What has to outlive this process image: the registry of everything that the next one needs, and its copy with the guard.
//!
//! Whoever owns something that must survive registers it here when it comes to be and removes it when it is gone. The guard
//! gets each descriptor once and the document ([`Carry`]) after each change, so that a crash at any moment is an exec that
//! nobody prepared. What changes of a process is told by [itself](Single), before it is acted on, and the document follows
//! [a moment later](Registry::keep_saved); a guard or a release before that knows no such thing gets the document each time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use refit_base::lock;
use refit_bus::Unconfirmed;
use semver::Version;
use tokio::sync::{Notify, watch};

use super::document::{CARRY_FORMAT, CarriedAttempt, Carry};
use super::instance::{CarriedInstance, CarriedRun, Role};
use super::reporter::Reporter;
use super::single::Single;
use crate::auth::Sessions;
use crate::events::Events;
use crate::handover::{Named, channel, names};
use crate::logs::Logs;
use crate::tickets::Tickets;

/// How many events the next image gets.
const EVENTS_CARRIED: usize = 300;
/// The pause between two documents that follow what was told of single processes: what else they say may be so old after a crash.
const SAVE_PAUSE: Duration = Duration::from_millis(20);
/// And so many times as long as one has taken.
const SAVE_SHARE: u32 = 10;
/// How many ends of processes are remembered: they are asked for at once, if at all.
const ENDS_MAX: usize = 64;

/// The descriptors of one process of a component.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// The socket on which it reports.
    pub(crate) notify: OwnedFd,
    /// The reading end of its standard output.
    pub(crate) stdout: OwnedFd,
    /// The reading end of its standard error.
    pub(crate) stderr: OwnedFd,
}

impl Descriptors {
    /// The last parts of their names.
    const PARTS: [&str; 3] = ["notify", "out", "err"];

    /// Returns each with the last part of its name.
    fn parts(&self) -> [(&'static str, &OwnedFd); 3] {
        let [notify, out, err] = Self::PARTS;
        [(notify, &self.notify), (out, &self.stdout), (err, &self.stderr)]
    }
}

/// What was handed over of the descriptors of one process.
#[derive(Debug, Default)]
pub(crate) struct FoundDescriptors {
    /// The socket on which it reports.
    pub(crate) notify: Option<OwnedFd>,
    /// The reading end of its standard output.
    pub(crate) stdout: Option<OwnedFd>,
    /// The reading end of its standard error.
    pub(crate) stderr: Option<OwnedFd>,
}

impl FoundDescriptors {
    /// Takes those of the instance `id` from `parts`.
    pub(crate) fn take(id: &str, parts: &mut Vec<Named>) -> Self {
        let mut take = |last: &str| {
            let name = format!("{id}.{last}");
            let position = parts.iter().position(|part| part.name == name)?;
            Some(parts.remove(position).descriptor)
        };
        let [notify, out, err] = Descriptors::PARTS;
        Self { notify: take(notify), stdout: take(out), stderr: take(err) }
    }

    /// Returns the last parts of the names of those that are not there.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let found = [&self.notify, &self.stdout, &self.stderr];
        Descriptors::PARTS.into_iter().zip(found).filter(|(_, found)| found.is_none()).map(|(part, _)| part).collect()
    }
}

/// What somebody has asked of the whole site: what an image that is killed leaves to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteWish {
    /// To run.
    Runs,
    /// To be stopped.
    Stopped,
    /// To end, and the appliance with it.
    Ends,
}

impl SiteWish {
    /// Returns what `carry` leaves to an image of the release `version`. An image that has handed over was replaced since, which ends in
    /// a site that runs; another release starts everything.
    fn left_by(carry: &Carry, version: &Version) -> Self {
        match (carry.exec_ns, carry.site_ends) {
            (Some(_), _) => Self::Runs,
            (None, true) => Self::Ends,
            (None, false) if carry.site_stopped.as_ref() == Some(version) => Self::Stopped,
            (None, false) => Self::Runs,
        }
    }
}

#[derive(Debug)]
struct Inner {
    generation: u32,
    /// The number of the last document or word on one process.
    sequence: u64,
    /// That of the last document.
    saved: u64,
    /// Whether this image has saved one: until then the guard has only that of the image before.
    has_saved: bool,
    instances: BTreeMap<String, (CarriedInstance, Arc<Descriptors>)>,
    /// The highest generation of each component's processes: no two processes ever have one name.
    generations: BTreeMap<String, u32>,
    /// The components that an operator has stopped in this release.
    stopped: BTreeSet<String>,
    site: SiteWish,
    /// The last run of each component that runs and ends.
    runs: BTreeMap<String, CarriedRun>,
    /// How the files looked that a reload was last asked for.
    watched: BTreeMap<String, String>,
    /// The last attempt to go to another release.
    attempt: Option<CarriedAttempt>,
    /// The reload that waits to be confirmed.
    unconfirmed: Option<Unconfirmed>,
    /// This release.
    version: Version,
}

impl Inner {
    /// Returns the word on the process `id` as it is now; `None` as long as the guard has no document of this image.
    fn single(&mut self, id: &str, component: &str, generation: u32) -> Option<Single> {
        if !self.has_saved {
            return None;
        }
        self.sequence += 1;
        let instance = self.instances.get(id).map(|(instance, _)| instance.clone());
        Some(Single {
            sequence: self.sequence,
            id: id.to_owned(),
            component: component.to_owned(),
            generation,
            instance,
        })
    }
}

/// Who is told of a component whose processes changed.
struct Watcher(Box<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

/// The registry.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    /// Held while a document is given to the guard: each is dropped by exactly the one after it.
    saving: Mutex<()>,
    guard: Option<Reporter>,
    /// Whether the guard keeps what is told of single processes, and whatever it may start next reads it.
    tells_singles: bool,
    /// Told when something changed that the document does not say yet.
    changed: Notify,
    /// What the guard keeps besides the documents and the descriptors of processes, as far as this image has given it, by name.
    given: Mutex<BTreeMap<String, OwnedFd>>,
    /// The names of descriptors that the guard should keep and does not.
    lacking: Mutex<BTreeSet<String>>,
    /// How the last processes ended, newest last, for whoever lost its connection to one.
    ends: watch::Sender<VecDeque<(i32, String)>>,
    /// Processes that do not even read what they are asked, by component and generation.
    hung: watch::Sender<BTreeSet<(String, u32)>>,
    watcher: OnceLock<Watcher>,
    /// The events.
    pub events: Arc<Events>,
    /// The tickets.
    pub tickets: Arc<Tickets>,
    /// The components' output.
    pub logs: Arc<Logs>,
    /// Who is logged in.
    pub sessions: Arc<Sessions>,
}

impl Registry {
    /// Returns the registry of the process image `generation` of the release `version`, going on after `carry`, with the guard at the
    /// other end of `guard`.
    pub fn new(carry: &Carry, generation: u32, version: Version, guard: Guard, parts: RegistryParts) -> Self {
        Self {
            inner: Mutex::new(Inner {
                generation,
                sequence: carry.counted.max(carry.sequence),
                saved: carry.sequence,
                has_saved: false,
                instances: BTreeMap::new(),
                generations: carry.component_generations.clone(),
                // Another release starts everything, as a stop and a start of the bus do.
                site: SiteWish::left_by(carry, &version),
                stopped: carry.stopped.iter().filter(|(_, at)| **at == version).map(|(name, _)| name.clone()).collect(),
                runs: carry.runs.clone(),
                watched: carry.watched.clone(),
                attempt: carry.attempt.clone(),
                unconfirmed: None,
                version,
            }),
            saving: Mutex::new(()),
            guard: guard.socket.map(Reporter::new),
            tells_singles: guard.tells_singles,
            changed: Notify::new(),
            given: Mutex::default(),
            lacking: Mutex::new(carry.guard_lacks.iter().cloned().collect()),
            ends: watch::channel(VecDeque::new()).0,
            hung: watch::channel(BTreeSet::new()).0,
            watcher: OnceLock::new(),
            events: parts.events,
            tickets: parts.tickets,
            logs: parts.logs,
            sessions: parts.sessions,
        }
    }

    /// Records when an attempt to go to another release began; the guard is told, which may have to end it.
    pub fn set_attempt(&self, id: &str, begun_ns: u64) {
        lock(&self.inner).attempt = Some(CarriedAttempt { id: id.to_owned(), begun_ns });
        self.tell_guard(&format!("{}={id} {begun_ns}", channel::ATTEMPT));
    }

    /// Returns which process image this is, from 1.
    pub fn generation(&self) -> u32 {
        lock(&self.inner).generation
    }

    /// Tells the guard something. A guard that is gone is noticed elsewhere.
    pub fn tell_guard(&self, text: &str) {
        if let Some(guard) = &self.guard {
            guard.tell(text, &[]);
        }
    }

    /// Gives the guard a descriptor to keep, in the place of one that it has by that name.
    pub fn replace_stored(&self, name: &str, descriptor: OwnedFd) {
        self.drop_stored(name);
        self.store(name, &descriptor);
        lock(&self.given).insert(name.to_owned(), descriptor);
    }

    /// Has the guard drop the descriptor `name`.
    pub fn drop_stored(&self, name: &str) {
        lock(&self.given).remove(name);
        lock(&self.lacking).remove(name);
        self.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    fn store(&self, name: &str, descriptor: &OwnedFd) {
        lock(&self.lacking).remove(name);
        if let Some(guard) = &self.guard {
            guard.tell(&format!("FDSTORE=1\nFDNAME={name}"), &[descriptor]);
        }
    }

    /// Returns whether the guard should keep the descriptor `name` and does not.
    pub fn is_lacking(&self, name: &str) -> bool {
        lock(&self.lacking).contains(name)
    }

    /// Remembers that the guard does not keep the descriptor of the process `id` that has this last part of its name, or keeps an older one.
    pub(crate) fn note_lost(&self, id: &str, part: &str) {
        let name = format!("{}{id}.{part}", names::INSTANCE);
        self.drop_stored(&name);
        self.note_lacking(name);
    }

    /// Remembers that the guard does not keep the descriptor `name`: it did not arrive, or is a new one of an old name.
    pub fn note_lacking(&self, name: String) {
        lock(&self.lacking).insert(name);
    }

    /// Gives the guard what it lacks, as far as that is wanted still.
    pub fn give_lacking(&self) {
        let lacking = std::mem::take(&mut *lock(&self.lacking));
        let mut lacks_document = false;
        for name in lacking {
            if name.starts_with(names::STATE) {
                lacks_document |= name == state_name(lock(&self.inner).saved);
            } else if let Some(rest) = name.strip_prefix(names::INSTANCE) {
                let descriptors = lock(&self.inner).instances.values().find_map(|(instance, descriptors)| {
                    let part = rest.strip_prefix(&instance.id)?.strip_prefix('.')?.to_owned();
                    Some((part, Arc::clone(descriptors)))
                });
                if let Some((part, descriptors)) = descriptors
                    && let Some((_, descriptor)) = descriptors.parts().into_iter().find(|(last, _)| **last == part)
                {
                    self.store(&name, descriptor);
                }
            } else if let Some(descriptor) = lock(&self.given).get(&name) {
                self.store(&name, descriptor);
            }
        }
        if lacks_document {
            self.save();
        }
    }

    /// Tells the guard nothing any more. Returns the names of the descriptors that it lacks: the next image has to give it those.
    pub fn end_reports(&self) -> Vec<String> {
        let mut lacking: BTreeSet<String> = lock(&self.lacking).clone();
        if let Some(guard) = &self.guard {
            lacking.extend(guard.close());
        }
        lacking.into_iter().collect()
    }

    /// Registers a process of a component, or what has changed of it.
    pub(crate) fn put(&self, instance: CarriedInstance, descriptors: &Arc<Descriptors>, stored: bool) {
        for (part, descriptor) in descriptors.parts() {
            let name = format!("{}{}.{part}", names::INSTANCE, instance.id);
            if !stored || self.is_lacking(&name) {
                self.store(&name, descriptor);
            }
        }
        let component = instance.component.clone();
        let single = {
            let mut inner = lock(&self.inner);
            let newest = inner.generations.entry(instance.component.clone()).or_default();
            *newest = instance.generation.max(*newest);
            inner.instances.insert(instance.id.clone(), (instance.clone(), Arc::clone(descriptors)));
            inner.single(&instance.id, &instance.component, instance.generation)
        };
        self.tell_watcher(&component);
        self.save_single(single);
    }

    /// Tells the guard what has changed of one process, and has the document follow. Each change of a process is told by its owner, one
    /// after the other.
    fn save_single(&self, single: Option<Single>) {
        let report = single.filter(|_| self.tells_singles).and_then(|single| single.report());
        match (report, &self.guard) {
            (Some(report), Some(guard)) => {
                guard.tell(&report, &[]);
                self.changed.notify_one();
            }
            (_, _) => drop(self.save()),
        }
    }

    /// Saves the document a moment after something has changed that was told by itself. Never returns.
    pub async fn keep_saved(self: Arc<Self>) {
        loop {
            self.changed.notified().await;
            let begun = Instant::now();
            self.save();
            // A document of thousands of processes must not be all that is done.
            tokio::time::sleep(SAVE_PAUSE.max(begun.elapsed() * SAVE_SHARE)).await;
        }
    }

    /// Has `watcher` be told of each component whose processes changed: one came, serves, is on its way out, or is gone. The
    /// first watcher stays.
    pub(crate) fn watch(&self, watcher: impl Fn(&str) + Send + Sync + 'static) {
        drop(self.watcher.set(Watcher(Box::new(watcher))));
    }

    fn tell_watcher(&self, component: &str) {
        if let Some(Watcher(tell)) = self.watcher.get() {
            tell(component);
        }
    }

    /// Returns which process of `component` is asked what is asked of the component, by its generation: the newest that serves;
    /// while none serves, the oldest. One on its way out is not asked. `None` if there is no other.
    pub(crate) fn asked_generation(&self, component: &str) -> Option<u32> {
        let inner = lock(&self.inner);
        let instances = inner.instances.values().map(|(instance, _)| instance);
        let current: Vec<&CarriedInstance> =
            instances.filter(|instance| instance.component == component && instance.role == Role::Current).collect();
        let serving = current.iter().filter(|instance| instance.ready).map(|instance| instance.generation).max();
        serving.or_else(|| current.iter().map(|instance| instance.generation).min())
    }

    /// Remembers how a process ended.
    pub(crate) fn note_end(&self, pid: i32, how: &str) {
        self.ends.send_modify(|ends| {
            if ends.len() == ENDS_MAX {
                ends.pop_front();
            }
            ends.push_back((pid, how.to_owned()));
        });
    }

    /// Returns a receiver of how the last processes ended, newest last.
    pub fn ends(&self) -> watch::Receiver<VecDeque<(i32, String)>> {
        self.ends.subscribe()
    }

    /// Records that the process `generation` of `component` does not even read what it is asked.
    pub(crate) fn note_hung(&self, component: &str, generation: u32) {
        self.hung.send_modify(|hung| {
            if hung.len() == ENDS_MAX {
                hung.pop_first();
            }
            hung.insert((component.to_owned(), generation));
        });
    }

    /// Returns whether the process `generation` of `component` is known to hang.
    pub(crate) fn is_hung(&self, component: &str, generation: u32) -> bool {
        self.hung.borrow().iter().any(|(name, number)| name == component && *number == generation)
    }

    /// Waits until the process `generation` of `component` is known to hang. Cancel-safe: it only waits.
    pub(crate) async fn until_hung(&self, component: &str, generation: u32) {
        let is_hung = |hung: &BTreeSet<(String, u32)>| {
            hung.iter().any(|(name, number)| name == component && *number == generation)
        };
        if self.hung.subscribe().wait_for(is_hung).await.is_err() {
            std::future::pending().await
        }
    }

    /// Returns the highest generation of the processes of `component`.
    pub(crate) fn newest_generation(&self, component: &str) -> u32 {
        lock(&self.inner).generations.get(component).copied().unwrap_or(0)
    }

    /// Removes a process that has ended.
    pub(crate) fn remove(&self, id: &str) {
        let (removed, single) = {
            let mut inner = lock(&self.inner);
            let removed = inner.instances.remove(id);
            let single = removed.as_ref().and_then(|(gone, _)| inner.single(id, &gone.component, gone.generation));
            (removed, single)
        };
        for part in Descriptors::PARTS {
            // Also of one that had ended before this image could register it.
            self.drop_descriptor(&format!("{id}.{part}"));
        }
        if let Some((instance, _)) = removed {
            self.tell_watcher(&instance.component);
        }
        self.save_single(single);
    }

    /// Has the guard drop the descriptor of a process that has this last part of its name.
    pub(crate) fn drop_descriptor(&self, name: &str) {
        self.drop_stored(&format!("{}{name}", names::INSTANCE));
    }

    /// Remembers whether an operator has stopped `component`, if that has changed.
    pub(crate) fn set_stopped(&self, component: &str, stopped: bool) {
        let changed = {
            let mut inner = lock(&self.inner);
            if stopped { inner.stopped.insert(component.to_owned()) } else { inner.stopped.remove(component) }
        };
        if changed {
            self.save();
        }
    }

    /// Returns whether an operator has stopped `component`.
    pub(crate) fn is_stopped(&self, component: &str) -> bool {
        lock(&self.inner).stopped.contains(component)
    }

    /// Remembers what somebody has asked of the whole site, if that has changed.
    pub fn set_site(&self, site: SiteWish) {
        let before = std::mem::replace(&mut lock(&self.inner).site, site);
        if before != site {
            self.save();
        }
    }

    /// Returns what somebody has asked of the whole site.
    pub fn site(&self) -> SiteWish {
        lock(&self.inner).site
    }

    /// Remembers which reload waits to be confirmed.
    pub fn set_unconfirmed(&self, reload: Unconfirmed) {
        lock(&self.inner).unconfirmed = Some(reload);
        self.save();
    }

    /// Forgets that `generation` waits to be confirmed.
    pub fn forget_unconfirmed(&self, generation: u64) {
        let waited = lock(&self.inner).unconfirmed.take_if(|reload| reload.generation == generation);
        if waited.is_some() {
            self.save();
        }
    }

    /// Remembers how the files looked that a reload was last asked for, if that has changed.
    pub fn set_watched(&self, watched: BTreeMap<String, String>) {
        let before = std::mem::replace(&mut lock(&self.inner).watched, watched.clone());
        if before != watched {
            self.save();
        }
    }

    /// Returns how the files looked that a reload was last asked for.
    pub fn watched(&self) -> BTreeMap<String, String> {
        lock(&self.inner).watched.clone()
    }

    /// Remembers the last run of `component`, or forgets it.
    pub(crate) fn set_run(&self, component: &str, run: Option<CarriedRun>) {
        {
            let runs = &mut lock(&self.inner).runs;
            match run {
                Some(run) => drop(runs.insert(component.to_owned(), run)),
                None => drop(runs.remove(component)),
            }
        }
        self.save();
    }

    /// Returns the last run of `component`.
    pub(crate) fn run(&self, component: &str) -> Option<CarriedRun> {
        lock(&self.inner).runs.get(component).cloned()
    }

    /// Gives the guard a document, which holds all that it was told of single processes before.
    fn store_document(&self, carry: &Carry, file: &OwnedFd) {
        let (name, replaces) = (state_name(carry.sequence), channel::REPLACES);
        lock(&self.lacking).remove(&name);
        if let Some(guard) = &self.guard {
            guard.tell(&format!("FDSTORE=1\nFDNAME={name}\n{replaces}={}", carry.sequence), &[file]);
        }
    }

    /// Returns the document of this moment, with a number of its own.
    fn carry(&self) -> Carry {
        let output = self.logs.carried();
        let mut inner = lock(&self.inner);
        inner.sequence += 1;
        Carry {
            format: CARRY_FORMAT,
            sequence: inner.sequence,
            generation: inner.generation,
            instances: inner.instances.values().map(|(instance, _)| instance.clone()).collect(),
            tickets: self.tickets.all(),
            events: self.events.last(EVENTS_CARRIED),
            logs: output.lines,
            partial_lines: output.partial.into_iter().map(|(name, bytes)| (name, BASE64.encode(bytes))).collect(),
            logs_complete: false,
            sessions: self.sessions.carried(),
            stopped_accepting_ns: None,
            exec_ns: None,
            trial_ns: None,
            guard_lacks: Vec::new(),
            parked: BTreeMap::new(),
            component_generations: inner.generations.clone(),
            site_stopped: (inner.site == SiteWish::Stopped).then(|| inner.version.clone()),
            site_ends: inner.site == SiteWish::Ends,
            stopped: inner.stopped.iter().map(|name| (name.clone(), inner.version.clone())).collect(),
            runs: inner.runs.clone(),
            watched: inner.watched.clone(),
            attempt: inner.attempt.clone(),
            unconfirmed: inner.unconfirmed.clone(),
            reads_processes: true,
            counted: inner.sequence,
        }
    }

    /// Gives the guard the document of this moment, and has it drop the one before. Returns the document.
    pub fn save(&self) -> Carry {
        let _one_at_a_time = lock(&self.saving);
        let carry = self.carry();
        match carry.seal() {
            Ok(file) => {
                let before = {
                    let mut inner = lock(&self.inner);
                    inner.has_saved = true;
                    std::mem::replace(&mut inner.saved, carry.sequence)
                };
                self.store_document(&carry, &file);
                self.drop_state(before);
            }
            Err(error) => tracing::warn!(%error, "cannot store the runtime's state; a crash would lose it"),
        }
        carry
    }

    /// Has the guard drop the document `sequence`.
    pub fn drop_state(&self, sequence: u64) {
        self.drop_stored(&state_name(sequence));
    }

    /// Returns the releases that some process was started from: they must stay on disk.
    pub fn releases_in_use(&self) -> Vec<Version> {
        lock(&self.inner).instances.values().map(|(instance, _)| instance.release.clone()).collect()
    }

    /// Returns the running processes, as they are carried.
    pub fn instances(&self) -> Vec<CarriedInstance> {
        lock(&self.inner).instances.values().map(|(instance, _)| instance.clone()).collect()
    }

    /// Returns a duplicate of every process's descriptors, for the next image.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn describe(&self) -> io::Result<Vec<Named>> {
        let inner = lock(&self.inner);
        let mut parts = Vec::new();
        for (instance, descriptors) in inner.instances.values() {
            for (part, descriptor) in descriptors.parts() {
                let name = format!("{}{}.{part}", names::INSTANCE, instance.id);
                parts.push(Named { name, descriptor: descriptor.try_clone()? });
            }
        }
        Ok(parts)
    }
}

/// Returns the name under which the guard keeps the document `sequence`.
pub fn state_name(sequence: u64) -> String {
    format!("{}{sequence}", names::STATE)
}

/// The guard, as the registry needs it.
#[derive(Debug, Default)]
pub struct Guard {
    /// Where it reads reports.
    pub socket: Option<OwnedFd>,
    /// Whether it keeps what is told of single processes, and whatever it may start next reads that.
    pub tells_singles: bool,
}

/// What the registry reads when it writes its document.
#[derive(Debug)]
pub struct RegistryParts {
    /// The events.
    pub events: Arc<Events>,
    /// The tickets.
    pub tickets: Arc<Tickets>,
    /// The components' output.
    pub logs: Arc<Logs>,
    /// Who is logged in.
    pub sessions: Arc<Sessions>,
}
