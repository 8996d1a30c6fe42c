//! `POST /api/v1/updates` and `POST /api/v1/rollback`: going to another release.

use axum::extract::State;
use axum::{Extension, Json};

use super::access::Who;
use super::bus::{Accepted, accepted};
use super::{Problem, Shared};
use crate::bus::Ask;
use crate::desk::{AskError, Asking, Wanted};

type Parsed = Result<Json<Wanted>, axum::extract::rejection::JsonRejection>;
type Answer = Result<Accepted, Problem>;

pub(super) async fn update(State(app): State<Shared>, Extension(who): Extension<Who>, wanted: Parsed) -> Answer {
    let Json(wanted) = wanted.map_err(|error| Problem::usage(error.body_text()))?;
    begin(&app, wanted, Ask::Update, &who).map_err(|error| Problem::asking(&error))
}

pub(super) async fn rollback(
    State(app): State<Shared>,
    Extension(who): Extension<Who>,
    body: axum::body::Bytes,
) -> Answer {
    // A body is optional: no body is the previous release.
    let wanted = if body.is_empty() {
        Wanted::default()
    } else {
        serde_json::from_slice(&body).map_err(|error| Problem::usage(error.to_string()))?
    };
    begin(&app, wanted, Ask::Rollback, &who).map_err(|error| Problem::asking(&error))
}

/// Makes the request `ask` for `who`.
fn begin(app: &Shared, wanted: Wanted, ask: Ask, who: &Who) -> Result<Accepted, AskError> {
    let wanted = Wanted { request: ask.name().to_owned(), ..wanted };
    app.desk.ask(wanted, &who.0).map(|asked| accepted(&asked.ticket))
}
