//! Another process on the bus.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A process that is connected to the bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    /// Its whole name.
    #[schema(example = "till/main")]
    pub name: String,
    /// The component that it belongs to; `null` for the operator's.
    #[schema(example = "till")]
    pub component: Option<String>,
    /// Its process.
    #[schema(example = 4711)]
    pub pid: Option<i32>,
    /// Which of the component's processes it is, counted from 1; `null` for the operator's.
    #[schema(example = 2)]
    pub generation: Option<u32>,
    /// Whether it is called: of several generations of a component's processes only one is.
    #[schema(example = true)]
    pub called: bool,
    /// Its account, by number.
    #[schema(example = 1000)]
    pub uid: u32,
    /// Since when it is connected, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub since: String,
    /// Where it listens, by channel.
    #[serde(default)]
    pub channels: BTreeMap<String, Place>,
}

/// A peer's place on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Place {
    /// Its priority; lower is called earlier.
    #[schema(example = 50)]
    pub priority: i32,
    /// How long a call of it may take, in milliseconds, if it says so.
    #[schema(example = 5000)]
    pub limit_ms: Option<u64>,
    /// On `reload`: whether it can go back from what it has committed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = true)]
    pub reverts: bool,
}
