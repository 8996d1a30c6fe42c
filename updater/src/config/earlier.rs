//! Going back and forward again: what the admin made of a release's configuration when it ran before.
//!
//! Each merge records what it made of the configuration that it came from, without what it then brings back: so an edit can be told from
//! what an update carried over, however often the way leads back and forward. The record may be lost: then everything that differs from the release's default counts as an edit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::merge::{Merged, merge_trees};
use super::scan::HASHED_BYTES_MAX;
use super::tree::{Attributes, Entry, Kind, Side, Tree};
use super::{ConfigError, EARLIER_SUFFIX, MergedFile, Outcome, RECORD_BYTES_MAX, rights, whole};
use crate::digest::Digest;
use crate::durable;
use crate::modes::{PRIVATE_DIR, PRIVATE_FILE};

/// What a merge made.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// What files and links hold: a text that differs when the content does.
    pub(super) contents: BTreeMap<PathBuf, String>,
    /// What belongs to each entry besides, as [`rights`] has it. A record of an older program has none.
    pub(super) rights: BTreeMap<PathBuf, String>,
}

/// What stands before a path, which has none itself, where the record says its rights: an older program passes over such names.
const RIGHTS_OF: char = '/';

/// Returns the record of the configuration `tree`.
pub(super) fn record(tree: &Tree) -> Record {
    let contents = tree.entries.iter().filter_map(|(path, entry)| Some((path.clone(), content_of(entry)?))).collect();
    Record { contents, rights: rights::of(tree) }
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
    let named =
        |(path, text): (&PathBuf, &String), prefix: &str| Some((format!("{prefix}{}", path.to_str()?), text.clone()));
    let contents = record.contents.iter().filter_map(|entry| named(entry, ""));
    let rights = record.rights.iter().filter_map(|entry| named(entry, &RIGHTS_OF.to_string()));
    let named: BTreeMap<String, String> = contents.chain(rights).collect();
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
    let named: BTreeMap<String, String> = serde_json::from_slice(&bytes).unwrap_or_default();
    let mut record = Record::default();
    for (name, text) in named {
        match name.strip_prefix(RIGHTS_OF) {
            Some(path) => record.rights.insert(path.into(), text),
            None => record.contents.insert(name.into(), text),
        };
    }
    record
}

