//! The runtime's own log: standard error, which the guard reads. Nothing waits for a guard that does not.
//!
//! The pipe holds what a busy runtime says in some seconds. When it is full, one line waits a moment for room; from then on lines are
//! dropped until there is some, and their number is said.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// So much fits into a pipe that has any room.
const PIECE_BYTES: usize = 4096;
/// How long the first line waits that finds no room, in milliseconds: a guard that works makes some at once.
const PATIENCE_MS: u16 = 200;

/// Whether the last line found no room.
static IS_FULL: AtomicBool = AtomicBool::new(false);
/// How many lines were dropped since.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Writes to standard error what there is room for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr().lock();
        for piece in bytes.chunks(PIECE_BYTES) {
            if !has_room(&stderr) {
                DROPPED.fetch_add(1, Ordering::Relaxed);
                return Ok(bytes.len());
            }
            let dropped = DROPPED.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                writeln!(stderr, "refit: {dropped} lines were dropped here: nobody read them")?;
                // That took the room that was there.
                if !has_room(&stderr) {
                    return Ok(bytes.len());
                }
            }
            stderr.write_all(piece)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // it is not buffered
    }
}

/// Returns whether a piece can be written without waiting; waits for that a moment, if there was room before.
fn has_room(stderr: &io::StderrLock<'_>) -> bool {
    let limit = if IS_FULL.load(Ordering::Relaxed) { PollTimeout::ZERO } else { PollTimeout::from(PATIENCE_MS) };
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // What cannot be asked is tried: a file, for one, always has room.
    let is_full = poll(&mut polled, limit) == Ok(0);
    IS_FULL.store(is_full, Ordering::Relaxed);
    !is_full
}
