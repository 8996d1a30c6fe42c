//! `POST /api/v1/updates` and `POST /api/v1/rollback`: going to another release.

use axum::Extension;
use axum::extract::State;
use refit_bus::RequestKind;

use super::bus::{Taken, accepted};
use super::extract::{JsonBody, OptionalJsonBody};
use super::{Problem, Shared};
use crate::access::principal::Principal;
use crate::requests::{RequestError, Requests};
use crate::wire::{Destination, RequestBody};

type Answer = Result<Taken, Problem>;

pub(super) async fn update(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    JsonBody(destination): JsonBody<Destination>,
) -> Answer {
    begin(&app, destination, RequestKind::Update, &principal).map_err(|error| Problem::asking(&error))
}

/// A body is optional: no body is the previous release.
pub(super) async fn rollback(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    OptionalJsonBody(destination): OptionalJsonBody<Destination>,
) -> Answer {
    begin(&app, destination, RequestKind::Rollback, &principal).map_err(|error| Problem::asking(&error))
}

/// Makes a request of this `kind` for `principal`.
fn begin(
    app: &Shared,
    Destination { digest, version }: Destination,
    kind: RequestKind,
    principal: &Principal,
) -> Result<Taken, RequestError> {
    let body = RequestBody { request: kind.name().to_owned(), digest, version, ..RequestBody::default() };
    app.requests.submit(body, &principal.origin()).map(|taken| accepted(taken.ticket))
}
