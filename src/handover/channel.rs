//! The channel between guard and runtime: a pair of sockets that each runtime is handed, and each image hands on.
//!
//! On it the guard tells what it alone knows ([`ToRuntime`]). A guard that sets [`VARIABLE`] also reads the runtime's
//! [reports](super::notify) there: a channel has no name that can be removed, and room for hundreds of reports. An older guard reads
//! them on the socket of `NOTIFY_SOCKET` only, and an older runtime sends them only there.

use serde::{Deserialize, Serialize};

/// Set in the environment of a runtime whose guard reads its reports on the channel, too.
pub const VARIABLE: &str = "REFIT_GUARD_READS_CHANNEL";

/// The report of the last attempt to go to another release: its name, a space, and when it began in nanoseconds of the monotonic clock. The
/// guard may have to end it, and the wall clock may be set meanwhile.
pub const ATTEMPT: &str = "X_REFIT_ATTEMPT";

/// Set in the environment of a runtime whose guard keeps what is told of one process by [`PROCESS`].
pub const KEEPS_PROCESSES: &str = "REFIT_GUARD_KEEPS_PROCESSES";

/// The report of what is known of one process: its name, a space, the number of the report, a space, and what the next runtime is to be told.
/// The guard keeps the last of each, until a document of everything comes after it, and hands them on.
pub const PROCESS: &str = "X_REFIT_PROCESS";

/// Beside a document of everything that the guard is to keep: the number up to which it holds all that was told of single processes. An
/// older runtime, which tells of none, does not say it.
pub const REPLACES: &str = "X_REFIT_REPLACES";

/// The reports that are between the guard and its runtime.
pub const OURS: [&str; 3] = [ATTEMPT, PROCESS, REPLACES];

/// What the guard says. An older runtime passes over what it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ToRuntime {
    /// A process has ended that the guard had started, or inherited.
    Reaped {
        /// The process.
        pid: i32,
        /// How it ended, for people.
        how: String,
    },
    /// A descriptor that was to be kept did not arrive.
    Missing {
        /// Its name.
        missing: String,
    },
}
