//! The update manager: one transaction from a received package to a release that proved good, or back.
//!
//! [`Manager`] drives the updater, the bus and the handover through the states of the journal, which is written before each
//! act. It ends with this process image asking to be replaced; the next image goes on with [`trial`]. Whatever fails before the
//! trial leaves the running release untouched; whatever fails in it ends in the previous one, with the reason in the history.

mod error;
mod plan;
mod preflight;
mod receiving;
mod trial;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use refit_updater::history::{self, Entry};
use refit_updater::journal::{self, Attempt, Ending, Event, Journal, Kind, State};
use refit_updater::release::Release;
use refit_updater::trust::Trust;
use refit_updater::{Digest, Store};
use semver::Version;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use crate::bus::{Bus, Fault, Origin, Progress, Replacement, Request};
use crate::clock;
use crate::component::{Process, Surroundings, fingerprint};
use crate::config::Config;
use crate::error::Chain;
use crate::tickets::TicketView;

pub use error::UpdateError;
pub use receiving::PackageView;

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
    /// Where components run.
    pub around: Arc<Surroundings>,
    /// The components.
    pub components: Vec<Arc<Process>>,
    /// The installed `refit`.
    pub installed: PathBuf,
    /// The bus that it asks.
    pub bus: Bus,
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
    tasks: Mutex<JoinSet<()>>,
    /// Whether this image ends so that the guard selects the release anew.
    gives_way: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Manager {
    /// Returns the manager.
    ///
    /// An attempt that the journal says is finished is put into the history first.
    ///
    /// # Errors
    /// The history or the journal cannot be written.
    pub fn new(mut parts: Parts) -> Result<Self, UpdateError> {
        let home = parts.store.home().to_owned();
        let finished = parts.journal.finished.take();
        if let Some(entry) = &finished {
            history::append(&home, entry).map_err(|source| UpdateError::Io { what: "write the history", source })?;
            journal::store(&home, &parts.journal)?;
        }
        parts.store.point_current(parts.journal.state.wanted())?;
        let manager = Self {
            journal: Mutex::new(parts.journal.clone()),
            view: Mutex::new(None),
            parts,
            gives_way: AtomicBool::new(false),
            finished: Mutex::new(finished),
            receiving: Arc::new(tokio::sync::Semaphore::new(1)),
            tasks: Mutex::new(JoinSet::new()),
        };
        if let (State::Trial { .. }, Some(attempt)) = (&manager.parts.journal.state, &manager.parts.journal.attempt) {
            manager.step(attempt, "starting", &format!("release {} starts", attempt.to));
        }
        Ok(manager)
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
        self.parts.around.estate.events.publish("update.step", data);
    }

    fn ending(step: &str, reason: String) -> Ending {
        let now = clock::now();
        Ending {
            at: clock::rfc3339(now),
            at_ms: now.as_millisecond(),
            step: step.to_owned(),
            reason,
            component: None,
            output: Vec::new(),
        }
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
        let journal = self.journal();
        let State::Idle { current } = &journal.state else { return Err(UpdateError::Busy) };
        let (digest, to, received) = self.resolve(target, &journal)?;
        if to == *current && !received {
            return Err(UpdateError::Runs { version: to });
        }
        let now = clock::now();
        let ticket = self.parts.around.estate.tickets.open(kind_name(kind), who);
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

    /// Returns whether this image ends so that the guard selects the release anew.
    pub fn gives_way(&self) -> bool {
        self.gives_way.load(Ordering::Relaxed)
    }

    /// Runs `work` as long as this process image lives.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).spawn(work);
    }

    /// Ends every task of the manager: this process image is over.
    pub fn end(&self) {
        lock(&self.tasks).abort_all();
    }

    fn running_bus(&self) -> Result<&Bus, UpdateError> {
        match self.parts.bus.state() {
            crate::bus::State::Running => Ok(&self.parts.bus),
            state @ (crate::bus::State::Initial
            | crate::bus::State::Entering
            | crate::bus::State::Idle
            | crate::bus::State::Starting
            | crate::bus::State::Stopping
            | crate::bus::State::Exiting
            | crate::bus::State::Exited) => Err(UpdateError::NotRunning { state: state.name() }),
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

    /// Drives one attempt up to the request that replaces this image, or to its failure.
    async fn transact(self: Arc<Self>, mut attempt: Attempt, received: bool, bus: Bus) {
        let result = self.prepare(&mut attempt, received).await;
        let failed = match result {
            Ok(replacement) => {
                let text = format!("stopping what release {} replaces", attempt.to);
                self.step(&attempt, "stopping", &text);
                let request = match attempt.kind {
                    Kind::Update => Request::Update(replacement),
                    Kind::Rollback => Request::Rollback(replacement),
                };
                let ticket = bus.request(request, Origin(attempt.who.clone()));
                match ticket.outcome().await {
                    Progress::Done | Progress::Already => return, // the next image goes on
                    Progress::Refused(reason) | Progress::Failed(reason) => ("stopping", UpdateError::Bus { reason }),
                    Progress::Accepted => return,
                }
            }
            Err(failed) => failed,
        };
        let (step, error) = failed;
        let mut ending = Self::ending(step, error::reason(&error));
        ending.output = error.output();
        self.give_up(&attempt, &ending);
    }

    /// Ends an attempt whose release was not started.
    fn give_up(&self, attempt: &Attempt, ending: &Ending) {
        let journal = self.journal();
        let result = match journal.state {
            State::Idle { .. } => {
                // It failed before the journal knew of it.
                let mut journal = journal;
                journal.finished = Some(Entry::of(attempt.clone(), refit_updater::history::Outcome::Failed, ending));
                self.write(journal)
            }
            State::Staged { .. } | State::Trial { .. } => match journal.failed(ending) {
                Ok(journal) => self.write(journal),
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "cannot end the update");
                    Ok(())
                }
            },
        };
        if let Err(error) = result.and_then(|()| self.record_finished()) {
            tracing::error!(error = %Chain(&error), "cannot record the end of the update");
        }
        *lock(&self.view) = None;
        self.publish_step(attempt, "failed", "the update failed; the running release is untouched", Some(ending));
        self.parts.around.estate.tickets.resolve(&attempt.id, "failed", Some(ending.reason.clone()));
        self.parts.around.estate.save();
    }

    /// Moves the finished attempt from the journal into the history.
    fn record_finished(&self) -> Result<(), UpdateError> {
        let mut journal = self.journal();
        let Some(entry) = journal.finished.take() else { return Ok(()) };
        history::append(self.parts.store.home(), &entry)
            .map_err(|source| UpdateError::Io { what: "write the history", source })?;
        self.write(journal)
    }

    /// Does everything before the stop. Returns how this image is to be replaced.
    ///
    /// # Errors
    /// The step it failed in, and why.
    async fn prepare(
        self: &Arc<Self>,
        attempt: &mut Attempt,
        received: bool,
    ) -> Result<Arc<Replacement>, (&'static str, UpdateError)> {
        let begun = std::time::Instant::now();
        let release = self.clone().stage(attempt.clone(), received).await.map_err(|error| ("staged", error))?;
        attempt.durations.insert("staging".to_owned(), millis(begun));
        self.step(attempt, "staged", &format!("release {} is complete on disk", attempt.to));

        let begun = std::time::Instant::now();
        self.step(attempt, "preflight", &format!("examining release {}", attempt.to));
        let preflight = |error| ("preflight", error);
        let examined = self.examine(release, attempt).await.map_err(preflight)?;
        let replacement = self.replacement(&examined).map_err(preflight)?;
        attempt.durations.insert("preflight".to_owned(), millis(begun));

        let journal = self.journal();
        let approved = journal.state.clone().next(Event::Approved).and_then(|state| state.next(Event::Started));
        let state = approved.map_err(|error| preflight(UpdateError::Bus { reason: Chain(&error).to_string() }))?;
        self.write(Journal { state, attempt: Some(attempt.clone()), ..journal }).map_err(preflight)?;
        self.step(attempt, "trial", &format!("release {} is on trial from now on", attempt.to));
        Ok(replacement)
    }

    /// Gives the release its place and journals it as the next.
    async fn stage(self: Arc<Self>, attempt: Attempt, received: bool) -> Result<Release, UpdateError> {
        let work = move || {
            let store = &self.parts.store;
            let journal = self.journal();
            let release = if received {
                let package =
                    store.received(&attempt.digest)?.ok_or(UpdateError::UnknownPackage { digest: attempt.digest })?;
                let in_use: BTreeSet<Version> =
                    self.parts.around.estate.releases_in_use().into_iter().chain([attempt.from.clone()]).collect();
                let replaceable: Vec<Version> =
                    (!in_use.contains(&attempt.to)).then(|| attempt.to.clone()).into_iter().collect();
                store.admit(package, &replaceable)?
            } else {
                let report = store.verify(&attempt.to, &mut |_| {})?;
                if let Some(problem) = report.problems.first() {
                    return Err(UpdateError::Damaged { version: attempt.to.clone(), what: problem.to_string() });
                }
                store.release(&attempt.to)?
            };
            let state = journal.state.clone().next(Event::Admitted(attempt.to.clone()));
            let state = state.map_err(|_| UpdateError::Busy)?;
            self.write(Journal { state, attempt: Some(attempt.clone()), ..journal })?;
            preflight::merge(store, &attempt.from, &attempt.to, attempt.kind == Kind::Rollback)?;
            Ok(release)
        };
        tokio::task::spawn_blocking(work).await.map_err(|source| UpdateError::Worker { source })?
    }

    async fn examine(&self, release: Release, _attempt: &Attempt) -> Result<preflight::Examined, UpdateError> {
        let bound: Vec<_> = lock(&self.parts.around.listeners).addresses().into_iter().map(|(_, at)| at).collect();
        let home = &self.parts.around.home;
        preflight::examine(home, release, &self.parts.config.name, &bound, &self.parts.installed).await
    }

    fn replacement(&self, examined: &preflight::Examined) -> Result<Arc<Replacement>, UpdateError> {
        let running = self.parts.around.estate.instances();
        let live = self.parts.store.config_dir(&examined.release.version);
        let leave = plan::leave(&running, &examined.config, &examined.release.manifest, &live)
            .map_err(|source| UpdateError::Io { what: "read the live configuration", source })?;
        Ok(Arc::new(Replacement {
            label: examined.release.version.to_string(),
            program: examined.program.clone(),
            leave,
        }))
    }

    /// Returns the replacement of this image by a new one of the same release: every component stays.
    pub fn restart_in_place(&self) -> Arc<Replacement> {
        let config = &self.parts.config;
        let program = config
            .runtime
            .as_ref()
            .map_or_else(|| self.parts.installed.clone(), |program| self.parts.around.release_dir.join(program));
        Arc::new(Replacement {
            label: config.version.to_string(),
            program,
            leave: config.components.iter().map(|component| component.name.clone()).collect(),
        })
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
        let local = self.parts.around.home.path().join(crate::config::LOCAL_FILE);
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
        let mut ending = Self::ending("starting", reason);
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
        if let (State::Trial { .. }, Some(attempt)) = (&journal.state, journal.attempt) {
            let manager = Arc::clone(self);
            lock(&self.tasks).spawn(async move { manager.watch_trial(attempt).await });
        } else {
            *lock(&self.view) = None;
        }
    }

    fn tell_finished(&self, entry: &Entry) {
        let step = match entry.outcome {
            history::Outcome::Done => "committed",
            history::Outcome::RolledBack => "rolled-back",
            history::Outcome::Failed => "failed",
        };
        let reason = entry.reason.clone().unwrap_or_default();
        let data = json!({
            "id": entry.id, "kind": entry.kind, "step": step, "from": entry.from, "to": entry.to,
            "text": format!("release {} runs again", entry.from), "reason": reason, "component": entry.component,
            "output": entry.output,
        });
        let estate = &self.parts.around.estate;
        estate.events.publish("update.step", data);
        let text = match entry.outcome {
            history::Outcome::Done => None,
            history::Outcome::RolledBack => Some(format!("rolled back to {}: {reason}", entry.from)),
            history::Outcome::Failed => Some(reason),
        };
        estate.tickets.resolve(&entry.id, if text.is_none() { "done" } else { "failed" }, text);
        estate.save();
    }

    /// Removes the releases that nobody needs any more. Blocks.
    fn prune(&self) {
        let journal = self.journal();
        let keep = self.parts.config.update.keep;
        let mut needed: BTreeSet<Version> = self.parts.around.estate.releases_in_use().into_iter().collect();
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
