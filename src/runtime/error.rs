//! Why a runtime could not start, and where that is said.

use std::io::{self, Write};

use refit_base::{Chain, Exit, Report, Reported, visible_lines};
use refit_bus::AttachError;
use refit_updater::journal::JournalError;
use refit_updater::release::{Damage, StoreError};
use refit_updater::trust::TrustError;
use semver::Version;

use super::stderr::Stderr;
use crate::config::{ConfigError, OperatorsError};
use crate::handover::listener::BindError;
use crate::handover::unix::SocketError;
use crate::home::HomeError;
use crate::update::UpdateError;

/// What to do about a release that is damaged, or not there.
const DAMAGED_REMEDY: &str =
    "`refit recover` lists the releases that are whole; its very package makes this one whole: `refit install PACKAGE`";

/// Why the runtime could not start.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The home has no appliance.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The release cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The trust cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The release is not what was signed, and so its configuration is wrong.
    #[error("release {version} is damaged: {}", Chain(&**damage))]
    Damaged {
        /// The release.
        version: Version,
        /// What is damaged.
        damage: Box<Damage>,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The group of the operators cannot be it.
    #[error(transparent)]
    Operators(#[from] OperatorsError),
    /// A listener cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket of the runtime's own cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The update manager cannot begin.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The components do not fit together.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// There is a guard that this image cannot report to.
    #[error("cannot reach the guard")]
    Guard(#[source] io::Error),
    /// The system refused something.
    #[error("cannot {what}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
}

impl Reported for RuntimeError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Home(error) => error.report(),
            Self::Journal(error) => error.report(),
            Self::Store(error @ StoreError::Unknown { .. }) => Report { remedy: DAMAGED_REMEDY, ..error.report() },
            Self::Damaged { .. } => Report::new("release_damaged", Exit::Failed, DAMAGED_REMEDY),
            Self::Store(error) => error.report(),
            Self::Trust(error) => Report { code: "trust_unusable", exit: Exit::Config, ..error.report() },
            Self::Config(error) => error.report(),
            Self::Operators(error) => error.report(),
            Self::Bind(_) => Report::new(
                "address_in_use",
                Exit::Failed,
                "stop the program that uses it, or override the listener in local.toml; nothing was started",
            ),
            Self::Socket(_) => {
                Report::new("address_in_use", Exit::Failed, "check the permissions of the home; nothing was started")
            }
            Self::Update(error) => error.report(),
            Self::Attach(_) => {
                Report::new("configuration_refused", Exit::Config, "correct appliance.toml; nothing was started")
            }
            // The guard starts another one, whom it can be reached by.
            Self::Guard(_) => Report::new("guard_unreachable", Exit::TryLater, "see what became of run/guard.sock"),
            Self::Io { .. } => Report::new("system_refused", Exit::Failed, "check the limits of the system"),
        }
    }
}

/// Returns the error of a system call that was to do `what`.
pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> RuntimeError {
    move |source| RuntimeError::Io { what, source }
}

/// Prints one line for whoever reads standard error. Returns `exit`.
pub(super) fn say(text: &str, exit: Exit) -> Exit {
    drop(Stderr.write_all(format!("refit: {}\n", visible_lines(text)).as_bytes()));
    exit
}
