//! What comes over a line that may be dead: a peer that is silent, or as good as that, holds nobody for ever.

use std::error::Error;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};

/// Bytes a second of a line that is not taken for dead: one byte now and then is as good as silence.
const RATE_MIN: u64 = 1 << 10;

/// Returns what `body` brings, until it has brought next to nothing for as long as `silence_max`. The time in which nobody
/// reads does not count.
pub(crate) fn with_minimum_rate<E: Into<Box<dyn Error + Send + Sync>>>(
    body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    silence_max: Duration,
) -> impl Stream<Item = io::Result<Bytes>> {
    let bytes_min = (RATE_MIN as f64 * silence_max.as_secs_f64()) as u64;
    stream::try_unfold((body, Duration::ZERO, 0), move |(mut body, waited, brought)| async move {
        let begun = Instant::now();
        let chunk = match tokio::time::timeout(silence_max, body.try_next()).await {
            Ok(chunk) => chunk.map_err(io::Error::other)?,
            Err(_elapsed) => return Err(stalled(brought, waited + begun.elapsed())),
        };
        let Some(chunk) = chunk else { return Ok(None) };
        let (waited, brought) = (waited + begun.elapsed(), brought + chunk.len() as u64);
        let (waited, brought) = match waited < silence_max {
            true => (waited, brought),
            false if brought < bytes_min => return Err(stalled(brought, waited)),
            false => (Duration::ZERO, 0),
        };
        Ok(Some((chunk, (body, waited, brought))))
    })
}

fn stalled(brought: u64, waited: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{brought} bytes came in {:.0} s", waited.as_secs_f64()))
}
