//! The way back from a release whose own files are damaged: the last good release that is whole.
//!
//! Only damage that the digests of its manifest prove leads back. Whatever else keeps a runtime from starting (an address that is taken, a
//! disk that is not mounted, an account that is missing, a mistake in `local.toml`) is over when it is over, and the release stays.

use refit_base::Chain;
use refit_updater::Store;
use refit_updater::journal::{Journal, State};
use semver::Version;

use crate::home::Home;

/// What was found out about the current release.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is whole, or nobody can tell now.
    Whole,
    /// It is damaged, and another one is whole.
    Back {
        /// The release to go back to.
        to: Version,
        /// What is damaged, for the history.
        why: String,
    },
    /// It is damaged, and so is every other one.
    Stuck {
        /// What is damaged.
        why: String,
    },
}

/// Finds out whether the current release of `journal` is damaged, and where the way back leads. `tick` is called again and again meanwhile.
pub(super) fn find(home: &Home, journal: &Journal, tick: &mut dyn FnMut()) -> Found {
    let State::Idle { current } = &journal.state else { return Found::Whole };
    let Ok(store) = Store::open(home.path()) else { return Found::Whole };
    let Ok(Some(damage)) = store.find_damage(current, tick) else { return Found::Whole };
    let why = format!("release {current} is damaged: {}", Chain(&damage));
    let mut others = journal.good.iter().rev().filter(|version| *version != current);
    let is_whole = |version: &&Version| {
        store.repair_modes_of(version);
        matches!(store.find_damage(version, tick), Ok(None))
    };
    match others.find(is_whole) {
        Some(to) => Found::Back { to: to.clone(), why },
        None => Found::Stuck { why },
    }
}

/// Gives the files of release `version` the permissions that its manifest says, as far as it can be read. Returns whether any changed.
pub(super) fn repair_modes(home: &Home, version: &Version, mut say: impl FnMut(&str)) -> bool {
    let Ok(store) = Store::open(home.path()) else { return false };
    let Ok(release) = store.release(version) else { return false };
    let repaired = store.repair_modes(&release);
    repaired.repairs.iter().for_each(|repair| say(&repair.to_string()));
    !repaired.repairs.is_empty()
}
