//! What did not start although the site runs: tried again as its restart policy says, and then what needs it.

use std::collections::BTreeSet;
use std::sync::Arc;

use refit_bus::{Bus, State};
use tokio::task::JoinSet;

use crate::component::Process;

/// Has the components `failed` be tried again, and starts those that need them when all they need runs. Ends when the site does
/// not run any more: the next start is another matter.
pub(super) async fn revive(bus: Bus, components: Vec<Arc<Process>>, failed: BTreeSet<String>) {
    let mut states = bus.watch();
    if states.wait_for(|state| *state != State::Starting).await.is_err() {
        return;
    }
    let left_out = left_out(&components, &failed);
    let mut tasks = JoinSet::new();
    for component in &components {
        let name = &component.definition().name;
        if failed.contains(name) {
            let component = Arc::clone(component);
            tasks.spawn(async move { retry(&component).await });
        } else if left_out.contains(name) {
            tasks.spawn(start_when_needs_run(Arc::clone(component), components.clone()));
        }
    }
    let all = async { while tasks.join_next().await.is_some() {} };
    // Cancel-safe: a component that nobody waits for any more is as its own task left it.
    tokio::select! {
        () = all => {}
        _left = states.wait_for(|state| *state != State::Running) => {}
    }
}

/// Returns what was not started because something that it needs had failed, or was left out itself.
fn left_out(components: &[Arc<Process>], failed: &BTreeSet<String>) -> BTreeSet<String> {
    let mut missing = failed.clone();
    loop {
        let needs_one = |component: &&Arc<Process>| {
            let definition = component.definition();
            !missing.contains(&definition.name) && definition.needs.iter().any(|name| missing.contains(name))
        };
        let Some(next) = components.iter().find(needs_one) else { break };
        missing.insert(next.definition().name.clone());
    }
    &missing - failed
}

/// Starts a component that was left out because something that it needs had failed. One whose process lives on from the image
/// before goes on at once: nobody would have stopped it either.
async fn start_when_needs_run(component: Arc<Process>, components: Vec<Arc<Process>>) {
    if component.view().borrow().pid.is_none() {
        for name in &component.definition().needs {
            let Some(needed) = components.iter().find(|other| other.definition().name == *name) else { continue };
            // What counts is that it came up at all; what becomes of it then is its own policy's.
            if needed.view().wait_for(|view| view.state.is_up()).await.is_err() {
                return;
            }
        }
    }
    if let Err(failure) = component.start_again().await {
        tracing::warn!(component.name = component.definition().name, %failure, "cannot start");
        retry(&component).await;
    }
}

async fn retry(component: &Process) {
    if let Err(failure) = component.retry().await {
        tracing::warn!(component.name = component.definition().name, %failure, "cannot try again");
    }
}
