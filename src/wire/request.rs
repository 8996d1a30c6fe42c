//! What can be asked of the site as a whole.

use refit_base::names;
use refit_bus::RequestKind;
use refit_updater::Digest;
use semver::Version;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::describe_names;

names! {
    /// What is asked of the site.
    pub enum RequestName {
        /// Start what does not run.
        Start = "start",
        /// Stop all components; the runtime stays.
        Stop = "stop",
        /// Have every component take new settings.
        Reload = "reload",
        /// Keep the settings that wait to be confirmed.
        Confirm = "confirm",
        /// Replace the runtime by a new one of the same release.
        Restart = "restart",
        /// Stop everything and end.
        Exit = "exit",
        /// Go to another release.
        Update = "update",
        /// Go back to a release that was good.
        Rollback = "rollback",
    }
}

describe_names!(RequestName);

impl From<RequestKind> for RequestName {
    fn from(kind: RequestKind) -> Self {
        kind.name().into()
    }
}

/// What somebody asks of the site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename = "Wanted")] // what a client reads that sends something else
#[schema(as = RequestBody)]
pub struct RequestBody {
    /// Which request.
    #[serde(default)]
    #[schema(value_type = RequestName)]
    pub request: String,
    /// Of an update: the digest of the manifest of a package that was received, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        value_type = Option<String>,
        example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )]
    pub digest: Option<Digest>,
    /// Of an update: the version of a release that is on the disk, or that the repository has. Of a rollback: of one on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1.1.0")]
    pub version: Option<Version>,
    /// Of a reload: how long it waits to be confirmed, from 100 ms to 24 h, before it is reverted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2m")]
    pub confirm_within: Option<String>,
    /// Of a reload that has to be confirmed: whether who asks puts back by itself what others read that cannot revert.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = false)]
    pub restores: bool,
}

/// Where an update or rollback goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// The digest of the manifest of a package that was received, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        value_type = Option<String>,
        example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )]
    pub digest: Option<Digest>,
    /// The version of a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1.1.0")]
    pub version: Option<Version>,
}
