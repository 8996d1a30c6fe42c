//! How the appliance is as a whole: the worst of everything that its status says.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::wire::{BusState, Component, ComponentState, Condition, Health, Overall, Status};

/// A component that was started again so lately has not proved that it goes on.
const CRASHED_LATELY_S: i64 = 60;
/// So many starts again are no accident.
const CRASHES_MIN: u32 = 2;

/// Returns how an appliance is whose status is that. `public` are the components that have listeners: where none of them serves, nobody is
/// served. `disk` says what is wrong with the disk, if something is.
pub(super) fn overall(status: &Status, public: &BTreeSet<String>, disk: Option<String>) -> Overall {
    let now: Option<Timestamp> = status.time.parse().ok();
    let components = status.components.iter().filter_map(|component| trouble(component, now));
    let listeners = status.listeners.iter().filter_map(|listener| {
        let failure = listener.failure.as_ref()?;
        Some(format!("the listener {} at {} cannot be had: {failure}", listener.name, listener.address))
    });
    let faults = status.faults.iter().map(|fault| format!("{} {}: {}", fault.component, fault.phase, fault.cause));
    let read_only = status.read_only.then(|| "the disk of the home is read-only".to_owned());
    let mut reasons: Vec<String> = components
        .chain(listeners)
        .chain(faults)
        .chain(status.trust.warnings.iter().cloned())
        .chain(read_only)
        .chain(disk)
        .collect();
    let is_public = |component: &&Component| public.contains(&component.name);
    let mut of_public = status.components.iter().filter(is_public).peekable();
    let serves_nobody = of_public.peek().is_some() && of_public.all(|component| !serves(component));
    let state = if status.bus.state != BusState::Running {
        reasons.insert(0, format!("the site is {}", status.bus.state));
        Condition::Down
    } else if serves_nobody {
        reasons.insert(0, "no component that has a listener serves".to_owned());
        Condition::Down
    } else if reasons.is_empty() {
        Condition::Well
    } else {
        Condition::Degraded
    };
    Overall { state, reasons }
}

/// Returns whether a component does its work, as far as it is known.
fn serves(component: &Component) -> bool {
    let is_up = matches!(component.state, ComponentState::Running | ComponentState::Done | ComponentState::Waiting);
    is_up && component.health != Health::Unhealthy
}

/// Returns what is wrong with a component. What is on its way somewhere is nothing to worry about yet.
fn trouble(component: &Component, now: Option<Timestamp>) -> Option<String> {
    let Component { name, state, health, reason, restarts, started_at, .. } = component;
    let why = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    if matches!(state, ComponentState::Stopped | ComponentState::Backoff | ComponentState::Failed) {
        return Some(format!("component {name} is {state}{why}"));
    }
    if matches!(health, Health::Unhealthy) {
        return Some(format!("component {name} is {health}{why}"));
    }
    let since: Option<Timestamp> = started_at.as_ref().and_then(|at| at.parse().ok());
    let age_s = now.zip(since).map(|(now, since)| now.duration_since(since).as_secs());
    let crashes = *restarts >= CRASHES_MIN && age_s.is_some_and(|age| age < CRASHED_LATELY_S);
    crashes.then(|| format!("component {name} ended by itself {restarts} times, the last time less than a minute ago"))
}
