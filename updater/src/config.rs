//! The live configuration of a release: its defaults, merged three-way with what the admin made of the last one's.
//!
//! Base is the default that the running release came with, ours what the admin made of it, theirs the default of the new
//! release. The result is built beside, synced, and gets its name in one step; the configuration of every other release
//! stays as it is, so a rollback finds its own. An admin's work is never lost: where both sides changed the same, the
//! admin's stays and the new default lies beside it as `NAME.new`. What was edited when the new release ran before comes back, or lies
//! beside as `NAME.old`.

mod earlier;
mod merge;
mod orphan;
mod rights;
mod scan;
mod tree;

use std::path::{Path, PathBuf};

use refit_base::{Exit, FileError, Report, Reported, file_error};
use semver::Version;
use serde::Serialize;

use crate::durable;
use crate::fault;
use crate::release::Store;
use merge::{merge_trees, same_at};
use scan::Scan;
use tree::{Side, Tree};

pub use orphan::{Orphans, remove_orphans};
pub use scan::{ENTRIES_MAX, HASHED_BYTES_MAX, HASHED_BYTES_TOTAL_MAX, Live, LiveFile, Unread, unread, unread_live};

/// What is added to the name of a default that could not be merged.
const NEW_SUFFIX: &str = ".new";
/// The directory of a release that holds its defaults.
const DEFAULTS_DIR: &str = "config";
/// What is added to the name of what the admin made of a release when it ran before.
const EARLIER_SUFFIX: &str = ".old";
/// The longest record: a digest for each of [`ENTRIES_MAX`] entries.
const RECORD_BYTES_MAX: u64 = 64 << 20;

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
        self.files.iter().filter(|file| match file.outcome {
            Outcome::Conflict { .. } | Outcome::NotCarried { .. } | Outcome::Beside { .. } => true,
            Outcome::Unchanged
            | Outcome::Updated
            | Outcome::KeptAdmin
            | Outcome::Merged
            | Outcome::Added
            | Outcome::Removed
            | Outcome::Restored => false,
        })
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

impl MergedFile {
    fn lost(Unread { path, why }: Unread) -> Self {
        Self { path, outcome: Outcome::NotCarried { why } }
    }
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
    /// Both changed the same: the admin's stayed.
    Conflict {
        /// Where the new default lies, below the configuration.
        new_default: String,
        /// Why they do not go together.
        because: Clash,
    },
    /// The admin's could not be carried over, and stays where it was; the release has no default for it.
    NotCarried {
        /// Why, as a clause.
        why: String,
    },
    /// What the admin made of it when this release ran before is in it again.
    Restored,
    /// What the admin made of it when this release ran before does not go together with what was made since: it lies beside.
    Beside {
        /// Where, below the configuration.
        earlier: String,
    },
    /// The new release brought it.
    Added,
    /// The new release has it no longer, and the admin had not touched it.
    Removed,
}

/// Why an admin's entry and a release's default do not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clash {
    /// The same lines were changed, or what has no lines.
    Lines,
    /// One is a file and the other a directory, or the like.
    Kind,
    /// The admin removed what the release changed.
    Removed,
    /// The admin's cannot be read, or is no file, directory or link.
    Unread,
}

/// A file of a live configuration that waits for the admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unmerged {
    /// Path below the configuration.
    pub path: String,
    /// Where the new default lies, below the configuration.
    pub new_default: String,
    /// Why the two do not go together.
    pub because: Clash,
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
    /// More entries than are merged.
    #[error("{} has more than {ENTRIES_MAX} entries", path.display())]
    TooMany {
        /// The configuration.
        path: PathBuf,
    },
}

impl Reported for ConfigError {
    fn report(&self) -> Report<'_> {
        let remedy = match self {
            Self::File(_) => "free space or check the disk and the permissions of the configuration, then try again",
            Self::TooMany { .. } => "move what is not configuration out of it, then try again",
        };
        Report::new("configuration_not_merged", Exit::Config, remedy)
    }
}

