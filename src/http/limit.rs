//! How many connections a listener has at once, and who gives way when there are too many.
//!
//! Connections are bounded in all, so that one listener cannot take the descriptors of everything else, and per address once most are
//! in use. A newcomer that would be too much takes the place of the connection that has waited the longest for a request, or for the rest of
//! one; only where all are being answered is it turned away.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use refit_base::{lock, network};
use rustix::process::{Resource, getrlimit};
use tokio_util::sync::CancellationToken;

use super::traffic::Traffic;

/// How many connections a listener has at most, where the process may have enough descriptors.
const CONNECTIONS_MAX: usize = 512;
/// The fewest that a listener is worth, however few descriptors there are.
const CONNECTIONS_MIN: usize = 16;
/// Descriptors for everything else: files, components and their sockets, probes.
const OTHERS: u64 = 256;
/// What shares the rest: the admin listener, the API's socket and the socket of the bus.
const SHARES: u64 = 3;
/// How many connections are parked: each is a descriptor of the handover. One that came when there were as many is told after each answer
/// that it ends.
pub(super) const PARKED_MAX: usize = 256;
/// From so many eighths of them on, an address may only have its share.
const CROWDED_EIGHTHS: usize = 6;
/// One address has so many of a crowded listener: a sixteenth.
const ADDRESS_SHARE: usize = 16;

/// The connections of one listener.
#[derive(Debug)]
pub(super) struct Connections {
    max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    seats: HashMap<u64, Taken>,
}

#[derive(Debug)]
struct Taken {
    address: Option<IpAddr>,
    traffic: Arc<Traffic>,
    give_way: CancellationToken,
}

/// The place of one connection, as long as it lives.
pub(super) struct Seat {
    connections: Arc<Connections>,
    number: u64,
    /// Cancelled when another one is to have the place.
    pub(super) give_way: CancellationToken,
}

impl Connections {
    /// Returns none yet, of as many as this process can have.
    pub(super) fn new() -> Arc<Self> {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let share = usize::try_from(descriptors.saturating_sub(OTHERS) / SHARES).unwrap_or(usize::MAX);
        Arc::new(Self { max: share.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX), open: Mutex::default() })
    }

    /// Returns a place for a connection from `address`; `None` if there is none.
    pub(super) fn admit(self: &Arc<Self>, address: Option<IpAddr>, traffic: &Arc<Traffic>) -> Option<Seat> {
        let address = address.map(network);
        let mut open = lock(&self.open);
        let before = open.seats.len();
        let of_address = || open.seats.values().filter(|taken| taken.address == address).count();
        let is_crowded = before >= self.max * CROWDED_EIGHTHS / 8;
        let goes = if is_crowded && address.is_some() && of_address() >= (self.max / ADDRESS_SHARE).max(1) {
            Some(open.idlest(|taken| taken.address == address)?)
        } else if before >= self.max {
            Some(open.idlest(|_| true)?)
        } else {
            None
        };
        if let Some(gone) = goes.and_then(|number| open.seats.remove(&number)) {
            gone.give_way.cancel();
        }
        open.last += 1;
        let (number, give_way) = (open.last, CancellationToken::new());
        open.seats.insert(number, Taken { address, traffic: Arc::clone(traffic), give_way: give_way.clone() });
        Some(Seat { connections: Arc::clone(self), number, give_way })
    }
}

/// The promise that an exec carries a connection over, as long as it lives.
pub(super) struct Promise(Arc<AtomicUsize>);

impl Promise {
    /// Returns one; `None` if as many were given as are carried.
    pub(super) fn new(given: &Arc<AtomicUsize>) -> Option<Self> {
        let one_more = |given| (given < PARKED_MAX).then_some(given + 1);
        given.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok().map(|_| Self(Arc::clone(given)))
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Open {
    /// Returns the one, of those that are meant, that has waited the longest for a request or the rest of one.
    fn idlest(&self, is_meant: impl Fn(&Taken) -> bool) -> Option<u64> {
        let idle = self.seats.iter().filter(|(_, taken)| is_meant(taken));
        idle.filter_map(|(number, taken)| Some((taken.traffic.idle_since()?, *number))).min().map(|(_, number)| number)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.connections.open).seats.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(max: usize) -> Arc<Connections> {
        Arc::new(Connections { max, open: Mutex::default() })
    }

    #[test]
    fn the_idlest_gives_way_and_who_is_being_answered_stays() {
        let connections = connections(16);
        let traffic: Vec<_> = (0..17).map(|_| Arc::new(Traffic::default())).collect();
        let busy: Vec<_> = traffic.iter().take(15).map(Traffic::busy).collect();
        let seats: Vec<_> =
            traffic.iter().take(16).map(|traffic| connections.admit(None, traffic).expect("a place")).collect();
        let newcomer = connections.admit(None, &traffic[16]).expect("a place");
        assert!(seats[15].give_way.is_cancelled() && !newcomer.give_way.is_cancelled());
        assert!(seats[..15].iter().all(|seat| !seat.give_way.is_cancelled()));
        let _answered = Traffic::busy(&traffic[16]);
        assert!(connections.admit(None, &Arc::new(Traffic::default())).is_none(), "all are being answered");
        drop(busy);
        assert!(connections.admit(None, &Arc::new(Traffic::default())).is_some());
    }

    #[test]
    fn one_address_keeps_out_itself_only() {
        let connections = connections(64);
        let address = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
        let one = |last: u8| connections.admit(address(last), &Arc::new(Traffic::default()));
        let many: Vec<_> = (0..48).map(|_| one(1).expect("a place")).collect();
        let mine = one(2).expect("a place");
        let more: Vec<_> = (0..100).map(|_| one(1).expect("in the place of its own")).collect();
        assert!(!mine.give_way.is_cancelled());
        assert_eq!(many.iter().chain(&more).filter(|seat| !seat.give_way.is_cancelled()).count(), 48);
    }
}
