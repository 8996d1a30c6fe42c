//! The journal, in memory and on disk, and the history that finished attempts go to.
//!
//! Everything that an update does follows one rule: the journal before the act. A step is written first, and only then done, so
//! that after a crash the next start reads where to go on. What is in memory is what was written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use refit_base::lock;
use refit_updater::history::{self, Entry};
use refit_updater::journal::{self, Journal};

use super::error::UpdateError;

/// The owner of the journal while this image lives.
pub(super) struct JournalKeeper {
    home: PathBuf,
    current: Mutex<Journal>,
    /// Held from reading the journal until it is written: no change is lost to another one.
    changing: Mutex<()>,
    /// Held while the history is written, so that an attempt is in it once.
    recording: Mutex<()>,
}

impl JournalKeeper {
    /// Returns the owner of the journal of `home`, which says `journal`.
    pub(super) fn new(home: &Path, journal: Journal) -> Self {
        Self {
            home: home.to_owned(),
            current: Mutex::new(journal),
            changing: Mutex::new(()),
            recording: Mutex::new(()),
        }
    }

    /// Returns what the journal says.
    pub(super) fn current(&self) -> Journal {
        lock(&self.current).clone()
    }

    /// Writes what `change` makes of the journal. Returns the new one. Blocks.
    ///
    /// # Errors
    /// Those of `change`; or it cannot be written: what is known of it here has not changed.
    pub(super) fn change(
        &self,
        change: impl FnOnce(Journal) -> Result<Journal, UpdateError>,
    ) -> Result<Journal, UpdateError> {
        let _alone = lock(&self.changing);
        let journal = change(self.current())?;
        journal::store(&self.home, &journal)?;
        *lock(&self.current) = journal.clone();
        Ok(journal)
    }

    /// Moves the finished attempts from the journal into the history. Blocks.
    ///
    /// # Errors
    /// One of the two cannot be written; what is not in the history stays in the journal.
    pub(super) fn record_finished(&self) -> Result<(), UpdateError> {
        let _alone = lock(&self.recording);
        let finished = self.current().finished;
        if finished.is_empty() {
            return Ok(());
        }
        for entry in &finished {
            history::append(&self.home, entry)
                .map_err(|source| UpdateError::Io { what: "write the history", source })?;
        }
        let recorded = |entry: &Entry| finished.iter().any(|recorded| recorded.id == entry.id);
        self.change(|mut journal| {
            journal.finished.retain(|entry| !recorded(entry));
            Ok(journal)
        })
        .map(drop)
    }

    /// Returns the attempts that ended, oldest first: those of the history, and those that are not in it yet. Blocks.
    ///
    /// # Errors
    /// The history cannot be read, and no attempt waits for it.
    pub(super) fn history(&self) -> io::Result<Vec<Entry>> {
        let waiting = self.current().finished;
        let mut entries = match history::read(&self.home) {
            Err(error) if waiting.is_empty() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "cannot read the history; showing what the journal has of it");
                Vec::new()
            }
            Ok(entries) => entries,
        };
        for entry in waiting {
            if !entries.iter().any(|known| known.id == entry.id) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}
