//! How an attempt ends: in one way, wherever its end was seen.
//!
//! [`Endings::conclude`] is given the entry of an attempt that the journal has ended and resolves everything that waits for it: the
//! history, what is shown, the event, the ticket. [`Endings::give_up`] ends an attempt in the journal first. What the disk does not
//! take now is owed: it is written later, by [`Endings::pay_debts`], and nobody waits for that.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::{Cause, Chain, Exit, lock};
use refit_updater::attempt::{Attempt, Ending, Outcome, Step};
use refit_updater::history::Entry;
use refit_updater::journal::{Journal, State};
use semver::Version;
use tokio::sync::Notify;

use super::error::UpdateError;
use super::journal::JournalKeeper;
use super::parts::Parts;
use super::steps::Steps;
use crate::wire::{Ticket, TicketState};

/// The pause before what is owed is tried again; doubled each time.
const PAY_AGAIN_MIN: Duration = Duration::from_millis(250);
/// The longest pause: what an admin repairs is noticed soon.
const PAY_AGAIN_MAX: Duration = Duration::from_secs(10);

/// Ends attempts, for everybody who waits for one.
pub(super) struct Endings {
    parts: Arc<Parts>,
    journal: Arc<JournalKeeper>,
    steps: Arc<Steps>,
    /// Attempts that ended although the journal still has them: it could not be written.
    owed: Mutex<Vec<(Attempt, Ending)>>,
    /// Something is owed to the disk.
    is_owed: Notify,
}

impl Endings {
    pub(super) fn new(parts: Arc<Parts>, journal: Arc<JournalKeeper>, steps: Arc<Steps>) -> Self {
        Self { parts, journal, steps, owed: Mutex::default(), is_owed: Notify::new() }
    }

    /// Ends an attempt whose release was not started.
    pub(super) async fn give_up(self: &Arc<Self>, attempt: Attempt, ending: Ending) {
        let entry = Entry::of(attempt.clone(), Outcome::Failed, &ending);
        self.conclude_with(entry, Some((attempt, ending))).await;
    }

    /// Ends an attempt that the journal has ended with `entry`: writes the history as far as the disk allows, and tells everybody.
    pub(super) async fn conclude(self: &Arc<Self>, entry: Entry) {
        self.conclude_with(entry, None).await;
    }

    /// Does as [`Endings::conclude`]; what is `owed` to the journal comes first.
    async fn conclude_with(self: &Arc<Self>, entry: Entry, owed: Option<(Attempt, Ending)>) {
        if self.pay(owed).await.is_err() {
            self.is_owed.notify_one(); // who pays debts says why
        }
        self.tell(&entry);
    }

    /// Tells everybody how an attempt ended, unless they know: what is shown, the event, the ticket.
    pub(super) fn tell(&self, entry: &Entry) {
        self.steps.clear_of(&entry.id);
        let registry = &self.parts.context.registry;
        if registry.tickets.get(&entry.id).is_some_and(|ticket| ticket.is_final()) {
            return;
        }
        self.steps.publish_end(entry);
        registry.tickets.put(ticket(entry));
        registry.save();
    }

    /// Returns the ticket of an attempt that is no longer known by one: from the journal, or the history. Blocks.
    pub(super) fn ticket_of(&self, id: &str) -> Option<Ticket> {
        let attempt = self.journal.current().attempt.filter(|attempt| attempt.id == id);
        if let Some(attempt) = attempt {
            return Some(open_ticket(&attempt));
        }
        let entries = self.journal.history().inspect_err(|error| tracing::warn!(%error, "cannot read the history"));
        entries.ok()?.iter().rfind(|entry| entry.id == id).map(ticket)
    }

    /// Ends the attempt that the image before had only prepared, if there is one.
    pub(super) async fn give_up_prepared(self: &Arc<Self>) {
        let journal = self.journal.current();
        if let (State::Staged { .. }, Some(attempt)) = (&journal.state, &journal.attempt) {
            // A restart in place came before it could be tried.
            let reason = "the runtime was replaced before the release could be tried".to_owned();
            let ending = Ending::now(Step::Staged, reason).with_cause(Cause::Machine).with_code("runtime_replaced");
            let ending = Ending { exit: Some(Exit::TryLater), ..ending };
            self.give_up(attempt.clone(), ending).await;
        }
    }

