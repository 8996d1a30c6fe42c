//! The journal, in memory and on disk, and the history that finished attempts go to.
//!
//! Everything that an update does follows one rule: the journal before the act. A step is written first, and only then done, so
//! that after a crash the next start reads where to go on. What is in memory is what was written.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use refit_base::lock;
use refit_updater::history;
use refit_updater::journal::{self, Journal};

use super::error::UpdateError;

/// The owner of the journal while this image lives.
pub(super) struct JournalKeeper {
    home: PathBuf,
    current: Mutex<Journal>,
}

impl JournalKeeper {
    /// Returns the owner of the journal of `home`, which says `journal`.
    pub(super) fn new(home: &Path, journal: Journal) -> Self {
        Self { home: home.to_owned(), current: Mutex::new(journal) }
    }

    /// Returns what the journal says.
    pub(super) fn current(&self) -> Journal {
        lock(&self.current).clone()
    }

    /// Writes the journal anew.
    ///
    /// # Errors
    /// It cannot be written; what is known of it here has not changed.
    pub(super) fn write(&self, journal: Journal) -> Result<(), UpdateError> {
        journal::store(&self.home, &journal)?;
        *lock(&self.current) = journal;
        Ok(())
    }

    /// Moves the finished attempt from the journal into the history.
    ///
    /// # Errors
    /// One of the two cannot be written; the attempt stays in the journal.
    pub(super) fn record_finished(&self) -> Result<(), UpdateError> {
        let mut journal = self.current();
        let Some(entry) = journal.finished.take() else { return Ok(()) };
        history::append(&self.home, &entry).map_err(|source| UpdateError::Io { what: "write the history", source })?;
        self.write(journal)
    }
}
