//! `GET /api/v1/events`: what happens, as Server-Sent Events, or as JSON lines for who accepts `application/x-ndjson`.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;

use super::{Shared, access};
use crate::auth::Login;
use crate::wire::EventRecord;

/// A stream that is silent so long gets a comment, so that both ends notice a connection that broke, or a runtime that hangs.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long a browser waits before it connects again, in milliseconds: an exec takes less.
const RETRY_MS: u32 = 300;
const NDJSON: &str = "application/x-ndjson";

#[derive(Debug, Deserialize)]
pub(super) struct After {
    after: Option<u64>,
}

pub(super) async fn stream(
    State(app): State<Shared>,
    login: Option<Extension<Login>>,
    Query(query): Query<After>,
    headers: HeaderMap,
) -> Response {
    let lines = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accepted| accepted.contains(NDJSON));
    let events = &app.context.registry.events;
    let newest = events.watch();
    let last_seen = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .or(query.after)
        .map_or_else(|| *newest.borrow(), |seen| events.resume(seen));
    let state = (app, login.map(|Extension(login)| login), newest, last_seen);
    let following = stream::unfold(state, move |(app, login, mut newest, seen)| async move {
        let events = app.context.registry.events.after(seen);
        if let Some(last) = events.last() {
            let seen = last.id;
            // There is nothing in an event that JSON cannot say.
            let text: String = events.iter().filter_map(|event| write(event, lines).ok()).collect();
            return Some((text, (app, login, newest, seen)));
        }
        // Cancel-safe: all three only wait. An event that was published before the stop is still sent.
        let text = tokio::select! {
            biased;
            changed = newest.wait_for(|id| *id > seen) => changed.is_ok().then(String::new),
            () = tokio::time::sleep(PING_EVERY) => Some(if lines { "\n" } else { ": ping\n\n" }.to_owned()),
            () = app.stopping.cancelled() => None,
            () = access::ended(&app, login.as_ref()) => None,
        };
        text.map(|text| (text, (app, login, newest, seen)))
    });
    let begin = if lines { String::new() } else { format!("retry: {RETRY_MS}\n\n") };
    let body = stream::once(async { begin }).chain(following).map(|text| Ok::<Bytes, Infallible>(Bytes::from(text)));
    let kind = if lines { NDJSON } else { "text/event-stream" };
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], Body::from_stream(body)).into_response()
}

/// Returns the event as a JSON line, or as a Server-Sent Event, whose data says the time, too.
fn write(event: &EventRecord, lines: bool) -> serde_json::Result<String> {
    if lines {
        return Ok(format!("{}\n", serde_json::to_string(event)?));
    }
    let mut data = event.event.data()?;
    if let Some(object) = data.as_object_mut() {
        object.insert("at".to_owned(), event.at.clone().into());
    }
    Ok(format!("id: {}\nevent: {}\ndata: {data}\n\n", event.id, event.event.name()))
}
