//! `GET /api/v1/components/NAME/logs`: what a component printed, as one answer or followed as it comes.
//!
//! `n` is how many lines, `after` the number of the last line that somebody has seen: with it an answer begins behind that line.
//! `follow=true` never ends before the image does: as Server-Sent Events, or as JSON lines for who accepts
//! `application/x-ndjson`. The header [`CURSOR`] has the number to go on from when no line was seen.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;

use super::{Problem, Shared, access};
use crate::auth::Login;
use crate::wire::{LogLine, LogLines};

/// The header with the number to go on from.
pub const CURSOR: &str = "refit-cursor";
/// How many lines are given when nobody says how many.
const LINES_DEFAULT: usize = 100;
/// How many lines are given at once to who follows: memory for one answer, and a slow reader is not far behind.
const BATCH_LINES: usize = 1000;
/// A stream that is silent so long gets a comment, so that both ends notice a connection that broke, or a runtime that hangs.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long a browser waits before it connects again, in milliseconds: an exec takes less.
const RETRY_MS: u32 = 300;
const NDJSON: &str = "application/x-ndjson";

#[derive(Debug, Deserialize)]
pub(super) struct LogQuery {
    n: Option<usize>,
    after: Option<u64>,
    #[serde(default)]
    follow: bool,
}

pub(super) async fn logs(
    State(app): State<Shared>,
    Path(name): Path<String>,
    login: Option<Extension<Login>>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if !app.components.contains_key(&name) {
        return Err(Problem::missing(format!("there is no component {name:?}")));
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let by_line = text(header::ACCEPT.as_str()).is_some_and(|accepted| accepted.contains(NDJSON));
    let count = query.n.unwrap_or(LINES_DEFAULT);
    let logs = &app.context.registry.logs;
    // A browser that connects again asks as it did first, and says what it has seen.
    let seen = text("last-event-id").and_then(|text| text.parse().ok()).filter(|_| query.follow).or(query.after);
    let newest = *logs.watch(&name).borrow();
    let lines = match seen {
        Some(_) if query.follow => Vec::new(),
        Some(seen) => logs.after(&name, seen, count).await,
        None => logs.last(&name, count).await,
    };
    if query.follow {
        let cursor = lines.last().map(|line| line.seq).or(seen).unwrap_or(newest);
        let login = login.map(|Extension(login)| login);
        return Ok(follow((app, login), name, &lines, cursor, by_line));
    }
    if by_line {
        return Ok(([(header::CONTENT_TYPE, NDJSON)], write(&lines, true)).into_response());
    }
    let lines = lines.iter().map(|line| LogLine::clone(line)).collect();
    Ok(Json(LogLines { lines }).into_response())
}

/// Answers with `first`, then with every line after the number `cursor` as it comes.
fn follow(
    (app, login): (Shared, Option<Login>),
    name: String,
    first: &[Arc<LogLine>],
    cursor: u64,
    by_line: bool,
) -> Response {
    let newest = app.context.registry.logs.watch(&name);
    let state = (app, login, name, newest, cursor);
    let following = stream::unfold(state, move |(app, login, name, mut newest, seen)| async move {
        let lines = app.context.registry.logs.after(&name, seen, BATCH_LINES).await;
        if let Some(last) = lines.last() {
            let seen = last.seq;
            return Some((write(&lines, by_line), (app, login, name, newest, seen)));
        }
        // Cancel-safe: all three only wait. What is printed after the stop, the next image has.
        let text = tokio::select! {
            biased;
            changed = newest.wait_for(|seq| *seq > seen) => changed.is_ok().then(String::new),
            () = tokio::time::sleep(PING_EVERY) => Some(if by_line { "\n" } else { ": ping\n\n" }.to_owned()),
            () = app.stopping.cancelled() => None,
            () = access::ended(&app, login.as_ref()) => None,
        };
        text.map(|text| (text, (app, login, name, newest, seen)))
    });
    let begin = if by_line { String::new() } else { format!("retry: {RETRY_MS}\nid: {cursor}\n\n") };
    let first = format!("{begin}{}", write(first, by_line));
    let body = stream::once(async { first }).chain(following).map(|text| Ok::<Bytes, Infallible>(Bytes::from(text)));
    let kind = if by_line { NDJSON } else { "text/event-stream" };
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::HeaderName::from_static(CURSOR), cursor.to_string()),
    ];
    (headers, Body::from_stream(body)).into_response()
}

fn write(lines: &[Arc<LogLine>], by_line: bool) -> String {
    let each = lines.iter().map(|line| {
        let object = serde_json::to_string(&**line).unwrap_or_default(); // there is nothing in it that JSON cannot say
        if by_line { format!("{object}\n") } else { format!("id: {}\nevent: line\ndata: {object}\n\n", line.seq) }
    });
    each.collect()
}
