//! A request that is accepted and not done yet, and what is said to whoever asked.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::asked::Asked;
use crate::confirm::{ConfirmTerms, Confirmation};
use crate::machine::RequestKind;
use crate::origin::Origin;
use crate::request::{Progress, Ticket};

/// A request that is not done yet.
pub(super) struct Pending {
    pub(super) number: u64,
    pub(super) kind: RequestKind,
    pub(super) origin: Origin,
    outcome: watch::Sender<Progress>,
    /// Of a reload: who was asked.
    asked: Arc<OnceLock<Vec<Asked>>>,
    /// Of a reload that has to be confirmed: how.
    pub(super) terms: Option<ConfirmTerms>,
    /// What waits to be confirmed.
    pub(super) confirmation: watch::Sender<Option<Confirmation>>,
    /// Why it will have failed when the site has settled.
    pub(super) failed: Option<String>,
}

impl Pending {
    /// Returns the request `number`, accepted.
    pub(super) fn new(number: u64, kind: RequestKind, terms: Option<ConfirmTerms>, origin: Origin) -> Self {
        let (outcome, confirmation) = (watch::Sender::new(Progress::Accepted), watch::Sender::new(None));
        Self { number, kind, origin, outcome, asked: Arc::default(), terms, confirmation, failed: None }
    }

    pub(super) fn resolve(self, progress: Progress) {
        self.outcome.send_replace(self.failed.map_or(progress, Progress::Failed));
    }

    /// Resolves a reload, which is taken once.
    pub(super) fn answer(self, progress: &Progress, asked: &[Asked]) {
        drop(self.asked.set(asked.to_vec()));
        self.resolve(progress.clone());
    }

    /// Returns a ticket on it, of the request `number`.
    pub(super) fn ticket(&self, number: u64) -> Ticket {
        let merged_with = (number != self.number).then_some(self.number);
        let (progress, confirmation) = (self.outcome.subscribe(), self.confirmation.subscribe());
        Ticket::new(number, merged_with, progress, Arc::clone(&self.asked), confirmation)
    }
}

/// The reloads that one round answers.
pub(crate) struct Reloads(pub(super) Vec<Pending>);

impl Reloads {
    pub(crate) fn resolve(self, progress: &Progress, asked: &[Asked]) {
        for pending in self.0 {
            pending.answer(progress, asked);
        }
    }
}
