//! The trial: the new release runs and has to prove healthy before it stays.
//!
//! Judged are the components' own health, that none of them ends, and from outside that every listener is really accepted from.
//! What somebody has stopped proves nothing: the trial waits for it. The verdict is journaled before anything follows from it.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use refit_base::{Chain, clock, lock};
use refit_bus::{self as bus, Fault, Origin, Replacement, Request};
use refit_updater::attempt::{Attempt, Ending};
use refit_updater::history::Entry;
use refit_updater::journal::{Journal, State};
use semver::Version;
use serde_json::json;

use super::error::UpdateError;
use super::journal::JournalKeeper;
use super::parts::{Parts, millis};
use super::plan;
use super::preflight::Examined;
use super::steps::Steps;
use crate::component::{Health, State as ComponentState, View};
use crate::config::{ADMIN, Config, LOCAL_FILE};
use crate::handover::listener;

/// How long each listener may take to accept a connection, whatever the load.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often the progress of the probation is shown, unless a hundredth of it is longer.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// The owner of the trial that this image began with, if it did.
pub(super) struct Trial {
    parts: Arc<Parts>,
    journal: Arc<JournalKeeper>,
    steps: Arc<Steps>,
    /// An attempt that the journal had finished when this image started: told to everybody once the site runs.
    finished: Mutex<Option<Entry>>,
    /// Whether this image ends so that the guard selects the release anew.
    yields_to_guard: AtomicBool,
}

impl Trial {
    pub(super) fn new(parts: Arc<Parts>, journal: Arc<JournalKeeper>, steps: Arc<Steps>) -> Self {
        let finished = Mutex::new(parts.journal.finished.clone());
        Self { parts, journal, steps, finished, yields_to_guard: AtomicBool::new(false) }
    }

    /// Shows that the release on trial starts, if this image begins with one.
    pub(super) fn show_start(&self) {
        if let (State::Trial { .. }, Some(attempt)) = (&self.parts.journal.state, &self.parts.journal.attempt) {
            self.steps.begin(attempt, "starting", &format!("release {} starts", attempt.to));
        }
    }

    /// Returns whether this image ends so that the guard selects the release anew.
    pub(super) fn yields_to_guard(&self) -> bool {
        self.yields_to_guard.load(Ordering::Relaxed)
    }

    /// Goes on once the site runs: tells how the last attempt ended. Returns the attempt that is on trial, for
    /// [`Trial::watch`].
    pub(super) fn site_runs(&self) -> Option<Attempt> {
        if let Some(entry) = lock(&self.finished).take() {
            self.steps.publish_finished(&entry);
        }
        let journal = self.journal.current();
        if let (State::Trial { .. }, Some(mut attempt)) = (&journal.state, journal.attempt) {
            self.parts.times.record(&mut attempt, clock::monotonic_ns());
            Some(attempt)
        } else {
            self.steps.clear();
            None
        }
    }

    /// Watches the release on trial until there is a verdict.
    pub(super) async fn watch(self: Arc<Self>, mut attempt: Attempt) {
        let begun = Instant::now();
        let limit = self.parts.config.update.probation;
        let text = format!("watching release {} for {} s", attempt.to, limit.as_secs_f32());
        self.steps.begin(&attempt, "probation", &text);
        let mut waited_from = begun;
        let verdict = loop {
            if let Err(ending) = self.probation(&attempt, &mut waited_from, limit).await {
                break Err(ending);
            }
            let tried = self.try_listeners().await;
            // Trying the listeners takes time, too: what was well before must still be, and what was stopped says nothing.
            let views = self.views();
            let is_stopped = self.stopped(&views).is_some();
            if !is_stopped && (tried.is_err() || views.iter().all(is_well)) {
                break tried;
            }
        };
        attempt.durations.insert("probation".to_owned(), millis(begun));
        match verdict {
            Ok(()) => self.commit(attempt).await,
            Err(ending) => {
                let bus = &self.parts.bus;
                match self.abandon(&ending) {
                    Some(replacement) => {
                        drop(bus.request(Request::Rollback(replacement), Origin("trial".to_owned())));
                    }
                    // The guard decides: the journal says which release is next.
                    None => {
                        self.yields_to_guard.store(true, Ordering::Relaxed);
                        drop(bus.request(Request::Exit, Origin("trial".to_owned())));
                    }
                }
            }
        }
    }

    fn views(&self) -> Vec<View> {
        self.parts.components.iter().map(|component| component.view().borrow().clone()).collect()
    }

