//! `POST /api/v1/updates` and `POST /api/v1/rollback`: going to another release.

use axum::extract::State;
use axum::{Extension, Json};
use refit_updater::Digest;
use refit_updater::journal::Kind;
use semver::Version;
use serde::Deserialize;

use super::access::Who;
use super::bus::{Accepted, accepted};
use super::{Problem, Shared};
use crate::update::Target;

/// Which release.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    digest: Option<Digest>,
    version: Option<Version>,
}

type Parsed = Result<Json<Wanted>, axum::extract::rejection::JsonRejection>;
type Answer = Result<Accepted, Problem>;

pub(super) async fn update(State(app): State<Shared>, Extension(who): Extension<Who>, wanted: Parsed) -> Answer {
    let Json(wanted) = wanted.map_err(|error| Problem::usage(error.body_text()))?;
    begin(&app, wanted, Kind::Update, &who).await
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
    begin(&app, wanted, Kind::Rollback, &who).await
}

/// Begins an update or a rollback for `who`.
pub(super) async fn begin(app: &Shared, wanted: Wanted, kind: Kind, who: &Who) -> Answer {
    let target = match (wanted.digest, wanted.version, kind) {
        (Some(digest), None, Kind::Update) => Target::Digest(digest),
        (None, Some(version), Kind::Update | Kind::Rollback) => Target::Version(version),
        (None, None, Kind::Rollback) => Target::Previous,
        (Some(_), _, Kind::Rollback) => return Err(Problem::usage("a rollback goes to a version, not to a digest")),
        (Some(_), Some(_), Kind::Update) | (None, None, Kind::Update) => {
            return Err(Problem::usage(
                "name the digest of a received package, or the version of an installed release",
            ));
        }
    };
    match app.manager.begin(target, kind, &who.0) {
        Ok(ticket) => Ok(accepted(&ticket)),
        Err(error) => Err(Problem::of(&error)),
    }
}
