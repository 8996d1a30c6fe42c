//! Why an update, a rollback or a package is refused or fails.

use std::error::Error;
use std::io;

use refit_base::{Cause, Exit, Report, Reported};
use refit_updater::Digest;
use refit_updater::config::ConfigError as MergeError;
use refit_updater::journal::{Impossible, JournalError};
use refit_updater::receive::ReceiveError;
use refit_updater::release::StoreError;
use refit_updater::removal::RemovalError;
use refit_updater::trust::TrustError;
use rustix::io::Errno;
use semver::Version;

use crate::config::OperatorsError;
use crate::config::{ConfigError, LOCAL_FILE, Mistake};
use crate::handover::listener::BindError;
use crate::process::program::Unfit;

/// What the update manager refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Another update is under way.
    #[error("another update is under way: {what}")]
    Busy {
        /// Which, and what it is doing.
        what: String,
    },
    /// Another package is being received.
    #[error("another package is being received")]
    Receiving,
    /// The site is not running.
    #[error("the appliance is {state}, not Running")]
    NotRunning {
        /// What it is doing instead.
        state: &'static str,
    },
    /// The package was refused, or could not be unpacked.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The home's trust cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The repository does not answer, or not to its end.
    #[error("the repository {address} cannot be read")]
    Unreachable {
        /// Where it is.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No repository is configured.
    #[error("this appliance has no repository")]
    NoRepository,
    /// The package is not the one that was approved.
    #[error("the package has the digest {found}, {approved} was approved")]
    NotApproved {
        /// The digest it has.
        found: Digest,
        /// The digest that was approved.
        approved: Digest,
    },
    /// The HTTP client cannot be made.
    #[error("cannot prepare for HTTP")]
    HttpClient {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A release cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A release is not removed.
    #[error(transparent)]
    Removal(#[from] RemovalError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No received package has this digest.
    #[error("no package with the digest {digest} was received")]
    UnknownPackage {
        /// The digest.
        digest: Digest,
    },
    /// There is no such release to go to.
    #[error("there is no release {version} on this appliance")]
    UnknownRelease {
        /// The version.
        version: Version,
    },
    /// The release runs already.
    #[error("release {version} runs already")]
    Runs {
        /// The version.
        version: Version,
    },
    /// There is nothing to go back to.
    #[error("there is no release to go back to")]
    NoPrevious,
    /// An installed release is not what its manifest says.
    #[error("release {version} is damaged on disk: {what}")]
    Damaged {
        /// The version.
        version: Version,
        /// The first thing that is wrong.
        what: String,
    },
    /// The configuration cannot be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The next release's configuration is wrong.
    #[error("the configuration of release {version} is wrong")]
    Config {
        /// The version.
        version: Version,
        /// What is wrong.
        #[source]
        source: ConfigError,
    },
    /// The next release is not what its manifest says.
    #[error("the {file} of release {version} says that it is {said}")]
    Misnamed {
        /// The file.
        file: &'static str,
        /// The version.
        version: Version,
        /// What it says.
        said: String,
    },
    /// A program of the next release cannot be executed.
    #[error("{program} of release {version} is not an executable file")]
    NotExecutable {
        /// The program.
        program: String,
        /// The version.
        version: Version,
    },
    /// The runtime that the next release brings is not a program.
    #[error("cannot execute {program}, the runtime of release {version}: {unfit}")]
    NotAProgram {
        /// The program.
        program: String,
        /// The version.
        version: Version,
        /// Why it is not.
        unfit: Unfit,
    },
    /// A component's account does not reach what its process needs of the next release.
    #[error("release {version} cannot run: {what}{}", others(*count))]
    NotReached {
        /// The version.
        version: Version,
        /// Which component does not reach what, and why.
        what: String,
        /// How much is not reached, this included.
        count: usize,
        /// Whether the release was packed so.
        cause: Cause,
    },
    /// The group of the operators cannot be it.
    #[error(transparent)]
    Operators(#[from] OperatorsError),
    /// The next release wants an address that cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The next release's runtime failed its dry run.
    #[error("the runtime of release {version} failed its dry run: {how}")]
    DryRun {
        /// The version.
        version: Version,
        /// How it ended.
        how: String,
        /// Whose trouble that was.
        cause: Cause,
        /// What it printed last.
        output: Vec<String>,
    },
    /// The dry run could not be made, or a file of the release cannot be read.
    #[error("cannot {what}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The bus refused.
    #[error("the bus refused the update: {reason}")]
    Bus {
        /// Why.
        reason: String,
    },
    /// The journal is not where the update left it.
    #[error(transparent)]
    Confused {
        /// What it cannot take.
        #[from]
        impossible: Impossible,
    },
    /// A task of the update panicked.
    #[error("the update failed by a mistake of refit; its log says where")]
    Panicked,
    /// A task ended without a result.
    #[error("a worker of the update failed")]
    Worker {
        /// Why.
        #[source]
        source: tokio::task::JoinError,
    },
}

impl UpdateError {
    /// Returns the last output of what failed.
    pub fn output(&self) -> Vec<String> {
        if let Self::DryRun { output, .. } = self { output.clone() } else { Vec::new() }
    }

    /// Returns whose trouble it is that an attempt ended with this.
    pub fn cause(&self) -> Cause {
        match self {
            Self::NotAProgram { unfit: Unfit::Unknown(error), .. } => Cause::of(error),
            Self::NotAProgram { unfit: Unfit::NoExec, .. } => Cause::Machine,
            Self::Misnamed { .. } | Self::NotExecutable { .. } | Self::NotAProgram { .. } => Cause::Release,
            Self::DryRun { cause, .. } | Self::NotReached { cause, .. } => *cause,
            // What only this machine says is no mistake of the release.
            Self::Config { source: ConfigError::Mistakes { mistakes }, .. } => {
                let is_local = |mistake: &Mistake| mistake.file.ends_with(LOCAL_FILE);
                if mistakes.iter().all(is_local) { Cause::Machine } else { Cause::Release }
            }
            Self::Config { source, .. } => Cause::of(source),
            Self::Busy { .. }
            | Self::Receiving
            | Self::NotRunning { .. }
            | Self::Receive(_)
            | Self::Trust(_)
            | Self::Unreachable { .. }
            | Self::NoRepository
            | Self::NotApproved { .. }
            | Self::HttpClient { .. }
            | Self::Store(_)
            | Self::Removal(_)
            | Self::Journal(_)
            | Self::UnknownPackage { .. }
            | Self::UnknownRelease { .. }
            | Self::Runs { .. }
            | Self::NoPrevious
            | Self::Damaged { .. }
            | Self::Merge(_)
            | Self::Operators(_)
            | Self::Bind(_)
            | Self::Io { .. }
            | Self::Bus { .. }
            | Self::Confused { .. }
            | Self::Panicked
            | Self::Worker { .. } => Cause::Machine,
        }
    }
}

impl Reported for UpdateError {
    fn report(&self) -> Report<'_> {
        const CORRECTED_PACKAGE: &str = "ask the vendor for a corrected package; the running release is untouched";
        match self {
            Self::Busy { .. } => {
                Report::new("update_running", Exit::TryLater, "wait for it to end; nothing was changed")
            }
            Self::Receiving => Report::new(
                "package_being_received",
                Exit::TryLater,
                "wait for the other upload to end; nothing was changed",
            ),
            Self::NotRunning { .. } => {
                Report::new("not_running", Exit::TryLater, "start it first, or wait until it runs; nothing was changed")
            }
            Self::Receive(error) => {
                let report = error.report();
                Report { code: code_of_reception(report.exit), ..report }
            }
            Self::Trust(error) => Report { code: "trust_unusable", ..error.report() },
            Self::Unreachable { .. } => Report::new(
                "repository_unreachable",
                Exit::TryLater,
                "check the address of the repository and the network, then try again",
            ),
            Self::NoRepository => Report::new(
                "no_repository",
                Exit::Config,
                "name it as `repository` below [update] in appliance.toml or local.toml",
            ),
            Self::NotApproved { .. } => Report::new(
                "package_not_approved",
                Exit::Refused,
                "look at the package again and approve what it is now; nothing was changed",
            ),
            Self::HttpClient { .. } => Report::new("internal", Exit::Failed, "check the certificates of the system"),
            Self::Store(error) => error.report(),
            Self::Removal(error) => error.report(),
            Self::Journal(error) => error.report(),
            Self::UnknownPackage { .. } => {
                Report::new("package_unknown", Exit::Usage, "upload the package again; nothing was changed")
            }
            Self::UnknownRelease { .. } => Report::new(
                "release_unknown",
                Exit::Usage,
                "see `refit releases` for what is there, or install it from its package",
            ),
            Self::Runs { .. } => Report::new("release_runs", Exit::Failed, "nothing is to be done"),
            Self::NoPrevious => Report::new("no_previous_release", Exit::Usage, "install a release from its package"),
            Self::Damaged { .. } => Report::new(
                "release_damaged",
                Exit::Failed,
                "`refit recover` lists those that are whole, for `refit rollback VERSION`; the very package makes this one whole: \
                 `refit install PACKAGE --allow-downgrade`; the running release is untouched",
            ),
            Self::Merge(error) => error.report(),
            Self::Config { .. } | Self::Misnamed { .. } => {
                Report::new("configuration_refused", Exit::Config, CORRECTED_PACKAGE)
            }
            Self::NotExecutable { .. } | Self::NotAProgram { .. } => {
                Report::new("program_missing", Exit::Failed, CORRECTED_PACKAGE)
            }
            Self::NotReached { .. } => Report::new(
                "program_not_reached",
                Exit::Failed,
                "open the way, then install it again; the running release is untouched",
            ),
            Self::DryRun { .. } => Report::new("dry_run_failed", Exit::Failed, CORRECTED_PACKAGE),
            Self::Operators(error) => error.report(),
            Self::Bind(_) => Report::new(
                "address_in_use",
                Exit::Failed,
                "free the address, or override the listener in local.toml; the running release is untouched",
            ),
            Self::Io { .. } | Self::Confused { .. } | Self::Panicked | Self::Worker { .. } => {
                Report::new("internal", Exit::Failed, "see the log, then try again; the running release is untouched")
            }
            Self::Bus { .. } => {
                Report::new("bus_refused", Exit::Failed, "try again when the appliance runs; nothing was changed")
            }
        }
    }
}

/// Returns what is said where the first of `count` is named.
fn others(count: usize) -> String {
    if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() }
}

/// Returns the code of a reception that failed with this exit status.
const fn code_of_reception(exit: Exit) -> &'static str {
    match exit {
        Exit::Refused => "package_refused",
        Exit::Disk => "disk",
        Exit::TryLater => "package_interrupted",
        Exit::Done | Exit::Degraded | Exit::Down | Exit::Usage | Exit::Unavailable | Exit::Failed | Exit::Config => {
            "internal"
        }
    }
}

