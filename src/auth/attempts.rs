//! Who may try a password: so many wrong ones a minute from one address, each counted before it is looked at.
//!
//! What others try from elsewhere does not keep an admin out. An address of IPv6 is its network of 64 bits, of which every
//! machine has all.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use refit_base::{lock, network};

/// So many wrong passwords within [`WITHIN`] close the door until the first of them is that old.
pub(super) const WRONG_MAX: usize = 10;
/// See [`WRONG_MAX`].
const WITHIN: Duration = Duration::from_secs(60);
/// How many addresses are told apart: one more is counted with all the others.
const ADDRESSES_MAX: usize = 4096;
/// How many lines the log gets within [`WITHIN`]; what is more is counted.
const LINES_MAX: u32 = 20;
/// The longest name of an account that the log gets, in characters.
const NAME_CHARS_MAX: usize = 32;

/// Where somebody comes from; `None` is the machine itself.
pub type From = Option<IpAddr>;

/// Who tried lately.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    known: Mutex<HashMap<Address, Tries>>,
    /// Of logins that were refused, and of those that were not: one kind does not hide the other.
    said: Mutex<[Said; 2]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Address {
    One(From),
    /// All that there is no more room for.
    Others,
}

#[derive(Debug, Default)]
struct Tries {
    /// When the wrong ones were tried.
    wrong: VecDeque<Instant>,
    /// Those that are being looked at.
    under_way: usize,
}

#[derive(Debug, Default)]
struct Said {
    since: Option<Instant>,
    lines: u32,
    unsaid: u32,
}

/// A password that is being looked at. One that is not forgiven was wrong.
pub(super) struct Attempt<'a> {
    attempts: &'a Attempts,
    address: Address,
    forgiven: bool,
}

impl Tries {
    fn forget_old(&mut self, now: Instant) {
        while self.wrong.front().is_some_and(|at| now.duration_since(*at) > WITHIN) {
            self.wrong.pop_front();
        }
    }
}

impl Attempts {
    /// Returns the right to try one; `None` if there were too many wrong ones.
    pub(super) fn begin(&self, from: From) -> Option<Attempt<'_>> {
        let now = Instant::now();
        let mut known = lock(&self.known);
        let mut address = Address::One(from.map(network));
        if known.len() >= ADDRESSES_MAX && !known.contains_key(&address) {
            known.retain(|_, tries| {
                tries.forget_old(now);
                tries.under_way > 0 || !tries.wrong.is_empty()
            });
            if known.len() >= ADDRESSES_MAX {
                address = Address::Others;
            }
        }
        let tries = known.entry(address).or_default();
        tries.forget_old(now);
        if tries.wrong.len() + tries.under_way >= WRONG_MAX {
            return None;
        }
        tries.under_way += 1;
        Some(Attempt { attempts: self, address, forgiven: false })
    }

    /// Logs what became of a login; what is too much is summed up.
    pub(super) fn log(&self, account: &str, from: From, why: Option<&str>) {
        let account: String = account.chars().take(NAME_CHARS_MAX).collect();
        let from = from.map_or_else(|| "this machine".to_owned(), |address| address.to_string());
        let unsaid = {
            let now = Instant::now();
            let mut both = lock(&self.said);
            let said = &mut both[usize::from(why.is_none())];
            let unsaid = if said.since.is_none_or(|since| now.duration_since(since) > WITHIN) {
                std::mem::replace(said, Said { since: Some(now), ..Said::default() }).unsaid
            } else {
                0
            };
            if said.lines >= LINES_MAX {
                said.unsaid += 1;
                return;
            }
            said.lines += 1;
            unsaid
        };
        if unsaid > 0 {
            tracing::warn!(count = unsaid, "logins of the minute before were not logged one by one");
        }
        match why {
            None => tracing::info!(account, from, "logged in"),
            Some(why) => tracing::warn!(account, from, why, "a login was refused"),
        }
    }
}

impl Attempt<'_> {
    /// Says that it does not count as wrong: it was right, or nobody has looked at it.
    pub(super) fn forgive(mut self) {
        self.forgiven = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut known = lock(&self.attempts.known);
        let Some(tries) = known.get_mut(&self.address) else { return };
        tries.under_way -= 1;
        if !self.forgiven {
            tries.wrong.push_back(Instant::now());
        } else if tries.under_way == 0 && tries.wrong.is_empty() {
            known.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> From {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn what_is_under_way_counts_and_others_are_counted_apart() {
        let attempts = Attempts::default();
        let at_once: Vec<_> = (0..600).filter_map(|_| attempts.begin(address("192.0.2.1"))).collect();
        assert_eq!(at_once.len(), WRONG_MAX);
        assert!(attempts.begin(address("::ffff:192.0.2.1")).is_none(), "the same address");
        drop(at_once);
        assert!(attempts.begin(address("192.0.2.1")).is_none(), "all were wrong");
        assert!(attempts.begin(address("192.0.2.2")).is_some() && attempts.begin(None).is_some());

        for _ in 0..WRONG_MAX {
            attempts.begin(address("2001:db8::1")).expect("may try").forgive();
        }
        for host in 0..WRONG_MAX {
            drop(attempts.begin(address(&format!("2001:db8::{host}"))).expect("may try"));
        }
        assert!(attempts.begin(address("2001:db8::ffff")).is_none(), "one network is one machine's");
        assert!(attempts.begin(address("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn the_table_of_addresses_does_not_grow_for_ever() {
        let attempts = Attempts::default();
        for host in 0..u32::try_from(ADDRESSES_MAX).expect("fits") + 100 {
            drop(attempts.begin(Some(IpAddr::V4(host.into()))));
        }
        assert!(lock(&attempts.known).len() <= ADDRESSES_MAX + 1);
        assert!(attempts.begin(Some(IpAddr::V4(u32::MAX.into()))).is_none(), "counted with the others");
    }
}
