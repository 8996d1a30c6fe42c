//! Which `refit` the guard starts where a release brings no runtime of its own: the installed one while it is a program, and what the
//! guard itself was started from otherwise.
//!
//! A file that looks like a program may still be none: a copy may lack a part, or be meant for another machine. One that ended without a
//! word is therefore not started again before it has changed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::process::{installed, program};

/// What tells one file, and one content of it, from another.
type Identity = (u64, u64, u64, i64, i64);

/// The installed program.
#[derive(Debug)]
pub(super) struct Installed {
    path: PathBuf,
    /// What the guard was started from.
    held: PathBuf,
    /// The one that ended without a word.
    failed: Option<Identity>,
    /// The one that runs, if it is not what the guard was started from.
    running: Option<Identity>,
}

impl Installed {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, held: installed::held(std::process::id()), failed: None, running: None }
    }

    /// Returns where it was when the guard began.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what to execute.
    pub(super) fn program(&self) -> PathBuf {
        if !program::is_program(&self.path) || self.is_failed() { self.held.clone() } else { self.path.clone() }
    }

    /// Takes note that `program` was started.
    pub(super) fn has_started(&mut self, program: &Path) {
        let is_own = identify(&self.path) == identify(&self.held);
        self.running = identify(&self.path).filter(|_| program == self.path && !is_own);
    }

    /// Takes note that what was started last ended without a word. Returns whether another program is tried now.
    pub(super) fn has_failed(&mut self) -> bool {
        // What fails in the same way with either program is no fault of the installed one.
        self.failed = self.running.take();
        self.failed.is_some()
    }

    /// Returns why `program` is executed and not the installed one, if so.
    pub(super) fn trouble(&self, program: &Path) -> Option<String> {
        if program != self.held {
            return None;
        }
        let why = match program::look(&self.path) {
            Err(unfit) => unfit.to_string(),
            Ok(()) => "it ended without a word".to_owned(),
        };
        let path = self.path.display();
        Some(format!("cannot use {path}, the installed refit: {why}; the one that this guard was started from runs"))
    }

    fn is_failed(&self) -> bool {
        self.failed.is_some() && identify(&self.path) == self.failed
    }
}

fn identify(path: &Path) -> Option<Identity> {
    let found = path.metadata().ok()?;
    Some((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_that_ended_without_a_word_is_tried_again_when_it_is_another_or_the_other_does_no_better() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("refit");
        fs::copy("/bin/sh", &path).expect("copied");
        let mut installed = Installed::new(path.clone());
        let held = installed.held.clone();
        assert_eq!(installed.program(), path);
        installed.has_started(&path);
        assert!(installed.has_failed());
        assert_eq!(installed.program(), held);
        assert!(installed.trouble(&held).is_some());
        // The other does no better.
        installed.has_started(&held);
        assert!(!installed.has_failed());
        assert_eq!(installed.program(), path);
        installed.has_started(&path);
        assert!(installed.has_failed());
        fs::remove_file(&path).expect("removed");
        assert_eq!(installed.program(), held);
        fs::copy("/bin/cat", &path).expect("copied");
        assert_eq!(installed.program(), path);
        assert_eq!(installed.trouble(&path), None);
    }

    #[test]
    fn what_the_guard_was_started_from_is_not_given_up() {
        let own = std::env::current_exe().expect("this program");
        let mut installed = Installed::new(own.clone());
        installed.has_started(&own);
        assert!(!installed.has_failed());
        assert_eq!(installed.program(), own);
    }
}
