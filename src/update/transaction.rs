//! The transaction up to the exec: stage, examine, journal the trial, ask the bus.
//!
//! Each step is journaled before it acts. What fails here fails before anything was stopped.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::FutureExt;
use refit_base::{Chain, Exit, Reported, clock, lock};
use refit_bus::{Origin, Progress, Replacement, Request};
use refit_updater::Digest;
use refit_updater::attempt::{self, Attempt, Ending, Kind, Step};
use refit_updater::config::{self, MergeReport};
use refit_updater::journal::{Event, Journal, State};
use refit_updater::release::{Release, StoreError};
use semver::Version;

use super::ending::Endings;
use super::error::{self, UpdateError};
use super::house::House;
use super::journal::JournalKeeper;
use super::parts::{Parts, blocking, millis};
use super::shared::Shared;
use super::steps::Steps;
use super::{plan, preflight};
use crate::wire::event::ConfigMerged;
use crate::wire::{Event as Happening, MergedFile, Ticket};

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

/// The owner of an attempt, from its beginning to the request that replaces this image.
pub(super) struct Transaction {
    parts: Arc<Parts>,
    journal: Arc<JournalKeeper>,
    steps: Arc<Steps>,
    endings: Arc<Endings>,
    house: Arc<House>,
    /// When this image journaled a trial.
    trial_ns: Mutex<Option<u64>>,
}

/// An attempt that has begun.
pub(super) struct Begun {
    attempt: Attempt,
    /// Whether its release lies in staging.
    received: bool,
}

impl Transaction {
    pub(super) fn new(shared: &Shared) -> Self {
        let Shared { parts, journal, steps, endings, house } = shared.clone();
        Self { parts, journal, steps, endings, house, trial_ns: Mutex::new(None) }
    }

    /// Begins an update or a rollback: from now on it is under way. Returns its ticket, which is a new one unless there is one, and what
    /// [`Transaction::run`] goes on with.
    ///
    /// # Errors
    /// It cannot begin: nothing was changed.
    pub(super) fn begin(
        &self,
        target: Target,
        kind: Kind,
        who: &str,
        ticket: Option<Ticket>,
    ) -> Result<(Ticket, Begun), UpdateError> {
        let claim = self.steps.claim()?;
        let journal = self.idle_journal()?;
        let State::Idle { current } = &journal.state else { return Err(not_idle(&journal.state)) };
        let (digest, to, received) = self.resolve(target, &journal)?;
        if to == *current && !received {
            return Err(UpdateError::Runs { version: to });
        }
        let registry = &self.parts.context.registry;
        let ticket = ticket.unwrap_or_else(|| registry.tickets.open(kind.name().into(), who));
        let mut attempt = Attempt::begin(&ticket.id, kind, who, current.clone(), to, digest, clock::now());
        let begun_ns = clock::monotonic_ns();
        attempt.begun = attempt::Begun(Some(begun_ns));
        registry.set_attempt(&attempt.id, begun_ns);
        claim.show(&attempt, Step::Staging, "preparing the release");
        registry.save(); // whoever is given the ticket finds it again, also after a crash
        Ok((ticket, Begun { attempt, received }))
    }

    /// Drives one attempt up to the request that replaces this image, or to its failure.
    pub(super) async fn run(self: Arc<Self>, Begun { mut attempt, received }: Begun) {
        let prepared = AssertUnwindSafe(self.prepare(&mut attempt, received)).catch_unwind().await;
        let failed = match prepared {
            Ok(Ok(replacement)) => match self.ask_to_be_replaced(&attempt, replacement).await {
                Ok(()) => return, // the next image goes on
                Err(error) => (Step::Stopping, error),
            },
            Ok(Err(failed)) => failed,
            Err(_panic) => (Step::Staged, UpdateError::Panicked),
        };
        let (step, error) = failed;
        let mut ending =
            Ending::now(step, error::reason_to_fail(&error)).with_cause(error.cause()).with_code(error.reason_code());
        ending.output = error.output();
        // A disk is the admin's to mend, everything else the vendor's.
        let disk = error.exit() == Exit::Disk || error::is_disk(&error);
        ending.exit = Some(if disk { Exit::Disk } else { Exit::Failed });
        self.endings.give_up(attempt, ending).await;
        Arc::clone(&self.house).tidy_or_log().await;
    }

