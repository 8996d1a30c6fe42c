//! `/api/v1/components`: the components, and what can be asked of one alone.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use refit_base::Exit;

use super::{Problem, Shared};
use crate::component::Process;
use crate::wire::{Acted, Component, Components};

/// Returns what is shown of every component.
pub(super) fn views(app: &Shared) -> Vec<Component> {
    let one = |(name, component): (&String, &Arc<Process>)| component.view().borrow().shown(app.peers.of(name));
    app.components.iter().map(one).collect()
}

pub(super) async fn list(State(app): State<Shared>) -> Json<Components> {
    Json(Components { components: views(&app) })
}

pub(super) async fn act(
    State(app): State<Shared>,
    Path((name, action)): Path<(String, String)>,
) -> Result<Json<Acted>, Problem> {
    let component =
        app.components.get(&name).ok_or_else(|| Problem::missing(format!("there is no component {name:?}")))?;
    let mut warning = None;
    let done = match action.as_str() {
        "start" => component.start_alone().await,
        "stop" => component.stop_and_stay().await,
        "restart" => {
            // One that did not stop well is gone all the same: it is not left down for that.
            warning = component.stop_alone().await.err().map(|failure| failure.to_string());
            component.start_alone().await
        }
        _ => return Err(Problem::missing(format!("{action:?} is no action: use start, stop or restart"))),
    };
    done.map_err(|failure| {
        let detail = format!("cannot {action} the component {name}: {failure}");
        let remedy = format!("see its output with `refit component logs {name}`");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "component_failed", Exit::Failed, detail, &remedy)
    })?;
    let component = component.view().borrow().shown(app.peers.of(&name));
    Ok(Json(Acted { component, warning }))
}
