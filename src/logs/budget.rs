//! How much of what a component prints is written: a bucket that fills with time.
//!
//! A component that prints without pause would wear out a flash disk that holds four megabytes of it. So each may write a lot at
//! once and little for ever; what is more is dropped and counted. Once it drops, it drops until a good part of the bucket is full
//! again: a few whole stretches of a flood say more than every hundredth line of it.

use std::time::Instant;

/// So much may be written at once: thousands of lines, more than any start or traceback prints.
const BURST_BYTES: u64 = 2 << 20;
/// So much may be written per second for ever: hundreds of lines, and less than 6 GB a day.
const BYTES_PER_SECOND: u64 = 64 << 10;
/// So full must the bucket be again before the next line is written.
const REOPEN_BYTES: u64 = BURST_BYTES / 4;
/// What a line costs besides its text.
const LINE_BYTES: u64 = 128;

/// The bucket of one component.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: u64,
    filled: Instant,
    closed: bool,
}

impl Budget {
    /// Returns a full one.
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: BURST_BYTES, filled: now, closed: false }
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        let gained = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).saturating_mul(BYTES_PER_SECOND) / 1000;
        // What is less than a byte stays in the clock.
        if gained > 0 {
            self.bytes = self.bytes.saturating_add(gained).min(BURST_BYTES);
            self.filled = now;
        }
        if self.bytes >= REOPEN_BYTES {
            self.closed = false;
        }
    }

    /// Returns whether a line of so many bytes may be written, and takes what it costs.
    pub(super) fn allows(&mut self, bytes: usize, now: Instant) -> bool {
        if self.is_closed(now) {
            return false;
        }
        match self.bytes.checked_sub(bytes as u64 + LINE_BYTES) {
            Some(left) => {
                self.bytes = left;
                true
            }
            None => {
                self.closed = true;
                false
            }
        }
    }

    /// Returns whether nothing is written now.
    pub(super) fn is_closed(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn much_at_once_little_for_ever() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        let mut written = 0;
        // A line of a kilobyte every millisecond, for ten minutes.
        let mut stretches = 0;
        let mut last = false;
        for ms in 0..600_000 {
            let allowed = budget.allows(1024 - 128, begun + Duration::from_millis(ms));
            written += u64::from(allowed) * 1024;
            stretches += u32::from(allowed && !last);
            last = allowed;
        }
        assert!(written <= BURST_BYTES + 600 * BYTES_PER_SECOND, "{written}");
        assert!(written >= 600 * BYTES_PER_SECOND * 9 / 10, "{written}");
        assert!((10..200).contains(&stretches), "a few stretches, not single lines: {stretches}");
    }

    #[test]
    fn who_prints_little_is_never_held_back() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        // 300 lines of 80 bytes a second, for an hour.
        assert!((0..3600 * 300).all(|n| budget.allows(80, begun + Duration::from_millis(n * 10 / 3))));
    }

    #[test]
    fn it_reopens_by_itself() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        while budget.allows(4096, begun) {}
        assert!(budget.is_closed(begun));
        assert!(!budget.is_closed(begun + Duration::from_secs(REOPEN_BYTES / BYTES_PER_SECOND + 1)));
    }
}
