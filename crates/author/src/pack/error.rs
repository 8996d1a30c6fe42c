//! Why a directory was not packed.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use refit_base::{Exit, FileError, Report, Reported};
use refit_updater::manifest::{Codec, ManifestError};

use crate::keys::KeysError;

/// What a vendor does whose release has hooks.
pub(crate) const TAKE_HOOKS_OUT: &str =
    "take hooks/ out of the release, and have a component change the data when it starts";

/// Why a directory was not packed. The package's file is what it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory says nothing about itself.
    #[error("{} has no appliance.toml", dir.display())]
    NoDescription {
        /// The directory.
        dir: PathBuf,
    },
    /// What it says about itself cannot be read.
    #[error("{} does not name an appliance and its version", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What the parser found, with line and column.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A name that is not UTF-8.
    #[error("the name of {} is not UTF-8", path.display())]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// A device, socket or pipe.
    #[error("{} is neither file, directory nor link", path.display())]
    Type {
        /// The path.
        path: PathBuf,
    },
    /// Set-id or sticky bits.
    #[error("{} has mode {mode:04o}; set-id and sticky bits have no place in a release", path.display())]
    Mode {
        /// The path.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Something in it must not be in a release.
    #[error(transparent)]
    Manifest {
        /// What.
        #[from]
        source: ManifestError,
    },
    /// It has programs that an update should run, and no appliance runs them.
    #[error("{} has {path:?}, and no appliance runs hooks: its data would not be migrated", dir.display())]
    Hooks {
        /// The directory.
        dir: PathBuf,
        /// The first of them.
        path: String,
    },
    /// The package cannot be signed.
    #[error(transparent)]
    Keys {
        /// Why.
        #[from]
        source: KeysError,
    },
    /// A file changed while it was packed.
    #[error("{} changed while it was packed", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The package would become part of itself.
    #[error("{} lies in {}, which is to be packed", out.display(), dir.display())]
    OutInside {
        /// The package.
        out: PathBuf,
        /// The directory.
        dir: PathBuf,
    },
    /// The package would take the place of a device, a pipe, a socket or a directory.
    #[error("{} is there and is no file", path.display())]
    OutType {
        /// The path.
        path: PathBuf,
    },
    /// No such level.
    #[error("{codec:?} has no level {level}, but {} to {}", levels.start(), levels.end())]
    Level {
        /// The codec.
        codec: Codec,
        /// The level.
        level: i32,
        /// The levels there are.
        levels: RangeInclusive<i32>,
    },
    /// Nothing says which machine the release is for.
    #[error("there is machine code for several machines in it: {}", machines.join(", "))]
    Machines {
        /// These.
        machines: Vec<String>,
    },
    /// A worker ended without a result.
    #[error("packing ended without a result")]
    Lost,
}

impl Reported for PackError {
    fn report(&self) -> Report<'_> {
        const CODE: &str = "not_packed";
        let refused = |remedy| Report::new(CODE, Exit::Refused, remedy);
        match self {
            Self::File(_) => {
                Report::new(CODE, Exit::Disk, "check that it can be read and written and that the disk has space")
            }
            Self::NoDescription { .. } => refused("name the directory of a release: one with an appliance.toml"),
            Self::Description { .. } => refused("give it an [appliance] section with name and version"),
            Self::Name { .. } | Self::Type { .. } => refused("remove it from the directory, or rename it"),
            Self::Mode { .. } => {
                refused("take them away with `chmod u-s,g-s,-t`: a number leaves those of a directory")
            }
            Self::Hooks { .. } => refused(TAKE_HOOKS_OUT),
            Self::Manifest { .. } => refused("change the directory so that every appliance can unpack it"),
            Self::Keys { source } => Report { code: CODE, exit: Exit::Refused, ..source.report() },
            Self::Changed { .. } => refused("pack again once nothing writes to the directory"),
            Self::OutInside { .. } => refused("write the package to another directory"),
            Self::OutType { .. } => refused("name a file, or a name that is not taken; nothing was changed"),
            Self::Level { .. } => refused("choose one of the codec's levels"),
            Self::Machines { .. } => refused("say which one it is for with --arch"),
            Self::Lost => refused("try again; if it stays so, report it as a bug of refit"),
        }
    }
}
