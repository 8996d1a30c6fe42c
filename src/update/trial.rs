//! The trial: the new release runs and has to prove healthy before it stays.
//!
//! [`Probation`] judges; the verdict is journaled here before anything follows from it. A verdict that cannot be journaled is none
//! yet: a healthy release is watched on until the disk takes it, one that failed is left to the guard, which finds a trial without
//! starts in the journal.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use refit_base::{Cause, Chain, clock, lock};
use refit_bus::{self as bus, Fault, Origin, Progress, Replacement, Request};
use refit_updater::attempt::{Attempt, Ending, Kind, Step};
use refit_updater::history::Entry;
use refit_updater::journal::State;
use semver::Version;

use super::error::UpdateError;
use super::parts::{blocking, millis};
use super::plan;
use super::preflight::Examined;
use super::probation::Probation;
use super::shared::Shared;
use crate::config::{Config, LOCAL_FILE};

/// The pause before a commit is written again that could not be; doubled each time.
const COMMIT_AGAIN_MIN: Duration = Duration::from_millis(250);
/// The longest pause: a disk that an admin has repaired is noticed soon.
const COMMIT_AGAIN_MAX: Duration = Duration::from_secs(5);
/// How often the end of a trial is written before the guard is left to find it: what passes at once need not stop the components.
const END_TRIES: u32 = 5;
/// For how long the removal of old releases holds up the news that the new one is good.
const PRUNE_WAITED_MAX: Duration = Duration::from_secs(5);

/// The owner of the trial that this image began with, if it did.
pub(super) struct Trial {
    shared: Shared,
    probation: Probation,
    /// Attempts that the journal had finished when this image started: told to everybody once the site runs.
    finished: Mutex<Vec<Entry>>,
    /// Whether this image ends so that the guard selects the release anew.
    yields_to_guard: AtomicBool,
}

