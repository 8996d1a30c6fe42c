//! `PUT /api/v1/packages`: a package streams in, is verified and unpacked on the way, and described in the answer.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use futures_util::StreamExt;
use refit_updater::Digest;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::{Problem, Shared};
use crate::update::{PackageView, UpdateError};

/// How much of a package lies between the connection and the unpacking.
const BETWEEN_BYTES: usize = 1 << 20;
/// How long the rest of a package that was refused is read, so that the sender gets to read the answer.
const REST_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
pub(super) struct Options {
    #[serde(default)]
    allow_downgrade: bool,
}

pub(super) async fn receive(
    State(app): State<Shared>,
    Query(options): Query<Options>,
    request: Request,
) -> Result<(StatusCode, Json<PackageView>), Problem> {
    let total = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = request.into_body().into_data_stream();
    let (reader, mut writer) = tokio::io::duplex(BETWEEN_BYTES);
    let feed = async {
        while let Some(Ok(chunk)) = body.next().await {
            if writer.write_all(&chunk).await.is_err() {
                break; // nobody reads any more: the package was refused, or is complete
            }
        }
        drop(writer);
        body
    };
    let (result, mut body) = tokio::join!(app.manager.receive(reader, total, options.allow_downgrade), feed);
    if result.is_err() {
        let rest = async { while let Some(Ok(_)) = body.next().await {} };
        drop(tokio::time::timeout(REST_MAX, rest).await);
    }
    match result {
        Ok(package) => Ok((StatusCode::CREATED, Json(package))),
        Err(error) => Err(Problem::of(&error)),
    }
}

pub(super) async fn discard(State(app): State<Shared>, Path(digest): Path<Digest>) -> Result<StatusCode, Problem> {
    let manager = std::sync::Arc::clone(&app.manager);
    tokio::task::spawn_blocking(move || manager.discard(&digest))
        .await
        .map_err(|source| Problem::of(&UpdateError::Worker { source }))?
        .map_err(|error| Problem::of(&error))?;
    Ok(StatusCode::NO_CONTENT)
}
