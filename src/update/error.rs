//! Why an update, a rollback or a package is refused or fails.

use std::error::Error;
use std::io;

use refit_base::Class;
use refit_base::{Exit, Reported};
use refit_updater::Digest;
use refit_updater::config::ConfigError as MergeError;
use refit_updater::journal::JournalError;
use refit_updater::receive::ReceiveError;
use refit_updater::release::StoreError;
use refit_updater::trust::TrustError;
use semver::Version;

use crate::config::ConfigError;
use crate::handover::listener::BindError;

/// What the update manager refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Another update is under way.
    #[error("another update is under way")]
    Busy,
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
        match self {
            Self::DryRun { output, .. } => output.clone(),
            Self::Busy
            | Self::Receiving
            | Self::NotRunning { .. }
            | Self::Receive(_)
            | Self::Trust(_)
            | Self::Unreachable { .. }
            | Self::NoRepository
            | Self::NotApproved { .. }
            | Self::HttpClient { .. }
            | Self::Store(_)
            | Self::Journal(_)
            | Self::UnknownPackage { .. }
            | Self::UnknownRelease { .. }
            | Self::Runs { .. }
            | Self::NoPrevious
            | Self::Damaged { .. }
            | Self::Merge(_)
            | Self::Config { .. }
            | Self::Misnamed { .. }
            | Self::NotExecutable { .. }
            | Self::Bind(_)
            | Self::Io { .. }
            | Self::Bus { .. }
            | Self::Worker { .. } => Vec::new(),
        }
    }
}

impl Reported for UpdateError {
    fn code(&self) -> &'static str {
        match self {
            Self::Busy => "update_running",
            Self::Receiving => "package_being_received",
            Self::NotRunning { .. } => "not_running",
            Self::Unreachable { .. } => "repository_unreachable",
            Self::NoRepository => "no_repository",
            Self::NotApproved { .. } => "package_not_approved",
            Self::HttpClient { .. } => "internal",
            Self::Receive(error) => match error.class() {
                Class::Refused => "package_refused",
                Class::Disk => "disk",
                Class::Busy => "package_interrupted",
                Class::Internal => "internal",
            },
            Self::Trust(_) => "trust_unusable",
            Self::Store(_) => "release_unusable",
            Self::Journal(_) => "journal_unusable",
            Self::UnknownPackage { .. } => "package_unknown",
            Self::UnknownRelease { .. } => "release_unknown",
            Self::Runs { .. } => "release_runs",
            Self::NoPrevious => "no_previous_release",
            Self::Damaged { .. } => "release_damaged",
            Self::Merge(_) => "configuration_not_merged",
            Self::Config { .. } | Self::Misnamed { .. } => "configuration_refused",
            Self::NotExecutable { .. } => "program_missing",
            Self::Bind(_) => "address_in_use",
            Self::DryRun { .. } => "dry_run_failed",
            Self::Io { .. } | Self::Worker { .. } => "internal",
            Self::Bus { .. } => "bus_refused",
        }
    }

    fn remedy(&self) -> &str {
        match self {
            Self::Busy => "wait for it to end; nothing was changed",
            Self::Receiving => "wait for the other upload to end; nothing was changed",
            Self::NotRunning { .. } => "start it first, or wait until it runs; nothing was changed",
            Self::Receive(error) => error.remedy(),
            Self::Trust(error) => error.remedy(),
            Self::Unreachable { .. } => "check the address of the repository and the network, then try again",
            Self::NoRepository => "name it as `repository` below [update] in appliance.toml or local.toml",
            Self::NotApproved { .. } => "look at the package again and approve what it is now; nothing was changed",
            Self::HttpClient { .. } => "check the certificates of the system",
            Self::Store(error) => error.remedy(),
            Self::Journal(error) => error.remedy(),
            Self::UnknownPackage { .. } => "upload the package again; nothing was changed",
            Self::UnknownRelease { .. } => "see `refit releases` for what is there, or install it from its package",
            Self::Runs { .. } => "nothing is to be done",
            Self::NoPrevious => "install a release from its package",
            Self::Damaged { .. } => "install it again from its package; the running release is untouched",
            Self::Merge(error) => error.remedy(),
            Self::Config { .. } | Self::Misnamed { .. } | Self::NotExecutable { .. } | Self::DryRun { .. } => {
                "ask the vendor for a corrected package; the running release is untouched"
            }
            Self::Bind(_) => {
                "free the address, or override the listener in local.toml; the running release is untouched"
            }
            Self::Io { .. } | Self::Worker { .. } => "see the log, then try again; the running release is untouched",
            Self::Bus { .. } => "try again when the appliance runs; nothing was changed",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Busy | Self::Receiving | Self::NotRunning { .. } | Self::Unreachable { .. } => Exit::TryLater,
            Self::Receive(error) => error.class().into(),
            Self::Trust(error) => error.class().into(),
            Self::NotApproved { .. } => Exit::Refused,
            Self::Journal(_) => Exit::Disk,
            Self::NoRepository | Self::Merge(_) | Self::Config { .. } | Self::Misnamed { .. } => Exit::Config,
            Self::UnknownPackage { .. } | Self::UnknownRelease { .. } | Self::NoPrevious => Exit::Usage,
            Self::Store(_)
            | Self::Runs { .. }
            | Self::Damaged { .. }
            | Self::NotExecutable { .. }
            | Self::Bind(_)
            | Self::DryRun { .. }
            | Self::HttpClient { .. }
            | Self::Io { .. }
            | Self::Bus { .. }
            | Self::Worker { .. } => Exit::Failed,
        }
    }
}

/// Returns the causes of `error` on one line, for the history.
pub(super) fn reason(error: &dyn Error) -> String {
    refit_base::Chain(error).to_string()
}

/// Returns whether the cause of `error` is a disk that takes no more.
pub(super) fn is_disk(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
            return matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem);
        }
        cause = error.source();
    }
    false
}
