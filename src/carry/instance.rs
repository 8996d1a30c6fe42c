//! What the next image is told of a component's process.

use std::collections::BTreeMap;
use std::path::PathBuf;

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::config::Signal;
use crate::wire;

/// Whether a process serves or is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It is the component.
    Current,
    /// Another took its place; it finishes what it has.
    Outgoing,
}

/// A component's process, for the next image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedInstance {
    /// The instance: component, dash, generation.
    pub id: String,
    /// The component.
    pub component: String,
    /// Counts the component's processes.
    pub generation: u32,
    /// Its PID.
    pub pid: i32,
    /// When the process began, in the kernel's clock ticks: with it a PID is unmistakable.
    pub start_ticks: u64,
    /// Its launch token.
    pub token: String,
    /// The release it was started from.
    pub release: Version,
    /// What it was started from, as a digest.
    pub fingerprint: String,
    /// When it was started, RFC 3339.
    pub started_at: String,
    /// Whether it said that it serves.
    pub ready: bool,
    /// What it last said of itself.
    pub status: Option<String>,
    /// Whether it serves or is on its way out.
    pub role: Role,
    /// How often the component was started again after it had ended by itself.
    #[serde(default)]
    pub restarts: u32,
    /// Its control group.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Its limits, and what keeps them.
    #[serde(default)]
    pub limits: BTreeMap<String, CarriedLimit>,
    /// How often it has to report, in microseconds, if it has said so itself.
    #[serde(default)]
    pub watchdog_us: Option<u64>,
    /// Until when it last asked for time, in nanoseconds of the monotonic clock.
    #[serde(default)]
    pub extended_until_ns: Option<u64>,
    /// The step that it announced, by name: a newer release may know more of them.
    #[serde(default)]
    pub announced: Option<String>,
    /// The number of the error that it says it ends with.
    #[serde(default)]
    pub errno: Option<i32>,
    /// Its account, by number.
    #[serde(default)]
    pub account: Option<u32>,
    /// The socket on which it reports.
    #[serde(default)]
    pub notify_path: Option<PathBuf>,
    /// That it is told to end.
    #[serde(default)]
    pub ending: Option<CarriedEnding>,
    /// The signal that tells it to end: that of the release it was started from.
    #[serde(default)]
    pub stop_signal: Signal,
    /// The names of the listeners that it was given. `None`: a runtime that did not say it has started it.
    #[serde(default)]
    pub listeners: Option<Vec<String>>,
}

impl CarriedInstance {
    /// Returns whether it was given the listener `name`.
    pub fn has(&self, name: &String) -> bool {
        self.listeners.as_ref().is_some_and(|names| names.contains(name))
    }

    /// Returns whether it may have been given the listener `name`.
    pub fn may_have(&self, name: &String) -> bool {
        self.listeners.as_ref().is_none_or(|names| names.contains(name))
    }
}

/// That a process is told to end: written down before it is told, so that the next image knows it, whenever this one ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedEnding {
    /// When it is killed, in nanoseconds of the monotonic clock.
    pub by_ns: u64,
    /// Why it is ended although the component is wanted, for people; none if the component was to stop or be replaced.
    pub reason: Option<String>,
}

/// The last run of a component that runs and ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedRun {
    /// The release it ran in.
    pub release: Version,
    /// What its process was started from, as a digest.
    pub fingerprint: String,
    /// When it began, in nanoseconds of the monotonic clock.
    pub begun_ns: u64,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// When it ended, if it has.
    pub ended_at: Option<String>,
    /// Why it failed, if it has.
    pub failure: Option<String>,
}

/// A limit of a process, and what keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedLimit {
    /// Bytes, percent of one processor, or a number.
    pub value: u64,
    /// What keeps it.
    pub by: LimitBy,
}

/// What keeps a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitBy {
    /// The control group, for all processes of the component together.
    Cgroup,
    /// A limit of each process.
    Rlimit,
    /// Nothing: the system offers nothing for it.
    None,
}

impl From<CarriedLimit> for wire::Limit {
    fn from(CarriedLimit { value, by }: CarriedLimit) -> Self {
        let by = match by {
            LimitBy::Cgroup => wire::LimitBy::Cgroup,
            LimitBy::Rlimit => wire::LimitBy::Rlimit,
            LimitBy::None => wire::LimitBy::None,
        };
        Self { value, by }
    }
}
