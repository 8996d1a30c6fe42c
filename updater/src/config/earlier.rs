//! Going back and forward again: what the admin made of a release's configuration when it ran before.
//!
//! Each merge records what it made of the configuration that it came from, without what it then brings back: so an edit can be told from
//! what an update carried over, however often the way leads back and forward. The record may be lost: then everything that differs from the release's default counts as an edit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::merge::{Merged, merge_trees};
use super::scan::HASHED_BYTES_MAX;
use super::tree::{Entry, Kind, Side, Tree};
use super::{ConfigError, EARLIER_SUFFIX, MergedFile, Outcome, RECORD_BYTES_MAX, whole};
use crate::digest::Digest;
use crate::durable;
use crate::modes::{PRIVATE_DIR, PRIVATE_FILE};

/// What a merge made, by path: a text that differs when the content does.
pub(super) type Record = BTreeMap<PathBuf, String>;

/// Returns the record of the configuration `tree`.
pub(super) fn record(tree: &Tree) -> Record {
    tree.entries.iter().filter_map(|(path, entry)| Some((path.clone(), content_of(entry)?))).collect()
}

/// Returns what a file or link holds, as a record has it.
fn content_of(entry: &Entry) -> Option<String> {
    match &entry.kind {
        Kind::File(content) if content.len() <= HASHED_BYTES_MAX => {
            Some(Digest::of_reader(content.open().ok()?).ok()?.0.to_string())
        }
        Kind::File(content) => Some(format!("{} bytes of {:?}", content.len(), entry.attributes.modified)),
        Kind::Link(target) => Some(format!("link {}", target.display())),
        Kind::Directory | Kind::Opaque(_) => None,
    }
}

/// Writes a record. One that cannot be written costs precision and nothing else.
pub(super) fn store_record(path: &Path, record: &Record) {
    let named: BTreeMap<&str, &String> =
        record.iter().filter_map(|(path, content)| path.to_str().map(|path| (path, content))).collect();
    let written = serde_json::to_vec(&named).map_err(std::io::Error::from).and_then(|bytes| {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Ok(());
        };
        durable::create_dirs(dir, PRIVATE_DIR)?;
        durable::replace_with_mode(dir, name, &bytes, PRIVATE_FILE)
    });
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "cannot record how the configuration was merged");
    }
}

pub(super) fn load_record(path: &Path) -> Record {
    let bytes = durable::read_limited(path, RECORD_BYTES_MAX).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Brings what was edited in the configuration at `live`, which is about to be replaced, into `merged`, which is to replace it; the release
/// has the defaults `defaults`.
///
/// # Errors
/// The configuration cannot be read: nothing was changed.
pub(super) fn bring_back(live: &Path, record: &Path, defaults: &Tree, merged: &mut Merged) -> Result<(), ConfigError> {
    let mut before = whole(live, Side::Live)?;
    let record = load_record(record);
    let now: Record = self::record(&before);
    let is_as_merged = |path: &Path| record.get(path).is_some_and(|content| now.get(path) == Some(content));
    let mut base = defaults.clone();
    for (path, entry) in &before.entries {
        if is_as_merged(path) {
            base.entries.insert(path.clone(), entry.clone());
        }
    }
    // What the merge had made and is not there any more was removed by the admin.
    for (path, entry) in &merged.tree.entries {
        let is_still = || record.get(path).is_some_and(|content| content_of(entry).as_ref() == Some(content));
        if !before.entries.contains_key(path) && is_still() {
            base.entries.insert(path.clone(), entry.clone());
        }
    }
    let mut lost: Vec<MergedFile> = before.unread.drain(..).map(MergedFile::lost).collect();
    before.entries.retain(|path, entry: &mut Entry| match &entry.kind {
        Kind::Opaque(why) => {
            let outcome = Outcome::NotCarried { why: why.clone() };
            lost.push(MergedFile { path: path.display().to_string(), outcome });
            false
        }
        Kind::Directory | Kind::File(_) | Kind::Link(_) => true,
    });
    let again = merge_trees(&base, &merged.tree, &before, EARLIER_SUFFIX);
    let mut files: BTreeMap<String, Outcome> = merged.files.drain(..).map(|file| (file.path, file.outcome)).collect();
    for MergedFile { path, outcome } in again.files {
        match outcome {
            Outcome::Unchanged | Outcome::KeptAdmin | Outcome::NotCarried { .. } => {}
            Outcome::Updated | Outcome::Merged | Outcome::Added | Outcome::Removed | Outcome::Restored => {
                // That the release's default waits beside it is still to be said.
                let said = files.entry(path).or_insert(Outcome::Restored);
                if !matches!(said, Outcome::Conflict { .. }) {
                    *said = Outcome::Restored;
                }
            }
            Outcome::Conflict { new_default: earlier, .. } | Outcome::Beside { earlier } => {
                files.insert(path, Outcome::Beside { earlier });
            }
        }
    }
    merged.files = files.into_iter().map(|(path, outcome)| MergedFile { path, outcome }).chain(lost).collect();
    merged.tree = again.tree;
    Ok(())
}
