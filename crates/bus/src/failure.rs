//! What a failure says.

use serde::{Deserialize, Serialize};

/// Why a listener could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// Why, for people.
    pub reason: String,
    /// The last output of what failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<String>,
}

impl Failure {
    /// Returns a failure without output.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), output: Vec::new() }
    }

    /// Returns the failure that an error is: its whole chain of causes.
    pub fn from_error(error: &dyn std::error::Error) -> Self {
        Self::new(refit_base::Chain(error).to_string())
    }
}
