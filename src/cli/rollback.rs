//! `refit rollback`: goes back to a release that was good.

use refit_base::Exit;
use semver::Version;
use serde_json::json;

use super::client::{Client, ClientError};
use super::context::Context;
use super::follow::follow;

#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    /// The release to go back to; the previous good one if none is named.
    version: Option<Version>,
}

pub(super) async fn run(context: &Context, rollback: &Rollback) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    let answer = client.post("/api/v1/rollback", &json!({ "version": rollback.version })).await?;
    follow(context, &client, answer["ticket"]["id"].as_str().unwrap_or_default()).await
}
