//! The releases on the disk, kept in order: those that are no longer needed are removed, and one that an operator asks to remove.
//!
//! [`House::tidy_or_log`] runs after every attempt and at every start; [`House::make_room`] before a package is refused for want of space.
//! To give a release its place, hold the house with [`House::hold`]: no release is removed meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use refit_base::Chain;
use refit_updater::attempt::Outcome;
use refit_updater::config::{Orphans, remove_orphans};
use refit_updater::history::Entry;
use refit_updater::journal::{Journal, State};
use refit_updater::leftovers;
use refit_updater::receive::MakeRoom;
use refit_updater::removal;
use semver::Version;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::error::UpdateError;
use super::journal::JournalKeeper;
use super::parts::{Parts, blocking};

/// For how long a removal waits for another change of the releases, as each start and each attempt makes one: a command waits that long.
const HELD_WAITED_MAX: Duration = Duration::from_secs(10);

/// The owner of which releases stay.
pub(super) struct House {
    parts: Arc<Parts>,
    journal: Arc<JournalKeeper>,
    /// Held while releases on disk are removed, or one is given its place.
    alone: Arc<Mutex<()>>,
}

/// Holding it means that no release goes, and no other is given its place.
pub(super) type Held = OwnedMutexGuard<()>;

impl House {
    pub(super) fn new(parts: Arc<Parts>, journal: Arc<JournalKeeper>) -> Self {
        Self { parts, journal, alone: Arc::default() }
    }

    /// Waits until nobody else changes which releases are there.
    pub(super) async fn hold(&self) -> Held {
        Arc::clone(&self.alone).lock_owned().await
    }

    /// Removes the releases that are no longer needed. The one of the last attempt stays, for it may be tried again by its version.
    /// What cannot be removed is logged.
    pub(super) async fn tidy_or_log(self: Arc<Self>) {
        let alone = self.hold().await;
        let work = move || {
            self.prune(self.last_tried().as_ref());
            drop(alone);
            Ok(())
        };
        if let Err(error) = blocking(work).await {
            tracing::warn!(error = %Chain(&error), "cannot remove old releases");
        }
    }

    /// Removes release `version` because somebody asks for it. Returns how large it was, in bytes, as far as that is known.
    ///
    /// # Errors
    /// It is needed, or not there: nothing was changed. Or its files cannot be removed: it is whole, or gone from `releases/`.
    pub(super) async fn remove(self: &Arc<Self>, version: Version) -> Result<Option<u64>, UpdateError> {
        let alone = tokio::time::timeout(HELD_WAITED_MAX, self.hold())
            .await
            .map_err(|_held| UpdateError::Busy { what: "releases on the disk are being changed".to_owned() })?;
        let house = Arc::clone(self);
        let work = move || {
            let _alone = alone;
            let in_use = house.parts.context.registry.releases_in_use();
            let journal = house.journal.current();
            let bytes = removal::remove::<UpdateError>(&house.parts.store, &journal, &version, &in_use)?;
            tracing::info!(release.version = %version, "release removed on request");
            house.forget(&BTreeSet::from([version]))?;
            Ok(bytes)
        };
        blocking(work).await
    }

    /// Removes what a write, an update or a removal that was cut short has left in the home, and has the journal forget good releases that are
    /// not there any more. What cannot be removed is logged. The caller holds the house. Blocks.
    pub(super) fn clear_away(&self) {
        let Self { parts, journal, .. } = self;
        let leftovers::Removed { paths, failures } = leftovers::remove(parts.store.home());
        for path in paths {
            tracing::info!(path = %path.display(), "what an interrupted write had left was removed");
        }
        for failure in failures {
            tracing::warn!(error = %Chain(&failure), "cannot remove what an interrupted write has left");
        }
        let journal = journal.current();
        if let Err(error) = self.clear_configs(&journal) {
            tracing::warn!(error = %Chain(&error), "cannot look for configurations without a release");
        }
        let forgotten = parts.store.versions().map_err(UpdateError::from).and_then(|versions| {
            // A disk that is not mounted has no releases at all.
            let is_mounted = versions.contains(journal.state.wanted());
            let gone = if is_mounted { leftovers::gone(&journal, &versions) } else { BTreeSet::new() };
            for version in &gone {
                tracing::warn!(release.version = %version, "a good release is not there any more; a rollback to it is not offered");
            }
            self.forget(&gone)
        });
        if let Err(error) = forgotten {
            tracing::warn!(error = %Chain(&error), "cannot journal which releases are gone");
        }
    }

