//! The live configuration of a release: its defaults, merged three-way with what the admin made of the last one's.
//!
//! Base is the default that the running release came with, ours what the admin made of it, theirs the default of the new
//! release. The result is built beside, synced, and gets its name in one step; the configuration of every other release
//! stays as it is, so a rollback finds its own. An admin's work is never lost: where both sides changed the same lines, the
//! admin's file stays and the new default lies beside it as `NAME.new`.

mod tree;

use std::path::{Path, PathBuf};

use refit_base::{Exit, FileError, Report, Reported, file_error};
use semver::Version;
use serde::Serialize;

use crate::durable;
use crate::fault;
use crate::release::Store;
use tree::{Entry, Tree};

/// What is added to the name of a default that could not be merged.
const NEW_SUFFIX: &str = ".new";
/// The directory of a release that holds its defaults.
const DEFAULTS_DIR: &str = "config";
/// Texts longer than this are not merged line by line: nobody edits them by hand.
const MERGE_BYTES_MAX: usize = 1 << 20;

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MergeReport {
    /// Whether the release's configuration was there already and was left as it is.
    pub kept_existing: bool,
    /// Every file, by path.
    pub files: Vec<MergedFile>,
}

impl MergeReport {
    /// Returns the files that an admin must look at.
    pub fn conflicts(&self) -> impl Iterator<Item = &MergedFile> {
        self.files.iter().filter(|file| matches!(file.outcome, Outcome::Conflict { .. }))
    }
}

/// One file of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MergedFile {
    /// Path below the configuration.
    pub path: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The file is what it was.
    Unchanged,
    /// The new release's default took the place of the old one's.
    Updated,
    /// The admin's file stayed, or stayed away.
    KeptAdmin,
    /// The admin's changes and the release's are both in it.
    Merged,
    /// Both changed the same lines, or what has no lines: the admin's file stayed.
    Conflict {
        /// Where the new default lies, below the configuration.
        new_default: String,
    },
    /// The new release brought it.
    Added,
    /// The new release has it no longer, and the admin had not touched it.
    Removed,
}

/// A file of a live configuration that waits for the admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unmerged {
    /// Path below the configuration.
    pub path: String,
    /// Where the new default lies, below the configuration.
    pub new_default: String,
}

/// What to do with a configuration that the release has already, from an earlier time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is replaced: an update carries over what is configured now.
    Replace,
    /// It stays: a rollback finds the configuration as that release left it.
    Keep,
}

/// Why there is no merged configuration. The one that was there still is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A name that is not UTF-8.
    #[error("the name of {} is not UTF-8", path.display())]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// A device, socket or pipe.
    #[error("{} is neither file, directory nor link", path.display())]
    Type {
        /// The path.
        path: PathBuf,
    },
}

impl Reported for ConfigError {
    fn report(&self) -> Report<'_> {
        let remedy = match self {
            Self::File(_) => "free space or check the disk and the permissions of the configuration, then try again",
            Self::Name { .. } | Self::Type { .. } => "remove it from the configuration, then try again",
        };
        Report::new("configuration_not_merged", Exit::Config, remedy)
    }
}

/// Makes the live configuration of release `to`: from its defaults, and the admin's edits of the one of `from`.
///
/// # Errors
/// A file operation failed, or there is something in a configuration that does not belong there. Whatever configuration
/// release `to` had, it still has, but for a failure in the very last step, after which it has none.
pub fn merge_config(
    store: &Store,
    from: Option<&Version>,
    to: &Version,
    existing: Existing,
) -> Result<MergeReport, ConfigError> {
    let live = store.config_dir(to);
    let exists = live.symlink_metadata().is_ok();
    if exists && existing == Existing::Keep {
        return Ok(MergeReport { kept_existing: true, files: Vec::new() });
    }
    let theirs = Tree::read(&store.release_dir(to).join(DEFAULTS_DIR))?;
    let (base, ours) = match from {
        Some(from) if store.config_dir(from).is_dir() => {
            (Tree::read(&store.release_dir(from).join(DEFAULTS_DIR))?, Tree::read(&store.config_dir(from))?)
        }
        Some(_) | None => (Tree::default(), Tree::default()),
    };
    let (result, files) = merge_trees(&base, &ours, &theirs);

    let staging = store.staging_dir();
    let beside = tempfile::Builder::new()
        .prefix("config-")
        .tempdir_in(&staging)
        .map_err(file_error("make a directory in", &staging))?;
    let new = beside.path().join("new");
    let file_system = durable::FileSystem::of(&staging).map_err(file_error("open", &staging))?;
    result.write(&new)?;
    file_system.sync().map_err(file_error("sync", &new))?;
    if exists {
        durable::rename(&live, &beside.path().join("old")).map_err(file_error("move away", &live))?;
    }
    durable::rename(&new, &live).map_err(file_error("name", &live))?;
    fault::point("config_merged");
    Ok(MergeReport { kept_existing: false, files })
}

