//! An answer that says what failed, why, and what to do (RFC 9457).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An answer that says what failed, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URN that names the kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "urn:refit:problem:not_found")]
    pub kind: String,
    /// The kind, for people.
    #[schema(example = "not found")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// What failed and why.
    #[schema(example = "there is no component \"web\"")]
    pub detail: String,
    /// The kind, for programs.
    #[schema(example = "not_found")]
    pub code: String,
    /// The cause, for programs, where it is known more precisely: `not_newer`, `signature_invalid`, `other_appliance`.
    #[serde(default)]
    #[schema(example = "not_found")]
    pub reason_code: String,
    /// What to do.
    #[schema(example = "check the name")]
    pub remedy: String,
    /// The exit status of a command that fails with it.
    #[schema(example = 64)]
    pub exit: u8,
}
