//! The runtime's output: copied to the guard's own standard error, the last lines kept.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::say::{self, WRITE_BYTES_MAX};
use crate::handover::exec::EXECUTING;

/// How many of the runtime's last lines are kept for the history.
const TAIL_LINES_MAX: usize = 40;
/// The longest line that is kept whole.
const LINE_BYTES_MAX: usize = 2048;
/// How often a read is followed by another: somebody who never stops printing must not keep the guard.
const READS_MAX: u32 = 64;

/// The runtime's output.
#[derive(Debug)]
pub(super) struct Output {
    reader: File,
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl Output {
    /// Returns the reading end for a pipe.
    pub(super) fn new(reader: OwnedFd) -> Self {
        Self { reader: File::from(reader), lines: VecDeque::new(), partial: Vec::new() }
    }

    /// Returns the descriptor to poll.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Copies what is there. What standard error cannot take at once is dropped: the guard never waits for a reader.
    pub(super) fn copy(&mut self) {
        let mut bytes = [0; WRITE_BYTES_MAX];
        for _ in 0..READS_MAX {
            let Ok(count @ 1..) = self.reader.read(&mut bytes) else { return };
            self.remember(&bytes[..count]);
            say::write(&bytes[..count]);
        }
    }

    fn remember(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' || self.partial.len() >= LINE_BYTES_MAX {
                if self.lines.len() == TAIL_LINES_MAX {
                    self.lines.pop_front();
                }
                let line = String::from_utf8_lossy(&self.partial).into_owned();
                self.partial.clear();
                if line.strip_prefix("refit: ").is_some_and(|text| text.starts_with(EXECUTING)) {
                    self.lines.clear(); // what comes now is another program's
                } else {
                    self.lines.push_back(line);
                }
            }
            if *byte != b'\n' {
                self.partial.push(*byte);
            }
        }
    }

    /// Returns the last lines, and begins anew for the next runtime.
    pub(super) fn take_lines(&mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.remember(b"\n");
        }
        self.lines.drain(..).collect()
    }
}
