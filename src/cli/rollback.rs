//! `refit rollback`: goes back to a release that was good.

use refit_base::Exit;
use semver::Version;
use serde_json::json;

use super::client::{Client, ClientError};
use super::context::Context;
use super::follow::ask_and_follow;

#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    /// The release to go back to; the previous good one if none is named.
    version: Option<Version>,
}

pub(super) async fn run(context: &Context, rollback: &Rollback) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    // Asked before: what nobody answers to is not followed.
    client.get("/api/v1/status").await?;
    let to = rollback.version.as_ref().map(Version::to_string);
    ask_and_follow(context, &client, "/api/v1/rollback", &json!({ "version": rollback.version }), to.as_deref()).await
}
