//! `refit releases`: the releases on this appliance; `remove` takes one away, also while nothing runs.

use refit_base::{Exit, Report, Reported};
use refit_updater::Store;
use refit_updater::journal::{self, JournalError};
use refit_updater::release::StoreError;
use refit_updater::removal::{self, RemovalError};
use reqwest::Method;
use semver::Version;
use serde_json::json;

use super::client::{Client, ClientError, run_online};
use super::context::Context;
use super::table::{cell, list, print_table, short};
use crate::home::{HomeError, HomeLock};

#[derive(Debug, clap::Args)]
pub(super) struct Releases {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Remove a release and its configuration: not the running one, the last good one, or one on trial.
    Remove {
        /// The release.
        version: Version,
    },
}

/// Why a release of an appliance at rest is not removed.
#[derive(Debug, thiserror::Error)]
enum AtRestError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Removal(#[from] RemovalError),
}

impl Reported for AtRestError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Home(error) => error.report(),
            Self::Journal(error) => error.report(),
            Self::Store(error) => error.report(),
            Self::Removal(error) => error.report(),
        }
    }
}

pub(super) fn run(context: &Context, releases: &Releases) -> Exit {
    match &releases.action {
        None => run_online(context, list_releases(context)),
        Some(Action::Remove { version }) => run_online(context, remove(context, version)),
    }
}

/// Asks the running appliance to remove `version`; where none answers, removes it here.
async fn remove(context: &Context, version: &Version) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    let asked = client.json_long(client.request(Method::DELETE, &format!("/api/v1/releases/{version}"))).await;
    let removed = match asked {
        Ok(removed) => removed,
        Err(unavailable @ ClientError::Unavailable { .. }) => match remove_at_rest(context, version) {
            Ok(bytes) => json!({ "removed": version, "installed_bytes": bytes }),
            // A guard is there, and its runtime is not: it decides, once it answers.
            Err(AtRestError::Home(HomeError::Missing { .. } | HomeError::InUse { .. })) => return Err(unavailable),
            Err(error) => return Ok(context.fail(&error)),
        },
        Err(error) => return Err(error),
    };
    if context.json {
        context.print(&removed.to_string());
    } else {
        context.print(&match removed["installed_bytes"].as_u64() {
            None => format!("release {version} is removed"),
            Some(bytes) => format!("release {version} is removed; it had {bytes} bytes, those that it shared included"),
        });
    }
    Ok(Exit::Done)
}

/// Removes `version` from a home that no guard has. Returns how large it was, as far as that is known.
fn remove_at_rest(context: &Context, version: &Version) -> Result<Option<u64>, AtRestError> {
    let home = &context.home;
    if !journal::exists(home.path()) {
        return Err(HomeError::Missing { home: home.path().to_owned() }.into());
    }
    let _lock = HomeLock::acquire(home, std::process::id(), || {})?;
    let store = Store::open(home.path())?;
    let journal = journal::load(home.path())?.ok_or_else(|| HomeError::Empty { home: home.path().to_owned() })?;
    let bytes = removal::remove::<AtRestError>(&store, &journal, version, &[])?;
    if journal.good.contains(version) {
        let mut journal = journal;
        journal.good.retain(|good| good != version);
        journal::store(home.path(), &journal)?;
    }
    Ok(bytes)
}

async fn list_releases(context: &Context) -> Result<Exit, ClientError> {
    let releases = Client::new(&context.home)?.get("/api/v1/releases").await?;
    if context.json {
        context.print(&releases.to_string());
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = list(&releases["releases"])
        .map(|row| {
            vec![
                cell(&row["version"]),
                cell(&row["state"]),
                cell(&row["installed_bytes"]),
                short(&cell(&row["digest"])),
                cell(&row["reason"]),
            ]
        })
        .collect();
    print_table(context, &["RELEASE", "STATE", "BYTES", "DIGEST", "WHY"], &rows);
    let staged: Vec<Vec<String>> = list(&releases["staged"])
        .map(|row| ["version", "received_at", "installed_bytes", "digest"].map(|key| cell(&row[key])).to_vec())
        .collect();
    if !staged.is_empty() {
        context.print("");
        print_table(context, &["STAGED", "RECEIVED", "BYTES", "DIGEST"], &staged);
    }
    Ok(Exit::Done)
}
