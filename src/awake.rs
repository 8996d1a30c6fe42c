//! Time that counts only while this process runs.
//!
//! A machine may be paused: a virtual one that is suspended or moved, one that has no processor to give. Nobody can start, answer, report or
//! end meanwhile, so the time is nobody's fault. A wait is made of parts, and a pause costs it no more than one of them.

use std::time::{Duration, Instant};

/// How many parts a wait has: a pause is shorter than that by most of it.
const PARTS: u32 = 10;
/// No part is shorter: being woken so late is not unusual on a busy machine.
const PART_MIN: Duration = Duration::from_millis(50);

/// Returns by how much later than `at` it is now, if that is a pause of this process and not only a busy machine: `usual` is how
/// long it sleeps in between.
pub(crate) fn paused_since(at: Instant, usual: Duration) -> Duration {
    let late = Instant::now().saturating_duration_since(at);
    if late > usual.max(PART_MIN) { late } else { Duration::ZERO }
}

/// Sleeps until `at`, or for a part of `limit` if that is over sooner. Returns how long this process was paused meanwhile.
/// Cancel-safe: it only waits.
pub(crate) async fn sleep_until(at: Instant, limit: Duration) -> Duration {
    let part = (limit / PARTS).max(PART_MIN);
    let at = at.min(Instant::now() + part);
    tokio::time::sleep_until(at.into()).await;
    paused_since(at, part)
}

/// Waits for `work` as long as `limit`, without pauses. Returns `None` if it is over sooner.
pub(crate) async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let over = async {
        let mut until = Instant::now() + limit;
        while Instant::now() < until {
            until += sleep_until(until, limit).await;
        }
    };
    // What is ready counts, also if it is late.
    tokio::select! {
        biased;
        done = work => Some(done),
        () = over => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_after_its_time_and_not_before() {
        let (begun, limit) = (Instant::now(), Duration::from_millis(300));
        assert_eq!(timeout(limit, std::future::pending::<()>()).await, None);
        assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
        assert_eq!(timeout(limit, async { 7 }).await, Some(7));
        assert_eq!(timeout(Duration::ZERO, async { 7 }).await, Some(7));
    }

    #[test]
    fn being_woken_a_little_late_is_not_a_pause() {
        let now = Instant::now();
        let ago = |seconds| now - Duration::from_secs(seconds);
        assert_eq!(paused_since(ago(1), Duration::from_secs(30)), Duration::ZERO);
        assert!(paused_since(ago(40), Duration::from_secs(30)) >= Duration::from_secs(40));
        assert_eq!(paused_since(now + Duration::from_secs(1), Duration::ZERO), Duration::ZERO);
    }
}
