//! What commands are told of starts that lead to nothing.

use std::time::{Duration, Instant};

use super::Guard;
use crate::home::trouble::{self, Trouble};

/// How long the first start waits for a command of the time before: it hashes a release, or unpacks one.
const COMMAND_WAIT_MAX: Duration = Duration::from_secs(60);
/// How often it looks: the kernel tells nobody when a lock is free.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Guard {
    /// Has commands know that no runtime starts, and why.
    pub(super) fn note_trouble(&mut self, reason: String) {
        self.failures = self.failures.saturating_add(1);
        let guard = i32::try_from(std::process::id()).unwrap_or(0);
        let trouble = Trouble { guard, failures: self.failures, reason };
        if let Err(error) = trouble.write(&self.home) {
            self.complaints.say("trouble", &format!("cannot tell commands why no runtime starts: {error}"));
        }
    }

    /// Waits for a command that still works with the releases, because the guard before has ended meanwhile.
    pub(super) fn wait_for_turn(&mut self) {
        let begun = Instant::now();
        while !self.turn.take() && begun.elapsed() < COMMAND_WAIT_MAX {
            self.complaints.say("turn", "waiting for a command that works with the releases");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Has commands know that one does, or that nobody tries any more.
    pub(in crate::guard) fn trouble_is_over(&mut self) {
        self.failures = 0;
        self.complaints.forget("trouble");
        trouble::remove(&self.home);
    }
}