    /// Asks the bus to replace this image.
    ///
    /// # Errors
    /// It refuses, or fails.
    async fn ask_to_be_replaced(&self, attempt: &Attempt, replacement: Arc<Replacement>) -> Result<(), UpdateError> {
        let text = format!("stopping what release {} replaces", attempt.to);
        self.steps.begin(attempt, Step::Stopping, &text);
        let request = match attempt.kind {
            Kind::Update => Request::Update(replacement),
            Kind::Rollback => Request::Rollback(replacement),
        };
        let ticket = self.parts.bus.request(request, Origin(attempt.who.clone()));
        match ticket.outcome().await {
            Progress::Done | Progress::Already | Progress::Accepted => Ok(()),
            Progress::Refused(reason) | Progress::Failed(reason) => Err(UpdateError::Bus { reason }),
        }
    }

    /// Does everything before the stop. Returns how this image is to be replaced.
    ///
    /// # Errors
    /// The step it failed in, and why.
    async fn prepare(
        self: &Arc<Self>,
        attempt: &mut Attempt,
        received: bool,
    ) -> Result<Arc<Replacement>, (Step, UpdateError)> {
        let begun = Instant::now();
        let _house = self.house.hold().await; // nothing is removed meanwhile
        let admitted = self.clone().stage(attempt.clone(), received).await.map_err(|error| (Step::Staged, error))?;
        let Admitted { release, repaired } = admitted;
        attempt.durations.insert(Step::Staging.name().to_owned(), millis(begun));
        self.steps.begin(attempt, Step::Staged, &admitted_text(attempt, repaired));

        let begun = Instant::now();
        self.steps.begin(attempt, Step::Preflight, &format!("examining release {}", attempt.to));
        let preflight = |error| (Step::Preflight, error);
        let examined = self.examine(release).await.map_err(preflight)?;
        let replacement = plan::replacement(&self.parts, &examined).map_err(preflight)?;
        attempt.durations.insert(Step::Preflight.name().to_owned(), millis(begun));

        let (keeper, tried) = (Arc::clone(&self.journal), attempt.clone());
        let approve = move || {
            keeper.change(|journal| {
                let state = journal.state.clone().next(Event::Approved).and_then(|state| state.next(Event::Started))?;
                Ok(Journal { state, attempt: Some(tried), ..journal })
            })
        };
        blocking(approve).await.map_err(preflight)?;
        *lock(&self.trial_ns) = Some(clock::monotonic_ns());
        self.steps.begin(attempt, Step::Trial, &format!("release {} is on trial from now on", attempt.to));
        Ok(replacement)
    }

    /// Returns the journal. What it still has of an attempt that ended while it could not be written is ended first.
    fn idle_journal(&self) -> Result<Journal, UpdateError> {
        if !matches!(self.journal.current().state, State::Idle { .. }) {
            self.endings.pay_blocking()?;
        }
        Ok(self.journal.current())
    }

