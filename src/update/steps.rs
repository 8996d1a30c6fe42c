//! What an update is doing: shown in the status, published as events, and in the end said by its ticket.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use refit_base::{clock, lock};
use refit_updater::attempt::{Attempt, Ending, Kind, Outcome};
use refit_updater::history::Entry;
use semver::Version;
use serde::Serialize;
use serde_json::json;

use super::error::UpdateError;
use crate::carry::Registry;

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

/// The owner of what is shown of the update under way.
pub(super) struct Steps {
    view: Mutex<Option<UpdateView>>,
    registry: Arc<Registry>,
}

/// The right to begin an update: none is under way, and none begins meanwhile. Only [`Steps::claim`] makes one.
pub(super) struct Claim<'a>(MutexGuard<'a, Option<UpdateView>>);

impl Claim<'_> {
    /// Shows `attempt`, which is under way from now on.
    pub(super) fn show(mut self, attempt: &Attempt, phase: &str, text: &str) {
        *self.0 = Some(view(attempt, phase, text));
    }
}

impl Steps {
    /// Shows nothing yet. Events and tickets are those of `registry`.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { view: Mutex::new(None), registry }
    }

    /// Returns what the update under way is doing.
    pub(super) fn view(&self) -> Option<UpdateView> {
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
            Some(UpdateView { kind, from, to, step, .. }) => {
                Err(UpdateError::Busy { what: format!("{} {from} -> {to}: {step}", kind.name()) })
            }
        }
    }

    /// Shows and publishes a step.
    pub(super) fn begin(&self, attempt: &Attempt, step: &str, text: &str) {
        tracing::info!(update.id = attempt.id, update.step = step, release.to = %attempt.to, "{text}");
        self.show(attempt, step, text);
        self.publish(attempt, step, text, None);
    }

    /// Shows a step.
    pub(super) fn show(&self, attempt: &Attempt, step: &str, text: &str) {
        *lock(&self.view) = Some(view(attempt, step, text));
    }

    /// Shows that the attempt `id` is not under way any more.
    pub(super) fn clear_of(&self, id: &str) {
        lock(&self.view).take_if(|view| view.id == id);
    }

    /// Shows what a step waits for, and publishes it.
    pub(super) fn show_waiting(&self, attempt: &Attempt, step: &str, text: &str) {
        if let Some(view) = lock(&self.view).as_mut() {
            step.clone_into(&mut view.phase);
            text.clone_into(&mut view.step);
            view.probation_ends_at = None;
        }
        tracing::warn!(update.id = attempt.id, "{text}");
        self.publish(attempt, step, text, None);
    }

    /// Publishes a step, with the reason if it is the end of an attempt that failed.
    pub(super) fn publish(&self, attempt: &Attempt, step: &str, text: &str, ending: Option<&Ending>) {
        let mut data = json!({
            "id": attempt.id, "kind": attempt.kind, "step": step, "from": attempt.from, "to": attempt.to, "text": text,
        });
        if let Some(ending) = ending {
            data["reason"] = json!(ending.reason);
            data["component"] = json!(ending.component);
            data["output"] = json!(ending.output);
        }
        self.registry.events.publish("update.step", data);
    }

    /// Shows how much of the probation is over, from 0 to 1, and how long it is `left`, where that is known.
    pub(super) fn show_progress(&self, attempt: &Attempt, progress: f64, left: Option<Duration>, text: String) {
        if let Some(view) = lock(&self.view).as_mut() {
            let left = left.and_then(|left| jiff::SignedDuration::try_from(left).ok());
            view.progress = progress;
            view.step.clone_from(&text);
            view.probation_ends_at = left.map(|left| clock::rfc3339(clock::now() + left));
        }
        let data = json!({ "id": attempt.id, "progress": progress, "text": text });
        self.registry.events.publish("update.progress", data);
    }

    /// Publishes how an attempt ended.
    pub(super) fn publish_end(&self, entry: &Entry) {
        let (step, text) = match entry.outcome {
            Outcome::Done => ("committed", format!("release {} is good", entry.to)),
            Outcome::RolledBack => ("rolled-back", format!("release {} runs again", entry.from)),
            Outcome::Failed => ("failed", "the update failed; the running release is untouched".to_owned()),
        };
        tracing::info!(update.id = entry.id, update.step = step, "{text}");
        let data = json!({
            "id": entry.id, "kind": entry.kind, "step": step, "from": entry.from, "to": entry.to,
            "text": text, "reason": entry.reason, "component": entry.component, "output": entry.output,
        });
        self.registry.events.publish("update.step", data);
        if entry.outcome == Outcome::Done {
            self.registry.events.publish("release", json!({ "version": entry.to, "state": "good" }));
        }
    }
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
