//! What the runtime announces while the site runs: how each component does, and that the site runs.

use std::sync::Arc;

use refit_base::Chain;
use refit_bus::{self as bus, Bus, Failure, RequestKind};
use tokio::sync::OwnedSemaphorePermit;

use crate::carry::Registry;
use crate::component::{self, Process};
use crate::home::Home;
use crate::update::Manager;
use crate::wire::Event;
use crate::wire::event::ComponentChanged;

/// Publishes what changes of a component.
pub(super) async fn publish_changes(component: Arc<Process>, registry: Arc<Registry>, bus: Bus) {
    let mut views = component.view();
    let mut last = None;
    loop {
        let view = views.borrow_and_update().clone();
        let seen = Some((view.state, view.pid, view.health.clone(), view.status.clone()));
        if seen != last {
            let has_failed = view.state == component::State::Failed;
            // A start that fails is the bus's to record; one that gave up while the site runs is nobody else's.
            if has_failed
                && !is_recorded(&bus, &view)
                && bus.state() == bus::State::Running
                && last.is_some_and(|(state, ..)| state != view.state)
            {
                let reason = view.reason.clone().unwrap_or_default();
                let failure = Failure { output: view.output.clone(), cause: view.cause, ..Failure::new(reason) };
                bus.fault(&view.name, "run", failure);
            }
            last = seen;
            registry.events.publish(Event::Component(ComponentChanged {
                name: view.name,
                state: view.state.name().into(),
                pid: view.pid,
                health: view.health.name().into(),
                reason: view.reason,
                status: view.status,
            }));
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Returns whether the bus has recorded why a component did not start: the site may run by the time that this is seen.
fn is_recorded(bus: &Bus, view: &component::View) -> bool {
    let is_same = |fault: &bus::Fault| fault.component == view.name && fault.phase == bus::START;
    bus.faults().iter().any(|fault| is_same(fault) && view.reason.as_ref() == Some(&fault.cause))
}

/// Tidies the disk, and tells the guard and the update manager when the site runs. `by_exec` says that the image before has handed over,
/// and did not crash.
pub(super) async fn announce_running(
    bus: Bus,
    manager: Arc<Manager>,
    registry: Arc<Registry>,
    name: String,
    home: Home,
    permit: Option<OwnedSemaphorePermit>,
    by_exec: bool,
) {
    let mut states = bus.watch();
    // After the first accept: what waits for the disk is not on the way there.
    let entered = states.wait_for(|state| !matches!(state, bus::State::Initial | bus::State::Entering)).await.is_ok();
    if let (true, Some(permit)) = (entered, permit)
        && let Err(error) = manager.tidy(permit).await
    {
        tracing::error!(error = %Chain(&error), "cannot tidy the home; the next start tries again");
    }
    if states.wait_for(|state| *state == bus::State::Running).await.is_ok() {
        let status = format!("READY=1\nSTATUS={name} is running");
        registry.tell_guard(&status);
        manager.site_runs().await;
        let closed = tokio::task::spawn_blocking(move || {
            if let Err(error) = home.note_run() {
                tracing::warn!(path = %home.log().display(), %error, "cannot make a directory");
            }
            home.close_settings(|what| tracing::warn!("{what}"));
        });
        manager.spawn(async move { drop(closed.await) }); // it has said itself what was in the way
        let missing: Vec<_> = bus.faults().into_iter().filter(|fault| fault.phase == bus::START).collect();
        let without = match missing.as_slice() {
            [] => None,
            [_] => Some(format!("the appliance runs without {}", bus::causes(&missing))),
            several => {
                Some(format!("the appliance runs without {} components:{}", several.len(), bus::causes(several)))
            }
        };
        // After a crash, what was asked of the image before is lost, but for this.
        let came_true = if by_exec { RequestKind::Restart } else { RequestKind::Start };
        registry.tickets.settle_carried(&came_true.into(), without.as_deref());
        registry.save();
    }
}
