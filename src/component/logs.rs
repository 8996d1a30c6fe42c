//! What components print: the last lines of each, by stream, with the time they arrived.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock;

/// How many lines of each component are kept.
pub(super) const LINES_MAX: usize = 1000;
/// The longest line; what is longer is cut into several.
const LINE_BYTES_MAX: usize = 4096;

/// Where a line was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it arrived, RFC 3339.
    pub at: String,
    /// Where it was printed.
    pub stream: Stream,
    /// The process that printed it: component, dash, generation.
    pub instance: String,
    /// The text, without its end.
    pub line: String,
}

/// The last lines of every component.
#[derive(Debug)]
pub struct Logs {
    kept: Mutex<BTreeMap<String, VecDeque<LogLine>>>,
    changes: watch::Sender<u64>,
}

impl Logs {
    /// Returns the logs that were carried over.
    pub fn new(kept: BTreeMap<String, Vec<LogLine>>) -> Self {
        let kept = kept.into_iter().map(|(name, lines)| (name, lines.into())).collect();
        Self { kept: Mutex::new(kept), changes: watch::channel(0).0 }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, VecDeque<LogLine>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line of `component`.
    pub fn push(&self, component: &str, instance: &str, stream: Stream, line: &[u8]) {
        let text = String::from_utf8_lossy(line).into_owned();
        tracing::event!(target: "refit::output", tracing::Level::INFO, component.name = component, "{text}");
        let line = LogLine { at: clock::stamp(), stream, instance: instance.to_owned(), line: text };
        {
            let mut kept = self.lock();
            let lines = kept.entry(component.to_owned()).or_default();
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(line);
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// Returns the last `count` lines of `component`.
    pub fn last(&self, component: &str, count: usize) -> Vec<LogLine> {
        self.lock()
            .get(component)
            .map_or_else(Vec::new, |lines| lines.range(lines.len().saturating_sub(count)..).cloned().collect())
    }

    /// Returns the last `count` lines that one process printed.
    pub fn last_of(&self, component: &str, instance: &str, count: usize) -> Vec<String> {
        let mut lines: Vec<String> = self
            .lock()
            .get(component)
            .into_iter()
            .flatten()
            .rev()
            .filter(|line| line.instance == instance)
            .take(count)
            .map(|line| line.line.clone())
            .collect();
        lines.reverse();
        lines
    }

    /// Returns the last `count` lines of every component, for the next image.
    pub fn carried(&self, count: usize) -> BTreeMap<String, Vec<LogLine>> {
        self.lock()
            .iter()
            .map(|(name, lines)| (name.clone(), lines.range(lines.len().saturating_sub(count)..).cloned().collect()))
            .collect()
    }

    /// Returns a receiver of the changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Cuts what arrives into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Calls `line` for every line that `bytes` completes; one that is too long is cut.
    pub(super) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            for part in text.chunks(LINE_BYTES_MAX) {
                if self.partial.len() + part.len() > LINE_BYTES_MAX {
                    line(&self.partial);
                    self.partial.clear();
                }
                self.partial.extend_from_slice(part);
            }
            if whole {
                line(&self.partial);
                self.partial.clear();
            }
        }
    }

    /// Returns what is left of a last line without an end.
    pub(super) fn finish(&mut self) -> Option<Vec<u8>> {
        (!self.partial.is_empty()).then(|| std::mem::take(&mut self.partial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_their_ends_and_at_the_limit() {
        let mut lines = Lines::default();
        let mut seen: Vec<usize> = Vec::new();
        for bytes in [&b"a\nbc"[..], b"d\n\n", &[b'x'; LINE_BYTES_MAX + 10]] {
            lines.feed(bytes, |line| seen.push(line.len()));
        }
        assert_eq!(seen, [1, 3, 0, LINE_BYTES_MAX]);
        assert_eq!(lines.finish().map(|rest| rest.len()), Some(10));
    }

    #[test]
    fn the_lines_of_one_process_are_told_apart() {
        let logs = Logs::new(BTreeMap::new());
        for (instance, line) in [("web-1", "a"), ("web-2", "b"), ("web-2", "c")] {
            logs.push("web", instance, Stream::Stderr, line.as_bytes());
        }
        assert_eq!(logs.last_of("web", "web-2", 5), ["b", "c"]);
        assert_eq!(logs.last("web", 2).len(), 2);
    }
}
