//! Why a repository is not changed.

use std::path::PathBuf;

use refit_base::{Exit, FileError, Report, Reported};
use refit_tuf::TufError;

use super::LIST_BYTES_MAX;
use crate::inspect::InspectError;
use crate::keys::{KeysError, PublishedError};
use crate::pack::TAKE_HOOKS_OUT;

/// Why a repository is not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is a repository already.
    #[error("{} is a repository already", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// There is none.
    #[error("{} is no repository", dir.display())]
    None {
        /// The directory.
        dir: PathBuf,
    },
    /// There was one: something of it is left, and the file that leads to everything is not.
    #[error("metadata/timestamp.json is missing in {}, where there was a repository", dir.display())]
    Lost {
        /// The directory.
        dir: PathBuf,
    },
    /// A file that the metadata which is there leads to is missing.
    #[error("metadata/{name} is missing in {}", dir.display())]
    Incomplete {
        /// The directory.
        dir: PathBuf,
        /// The file.
        name: String,
    },
    /// It has a newer root than the keys, and what they sign would not be trusted.
    #[error(
        "these keys are an older copy: their newest root is {keys}, the repository in {} has root {newest}, which does not \
         name them",
        dir.display()
    )]
    OlderKeys {
        /// The directory.
        dir: PathBuf,
        /// The version of the keys' newest root.
        keys: u64,
        /// The version of the repository's newest root.
        newest: u64,
    },
    /// What was to be the root of trust is no root.
    #[error("the root of trust that was given is no root")]
    NotARoot {
        /// What is wrong with it.
        #[source]
        source: Box<TufError>,
    },
    /// Its metadata is not what these keys, or those before them, signed.
    #[error("the metadata in {} is not signed by these keys", dir.display())]
    Metadata {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<TufError>,
    },
    /// It was signed with keys that were retired since, and nobody remembers that it was published.
    #[error(
        "the metadata in {} is signed with keys of root {signed}, which root {newest} retired, and is not what was published \
         last with this directory of keys",
        dir.display()
    )]
    Retired {
        /// The directory.
        dir: PathBuf,
        /// The version of the root whose keys signed it.
        signed: u64,
        /// The version of the newest root.
        newest: u64,
        /// Why it is not known what was published, if that is so.
        #[source]
        source: Option<Box<PublishedError>>,
    },
    /// Its metadata is that of a package.
    #[error("the metadata in {} is that of a single package", dir.display())]
    PackageMetadata {
        /// The directory.
        dir: PathBuf,
    },
    /// A list of releases that no appliance would read.
    #[error("{name} in {} would have {bytes} bytes, and nobody reads more than {LIST_BYTES_MAX}", dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
        /// The file that would be too large.
        name: String,
        /// How many bytes it would have.
        bytes: u64,
    },
    /// The package is not in order.
    #[error("{} is refused", path.display())]
    Package {
        /// The package.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<InspectError>,
    },
    /// It has programs that an update should run, and no appliance takes it.
    #[error("the release in {} has {hook:?}, and no appliance runs hooks: its data would not be migrated", path.display())]
    Hooks {
        /// The package.
        path: PathBuf,
        /// The first of them.
        hook: String,
    },
    /// Another release has its name.
    #[error("{name} is in the repository already, with other content")]
    Taken {
        /// Its name.
        name: String,
    },
    /// The keys cannot sign.
    #[error(transparent)]
    Keys {
        /// Why.
        #[from]
        source: KeysError,
    },
}

impl Reported for RepositoryError {
    fn report(&self) -> Report<'_> {
        const CODE: &str = "repository_unusable";
        let refused = |remedy| Report::new(CODE, Exit::Refused, remedy);
        match self {
            Self::File(_) => Report::new(CODE, Exit::Disk, "check that the directory can be written and has space"),
            Self::Exists { .. } => refused("add releases with `refit repo add`, or choose another directory"),
            Self::None { .. } => refused("make one with `refit repo init`"),
            Self::Lost { .. } => refused(
                "restore metadata/ from a backup or from a copy that a server has: appliances refuse one that begins anew; \
                 nothing was changed",
            ),
            Self::Incomplete { .. } => refused("restore metadata/ from a backup or from a copy that a server has"),
            Self::OlderKeys { .. } => refused(
                "name the directory of keys that was rotated last, and replace this copy by it; nothing was changed",
            ),
            Self::NotARoot { .. } => refused("name the vendor's root: N.root.json in the directory of the keys"),
            Self::Metadata { .. } => refused(
                "name the keys of this repository, refresh it if they were rotated since, or restore its metadata/ from a \
                 backup",
            ),
            Self::Retired { .. } => refused(
                "whoever has a retired key may have written it: restore metadata/ from a copy of your own; or, if it is yours \
                 and another copy of the keys signed it, look at it with `refit repo show --accept-retired` and have it \
                 signed anew with `refit repo refresh --accept-retired`",
            ),
            Self::PackageMetadata { .. } => refused("restore its metadata/ from a backup: somebody has replaced it"),
            Self::Full { .. } => refused(
                "publish into a new repository (`refit repo init`) and have appliances ask that one (`[update] repository`); \
                 nothing was changed",
            ),
            Self::Package { source, .. } => Report { code: CODE, ..source.report() },
            Self::Hooks { .. } => refused(TAKE_HOOKS_OUT),
            Self::Taken { .. } => refused("give the release a version of its own: what was published never changes"),
            Self::Keys { source } => Report { code: CODE, exit: Exit::Refused, ..source.report() },
        }
    }
}