impl Trial {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            probation: Probation::new(Arc::clone(&shared.parts), Arc::clone(&shared.steps)),
            finished: Mutex::new(shared.parts.journal.finished.clone()),
            yields_to_guard: AtomicBool::new(false),
            shared: shared.clone(),
        }
    }

    /// Shows that the release on trial starts, if this image begins with one.
    pub(super) fn show_start(&self) {
        if let Some(attempt) = self.on_trial() {
            self.shared.steps.begin(&attempt, Step::Starting, &format!("release {} starts", attempt.to));
        }
    }

    /// Returns whether this image ends so that the guard selects the release anew.
    pub(super) fn yields_to_guard(&self) -> bool {
        self.yields_to_guard.load(Ordering::Relaxed)
    }

    /// Returns the attempt whose release is on trial.
    fn on_trial(&self) -> Option<Attempt> {
        let journal = self.shared.journal.current();
        let State::Trial { previous, next, .. } = journal.state else { return None };
        // A journal that was written by hand may lack it; the trial has to end all the same.
        Some(journal.attempt.unwrap_or_else(|| {
            let (id, digest) = (format!("trial-of-{next}"), self.shared.parts.digest);
            Attempt::begin(&id, Kind::Update, "unknown", previous, next, digest, clock::now())
        }))
    }

    /// Goes on once the site runs: tells how attempts ended that this image did not see. Returns the one that is on trial, for
    /// [`Trial::watch`].
    pub(super) async fn site_runs(&self) -> Option<Attempt> {
        let finished = std::mem::take(&mut *lock(&self.finished));
        let mut attempt = self.on_trial();
        self.shared.endings.settle(&finished, attempt.as_ref()).await;
        if let Some(attempt) = &mut attempt {
            self.shared.parts.times.record(attempt, clock::monotonic_ns());
        }
        attempt
    }

    /// Watches the release on trial until there is a verdict, and does what follows from it.
    pub(super) async fn watch(self: Arc<Self>, attempt: Attempt) {
        let judged = AssertUnwindSafe(self.judge(attempt)).catch_unwind().await;
        let reason = || "the trial ended by a mistake of refit; its log says where".to_owned();
        let ending = match judged {
            Ok(Ok(())) => return,
            Ok(Err(ending)) => ending,
            Err(_panic) => Ending::now(Step::Probation, reason()).with_cause(Cause::Machine).with_code("internal"),
        };
        self.go_back(&ending).await;
    }

    /// Watches the release on trial until it is good.
    ///
    /// # Errors
    /// Why it is not.
    async fn judge(&self, mut attempt: Attempt) -> Result<(), Ending> {
        // What has failed since it was ready has cost no old process yet.
        self.probation.stay_healthy(Duration::ZERO).await?;
        self.shared.parts.context.overlap_ends.send_replace(true);
        let begun = Instant::now();
        let limit = self.shared.parts.config.update.probation;
        let text = format!("watching release {} for {} s", attempt.to, limit.as_secs_f32());
        self.shared.steps.begin(&attempt, Step::Probation, &text);
        self.probation.pass(&attempt).await?;
        attempt.durations.insert(Step::Probation.name().to_owned(), millis(begun));
        let entry = self.commit(&attempt).await?;
        self.after_commit(entry).await;
        Ok(())
    }

    /// Makes the release on trial the good one in the journal: again and again, while the release is healthy. Returns how the
    /// attempt ended.
    ///
    /// # Errors
    /// The release is not healthy any more, or the journal does not know of the trial.
    async fn commit(&self, attempt: &Attempt) -> Result<Entry, Ending> {
        let mut pause = COMMIT_AGAIN_MIN;
        let mut shown = None;
        loop {
            let why = match self.write_commit(attempt.clone()).await {
                Ok(entry) => return Ok(entry),
                Err(error @ UpdateError::Confused { .. }) => {
                    let ending = Ending::now(Step::Committing, Chain(&error).to_string());
                    return Err(ending.with_cause(Cause::Machine).with_code("journal_unusable"));
                }
                Err(error) => Chain(&error).to_string(),
            };
            // A worker that panicked is tried again, too: it has written nothing, or all.
            if shown.as_ref() != Some(&why) {
                let text = format!("healthy; cannot journal the commit: {why}; trying again");
                self.shared.steps.show_waiting(attempt, Step::Committing, &text);
                shown = Some(why);
            }
            self.probation.stay_healthy(pause).await?;
            pause = (pause * 2).min(COMMIT_AGAIN_MAX);
        }
    }

    /// Writes that the release on trial is the good one. Returns how the attempt ended.
    async fn write_commit(&self, attempt: Attempt) -> Result<Entry, UpdateError> {
        let keeper = Arc::clone(&self.shared.journal);
        let write = move || {
            let ending = Ending::now(Step::Committed, String::new());
            let journal = keeper.change(|mut journal| {
                journal.attempt = Some(attempt.clone());
                Ok(journal.healthy(&ending)?)
            })?;
            let entry = journal.finished.into_iter().rfind(|entry| entry.id == attempt.id);
            entry.ok_or(UpdateError::Panicked) // `healthy` has just added it
        };
        blocking(write).await
    }

    /// Does what follows from the commit, and tells everybody.
    async fn after_commit(&self, entry: Entry) {
        let Shared { parts, endings, .. } = &self.shared;
        for name in lock(&parts.context.listeners).close_aside() {
            parts.context.registry.drop_stored(&name);
        }
        let tidying = Arc::clone(&self.shared.house).tidy_or_log();
        if tokio::time::timeout(PRUNE_WAITED_MAX, tidying).await.is_err() {
            tracing::warn!("old releases are still being removed; the next update waits for that");
        }
        endings.conclude(entry).await;
    }

    /// Ends the trial of the running release, and has this image replaced by the previous one.
    async fn go_back(&self, ending: &Ending) {
        let bus = &self.shared.parts.bus;
        let mut replacement = None;
        for number in 1..=END_TRIES {
            match self.abandon(ending) {
                Ok(way) => {
                    replacement = way;
                    break;
                }
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "cannot journal the end of the trial");
                    if number < END_TRIES {
                        tokio::time::sleep(COMMIT_AGAIN_MIN).await;
                    }
                }
            }
        }
        if let Some(replacement) = replacement {
            let ticket = bus.request(Request::Rollback(replacement), Origin("trial".to_owned()));
            match ticket.outcome().await {
                Progress::Done | Progress::Already | Progress::Accepted => return, // the next image goes on
                Progress::Refused(reason) | Progress::Failed(reason) => {
                    tracing::error!(reason, "cannot go back in place; ending instead");
                }
            }
        }
        // The guard decides: the journal says which release is next.
        self.yields_to_guard.store(true, Ordering::Relaxed);
        drop(bus.request(Request::Exit, Origin("trial".to_owned())));
    }

    /// Ends the trial of the running release in the journal. Returns how to go back, if that can be done in place.
    ///
    /// # Errors
    /// The journal cannot be written: it still says Trial without starts left, and the guard goes back when this process ends.
    fn abandon(&self, ending: &Ending) -> Result<Option<Arc<Replacement>>, UpdateError> {
        let Some(attempt) = self.on_trial() else { return Ok(None) };
        let Shared { journal, steps, .. } = &self.shared;
        journal.change(|mut journal| {
            journal.attempt = Some(attempt.clone());
            Ok(journal.failed(ending)?)
        })?;
        let text = format!("going back to release {}", attempt.from);
        steps.show(&attempt, Step::RollingBack, &text);
        steps.publish(&attempt, Step::RollingBack, &text, Some(ending));
        match self.way_back(&attempt.from) {
            Ok(replacement) => Ok(Some(replacement)),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot plan the way back; ending instead");
                Ok(None)
            }
        }
    }

    fn way_back(&self, previous: &Version) -> Result<Arc<Replacement>, UpdateError> {
        let release = self.shared.parts.store.release(previous)?;
        let local = self.shared.parts.context.home.path().join(LOCAL_FILE);
        let config = Config::load(&release.dir, &local)
            .map_err(|source| UpdateError::Config { version: previous.clone(), source })?;
        let program =
            config.runtime.as_ref().map_or_else(|| self.shared.parts.installed(), |program| release.dir.join(program));
        plan::replacement(&self.shared.parts, &Examined { release, config, program })
    }

    /// Decides what follows a failed start: the way back if this release is on trial.
    pub(super) fn start_failed(&self, faults: &[Fault]) -> Option<Arc<Replacement>> {
        // What ended before is not to be told by a site that runs: nobody knows when one will.
        for entry in std::mem::take(&mut *lock(&self.finished)) {
            self.shared.endings.tell(&entry);
        }
        let first = faults.first()?;
        let reason = match faults {
            [only] => format!("component {} did not start: {}", only.component, only.cause),
            several => format!("{} components did not start:{}", several.len(), bus::causes(several)),
        };
        let mut ending = Ending::now(Step::Starting, reason).with_cause(first.trouble).with_code("start_failed");
        ending.component = Some(first.component.clone());
        ending.output.clone_from(&first.output);
        self.abandon(&ending).unwrap_or_else(|error| {
            tracing::error!(error = %Chain(&error), "cannot journal the end of the trial");
            None
        })
    }
}
