//! `/api/v1/bus`: the bus as it stands; asking it, and what became of that; publishing.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::{Extension, Json};
use refit_base::Exit;
use refit_bus::{self as bus, RequestKind};
use refit_updater::Digest;
use semver::Version;
use serde::Deserialize;

use super::access;
use super::extract::JsonBody;
use super::{Problem, Shared};
use crate::access::permission::is_reserved;
use crate::access::principal::Principal;
use crate::requests::Requests;
use crate::wire::{Bus, Channel, Fault, Publication, Published, RequestBody, Ticket, TicketAnswer, Unconfirmed};

/// The longest time that one call waits for a ticket's outcome.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What somebody asks: a [`RequestBody`], and nothing that is not understood.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Posted {
    request: String,
    digest: Option<Digest>,
    version: Option<Version>,
    confirm_within: Option<String>,
    #[serde(default)]
    restores: bool,
}

pub(super) async fn request(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    JsonBody(Posted { request, digest, version, confirm_within, restores }): JsonBody<Posted>,
) -> Result<Taken, Problem> {
    let body = RequestBody { request, digest, version, confirm_within, restores };
    let forbidden =
        RequestKind::from_name(&body.request).and_then(|ask| access::forbidden_request(&app, &principal, ask));
    if let Some(problem) = forbidden {
        return Err(problem);
    }
    let taken = app.requests.submit(body, &principal.origin()).map_err(|error| Problem::asking(&error))?;
    Ok(accepted(taken.ticket))
}

/// Returns the state, the channels with their listeners, and the peers.
pub(super) async fn show(State(app): State<Shared>) -> Json<Bus> {
    let channel = |(name, listeners): (String, Vec<String>)| {
        let built_in = bus::BUILT_IN.contains(&name.as_str());
        Channel { name, built_in, listeners }
    };
    Json(Bus {
        state: app.bus.state().into(),
        unconfirmed: app.bus.unconfirmed().map(Unconfirmed::from),
        channels: app.bus.channels().into_iter().map(channel).collect(),
        peers: app.peers.all(),
        faults: app.faults().iter().map(Fault::from).collect(),
        log: app.bus.log_counts().into(),
    })
}

/// Publishes, and returns what each listener answered.
pub(super) async fn publish(
    State(app): State<Shared>,
    JsonBody(Publication { channel, argument }): JsonBody<Publication>,
) -> Result<Json<Published>, Problem> {
    if is_reserved(&channel) {
        let detail = format!("nobody publishes on {channel:?} from outside");
        let remedy = "make a request instead, or use a channel of the appliance's own";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "built_in_channel", Exit::Usage, detail, remedy));
    }
    if !app.bus.knows(&channel) {
        let detail = format!("there is no channel {channel:?}");
        let remedy = "declare it below [bus] in appliance.toml; `refit bus state --json` lists those that are";
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_channel", Exit::Usage, detail, remedy));
    }
    let Ok(permit) = app.peers.permit() else {
        let remedy = "wait for those under way, then try again";
        let detail = "too many publications are under way";
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_much", Exit::TryLater, detail, remedy));
    };
    // Not ended with the connection: the listeners are called to the last, whoever published.
    let (answer, report) = tokio::sync::oneshot::channel();
    let bus = app.bus.clone();
    app.peers.spawn(async move {
        drop(answer.send(bus.publish(&channel, argument).await)); // whoever asked may have gone
        drop(permit);
    });
    match report.await {
        Ok(report) => Ok(Json(Published { report: (&report).into() })),
        Err(_) => {
            let detail = "the runtime ended before the publication was over";
            let remedy = "see `refit status`, then publish again";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "ended", Exit::TryLater, detail, remedy))
        }
    }
}

/// 202, where the ticket is found again, and the ticket.
pub(super) type Taken = (StatusCode, [(header::HeaderName, String); 1], Json<TicketAnswer>);

/// Returns the answer to a request that was taken.
pub(super) fn accepted(ticket: Ticket) -> Taken {
    let place = format!("/api/v1/bus/requests/{}", ticket.id);
    (StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(TicketAnswer { ticket }))
}

#[derive(Debug, Deserialize)]
pub(super) struct Wait {
    wait_ms: Option<u64>,
}

/// Returns a ticket; with `wait_ms` only when it has an outcome, or that time is over.
pub(super) async fn ticket(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Json<TicketAnswer>, Problem> {
    let tickets = &app.context.registry.tickets;
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
    let found = match tickets.get(&id) {
        Some(ticket) => Some(ticket),
        None => {
            // An update's outcome outlives its ticket.
            let (manager, id) = (std::sync::Arc::clone(&app.manager), id.clone());
            tokio::task::spawn_blocking(move || manager.ticket_of(&id)).await.ok().flatten()
        }
    };
    match found {
        Some(ticket) if !principal.sees_ticket_of(&ticket.origin) => {
            let reason = "a component without `read` sees the tickets of its own requests only";
            Err(access::not_permitted(reason, None))
        }
        Some(ticket) => Ok(Json(TicketAnswer { ticket })),
        None => Err(Problem::missing(format!("there is no ticket {id:?}, or it is too old"))),
    }
}
