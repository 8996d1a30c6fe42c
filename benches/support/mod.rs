//! What the measurement stands on: an appliance made by code, clients that load it, and figures.

pub(crate) mod appliance;
pub(crate) mod load;

use std::io;
use std::time::Duration;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The system refused something.
    #[error("cannot {what}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
    /// `refit` did not do what it was asked.
    #[error("refit {command} ended with {status}: {output}")]
    Command { command: String, status: std::process::ExitStatus, output: String },
    /// The appliance answered, but not as expected.
    #[error("the appliance answered {what} with {answer}")]
    Answer { what: &'static str, answer: String },
    /// Something took too long.
    #[error("{what} took longer than {} s", limit.as_secs())]
    Late { what: &'static str, limit: Duration },
    /// An update did not end well.
    #[error("the update to {version} ended with {step}: {reason}")]
    Update { version: &'static str, step: String, reason: String },
}

/// Returns how an error of the system becomes ours.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    move |source| BenchError::Io { what, source }
}

/// Median and maximum of some durations.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// How many there were.
    pub(crate) count: usize,
    /// The one in the middle; of two in the middle the longer one.
    pub(crate) median: Duration,
    /// The longest.
    pub(crate) max: Duration,
}

impl Figures {
    /// Returns the figures of `durations`; zeros if there are none.
    pub(crate) fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        Self {
            count: durations.len(),
            median: durations.get(durations.len() / 2).copied().unwrap_or_default(),
            max: durations.last().copied().unwrap_or_default(),
        }
    }
}
