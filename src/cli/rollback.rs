//! `refit rollback`: goes back to a release that was good.

use refit_base::Exit;
use refit_updater::attempt::Kind;
use semver::Version;
use serde_json::json;

use super::at_rest::{self, AtRest, AtRestError};
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
    match client.get("/api/v1/status").await {
        Err(unavailable) if unavailable.is_at_rest() => {
            return at_rest::instead(context, unavailable, || roll_back_at_rest(context, rollback));
        }
        status => drop(status?),
    }
    let to = rollback.version.as_ref().map(Version::to_string);
    ask_and_follow(context, &client, "/api/v1/rollback", &json!({ "version": rollback.version }), to.as_deref()).await
}

/// Has the release run from the next start on.
fn roll_back_at_rest(context: &Context, rollback: &Rollback) -> Result<(), AtRestError> {
    let rest = AtRest::take(context)?;
    let chosen = rest.go_to(rollback.version.as_ref(), Kind::Rollback, "asked for by `refit rollback`")?;
    context.print_text(&format!("{chosen}; {}", rest.then()));
    if context.json {
        context.print(&at_rest::ticket("rollback", &chosen.to, chosen.is_on_trial()).to_string());
    }
    Ok(())
}