/// Makes the live configuration of release `to`: from its defaults, the admin's edits of the one of `from`, and those that were made
/// when `to` ran before. What cannot be read is reported, and stays where it was.
///
/// # Errors
/// A file operation failed, or a configuration as a whole cannot be read. Whatever configuration release `to` had, it still has, but
/// for a failure in the very last step, after which it has none.
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
    let defaults = |version: &Version| Tree::read(&store.release_dir(version).join(DEFAULTS_DIR), Side::Defaults);
    let theirs = defaults(to)?;
    if let Some((path, why)) = theirs.first_opaque() {
        let path = store.release_dir(to).join(DEFAULTS_DIR).join(path);
        return Err(file_error("read", &path)(std::io::Error::other(why)).into());
    }
    let (base, ours) = match from {
        Some(from) if store.config_dir(from).is_dir() => (defaults(from)?, whole(&store.config_dir(from), Side::Live)?),
        Some(_) | None => (Tree::default(), Tree { top: theirs.top.clone(), ..Tree::default() }),
    };
    let mut merged = merge_trees(&base, &ours, &theirs, NEW_SUFFIX);
    let unread = ours.unread.iter();
    let lost = unread.map(|unread| MergedFile::lost(unread.clone())).collect::<Vec<_>>();
    merged.files.extend(lost);
    rights::settle_owners(&mut merged.tree);
    let record = earlier::record(&merged.tree);
    if exists && live.is_dir() {
        earlier::bring_back(&live, &store.config_record(to), &theirs, &mut merged)?;
    }
    let staging = store.config_staging()?;
    let beside = tempfile::Builder::new()
        .prefix("config-")
        .tempdir_in(&staging)
        .map_err(file_error("make a directory in", &staging))?;
    let new = beside.path().join("new");
    let file_system = durable::FileSystem::of(&staging).map_err(file_error("open", &staging))?;
    merged.files.extend(merged.tree.write(&new)?.into_iter().map(MergedFile::lost));
    file_system.sync().map_err(file_error("sync", &new))?;
    if exists {
        durable::rename(&live, &beside.path().join("old")).map_err(file_error("move away", &live))?;
    }
    durable::rename(&new, &live).map_err(file_error("name", &live))?;
    fault::point("config_merged");
    earlier::store_record(&store.config_record(to), &record);
    // What it cannot remove now, the next start removes from staging.
    drop(durable::remove_tree(beside.path()));
    Ok(MergeReport { kept_existing: false, files: merged.files })
}

/// Returns the tree at `dir`, of which nothing may be passed over for its size.
fn whole(dir: &Path, side: Side) -> Result<Tree, ConfigError> {
    let tree = Tree::read(dir, side)?;
    if tree.entries.len() >= ENTRIES_MAX {
        return Err(ConfigError::TooMany { path: dir.to_owned() });
    }
    Ok(tree)
}

/// Returns the files of the live configuration of release `version` that wait for the admin: beside each lies the default that could not be
/// merged, until somebody removes or changes that, or takes it over.
#[must_use]
pub fn unmerged(store: &Store, version: &Version) -> Vec<Unmerged> {
    let live = store.config_dir(version);
    let defaults = store.release_dir(version).join(DEFAULTS_DIR);
    let looks = |dir: &Path, name: &str| dir.join(name).symlink_metadata().ok().map(|found| found.file_type());
    let mut files = Vec::new();
    // A name that is not UTF-8 is not one that an update gave.
    for new_default in Scan::read(&live).found.keys().filter_map(|path| path.to_str()) {
        let Some(path) = merged_name(new_default) else { continue };
        // A release may bring a file of such a name itself.
        if looks(&defaults, new_default).is_some() {
            continue;
        }
        let Some(default) = looks(&defaults, path) else { continue };
        let because = match looks(&live, path) {
            None => Clash::Removed,
            Some(found) if found != default => Clash::Kind,
            Some(_) => Clash::Lines,
        };
        files.push(Unmerged { path: path.to_owned(), new_default: new_default.to_owned(), because });
    }
    if !files.is_empty()
        && let (Ok(live), Ok(defaults)) = (Tree::read(&live, Side::Live), Tree::read(&defaults, Side::Defaults))
    {
        let is_default = |at: &str, path: &str| same_at(&live, Path::new(at), &defaults, Path::new(path));
        files.retain(|file| is_default(&file.new_default, &file.path) && !is_default(&file.path, &file.path));
    }
    files
}

/// Returns the name of the file beside which `new_default` was put, if that is the name of a default.
fn merged_name(new_default: &str) -> Option<&str> {
    if let Some(path) = new_default.strip_suffix(NEW_SUFFIX) {
        return Some(path);
    }
    let (first, number) = new_default.rsplit_once('.')?;
    number.parse::<u32>().ok()?;
    first.strip_suffix(NEW_SUFFIX)
}
