//! What a failure says.

use refit_base::Cause;
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
    /// Whose trouble it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cause: Cause,
    /// Whether whoever was asked is gone, such as a process that ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// Whether its time was over, by a limit that it shares with others and keeps itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

fn is_default(cause: &Cause) -> bool {
    *cause == Cause::default()
}

impl Failure {
    /// Returns a failure without output.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), output: Vec::new(), cause: Cause::Release, lost: false, late: false }
    }

    /// Returns the failure of somebody who is gone.
    pub fn lost(reason: impl Into<String>) -> Self {
        Self { lost: true, ..Self::new(reason) }
    }

    /// Returns the failure of somebody who did not answer in time.
    pub fn late(reason: impl Into<String>) -> Self {
        Self { late: true, ..Self::new(reason) }
    }

    /// Returns the failure that an error is: its whole chain of causes.
    pub fn from_error(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(refit_base::Chain(error).to_string()).with_cause(Cause::of(error))
    }

    /// Returns it as the trouble of `cause`.
    #[must_use]
    pub fn with_cause(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }
}

/// Returns what failed as one text for people: why, if it was one listener, and else a line for each with its name and its priority,
/// in the order given. `None` if there is none.
pub fn combined<'a>(failures: impl IntoIterator<Item = (&'a str, Option<i32>, &'a str)>) -> Option<String> {
    // A reason that comes from elsewhere must not look like another listener's line.
    let failures: Vec<_> =
        failures.into_iter().map(|(name, at, reason)| (name, at, reason.replace(['\n', '\r'], " "))).collect();
    match failures.as_slice() {
        [] => None,
        [(name, _, reason)] => Some(format!("{name}: {reason}")),
        several => {
            let line = |(name, priority, reason): &(&str, Option<i32>, String)| match priority {
                Some(priority) => format!("\n    {name}: {reason} (priority {priority})"),
                None => format!("\n    {name}: {reason}"),
            };
            Some(several.iter().map(line).collect())
        }
    }
}
