//! `refit rollback`: goes back to a release that was good.

use refit_base::Exit;
use refit_updater::attempt::Kind;
use semver::Version;

use super::at_rest::{self, AtRest, AtRestError};
use super::client::{Client, ClientError};
use super::context::Context;
use super::follow::ask_and_follow;
use super::said::{Said, in_json};
use crate::wire::{Destination, RequestName, Status};

#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    /// The release to go back to; the previous good one if none is named.
    version: Option<Version>,
}

pub(super) async fn run(context: &Context, rollback: &Rollback) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    // Asked before: what nobody answers to is not followed.
    match client.get::<Said<Status>>("/api/v1/status").await {
        Err(unavailable) if unavailable.is_at_rest() => {
            return at_rest::instead(context, unavailable, || roll_back_at_rest(context, rollback));
        }
        status => drop(status?),
    }
    let to = Destination { version: rollback.version.clone(), digest: None };
    ask_and_follow(context, &client, "/api/v1/rollback", &to, rollback.version.as_ref()).await
}

/// Has the release run from the next start on.
fn roll_back_at_rest(context: &Context, rollback: &Rollback) -> Result<(), AtRestError> {
    let rest = AtRest::take(context)?;
    let chosen = rest.go_to(rollback.version.as_ref(), Kind::Rollback, "asked for by `refit rollback`")?;
    context.print_text(&format!("{chosen}; {}", rest.then()));
    if context.json {
        context.print(&in_json(&at_rest::done(RequestName::Rollback, &chosen.to, chosen.is_on_trial())));
    }
    Ok(())
}