/// Returns the files of the live configuration of release `version` that wait for the admin: beside each lies the default that could not be
/// merged, until somebody removes it.
///
/// # Errors
/// A directory cannot be read.
pub fn unmerged(store: &Store, version: &Version) -> Result<Vec<Unmerged>, ConfigError> {
    let live = store.config_dir(version);
    let defaults = store.release_dir(version).join(DEFAULTS_DIR);
    let mut files = Vec::new();
    for new_default in tree::file_names(&live)? {
        let Some(path) = new_default.strip_suffix(NEW_SUFFIX) else { continue };
        let is_there = |dir: &Path, name: &str| dir.join(name).symlink_metadata().is_ok();
        // A release may bring a file of such a name itself.
        if is_there(&live, path) && is_there(&defaults, path) && !is_there(&defaults, &new_default) {
            files.push(Unmerged { path: path.to_owned(), new_default });
        }
    }
    Ok(files)
}

/// Returns the merged tree and what became of each file.
fn merge_trees(base: &Tree, ours: &Tree, theirs: &Tree) -> (Tree, Vec<MergedFile>) {
    let mut result = Tree { dirs: theirs.dirs.clone(), entries: Default::default() };
    result.dirs.extend(ours.dirs.iter().map(|(path, mode)| (path.clone(), *mode)));
    let mut paths: Vec<&String> = [base, ours, theirs].iter().flat_map(|tree| tree.entries.keys()).collect();
    paths.sort();
    paths.dedup();
    let (mut files, mut new_defaults) = (Vec::new(), Vec::new());
    for path in paths {
        let [base, ours, theirs] = [base, ours, theirs].map(|tree| tree.entries.get(path));
        let Some((outcome, entry)) = merge_entry(path, base, ours, theirs) else { continue };
        if let Some(entry) = entry {
            result.entries.insert(path.clone(), entry);
        }
        if let (Outcome::Conflict { new_default }, Some(theirs)) = (&outcome, theirs) {
            new_defaults.push((new_default.clone(), theirs.clone()));
        }
        files.push(MergedFile { path: path.clone(), outcome });
    }
    // Last, so that a default of this release replaces one that an earlier conflict left.
    result.entries.extend(new_defaults);
    (result, files)
}

