//! Packages that arrive, and those that wait to be installed.

use refit_base::names;
use refit_updater::{Digest, manifest};
use semver::Version;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::describe_names;

names! {
    /// Where a package is on its way into the appliance.
    pub enum ReceptionStep {
        /// Its signatures and manifest are read.
        Metadata = "metadata",
        /// Its signatures are verified.
        Verified = "verified",
        /// Its contents are verified and written.
        Unpacking = "unpacking",
        /// The disk is asked to keep it.
        Syncing = "syncing",
    }
}

describe_names!(ReceptionStep);

/// A package that was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Package {
    /// The digest of its manifest, in hexadecimal: what an update is asked for by.
    #[schema(value_type = String, example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub digest: Digest,
    /// The appliance it is for.
    #[schema(example = "shop")]
    pub appliance: String,
    /// The release in it.
    #[schema(value_type = String, example = "1.1.0")]
    pub version: Version,
    /// The release that runs.
    #[schema(value_type = String, example = "1.0.0")]
    pub from: Version,
    /// The size of its compressed contents, in bytes.
    #[schema(example = 1_048_576)]
    pub packed_bytes: u64,
    /// The size of the release on disk, in bytes.
    #[schema(example = 4_194_304)]
    pub installed_bytes: u64,
    /// How much was written for it, in bytes.
    #[schema(example = 524_288)]
    pub written_bytes: u64,
    /// How much it shares with releases that were here, in bytes.
    #[schema(example = 3_670_016)]
    pub linked_bytes: u64,
    /// What it changes of the running release; `null` if that is damaged.
    pub changes: Option<Changes>,
    /// Whether its signatures are past their date.
    #[serde(default)]
    #[schema(example = false)]
    pub expired: bool,
    /// The date of a signed release that the clock is before, if it is, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub clock_behind: Option<String>,
    /// Why this release failed here before, if it has.
    #[schema(example = "component web did not start: ended with status 3")]
    pub failed_before: Option<String>,
}

/// The difference between two releases, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changes {
    /// New files.
    #[serde(default)]
    #[schema(example = json!(["share/prices.json"]))]
    pub added: Vec<String>,
    /// Files with other content or permissions.
    #[serde(default)]
    #[schema(example = json!(["bin/shop"]))]
    pub changed: Vec<String>,
    /// Files that are gone.
    #[serde(default)]
    #[schema(example = json!(["share/old.json"]))]
    pub removed: Vec<String>,
}

impl From<manifest::Changes> for Changes {
    fn from(manifest::Changes { added, changed, removed }: manifest::Changes) -> Self {
        Self { added, changed, removed }
    }
}

/// The packages that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Packages {
    /// What was received and waits to be installed, in the order in which it came.
    pub packages: Vec<Staged>,
}

/// A package that was received and waits, until it is installed, discarded, or the runtime is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Staged {
    /// The digest of its manifest, in hexadecimal: what an update is asked for by.
    #[schema(value_type = String, example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub digest: Digest,
    /// The release in it.
    #[schema(value_type = String, example = "1.1.0")]
    pub version: Version,
    /// When it had been received, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub received_at: String,
    /// The size of its compressed contents, in bytes.
    #[schema(example = 1_048_576)]
    pub packed_bytes: u64,
    /// The size of the release on disk, in bytes.
    #[schema(example = 4_194_304)]
    pub installed_bytes: u64,
}

/// A package that is arriving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reception {
    /// When it began, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub since: String,
    /// Where it is.
    pub step: ReceptionStep,
    /// The release that arrives; `null` until its signatures are verified.
    #[schema(value_type = Option<String>, example = "1.1.0")]
    pub version: Option<Version>,
    /// The digest of its manifest, in hexadecimal; `null` until then, too.
    #[schema(
        value_type = Option<String>,
        example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )]
    pub digest: Option<Digest>,
    /// How many compressed bytes have arrived and are verified.
    #[serde(default)]
    #[schema(example = 524_288)]
    pub received_bytes: u64,
    /// How many there will be, if that is known.
    #[schema(example = 1_048_576)]
    pub total_bytes: Option<u64>,
}

/// Which release of the repository is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename = "Wanted")] // what a client reads that sends something else
#[schema(as = FetchBody)]
pub struct FetchBody {
    /// Its version.
    #[schema(value_type = String, example = "1.1.0")]
    pub version: Version,
    /// Whether a version is accepted that is not newer than the running one.
    #[serde(default)]
    #[schema(example = false)]
    pub allow_downgrade: bool,
    /// The digest that was approved, in hexadecimal: any other package is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        value_type = Option<String>,
        example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )]
    pub digest: Option<Digest>,
}
