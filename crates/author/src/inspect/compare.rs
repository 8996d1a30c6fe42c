//! What an update from one release to another changes, file by file, and what of the new package must be transferred for it.
//!
//! What an appliance has is found by content, as when it installs: a file that was renamed, or copied from another, needs
//! no byte of the payload.

use std::collections::{BTreeMap, HashMap, HashSet};

use refit_updater::digest::Digest;
use refit_updater::manifest::{Body, FileEntry, Kind, Manifest};
use semver::Version;
use serde::Serialize;

use super::Inspection;

/// What happens to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It has other content, or a link another target, or the one became the other.
    Changed,
    /// It has other permissions and nothing else.
    Mode,
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// The path; a directory's ends with a slash.
    pub path: String,
    /// What happens to it.
    pub change: Change,
    /// What it is for; nothing for a directory.
    pub kind: Option<Kind>,
    /// Bytes before; nothing where there was no regular file.
    pub old_bytes: Option<u64>,
    /// Bytes after; nothing where there is no regular file.
    pub new_bytes: Option<u64>,
    /// Bytes of the payload that are transferred for it.
    pub transfer_bytes: u64,
    /// The path in the old release that has its content already, if it is another one.
    pub from: Option<String>,
}

/// One of the two releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Its version.
    pub version: Version,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Files and links.
    pub files: u64,
    /// Bytes of its package.
    pub package_bytes: u64,
    /// Bytes of its files, unpacked.
    pub installed_bytes: u64,
}

/// The difference between two releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// What is installed.
    pub old: Side,
    /// What comes.
    pub new: Side,
    /// Every path that differs, in order.
    pub changes: Vec<FileChange>,
    /// Files and links that stay as they are.
    pub unchanged: u64,
    /// Bytes of the payload that the old release does not have.
    pub transfer_payload_bytes: u64,
    /// These, with everything in the package that is not payload.
    pub transfer_bytes: u64,
}

/// Compares two packages.
#[must_use]
pub fn compare(old: &Inspection, new: &Inspection) -> Comparison {
    let has = contents(&old.manifest);
    let before: BTreeMap<&str, &FileEntry> = by_path(&old.manifest);
    let after: BTreeMap<&str, &FileEntry> = by_path(&new.manifest);
    let mut changes = directories(&old.manifest, &new.manifest);
    let (mut unchanged, mut transferred) = (0, HashSet::new());
    let transfers = frames(&new.manifest);
    for (path, file) in &after {
        let was = before.get(path);
        let change = match was {
            None => Change::Added,
            Some(was) => match difference(was, file) {
                Some(change) => change,
                None => {
                    unchanged += 1;
                    continue;
                }
            },
        };
        let (mut transfer_bytes, mut from) = (0, None);
        if let Body::Regular { sha256, size, .. } = &file.body
            && *size > 0
        {
            match has.get(sha256) {
                Some(place) => from = (place != path).then(|| (*place).to_owned()),
                // A content is transferred once, for the first file that needs it.
                None if transferred.insert(*sha256) => {
                    transfer_bytes = transfers.get(sha256).copied().unwrap_or_default();
                }
                None => {}
            }
        }
        changes.push(FileChange {
            path: (*path).to_owned(),
            change,
            kind: Some(file.kind),
            old_bytes: was.and_then(|was| size(was)),
            new_bytes: size(file),
            transfer_bytes,
            from,
        });
    }
    for (path, file) in before.iter().filter(|(path, _)| !after.contains_key(*path)) {
        changes.push(FileChange {
            path: (*path).to_owned(),
            change: Change::Removed,
            kind: Some(file.kind),
            old_bytes: size(file),
            new_bytes: None,
            transfer_bytes: 0,
            from: None,
        });
    }
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    let transfer_payload_bytes = changes.iter().map(|change| change.transfer_bytes).sum();
    let other_bytes = new.package_bytes.saturating_sub(new.manifest.payload_bytes());
    Comparison {
        old: side(old),
        new: side(new),
        changes,
        unchanged,
        transfer_payload_bytes,
        transfer_bytes: transfer_payload_bytes + other_bytes,
    }
}

fn side(found: &Inspection) -> Side {
    Side {
        version: found.manifest.version().clone(),
        digest: found.digest,
        files: found.manifest.files().len() as u64,
        package_bytes: found.package_bytes,
        installed_bytes: found.manifest.installed_bytes(),
    }
}

fn size(file: &FileEntry) -> Option<u64> {
    match &file.body {
        Body::Regular { size, .. } => Some(*size),
        Body::Link { .. } => None,
    }
}

fn by_path(manifest: &Manifest) -> BTreeMap<&str, &FileEntry> {
    manifest.files().iter().map(|file| (file.path.as_str(), file)).collect()
}

/// Returns where each content lies first.
fn contents(manifest: &Manifest) -> HashMap<Digest, &str> {
    let mut found = HashMap::new();
    for file in manifest.files() {
        if let Body::Regular { sha256, .. } = &file.body {
            found.entry(*sha256).or_insert(file.path.as_str());
        }
    }
    found
}

/// Returns the stored bytes of each content.
fn frames(manifest: &Manifest) -> HashMap<Digest, u64> {
    manifest
        .contents()
        .into_iter()
        .map(|(digest, (_, frames))| (digest, frames.iter().map(|frame| frame.stored).sum()))
        .collect()
}

fn difference(was: &FileEntry, is: &FileEntry) -> Option<Change> {
    match (&was.body, &is.body) {
        (Body::Link { target: was }, Body::Link { target: is }) => (was != is).then_some(Change::Changed),
        (Body::Regular { mode, sha256, .. }, Body::Regular { mode: mode_is, sha256: sha256_is, .. }) => {
            if sha256 != sha256_is { Some(Change::Changed) } else { (mode != mode_is).then_some(Change::Mode) }
        }
        (Body::Link { .. }, Body::Regular { .. }) | (Body::Regular { .. }, Body::Link { .. }) => Some(Change::Changed),
    }
}

fn directories(old: &Manifest, new: &Manifest) -> Vec<FileChange> {
    let of = |manifest: &Manifest| -> BTreeMap<String, _> {
        manifest.directories().iter().map(|directory| (directory.path.clone(), directory.mode)).collect()
    };
    let (before, after) = (of(old), of(new));
    let mut changes = Vec::new();
    let mut add = |path: &str, change| {
        changes.push(FileChange {
            path: format!("{path}/"),
            change,
            kind: None,
            old_bytes: None,
            new_bytes: None,
            transfer_bytes: 0,
            from: None,
        });
    };
    for (path, mode) in &after {
        match before.get(path) {
            None => add(path, Change::Added),
            Some(was) if was != mode => add(path, Change::Mode),
            Some(_) => {}
        }
    }
    before.keys().filter(|path| !after.contains_key(*path)).for_each(|path| add(path, Change::Removed));
    changes
}
