//! The channel between guard and runtime: a pair of sockets that each runtime is handed, and each image hands on.
//!
//! On it the guard tells what it alone knows ([`ToRuntime`]). A guard that sets [`VARIABLE`] also reads the runtime's
//! [reports](super::notify) there: a channel has no name that can be removed, and room for hundreds of reports. An older guard reads
//! them on the socket of `NOTIFY_SOCKET` only, and an older runtime sends them only there.

use refit_base::Cause;
use semver::Version;
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

/// The report of how long the runtime may take to end once it was asked to, in microseconds: as long as its components may, one after the
/// other.
pub const END: &str = "X_REFIT_END_USEC";

/// The reports that are between the guard and its runtime.
pub const OURS: [&str; 4] = [ATTEMPT, PROCESS, REPLACES, END];

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

/// Set in the environment of a runtime that follows others which died one after the other: [`Deaths`], as JSON.
pub const DEATHS: &str = "REFIT_DEATHS";

/// How many lines of its last output are told of a runtime that died.
pub const DEATH_LINES_MAX: usize = 20;
/// The longest of them, in characters: all of it is in one variable.
pub const DEATH_LINE_CHARS_MAX: usize = 400;

/// Runtimes of a good release that died one after the other, none of which had stayed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deaths {
    /// How many.
    pub count: u32,
    /// Their release.
    pub release: Version,
    /// What happened to the last one, for people: what follows "the runtime".
    pub how: String,
    /// Whose trouble that was.
    pub cause: Cause,
    /// When the first one died, RFC 3339.
    pub since: String,
    /// When the last one did.
    pub at: String,
    /// The last that it printed.
    pub output: Vec<String>,
}

impl Deaths {
    /// Returns what to say of them.
    pub fn describe(&self) -> String {
        let Self { count, how, since, .. } = self;
        format!("the runtime {how}, {count} times in a row since {since}; each start waits longer, up to 10 s")
    }

    /// Returns whether the history has an entry for the last of them: it has one for each of the first, and then fewer and fewer, so
    /// that one that dies for ever leaves room for what else happened.
    pub fn is_recorded(&self) -> bool {
        /// So many deaths have an entry each.
        const EACH_MAX: u32 = 8;
        self.count <= EACH_MAX || self.count.is_power_of_two()
    }
}
