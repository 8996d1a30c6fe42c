//! How a component's health is judged: by trying it from outside, again and again.

mod command;
mod probe;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use refit_base::{Cause, lock};
use refit_bus::Failure;
use serde::Serialize;
use tokio::sync::watch;

use super::context::RunContext;
use crate::awake;
use crate::carry::CarriedInstance;
use crate::config::{Component, Health, Ready};
use crate::process::stat;
use probe::Outcome;

/// So many tries are made in quick succession after a start.
const FIRST_TRIES: u32 = 4;
/// The longest pause between them.
const FIRST_INTERVAL_MAX: Duration = Duration::from_millis(500);

/// What there is to say of a process that is not reached, since another one is.
const OF_ANOTHER: &str = "another process answers its health probe";

/// How much of an answer explains a failure.
const ANSWER_CHARS_MAX: usize = 200;

/// What is known of a component's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has no health check.
    None,
    /// It was not tried yet.
    Unknown,
    /// The last try was good.
    Healthy,
    /// The last try was bad, and not enough before it: why. Nobody can say that it is healthy.
    Doubtful(String),
    /// The last tries were bad: why.
    Unhealthy(String),
}

impl State {
    /// Returns the name that API and page show.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unknown | Self::Doubtful(_) => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy(_) => "unhealthy",
        }
    }
}

/// The process that is tried.
pub(super) struct Probed {
    component: Component,
    carried: CarriedInstance,
    context: Arc<RunContext>,
}

impl Probed {
    pub(super) fn new(component: &Component, carried: &CarriedInstance, context: &Arc<RunContext>) -> Self {
        Self { component: component.clone(), carried: carried.clone(), context: Arc::clone(context) }
    }

    /// Returns how much of the time that its start may take is left to it.
    fn start_time_left(&self) -> Duration {
        self.component.start_timeout.saturating_sub(stat::age(self.carried.start_ticks))
    }
}

/// Tries until it is cancelled, telling `state` what comes out.
///
/// Until the first success a failure means that the process still comes up, for as long as its start may take: a database that
/// recovers is not ill.
pub(super) async fn watch(health: Health, state: watch::Sender<State>, probed: Probed) {
    let client = match probe::client(&health) {
        Ok(client) => client,
        Err(reason) => {
            state.send_replace(State::Unhealthy(reason));
            return;
        }
    };
    let comes_up_until = Instant::now() + probed.start_time_left();
    let mut was_well = probed.component.ready == Ready::Health;
    let (mut failures, mut tries) = (0, 0);
    let mut excused = false;
    loop {
        let begun = Instant::now();
        let outcome = probe::once(&client, &health, &probed).await;
        // Its limit is over since long: the machine was paused, and no process could answer. Once, in case it is only that slow.
        let was_paused = !awake::paused_since(begun + health.timeout, health.timeout / 2).is_zero();
        if matches!(outcome, Outcome::Ill(_)) && was_paused && !excused {
            excused = true;
            continue;
        }
        excused = false;
        match outcome {
            Outcome::Well => {
                (failures, was_well) = (0, true);
                set(&state, State::Healthy);
            }
            Outcome::Ill(Failure { reason, cause, .. }) => {
                // What the machine did not let be tried says nothing of the component: it is no failure, and no success.
                failures += u32::from(cause == Cause::Release);
                let comes_up = !was_well && Instant::now() < comes_up_until;
                let is_ill = failures >= health.threshold && !comes_up;
                set(&state, if is_ill { State::Unhealthy(reason) } else { State::Doubtful(reason) });
            }
            // One that was well is not ill because another one was faster.
            Outcome::OfAnother if was_well => {}
            Outcome::OfAnother => set(&state, State::Doubtful(OF_ANOTHER.to_owned())),
        }
        tries += 1;
        // The first tries may have been answered by the process before, which accepts until it has heard that it is to stop.
        let pause = if tries < FIRST_TRIES || !was_well { first_interval(&health) } else { health.interval };
        tokio::time::sleep(pause).await;
    }
}

/// Waits until the process is healthy for the first time. What was seen meanwhile goes to `seen`. Cancel-safe.
pub(super) async fn wait_healthy(probed: &Probed, seen: &Mutex<String>) {
    let Some(health) = &probed.component.health else { return };
    let client = match probe::client(health) {
        Ok(client) => client,
        Err(reason) => {
            *lock(seen) = reason;
            return std::future::pending().await;
        }
    };
    loop {
        match probe::once(&client, health, probed).await {
            Outcome::Well => return,
            Outcome::Ill(failure) => *lock(seen) = failure.reason,
            Outcome::OfAnother => OF_ANOTHER.clone_into(&mut lock(seen)),
        }
        tokio::time::sleep(first_interval(health)).await;
    }
}

fn first_interval(health: &Health) -> Duration {
    health.interval.min(FIRST_INTERVAL_MAX)
}

/// Sets `state` without waking anybody if nothing has changed.
fn set(state: &watch::Sender<State>, new: State) {
    state.send_if_modified(|old| {
        let changed = *old != new;
        *old = new;
        changed
    });
}
