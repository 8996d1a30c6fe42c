//! What the measurements stand on: appliances made by code, clients that load them, the ancestor, and figures.

pub(crate) mod ancestor;
pub(crate) mod appliance;
pub(crate) mod crowd;
pub(crate) mod embedded;
pub(crate) mod external;
pub(crate) mod load;
pub(crate) mod site;
pub(crate) mod table;
pub(crate) mod wakeups;

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
    /// A program did not do what it was asked.
    #[error("{command} ended with {status}: {output}")]
    Command { command: String, status: std::process::ExitStatus, output: String },
    /// Somebody answered, but not as expected.
    #[error("{what} answered {answer}")]
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

/// Median, 99th percentile and maximum of some durations.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// How many there were.
    pub(crate) count: usize,
    /// The one in the middle; of two in the middle the longer one.
    pub(crate) median: Duration,
    /// The one that 99 in 100 do not exceed.
    pub(crate) p99: Duration,
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
            p99: durations.get(durations.len() * 99 / 100).copied().unwrap_or_default(),
            max: durations.last().copied().unwrap_or_default(),
        }
    }
}