/// Brings what was edited in the configuration at `live`, which is about to be replaced, into `merged`, which is to replace it; the release
/// has the defaults `defaults`.
///
/// # Errors
/// The configuration cannot be read: nothing was changed.
pub(super) fn bring_back(live: &Path, record: &Path, defaults: &Tree, merged: &mut Merged) -> Result<(), ConfigError> {
    let mut before = whole(live, Side::Live)?;
    let record = load_record(record);
    let now = self::record(&before).contents;
    let is_as_merged = |path: &Path| record.contents.get(path).is_some_and(|content| now.get(path) == Some(content));
    let mut base = defaults.clone();
    let mut made = BTreeMap::new();
    for (path, entry) in &before.entries {
        let attributes = made_of(&record, defaults, &merged.tree, path, entry);
        made.insert(path.clone(), attributes.clone());
        let is_kept_dir = || entry.is_dir() && merged.tree.entries.get(path).is_some_and(Entry::is_dir);
        if is_as_merged(path) || is_kept_dir() {
            base.entries.insert(path.clone(), Entry { kind: entry.kind.clone(), attributes });
        } else if let Some(default) = base.entries.get_mut(path).filter(|default| default.is_dir() == entry.is_dir()) {
            default.attributes = attributes;
        }
    }
    // What the merge had made and is not there any more was removed by the admin.
    for (path, entry) in &merged.tree.entries {
        let is_still = || record.contents.get(path).is_some_and(|content| content_of(entry).as_ref() == Some(content));
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
    let mut again = merge_trees(&base, &merged.tree, &before, EARLIER_SUFFIX);
    let with_rights = keep_rights(&before, &made, &merged.tree, &mut again);
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
    for MergedFile { path, outcome } in with_rights {
        let is_said = matches!(files.get(&path), Some(Outcome::Conflict { .. } | Outcome::Beside { .. }));
        if !is_said || matches!(outcome, Outcome::Beside { .. }) {
            files.insert(path, outcome);
        }
    }
    merged.files = files.into_iter().map(|(path, outcome)| MergedFile { path, outcome }).chain(lost).collect();
    merged.tree = again.tree;
    Ok(())
}

/// Returns what belonged to the entry at `path`, which is `entry` by now, when it was made. Where the record does not say that, it is taken to
/// be what Refit gives by itself.
fn made_of(record: &Record, defaults: &Tree, merged: &Tree, path: &Path, entry: &Entry) -> Attributes {
    if let Some(made) = record.rights.get(path).and_then(|text| rights::parse(text)) {
        return made;
    }
    let alike =
        |tree: &Tree| Some(tree.entries.get(path).filter(|found| found.is_dir() == entry.is_dir())?.attributes.mode);
    let mode = alike(defaults).or_else(|| alike(merged)).unwrap_or(entry.attributes.mode);
    Attributes { mode, owner: Some(rights::own()), ..Attributes::default() }
}

/// Sees to it that no edit of a mode, an owner or an attribute in `before` is lost: it is in `again`, which is made of `merged`, or the entry
/// lies beside with all that it had. `made` says what each entry had before it was edited. Returns what is to be said.
fn keep_rights(
    before: &Tree,
    made: &BTreeMap<PathBuf, Attributes>,
    merged: &Tree,
    again: &mut Merged,
) -> Vec<MergedFile> {
    let beside: Vec<PathBuf> = again
        .files
        .iter()
        .filter(|file| matches!(file.outcome, Outcome::Conflict { .. }))
        .map(|file| PathBuf::from(&file.path))
        .collect();
    let mut said = Vec::new();
    for (path, entry) in &before.entries {
        if beside.iter().any(|whole| path.starts_with(whole)) {
            continue;
        }
        let name = path.display().to_string();
        let now = again.tree.entries.get(path).filter(|now| now.is_dir() == entry.is_dir());
        let is_kept =
            made.get(path).is_none_or(|made| has_edits(now.map(|now| &now.attributes), made, &entry.attributes));
        if is_kept {
            let was = merged.entries.get(path).map(|was| &was.attributes);
            let has_changed = |now: &Entry| was.is_some_and(|was| !was.same_rights(&now.attributes));
            if now.is_some_and(has_changed) {
                said.push(MergedFile { path: name, outcome: Outcome::Restored });
            }
        } else if let Some(earlier) = put_beside(path, entry, before, &mut again.tree) {
            said.push(MergedFile { path: name, outcome: Outcome::Beside { earlier } });
        }
    }
    said
}

/// Whether what was changed from `made` to `edited` is so in `now`.
fn has_edits(now: Option<&Attributes>, made: &Attributes, edited: &Attributes) -> bool {
    let names: BTreeSet<_> = made.extended.keys().chain(edited.extended.keys()).collect();
    let mut changed = names.into_iter().filter(|name| made.extended.get(*name) != edited.extended.get(*name));
    let Some(now) = now else {
        return made.mode == edited.mode && made.owner == edited.owner && changed.next().is_none();
    };
    (made.mode == edited.mode || now.mode == edited.mode)
        && (made.owner == edited.owner || now.owner == edited.owner)
        && changed.all(|name| now.extended.get(name) == edited.extended.get(name))
}

/// Puts `entry`, which `before` has at `path`, beside that path in `tree`, a directory without what lies in it. Returns its name; `None` where
/// the directory that it was in is something else now, which lies beside as a whole.
fn put_beside(path: &Path, entry: &Entry, before: &Tree, tree: &mut Tree) -> Option<String> {
    let above: Vec<&Path> = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).collect();
    if above.iter().any(|above| tree.entries.get(*above).is_some_and(|found| !found.is_dir())) {
        return None;
    }
    for above in above.into_iter().rev() {
        if let Some(dir) = before.entries.get(above) {
            tree.entries.entry(above.to_owned()).or_insert_with(|| dir.clone());
        }
    }
    let named = |number: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(EARLIER_SUFFIX);
        if number > 0 {
            name.push(format!(".{number}"));
        }
        PathBuf::from(name)
    };
    let is_free = |name: &PathBuf| ![&*tree, before].iter().any(|tree| tree.entries.contains_key(name));
    let name = (0..).map(named).find(is_free)?;
    tree.entries.insert(name.clone(), entry.clone());
    Some(name.display().to_string())
}
