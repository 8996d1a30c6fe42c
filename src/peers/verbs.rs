//! What a peer may ask, and what is done for it.

use std::sync::Arc;
use std::time::Duration;

use refit_base::lock;
use refit_bus::{self as bus, Level, PRIORITY_DEFAULT, RequestKind, WaitError};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::limits::{
    CALL_LIMIT_MAX, LOG_CHARS_MAX, LOGS, PRIORITY_MAX, REQUESTS, SUBSCRIPTIONS_MAX, WAIT_MAX, WORK_MAX,
};
use super::line::NotSent;
use super::messages::{Notice, Said, TakenTicket, answer, notification};
use super::peer::Peer;
use super::protocol::{LogLine, PeerError, Publish, Subscribe, Verb, Wait, shortened};
use super::roster::Peers;
use crate::access::permission::{forbids_listening, is_reserved};
use crate::access::principal::Principal;
use crate::requests::{self, Accepted};
use crate::wire::{Place, RequestBody, Ticket, TicketAnswer};

/// What became of a message.
pub(super) enum Done {
    /// This is the answer.
    Now(Box<Said>),
    /// The answer comes by itself, or has been sent.
    Later,
    /// The connection ends.
    Bye,
}

impl Done {
    fn now(said: Said) -> Self {
        Self::Now(Box::new(said))
    }
}

/// A subscription that was found to be good.
pub(super) struct Listening {
    pub(super) channel: String,
    pub(super) place: Place,
}

/// Answers a request; a notification gets no answer.
pub(super) fn reply(peer: &Peer, id: Option<&Value>, result: Result<&Said, &PeerError>) {
    let Some(id) = id else { return };
    if let Err(NotSent::Long(_)) = peer.send(&answer(id, result)) {
        drop(peer.send(&answer(id, Err(&PeerError::LongAnswer)))); // one that does not read is cut off
    }
}

/// Does what `verb` says.
pub(super) fn act(peers: &Arc<Peers>, peer: &Arc<Peer>, id: Option<&Value>, verb: Verb) -> Result<Done, PeerError> {
    match verb {
        Verb::Hello(_) => Err(PeerError::HelloTwice),
        Verb::Bye => Ok(Done::Bye),
        Verb::State => Ok(Done::now(Said::Site {
            state: peers.parts.bus.state().into(),
            generation: peers.parts.registry.generation(),
        })),
        Verb::Subscribe(wanted) => {
            let there = peer.view().channels;
            if there.len() >= SUBSCRIPTIONS_MAX && !there.contains_key(&wanted.channel) {
                return Err(PeerError::TooMany { what: "subscriptions", max: SUBSCRIPTIONS_MAX });
            }
            peers.listen(peer, check(peers, &peer.principal, &wanted)?);
            Ok(Done::now(Said::Done))
        }
        Verb::Unsubscribe(unwanted) => Ok(Done::now(Said::Whether(peers.unlisten(peer, &unwanted.channel)))),
        Verb::Request(body) => request(peers, peer, id, body),
        Verb::Publish(publish) => publish_for(peers, peer, id, publish).map(|()| Done::Later),
        Verb::Wait(wait) => wait_for(peers, peer, id, wait).map(|()| Done::Later),
        Verb::Ticket(ticket) => {
            let found = peers.parts.registry.tickets.get(&ticket.id);
            let found = found.ok_or_else(|| PeerError::UnknownTicket { id: shortened(&ticket.id) })?;
            check_ticket(peer, &found)?;
            Ok(Done::now(Said::Ticket(TicketAnswer { ticket: found })))
        }
        Verb::Log(line) => log(peers, peer, &line).map(|()| Done::now(Said::Done)),
    }
}

/// Finds out whether a peer may see a ticket.
fn check_ticket(peer: &Peer, ticket: &Ticket) -> Result<(), PeerError> {
    if peer.principal.sees_ticket_of(&ticket.origin) {
        return Ok(());
    }
    let reason = "a component without `read` sees the tickets of its own requests only".to_owned();
    Err(PeerError::NotPermitted { reason })
}

/// Returns all subscriptions of a hello, if every one of them is good.
pub(super) fn check_all(
    peers: &Peers,
    principal: &Principal,
    wanted: &[Subscribe],
) -> Result<Vec<Listening>, PeerError> {
    if wanted.len() > SUBSCRIPTIONS_MAX {
        return Err(PeerError::TooMany { what: "subscriptions", max: SUBSCRIPTIONS_MAX });
    }
    wanted.iter().map(|subscribe| check(peers, principal, subscribe)).collect()
}

