//! What was asked of the whole site before a runtime was killed: a stop or an end, with which the next one goes on.

use std::sync::Arc;

use futures_util::future::join_all;
use refit_bus::{self as bus, Bus, Origin, Request};

use crate::carry::{Registry, SiteWish};
use crate::component::Process;
use crate::wire;

/// Asks for what this image begins with.
pub(super) fn ask(bus: &Bus, site: SiteWish) {
    let ask = |request| drop(bus.request(request, Origin("refit run".to_owned())));
    match site {
        SiteWish::Runs => ask(Request::Start),
        SiteWish::Stopped => {
            tracing::info!("the site is left stopped, as somebody has asked before the runtime ended");
            // Nothing has begun: the second makes the first one void.
            ask(Request::Start);
            ask(Request::Stop);
        }
        SiteWish::Ends => {
            tracing::info!("ending, as somebody has asked before the runtime ended");
            ask(Request::Exit);
        }
    }
}

/// Ends what runs of a site that is to be stopped, and tells those who asked.
pub(super) async fn go_on_stopping(bus: Bus, components: Vec<Arc<Process>>, registry: Arc<Registry>) {
    if bus.watch().wait_for(|state| *state == bus::State::Idle).await.is_ok() {
        stop_adopted(&components).await;
        registry.tickets.settle_carried(&wire::RequestName::Stop, None);
        registry.save();
    }
}

/// Ends what this image did not start and no stop of the bus has reached, each before what it needs or starts after.
pub(super) async fn stop_adopted(components: &[Arc<Process>]) {
    let stands_on = |one: &Arc<Process>, other: &Arc<Process>| {
        let (definition, name) = (one.definition(), &other.definition().name);
        definition.needs.contains(name) || definition.after.contains(name)
    };
    let mut left: Vec<&Arc<Process>> = components.iter().collect();
    while !left.is_empty() {
        let is_free = |one: &&Arc<Process>| !left.iter().any(|other| stands_on(other, one));
        let (mut now, later): (Vec<_>, Vec<_>) = left.iter().copied().partition(is_free);
        left = later;
        if now.is_empty() {
            now.append(&mut left); // a circle, which no configuration may have
        }
        for (component, ended) in now.iter().zip(join_all(now.iter().map(|component| component.leave_down())).await) {
            if let Err(failure) = ended {
                tracing::warn!(component.name = component.definition().name, %failure, "cannot stop");
            }
        }
    }
}
