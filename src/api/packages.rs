//! `PUT /api/v1/packages`: a package streams in, is verified and unpacked on the way, and described in the answer. `POST`
//! fetches one from the repository, `GET` lists what was received and waits; `GET /api/v1/repository` says what that offers.

use std::pin::pin;

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use futures_util::StreamExt;
use refit_updater::Digest;
use refit_updater::package::PackageError;
use refit_updater::receive::ReceiveError;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::extract::JsonBody;
use super::{Problem, Shared};
use crate::http::stall::with_minimum_rate;
use crate::update::UpdateError;
use crate::wire::{FetchBody, Package, Packages, Repository};

/// How much of a package lies between the connection and the unpacking.
const BETWEEN_BYTES: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    #[serde(default)]
    allow_downgrade: bool,
    /// The digest that was approved: another package is refused.
    digest: Option<Digest>,
}

/// `GET /api/v1/packages`: what was received and waits to be installed.
pub(super) async fn list(State(app): State<Shared>) -> Json<Packages> {
    Json(Packages { packages: app.manager.receiving().staged() })
}

pub(super) async fn receive(
    State(app): State<Shared>,
    Query(options): Query<Options>,
    request: Request,
) -> Result<(StatusCode, Json<Package>), Problem> {
    let total = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let stream = request.into_body().into_data_stream();
    let mut body = Box::pin(with_minimum_rate(stream, app.manager.receiving().receive_timeout()));
    let (reader, mut writer) = tokio::io::duplex(BETWEEN_BYTES);
    let feed = async {
        let mut broken = None;
        loop {
            match body.next().await {
                Some(Ok(chunk)) if writer.write_all(&chunk).await.is_ok() => {}
                // All is read, or nobody reads any more: the package was refused, or is complete.
                Some(Ok(_)) | None => break,
                Some(Err(source)) => {
                    broken = Some(source);
                    break;
                }
            }
        }
        drop(writer);
        broken
    };
    let (mut received, feed) =
        (pin!(app.manager.receiving().receive(reader, total, options.allow_downgrade)), pin!(feed));
    // Cancel-safe: what is dropped is a body that nobody wants any more, whether or not more of it comes.
    let (result, broken) = tokio::select! {
        biased;
        broken = feed => (None, broken),
        result = &mut received => (Some(result), None),
    };
    let result = match result {
        Some(result) => result,
        None => received.await,
    };
    let result = result.map_err(|error| match (error, broken) {
        (UpdateError::Receive(ReceiveError::Package { source: PackageError::Truncated { .. } }), Some(source)) => {
            UpdateError::Receive(PackageError::Input { source }.into())
        }
        (error, _) => error,
    });
    approved(&app, result, options.digest).await
}

/// `POST /api/v1/packages`: fetches a release from the repository.
pub(super) async fn fetch(
    State(app): State<Shared>,
    JsonBody(body): JsonBody<FetchBody>,
) -> Result<(StatusCode, Json<Package>), Problem> {
    let result = app.manager.receiving().fetch(body.version, body.allow_downgrade).await;
    approved(&app, result, body.digest).await
}

/// `GET /api/v1/repository`: what the repository offers.
pub(super) async fn check(State(app): State<Shared>) -> Result<Json<Repository>, Problem> {
    app.manager.receiving().check_repository().await.map(Json).map_err(|error| Problem::of(&error))
}

/// Answers with what was received, unless another digest was approved.
async fn approved(
    app: &Shared,
    result: Result<Package, UpdateError>,
    approved: Option<Digest>,
) -> Result<(StatusCode, Json<Package>), Problem> {
    let package = result.map_err(|error| Problem::of(&error))?;
    match approved.filter(|approved| *approved != package.digest) {
        None => Ok((StatusCode::CREATED, Json(package))),
        Some(approved) => {
            let found = package.digest;
            let manager = std::sync::Arc::clone(&app.manager);
            tokio::task::spawn_blocking(move || manager.receiving().discard(&found))
                .await
                .map_err(|source| Problem::of(&UpdateError::Worker { source }))?
                .map_err(|error| Problem::of(&error))?;
            Err(Problem::of(&UpdateError::NotApproved { found, approved }))
        }
    }
}

pub(super) async fn discard(State(app): State<Shared>, Path(digest): Path<Digest>) -> Result<StatusCode, Problem> {
    let manager = std::sync::Arc::clone(&app.manager);
    tokio::task::spawn_blocking(move || manager.receiving().discard(&digest))
        .await
        .map_err(|source| Problem::of(&UpdateError::Worker { source }))?
        .map_err(|error| Problem::of(&error))?;
    Ok(StatusCode::NO_CONTENT)
}
