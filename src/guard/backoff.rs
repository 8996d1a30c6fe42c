//! How long the guard waits before it starts a runtime again.

use std::time::Duration;

/// The first pause; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause: an appliance is back so soon after what kept it from starting is over.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The pause that follows the crash of a runtime that had become ready is at most the first one, doubled so often: what kept it from
/// starting is over.
const READY_COUNT_MAX: u32 = 3;
/// A runtime that ran so long had no bad start: the pauses begin anew.
const FORGET: Duration = Duration::from_secs(60);

/// The starts in a row that led to nothing.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    count: u32,
}

impl Backoff {
    /// Returns the pause after a runtime that ran for `lived`. The first crash costs nobody a wait: most are the only one.
    pub(super) fn after_end(&mut self, lived: Duration) -> Duration {
        if lived >= FORGET {
            self.count = 0;
        }
        if self.count == 0 {
            self.count = 1;
            return Duration::ZERO;
        }
        self.after_failure()
    }

    /// Takes it that a runtime became ready.
    pub(super) fn ready(&mut self) {
        self.count = self.count.min(READY_COUNT_MAX);
    }

    /// Returns the pause after a start that the system refused.
    pub(super) fn after_failure(&mut self) -> Duration {
        let pause = PAUSE_MIN.saturating_mul(1 << self.count.min(16)).min(PAUSE_MAX);
        self.count = self.count.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_good_run() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let pauses: Vec<u128> = (0..10).map(|_| backoff.after_end(short).as_millis()).collect();
        assert_eq!(pauses, [0, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        backoff.ready();
        assert_eq!(backoff.after_end(short).as_millis(), 800);
        assert_eq!(backoff.after_end(FORGET), Duration::ZERO);
        assert_eq!(backoff.after_end(short).as_millis(), 200);
        assert_eq!(Backoff::default().after_failure(), PAUSE_MIN);
    }
}
