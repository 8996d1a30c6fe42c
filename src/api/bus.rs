//! `/api/v1/bus/requests`: asking the bus, and what became of it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::{Extension, Json};
use refit_updater::journal::Kind;
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::Who;
use super::updates;
use super::{Problem, Shared};
use crate::bus::{Origin, Progress, Request};
use crate::tickets::TicketView;

/// The longest time that one call waits for a ticket's outcome.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    request: String,
    #[serde(flatten)]
    update: updates::Wanted,
}

pub(super) async fn request(
    State(app): State<Shared>,
    Extension(who): Extension<Who>,
    asked: Result<Json<Asked>, axum::extract::rejection::JsonRejection>,
) -> Result<Accepted, Problem> {
    let Json(asked) = asked.map_err(|error| Problem::usage(error.body_text()))?;
    let request = match asked.request.as_str() {
        "start" => Request::Start,
        "stop" => Request::Stop,
        "reload" => Request::Reload,
        "restart" => Request::Restart(app.manager.restart_in_place()),
        "exit" => Request::Exit,
        "update" => return updates::begin(&app, asked.update, Kind::Update, &who).await,
        "rollback" => return updates::begin(&app, asked.update, Kind::Rollback, &who).await,
        other => {
            let names = "start, stop, reload, restart, exit, update, rollback";
            return Err(Problem::usage(format!("{other:?} is no request: use one of {names}")));
        }
    };
    let estate = Arc::clone(&app.around.estate);
    let view = estate.tickets.open(request.name(), &who.0);
    let id = view.id.clone();
    let ticket = app.bus.request(request, Origin(who.0));
    // Resolved by a task of its own: whoever asked may have gone when the outcome comes.
    app.manager.spawn(async move {
        let (state, reason) = match ticket.outcome().await {
            Progress::Done | Progress::Accepted => ("done", None),
            Progress::Already => ("already", None),
            Progress::Failed(reason) => ("failed", Some(reason)),
            Progress::Refused(reason) => ("refused", Some(reason)),
        };
        estate.tickets.resolve(&id, state, reason);
        estate.save();
    });
    Ok(accepted(&view))
}

/// 202, where the ticket is found again, and the ticket.
pub(super) type Accepted = (StatusCode, [(header::HeaderName, String); 1], Json<Value>);

/// Returns the answer to a request that was taken.
pub(super) fn accepted(ticket: &TicketView) -> Accepted {
    let place = format!("/api/v1/bus/requests/{}", ticket.id);
    (StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(json!({ "ticket": ticket })))
}

#[derive(Debug, Deserialize)]
pub(super) struct Wait {
    wait_ms: Option<u64>,
}

/// Returns a ticket; with `wait_ms` only when it has an outcome, or that time is over.
pub(super) async fn ticket(
    State(app): State<Shared>,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Json<Value>, Problem> {
    let tickets = &app.around.estate.tickets;
    let limit = wait.wait_ms.map_or(Duration::ZERO, Duration::from_millis).min(WAIT_MAX);
    let mut changes = tickets.watch();
    let outcome = async {
        while changes.changed().await.is_ok() {
            if tickets.get(&id).is_none_or(|ticket| ticket.is_final()) {
                return;
            }
        }
    };
    if !limit.is_zero() && tickets.get(&id).is_some_and(|ticket| !ticket.is_final()) {
        // Cancel-safe: all three only wait.
        tokio::select! {
            () = outcome => {}
            () = tokio::time::sleep(limit) => {}
            () = app.stopping.cancelled() => {}
        }
    }
    match tickets.get(&id) {
        Some(ticket) => Ok(Json(json!({ "ticket": ticket }))),
        None => Err(Problem::missing(format!("there is no ticket {id:?}, or it is too old"))),
    }
}