    /// Returns what somebody has stopped, if anything.
    fn stopped(&self, views: &[View]) -> Option<String> {
        if self.parts.bus.state() != bus::State::Running {
            return Some("the site is stopped".to_owned());
        }
        let stopped = views.iter().find(|view| view.state == ComponentState::Stopped && !view.wanted)?;
        Some(format!("component {} is stopped", stopped.name))
    }

    /// Waits until everything has been healthy for `limit`. Patience counts from `waited_from`, which what is stopped moves.
    ///
    /// # Errors
    /// What is not healthy.
    async fn probation(&self, attempt: &Attempt, waited_from: &mut Instant, limit: Duration) -> Result<(), Ending> {
        let patience = limit + self.parts.config.update.start_timeout;
        let every = PROGRESS_EVERY.max(limit / 100);
        let mut watched: Vec<_> = self.parts.components.iter().map(|component| component.view()).collect();
        let (mut healthy_since, mut told) = (None, None);
        loop {
            let views: Vec<View> = watched.iter_mut().map(|view| view.borrow_and_update().clone()).collect();
            if let Some(ending) = views.iter().find_map(|view| self.problem(view)) {
                return Err(ending);
            }
            let waiting: Vec<&str> =
                views.iter().filter(|view| !is_well(view)).map(|view| view.name.as_str()).collect();
            let stopped = self.stopped(&views);
            if let Some(what) = &stopped {
                (healthy_since, *waited_from) = (None, Instant::now());
                if stopped != told {
                    self.steps.show_progress(attempt, 0.0, None, format!("waiting: {what}"));
                }
            } else if waiting.is_empty() {
                let since = *healthy_since.get_or_insert_with(Instant::now);
                let done = since.elapsed();
                if done >= limit {
                    return Ok(());
                }
                let text = format!("healthy for {:.1} of {:.1} s", done.as_secs_f64(), limit.as_secs_f64());
                self.steps.show_progress(attempt, done.div_duration_f64(limit), Some(limit - done), text);
            } else {
                healthy_since = None;
                if waited_from.elapsed() >= patience {
                    let text = format!("{} did not become healthy in time", waiting.join(", "));
                    let mut ending = Ending::now("probation", text);
                    ending.component = waiting.first().map(|name| (*name).to_owned());
                    return Err(ending);
                }
            }
            told = stopped;
            let left = healthy_since.map_or(every, |since: Instant| limit.saturating_sub(since.elapsed()).min(every));
            let changes = watched.iter_mut().map(|view| Box::pin(view.changed()));
            // Cancel-safe: both only wait; what has changed is read above. Without components there is nothing to hear of.
            if self.parts.components.is_empty() {
                tokio::time::sleep(left).await;
            } else {
                tokio::select! {
                    _ = futures_util::future::select_all(changes) => {}
                    () = tokio::time::sleep(left) => {}
                }
            }
        }
    }

    /// Returns why the trial is lost, if what `view` shows means that.
    fn problem(&self, view: &View) -> Option<Ending> {
        let reason = match (&view.health, view.state) {
            _ if view.unexpected_exits > 0 => view.reason.clone().unwrap_or_else(|| "ended by itself".to_owned()),
            (_, ComponentState::Failed | ComponentState::Backoff) => {
                view.reason.clone().unwrap_or_else(|| "failed".to_owned())
            }
            (health, _) => match health {
                Health::Unhealthy(reason) => format!("is unhealthy: {reason}"),
                Health::None | Health::Unknown | Health::Doubtful(_) | Health::Healthy => return None,
            },
        };
        let mut ending = Ending::now("probation", format!("component {} {reason}", view.name));
        ending.component = Some(view.name.clone());
        ending.output = if view.output.is_empty() {
            let logs = &self.parts.context.registry.logs;
            let instance = format!("{}-{}", view.name, view.generation);
            logs.last_of(&view.name, &instance, refit_updater::history::OUTPUT_LINES_MAX)
        } else {
            view.output.clone()
        };
        Some(ending)
    }

