//! `/api/v1/components`: the components, and what can be asked of one alone.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use refit_base::Exit;
use serde_json::{Value, json};

use super::{Problem, Shared};
use crate::component::{Health, Process, View};
use crate::peers::PeerView;

/// Returns what is shown of a component.
pub(super) fn view_json(view: &View, peers: &[PeerView]) -> Value {
    let why_unhealthy = match &view.health {
        Health::Unhealthy(reason) | Health::Doubtful(reason) => Some(reason.clone()),
        Health::None | Health::Unknown | Health::Healthy => None,
    };
    json!({
        "name": view.name,
        "kind": view.kind.name(),
        "state": view.state,
        "pid": view.pid,
        "generation": view.generation,
        "health": view.health.name(),
        "handover": view.handover,
        "release": view.release,
        "started_at": view.started_at,
        "restarts": view.restarts,
        "status": view.status,
        "announced": view.announced,
        "limits": view.limits,
        "last_run": view.last_run,
        "next_run_at": view.next_run_at,
        "peers": peers,
        "reason": view.reason.clone().or(why_unhealthy),
    })
}

/// Returns what is shown of every component.
pub(super) fn views(app: &Shared) -> Vec<Value> {
    let one = |(name, component): (&String, &Arc<Process>)| view_json(&component.view().borrow(), &app.peers.of(name));
    app.components.iter().map(one).collect()
}

pub(super) async fn list(State(app): State<Shared>) -> Json<Value> {
    let list = views(&app);
    Json(json!({ "components": list }))
}

pub(super) async fn act(
    State(app): State<Shared>,
    Path((name, action)): Path<(String, String)>,
) -> Result<(StatusCode, Json<Value>), Problem> {
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
        let remedy = "see its output with `refit component logs`";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "component_failed", Exit::Failed, detail, remedy)
    })?;
    let view = view_json(&component.view().borrow(), &app.peers.of(&name));
    let mut answer = json!({ "component": view });
    if let Some(warning) = warning {
        answer["warning"] = json!(warning);
    }
    Ok((StatusCode::OK, Json(answer)))
}
