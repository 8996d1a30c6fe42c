//! `refit config check`: every mistake in a configuration, before anything is packed or started.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use refit_base::{Exit, Report, Reported};
use refit_updater::Store;
use refit_updater::journal::{self, JournalError};
use refit_updater::release::StoreError;
use serde_json::json;

use super::context::Context;
use crate::component::{Obstacle, Places, find_obstacles, find_obstacles_in_tree};
use crate::config::{self, ConfigError, Programs};
use crate::home::HomeError;

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
    Home(#[from] HomeError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("there is no directory {}", path.display())]
    NoDirectory { path: PathBuf },
    #[error("components do not reach {}", counted(obstacles.len(), "thing that they need", "things that they need"))]
    NotReached { obstacles: Vec<Obstacle> },
}

impl Reported for CheckError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Home(error) => error.report(),
            Self::Journal(error) => error.report(),
            Self::Store(error) => error.report(),
            Self::Config(error) => error.report(),
            Self::NoDirectory { .. } => Report::new(
                "file_unreadable",
                Exit::Usage,
                "name the directory of a release: one with an appliance.toml",
            ),
            Self::NotReached { .. } => {
                Report::new("program_not_reached", Exit::Config, "open the way as each line says, then check again")
            }
        }
    }
}

pub(super) fn run(context: &Context, config: &Config) -> Exit {
    let Config::Check { dir, local } = config;
    let error = match check(context, dir.as_ref(), local.as_ref()) {
        Ok(()) => {
            if context.json {
                context.print(&json!({ "mistakes": [], "unreachable": [] }).to_string());
            }
            context.print_text("no mistakes");
            return Exit::Done;
        }
        Err(error) => error,
    };
    match &error {
        CheckError::Config(ConfigError::Mistakes { mistakes }) => {
            if context.json {
                context.print(&json!({ "mistakes": mistakes, "unreachable": [] }).to_string());
            }
            for mistake in mistakes {
                context.print_text(&mistake.to_string());
            }
            let detail = format!("{} in the configuration", counted(mistakes.len(), "mistake", "mistakes"));
            context.print_failure(&detail, error.code(), error.remedy(), error.exit())
        }
        CheckError::NotReached { obstacles } => {
            if context.json {
                context.print(&json!({ "mistakes": [], "unreachable": obstacles }).to_string());
            }
            for obstacle in obstacles {
                context.print_text(&obstacle.to_string());
            }
            context.fail(&error)
        }
        CheckError::Home(_)
        | CheckError::Journal(_)
        | CheckError::Store(_)
        | CheckError::Config(_)
        | CheckError::NoDirectory { .. } => context.fail(&error),
    }
}

fn check(context: &Context, dir: Option<&PathBuf>, local: Option<&PathBuf>) -> Result<(), CheckError> {
    if let Some(dir) = dir {
        let dir = context.path(dir);
        if !dir.is_dir() {
            return Err(CheckError::NoDirectory { path: dir });
        }
        let local = local.map_or_else(|| dir.join(config::NO_LOCAL_FILE), |local| context.path(local));
        let config = config::Config::load_with_programs(&Programs::anywhere(&dir), &local)?;
        return reached(find_obstacles_in_tree(&config, &dir));
    }
    let home = context.home.path();
    if !home.is_dir() {
        return Err(HomeError::Missing { home: home.to_owned() }.into());
    }
    let journal = journal::load(home)?.ok_or_else(|| HomeError::Empty { home: home.to_owned() })?;
    let release = Store::open(home)?.release(journal.state.wanted())?;
    let search = context.process.environment.get(OsStr::new("PATH")).map(OsString::as_os_str);
    let programs = Programs::here(&release.dir, search);
    let config = config::Config::load_with_programs(&programs, &home.join(config::LOCAL_FILE))?;
    let places = Places {
        home: context.home.clone(),
        search: search.map(OsStr::to_owned),
        release: release.dir,
        version: release.version,
    };
    reached(find_obstacles(&config, &places))
}

fn reached(obstacles: Vec<Obstacle>) -> Result<(), CheckError> {
    if obstacles.is_empty() { Ok(()) } else { Err(CheckError::NotReached { obstacles }) }
}

fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}
