//! `refit bus inhibit`: runs a command during which the appliance does not restart by itself.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use refit_base::{Exit, Report, Reported};

use crate::cli::context::Context;
use crate::runtime::Inhibitor;

/// Why a command could not be run under the inhibitor.
#[derive(Debug, thiserror::Error)]
enum InhibitError {
    /// The lock cannot be held.
    #[error("cannot hold the inhibitor of {}", home.display())]
    Hold {
        /// The home.
        home: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The command cannot be run.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: OsString,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Reported for InhibitError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Hold { source, .. } => Report::new(
                "inhibitor_unusable",
                if source.kind() == io::ErrorKind::NotFound { Exit::Unavailable } else { Exit::Disk },
                "name the appliance's directory with --home, and run as its account",
            ),
            Self::Run { .. } => {
                Report::new("command_unusable", Exit::Usage, "check the name of the program; nothing was run")
            }
        }
    }
}

/// Runs `command` while the inhibitor is held. Returns the command's own status as far as it is one of ours.
pub(super) fn run(context: &Context, command: &[OsString]) -> Exit {
    match try_run(context, command) {
        Ok(exit) => exit,
        Err(error) => context.fail(&error),
    }
}

fn try_run(context: &Context, command: &[OsString]) -> Result<Exit, InhibitError> {
    let home = context.home.path().to_owned();
    let _held = Inhibitor::hold(&context.home).map_err(|source| InhibitError::Hold { home, source })?;
    let Some((program, arguments)) = command.split_first() else { return Ok(Exit::Usage) };
    let status = Command::new(program)
        .args(arguments)
        .status()
        .map_err(|source| InhibitError::Run { program: program.clone(), source })?;
    Ok(status.code().map_or(Exit::Failed, Exit::from_code))
}
