//! The tickets that the API gave: kept until nobody asks any more, across an exec.

use std::collections::VecDeque;
use std::sync::Mutex;

use refit_base::{Exit, lock};
use tokio::sync::watch;

use crate::wire::{Asked, Confirmation, ConfirmationState, RequestName, Ticket, TicketState};

/// How many tickets are kept: the last hundred requests.
pub const TICKETS_MAX: usize = 100;

/// The tickets, newest last.
#[derive(Debug)]
pub struct Tickets {
    kept: Mutex<VecDeque<Ticket>>,
    /// Counts the changes, for whoever waits.
    changes: watch::Sender<u64>,
    /// What makes this process image's names different from every other's.
    stem: String,
    next: std::sync::atomic::AtomicU32,
}

impl Tickets {
    /// Returns the tickets that were carried over; new ones are named after `stem`.
    pub fn new(kept: Vec<Ticket>, stem: String) -> Self {
        Self { kept: Mutex::new(kept.into()), changes: watch::channel(0).0, stem, next: 0.into() }
    }

    /// Makes a ticket for `request`.
    pub fn open(&self, request: RequestName, origin: &str) -> Ticket {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let ticket = Ticket {
            id: format!("{}-{number}", self.stem),
            request,
            origin: origin.to_owned(),
            state: TicketState::Accepted,
            reason: None,
            reason_code: None,
            exit: None,
            asked: Vec::new(),
            confirmation: None,
        };
        self.put(ticket.clone());
        ticket
    }

