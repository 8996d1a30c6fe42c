//! What a write that was cut short leaves in a home: found and removed at the next start.
//!
//! [`remove`] takes the files and links that [`durable`] makes beside what it replaces, in the directories that are Refit's own: what lies
//! in a release, a live configuration, `data/` or `log/` is not looked at. A file that a process still writes is left to that
//! process. Of releases, [`gone`] says which good ones are not on the disk any more.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use refit_base::{FileError, file_error};
use semver::Version;

use crate::durable;
use crate::journal::{Journal, State};

/// The directories of a home in which files are replaced; empty for the home itself.
const PLACES: [&str; 7] = ["", "run", "auth", "trust", "releases", "config", "config/.merged"];

/// What was removed, and what could not be.
#[derive(Debug, Default)]
pub struct Removed {
    /// What was removed.
    pub paths: Vec<PathBuf>,
    /// What could not be removed, or listed.
    pub failures: Vec<FileError>,
}

/// Removes what writes that were cut short have left in the home `home`. A place that is missing has nothing.
#[must_use]
pub fn remove(home: &Path) -> Removed {
    let mut removed = Removed::default();
    for place in PLACES {
        let dir = home.join(place);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => {
                removed.failures.push(file_error("read", &dir)(error));
                continue;
            }
        };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| durable::is_temporary(path)) {
            if durable::is_being_written(&path) {
                continue;
            }
            match durable::remove_tree(&path) {
                Ok(()) => removed.paths.push(path),
                Err(error) => removed.failures.push(file_error("remove", &path)(error)),
            }
        }
    }
    removed
}

/// Returns those of the good releases of `journal` that are not among `versions`, the ones on the disk. What the state names counts as there:
/// it is missed elsewhere.
#[must_use]
pub fn gone(journal: &Journal, versions: &[Version]) -> BTreeSet<Version> {
    let is_named = |version: &Version| match &journal.state {
        State::Idle { current } => version == current,
        State::Staged { current: one, next: other } | State::Trial { previous: one, next: other, .. } => {
            version == one || version == other
        }
    };
    journal.good.iter().filter(|version| !versions.contains(version) && !is_named(version)).cloned().collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot go on has failed")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_ours_goes_and_everything_else_stays() {
        let home = tempfile::tempdir().unwrap();
        let at = |path: &str| home.path().join(path);
        for dir in ["run", "auth", "releases/1.0.0", "config/1.0.0", "data", "config/.merged", ".tmpd1r3ct/below"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        let ours = [".tmpAb12xY", "run/.tmpq", "auth/.tmp123456", "releases/.tmpABCDEF", "config/.merged/.tmpZZ"];
        let others = [
            "state.json",
            ".tmp",
            ".tmp-notes",
            ".tmp.old",
            ".linked.conf",
            "data/.tmpAb12xY",
            "config/1.0.0/.tmpAb12xY",
            "releases/1.0.0/.tmpAb12xY",
            ".spare",
        ];
        for path in ours.iter().chain(&others) {
            fs::write(at(path), "x").unwrap();
        }
        symlink("releases/1.0.0", at(".linkAb12xY")).unwrap();
        let removed = remove(home.path());
        assert!(removed.failures.is_empty(), "{removed:?}");
        assert_eq!(removed.paths.len(), ours.len() + 2, "{removed:?}");
        for path in ours.iter().chain(&[".linkAb12xY", ".tmpd1r3ct"]) {
            assert!(fs::symlink_metadata(at(path)).is_err(), "{path}");
        }
        for path in others {
            assert!(at(path).exists(), "{path}");
        }
    }

    #[test]
    fn a_good_release_that_is_not_there_is_gone_unless_the_state_names_it() {
        let version = |text: &str| Version::parse(text).unwrap();
        let mut journal = Journal::first(version("1.2.0"));
        journal.good = ["1.0.0", "1.1.0", "1.2.0"].map(version).to_vec();
        let gone_of = |journal: &Journal, there: &[&str]| -> Vec<String> {
            let there: Vec<Version> = there.iter().map(|text| version(text)).collect();
            gone(journal, &there).iter().map(Version::to_string).collect()
        };
        assert_eq!(gone_of(&journal, &["1.1.0", "1.2.0"]), ["1.0.0"]);
        assert_eq!(gone_of(&journal, &["1.0.0"]), ["1.1.0"]);
        journal.state = State::Trial { previous: version("1.1.0"), next: version("1.2.0"), starts_left: 0 };
        assert_eq!(gone_of(&journal, &["1.0.0"]), [""; 0]);
    }
}