    /// Ends what the images before left open: each ticket of an update but that of `under_way`, the attempt on trial, ends as the
    /// history has it, or, where that has nothing, with the image that it was lost with.
    pub(super) async fn settle(self: &Arc<Self>, finished: &[Entry], under_way: Option<&Attempt>) {
        for entry in finished {
            self.tell(entry);
        }
        let tickets = &self.parts.context.registry.tickets;
        if let Some(attempt) = under_way
            && tickets.get(&attempt.id).is_none()
        {
            tickets.put(open_ticket(attempt));
        }
        for open in
            tickets.open_updates_carried().into_iter().filter(|id| under_way.is_none_or(|attempt| attempt.id != *id))
        {
            let endings = Arc::clone(self);
            let id = open.clone();
            let found = tokio::task::spawn_blocking(move || endings.ticket_of(&id)).await.ok().flatten();
            match found.filter(Ticket::is_final) {
                Some(ticket) => tickets.put(ticket),
                None => tickets.fail(&open, LOST.to_owned(), "lost", Exit::TryLater),
            }
        }
    }

    /// Does what is owed to the disk, `more` included, on a thread that may block.
    ///
    /// # Errors
    /// The journal or the history cannot be written; what is left is still owed.
    async fn pay(self: &Arc<Self>, more: Option<(Attempt, Ending)>) -> Result<(), UpdateError> {
        let endings = Arc::clone(self);
        let work = move || {
            lock(&endings.owed).extend(more);
            endings.pay_blocking()
        };
        tokio::task::spawn_blocking(work).await.map_err(|source| UpdateError::Worker { source })?
    }

    /// Does what is owed to the disk: ends in the journal what has ended, and moves it into the history. Blocks.
    ///
    /// # Errors
    /// One of the two cannot be written; what is left is still owed.
    pub(super) fn pay_blocking(&self) -> Result<(), UpdateError> {
        let mut owed = lock(&self.owed);
        while let Some((attempt, ending)) = owed.first() {
            self.journal.change(|journal| given_up(journal, attempt, ending))?;
            owed.remove(0);
        }
        drop(owed);
        self.journal.record_finished()
    }

    /// Pays what is owed as soon as the disk takes it, for as long as this image lives.
    pub(super) async fn pay_debts(self: Arc<Self>) {
        loop {
            if let Err(error) = self.pay(None).await {
                tracing::warn!(error = %Chain(&error), "cannot record how an update ended; trying again until it can be");
                let mut pause = PAY_AGAIN_MIN;
                loop {
                    tokio::time::sleep(pause).await;
                    if self.pay(None).await.is_ok() {
                        break;
                    }
                    pause = (pause * 2).min(PAY_AGAIN_MAX);
                }
                tracing::info!("how every update ended is recorded now");
            }
            self.is_owed.notified().await;
        }
    }
}

/// Why an update failed of which nothing is left.
const LOST: &str = "the runtime ended before the update was recorded; nothing was changed";

/// Returns `journal` after an attempt has ended whose release was not started, whatever the journal knows of it.
fn given_up(journal: Journal, attempt: &Attempt, ending: &Ending) -> Result<Journal, UpdateError> {
    let is_known = journal.attempt.as_ref().is_some_and(|known| known.id == attempt.id);
    let is_idle = matches!(journal.state, State::Idle { .. });
    if is_known && !is_idle {
        return journal.given_up(ending).map_err(|impossible| UpdateError::Confused { impossible });
    }
    // It failed before the journal knew of it.
    Ok(journal.with_finished(Entry::of(attempt.clone(), Outcome::Failed, ending)))
}

/// Returns the ticket of an attempt under way.
fn open_ticket(attempt: &Attempt) -> Ticket {
    Ticket {
        id: attempt.id.clone(),
        request: attempt.kind.name().into(),
        origin: attempt.who.clone(),
        state: TicketState::Accepted,
        reason: None,
        reason_code: None,
        exit: None,
        asked: Vec::new(),
        confirmation: None,
    }
}

/// Returns the ticket of an attempt that ended.
fn ticket(entry: &Entry) -> Ticket {
    let reason = || entry.reason.clone().unwrap_or_else(|| "no reason is known".to_owned());
    let (state, reason, exit) = match entry.outcome {
        Outcome::Done => (TicketState::Done, None, Exit::Done),
        Outcome::RolledBack => (TicketState::Failed, Some(rolled_back(&entry.from, &reason())), Exit::Failed),
        Outcome::Failed => (TicketState::Failed, Some(reason()), Exit::Failed),
    };
    Ticket {
        id: entry.id.clone(),
        request: entry.kind.name().into(),
        origin: entry.who.clone(),
        state,
        reason,
        reason_code: entry.reason_code.clone(),
        exit: Some(entry.exit.unwrap_or(exit.code())),
        asked: Vec::new(),
        confirmation: None,
    }
}

fn rolled_back(from: &Version, reason: &str) -> String {
    format!("rolled back to {from}: {reason}")
}
