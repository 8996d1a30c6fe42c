//! What the bus asks and tells: the update manager decides about failed starts, the events and the log hear everything.

use std::sync::Arc;

use refit_bus::{
    self as bus, AfterFailure, Bus, BusEvent, Decision, Fault, Level, LogEntry, Observer, RequestKind, Subscription,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::carry::{Registry, SiteWish};
use crate::events::Events;
use crate::peers::Peers;
use crate::update::Manager;

/// What the bus asks and tells: the update manager decides about failed starts, the events hear everything.
pub(super) struct SiteObserver {
    pub(super) manager: Arc<Manager>,
    pub(super) events: Arc<Events>,
    pub(super) peers: Arc<Peers>,
    pub(super) registry: Arc<Registry>,
}

impl Observer for SiteObserver {
    fn observe(&self, event: &BusEvent) {
        match event {
            BusEvent::State(state) => {
                self.events.publish("bus.state", json!({ "state": state }));
                self.peers.send_state(*state);
                if *state == bus::State::Exiting {
                    self.manager.about_to_exec();
                }
            }
            BusEvent::Fault(fault) => {
                self.events.publish("fault", json!(fault));
            }
            BusEvent::Request { number, kind, origin, decision } => {
                let (outcome, reason) = match decision {
                    Decision::Accept => ("accepted", None),
                    Decision::Merge => ("merged", None),
                    Decision::Already => ("already", None),
                    Decision::Refuse(refusal) => ("refused", Some(refusal.to_string())),
                };
                let data = json!({
                    "number": number, "request": kind.name(), "origin": origin.0, "outcome": outcome, "reason": reason,
                });
                self.events.publish("bus.request", data);
                // Before the bus goes there: a runtime that is killed on the way leaves it to the next one.
                if let Some(site) = wish(*kind).filter(|_| !matches!(decision, Decision::Refuse(_))) {
                    self.registry.set_site(site);
                }
            }
            BusEvent::Publication(report) => self.events.publish("bus.publication", json!(report)),
            BusEvent::Reloaded { generation, reason, asked } => {
                let asked: Vec<Value> =
                    asked.iter().map(|one| json!({ "name": one.listener, "answer": one.answer })).collect();
                let data = json!({ "generation": generation, "reason": reason, "asked": asked });
                self.events.publish("bus.reload", data);
            }
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
        RequestKind::Reload => None,
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