    /// Makes a real connection to every listener: one that nobody accepts from is a dead port.
    ///
    /// # Errors
    /// A listener does not answer.
    async fn try_listeners(&self) -> Result<(), Ending> {
        let config = &self.parts.config;
        let addresses = lock(&self.parts.context.listeners).addresses();
        for (name, address) in addresses {
            let owner = config.components.iter().find(|component| component.listeners.contains(&name));
            if owner.is_none() && name != ADMIN {
                continue; // declared, but nobody's yet
            }
            let socket = lock(&self.parts.context.listeners).get(&name).map(TcpListener::try_clone);
            let answered = match socket {
                Some(Ok(socket)) => listener::answers(&socket, ANSWER_MAX).await,
                Some(Err(error)) => Err(error),
                None => continue,
            };
            let why = match answered {
                Ok(true) => continue,
                Ok(false) => format!("nobody accepted a connection within {} s", ANSWER_MAX.as_secs()),
                Err(error) => error.to_string(),
            };
            let mut ending = Ending::now("probation", format!("the listener {name} at {address} is dead: {why}"));
            ending.component = owner.map(|component| component.name.clone());
            return Err(ending);
        }
        Ok(())
    }

    /// Makes the release on trial the good one.
    async fn commit(self: Arc<Self>, attempt: Attempt) {
        let trial = Arc::clone(&self);
        let committed = attempt.clone();
        let work = move || {
            let mut journal = trial.journal.current();
            journal.attempt = Some(committed.clone());
            let healthy = journal.healthy(&Ending::now("committed", String::new()));
            match healthy {
                Ok(journal) => trial.journal.write(journal).and_then(|()| trial.journal.record_finished()),
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "cannot commit the release");
                    Ok(())
                }
            }
        };
        let result = tokio::task::spawn_blocking(work).await;
        if let Ok(Err(error)) = &result {
            // Without a journal entry the release stays on trial: the next start goes back, which is safe.
            tracing::error!(error = %Chain(error), "cannot journal the commit");
            return;
        }
        for name in lock(&self.parts.context.listeners).close_aside() {
            self.parts.context.registry.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
        }
        let trial = Arc::clone(&self);
        let pruned = tokio::task::spawn_blocking(move || trial.prune()).await;
        if let Err(error) = pruned {
            tracing::warn!(%error, "cannot remove old releases");
        }
        self.steps.clear();
        let text = format!("release {} is good", attempt.to);
        tracing::info!(update.id = attempt.id, "{text}");
        self.steps.publish(&attempt, "committed", &text, None);
        let registry = &self.parts.context.registry;
        registry.events.publish("release", json!({ "version": attempt.to, "state": "good" }));
        registry.tickets.resolve(&attempt.id, "done", None);
        registry.save();
    }

    /// Ends the trial of the running release. Returns how to go back.
    fn abandon(&self, ending: &Ending) -> Option<Arc<Replacement>> {
        let journal = self.journal.current();
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
        if let Err(error) = self.journal.write(failed) {
            // The journal still says Trial without starts left: the guard goes back when this process ends.
            tracing::error!(error = %Chain(&error), "cannot journal the end of the trial");
            return None;
        }
        if let Some(attempt) = &attempt {
            let text = format!("going back to release {previous}");
            self.steps.show(attempt, "rolling-back", &text);
            self.steps.publish(attempt, "rolling-back", &text, Some(ending));
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
        let local = self.parts.context.home.path().join(LOCAL_FILE);
        let config = Config::load(&release.dir, &local)
            .map_err(|source| UpdateError::Config { version: previous.clone(), source })?;
        let program =
            config.runtime.as_ref().map_or_else(|| self.parts.installed.clone(), |program| release.dir.join(program));
        plan::replacement(&self.parts, &Examined { release, config, program })
    }

    /// Decides what follows a failed start: the way back if this release is on trial.
    pub(super) fn start_failed(&self, faults: &[Fault]) -> Option<Arc<Replacement>> {
        let first = faults.first()?;
        let reason = format!("component {} did not start: {}", first.component, first.cause);
        let mut ending = Ending::now("starting", reason);
        ending.component = Some(first.component.clone());
        ending.output.clone_from(&first.output);
        self.abandon(&ending)
    }

    /// Removes the releases that nobody needs any more. Blocks.
    fn prune(&self) {
        let journal = self.journal.current();
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
            && let Err(error) = self.journal.write(Journal { good: kept_good, ..journal })
        {
            tracing::warn!(error = %Chain(&error), "cannot journal the removal of releases");
        }
    }
}

/// Returns whether a component is as it should be in the end.
fn is_well(view: &View) -> bool {
    match view.state {
        ComponentState::Stopped => view.wanted, // it has done its work
        ComponentState::Starting | ComponentState::Stopping | ComponentState::Backoff | ComponentState::Failed => false,
        ComponentState::Running => match &view.health {
            Health::None | Health::Healthy => true,
            Health::Unknown | Health::Doubtful(_) | Health::Unhealthy(_) => false,
        },
    }
}
