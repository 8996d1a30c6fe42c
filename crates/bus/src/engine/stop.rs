//! The stop: in the exact reverse of what started. Nothing is skipped because something fails.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::transition::{Time, Transition, fault_of, told};
use super::{Engine, Started};
use crate::call::CallInfo;
use crate::order::{Order, Row, waves_of_any};
use crate::registry::{Entry, START, STOP, Waves};
use crate::request::StopReason;

impl Engine {
    /// Stops what started, within `time`.
    pub(super) async fn stop(&mut self, reason: &StopReason, time: Time) {
        if let StopReason::Replace(replacement) = reason {
            let keeps = |one: &&Started| replacement.keep_running.contains(&*one.name);
            let kept = self.started.iter().flatten().filter(keeps).map(|one| (*one.name).to_owned());
            self.left_running.extend(kept);
        }
        let waves = self.stop_waves(reason, None);
        self.stop_in(&waves, reason, time).await;
    }

    /// Stops what runs although everything else was stopped, if there is no next image to take it over.
    pub(super) async fn stop_what_was_left(&mut self) {
        if self.shared.is_replacing() || self.left_running.is_empty() {
            return;
        }
        let left = std::mem::take(&mut self.left_running);
        let starters = self.shared.registry.snapshot(START).waves;
        let is_left = |entry: &&Arc<Entry>| left.contains(&*entry.name);
        self.started =
            starters.iter().map(|wave| wave.iter().filter(is_left).map(|entry| Started::of(entry)).collect()).collect();
        let waves = self.stop_waves(&StopReason::Exit, Some(&left));
        let time = self.time_of_descent();
        self.stop_in(&waves, &StopReason::Exit, time).await;
    }

    async fn stop_in(&self, waves: &Waves, reason: &StopReason, time: Time) {
        let info = CallInfo { reason: Some(reason.clone()), ..told(&self.shared, STOP.into()) };
        let hurry = Some(self.shared.hurry.clone());
        let transition = Transition::new(&self.shared, info, time, self.shared.options.stop, hurry);
        transition
            .run(waves, |end| {
                if let Some(failure) = fault_of(end) {
                    self.shared.fault_of(&end.entry, STOP, failure);
                }
            })
            .await;
    }

    /// Returns who is to be stopped, in waves: the reverse of how they started. Who only listens to the stop stands
    /// where it would have started; who was to start and did not is left out. With `only`, those components and nobody else.
    fn stop_waves(&mut self, reason: &StopReason, only: Option<&BTreeSet<String>>) -> Vec<Vec<Arc<Entry>>> {
        let started = std::mem::take(&mut self.started);
        let starters = self.shared.registry.listeners(START);
        let starts: Vec<Started> =
            starters.iter().filter(|entry| !entry.has_joined()).map(|entry| Started::of(entry)).collect();
        let stops = self.shared.registry.listeners(STOP);
        let stopping: Vec<Started> = stops.iter().map(|entry| Started::of(entry)).collect();
        // A wave of which nobody hears of the stop orders nothing: those after it come after the one before it.
        let is_told = |wave: &&Vec<Started>| wave.iter().any(|one| stopping.contains(one));
        let mut rows: Vec<(Arc<Entry>, Order)> = Vec::new();
        for (entry, own) in stops.iter().zip(&stopping) {
            let owner = entry.group.as_ref().unwrap_or(&entry.name);
            if only.is_some_and(|only| !only.contains(&**owner)) {
                continue;
            }
            let order = match started.iter().position(|wave| wave.contains(own)) {
                Some(place) => {
                    let before = started[..place].iter().rev().find(is_told).map(Vec::as_slice).unwrap_or_default();
                    let after = before.iter().map(|one| (*one.name).to_owned()).collect();
                    Order { needs: Vec::new(), after, priority: entry.order.priority }
                }
                None if starts.contains(own) => continue,
                None if entry.group.as_ref().is_some_and(|group| reason.keeps_running(group)) => continue,
                None => entry.order.clone(),
            };
            rows.push((Arc::clone(entry), order));
        }
        let waves = {
            let borrowed: Vec<Row<'_>> = rows
                .iter()
                .map(|(entry, order)| Row { name: &entry.name, group: entry.group.as_deref(), order })
                .collect();
            waves_of_any(&borrowed)
        };
        let stopping = |index: &usize| Arc::clone(&rows[*index].0);
        waves.iter().rev().map(|wave| wave.iter().rev().map(stopping).collect()).collect()
    }
}