    /// Removes the configurations that have no release and no edit.
    fn clear_configs(&self, journal: &Journal) -> Result<(), UpdateError> {
        let needed = match &journal.state {
            State::Idle { current } => vec![current.clone()],
            State::Staged { current: one, next: other } | State::Trial { previous: one, next: other, .. } => {
                vec![one.clone(), other.clone()]
            }
        };
        let Orphans { removed, edited, failures } = remove_orphans(&self.parts.store, journal.state.wanted(), &needed)?;
        for version in removed {
            tracing::info!(release.version = %version, "the configuration of a release that is gone was removed");
        }
        for path in edited {
            let path = path.display();
            tracing::info!(%path, "a configuration whose release is gone may hold edits; it stays until you remove it");
        }
        for failure in failures {
            tracing::warn!(error = %Chain(&failure), "cannot remove the configuration of a release that is gone");
        }
        Ok(())
    }

    /// Returns the release of the last attempt, unless that went well. Blocks.
    fn last_tried(&self) -> Option<Version> {
        let entries = self.journal.history().inspect_err(|error| tracing::warn!(%error, "cannot read the history"));
        let is_attempt = |entry: &Entry| entry.kind.is_attempt();
        let Entry { outcome, to, .. } = entries.ok()?.into_iter().rfind(is_attempt)?;
        (outcome != Outcome::Done).then_some(to)
    }

    /// Removes the releases that are no longer needed. The caller holds the house. Blocks.
    fn prune(&self, last_tried: Option<&Version>) {
        let Self { parts, journal, .. } = self;
        let versions = match parts.store.versions() {
            Ok(versions) => versions,
            Err(error) => return tracing::warn!(error = %Chain(&error), "cannot list the releases"),
        };
        let (journal, in_use) = (journal.current(), parts.context.registry.releases_in_use());
        let mut removed = BTreeSet::new();
        for version in removal::unneeded(&journal, versions, &in_use, parts.config.update.keep, last_tried) {
            match parts.store.remove(&version) {
                Ok(()) => {
                    tracing::info!(release.version = %version, "release removed");
                    removed.insert(version);
                }
                Err(error) => {
                    tracing::warn!(release.version = %version, error = %Chain(&error), "cannot remove a release");
                }
            }
        }
        if let Err(error) = self.forget(&removed) {
            tracing::warn!(error = %Chain(&error), "cannot journal the removal of releases");
        }
    }

    /// Has the journal forget that these releases were good. Why one failed stays known.
    fn forget(&self, removed: &BTreeSet<Version>) -> Result<(), UpdateError> {
        if !self.journal.current().good.iter().any(|version| removed.contains(version)) {
            return Ok(());
        }
        let forget = |mut journal: Journal| {
            journal.good.retain(|version| !removed.contains(version));
            Ok(journal)
        };
        self.journal.change(forget).map(drop)
    }
}

impl MakeRoom for House {
    /// Removes what nobody needs, the release of the last attempt included: the package at hand is worth more.
    fn make_room(&self) {
        // One who holds it may be giving a release its place: what is there now stays.
        if let Ok(_alone) = self.alone.try_lock() {
            tracing::info!("a package does not fit; removing the releases that are not needed");
            self.prune(None);
        }
    }
}
