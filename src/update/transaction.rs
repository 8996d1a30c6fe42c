//! The transaction up to the exec: stage, examine, journal the trial, ask the bus.
//!
//! Each step is journaled before it acts. What fails here fails before anything was stopped.

use std::collections::BTreeSet;
use std::sync::Arc;

use refit_base::clock;
use refit_base::{Chain, Exit, Reported};
use refit_bus::{Bus, Origin, Progress, Replacement, Request};
use refit_updater::attempt::{Attempt, Ending, Kind, Outcome};
use refit_updater::config::{self, MergeReport};
use refit_updater::history::{self, Entry};
use refit_updater::journal::{Event, Journal, State};
use refit_updater::release::Release;
use semver::Version;
use serde_json::json;

use super::{Manager, UpdateError, error, lock, millis, plan, preflight};

/// A release that has its place.
pub(super) struct Admitted {
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

impl Manager {
    /// Drives one attempt up to the request that replaces this image, or to its failure.
    pub(super) async fn transact(self: Arc<Self>, mut attempt: Attempt, received: bool, bus: Bus) {
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
        let mut ending = Ending::now(step, error::reason(&error));
        ending.output = error.output();
        // A disk is the admin's to mend, everything else the vendor's.
        let disk = error.exit() == Exit::Disk || error::is_disk(&error);
        let exit = if disk { Exit::Disk } else { Exit::Failed };
        self.give_up(&attempt, &ending, exit);
    }

    /// Ends an attempt whose release was not started.
    pub(super) fn give_up(&self, attempt: &Attempt, ending: &Ending, exit: Exit) {
        let journal = self.journal();
        let result = match journal.state {
            State::Idle { .. } => {
                // It failed before the journal knew of it.
                let mut journal = journal;
                journal.finished = Some(Entry::of(attempt.clone(), Outcome::Failed, ending));
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
        self.parts.context.registry.tickets.fail(&attempt.id, ending.reason.clone(), exit);
        self.parts.context.registry.save();
    }

    /// Moves the finished attempt from the journal into the history.
    pub(super) fn record_finished(&self) -> Result<(), UpdateError> {
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
    pub(super) async fn prepare(
        self: &Arc<Self>,
        attempt: &mut Attempt,
        received: bool,
    ) -> Result<Arc<Replacement>, (&'static str, UpdateError)> {
        let begun = std::time::Instant::now();
        let admitted = self.clone().stage(attempt.clone(), received).await.map_err(|error| ("staged", error))?;
        let Admitted { release, repaired } = admitted;
        attempt.durations.insert("staging".to_owned(), millis(begun));
        self.step(attempt, "staged", &admitted_text(attempt, repaired));

        let begun = std::time::Instant::now();
        self.step(attempt, "preflight", &format!("examining release {}", attempt.to));
        let preflight = |error| ("preflight", error);
        let examined = self.examine(release).await.map_err(preflight)?;
        let replacement = self.replacement(&examined).map_err(preflight)?;
        attempt.durations.insert("preflight".to_owned(), millis(begun));

        let journal = self.journal();
        let approved = journal.state.clone().next(Event::Approved).and_then(|state| state.next(Event::Started));
        let state = approved.map_err(|error| preflight(UpdateError::Bus { reason: Chain(&error).to_string() }))?;
        self.write(Journal { state, attempt: Some(attempt.clone()), ..journal }).map_err(preflight)?;
        *lock(&self.trial_ns) = Some(clock::monotonic_ns());
        self.step(attempt, "trial", &format!("release {} is on trial from now on", attempt.to));
        Ok(replacement)
    }

    /// Gives the release its place and journals it as the next.
    pub(super) async fn stage(self: Arc<Self>, attempt: Attempt, received: bool) -> Result<Admitted, UpdateError> {
        let work = move || {
            let store = &self.parts.store;
            let journal = self.journal();
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
                let report = store.verify(&attempt.to, &mut |_| {})?;
                if let Some(problem) = report.problems.first() {
                    return Err(UpdateError::Damaged { version: attempt.to.clone(), what: problem.to_string() });
                }
                store.release(&attempt.to)?
            };
            let state = journal.state.clone().next(Event::Admitted(attempt.to.clone()));
            let state = state.map_err(|_| UpdateError::Busy)?;
            self.write(Journal { state, attempt: Some(attempt.clone()), ..journal })?;
            let as_it_was = attempt.kind == Kind::Rollback || attempt.to == attempt.from;
            let merged = preflight::merge(store, &attempt.from, &attempt.to, as_it_was)?;
            self.tell_merged(&attempt, &merged);
            Ok(Admitted { release, repaired })
        };
        tokio::task::spawn_blocking(work).await.map_err(|source| UpdateError::Worker { source })?
    }

    /// Tells what became of the configuration, file by file.
    fn tell_merged(&self, attempt: &Attempt, merged: &MergeReport) {
        for file in merged.conflicts() {
            let version = &attempt.to;
            tracing::warn!(release.to = %version, file.path = file.path, "the admin and the release changed the same lines");
        }
        let changed: Vec<_> = merged.files.iter().filter(|file| file.outcome != config::Outcome::Unchanged).collect();
        if !changed.is_empty() {
            let data = json!({ "id": attempt.id, "version": attempt.to, "files": changed });
            self.parts.context.registry.events.publish("update.config", data);
        }
    }

    pub(super) async fn examine(&self, release: Release) -> Result<preflight::Examined, UpdateError> {
        let bound: Vec<_> = lock(&self.parts.context.listeners).addresses().into_iter().map(|(_, at)| at).collect();
        let home = &self.parts.context.home;
        preflight::examine(home, release, &self.parts.config.name, &bound, &self.parts.installed).await
    }

    pub(super) fn replacement(&self, examined: &preflight::Examined) -> Result<Arc<Replacement>, UpdateError> {
        let running = self.parts.context.registry.instances();
        let live = self.parts.store.config_dir(&examined.release.version);
        let keep_running = plan::keep_running(&running, &examined.config, &examined.release.manifest, &live)
            .map_err(|source| UpdateError::Io { what: "read the live configuration", source })?;
        Ok(Arc::new(Replacement {
            label: examined.release.version.to_string(),
            program: examined.program.clone(),
            keep_running,
        }))
    }
}
