//! A reload that has to be confirmed.

use refit_base::names;
use refit_bus::ConfirmStep;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::describe_names;

names! {
    /// How far a reload is that has to be confirmed.
    pub enum ConfirmationState {
        /// It is in force, and waits.
        Waiting = "waiting",
        /// It was confirmed, and stays in force.
        Confirmed = "confirmed",
        /// It is being reverted.
        Reverting = "reverting",
        /// It was reverted.
        Reverted = "reverted",
        /// The runtime ended while it waited: what is on the disk is in force.
        Lost = "lost",
    }
}

describe_names!(ConfirmationState);

/// What the ticket of a reload that has to be confirmed says of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Confirmation {
    /// Until when it waits, or waited, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:02:00.000Z")]
    pub until: String,
    /// Which generation of the settings is in force meanwhile.
    #[schema(example = 2)]
    pub generation: u64,
    /// How far it is.
    pub state: ConfirmationState,
    /// Who has confirmed it.
    #[schema(example = "root (local)")]
    pub by: Option<String>,
    /// Why it was reverted, and who did not revert.
    #[schema(example = "it was not confirmed within 120 s")]
    pub reason: Option<String>,
}

impl Confirmation {
    /// Returns whether the wait lasts, or what follows it.
    pub fn is_open(&self) -> bool {
        matches!(self.state, ConfirmationState::Waiting | ConfirmationState::Reverting)
    }
}

impl From<&refit_bus::Confirmation> for Confirmation {
    fn from(refit_bus::Confirmation { reload, step }: &refit_bus::Confirmation) -> Self {
        let (state, by, reason) = match step {
            ConfirmStep::Waits => (ConfirmationState::Waiting, None, None),
            ConfirmStep::Confirmed { by } => (ConfirmationState::Confirmed, Some(by.0.clone()), None),
            ConfirmStep::Reverting { why } => (ConfirmationState::Reverting, None, Some(why.clone())),
            ConfirmStep::Reverted { why, failed: None, .. } => (ConfirmationState::Reverted, None, Some(why.clone())),
            ConfirmStep::Reverted { why, failed: Some(failed), .. } => {
                let reason = format!("{why}; not reverted: {}", failed.trim_start());
                (ConfirmationState::Reverted, None, Some(reason))
            }
        };
        Self { until: reload.until.clone(), generation: reload.generation, state, by, reason }
    }
}

/// A reload that is in force and waits to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unconfirmed {
    /// The number of the request in this process image.
    #[schema(example = 4)]
    pub request: u64,
    /// Which generation of the settings it is.
    #[schema(example = 2)]
    pub generation: u64,
    /// Who asked.
    #[schema(example = "root (local)")]
    pub origin: String,
    /// Since when it waits, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub since: String,
    /// Until when, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:02:00.000Z")]
    pub until: String,
    /// Whether who asked puts back by itself what others read that cannot revert.
    #[serde(default)]
    #[schema(example = false)]
    pub restores: bool,
    /// Who is told to revert, in the order in which they committed.
    #[serde(default)]
    #[schema(example = json!(["till/main"]))]
    pub listeners: Vec<String>,
}

impl From<refit_bus::Unconfirmed> for Unconfirmed {
    fn from(reload: refit_bus::Unconfirmed) -> Self {
        let refit_bus::Unconfirmed { request, generation, origin, since, until, restores, listeners } = reload;
        Self { request, generation, origin: origin.0, since, until, restores, listeners }
    }
}
