//! `refit releases`: the releases on this appliance; `remove` takes one away, also while nothing runs.

use std::str::FromStr;

use refit_base::Exit;
use refit_updater::Digest;
use refit_updater::removal::{self, RemovalError};
use reqwest::Method;
use semver::Version;
use serde::Serialize;

use super::at_rest::{self, AtRest, AtRestError, Files};
use super::client::{Client, ClientError, run_online};
use super::context::Context;
use super::said::{Said, in_json};
use super::table::{cell, print_table, short};
use crate::api::describe_releases;
use crate::home::HomeError;
use crate::wire::{Releases as OnDisk, Removed, Status};

#[derive(Debug, clap::Args)]
pub(super) struct Releases {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Remove a release and its configuration: not the running one, the last good one, or one on trial. Or a package that is staged.
    Remove {
        /// The release; or the version or the digest of a package that is staged.
        #[arg(value_name = "VERSION|DIGEST")]
        what: What,
    },
}

/// A package that was removed from staging.
#[derive(Debug, Serialize)]
struct Discarded {
    /// Its digest.
    removed: Digest,
}

/// What is removed.
#[derive(Debug, Clone)]
enum What {
    Version(Version),
    Package(Digest),
}

impl FromStr for What {
    type Err = semver::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Package).or_else(|_no_digest| text.parse().map(Self::Version))
    }
}

pub(super) fn run(context: &Context, releases: &Releases) -> Exit {
    match &releases.action {
        None => run_online(context, list_releases(context)),
        Some(Action::Remove { what: What::Version(version) }) => run_online(context, remove(context, version)),
        Some(Action::Remove { what: What::Package(digest) }) => run_online(context, discard(context, &[*digest])),
    }
}

/// Asks the running appliance to remove `version`; where none answers, removes it here.
async fn remove(context: &Context, version: &Version) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    let path = format!("/api/v1/releases/{version}");
    // Asked before: what nobody answers to is not left for a runtime that starts later.
    let asked = match client.get::<Said<Status>>("/api/v1/status").await {
        Ok(_) => client.json_long(client.request(Method::DELETE, &path)).await,
        Err(error) => Err(error),
    };
    let removed: Said<Removed> = match asked {
        Ok(removed) => removed,
        Err(unavailable) if unavailable.is_at_rest() => match remove_at_rest(context, version) {
            Ok(bytes) => Said::here(Removed { removed: version.clone(), installed_bytes: bytes }),
            Err(AtRestError::Home(HomeError::Missing { .. } | HomeError::Empty { .. })) => return Err(unavailable),
            Err(error) => return Ok(context.fail(&error)),
        },
        Err(unknown) if unknown.is_missing() => {
            let staged = staged(&client, version).await?;
            return if staged.is_empty() { Err(unknown) } else { discard(context, &staged).await };
        }
        Err(error) => return Err(error),
    };
    if context.json {
        context.print(&removed.to_string());
    } else {
        context.print(&match removed.installed_bytes {
            None => format!("release {version} is removed"),
            Some(bytes) => format!("release {version} is removed; it had {bytes} bytes, those that it shared included"),
        });
    }
    Ok(Exit::Done)
}

/// Returns the digests of the packages of release `version` that are staged.
async fn staged(client: &Client, version: &Version) -> Result<Vec<Digest>, ClientError> {
    let releases: OnDisk = client.get("/api/v1/releases").await?;
    Ok(releases.staged.iter().filter(|package| package.version == *version).map(|package| package.digest).collect())
}

/// Removes packages that are staged.
async fn discard(context: &Context, digests: &[Digest]) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    for digest in digests {
        client.send(client.request(Method::DELETE, &format!("/api/v1/packages/{digest}"))).await?;
        if context.json {
            context.print(&in_json(&Discarded { removed: *digest }));
        } else {
            context.print(&format!("the staged package {digest} is removed"));
        }
    }
    Ok(Exit::Done)
}

/// Removes `version` from a home that no guard has. Returns how large it was, as far as that is known.
fn remove_at_rest(context: &Context, version: &Version) -> Result<Option<u64>, AtRestError> {
    let rest = AtRest::take(context)?;
    let before = rest.files.journal(context)?;
    // An update that was cut short is over: nothing runs that could end it.
    let mut journal = before.at_rest();
    let removed = removal::remove::<AtRestError>(&rest.files.store, &journal, version, &[]);
    let bytes = removed.map_err(|error| {
        let AtRestError::Removal(RemovalError::UnderWay { version, from, to }) = error else { return error };
        AtRestError::Waits { version, from, to }
    })?;
    journal.good.retain(|good| good != version);
    if journal != before {
        rest.store(&journal)?;
    }
    Ok(bytes)
}

async fn list_releases(context: &Context) -> Result<Exit, ClientError> {
    match Client::new(&context.home)?.get("/api/v1/releases").await {
        Err(unavailable) if unavailable.is_at_rest() => {
            at_rest::instead(context, unavailable, || print_at_rest(context))
        }
        releases => Ok(print(context, &releases?)),
    }
}

/// Prints what the files say.
fn print_at_rest(context: &Context) -> Result<(), AtRestError> {
    let files = Files::look(context)?;
    let journal = files.as_seen().ok_or_else(|| context.home.without_journal()).map_err(AtRestError::from)?;
    let releases = describe_releases(&journal, &files.store)?;
    print(context, &Said::here(OnDisk { releases, staged: Vec::new() }));
    Ok(())
}

fn print(context: &Context, releases: &Said<OnDisk>) -> Exit {
    if context.json {
        context.print(&releases.to_string());
        return Exit::Done;
    }
    let rows: Vec<Vec<String>> = releases
        .releases
        .iter()
        .map(|row| {
            vec![
                row.version.to_string(),
                row.state.to_string(),
                cell(row.installed_bytes),
                short(&cell(row.digest)),
                cell(row.reason.as_ref()),
            ]
        })
        .collect();
    print_table(context, &["RELEASE", "STATE", "BYTES", "DIGEST", "WHY"], &rows);
    let staged: Vec<Vec<String>> = releases
        .staged
        .iter()
        .map(|row| {
            let (version, bytes, digest) = (row.version.to_string(), row.installed_bytes.to_string(), row.digest);
            vec![version, row.received_at.clone(), bytes, digest.to_string()]
        })
        .collect();
    if !staged.is_empty() {
        context.print("");
        print_table(context, &["STAGED", "RECEIVED", "BYTES", "DIGEST"], &staged);
    }
    Exit::Done
}
