//! `refit trust`: whom this appliance trusts, and the way out when that is damaged.

use std::path::{Path, PathBuf};

use refit_base::{Exit, FileError, Report, Reported, clock, file_error};
use refit_updater::trust::{Trust as TrustStore, TrustError};
use serde::Serialize;

use super::context::Context;
use super::said::in_json;
use super::table::print_table;
use crate::home::HomeError;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Trust {
    /// Show the trusted root and the newest metadata that was accepted.
    Show,
    /// Trust this root, whatever was trusted before, and forget which versions were seen.
    Reset {
        /// The vendor's newest root: get it from the vendor, not from where packages come from.
        root: PathBuf,
    },
}

/// Why the trust was not shown or renewed.
#[derive(Debug, thiserror::Error)]
enum TrustCommandError {
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl Reported for TrustCommandError {
    fn report(&self) -> Report<'_> {
        match self {
            // What is missing or wrong is of this home, or of the command line: no package is there to be refused.
            Self::Trust(error @ TrustError::NoRoot { .. }) => Report { exit: Exit::Config, ..error.report() },
            Self::Trust(error @ TrustError::NotARoot { .. }) => Report { exit: Exit::Usage, ..error.report() },
            Self::Trust(error) => error.report(),
            Self::Home(error) => error.report(),
            Self::File(_) => {
                Report::new("file_unreadable", Exit::Usage, "check the name and the permissions; nothing was changed")
            }
        }
    }
}

pub(super) fn run(context: &Context, trust: &Trust) -> Exit {
    let done = match trust {
        Trust::Show => show(context),
        Trust::Reset { root } => reset(context, root),
    };
    match done {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

/// A root that is trusted now.
#[derive(Serialize)]
struct Trusted<'a> {
    trusted: &'a Path,
}

fn reset(context: &Context, root: &Path) -> Result<(), TrustCommandError> {
    let path = context.path(root);
    let bytes = std::fs::read(&path).map_err(file_error("read", &path))?;
    context.home.require_own()?;
    TrustStore::reset(context.home.path(), &bytes)?;
    if context.json {
        context.print(&in_json(&Trusted { trusted: &path }));
    }
    context.print_text(&format!("{} is trusted; which versions were seen is forgotten", path.display()));
    Ok(())
}

fn show(context: &Context) -> Result<(), TrustCommandError> {
    context.home.require_appliance()?;
    let status = TrustStore::open(context.home.path())?.status(clock::now())?;
    if context.json {
        context.print(&in_json(&status));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = status
        .roles
        .iter()
        .map(|role| {
            let (version, days) = (role.version.to_string(), role.expires_in_days.to_string());
            vec![role.role.to_owned(), role.source.to_owned(), version, role.expires.to_string(), days]
        })
        .collect();
    print_table(context, &["ROLE", "FROM", "VERSION", "EXPIRES", "DAYS"], &rows);
    for warning in &status.warnings {
        context.print(&format!("warning: {warning}"));
    }
    Ok(())
}