/// Returns what becomes of one file, and what it is then; nothing where it is gone on all sides.
fn merge_entry(
    path: &str,
    base: Option<&Entry>,
    ours: Option<&Entry>,
    theirs: Option<&Entry>,
) -> Option<(Outcome, Option<Entry>)> {
    let same = |one: Option<&Entry>, other: Option<&Entry>| match (one, other) {
        (Some(one), Some(other)) => one.same_content(other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    let conflict = || Outcome::Conflict { new_default: format!("{path}{NEW_SUFFIX}") };
    let (admin_changed, release_changed) = (!same(base, ours), !same(base, theirs));
    Some(match (ours, theirs) {
        (None, None) => return None,
        (None, Some(theirs)) => match base {
            None => (Outcome::Added, Some(theirs.clone())),
            Some(_) if release_changed => (conflict(), None),
            Some(_) => (Outcome::KeptAdmin, None),
        },
        (Some(ours), None) => match base {
            Some(_) if !admin_changed => (Outcome::Removed, None),
            Some(_) | None => (Outcome::KeptAdmin, Some(ours.clone())),
        },
        (Some(ours), Some(theirs)) => {
            if ours.same_content(theirs) {
                (Outcome::Unchanged, Some(ours.clone()))
            } else if !admin_changed {
                (Outcome::Updated, Some(theirs.clone()))
            } else if !release_changed {
                (Outcome::KeptAdmin, Some(ours.clone()))
            } else {
                match base.and_then(|base| merge_text(base, ours, theirs)) {
                    Some(merged) => (Outcome::Merged, Some(merged)),
                    None => (conflict(), Some(ours.clone())),
                }
            }
        }
    })
}

/// Returns ours with the changes from base to theirs, if all are texts and the changes do not touch.
fn merge_text(base: &Entry, ours: &Entry, theirs: &Entry) -> Option<Entry> {
    let text = |entry: &Entry| match entry {
        Entry::File { bytes, .. } if bytes.len() <= MERGE_BYTES_MAX && !bytes.contains(&0) => {
            String::from_utf8(bytes.clone()).ok()
        }
        Entry::File { .. } | Entry::Link { .. } => None,
    };
    let merged = diffy::merge(&text(base)?, &text(ours)?, &text(theirs)?).ok()?;
    match ours {
        Entry::File { mode, owner, .. } => Some(Entry::File { bytes: merged.into_bytes(), mode: *mode, owner: *owner }),
        Entry::Link { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Entry {
        Entry::File { bytes: text.as_bytes().to_vec(), mode: 0o644, owner: None }
    }

    #[test]
    fn every_case_of_three_sides() {
        fn check(
            base: Option<&str>,
            ours: Option<&str>,
            theirs: Option<&str>,
            expected: Option<(Outcome, Option<&str>)>,
        ) {
            let [b, o, t] = [base, ours, theirs].map(|text| text.map(file));
            let found = merge_entry("a", b.as_ref(), o.as_ref(), t.as_ref());
            let expected = expected.map(|(outcome, text)| (outcome, text.map(file)));
            assert_eq!(found, expected, "base {base:?}, ours {ours:?}, theirs {theirs:?}");
        }
        let conflict = || Outcome::Conflict { new_default: "a.new".to_owned() };
        check(None, None, None, None);
        check(Some("1"), None, None, None);
        check(None, None, Some("1"), Some((Outcome::Added, Some("1"))));
        check(None, Some("1"), None, Some((Outcome::KeptAdmin, Some("1"))));
        check(None, Some("1"), Some("1"), Some((Outcome::Unchanged, Some("1"))));
        check(None, Some("1"), Some("2"), Some((conflict(), Some("1"))));
        check(Some("1"), None, Some("1"), Some((Outcome::KeptAdmin, None)));
        check(Some("1"), None, Some("2"), Some((conflict(), None)));
        check(Some("1"), Some("1"), None, Some((Outcome::Removed, None)));
        check(Some("1"), Some("2"), None, Some((Outcome::KeptAdmin, Some("2"))));
        check(Some("1"), Some("1"), Some("1"), Some((Outcome::Unchanged, Some("1"))));
        check(Some("1"), Some("1"), Some("2"), Some((Outcome::Updated, Some("2"))));
        check(Some("1"), Some("2"), Some("1"), Some((Outcome::KeptAdmin, Some("2"))));
        check(Some("1"), Some("2"), Some("2"), Some((Outcome::Unchanged, Some("2"))));
        check(Some("1"), Some("2"), Some("3"), Some((conflict(), Some("2"))));
        check(Some("1\0"), Some("2\0"), Some("3\0"), Some((conflict(), Some("2\0"))));
        let (base, ours, theirs) = ("a\nb\nc\nd\ne\n", "A\nb\nc\nd\ne\n", "a\nb\nc\nd\nE\n");
        check(Some(base), Some(ours), Some(theirs), Some((Outcome::Merged, Some("A\nb\nc\nd\nE\n"))));
    }
}
