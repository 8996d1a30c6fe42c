//! The releases on the disk.

use refit_base::names;
use refit_updater::Digest;
use semver::Version;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::describe_names;
use super::package::Staged;

names! {
    /// What a release on the disk is.
    pub enum ReleaseState {
        /// The one that runs, and is good.
        Current = "current",
        /// The one that runs, on trial.
        Trial = "trial",
        /// The one that a rollback goes back to.
        Previous = "previous",
        /// It was tried here, and failed.
        Failed = "failed",
        /// It was good here before.
        Kept = "kept",
        /// It is on the disk, and was not tried.
        Staged = "staged",
        /// Its manifest cannot be read, or its directory is missing: the reason says so, and what it would be.
        Damaged = "damaged",
        /// The running one is good; only the status and an event say so.
        Good = "good",
    }
}

describe_names!(ReleaseState);

/// The releases on the disk, and what waits to be installed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Releases {
    /// The releases on the disk, the newest first.
    pub releases: Vec<Release>,
    /// The packages that were received and wait.
    #[serde(default)]
    pub staged: Vec<Staged>,
}

/// A release on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    /// Its version.
    #[schema(value_type = String, example = "1.1.0")]
    pub version: Version,
    /// What it is.
    pub state: ReleaseState,
    /// The digest of its manifest, in hexadecimal; `null` of one that is damaged.
    #[schema(value_type = Option<String>, example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub digest: Option<Digest>,
    /// Its size on disk, in bytes, with what it shares with others; `null` of one that is damaged.
    #[schema(example = 4_194_304)]
    pub installed_bytes: Option<u64>,
    /// When it was unpacked, RFC 3339, if that can be seen.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub installed_at: Option<String>,
    /// Why it failed here, if it has; or what is damaged, and what makes it whole.
    #[schema(example = "component web did not start: ended with status 3")]
    pub reason: Option<String>,
}

/// A release that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// Its version.
    #[schema(value_type = String, example = "1.0.0")]
    pub removed: Version,
    /// Its size on disk, in bytes, with what it shared with others; `null` if that was not known any more.
    #[schema(example = 4_194_304)]
    pub installed_bytes: Option<u64>,
}
