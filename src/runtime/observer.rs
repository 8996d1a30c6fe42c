//! What the bus asks and tells: the update manager decides about failed starts, the events and the log hear everything.

use std::path::PathBuf;
use std::sync::Arc;

use refit_bus::{
    self as bus, AfterFailure, Asked, Bus, BusEvent, ConfirmStep, Decision, Failure, Fault, Level, LogEntry, Observer,
    RequestKind, Subscription, Unconfirmed,
};
use semver::Version;
use serde::Deserialize;
use serde_json::Value;

use super::unconfirmed;
use crate::carry::{Registry, SiteWish};
use crate::events::Events;
use crate::peers::Peers;
use crate::update::Manager;
use crate::wire::Event;
use crate::wire::event::{ReloadAnswer, Reloaded, RequestOutcome, Requested, SiteChanged};

/// What the bus asks and tells: the update manager decides about failed starts, the events hear everything.
pub(super) struct SiteObserver {
    pub(super) manager: Arc<Manager>,
    pub(super) events: Arc<Events>,
    pub(super) peers: Arc<Peers>,
    pub(super) registry: Arc<Registry>,
    /// The bus, which ends only when the history is written.
    pub(super) bus: Bus,
    pub(super) home: PathBuf,
    /// The release that runs.
    pub(super) version: Version,
}

impl SiteObserver {
    /// Tells everybody how far a reload is that has to be confirmed, leaves it to the next image, and puts its end into the history.
    fn provisional(&self, reload: &Unconfirmed, step: &ConfirmStep) {
        self.events.publish(unconfirmed::event(reload, step));
        if *step == ConfirmStep::Waits {
            self.registry.set_unconfirmed(reload.clone());
        }
        let Some(entry) = unconfirmed::ended(reload, step, &self.version) else { return };
        let (home, registry, generation) = (self.home.clone(), Arc::clone(&self.registry), reload.generation);
        // In this order: a crash between the two leaves something to say, which the history then has.
        let write = tokio::task::spawn_blocking(move || {
            unconfirmed::record(&home, &entry);
            registry.forget_unconfirmed(generation);
        });
        let written = async move { write.await.map_err(|error| Failure::from_error(&error)) };
        drop(self.bus.own("the history of a reload", written)); // a bus that has ended waits for no reload
    }
}

impl Observer for SiteObserver {
    fn observe(&self, event: &BusEvent) {
        match event {
            BusEvent::State(state) => {
                self.events.publish(Event::BusState(SiteChanged { state: (*state).into() }));
                self.peers.send_state(*state);
                if *state == bus::State::Exiting {
                    self.manager.about_to_exec();
                }
            }
            BusEvent::Fault(fault) => {
                self.events.publish(Event::Fault(fault.into()));
            }
            BusEvent::Request { number, kind, origin, decision } => {
                let (outcome, reason) = match decision {
                    Decision::Accept => (RequestOutcome::Accepted, None),
                    Decision::Merge => (RequestOutcome::Merged, None),
                    Decision::Already => (RequestOutcome::Already, None),
                    Decision::Refuse(refusal) => (RequestOutcome::Refused, Some(refusal.to_string())),
                };
                self.events.publish(Event::BusRequest(Requested {
                    number: Some(*number),
                    request: (*kind).into(),
                    origin: origin.0.clone(),
                    outcome,
                    reason,
                }));
                // Before the bus goes there: a runtime that is killed on the way leaves it to the next one.
                if let Some(site) = wish(*kind).filter(|_| !matches!(decision, Decision::Refuse(_))) {
                    self.registry.set_site(site);
                }
            }
            BusEvent::Publication(report) => self.events.publish(Event::BusPublication(report.into())),
            BusEvent::Reloaded { generation, reason, asked } => {
                let answer = |one: &Asked| ReloadAnswer { name: one.listener.clone(), answer: one.answer.into() };
                self.events.publish(Event::BusReload(Reloaded {
                    generation: *generation,
                    reason: reason.clone(),
                    asked: asked.iter().map(answer).collect(),
                }));
            }
            BusEvent::Provisional { reload, step } => self.provisional(reload, step),
        }
    }

    fn start_failed(&self, faults: &[Fault]) -> AfterFailure {
        self.manager.start_failed(faults)
    }
}

/// Returns what a request makes of the whole site.
fn wish(kind: RequestKind) -> Option<SiteWish> {
    match kind {
        RequestKind::Start | RequestKind::Restart | RequestKind::Update | RequestKind::Rollback => Some(SiteWish::Runs),
        RequestKind::Stop => Some(SiteWish::Stopped),
        RequestKind::Exit => Some(SiteWish::Ends),
        RequestKind::Reload | RequestKind::Confirm => None,
    }
}

/// Has what the bus says go where everything of the runtime goes: to standard error.
pub(super) fn trace(bus: &Bus) {
    let write = bus::listener(|call| async move {
        if let Ok(LogEntry { level, text, .. }) = LogEntry::deserialize(&call.argument) {
            match level {
                Level::Debug => tracing::debug!(target: "refit::bus", "{text}"),
                Level::Info => tracing::info!(target: "refit::bus", "{text}"),
                Level::Warning => tracing::warn!(target: "refit::bus", "{text}"),
                Level::Error => tracing::error!(target: "refit::bus", "{text}"),
            }
        }
        Ok(Value::Null)
    });
    bus.subscribe(Subscription::new(bus::LOG, "refit.stderr", write));
}
