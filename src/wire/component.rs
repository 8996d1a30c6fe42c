//! A component: what it is doing, its process, and what it says.

use std::collections::BTreeMap;

use refit_base::names;
use semver::Version;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::describe_names;
use super::peer::Peer;

names! {
    /// What a component is doing.
    pub enum ComponentState {
        /// It is coming up.
        Starting = "starting",
        /// It serves.
        Running = "running",
        /// It is going down.
        Stopping = "stopping",
        /// It is down.
        Stopped = "stopped",
        /// It ended by itself and is started again after a pause.
        Backoff = "backoff",
        /// It ended by itself and is not started again.
        Failed = "failed",
        /// It runs once at each start of the site, and has ended well.
        Done = "done",
        /// It runs every so often, and the next run is not due yet.
        Waiting = "waiting",
    }
}

names! {
    /// How long a component's process lives.
    pub enum Kind {
        /// As long as the site runs.
        Service = "service",
        /// It runs once at each start of the site.
        Once = "once",
        /// It runs every so often, and ends each time.
        Every = "every",
    }
}

names! {
    /// What is known of a component's health.
    pub enum Health {
        /// It has no health check.
        None = "none",
        /// Nothing certain is known: it was not tried yet, or the last try was bad and not enough before it.
        Unknown = "unknown",
        /// The last try was good.
        Healthy = "healthy",
        /// The last tries were bad.
        Unhealthy = "unhealthy",
    }
}

names! {
    /// What an update does to a component's process.
    pub enum Handover {
        /// The new process starts beside the old one, which stops when the new one is ready.
        Overlap = "overlap",
        /// The old process stops before the new one starts.
        Restart = "restart",
        /// The process is not touched.
        Keep = "keep",
    }
}

names! {
    /// A step that a component has announced.
    pub enum Announced {
        /// It stops by itself.
        Stopping = "stopping",
        /// It reads its settings again.
        Reloading = "reloading",
    }
}

names! {
    /// What keeps a limit.
    pub enum LimitBy {
        /// The control group, for all processes of the component together.
        Cgroup = "cgroup",
        /// A limit of each process.
        Rlimit = "rlimit",
        /// Nothing: the system offers nothing for it.
        None = "none",
    }
}

describe_names!(ComponentState, Kind, Health, Handover, Announced, LimitBy);

/// A component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Component {
    /// Its name.
    #[schema(example = "web")]
    pub name: String,
    /// How long its process lives.
    pub kind: Kind,
    /// What it is doing.
    pub state: ComponentState,
    /// Its process, if one runs.
    #[schema(example = 4711)]
    pub pid: Option<i32>,
    /// Counts its processes, over the whole life of the appliance.
    #[schema(example = 2)]
    pub generation: u32,
    /// What is known of its health.
    pub health: Health,
    /// What an update does to its process.
    pub handover: Handover,
    /// The release that its process was started from.
    #[schema(value_type = Option<String>, example = "1.1.0")]
    pub release: Option<Version>,
    /// When its process was started, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub started_at: Option<String>,
    /// How often it was started again after it had ended by itself.
    #[serde(default)]
    #[schema(example = 0)]
    pub restarts: u32,
    /// What it says of itself.
    #[schema(example = "serving 12 customers")]
    pub status: Option<String>,
    /// What it is about to do, if it has announced that.
    pub announced: Option<Announced>,
    /// The limits of its process, by name: `memory` in bytes, `cpu` in percent of one processor, `tasks` and `files` as numbers.
    #[serde(default)]
    pub limits: BTreeMap<String, Limit>,
    /// Its last run, if it runs and ends.
    pub last_run: Option<Run>,
    /// When its next run is due, RFC 3339, if it runs every so often.
    #[schema(format = DateTime, example = "2026-01-01T13:00:00.000Z")]
    pub next_run_at: Option<String>,
    /// The processes of it that are connected to the bus.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Why it does not run, or is not healthy.
    #[schema(example = "ended with status 3")]
    pub reason: Option<String>,
}

/// The last run of a component that runs and ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// When it began, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub started_at: String,
    /// When it ended, RFC 3339, if it has.
    #[schema(format = DateTime, example = "2026-01-01T12:00:02.000Z")]
    pub ended_at: Option<String>,
    /// Why it failed, if it has.
    #[schema(example = "ended with status 1")]
    pub failure: Option<String>,
}

/// A limit of a component's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// How much: bytes, percent of one processor, or a number.
    #[schema(example = 268_435_456)]
    pub value: u64,
    /// What keeps it.
    pub by: LimitBy,
}

/// Every component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Components {
    /// The components, by name.
    pub components: Vec<Component>,
}

/// What became of a component that was started, stopped or restarted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Acted {
    /// The component as it is now.
    pub component: Component,
    /// What went wrong on the way, although it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "did not stop within 10 s; killed")]
    pub warning: Option<String>,
}