    /// Keeps `ticket`, in the place of an open one of its name. One that has an outcome stays as it is.
    pub fn put(&self, ticket: Ticket) {
        {
            let mut kept = lock(&self.kept);
            match kept.iter_mut().find(|known| known.id == ticket.id) {
                Some(known) if known.is_final() => {}
                Some(known) => *known = ticket,
                None => {
                    if kept.len() == TICKETS_MAX {
                        // Whoever asks for much must not push out what others still wait for.
                        let oldest_done = kept.iter().position(Ticket::is_final).unwrap_or(0);
                        kept.remove(oldest_done);
                    }
                    kept.push_back(ticket);
                }
            }
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// Returns the names of the tickets of updates and rollbacks that earlier images gave and that have no outcome.
    pub fn open_updates_carried(&self) -> Vec<String> {
        let is_open = |ticket: &&Ticket| !ticket.is_final() && ticket.is_update() && !ticket.id.starts_with(&self.stem);
        lock(&self.kept).iter().filter(is_open).map(|ticket| ticket.id.clone()).collect()
    }

    /// Records who was asked for the ticket `id`; before its outcome.
    pub fn asked(&self, id: &str, asked: Vec<Asked>) {
        if let Some(ticket) = lock(&self.kept).iter_mut().find(|ticket| ticket.id == id && !ticket.is_final()) {
            ticket.asked = asked;
        }
    }

    /// Records how far the reload of the ticket `id` is that has to be confirmed.
    pub fn confirmation(&self, id: &str, confirmation: Confirmation) {
        if let Some(ticket) = lock(&self.kept).iter_mut().find(|ticket| ticket.id == id) {
            ticket.confirmation = Some(Box::new(confirmation));
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// Records that nobody waits any more for what earlier images waited for.
    fn lose_confirmations(&self) {
        for ticket in lock(&self.kept).iter_mut().filter(|ticket| !ticket.id.starts_with(&self.stem)) {
            if let Some(confirmation) = ticket.confirmation.as_mut().filter(|confirmation| confirmation.is_open()) {
                confirmation.state = ConfirmationState::Lost;
            }
        }
    }

    /// Records the outcome of the ticket `id`, once.
    pub fn resolve(&self, id: &str, state: TicketState, reason: Option<String>) {
        let exit = if reason.is_none() { Exit::Done } else { Exit::Failed };
        self.end_where(|ticket| (ticket.id == id).then(|| (state.clone(), reason.clone(), exit)));
    }

    /// Records that what the ticket `id` asked for failed, why for people and for programs, and the exit status of a command that waited for it.
    pub fn fail(&self, id: &str, reason: String, reason_code: &str, exit: Exit) {
        if let Some(ticket) = lock(&self.kept).iter_mut().find(|ticket| ticket.id == id && !ticket.is_final()) {
            ticket.reason_code = Some(reason_code.to_owned());
        }
        self.end_where(|ticket| (ticket.id == id).then(|| (TicketState::Failed, Some(reason.clone()), exit)));
    }

    /// Ends every open ticket for which `outcome` has one: state, reason, and the exit status of a command that waited.
    fn end_where(&self, outcome: impl Fn(&Ticket) -> Option<(TicketState, Option<String>, Exit)>) {
        for ticket in lock(&self.kept).iter_mut().filter(|ticket| !ticket.is_final()) {
            if let Some((state, reason, exit)) = outcome(ticket) {
                (ticket.state, ticket.reason, ticket.exit) = (state, reason, Some(exit.code()));
            }
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// Ends the tickets of the image before that nobody else will: what they asked for by the request `came_true` is so now, but for what
    /// `without` names; whatever else they asked for was lost with that image. Updates and rollbacks end with their history.
    pub fn settle_carried(&self, came_true: &RequestName, without: Option<&str>) {
        self.lose_confirmations();
        self.end_where(|ticket| {
            if ticket.id.starts_with(&self.stem) || ticket.is_update() {
                None
            } else if ticket.request == *came_true {
                match without {
                    None => Some((TicketState::Done, None, Exit::Done)),
                    Some(reason) => Some((TicketState::Failed, Some(reason.to_owned()), Exit::Failed)),
                }
            } else {
                let reason = "the runtime ended before it was done".to_owned();
                Some((TicketState::Failed, Some(reason), Exit::Failed))
            }
        });
    }

    /// Returns the ticket `id`.
    pub fn get(&self, id: &str) -> Option<Ticket> {
        lock(&self.kept).iter().find(|ticket| ticket.id == id).cloned()
    }

    /// Returns all tickets, for the next image.
    pub fn all(&self) -> Vec<Ticket> {
        lock(&self.kept).iter().cloned().collect()
    }

    /// Returns a receiver of the changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_outcome_stands() {
        let tickets = Tickets::new(Vec::new(), "t".to_owned());
        let id = tickets.open(RequestName::Update, "cli").id;
        tickets.resolve(&id, TicketState::Failed, Some("why".to_owned()));
        tickets.resolve(&id, TicketState::Done, None);
        let ticket = tickets.get(&id).expect("kept");
        assert_eq!((ticket.state, ticket.reason.as_deref()), (TicketState::Failed, Some("why")));
        let restart = tickets.open(RequestName::Restart, "cli").id;
        let stop = tickets.open(RequestName::Stop, "cli").id;
        let next = Tickets::new(tickets.all(), "u".to_owned());
        assert!(next.get(&id).is_some_and(|ticket| ticket.is_final()));
        let own = next.open(RequestName::Reload, "cli").id;
        next.settle_carried(&RequestName::Restart, None);
        let state = |id: &str| next.get(id).map(|ticket| ticket.state);
        assert_eq!(state(&restart), Some(TicketState::Done));
        assert_eq!(state(&stop), Some(TicketState::Failed));
        assert_eq!(state(&own), Some(TicketState::Accepted));

        let restart = next.open(RequestName::Restart, "cli").id;
        let crashed = Tickets::new(next.all(), "v".to_owned());
        crashed.settle_carried(&RequestName::Start, None);
        assert!(
            crashed.get(&restart).is_some_and(|ticket| ticket.state == TicketState::Failed),
            "a crash is no restart"
        );
    }

    #[test]
    fn a_confirmation_that_an_image_waited_for_is_lost_with_it() {
        use ConfirmationState::{Confirmed, Lost, Reverted, Reverting, Waiting};
        let tickets = Tickets::new(Vec::new(), "t".to_owned());
        let ids = [Waiting, Confirmed, Reverting, Reverted].map(|state| {
            let id = tickets.open(RequestName::Reload, "cli").id;
            tickets.resolve(&id, TicketState::Done, None);
            tickets
                .confirmation(&id, Confirmation { until: String::new(), generation: 1, state, by: None, reason: None });
            id
        });
        let next = Tickets::new(tickets.all(), "u".to_owned());
        next.settle_carried(&RequestName::Start, None);
        let states = ids.map(|id| next.get(&id).and_then(|ticket| Some(ticket.confirmation?.state)));
        assert_eq!(states, [Lost, Confirmed, Lost, Reverted].map(Some));
    }
}