fn check(peers: &Peers, principal: &Principal, wanted: &Subscribe) -> Result<Listening, PeerError> {
    let channel = &wanted.channel;
    if channel == bus::ENTER {
        return Err(PeerError::TooLate { channel: channel.clone() });
    }
    if !peers.parts.bus.knows(channel) {
        return Err(PeerError::UnknownChannel { channel: shortened(channel) });
    }
    if let Some(reason) = forbids_listening(principal, channel, &peers.parts.config) {
        return Err(PeerError::NotPermitted { reason });
    }
    let priority = wanted.priority.unwrap_or(PRIORITY_DEFAULT);
    if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority) {
        return Err(PeerError::Priority { priority });
    }
    let longest = u64::try_from(CALL_LIMIT_MAX.as_millis()).unwrap_or(u64::MAX);
    let limit_ms = wanted.limit_ms.map(|limit| limit.clamp(1, longest));
    Ok(Listening { channel: channel.clone(), place: Place { priority, limit_ms, reverts: wanted.reverts } })
}

/// Makes a request for a peer. Its answer comes before what is told of the outcome.
fn request(peers: &Arc<Peers>, peer: &Arc<Peer>, id: Option<&Value>, body: RequestBody) -> Result<Done, PeerError> {
    let budget = || lock(&peer.budget);
    if budget().requests.take().is_err() {
        return Err(PeerError::TooFast { what: "requests", per_second: REQUESTS.per_second });
    }
    let (bus, registry) = (&peers.parts.bus, &peers.parts.registry);
    let origin = peer.principal.origin();
    if let Some(reason) = RequestKind::from_name(&body.request).and_then(|ask| peer.principal.forbids(ask)) {
        let ticket = requests::refuse(registry, bus, &body.request, &origin, &reason);
        return Ok(Done::now(Said::Ticket(TicketAnswer { ticket })));
    }
    let permit = work(peer)?;
    let accepted = peers.parts.requests.submit(body, &origin)?;
    let (is_final, name) = (accepted.ticket.is_final(), accepted.ticket.id.clone());
    let Accepted { ticket, number, merged_with } = accepted;
    reply(peer, id, Ok(&Said::Taken { ticket: TakenTicket { ticket, number, merged_with } }));
    if !is_final {
        let (told, own) = (Arc::clone(peer), Arc::clone(peers));
        peers.spawn(async move {
            tell_outcome(&own, &told, &name).await;
            drop(permit);
        });
    }
    Ok(Done::Later)
}

/// Tells a peer the outcome of its request; and then how far a reload is that has to be confirmed, to its end.
async fn tell_outcome(peers: &Peers, peer: &Peer, id: &str) {
    let mut found = outcome(peers, peer, id).await;
    while let Some(ticket) = found {
        let confirmation = ticket.confirmation.clone();
        drop(peer.send(&notification(Notice::Ticket(Box::new(TicketAnswer { ticket }))))); // it may be gone
        if !confirmation.as_ref().is_some_and(|confirmation| confirmation.is_open()) {
            return;
        }
        found = changed(peers, peer, id, |ticket| ticket.confirmation != confirmation).await;
    }
}

/// Takes the right to have one more thing under way.
fn work(peer: &Peer) -> Result<OwnedSemaphorePermit, PeerError> {
    Arc::clone(&peer.work)
        .try_acquire_owned()
        .map_err(|_| PeerError::TooMany { what: "publications, waits and requests under way", max: WORK_MAX })
}

/// Waits until a ticket has an outcome; `None` if the peer is gone before, or the ticket.
async fn outcome(peers: &Peers, peer: &Peer, id: &str) -> Option<Ticket> {
    changed(peers, peer, id, Ticket::is_final).await
}

/// Waits until a ticket `is_so`; `None` if the peer is gone before, or the ticket.
async fn changed(peers: &Peers, peer: &Peer, id: &str, is_so: impl Fn(&Ticket) -> bool) -> Option<Ticket> {
    let tickets = &peers.parts.registry.tickets;
    let mut changes = tickets.watch();
    loop {
        let ticket = tickets.get(id)?;
        if is_so(&ticket) {
            return Some(ticket);
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            changed = changes.changed() => changed.ok()?,
            () = peer.ending.cancelled() => return None,
        }
    }
}

