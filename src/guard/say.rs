//! What the guard says on standard error: without waiting for a reader, and never without a limit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{FileType, OFlags};

/// How much is written at once: a pipe or terminal that can take anything can take this much without blocking.
pub(super) const WRITE_BYTES_MAX: usize = 4096;
/// After so long the same is said again.
const SAME_AFTER: Duration = Duration::from_secs(60);
/// So long the next of a kind waits that says something else.
const OTHER_AFTER: Duration = Duration::from_secs(1);

/// Returns a terminal or a pipe that is standard error, opened once more so that writing never waits: a terminal can be written to,
/// as poll(2) says, as soon as it has room for one byte, and whoever else has it wants to wait for it.
fn without_waiting() -> Option<&'static File> {
    static OPENED: OnceLock<Option<File>> = OnceLock::new();
    let open = || {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(io::stderr()).ok()?.st_mode);
        if !matches!(kind, FileType::CharacterDevice | FileType::Fifo) {
            return None;
        }
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        File::options().write(true).custom_flags(i32::try_from(flags).ok()?).open("/proc/self/fd/2").ok()
    };
    OPENED.get_or_init(open).as_ref()
}

/// Writes to standard error at most [`WRITE_BYTES_MAX`] bytes. What it cannot take at once is dropped.
pub(super) fn write(bytes: &[u8]) {
    if let Some(mut stderr) = without_waiting() {
        // A reader that is gone, or has no room, is no reason to do anything else.
        drop(stderr.write(&bytes[..bytes.len().min(WRITE_BYTES_MAX)]));
        return;
    }
    let stderr = io::stderr();
    let mut writable = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut writable, PollTimeout::ZERO) == Ok(1)
        && writable[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT))
    {
        // A reader that is gone is no reason to do anything else.
        drop(stderr.lock().write_all(&bytes[..bytes.len().min(WRITE_BYTES_MAX)]));
    }
}

/// Prints one line for whoever reads the guard's own output.
pub(super) fn say(text: &str) {
    const PREFIX: &str = "refit: ";
    let mut end = text.len().min(WRITE_BYTES_MAX - PREFIX.len() - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    write(format!("{PREFIX}{}\n", &text[..end]).as_bytes());
}

/// What was complained about. What goes on is said once, and again when it changes or after a while.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    said: BTreeMap<&'static str, (String, Instant)>,
}

impl Complaints {
    /// Says `text`, a complaint of this kind, unless it was said just now.
    pub(super) fn say(&mut self, kind: &'static str, text: &str) {
        if self.is_new(kind, text, Instant::now()) {
            say(text);
        }
    }

    fn is_new(&mut self, kind: &'static str, text: &str, now: Instant) -> bool {
        if let Some((last, at)) = self.said.get(kind)
            && now.saturating_duration_since(*at) < if last == text { SAME_AFTER } else { OTHER_AFTER }
        {
            return false;
        }
        self.said.insert(kind, (text.to_owned(), now));
        true
    }

    /// Forgets a kind, which is over: it would be new.
    pub(super) fn forget(&mut self, kind: &'static str) {
        self.said.remove(kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_said_once_and_after_a_while_again() {
        let begun = Instant::now();
        let mut complaints = Complaints::default();
        let mut said = Vec::new();
        for tenth in 0..=1200 {
            let text = if (300..500).contains(&tenth) { "b" } else { "a" };
            if complaints.is_new("start", text, begun + Duration::from_millis(100) * tenth) {
                said.push((tenth, text));
            }
        }
        assert_eq!(said, [(0, "a"), (300, "b"), (500, "a"), (1100, "a")]);
        assert!(!complaints.is_new("start", "a", begun + Duration::from_secs(120)));
        assert!(complaints.is_new("other", "a", begun + Duration::from_secs(120)));
        complaints.forget("start");
        assert!(complaints.is_new("start", "a", begun + Duration::from_secs(120)));
        // One that never says the same twice is held back, too.
        let texts = (0..1000).filter(|number| {
            complaints.is_new("noise", &number.to_string(), begun + Duration::from_millis(10) * *number)
        });
        assert_eq!(texts.count(), 10);
    }
}
