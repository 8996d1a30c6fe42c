//! What the guard tells the runtime of processes whose end it has seen: the guard is their parent, or inherited them.

use serde::{Deserialize, Serialize};

/// What the guard says of a process that it collected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaped {
    /// The process.
    pub pid: i32,
    /// How it ended, for people.
    pub how: String,
}
