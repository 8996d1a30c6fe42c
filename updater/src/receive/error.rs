//! Why a package was not received.

use std::io;
use std::path::PathBuf;

use refit_base::{Exit, FileError, Report, Reported};
use semver::Version;

use crate::package::PackageError;
use crate::release::StoreError;
use crate::trust::TrustError;

/// Why a package was not received. Nothing of it is left on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The bytes are no package.
    #[error(transparent)]
    Package {
        /// What is wrong with them.
        #[from]
        source: PackageError,
    },
    /// The package is not trusted.
    #[error(transparent)]
    Trust {
        /// Why.
        #[from]
        source: TrustError,
    },
    /// The kept releases could not be looked at.
    #[error(transparent)]
    Store {
        /// Why.
        #[from]
        source: StoreError,
    },
    /// For another model.
    #[error("the package is for {package:?}, this appliance is {appliance:?}")]
    OtherAppliance {
        /// The model it is for.
        package: String,
        /// This model.
        appliance: String,
    },
    /// For another machine.
    #[error("the package is for {package}, this machine is {machine}")]
    OtherArch {
        /// The machine it is for.
        package: String,
        /// This machine.
        machine: String,
    },
    /// Not newer than what runs.
    #[error("the package has version {package}, which is not newer than {current}, the current release")]
    NotNewer {
        /// Its version.
        package: Version,
        /// The running version.
        current: Version,
    },
    /// It cannot update from what runs.
    #[error("the package updates from {requires} or newer, and {current} is the current release")]
    RequiresNewer {
        /// The oldest release it updates from.
        requires: Version,
        /// The running version.
        current: Version,
    },
    /// It has programs that an update should run, and this one runs none.
    #[error("the release has {path:?}, and this refit does not run hooks: its data would not be migrated")]
    Hooks {
        /// The first of them.
        path: String,
    },
    /// The repository does not have it.
    #[error("the repository has no release {version} for this appliance")]
    NotOffered {
        /// The version asked for.
        version: Version,
    },
    /// The release does not fit.
    #[error("the release needs {needed} bytes, {free} are free in {}", path.display())]
    NoSpace {
        /// Bytes it needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        path: PathBuf,
    },
    /// The release has more files than the file system takes.
    #[error("the release needs {needed} inodes, {free} are free in {}", path.display())]
    NoInodes {
        /// Inodes it needs.
        needed: u64,
        /// Inodes that are free.
        free: u64,
        /// Where.
        path: PathBuf,
    },
    /// A frame is not the one that was signed.
    #[error("{path:?}: {why}")]
    Frame {
        /// The file it belongs to.
        path: String,
        /// What is wrong with it.
        why: FrameProblem,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Somebody asked for the end.
    #[error("receiving the package was cancelled")]
    Cancelled,
    /// A worker could not be started.
    #[error("cannot start to unpack")]
    Start {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A worker ended without a result.
    #[error("unpacking ended without a result")]
    Lost,
}

/// Why a payload is not the one that was signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The package around it is not in order.
    #[error(transparent)]
    Package {
        /// What is wrong with it.
        #[from]
        source: PackageError,
    },
    /// A frame is not the one that was signed.
    #[error("{path:?}: {why}")]
    Frame {
        /// The file it belongs to.
        path: String,
        /// What is wrong with it.
        why: FrameProblem,
    },
    /// The codec cannot be used.
    #[error("cannot prepare to decode")]
    Codec {
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Reported for PayloadError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Package { source } => source.report(),
            Self::Frame { .. } => {
                Report::new("content_invalid", Exit::Refused, "get the package again from its vendor")
            }
            Self::Codec { .. } => {
                Report::new("internal", Exit::Failed, "try again; if it stays so, report it as a bug of refit")
            }
        }
    }
}

/// What is wrong with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameProblem {
    /// Its bytes are not those that were signed.
    #[error("a frame differs from its signed digest")]
    Stored,
    /// Its signed bytes are nothing that can be decoded to its size.
    #[error("a frame cannot be decoded")]
    Decode,
    /// All frames are as they were signed, but what they decode to is another file.
    #[error("its frames decode to other content than was signed")]
    Content,
}

impl Reported for ReceiveError {
    fn report(&self) -> Report<'_> {
        const CHOOSE_ANOTHER: &str = "choose the package made for this appliance; nothing was changed";
        let refused = |code, remedy| Report::new(code, Exit::Refused, remedy);
        match self {
            Self::Package { source } => source.report(),
            Self::Trust { source } => source.report(),
            Self::Store { source } => Report { code: "disk", exit: Exit::Disk, ..source.report() },
            Self::File(_) => Report::new(
                "disk",
                Exit::Disk,
                "free space or check the disk, then send the package again; nothing was changed",
            ),
            Self::NoSpace { .. } | Self::NoInodes { .. } => Report::new(
                "no_space",
                Exit::Disk,
                "free space, for example with `refit releases remove VERSION`, of a release or of a package that is staged (`refit releases` lists both), or a \
                 smaller `keep` below [update]; nothing was changed",
            ),
            Self::OtherAppliance { .. } => refused("other_appliance", CHOOSE_ANOTHER),
            Self::OtherArch { .. } => refused("other_arch", CHOOSE_ANOTHER),
            Self::NotNewer { .. } => refused(
                "not_newer",
                "choose a newer package, or allow a downgrade (--allow-downgrade); nothing was changed",
            ),
            Self::RequiresNewer { .. } => {
                refused("requires_newer", "install the release it asks for first; nothing was changed")
            }
            Self::Hooks { .. } => {
                refused("hooks_not_run", "get a release without hooks/ from its vendor; nothing was changed")
            }
            Self::NotOffered { .. } => {
                refused("not_offered", "ask what there is with `refit check`; nothing was changed")
            }
            Self::Frame { .. } => {
                refused("content_invalid", "get the package again from its vendor; nothing was changed")
            }
            Self::Cancelled => Report::new(
                "cancelled",
                Exit::TryLater,
                "send the package again when it is wanted; nothing was changed",
            ),
            Self::Start { .. } | Self::Lost => {
                Report::new("internal", Exit::Failed, "try again; if it stays so, report it as a bug of refit")
            }
        }
    }
}
