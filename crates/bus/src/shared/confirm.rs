//! The reload that has to be confirmed: who asked for it, whether it waits, and what is promised to whoever confirms it.

use tokio::sync::watch;

use super::pending::Pending;
use super::{Core, Shared};
use crate::asked::Asked;
use crate::confirm::{ConfirmStep, ConfirmTerms, Confirmation, Unconfirmed};
use crate::machine::{ConfirmState, RequestKind};
use crate::origin::Origin;
use crate::request::Progress;

/// A reload that has to be confirmed and begins.
pub(crate) struct Provisional {
    pub(crate) terms: ConfirmTerms,
    pending: Pending,
}

impl Provisional {
    pub(crate) const fn number(&self) -> u64 {
        self.pending.number
    }

    pub(crate) const fn origin(&self) -> &Origin {
        &self.pending.origin
    }

    /// Says to whoever asked what became of it; `waits` is what has to be confirmed, if that came to be. Returns where the end of the
    /// wait is said.
    pub(crate) fn resolve(
        self,
        progress: &Progress,
        asked: &[Asked],
        waits: Option<Unconfirmed>,
    ) -> watch::Sender<Option<Confirmation>> {
        let Pending { ref confirmation, .. } = self.pending;
        let confirmation = confirmation.clone();
        confirmation.send_replace(waits.map(|reload| Confirmation { reload, step: ConfirmStep::Waits }));
        self.pending.answer(progress, asked);
        confirmation
    }
}

impl Core {
    /// Forgets the reloads that wait to begin: the site goes elsewhere. One that is in force is the engine's to revert.
    pub(super) const fn forget_reloads(&mut self) {
        self.status.reload_waits = false;
        if matches!(self.status.confirm, ConfirmState::Asked) {
            self.status.confirm = ConfirmState::None;
        }
    }
}

impl Shared {
    /// Takes the reload that has to be confirmed, if one waits to begin.
    pub(crate) fn take_provisional(&self) -> Option<Provisional> {
        let mut core = self.core();
        let pending = core.pending.extract_if(.., |pending| pending.terms.is_some()).next();
        let taken = pending.and_then(|pending| Some(Provisional { terms: pending.terms?, pending }));
        core.status.confirm = if taken.is_some() { ConfirmState::UnderWay } else { ConfirmState::None };
        taken
    }

    /// Returns the reload that waits to be confirmed, or is just being reverted.
    pub(crate) fn unconfirmed(&self) -> Option<Unconfirmed> {
        self.core().unconfirmed.clone()
    }

    /// Has a reload that is in force wait: from now on it can be confirmed.
    pub(crate) fn begin_wait(&self, reload: Unconfirmed) {
        let mut core = self.core();
        core.status.confirm = ConfirmState::Waits;
        core.unconfirmed = Some(reload);
    }

    /// Has nobody confirm any more. Returns whether nobody had before.
    pub(crate) fn begin_revert(&self) -> bool {
        let mut core = self.core();
        if core.status.confirm == ConfirmState::Confirmed {
            return false;
        }
        core.status.confirm = ConfirmState::Reverting;
        true
    }

    /// Returns who has confirmed.
    pub(crate) fn confirmed_by(&self) -> Option<Origin> {
        let core = self.core();
        let mut confirms = core.pending.iter().filter(|pending| pending.kind == RequestKind::Confirm);
        confirms.next().map(|pending| pending.origin.clone())
    }

    /// Ends the wait, so that another reload may come. Then `tell` tells whoever asked for it, and last whoever has confirmed it.
    pub(crate) fn end_wait(&self, tell: impl FnOnce()) {
        let confirms: Vec<Pending> = {
            let mut core = self.core();
            core.status.confirm = ConfirmState::None;
            core.unconfirmed = None;
            core.pending.extract_if(.., |pending| pending.kind == RequestKind::Confirm).collect()
        };
        tell();
        for pending in confirms {
            pending.resolve(Progress::Done);
        }
    }
}
