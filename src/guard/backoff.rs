//! How long the guard waits before it starts a runtime again.
//!
//! Starts that led to nothing and runtimes that died after they had become ready are counted apart: what kept a runtime from starting is
//! over once one is ready, and says nothing of its death.

use std::time::Duration;

/// The first pause; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause: an appliance is back so soon after what kept it from starting is over.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A runtime that ran so long has stayed up: the pauses begin anew.
pub(super) const FORGET: Duration = Duration::from_secs(60);

/// What led to nothing, in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Starts.
    failures: u32,
    /// Runtimes that had become ready.
    deaths: u32,
}

impl Backoff {
    /// Returns the pause after a runtime that ran for `lived`, and `was_ready` or not. The first one costs nobody a wait: most are the only
    /// one.
    pub(super) fn after_end(&mut self, lived: Duration, was_ready: bool) -> Duration {
        if lived >= FORGET {
            *self = Self::default();
        }
        let count = if was_ready { &mut self.deaths } else { &mut self.failures };
        if *count == 0 {
            *count = 1;
            return Duration::ZERO;
        }
        pause(count)
    }

    /// Takes it that a runtime became ready.
    pub(super) fn ready(&mut self) {
        self.failures = 0;
    }

    /// Returns the pause after a start that the system refused.
    pub(super) fn after_failure(&mut self) -> Duration {
        pause(&mut self.failures)
    }
}

/// Returns the pause after so many, and counts one more.
fn pause(count: &mut u32) -> Duration {
    let pause = PAUSE_MIN.saturating_mul(1 << (*count).min(16)).min(PAUSE_MAX);
    *count = count.saturating_add(1);
    pause
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_good_run() {
        let short = Duration::from_secs(1);
        let growing = [0, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000];
        for was_ready in [false, true] {
            let mut backoff = Backoff::default();
            let pauses: Vec<u128> = (0..10).map(|_| backoff.after_end(short, was_ready).as_millis()).collect();
            assert_eq!(pauses, growing);
            assert_eq!(backoff.after_end(FORGET, was_ready), Duration::ZERO);
            assert_eq!(backoff.after_end(short, was_ready).as_millis(), 200);
        }
        assert_eq!(Backoff::default().after_failure(), PAUSE_MIN);
    }

    #[test]
    fn one_that_becomes_ready_ends_what_kept_it_from_starting_and_not_its_deaths() {
        let (mut backoff, short) = (Backoff::default(), Duration::from_secs(1));
        for expected in [0, 200, 400, 800] {
            assert_eq!(backoff.after_failure().max(Duration::from_millis(100)), PAUSE_MIN, "it became ready before");
            backoff.ready();
            assert_eq!(backoff.after_end(short, true).as_millis(), expected);
        }
        assert_eq!(backoff.after_end(short, false), Duration::ZERO);
    }
}
