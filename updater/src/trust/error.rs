//! Why a package or a repository is not trusted, or the home's own trust cannot be used.

use std::path::PathBuf;

use jiff::Timestamp;
use refit_base::{Exit, FileError, Report, Reported};
use refit_tuf::TufError;
use tough::schema::RoleType;

use crate::digest::Digest;
use crate::manifest::ManifestError;

/// Why a package or a repository is not trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The home trusts nobody yet.
    #[error("no root is trusted: {} is missing", path.display())]
    NoRoot {
        /// Where the root belongs.
        path: PathBuf,
    },
    /// The home's root is not what was written.
    #[error("{} is damaged", path.display())]
    RootDamaged {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<TufError>,
    },
    /// The home's root is older than one that it trusted before.
    #[error("{} has version {found}, but version {seen} was trusted before", path.display())]
    RootWentBack {
        /// Where it lies.
        path: PathBuf,
        /// The version it has.
        found: u64,
        /// The version that was trusted.
        seen: u64,
    },
    /// The home trusts another root already.
    #[error("{} is trusted already and differs", path.display())]
    OtherRootTrusted {
        /// Where it lies.
        path: PathBuf,
    },
    /// Bytes that were to be trusted and are no root.
    #[error("the root of trust is refused")]
    NotARoot {
        /// What is wrong with it.
        #[source]
        source: Box<TufError>,
    },
    /// What remembers the metadata seen is missing.
    #[error("{} is missing: rollbacks cannot be told", path.display())]
    SeenMissing {
        /// Where it belongs.
        path: PathBuf,
    },
    /// What remembers the metadata seen is damaged.
    #[error("{} is damaged: rollbacks cannot be told", path.display())]
    SeenDamaged {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<SeenProblem>,
    },
    /// Metadata in another spelling than the one it has.
    #[error("{name} is not in canonical form")]
    Spelling {
        /// The file's name.
        name: String,
    },
    /// The package's root of the trusted version is another one.
    #[error("the package's root {version} is not the one this appliance trusts")]
    OtherRoot {
        /// The version.
        version: u64,
    },
    /// The metadata is not signed as the trusted root requires, or is older than what was seen.
    #[error("the signatures do not hold")]
    Refused {
        /// What the check found.
        #[source]
        source: Box<TufError>,
    },
    /// The repository could not be read.
    #[error("the repository cannot be read")]
    Unreachable {
        /// What failed.
        #[source]
        source: Box<TufError>,
    },
    /// The metadata does not name the manifest.
    #[error("the signed metadata names no manifest.json")]
    NoTarget,
    /// The repository's metadata is that of a package.
    #[error("the repository serves the metadata of a single package")]
    PackageMetadata,
    /// The manifest is not the one that was signed.
    #[error("manifest.json, with the digest {found}, is not the one that was signed")]
    OtherManifest {
        /// The digest it has.
        found: Digest,
        /// How it differs.
        #[source]
        source: Box<TufError>,
    },
    /// The signed manifest describes what must not be in a release.
    #[error("the manifest is refused")]
    Manifest {
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// The metadata is past its date, and the policy refuses that.
    #[error("the {role} metadata expired at {at}")]
    Expired {
        /// The role that expired first.
        role: RoleType,
        /// When.
        at: Timestamp,
    },
    /// The clock is before a moment that was seen, and expiry cannot be judged.
    #[error("the clock says {now}, but {seen} was seen before")]
    ClockWentBack {
        /// What it says.
        now: Timestamp,
        /// What it said before, or the date of a signed release.
        seen: Timestamp,
    },
}

/// What is wrong with a file that remembers metadata.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeenProblem {
    /// It is not JSON of its form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It is of another format.
    #[error("its format is {found}, {known} is known")]
    Format {
        /// The format it says.
        found: u64,
        /// The format that is known.
        known: u64,
    },
    /// What it remembers is not signed.
    #[error(transparent)]
    Metadata(#[from] TufError),
    /// Metadata that is no text cannot be remembered.
    #[error("metadata is not UTF-8")]
    Text,
}

impl From<TufError> for TrustError {
    fn from(source: TufError) -> Self {
        let is_transport = source.is_transport();
        let source = Box::new(source);
        if is_transport { Self::Unreachable { source } } else { Self::Refused { source } }
    }
}

impl TrustError {
    /// Returns what `source` says of a repository, where a file that is missing is no question of trust: it is somewhere
    /// else, not mounted, or half copied.
    pub(crate) fn of_repository(source: TufError) -> Self {
        if matches!(source, TufError::Missing { .. }) {
            return Self::Unreachable { source: Box::new(source) };
        }
        source.into()
    }
}

impl Reported for TrustError {
    fn report(&self) -> Report<'_> {
        let refused = |code, remedy| Report::new(code, Exit::Refused, remedy);
        match self {
            Self::File(_) => Report::new(
                "trust_unreadable",
                Exit::Disk,
                "free space or check the disk and its permissions, then try again",
            ),
            Self::RootDamaged { .. }
            | Self::RootWentBack { .. }
            | Self::SeenMissing { .. }
            | Self::SeenDamaged { .. } => Report::new(
                "trust_unreadable",
                Exit::Disk,
                "restore trust/ from a backup; without one, `refit trust reset ROOT` trusts the vendor's root anew and \
                 forgets which versions were seen; nothing was changed",
            ),
            Self::Unreachable { .. } => Report::new(
                "repository_unreachable",
                Exit::TryLater,
                "check the address of the repository and the network, then try again",
            ),
            Self::NoRoot { .. } => {
                refused("no_trust", "give the appliance the vendor's root first, N.root.json: `refit trust reset ROOT`")
            }
            Self::OtherRootTrusted { .. } => refused(
                "no_trust",
                "a trusted root changes only through a package signed with it, or by `refit trust reset ROOT`",
            ),
            Self::NotARoot { .. } => refused(
                "no_trust",
                "take the newest N.root.json of the vendor, which `refit keys init` has made as 1.root.json",
            ),
            Self::Spelling { .. } | Self::NoTarget | Self::OtherManifest { .. } => {
                refused("signature_invalid", "get the package again from its vendor; nothing was changed")
            }
            Self::OtherRoot { .. } => {
                refused("signature_invalid", "choose a package of this appliance's vendor; nothing was changed")
            }
            Self::PackageMetadata => {
                refused("signature_invalid", "check the address of the repository; nothing was changed")
            }
            Self::Refused { source } if matches!(**source, TufError::Rollback { .. }) => {
                refused("rolled_back", "get the newest package of its vendor; nothing was changed")
            }
            Self::Refused { source } if matches!(**source, TufError::Expired { .. }) => {
                refused("expired", "wait until its vendor has refreshed it, or check the clock; nothing was changed")
            }
            Self::Refused { .. } => {
                refused("signature_invalid", "get the package again from its vendor; nothing was changed")
            }
            Self::Manifest { source: ManifestError::Format { .. } } => {
                refused("format_unknown", "update to a release with a newer refit first; nothing was changed")
            }
            Self::Manifest { .. } => {
                refused("manifest_refused", "ask the vendor for a package that is in order; nothing was changed")
            }
            Self::Expired { .. } => refused("expired", "get a package with newer metadata; nothing was changed"),
            Self::ClockWentBack { .. } => refused(
                "clock_wrong",
                "set the clock; if it was wrong before and is right now, `refit trust reset ROOT`; nothing was changed",
            ),
        }
    }
}
