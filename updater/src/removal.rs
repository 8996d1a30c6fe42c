//! Which releases may go.
//!
//! [`unneeded`] names those that go by themselves, after every attempt and when space is wanted; [`check`] decides whether one may
//! go because somebody asks for it. Both decide by data: no clock, no disk, no network. [`remove`] removes one that somebody asks for.

use std::collections::BTreeSet;

use refit_base::{Exit, Report, Reported};
use semver::Version;

use crate::journal::{Journal, State};
use crate::release::{Store, StoreError};

/// How many good releases stay, whatever is configured: the running one, and one to go back to.
pub const KEEP_MIN: usize = 2;

/// Why a release is not removed. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemovalError {
    /// It is the one that runs.
    #[error("release {version} is the running one")]
    Running {
        /// The version.
        version: Version,
    },
    /// It is the one that a rollback goes to.
    #[error("release {version} is the one that `refit rollback` goes back to")]
    LastGood {
        /// The version.
        version: Version,
    },
    /// An update goes to it, or comes from it.
    #[error("release {version} is part of the update {from} -> {to}, which is under way")]
    UnderWay {
        /// The version.
        version: Version,
        /// The release that runs, or that the way back leads to.
        from: Box<Version>,
        /// The release that is prepared or on trial.
        to: Box<Version>,
    },
    /// A component that was kept by an update still runs its files.
    #[error("a component still runs from release {version}")]
    InUse {
        /// The version.
        version: Version,
    },
    /// There is no such release.
    #[error("there is no release {version} on this appliance")]
    Unknown {
        /// The version.
        version: Version,
    },
}

impl Reported for RemovalError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Running { .. } => Report::new(
                "release_runs",
                Exit::Failed,
                "update or roll back to another release first; nothing was removed",
            ),
            Self::LastGood { .. } => Report::new(
                "release_needed",
                Exit::Failed,
                "it can be removed after the next update has proved good; nothing was removed",
            ),
            Self::UnderWay { .. } => Report::new(
                "update_running",
                Exit::TryLater,
                "wait until the update has ended, then try again; nothing was removed",
            ),
            Self::InUse { .. } => Report::new(
                "release_in_use",
                Exit::TryLater,
                "restart the components that an update has kept, with `refit component restart NAME`; nothing was removed",
            ),
            Self::Unknown { .. } => {
                Report::new("release_unknown", Exit::Usage, "see `refit releases` for what is there")
            }
        }
    }
}

/// Returns whether release `version` may go although nothing else wants it to; `in_use` are the releases that processes run from.
///
/// # Errors
/// Why it may not.
pub fn check(journal: &Journal, version: &Version, in_use: &[Version]) -> Result<(), RemovalError> {
    let version = version.clone();
    match &journal.state {
        State::Idle { current } if *current == version => return Err(RemovalError::Running { version }),
        State::Staged { current: from, next: to } | State::Trial { previous: from, next: to, .. }
            if *from == version || *to == version =>
        {
            return Err(RemovalError::UnderWay { version, from: Box::new(from.clone()), to: Box::new(to.clone()) });
        }
        State::Idle { .. } | State::Staged { .. } | State::Trial { .. } => {}
    }
    if journal.previous() == Some(&version) {
        return Err(RemovalError::LastGood { version });
    }
    if in_use.contains(&version) {
        return Err(RemovalError::InUse { version });
    }
    Ok(())
}

/// Removes release `version`, which somebody asks for, from `store`; `in_use` are the releases that processes run from. Returns how large
/// it was, in bytes, as far as that is known. The journal still counts it among the good ones, if it was.
///
/// # Errors
/// It is needed, or not there: nothing was changed. Or its files cannot be removed: it is whole, or gone from `releases/`.
pub fn remove<E: From<StoreError> + From<RemovalError>>(
    store: &Store,
    journal: &Journal,
    version: &Version,
    in_use: &[Version],
) -> Result<Option<u64>, E> {
    if !store.versions()?.contains(version) {
        return Err(RemovalError::Unknown { version: version.clone() }.into());
    }
    check(journal, version, in_use)?;
    // One whose manifest is damaged goes, too.
    let bytes = store.release(version).ok().map(|release| release.installed_bytes());
    store.remove(version)?;
    Ok(bytes)
}

/// Returns those of `versions` that nothing needs: no process of `in_use`, not the update under way, not the newest `keep` good
/// ones. `last_tried` is the release of the last attempt; `None` if that is not worth its space.
#[must_use]
pub fn unneeded(
    journal: &Journal,
    versions: Vec<Version>,
    in_use: &[Version],
    keep: usize,
    last_tried: Option<&Version>,
) -> Vec<Version> {
    let good: BTreeSet<&Version> = journal.good.iter().rev().take(keep.max(KEEP_MIN)).collect();
    let mut unneeded = versions;
    unneeded.retain(|version| {
        check(journal, version, in_use).is_ok() && !good.contains(version) && last_tried != Some(version)
    });
    unneeded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn versions(texts: &[&str]) -> Vec<Version> {
        texts.iter().map(|text| version(text)).collect()
    }

    fn journal(state: State) -> Journal {
        Journal { state, good: versions(&["1.0.0", "1.1.0", "1.2.0", "1.3.0"]), ..Journal::first(version("1.0.0")) }
    }

    fn states() -> [State; 3] {
        let (current, next) = (version("1.3.0"), version("2.0.0"));
        [
            State::Idle { current: current.clone() },
            State::Staged { current: current.clone(), next: next.clone() },
            State::Trial { previous: current, next, starts_left: 0 },
        ]
    }

    #[test]
    fn what_is_needed_is_not_removed() {
        let rows = [
            ("1.0.0", ["free", "free", "free"]),
            ("1.1.0", ["release_in_use"; 3]),
            ("1.2.0", ["release_needed", "release_needed", "free"]),
            ("1.3.0", ["release_runs", "update_running", "update_running"]),
            ("2.0.0", ["free", "update_running", "update_running"]),
            ("3.0.0", ["free"; 3]),
        ];
        for (name, expected) in rows {
            for (state, expected) in states().into_iter().zip(expected) {
                let checked = check(&journal(state.clone()), &version(name), &versions(&["1.1.0"]));
                let found = checked.as_ref().map_or_else(Reported::code, |()| "free");
                assert_eq!(found, expected, "{name} in {state:?}");
            }
        }
    }

    #[test]
    fn failed_releases_and_old_ones_go() {
        let all = ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "2.0.0", "2.1.0"];
        let rows: [(usize, Option<&str>, &[&str]); 4] = [
            (3, Some("2.1.0"), &["1.0.0", "2.0.0"]),
            (3, None, &["1.0.0", "2.0.0", "2.1.0"]),
            (1, Some("1.0.0"), &["1.1.0", "2.0.0", "2.1.0"]),
            (9, None, &["2.0.0", "2.1.0"]),
        ];
        let [idle, _, trial] = states();
        for (keep, last, expected) in rows {
            let last = last.map(version);
            let found = unneeded(&journal(idle.clone()), versions(&all), &[], keep, last.as_ref());
            assert_eq!(found, versions(expected), "keep {keep}, last {last:?}");
        }
        let kept = versions(&["1.0.0"]);
        assert_eq!(unneeded(&journal(trial), versions(&all), &kept, 2, None), versions(&["1.1.0", "2.1.0"]));
    }
}
