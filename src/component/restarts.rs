//! When a component that ended by itself is started again, as its restart policy says.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use refit_base::Cause;

use crate::config::Restart;

/// The longest pause before a start is tried again that the machine did not allow: what an admin repairs is noticed soon.
pub(super) const MACHINE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// What follows an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A start at this time.
    At(Instant),
    /// Nothing more: it ended so often within the time that the policy looks at.
    GiveUp(u32),
}

/// When a component ended by itself.
#[derive(Debug, Default)]
pub(super) struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Counts an end at `now`, and returns what follows. What the machine did not allow is tried again for ever: it says nothing of the
    /// component.
    pub(super) fn next(&mut self, policy: &Restart, cause: Cause, now: Instant) -> Next {
        let (count, within) = policy.limit;
        let (first, longest) = policy.backoff;
        if cause == Cause::Machine {
            return Next::At(now + longest.min(MACHINE_PAUSE_MAX));
        }
        self.0.push_back(now);
        while self.0.front().is_some_and(|end| now.duration_since(*end) > within) {
            self.0.pop_front();
        }
        let ends = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        if ends > count {
            return Next::GiveUp(ends);
        }
        Next::At(now + first.saturating_mul(1 << (ends - 1).min(16)).min(longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RestartPolicy;

    #[test]
    fn pauses_grow_until_it_is_given_up() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let policy = Restart { policy: RestartPolicy::Always, backoff: (second, 3 * second), limit: (4, minute) };
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        for pause in [1, 2, 3, 3] {
            assert_eq!(restarts.next(&policy, Cause::Release, now), Next::At(now + pause * second));
        }
        assert_eq!(restarts.next(&policy, Cause::Machine, now), Next::At(now + 3 * second));
        assert_eq!(restarts.next(&policy, Cause::Release, now), Next::GiveUp(5));
        let later = now + minute + second;
        assert_eq!(restarts.next(&policy, Cause::Release, later), Next::At(later + second), "the earlier do not count");
    }
}
