//! The update manager: one transaction from a received package to a release that proved good, or back.
//!
//! [`Manager`] drives the updater, the bus and the handover through the states of the journal, which is written before each
//! act. It ends with this process image asking to be replaced; the next image goes on with [`trial`]. Whatever fails before the
//! trial leaves the running release untouched; whatever fails in it ends in the previous one, with the reason in the history.

mod error;
mod plan;
mod preflight;
mod receiving;
mod repository;
mod restart;
mod transaction;
mod trial;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use refit_base::Chain;
use refit_base::clock;
use refit_bus::{Bus, Fault, Replacement};
use refit_updater::attempt::{Attempt, Ending, Kind, Outcome};
use refit_updater::config::{self, Unmerged};
use refit_updater::history::Entry;
use refit_updater::journal::{self, Journal, State};
use refit_updater::release::Release;
use refit_updater::trust::Trust;
use refit_updater::{Digest, Store};
use semver::Version;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use crate::component::{Process, RunContext, fingerprint};
use crate::config::Config;
use crate::tickets::TicketView;

pub use error::UpdateError;
pub use receiving::{PackageView, Reception, Staged};
pub use repository::{OfferView, RepositoryView};

/// What an update is doing, for status and page.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UpdateView {
    /// The ticket's name.
    pub id: String,
    /// `update` or `rollback`.
    pub kind: Kind,
    /// The step under way.
    pub phase: String,
    /// The release it starts from.
    pub from: Version,
    /// The release it goes to.
    pub to: Version,
    /// The share of the step that is done, 0 to 1.
    pub progress: f64,
    /// The step, for people.
    pub step: String,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// When the probation ends if all stays well, RFC 3339.
    pub probation_ends_at: Option<String>,
}

/// Which release is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The one that was received with this manifest.
    Digest(Digest),
    /// An installed one.
    Version(Version),
    /// The good one before the current.
    Previous,
}

/// What the manager is made of.
pub struct Parts {
    /// The releases on disk.
    pub store: Store,
    /// What packages are verified against.
    pub trust: Trust,
    /// The journal as it is on disk.
    pub journal: Journal,
    /// The running release's configuration.
    pub config: Arc<Config>,
    /// The digest of its manifest, as this image read it when it began.
    pub digest: Digest,
    /// Where components run.
    pub context: Arc<RunContext>,
    /// The components.
    pub components: Vec<Arc<Process>>,
    /// The installed `refit`.
    pub installed: PathBuf,
    /// The bus that it asks.
    pub bus: Bus,
    /// When the image before got how far.
    pub times: Times,
}

/// Moments of a handover on the monotonic clock, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The trial was journaled and the stop began.
    pub trial_ns: Option<u64>,
    /// The image before was about to execute this one.
    pub exec_ns: Option<u64>,
    /// This image began.
    pub begun_ns: u64,
}

/// The update manager.
pub struct Manager {
    parts: Parts,
    journal: Mutex<Journal>,
    view: Mutex<Option<UpdateView>>,
    /// An attempt that the journal had finished when this image started: told to everybody once the site runs.
    finished: Mutex<Option<Entry>>,
    /// Holding it is receiving a package.
    receiving: Arc<tokio::sync::Semaphore>,
    reception: Mutex<Option<Reception>>,
    /// What was received since this image emptied staging; some of it may have gone from there.
    staged: Mutex<Vec<Staged>>,
    tasks: Mutex<JoinSet<()>>,
    /// Whether this image ends so that the guard selects the release anew.
    yields_to_guard: AtomicBool,
    /// When this image journaled a trial.
    trial_ns: Mutex<Option<u64>>,
    /// Whether [`Manager::tidy`] has been.
    tidy: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Manager {
    /// Returns the manager. Nothing is written yet: the way from an exec to the first accept is kept short.
    pub fn new(parts: Parts) -> Self {
        let manager = Self {
            journal: Mutex::new(parts.journal.clone()),
            finished: Mutex::new(parts.journal.finished.clone()),
            view: Mutex::new(None),
            parts,
            yields_to_guard: AtomicBool::new(false),
            trial_ns: Mutex::new(None),
            tidy: AtomicBool::new(false),
            receiving: Arc::new(tokio::sync::Semaphore::new(1)),
            reception: Mutex::new(None),
            staged: Mutex::default(),
            tasks: Mutex::new(JoinSet::new()),
        };
        if let (State::Trial { .. }, Some(attempt)) = (&manager.parts.journal.state, &manager.parts.journal.attempt) {
            manager.step(attempt, "starting", &format!("release {} starts", attempt.to));
        }
        manager
    }

    /// Does what every start owes the disk: the `current` link, an empty staging, and the history of an attempt that ended
    /// with the image before. Until then nothing is received and no update begins. Repeating it changes nothing.
    ///
    /// # Errors
    /// A file cannot be written; what is left is done at the next start.
    pub async fn tidy(self: &Arc<Self>, permit: tokio::sync::OwnedSemaphorePermit) -> Result<(), UpdateError> {
        let manager = Arc::clone(self);
        let work = move || {
            let _permit = permit;
            let store = &manager.parts.store;
            store.point_current(manager.parts.journal.state.wanted())?;
            store.empty_staging()?;
            manager.record_finished()
        };
        let result = tokio::task::spawn_blocking(work).await.map_err(|source| UpdateError::Worker { source })?;
        self.tidy.store(true, Ordering::Release);
        result
    }

    /// Returns the right to receive packages, for [`Manager::tidy`]; `None` if somebody has it.
    pub fn hold_receiving(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.receiving).try_acquire_owned().ok()
    }

