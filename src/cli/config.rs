//! `refit config check`: every mistake in a configuration, before anything is packed or started.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use refit_base::{Chain, Exit, Report, Reported};
use refit_updater::Store;
use refit_updater::config::{Unread, unread as unread_in, unread_live};
use refit_updater::release::{Damage, StoreError};
use semver::Version;
use serde::Serialize;

use super::at_rest::{AtRestError, Files};
use super::client::Client;
use super::context::Context;
use super::said::in_json;
use crate::component::{Obstacle, Places, find_obstacles, find_obstacles_in_tree};
use crate::config::{self, ConfigError, Mistake, OperatorsError, Programs};
use crate::handover::beside::clash;
use crate::handover::bind::bind;
use crate::handover::listener::BindError;
use crate::home::Home;
use crate::wire::Status;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Config {
    /// List every mistake in appliance.toml and local.toml with its line and column.
    Check {
        /// A release that is to be packed; without it the one that this home runs, on this machine.
        dir: Option<PathBuf>,
        /// Lay this file over the release's, as local.toml does in a home.
        #[arg(long, value_name = "FILE", requires = "dir")]
        local: Option<PathBuf>,
    },
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    AtRest(#[from] AtRestError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Operators(#[from] OperatorsError),
    #[error("there is no directory {}", path.display())]
    NoDirectory { path: PathBuf },
    #[error("release {version} is damaged: {}", Chain(&**damage))]
    Damaged { version: Version, damage: Box<Damage> },
    #[error("components do not reach {}", counted(obstacles.len(), "thing that they need", "things that they need"))]
    NotReached { obstacles: Vec<Obstacle> },
    #[error(transparent)]
    Bind(#[from] BindError),
}

impl Reported for CheckError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::AtRest(error) => error.report(),
            Self::Store(error) => error.report(),
            Self::Config(error) => error.report(),
            Self::Operators(error) => error.report(),
            Self::NoDirectory { .. } => Report::new(
                "file_unreadable",
                Exit::Usage,
                "name the directory of a release: one with an appliance.toml",
            ),
            Self::Damaged { .. } => Report::new("release_damaged", Exit::Failed, StoreError::MADE_WHOLE),
            Self::Bind(_) => Report::new(
                "address_in_use",
                Exit::Config,
                "end the program that has the address, or choose another one in local.toml, then check again",
            ),
            Self::NotReached { .. } => {
                Report::new("program_not_reached", Exit::Config, "open the way as each line says, then check again")
            }
        }
    }
}

/// What was found, in JSON.
#[derive(Serialize)]
struct Checked<'a> {
    mistakes: &'a [Mistake],
    unreachable: &'a [Obstacle],
    unread: Vec<&'a Unread>,
}

pub(super) fn run(context: &Context, config: &Config) -> Exit {
    let Config::Check { dir, local } = config;
    let mut found = Vec::new();
    let checked = check(context, dir.as_ref(), local.as_ref(), &mut found);
    let (none, nowhere) = (Vec::new(), Vec::new());
    let (mistakes, obstacles) = match &checked {
        Err(CheckError::Config(ConfigError::Mistakes { mistakes })) => (mistakes, &nowhere),
        Err(CheckError::NotReached { obstacles }) => (&none, obstacles),
        Ok(()) => (&none, &nowhere),
        Err(
            error @ (CheckError::AtRest(_)
            | CheckError::Store(_)
            | CheckError::Config(_)
            | CheckError::NoDirectory { .. }
            | CheckError::Operators(_)
            | CheckError::Damaged { .. }
            | CheckError::Bind(_)),
        ) => return context.fail(error),
    };
    if context.json {
        let unread: Vec<_> = found.iter().map(|(_, unread)| unread).collect();
        context.print(&in_json(&Checked { mistakes, unreachable: obstacles, unread }));
    }
    for (dir, Unread { path, why }) in &found {
        let name = if path.is_empty() { dir.clone() } else { format!("{dir}/{path}") };
        context.print_text(&format!("warning: {name} cannot be read: {why}"));
    }
    for mistake in mistakes {
        context.print_text(&mistake.to_string());
    }
    for obstacle in obstacles {
        context.print_text(&obstacle.to_string());
    }
    match &checked {
        Ok(()) => {
            context.print_text("no mistakes");
            Exit::Done
        }
        Err(error @ CheckError::NotReached { .. }) => context.fail(error),
        Err(error) => {
            let detail = format!("{} in the configuration", counted(mistakes.len(), "mistake", "mistakes"));
            context.print_failure(&detail, error.code(), error.remedy(), error.exit())
        }
    }
}

