//! Bytes to lines, within [`LINE_BYTES_MAX`], and lines to bytes, within the bounds of a queue.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;
use std::time::Instant;

use refit_base::lock;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::Notify;

use super::limits::{LINE_BYTES_MAX, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, SLOW_MAX};

/// How much is written at once: many small messages cost one call of the system.
const PIECE_BYTES: usize = 16 * 1024;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// More than a line may have, and no end yet.
    Oversized,
    /// The connection has ended.
    End,
}

/// Reads lines.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    begun: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader: BufReader::new(reader), begun: Vec::new() }
    }

    /// Returns the next line. Cancel-safe: what was read of it stays here.
    pub(super) async fn next(&mut self) -> io::Result<Line> {
        loop {
            let there = self.reader.fill_buf().await?;
            if there.is_empty() {
                return Ok(Line::End);
            }
            let end = there.iter().position(|byte| *byte == b'\n');
            let part = &there[..end.unwrap_or(there.len())];
            if self.begun.len() + part.len() > LINE_BYTES_MAX {
                return Ok(Line::Oversized);
            }
            self.begun.extend_from_slice(part);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Line::Whole(std::mem::take(&mut self.begun)));
            }
        }
    }
}

/// Why a message is not sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotSent {
    /// It is longer than a line may be.
    Long(usize),
    /// Too much waits already.
    Full {
        /// So much.
        bytes: usize,
        /// Whether nothing of it was read for a while.
        stuck: bool,
    },
    /// The connection has ended.
    Closed,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Since when the first of them waits.
    since: Option<Instant>,
    closed: bool,
}

/// What waits for a peer to read it.
#[derive(Default)]
pub(super) struct Outgoing {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

impl Outgoing {
    fn add(&self, message: &impl Serialize, bytes_max: usize, messages_max: usize) -> Result<(), NotSent> {
        // There is nothing in a message that JSON cannot say.
        let mut line = serde_json::to_vec(message).unwrap_or_default();
        if line.len() > LINE_BYTES_MAX {
            return Err(NotSent::Long(line.len()));
        }
        line.push(b'\n');
        {
            let mut waiting = lock(&self.waiting);
            if waiting.closed {
                return Err(NotSent::Closed);
            }
            if waiting.lines.len() >= messages_max || waiting.bytes + line.len() > bytes_max {
                let stuck = waiting.since.is_some_and(|since| since.elapsed() > SLOW_MAX);
                return Err(NotSent::Full { bytes: waiting.bytes, stuck });
            }
            waiting.since.get_or_insert_with(Instant::now);
            waiting.bytes += line.len();
            waiting.lines.push_back(line);
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Adds a message that has to arrive: there is always room for one more of the longest lines.
    pub(super) fn push(&self, message: &impl Serialize) -> Result<(), NotSent> {
        self.add(message, QUEUE_BYTES_MAX + LINE_BYTES_MAX, 2 * QUEUE_MESSAGES_MAX)
    }

    /// Adds a call, which fails if there is no room for it.
    pub(super) fn push_call(&self, message: &impl Serialize) -> Result<(), NotSent> {
        self.add(message, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX)
    }

    /// Adds a message that may be lost: only while the queue is less than half full.
    pub(super) fn push_lossy(&self, message: &impl Serialize) -> Result<(), NotSent> {
        self.add(message, QUEUE_BYTES_MAX / 2, QUEUE_MESSAGES_MAX / 2)
    }

    /// Takes nothing more; what waits is still given out.
    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.changed.notify_one();
    }

    /// Returns what waits, one piece at a time, or `None` when it is closed and empty. Cancel-safe: taken only when returned.
    pub(super) async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut waiting = lock(&self.waiting);
                let mut piece = Vec::new();
                while piece.len() < PIECE_BYTES
                    && let Some(line) = waiting.lines.pop_front()
                {
                    waiting.bytes -= line.len();
                    piece.extend_from_slice(&line);
                }
                waiting.since = waiting.since.filter(|_| !waiting.lines.is_empty()).map(|_| Instant::now());
                if !piece.is_empty() {
                    return Some(piece);
                }
                if waiting.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_found_whatever_the_pieces_and_none_is_too_long() {
        let longest = vec![b'x'; LINE_BYTES_MAX];
        let bytes = [b"one\n\ntwo\n".as_slice(), &longest, b"\n", &longest, b"x\n"].concat();
        let mut lines = Lines::new(bytes.as_slice());
        for expected in [b"one".as_slice(), b"", b"two", &longest] {
            assert_eq!(lines.next().await.expect("read"), Line::Whole(expected.to_vec()));
        }
        assert_eq!(lines.next().await.expect("read"), Line::Oversized);
        assert_eq!(Lines::new(b"half".as_slice()).next().await.expect("read"), Line::End);
    }

    #[tokio::test]
    async fn a_queue_is_bounded_and_keeps_room_for_what_has_to_arrive() {
        let queue = Outgoing::default();
        let lossy = (0..).take_while(|_| queue.push_lossy(&"entry").is_ok()).count();
        let calls = (0..).take_while(|_| queue.push_call(&"call").is_ok()).count();
        let more = (0..).take_while(|_| queue.push(&"state").is_ok()).count();
        assert_eq!([lossy, calls, more], [QUEUE_MESSAGES_MAX / 2, QUEUE_MESSAGES_MAX / 2, QUEUE_MESSAGES_MAX]);
        assert!(matches!(queue.push(&"state"), Err(NotSent::Full { stuck: false, .. })));
        assert!(queue.next().await.is_some_and(|bytes| bytes.starts_with(b"\"entry\"\n")));
        assert!(matches!(queue.push(&"x".repeat(LINE_BYTES_MAX)), Err(NotSent::Long(_))));
        queue.push(&"last").expect("room again");
        queue.close();
        assert_eq!(queue.push(&"late"), Err(NotSent::Closed));
        let mut last = Vec::new();
        while let Some(piece) = queue.next().await {
            last = piece;
        }
        assert!(last.ends_with(b"\"last\"\n"));
    }
}