fn publish_for(peers: &Arc<Peers>, peer: &Arc<Peer>, id: Option<&Value>, publish: Publish) -> Result<(), PeerError> {
    let Publish { channel, argument } = publish;
    if is_reserved(&channel) {
        return Err(PeerError::BuiltIn { channel: shortened(&channel) });
    }
    if !peers.parts.bus.knows(&channel) {
        return Err(PeerError::UnknownChannel { channel: shortened(&channel) });
    }
    let own = work(peer)?;
    let all = peers.permit()?;
    let (depth, _) = peer.inside();
    let (bus, peer, id) = (peers.parts.bus.clone(), Arc::clone(peer), id.cloned());
    // Not ended with the peer: the listeners are called to the last, whoever published.
    peers.spawn(async move {
        let report = bus.publish_at(&channel, argument, depth).await;
        match report.refused {
            Some(reason) => reply(&peer, id.as_ref(), Err(&PeerError::NotPublished { reason })),
            None => reply(&peer, id.as_ref(), Ok(&Said::Report((&report).into()))),
        }
        drop((own, all));
    });
    Ok(())
}

fn wait_for(peers: &Arc<Peers>, peer: &Arc<Peer>, id: Option<&Value>, wait: Wait) -> Result<(), PeerError> {
    let Wait { states, ticket, limit_ms, outside } = wait;
    if states.is_empty() && ticket.is_none() {
        return Err(PeerError::WaitForNothing);
    }
    let tickets = &peers.parts.registry.tickets;
    let there = ticket
        .as_deref()
        .map(|ticket| tickets.get(ticket).ok_or_else(|| PeerError::UnknownTicket { id: shortened(ticket) }));
    let is_so = match there {
        Some(ticket) => {
            let ticket = ticket?;
            check_ticket(peer, &ticket)?;
            ticket.is_final()
        }
        None => states.contains(&peers.parts.bus.state()),
    };
    if !is_so && !outside && peer.inside().1 {
        return Err(PeerError::Inside);
    }
    let limit = limit_ms.map_or(WAIT_MAX, Duration::from_millis).min(WAIT_MAX);
    let permit = work(peer)?;
    let (own, peer, id) = (Arc::clone(peers), Arc::clone(peer), id.cloned());
    peers.spawn(async move {
        let bus = &own.parts.bus;
        let result = match &ticket {
            Some(ticket) => match tokio::time::timeout(limit, outcome(&own, &peer, ticket)).await {
                Ok(Some(ticket)) => Ok(Said::Ticket(TicketAnswer { ticket })),
                Ok(None) => Err(PeerError::UnknownTicket { id: shortened(ticket) }),
                Err(_) => Err(PeerError::Timeout { state: bus.state() }),
            },
            // Cancel-safe: nobody is left to be told.
            None => tokio::select! {
                waited = bus.wait_within(&states, limit) => match waited {
                    Ok(state) => Ok(Said::State { state: state.into() }),
                    Err(WaitError::Timeout(state)) => Err(PeerError::Timeout { state }),
                    Err(WaitError::Ended | WaitError::Ending) => Err(PeerError::Ended),
                    Err(WaitError::Inside) => Err(PeerError::Inside),
                },
                () = peer.ending.cancelled() => Err(PeerError::Ended),
            },
        };
        reply(&peer, id.as_ref(), result.as_ref());
        drop(permit);
    });
    Ok(())
}

fn log(peers: &Peers, peer: &Peer, line: &LogLine) -> Result<(), PeerError> {
    let dropped = {
        let mut budget = lock(&peer.budget);
        if budget.logs.take().is_err() {
            budget.logs_dropped += 1;
            return Err(PeerError::TooFast { what: "log entries", per_second: LOGS.per_second });
        }
        std::mem::take(&mut budget.logs_dropped)
    };
    let bus = &peers.parts.bus;
    if dropped > 0 {
        bus.log(Level::Warning, format!("{}: {dropped} log entries were dropped: too many", peer.name));
    }
    let text: String = line.text.chars().take(LOG_CHARS_MAX).collect();
    bus.log(line.level, format!("{}: {}", peer.name, text.replace(['\n', '\r'], " ")));
    Ok(())
}
