//! What the peers of one component share: its time in a transition, and its place in the order.
//!
//! A component has a time for a stop, a start and each phase of a reload, however many peers it has: it passes while one of them or more
//! have a call to answer. All peers of the operator share one time, too. Among each other they are called by their own priorities, but
//! before and after everybody else they stand where their component does.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use refit_base::lock;
use refit_bus::{Call, Phase};

/// The component, or nothing for the operator.
type Owner = Option<String>;

/// What is used of a time.
#[derive(Default)]
struct Used {
    /// Of which publication, and phase.
    of: Option<(u64, Option<Phase>)>,
    time: Duration,
    /// How many calls are open, and since when there is one.
    open: usize,
    since: Option<Instant>,
}

/// The times of all components.
#[derive(Default)]
pub(super) struct Shares(Mutex<HashMap<Owner, Used>>);

impl Shares {
    /// Begins a call of a peer of `owner`, all of whose peers may take `all` together. Returns how long this one may take at most, and
    /// what ends it when it is dropped.
    pub(super) fn begin(&self, owner: Option<&str>, call: &Call, all: Duration) -> (Duration, Share<'_>) {
        let now = Instant::now();
        let of = Some((call.publication, call.phase));
        let mut shares = lock(&self.0);
        let used = shares.entry(owner.map(str::to_owned)).or_default();
        if used.of != of {
            *used = Used { of, ..Used::default() };
        }
        used.open += 1;
        let since = *used.since.get_or_insert(now);
        let left = all.saturating_sub(used.time).saturating_sub(now.saturating_duration_since(since));
        drop(shares);
        (left, Share { shares: self, owner: owner.map(str::to_owned), of })
    }
}

/// A call that is open.
pub(super) struct Share<'a> {
    shares: &'a Shares,
    owner: Owner,
    of: Option<(u64, Option<Phase>)>,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut shares = lock(&self.shares.0);
        let Some(used) = shares.get_mut(&self.owner).filter(|used| used.of == self.of) else { return };
        used.open = used.open.saturating_sub(1);
        if used.open == 0
            && let Some(since) = used.since.take()
        {
            used.time += since.elapsed();
        }
    }
}

/// Returns after which of its like each of `peers` is called: by name and priority to the names of those of the next lower priority.
pub(super) fn chain(peers: &[(String, i32)]) -> Vec<Vec<String>> {
    peers
        .iter()
        .map(|(_, own)| {
            let lower = peers.iter().map(|(_, priority)| *priority).filter(|priority| priority < own).max();
            peers.iter().filter(|(_, priority)| Some(*priority) == lower).map(|(name, _)| name.clone()).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_after_those_of_the_next_lower_priority() {
        let peers = |all: &[(&str, i32)]| all.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect::<Vec<_>>();
        assert_eq!(chain(&peers(&[("a", 5), ("b", 5)])), [Vec::<String>::new(), Vec::new()]);
        assert_eq!(
            chain(&peers(&[("c", 9), ("a", -1), ("b", -1), ("d", 1000)])),
            [vec!["a", "b"], vec![], vec![], vec!["c"]]
        );
    }
}
