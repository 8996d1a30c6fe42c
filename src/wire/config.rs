//! The live configuration: what an update made of it, and what waits for the admin.

use refit_base::names;
use refit_updater::config;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::describe_names;

names! {
    /// Why an admin's file and a release's default do not go together.
    pub enum Clash {
        /// Both changed the same lines, or what has no lines.
        Lines = "lines",
        /// One is a file and the other a directory, or the like.
        Kind = "kind",
        /// The admin removed what the release changed.
        Removed = "removed",
        /// The admin's cannot be read, or is not a file, directory or link.
        Unread = "unread",
    }
}

describe_names!(Clash);

impl From<config::Clash> for Clash {
    fn from(clash: config::Clash) -> Self {
        match clash {
            config::Clash::Lines => Self::Lines,
            config::Clash::Kind => Self::Kind,
            config::Clash::Removed => Self::Removed,
            config::Clash::Unread => Self::Unread,
        }
    }
}

/// What of the live configuration needs the admin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Config {
    /// The files that could not be merged with the release's defaults.
    #[serde(default)]
    pub unmerged: Vec<Unmerged>,
    /// What cannot be read.
    #[serde(default)]
    pub unread: Vec<Unread>,
}

/// A file of the live configuration that waits for the admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unmerged {
    /// Its path below the configuration.
    #[schema(example = "shop.toml")]
    pub path: String,
    /// Where the release's new default lies, below the configuration.
    #[schema(example = "shop.toml.new")]
    pub new_default: String,
    /// Why the two do not go together.
    pub because: Clash,
}

impl From<config::Unmerged> for Unmerged {
    fn from(file: config::Unmerged) -> Self {
        Self { path: file.path, new_default: file.new_default, because: file.because.into() }
    }
}

/// Something in the live configuration that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unread {
    /// Its path below the configuration; empty for the configuration itself.
    #[schema(example = "secret.key")]
    pub path: String,
    /// Why, as a clause.
    #[schema(example = "Permission denied (os error 13)")]
    pub why: String,
}

impl From<config::Unread> for Unread {
    fn from(config::Unread { path, why }: config::Unread) -> Self {
        Self { path, why }
    }
}

/// One file of a configuration that an update has merged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MergedFile {
    /// Its path below the configuration.
    #[schema(example = "shop.toml")]
    pub path: String,
    /// What became of it.
    pub outcome: MergeOutcome,
}

/// What became of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MergeOutcome {
    /// The file is what it was.
    Unchanged,
    /// The new release's default took the place of the old one's.
    Updated,
    /// The admin's file stayed, or stayed away.
    KeptAdmin,
    /// The admin's changes and the release's are both in it.
    Merged,
    /// Both changed the same: the admin's stayed.
    Conflict {
        /// Where the new default lies, below the configuration.
        #[schema(example = "shop.toml.new")]
        new_default: String,
        /// Why they do not go together.
        because: Clash,
    },
    /// The admin's could not be carried over, and stays where it was; the release has no default for it.
    NotCarried {
        /// Why, as a clause.
        #[schema(example = "Permission denied (os error 13)")]
        why: String,
    },
    /// What the admin made of it when this release ran before is in it again.
    Restored,
    /// What the admin made of it when this release ran before does not go together with what was made since: it lies beside.
    Beside {
        /// Where, below the configuration.
        #[schema(example = "shop.toml.old")]
        earlier: String,
    },
    /// The new release brought it.
    Added,
    /// The new release has it no longer, and the admin had not touched it.
    Removed,
}

impl From<&config::Outcome> for MergeOutcome {
    fn from(outcome: &config::Outcome) -> Self {
        match outcome {
            config::Outcome::Unchanged => Self::Unchanged,
            config::Outcome::Updated => Self::Updated,
            config::Outcome::KeptAdmin => Self::KeptAdmin,
            config::Outcome::Merged => Self::Merged,
            config::Outcome::Conflict { new_default, because } => {
                Self::Conflict { new_default: new_default.clone(), because: (*because).into() }
            }
            config::Outcome::NotCarried { why } => Self::NotCarried { why: why.clone() },
            config::Outcome::Restored => Self::Restored,
            config::Outcome::Beside { earlier } => Self::Beside { earlier: earlier.clone() },
            config::Outcome::Added => Self::Added,
            config::Outcome::Removed => Self::Removed,
        }
    }
}

impl From<&config::MergedFile> for MergedFile {
    fn from(file: &config::MergedFile) -> Self {
        Self { path: file.path.clone(), outcome: (&file.outcome).into() }
    }
}