/// Returns the causes of `error` on one line, for the history.
pub(super) fn reason(error: &dyn Error) -> String {
    refit_base::Chain(error).to_string()
}

/// Returns the same of what an attempt failed with; of a damaged release, what makes it whole, too.
pub(super) fn reason_to_fail(error: &UpdateError) -> String {
    if matches!(error, UpdateError::Damaged { .. }) { refit_base::message(error) } else { reason(error) }
}

/// Returns whether the cause of `error` is a disk that takes no more, or fails.
pub(super) fn is_disk(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull};
            let is_failing = [Errno::IO, Errno::UCLEAN, Errno::NODEV].map(Errno::raw_os_error);
            return matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | StaleNetworkFileHandle)
                || error.raw_os_error().is_some_and(|code| is_failing.contains(&code));
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_full_or_fails_is_the_disk() {
        let rows = [
            (Errno::NOSPC, true),
            (Errno::DQUOT, true),
            (Errno::ROFS, true),
            (Errno::IO, true),
            (Errno::STALE, true),
            (Errno::UCLEAN, true),
            (Errno::NODEV, true),
            (Errno::NOENT, false),
            (Errno::ACCESS, false),
            (Errno::MFILE, false),
        ];
        for (errno, expected) in rows {
            let error = UpdateError::Io { what: "write", source: errno.into() };
            assert_eq!(is_disk(&error), expected, "{errno}");
        }
    }
}
