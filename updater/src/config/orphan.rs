//! Configurations whose release is gone: a removal, or an update, was cut short. What nobody edited goes, what holds an edit stays.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use semver::Version;

use super::earlier::{self, Record};
use super::tree::{Kind, Side};
use super::whole;
use crate::durable;
use crate::release::{Store, StoreError};

/// What became of the configurations without a release.
#[derive(Debug, Default)]
pub struct Orphans {
    /// Those that were removed.
    pub removed: Vec<Version>,
    /// Those that hold an edit, or may: they stay.
    pub edited: Vec<PathBuf>,
    /// Those that could not be removed.
    pub failures: Vec<StoreError>,
}

/// Removes the configurations of releases that are neither on the disk of `store` nor among `needed`, unless an admin may have edited them;
/// `current` is the release that runs.
///
/// An edit shows in what was recorded when the configuration was made. Where the record is lost, only what the running release's
/// configuration has, too, is known not to be lost with it.
///
/// # Errors
/// It cannot be listed which releases or configurations there are: nothing was changed.
pub fn remove_orphans(store: &Store, current: &Version, needed: &[Version]) -> Result<Orphans, StoreError> {
    let there: BTreeSet<Version> = store.versions()?.into_iter().chain(needed.iter().cloned()).collect();
    let mut orphans = Orphans::default();
    // A disk that is not mounted has no releases at all.
    if !there.contains(current) {
        return Ok(orphans);
    }
    let running = whole(&store.config_dir(current), Side::Live).map(|tree| earlier::record(&tree)).unwrap_or_default();
    for version in versions_in(&store.configs_dir()).difference(&there) {
        let (dir, record) = (store.config_dir(version), store.config_record(version));
        if is_edited(&dir, &record, &running) {
            orphans.edited.push(dir);
            continue;
        }
        match store.discard(&dir) {
            Ok(()) => orphans.removed.push(version.clone()),
            Err(error) => orphans.failures.push(error),
        }
    }
    for version in versions_in(&store.merged_dir()).difference(&there) {
        if fs::symlink_metadata(store.config_dir(version)).is_err() {
            drop(durable::remove_tree(&store.config_record(version))); // digests that the next start may remove as well
        }
    }
    Ok(orphans)
}

/// Returns the versions that entries of `dir` are named by; none of a directory that is missing.
fn versions_in(dir: &Path) -> BTreeSet<Version> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Version::parse(entry.file_name().to_str()?).ok()).collect()
}

/// Returns whether the configuration at `dir` may hold what an admin has made: anything that is not as `record` says, and not in
/// `running` either.
fn is_edited(dir: &Path, record: &Path, running: &Record) -> bool {
    if !fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir()) {
        return true; // Refit makes directories
    }
    let Ok(tree) = whole(dir, Side::Live) else { return true };
    let is_plain = |kind: &Kind| match kind {
        Kind::Directory | Kind::File(_) | Kind::Link(_) => true,
        Kind::Opaque(_) => false,
    };
    if !tree.unread.is_empty() || !tree.entries.values().all(|entry| is_plain(&entry.kind)) {
        return true;
    }
    let (recorded, now) = (earlier::load_record(record), earlier::record(&tree));
    // A record of an older program does not say the rights: only those that the running release's configuration has are known.
    let has_own_rights = now
        .rights
        .iter()
        .any(|(path, rights)| recorded.rights.get(path) != Some(rights) && running.rights.get(path) != Some(rights));
    let (recorded, running, now) = (recorded.contents, &running.contents, now.contents);
    let contents = tree.entries.values().filter(|entry| !entry.is_dir()).count();
    let is_as_made =
        now.iter().all(|(path, content)| recorded.get(path) == Some(content) || running.get(path) == Some(content));
    let is_whole = recorded.keys().all(|path| now.contains_key(path));
    contents != now.len() || !is_as_made || !is_whole || has_own_rights
}
