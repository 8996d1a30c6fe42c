//! Bytes to lines, within [`LINE_BYTES_MAX`], and lines to bytes, within the bounds of a queue.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::Notify;

use super::limits::{LINE_BYTES_MAX, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX};

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
    /// Too much waits already: so many bytes.
    Full(usize),
    /// The connection has ended.
    Closed,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    closed: bool,
}

/// What waits for a peer to read it.
#[derive(Default)]
pub(super) struct Outgoing {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

impl Outgoing {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, message: &Value, share: usize) -> Result<(), NotSent> {
        let mut line = message.to_string().into_bytes();
        if line.len() > LINE_BYTES_MAX {
            return Err(NotSent::Long(line.len()));
        }
        line.push(b'\n');
        {
            let mut waiting = self.lock();
            if waiting.closed {
                return Err(NotSent::Closed);
            }
            let full = waiting.lines.len() >= QUEUE_MESSAGES_MAX / share
                || waiting.bytes + line.len() > QUEUE_BYTES_MAX / share + 1;
            if full {
                return Err(NotSent::Full(waiting.bytes));
            }
            waiting.bytes += line.len();
            waiting.lines.push_back(line);
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Adds a message that has to arrive.
    pub(super) fn push(&self, message: &Value) -> Result<(), NotSent> {
        self.add(message, 1)
    }

    /// Adds a message that may be lost: only while the queue is less than half full.
    pub(super) fn push_lossy(&self, message: &Value) -> Result<(), NotSent> {
        self.add(message, 2)
    }

    /// Takes nothing more; what waits is still given out.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Returns everything that waits, or `None` when it is closed and empty. Cancel-safe: taken only when it is returned.
    pub(super) async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut waiting = self.lock();
                if !waiting.lines.is_empty() {
                    waiting.bytes = 0;
                    return Some(waiting.lines.drain(..).flatten().collect());
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
    use serde_json::json;

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
        let lossy = (0..).take_while(|_| queue.push_lossy(&json!("entry")).is_ok()).count();
        assert_eq!(lossy, QUEUE_MESSAGES_MAX / 2);
        let more = (0..).take_while(|_| queue.push(&json!("call")).is_ok()).count();
        assert_eq!(more, QUEUE_MESSAGES_MAX - lossy);
        assert!(matches!(queue.push(&json!("call")), Err(NotSent::Full(_))));
        assert!(queue.next().await.is_some_and(|bytes| bytes.starts_with(b"\"entry\"\n")));
        assert!(matches!(queue.push(&json!("x".repeat(LINE_BYTES_MAX))), Err(NotSent::Long(_))));
        queue.push(&json!("last")).expect("room again");
        queue.close();
        assert_eq!(queue.push(&json!("late")), Err(NotSent::Closed));
        assert!(queue.next().await.is_some_and(|bytes| bytes == b"\"last\"\n") && queue.next().await.is_none());
    }
}
