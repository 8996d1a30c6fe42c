//! The phases of a reload.

use serde::{Deserialize, Serialize};

/// The two phases of a reload, the other end of the first, and the way back from the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Get the new generation ready beside the one in force, or refuse it.
    Prepare,
    /// Put the prepared generation into force.
    Commit,
    /// Drop the prepared generation.
    Abort,
    /// Put the generation before back into force: the committed one was not confirmed.
    Revert,
}

impl Phase {
    /// Returns the name that logs and external listeners get.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Abort => "abort",
            Self::Revert => "revert",
        }
    }
}
