//! What is known of one process, told between two [documents](super::Carry) of everything.
//!
//! A document of everything grows with the number of processes, and each of them changes several times in a start and a stop. So each
//! change is told by itself, to a guard that keeps such words: the last of each process, until a document of everything has come after
//! it. All of them and the documents are numbered in one row; of two the one with the higher number holds.

use serde::{Deserialize, Serialize};

use super::instance::CarriedInstance;
use crate::handover::notify::DATAGRAM_BYTES_MAX;

/// The word on one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Single {
    /// Its place in the row.
    pub(super) sequence: u64,
    /// The process.
    pub(super) id: String,
    /// Its component.
    pub(super) component: String,
    /// Counts the component's processes.
    pub(super) generation: u32,
    /// What is known of it; nothing if it has ended, and all that was kept of it is gone.
    #[serde(default)]
    pub(super) instance: Option<CarriedInstance>,
}

impl Single {
    /// Returns the report that tells it to the guard; `None` if it is too long for one.
    pub(super) fn report(&self) -> Option<String> {
        let text = serde_json::to_string(self).ok()?;
        let report = format!("{}={} {} {text}", crate::handover::channel::PROCESS, self.id, self.sequence);
        (report.len() <= DATAGRAM_BYTES_MAX).then_some(report)
    }
}
