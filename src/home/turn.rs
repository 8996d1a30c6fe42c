//! Whose turn it is while a guard has no runtime: its own, to start one, or that of a command, which changes with the files what is started.
//!
//! The turn is the lock of a file. A guard has it from before it starts a runtime until that has ended, and gives it away while it
//! waits; a command that has it keeps the guard from starting one, for as long as the command runs and no longer.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use refit_updater::{durable, modes};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use super::{Home, trouble};

/// The file in `run/`.
const TURN_FILE: &str = "turn";
/// How long a command waits for its turn: a runtime that does not start has ended by then, in most cases.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// How often it looks: the kernel tells nobody when a lock is free.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The guard's side.
#[derive(Debug)]
pub struct Turn {
    home: Home,
    file: Option<File>,
}

impl Turn {
    /// Returns that of the guard of `home`, who does not have it yet.
    pub const fn new(home: Home) -> Self {
        Self { home, file: None }
    }

    /// Takes it. Returns whether the guard may start a runtime: no command has it. What the disk or the kernel refuses keeps no guard from
    /// starting one.
    pub fn take(&mut self) -> bool {
        if !self.file.as_ref().is_some_and(|file| is_at(file, &path(&self.home))) {
            // Somebody may have removed it: commands find the new one.
            let opened = durable::open_or_create(&path(&self.home), modes::of("run/turn"));
            self.file = opened.ok().or(self.file.take());
        }
        let lock = |file| flock(file, FlockOperation::NonBlockingLockExclusive);
        self.file.as_ref().is_none_or(|file| lock(file) != Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Gives it to the command that wants it.
    pub fn give(&self) {
        if let Some(file) = &self.file {
            flock(file, FlockOperation::Unlock).ok(); // what is not locked is free
        }
    }
}

/// The side of a command: as long as this lives, the guard starts no runtime. It does so at once afterwards.
#[derive(Debug)]
pub struct Held {
    file: File,
    /// The guard.
    pub guard: i32,
}

impl Held {
    /// Waits for the turn in `home`, whose guard is the process `guard`. Returns nothing if that does not try in vain to start a runtime, or
    /// gives nothing away.
    pub fn wait(home: &Home, guard: i32) -> Option<Self> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            trouble::read(home, guard)?;
            let file = File::options().read(true).write(true).open(path(home)).ok()?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && is_at(&file, &path(home))
                && home.guard() == Some(guard)
            {
                return Some(Self { file, guard });
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Before the lock is free: the guard looks again at once, and no runtime is there to take it for a word.
        if let Some(guard) = Pid::from_raw(self.guard) {
            kill_process(guard, Signal::HUP).ok(); // one that may not be told tries again by itself
        }
        flock(&self.file, FlockOperation::Unlock).ok(); // closing it does the same
    }
}

fn path(home: &Home) -> PathBuf {
    home.run().join(TURN_FILE)
}

fn is_at(file: &File, path: &std::path::Path) -> bool {
    let identity = |found: io::Result<std::fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    let here = identity(file.metadata());
    here.is_some() && here == identity(path.symlink_metadata())
}
