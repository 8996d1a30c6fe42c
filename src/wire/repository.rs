//! What the repository offers.

use refit_updater::Digest;
use refit_updater::repository::Listed;
use semver::Version;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the repository offers to this appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Repository {
    /// Where it is: a URL, or a directory.
    #[schema(example = "https://updates.example.com/shop/")]
    pub repository: String,
    /// The release that runs.
    #[schema(value_type = String, example = "1.0.0")]
    pub current: Version,
    /// The newest release that is newer than that and did not fail here, if there is one.
    #[schema(value_type = Option<String>, example = "1.1.0")]
    pub newer: Option<Version>,
    /// Every release for this appliance and machine, the oldest first.
    pub releases: Vec<Offer>,
}

/// A release of the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Offer {
    /// The appliance it is for.
    #[schema(example = "shop")]
    pub appliance: String,
    /// Its version.
    #[schema(value_type = String, example = "1.1.0")]
    pub version: Version,
    /// The machine it is for, or `any`.
    #[schema(example = "x86_64")]
    pub arch: String,
    /// When it was made, RFC 3339, if its metadata says so.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-01T12:00:00Z")]
    pub released: Option<jiff::Timestamp>,
    /// The oldest release that it updates, if it needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1.0.0")]
    pub requires: Option<Version>,
    /// The size of its payload, in bytes.
    #[schema(example = 1_048_576)]
    pub payload_bytes: u64,
    /// The size of the release on disk, in bytes.
    #[schema(example = 4_194_304)]
    pub installed_bytes: u64,
    /// The digest of its manifest, in hexadecimal; `null` if the metadata has only one of another kind.
    #[schema(
        value_type = Option<String>,
        example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )]
    pub digest: Option<Digest>,
    /// Why it failed here before, if it has.
    #[schema(example = "component web did not start: ended with status 3")]
    pub failed_before: Option<String>,
}

impl Offer {
    /// Returns the release that is `listed`, and failed here before for this reason.
    pub fn new(Listed { offer, digest }: Listed, failed_before: Option<String>) -> Self {
        Self {
            appliance: offer.appliance,
            version: offer.version,
            arch: offer.arch,
            released: offer.released,
            requires: offer.requires,
            payload_bytes: offer.payload_bytes,
            installed_bytes: offer.installed_bytes,
            digest,
            failed_before,
        }
    }
}