    /// Returns the right to receive packages, which the start has for a moment.
    ///
    /// # Errors
    /// A package is being received.
    pub(super) async fn begin_receiving(&self) -> Result<tokio::sync::OwnedSemaphorePermit, UpdateError> {
        if self.tidy.load(Ordering::Acquire) {
            return self.hold_receiving().ok_or(UpdateError::Receiving);
        }
        Arc::clone(&self.receiving).acquire_owned().await.map_err(|_closed| UpdateError::Receiving)
    }

    /// Returns how long a package that arrives may bring nothing.
    pub fn receive_timeout(&self) -> Duration {
        self.parts.config.update.receive_timeout
    }

    /// Returns the journal.
    pub fn journal(&self) -> Journal {
        lock(&self.journal).clone()
    }

    /// Returns what an update under way is doing.
    pub fn view(&self) -> Option<UpdateView> {
        lock(&self.view).clone()
    }

    /// Returns the releases on disk. Blocks.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn releases(&self) -> Result<Vec<Release>, UpdateError> {
        Ok(self.parts.store.releases()?)
    }

    /// Returns the configuration files of the running release that wait for the admin. Blocks.
    ///
    /// # Errors
    /// The live configuration cannot be read.
    pub fn unmerged(&self) -> Result<Vec<Unmerged>, UpdateError> {
        Ok(config::unmerged(&self.parts.store, self.journal().state.wanted())?)
    }

    /// Returns the store of releases.
    pub fn store(&self) -> &Store {
        &self.parts.store
    }

    fn write(&self, journal: Journal) -> Result<(), UpdateError> {
        journal::store(self.parts.store.home(), &journal)?;
        *lock(&self.journal) = journal;
        Ok(())
    }

    /// Shows and publishes a step.
    fn step(&self, attempt: &Attempt, step: &str, text: &str) {
        tracing::info!(update.id = attempt.id, update.step = step, release.to = %attempt.to, "{text}");
        *lock(&self.view) = Some(view(attempt, step, text));
        self.publish_step(attempt, step, text, None);
    }

    fn publish_step(&self, attempt: &Attempt, step: &str, text: &str, ending: Option<&Ending>) {
        let mut data = json!({
            "id": attempt.id, "kind": attempt.kind, "step": step, "from": attempt.from, "to": attempt.to, "text": text,
        });
        if let Some(ending) = ending {
            data["reason"] = json!(ending.reason);
            data["component"] = json!(ending.component);
            data["output"] = json!(ending.output);
        }
        self.parts.context.registry.events.publish("update.step", data);
    }

    /// Begins an update or a rollback. Returns its ticket.
    ///
    /// # Errors
    /// It cannot begin: nothing was changed.
    pub fn begin(self: &Arc<Self>, target: Target, kind: Kind, who: &str) -> Result<TicketView, UpdateError> {
        let bus = self.running_bus()?;
        let mut shown = lock(&self.view);
        if shown.is_some() {
            return Err(UpdateError::Busy);
        }
        let journal = self.idle_journal()?;
        let State::Idle { current } = &journal.state else { return Err(UpdateError::Busy) };
        let (digest, to, received) = self.resolve(target, &journal)?;
        if to == *current && !received {
            return Err(UpdateError::Runs { version: to });
        }
        let now = clock::now();
        let ticket = self.parts.context.registry.tickets.open(kind_name(kind), who);
        let attempt = Attempt {
            id: ticket.id.clone(),
            kind,
            who: who.to_owned(),
            from: current.clone(),
            to,
            digest,
            started_at: clock::rfc3339(now),
            started_ms: now.as_millisecond(),
            durations: std::collections::BTreeMap::new(),
        };
        *shown = Some(view(&attempt, "staging", "preparing the release"));
        drop(shown);
        let manager = Arc::clone(self);
        let bus = bus.clone();
        lock(&self.tasks).spawn(async move { manager.transact(attempt, received, bus).await });
        Ok(ticket)
    }

    /// Returns when this image journaled a trial, on the monotonic clock.
    pub fn trial_ns(&self) -> Option<u64> {
        *lock(&self.trial_ns)
    }

    /// Shows that the last step of this image has come.
    pub fn about_to_exec(&self) {
        if let (State::Trial { .. }, Some(attempt)) = (&self.journal().state, self.journal().attempt)
            && lock(&self.trial_ns).is_some()
        {
            self.step(&attempt, "exec", &format!("executing the runtime of release {}", attempt.to));
        }
    }

    /// Returns whether this image ends so that the guard selects the release anew.
    pub fn yields_to_guard(&self) -> bool {
        self.yields_to_guard.load(Ordering::Relaxed)
    }

    /// Runs `work` as long as this process image lives.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).spawn(work);
    }

    /// Ends every task of the manager: this process image is over.
    pub fn end(&self) {
        lock(&self.tasks).abort_all();
    }

    /// Returns the journal; one that a full disk left in `Staged`, with nothing under way, is ended first.
    fn idle_journal(&self) -> Result<Journal, UpdateError> {
        let journal = self.journal();
        if !matches!(journal.state, State::Staged { .. }) {
            return Ok(journal);
        }
        let ending = Ending::now("staged", "the update could not be recorded".to_owned());
        let ended = journal.failed(&ending).map_err(|_| UpdateError::Busy)?;
        self.write(ended)?;
        self.record_finished()?;
        Ok(self.journal())
    }

    fn running_bus(&self) -> Result<&Bus, UpdateError> {
        match self.parts.bus.state() {
            refit_bus::State::Running if !self.tidy.load(Ordering::Acquire) => {
                Err(UpdateError::NotRunning { state: "Starting" })
            }
            refit_bus::State::Running => Ok(&self.parts.bus),
            state @ (refit_bus::State::Initial
            | refit_bus::State::Entering
            | refit_bus::State::Idle
            | refit_bus::State::Starting
            | refit_bus::State::Stopping
            | refit_bus::State::Exiting
            | refit_bus::State::Exited) => Err(UpdateError::NotRunning { state: state.name() }),
        }
    }

    /// Returns the digest and version of what is asked for, and whether it lies in staging.
    fn resolve(&self, target: Target, journal: &Journal) -> Result<(Digest, Version, bool), UpdateError> {
        let store = &self.parts.store;
        let installed = |version: &Version| match store.release(version) {
            Ok(release) => Ok((release.digest, version.clone(), false)),
            Err(refit_updater::release::StoreError::Unknown { .. }) => {
                Err(UpdateError::UnknownRelease { version: version.clone() })
            }
            Err(error) => Err(error.into()),
        };
        match target {
            Target::Digest(digest) => match store.received(&digest)? {
                Some(received) => Ok((digest, received.manifest.version().clone(), true)),
                None => Err(UpdateError::UnknownPackage { digest }),
            },
            Target::Version(version) => installed(&version),
            Target::Previous => installed(journal.previous().ok_or(UpdateError::NoPrevious)?),
        }
    }

    /// Ends the trial of the running release. Returns how to go back.
    fn abandon_trial(&self, ending: &Ending) -> Option<Arc<Replacement>> {
        let journal = self.journal();
        let State::Trial { previous, .. } = &journal.state else { return None };
        let previous = previous.clone();
        let attempt = journal.attempt.clone();
        let failed = match journal.failed(ending) {
            Ok(failed) => failed,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot end the trial");
                return None;
            }
        };
        if let Err(error) = self.write(failed) {
            // The journal still says Trial without starts left: the guard goes back when this process ends.
            tracing::error!(error = %Chain(&error), "cannot journal the end of the trial");
            return None;
        }
        if let Some(attempt) = &attempt {
            let text = format!("going back to release {previous}");
            *lock(&self.view) = Some(view(attempt, "rolling-back", &text));
            self.publish_step(attempt, "rolling-back", &text, Some(ending));
        }
        match self.way_back(&previous) {
            Ok(replacement) => Some(replacement),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot plan the way back; ending instead");
                None
            }
        }
    }

    fn way_back(&self, previous: &Version) -> Result<Arc<Replacement>, UpdateError> {
        let release = self.parts.store.release(previous)?;
        let local = self.parts.context.home.path().join(crate::config::LOCAL_FILE);
        let config = Config::load(&release.dir, &local)
            .map_err(|source| UpdateError::Config { version: previous.clone(), source })?;
        let program =
            config.runtime.as_ref().map_or_else(|| self.parts.installed.clone(), |program| release.dir.join(program));
        self.replacement(&preflight::Examined { release, config, program })
    }

    /// Decides what follows a failed start: the way back if this release is on trial.
    pub fn start_failed(&self, faults: &[Fault]) -> Option<Arc<Replacement>> {
        let first = faults.first()?;
        let reason = format!("component {} did not start: {}", first.component, first.cause);
        let mut ending = Ending::now("starting", reason);
        ending.component = Some(first.component.clone());
        ending.output.clone_from(&first.output);
        self.abandon_trial(&ending)
    }

    /// Goes on once the site runs: tells how the last attempt ended, and watches a release on trial.
    pub fn site_runs(self: &Arc<Self>) {
        if let Some(entry) = lock(&self.finished).take() {
            self.tell_finished(&entry);
        }
        let journal = self.journal();
        if let (State::Trial { .. }, Some(mut attempt)) = (&journal.state, journal.attempt) {
            self.parts.times.record(&mut attempt, clock::monotonic_ns());
            let manager = Arc::clone(self);
            lock(&self.tasks).spawn(async move { manager.watch_trial(attempt).await });
        } else {
            *lock(&self.view) = None;
        }
    }

    fn tell_finished(&self, entry: &Entry) {
        let step = match entry.outcome {
            Outcome::Done => "committed",
            Outcome::RolledBack => "rolled-back",
            Outcome::Failed => "failed",
        };
        let reason = entry.reason.clone().unwrap_or_default();
        let text = match entry.outcome {
            Outcome::Done => format!("release {} is good", entry.to),
            Outcome::RolledBack | Outcome::Failed => format!("release {} runs again", entry.from),
        };
        let data = json!({
            "id": entry.id, "kind": entry.kind, "step": step, "from": entry.from, "to": entry.to,
            "text": text, "reason": reason, "component": entry.component,
            "output": entry.output,
        });
        let registry = &self.parts.context.registry;
        registry.events.publish("update.step", data);
        let text = match entry.outcome {
            Outcome::Done => None,
            Outcome::RolledBack => Some(format!("rolled back to {}: {reason}", entry.from)),
            Outcome::Failed => Some(reason),
        };
        registry.tickets.resolve(&entry.id, if text.is_none() { "done" } else { "failed" }, text);
        registry.save();
    }

    /// Removes the releases that nobody needs any more. Blocks.
    fn prune(&self) {
        let journal = self.journal();
        let keep = self.parts.config.update.keep;
        let mut needed: BTreeSet<Version> = self.parts.context.registry.releases_in_use().into_iter().collect();
        needed.insert(journal.state.wanted().clone());
        needed.extend(journal.good.iter().rev().take(keep.max(2)).cloned());
        let versions = match self.parts.store.versions() {
            Ok(versions) => versions,
            Err(error) => return tracing::warn!(error = %Chain(&error), "cannot list the releases"),
        };
        let mut kept_good = journal.good.clone();
        for version in versions {
            if needed.contains(&version) {
                continue;
            }
            match self.parts.store.remove(&version) {
                Ok(()) => {
                    tracing::info!(release.version = %version, "release removed");
                    kept_good.retain(|good| *good != version);
                }
                Err(error) => {
                    tracing::warn!(release.version = %version, error = %Chain(&error), "cannot remove a release")
                }
            }
        }
        if kept_good != journal.good
            && let Err(error) = self.write(Journal { good: kept_good, ..journal })
        {
            tracing::warn!(error = %Chain(&error), "cannot journal the removal of releases");
        }
    }

    /// Returns the fingerprint of each component of the running release.
    ///
    /// # Errors
    /// The live configuration cannot be read.
    pub fn fingerprints(config: &Config, release: &Release, live: &std::path::Path) -> std::io::Result<Vec<String>> {
        config.components.iter().map(|component| fingerprint::of(component, config, &release.manifest, live)).collect()
    }
}

impl Times {
    /// Adds to `attempt` how long stopping, exec and starting took, now that the site runs.
    fn record(self, attempt: &mut Attempt, now_ns: u64) {
        let mut add = |step: &str, from: Option<u64>, to: Option<u64>| {
            if let (Some(from), Some(to)) = (from, to) {
                attempt.durations.insert(step.to_owned(), to.saturating_sub(from) / 1_000_000);
            }
        };
        add("stopping", self.trial_ns, self.exec_ns);
        add("exec", self.exec_ns, Some(self.begun_ns));
        add("starting", Some(self.begun_ns), Some(now_ns));
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Update => "update",
        Kind::Rollback => "rollback",
    }
}

fn millis(since: std::time::Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn view(attempt: &Attempt, phase: &str, step: &str) -> UpdateView {
    UpdateView {
        id: attempt.id.clone(),
        kind: attempt.kind,
        phase: phase.to_owned(),
        from: attempt.from.clone(),
        to: attempt.to.clone(),
        progress: 0.0,
        step: step.to_owned(),
        started_at: attempt.started_at.clone(),
        probation_ends_at: None,
    }
}
