//! A reload that has to be confirmed: what is asked, what waits meanwhile, and how the wait ends.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::asked::Asked;
use crate::origin::Origin;

/// On which terms a reload is asked for that has to be confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfirmTerms {
    /// How long it waits once it is in force, before it is reverted.
    pub within: Duration,
    /// Whether the asker puts back by itself what the listeners read that cannot revert: it hears that the wait is over, and a plain
    /// reload follows. Without it a listener that cannot revert refuses.
    pub restores: bool,
}

/// A reload that is in force and waits to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// The number of the request.
    pub request: u64,
    /// The generation that is in force provisionally.
    pub generation: u64,
    /// Who asked.
    pub origin: Origin,
    /// Since when it waits, RFC 3339.
    pub since: String,
    /// Until when, RFC 3339.
    pub until: String,
    /// Whether the asker puts back what others read that cannot revert.
    pub restores: bool,
    /// The listeners that are told to revert, in the order in which they committed.
    pub listeners: Vec<String>,
}

/// How far a reload is that has to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfirmStep {
    /// It is in force, and waits.
    Waits,
    /// It was confirmed.
    Confirmed {
        /// By whom.
        by: Origin,
    },
    /// It is about to be reverted: who restores something by itself does so now.
    Reverting {
        /// Why.
        why: String,
    },
    /// It was reverted.
    Reverted {
        /// Why.
        why: String,
        /// Who did not revert, and why; `None` if all did.
        failed: Option<String>,
        /// Who was told, and what each answered.
        asked: Vec<Asked>,
    },
}

impl ConfirmStep {
    /// Returns whether nothing more will happen.
    pub const fn is_end(&self) -> bool {
        match self {
            Self::Waits | Self::Reverting { .. } => false,
            Self::Confirmed { .. } | Self::Reverted { .. } => true,
        }
    }
}

/// What a ticket says of a reload that has to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// What waits, or waited.
    pub reload: Unconfirmed,
    /// How far it is.
    pub step: ConfirmStep,
}
