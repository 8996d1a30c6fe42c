//! What an update is doing: shown in the status, published as events, and in the end said by its ticket.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use refit_base::{clock, lock};
use refit_updater::attempt::{Attempt, Ending, Outcome, Step};
use refit_updater::history::Entry;

use super::error::UpdateError;
use crate::carry::Registry;
use crate::wire::event::{ReleaseChanged, UpdateEnd, UpdateProgress, UpdateStep};
use crate::wire::{Event, ReleaseState, Update};

/// The owner of what is shown of the update under way.
pub(super) struct Steps {
    view: Mutex<Option<Update>>,
    registry: Arc<Registry>,
}

/// The right to begin an update: none is under way, and none begins meanwhile. Only [`Steps::claim`] makes one.
pub(super) struct Claim<'a>(MutexGuard<'a, Option<Update>>);

impl Claim<'_> {
    /// Shows `attempt`, which is under way from now on.
    pub(super) fn show(mut self, attempt: &Attempt, phase: Step, text: &str) {
        *self.0 = Some(view(attempt, phase, text));
    }
}

impl Steps {
    /// Shows nothing yet. Events and tickets are those of `registry`.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { view: Mutex::new(None), registry }
    }

    /// Returns what the update under way is doing.
    pub(super) fn view(&self) -> Option<Update> {
        lock(&self.view).clone()
    }

    /// Returns the right to begin an update.
    ///
    /// # Errors
    /// One is under way.
    pub(super) fn claim(&self) -> Result<Claim<'_>, UpdateError> {
        let shown = lock(&self.view);
        match shown.as_ref() {
            None => Ok(Claim(shown)),
            Some(Update { kind, from, to, step, .. }) => {
                Err(UpdateError::Busy { what: format!("{} {from} -> {to}: {step}", kind.name()) })
            }
        }
    }

    /// Shows and publishes a step.
    pub(super) fn begin(&self, attempt: &Attempt, step: Step, text: &str) {
        tracing::info!(update.id = attempt.id, update.step = step.name(), release.to = %attempt.to, "{text}");
        self.show(attempt, step.clone(), text);
        self.publish(attempt, step, text, None);
    }

    /// Shows a step.
    pub(super) fn show(&self, attempt: &Attempt, step: Step, text: &str) {
        *lock(&self.view) = Some(view(attempt, step, text));
    }

    /// Shows that the attempt `id` is not under way any more.
    pub(super) fn clear_of(&self, id: &str) {
        lock(&self.view).take_if(|view| view.id == id);
    }

    /// Shows what a step waits for, and publishes it.
    pub(super) fn show_waiting(&self, attempt: &Attempt, step: Step, text: &str) {
        if let Some(view) = lock(&self.view).as_mut() {
            view.phase = step.clone();
            text.clone_into(&mut view.step);
            view.probation_ends_at = None;
        }
        tracing::warn!(update.id = attempt.id, "{text}");
        self.publish(attempt, step, text, None);
    }

    /// Publishes a step, with the reason if it is the end of an attempt that failed.
    pub(super) fn publish(&self, attempt: &Attempt, step: Step, text: &str, ending: Option<&Ending>) {
        let end = |ending: &Ending| UpdateEnd {
            reason: Some(ending.reason.clone()),
            component: ending.component.clone(),
            output: ending.output.clone(),
        };
        self.registry.events.publish(Event::UpdateStep(UpdateStep {
            id: attempt.id.clone(),
            kind: attempt.kind.into(),
            step,
            from: attempt.from.clone(),
            to: attempt.to.clone(),
            text: text.to_owned(),
            end: ending.map(end),
        }));
    }

    /// Shows how much of the probation is over, from 0 to 1, and how long it is `left`, where that is known.
    pub(super) fn show_progress(&self, attempt: &Attempt, progress: f64, left: Option<Duration>, text: String) {
        if let Some(view) = lock(&self.view).as_mut() {
            let left = left.and_then(|left| jiff::SignedDuration::try_from(left).ok());
            view.progress = progress;
            view.step.clone_from(&text);
            view.probation_ends_at = left.map(|left| clock::rfc3339(clock::now() + left));
        }
        let id = attempt.id.clone();
        self.registry.events.publish(Event::UpdateProgress(UpdateProgress { id, progress, text }));
    }

    /// Publishes how an attempt ended.
    pub(super) fn publish_end(&self, entry: &Entry) {
        let (step, text) = match entry.outcome {
            Outcome::Done => (Step::Committed, format!("release {} is good", entry.to)),
            Outcome::RolledBack => (Step::RolledBack, format!("release {} runs again", entry.from)),
            Outcome::Failed => {
                (Step::Failed, format!("the {} failed; the running release is untouched", entry.kind.name()))
            }
        };
        tracing::info!(update.id = entry.id, update.at = entry.at, update.step = step.name(), "{text}");
        self.registry.events.publish(Event::UpdateStep(UpdateStep {
            id: entry.id.clone(),
            kind: entry.kind.into(),
            step,
            from: entry.from.clone(),
            to: entry.to.clone(),
            text,
            end: Some(UpdateEnd {
                reason: entry.reason.clone(),
                component: entry.component.clone(),
                output: entry.output.clone(),
            }),
        }));
        if entry.outcome == Outcome::Done {
            let good = ReleaseChanged { version: entry.to.clone(), state: ReleaseState::Good };
            self.registry.events.publish(Event::Release(good));
        }
    }
}

fn view(attempt: &Attempt, phase: Step, step: &str) -> Update {
    Update {
        id: attempt.id.clone(),
        kind: attempt.kind.into(),
        phase,
        from: attempt.from.clone(),
        to: attempt.to.clone(),
        progress: 0.0,
        step: step.to_owned(),
        started_at: attempt.started_at.clone(),
        probation_ends_at: None,
    }
}
