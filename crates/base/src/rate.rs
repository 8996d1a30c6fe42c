//! How often something may happen: a token bucket.

use std::time::{Duration, Instant};

/// So much a second, and so much at once.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// How many in the long run.
    pub per_second: u32,
    /// How many at once.
    pub burst: u32,
}

/// What is left of a [`Rate`].
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Bucket {
    /// Returns a full one.
    pub fn new(rate: Rate) -> Self {
        Self { rate, left: f64::from(rate.burst), at: Instant::now() }
    }

    /// Takes one.
    ///
    /// # Errors
    /// There is none: how long until there is one again.
    pub fn take(&mut self) -> Result<(), Duration> {
        let now = Instant::now();
        let gained = now.duration_since(self.at).as_secs_f64() * f64::from(self.rate.per_second);
        self.at = now;
        self.left = (self.left + gained).min(f64::from(self.rate.burst));
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.left) / f64::from(self.rate.per_second)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_says_how_long_to_wait() {
        let mut bucket = Bucket::new(Rate { per_second: 1, burst: 3 });
        assert_eq!((0..9).filter(|_| bucket.take().is_ok()).count(), 3);
        assert!(bucket.take().is_err_and(|wait| wait <= Duration::from_secs(1)));
    }
}
