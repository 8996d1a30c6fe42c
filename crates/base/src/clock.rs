//! The wall clock, which only this file reads, and a monotonic time that the process images of one boot can compare.

use std::time::Duration;

use jiff::Timestamp;

/// Returns the time now.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Returns `time` as RFC 3339 in UTC with milliseconds.
pub fn rfc3339(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// Returns the time now as [`rfc3339`].
pub fn stamp() -> String {
    rfc3339(now())
}

/// Returns the time `later` than now as [`rfc3339`].
pub fn stamp_in(later: Duration) -> String {
    rfc3339(now().checked_add(later).unwrap_or(Timestamp::MAX))
}

/// Returns the monotonic clock in nanoseconds: comparable between the process images of one boot.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