/// Checks; adds to `unread` what of the configuration cannot be read, and in which directory: that is no mistake, for the appliance does
/// without.
fn check(
    context: &Context,
    dir: Option<&PathBuf>,
    local: Option<&PathBuf>,
    unread: &mut Vec<(String, Unread)>,
) -> Result<(), CheckError> {
    if let Some(dir) = dir {
        let dir = context.path(dir);
        if !dir.is_dir() {
            return Err(CheckError::NoDirectory { path: dir });
        }
        unread.extend(unread_in(&dir.join("config")).into_iter().map(|found| ("config".to_owned(), found)));
        let local = local.map_or_else(|| dir.join(config::NO_LOCAL_FILE), |local| context.path(local));
        let config = config::Config::load_with_programs(&Programs::anywhere(&dir), &local)?;
        return reached(find_obstacles_in_tree(&config, &dir));
    }
    let files = Files::look(context)?;
    let journal = files.as_seen().ok_or_else(|| AtRestError::from(context.home.without_journal()))?;
    let (store, version) = (&files.store, journal.state.wanted().clone());
    check_home(context, store, &version, unread).map_err(|error| {
        match (&error, store.find_damage(&version, &mut || {})) {
            // What was signed is not to be edited: its package brings it again.
            (CheckError::Store(_) | CheckError::Config(_), Ok(Some(damage))) => {
                CheckError::Damaged { version, damage: Box::new(damage) }
            }
            _ => error,
        }
    })
}

/// Checks the release `version` on this machine, with the settings of this home. Adds to `unread` what of its live configuration cannot be read.
fn check_home(
    context: &Context,
    store: &Store,
    version: &Version,
    unread: &mut Vec<(String, Unread)>,
) -> Result<(), CheckError> {
    let home = context.home.path();
    let release = store.release(version)?;
    let found = unread_live(&store.config_dir(&release.version)).into_iter();
    unread.extend(found.map(|found| (format!("config/{}", release.version), found)));
    let search = context.process.environment.get(OsStr::new("PATH")).map(OsString::as_os_str);
    let programs = Programs::here(&release.dir, search);
    let config = config::Config::load_with_programs(&programs, &home.join(config::LOCAL_FILE))?;
    config.operators_group()?;
    try_listeners(&context.home, &config)?;
    let places = Places {
        home: context.home.clone(),
        search: search.map(OsStr::to_owned),
        release: release.dir,
        version: release.version,
    };
    reached(find_obstacles(&config, &places))
}

/// Finds out whether the listeners can be had. The appliance itself may run, and have them; another address at one of its ports it lets
/// itself have.
///
/// # Errors
/// Another program has an address, or the machine does not have it. What this account may not bind says nothing: the appliance may.
fn try_listeners(home: &Home, config: &config::Config) -> Result<(), BindError> {
    let held = held_addresses(home).unwrap_or_default();
    for (name, address) in &config.listeners {
        if held.iter().any(|held| clash(*held, *address)) {
            continue;
        }
        if let Err(source) = bind(*address)
            && matches!(source.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
        {
            return Err(BindError { name: name.clone(), address: *address, source });
        }
    }
    Ok(())
}

/// Returns the addresses at which the appliance listens; `None` if it does not run.
fn held_addresses(home: &Home) -> Option<Vec<SocketAddr>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let status: Status = runtime.block_on(async { Client::new(home).ok()?.get("/api/v1/status").await.ok() })?;
    Some(status.listeners.iter().filter_map(|listener| listener.address.parse().ok()).collect())
}

fn reached(obstacles: Vec<Obstacle>) -> Result<(), CheckError> {
    if obstacles.is_empty() { Ok(()) } else { Err(CheckError::NotReached { obstacles }) }
}

fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}