    /// Returns the digest and version of what is asked for, and whether it lies in staging.
    fn resolve(&self, target: Target, journal: &Journal) -> Result<(Digest, Version, bool), UpdateError> {
        let store = &self.parts.store;
        let installed = |version: &Version| match store.release(version) {
            Ok(release) => Ok((release.digest, version.clone(), false)),
            Err(StoreError::Unknown { .. }) => Err(UpdateError::UnknownRelease { version: version.clone() }),
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

    /// Gives the release its place and journals it as the next.
    async fn stage(self: Arc<Self>, attempt: Attempt, received: bool) -> Result<Admitted, UpdateError> {
        let work = move || {
            let store = &self.parts.store;
            let mut repaired = 0;
            let release = if received {
                let package =
                    store.received(&attempt.digest)?.ok_or(UpdateError::UnknownPackage { digest: attempt.digest })?;
                let in_use: BTreeSet<Version> =
                    self.parts.context.registry.releases_in_use().into_iter().chain([attempt.from.clone()]).collect();
                let replaceable: Vec<Version> =
                    (!in_use.contains(&attempt.to)).then(|| attempt.to.clone()).into_iter().collect();
                if attempt.to == attempt.from && attempt.digest == self.parts.digest {
                    repaired = store.repair(&package)?;
                }
                store.admit(package, &replaceable)?
            } else {
                // Permissions are put right at the start of a release anyhow.
                for failure in store.repair_modes(&store.release(&attempt.to)?).failures {
                    tracing::warn!("{}", Chain(&failure));
                }
                if let Some(damage) = store.find_damage(&attempt.to, &mut || {})? {
                    let what = Chain(&damage).to_string();
                    return Err(UpdateError::Damaged { version: attempt.to.clone(), what });
                }
                store.release(&attempt.to)?
            };
            self.journal.change(|journal| {
                let state = journal.state.clone().next(Event::Admitted(attempt.to.clone()))?;
                Ok(Journal { state, attempt: Some(attempt.clone()), ..journal })
            })?;
            let as_it_was = attempt.kind == Kind::Rollback || attempt.to == attempt.from;
            let merged = preflight::merge(store, &attempt.from, &attempt.to, as_it_was)?;
            if attempt.kind == Kind::Rollback && !merged.kept_existing {
                let path = store.config_dir(&attempt.to);
                tracing::warn!(path = %path.display(), "the live configuration of the release to go back to was missing; it was made anew");
            }
            self.publish_merged(&attempt, &merged);
            Ok(Admitted { release, repaired })
        };
        blocking(work).await
    }

    /// Tells what became of the configuration, file by file.
    fn publish_merged(&self, attempt: &Attempt, merged: &MergeReport) {
        for file in merged.conflicts() {
            let version = &attempt.to;
            tracing::warn!(release.to = %version, file.path, why = waits(&file.outcome), "a part of the configuration waits for the admin");
        }
        let changed = merged.files.iter().filter(|file| file.outcome != config::Outcome::Unchanged);
        let changed: Vec<MergedFile> = changed.map(MergedFile::from).collect();
        if !changed.is_empty() {
            let merged = ConfigMerged {
                id: attempt.id.clone(),
                from: attempt.from.clone(),
                version: attempt.to.clone(),
                files: changed,
            };
            self.parts.context.registry.events.publish(Happening::UpdateConfig(merged));
        }
    }

    async fn examine(&self, release: Release) -> Result<preflight::Examined, UpdateError> {
        let (home, listeners) = (&self.parts.context.home, &self.parts.context.listeners);
        let search = self.parts.context.environment.get(OsStr::new("PATH")).map(OsString::as_os_str);
        let (name, found) = (&self.parts.config.name, self.parts.context.found);
        preflight::examine(home, release, name, listeners, &self.parts.installed, search, found).await
    }

    /// Returns when this image journaled a trial, on the monotonic clock.
    pub(super) fn trial_ns(&self) -> Option<u64> {
        *lock(&self.trial_ns)
    }

    /// Shows that the last step of this image has come.
    pub(super) fn about_to_exec(&self) {
        if let (State::Trial { .. }, Some(attempt)) = (&self.journal.current().state, self.journal.current().attempt)
            && lock(&self.trial_ns).is_some()
        {
            self.steps.begin(&attempt, Step::Exec, &format!("executing the runtime of release {}", attempt.to));
        }
    }
}

/// A release that has its place.
struct Admitted {
    release: Release,
    /// How much of it was damaged and is not any more.
    repaired: usize,
}

/// Returns what is said of a release that has its place.
fn admitted_text(attempt: &Attempt, repaired: usize) -> String {
    let to = &attempt.to;
    match repaired {
        0 => format!("release {to} is complete on disk"),
        count => format!(
            "release {to} was repaired: {count} of its files; a component that runs uses them after `refit component restart NAME`"
        ),
    }
}

/// Returns why no update can begin while the journal is in this state.
fn not_idle(state: &State) -> UpdateError {
    let what = match state {
        State::Idle { current } => format!("release {current} runs"), // never asked
        State::Staged { current, next } => format!("{current} -> {next} is prepared"),
        State::Trial { previous, next, .. } => format!("{previous} -> {next} is on trial"),
    };
    UpdateError::Busy { what }
}

/// Returns what an admin has to look at, as a clause for the log.
fn waits(outcome: &config::Outcome) -> String {
    match outcome {
        config::Outcome::Conflict { new_default, .. } => format!("the release's default lies beside as {new_default}"),
        config::Outcome::Beside { earlier } => format!("what was made of it before lies beside as {earlier}"),
        config::Outcome::NotCarried { why } => format!("it was not carried over: {why}"),
        config::Outcome::Unchanged
        | config::Outcome::Updated
        | config::Outcome::KeptAdmin
        | config::Outcome::Merged
        | config::Outcome::Restored
        | config::Outcome::Added
        | config::Outcome::Removed => "it is in order".to_owned(),
    }
}
