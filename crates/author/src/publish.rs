//! Writing a repository, [`Repository::init`], [`Repository::add`], [`Repository::refresh`]; and looking at one without
//! keys, [`contents`], [`check`].
//!
//! Files are written so that a web server may serve the directory at any moment: names carry versions and digests, and what
//! leads to them is replaced last, `timestamp.json` as the very last. The metadata that is there is verified before anything is
//! signed anew: whoever can write to the directory cannot have the vendor sign what they put there, not even with a key
//! that was retired. What was signed is verified, too, as appliances will, before the first byte of it is written. Of a
//! package every byte is read once: what was checked is what is written and signed.
//!
//! A file gets its name when it is whole. Until then it is called by [`TEMP_PREFIX`], and who opens the repository next, which
//! nobody can while another has it open, removes what somebody left who was killed.

mod check;
mod current;
mod error;
mod metadata;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use refit_base::file_error;
use refit_tuf::document::{Document, RootDocument, SnapshotContent, TargetsContent};
use refit_tuf::{METADATA_BYTES_MAX, Target};
use refit_updater::digest::Digest;
use refit_updater::durable;
use refit_updater::manifest::MANIFEST_BYTES_MAX;
use refit_updater::modes::{OPEN_DIR, PRIVATE_DIR};
use refit_updater::package::METADATA_DIR;
use refit_updater::receive::{PayloadError, check_payload};
use refit_updater::repository::{Listed, Offer, TARGETS_DIR, payload_path};
use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;
use tough::schema::RoleType;

use crate::inspect::{InspectError, Signed as SignedPackage, open_signed};
use crate::keys::{Keys, KeysError, PublishedError, metadata as signed_part};
use check::payload_problem;

pub use check::{CheckProgress, Checked, FileProblem, Problem, check};
pub use current::contents;
pub use error::RepositoryError;

/// Bytes of the list of releases, `targets.json`: what appliances and `refit repo` itself read. Some 3,000 releases.
pub const LIST_BYTES_MAX: u64 = METADATA_BYTES_MAX;
/// What begins the name of a file or directory in a repository that is not whole yet. Nobody serves it.
pub const TEMP_PREFIX: &str = ".publishing-";
/// Held while the directory is changed.
const LOCK_NAME: &str = ".lock";
/// There while a repository is made, until its first timestamp is: without one it was never seen by anybody.
const INIT_NAME: &str = ".init";
/// A repository is for everybody to read.
const FILE_MODE: u32 = 0o644;
/// Targets and snapshot are signed anew by a refresh when they are good for less than this.
const RENEW_DAYS: i64 = 30;

/// How long what is signed is good.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The time.
    pub now: Timestamp,
    /// When targets and snapshot expire.
    pub expires: Timestamp,
    /// When the timestamp expires: how long an appliance can be kept from seeing that there is something newer.
    pub timestamp_expires: Timestamp,
}

/// A repository that is being written.
#[derive(Debug)]
pub struct Repository {
    dir: PathBuf,
    /// Digest of a timestamp that somebody vouches for, although retired keys signed it.
    accepted: Option<Digest>,
    not_remembered: Option<PublishedError>,
    /// Held as long as this value lives.
    _lock: File,
}

/// What is in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// The releases, oldest first.
    pub releases: Vec<Listed>,
    /// Versions of root, timestamp, snapshot and targets.
    pub versions: [u64; 4],
    /// When the timestamp expires.
    pub timestamp_expires: Timestamp,
    /// Bytes of the list of releases, of which there may be [`LIST_BYTES_MAX`].
    pub list_bytes: u64,
}

/// What the repository had of a release that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing: it is new.
    Added,
    /// It was listed, and a file of it was missing or was another: that is as it was signed again.
    Restored,
    /// Everything.
    Present,
}

/// A release that was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Addition {
    /// What the signed metadata says of it.
    #[serde(flatten)]
    pub offer: Offer,
    /// The digest of its manifest.
    pub digest: Digest,
    /// What there was of it.
    pub outcome: Outcome,
}

/// Why a payload was not taken over.
enum Copying {
    Package(PayloadError),
    Write(io::Error),
}

impl From<PayloadError> for Copying {
    fn from(error: PayloadError) -> Self {
        Self::Package(error)
    }
}

impl Repository {
    /// Makes an empty repository in `dir`, or goes on with one that was begun and never had a timestamp.
    ///
    /// # Errors
    /// There is one already, or what is left of one; the keys cannot sign, or a file operation failed.
    pub fn init(dir: &Path, keys: &Keys, terms: &Terms) -> Result<Self, RepositoryError> {
        for dir in [dir.to_owned(), dir.join(METADATA_DIR), dir.join(TARGETS_DIR)] {
            durable::create_dirs(&dir, OPEN_DIR).map_err(file_error("make", &dir))?;
        }
        let mut repository = Self::locked(dir)?;
        if repository.metadata_path("timestamp.json").exists() {
            return Err(RepositoryError::Exists { dir: dir.to_owned() });
        }
        if !is_fresh(dir)? {
            return Err(RepositoryError::Lost { dir: dir.to_owned() });
        }
        let signed = repository.sign_first(keys, terms)?;
        replace(&dir.join(INIT_NAME), b"")?;
        repository.write(keys, &signed)?;
        repository.remove_marker()?;
        Ok(repository)
    }

    /// Opens the repository in `dir`, keeps others from changing it, and removes what those left who did not come to an end.
    ///
    /// # Errors
    /// There is none, or it has lost its timestamp.
    pub fn open(dir: &Path) -> Result<Self, RepositoryError> {
        if !dir.join(METADATA_DIR).join("timestamp.json").is_file() {
            let dir = dir.to_owned();
            return Err(if is_fresh(&dir)? { RepositoryError::None { dir } } else { RepositoryError::Lost { dir } });
        }
        let repository = Self::locked(dir)?;
        repository.remove_marker()?;
        Ok(repository)
    }

    fn locked(dir: &Path) -> Result<Self, RepositoryError> {
        let lock = lock(dir)?;
        // What cannot be removed is in nobody's way: where that matters, the next write fails, too, and says why.
        drop(remove_leftovers(dir, false));
        for dir in [METADATA_DIR, TARGETS_DIR].map(|name| dir.join(name)) {
            drop(remove_leftovers(&dir, true));
        }
        Ok(Self { dir: dir.to_owned(), accepted: None, not_remembered: None, _lock: lock })
    }

    /// Whatever is missing from now on was there.
    fn remove_marker(&self) -> Result<(), RepositoryError> {
        let marker = self.dir.join(INIT_NAME);
        Ok(durable::remove_file(&marker).map_err(file_error("remove", &marker))?)
    }

    /// Makes a directory in the repository for what only goes through it: it is removed with the value, or by whoever opens
    /// the repository next.
    ///
    /// # Errors
    /// A file operation failed.
    pub fn scratch(&self) -> Result<TempDir, RepositoryError> {
        let private = Permissions::from_mode(PRIVATE_DIR);
        Ok(temp().permissions(private).tempdir_in(&self.dir).map_err(file_error("make a directory in", &self.dir))?)
    }

    /// Checks, as far as it can be told without signing, that these keys may write to it: that its metadata is theirs, and that
    /// they are not an older copy.
    ///
    /// # Errors
    /// They may not.
    pub fn check_keys(&self, keys: &Keys) -> Result<(), RepositoryError> {
        self.current_for(keys).map(drop)
    }

    /// Returns what is in it.
    ///
    /// # Errors
    /// Its metadata is not what `keys` signed.
    pub fn contents(&self, keys: &Keys) -> Result<Contents, RepositoryError> {
        Ok(self.current(keys)?.contents())
    }

    /// Returns why what was published last through this value is not remembered beside the keys, if that is so: after the
    /// next rotation somebody will have to vouch for it.
    #[must_use]
    pub fn not_remembered(&self) -> Option<&PublishedError> {
        self.not_remembered.as_ref()
    }

    /// Adds the release of a package, after every byte of it was checked. Of one that is listed already, files that are
    /// missing or are others are written again.
    ///
    /// # Errors
    /// The package is not in order or not signed by the same vendor, another release has its name, the list of releases is
    /// full, the keys cannot sign or are an older copy, or a file operation failed: the repository offers what it offered
    /// before.
    pub fn add(&mut self, package: &Path, keys: &Keys, terms: &Terms) -> Result<Addition, RepositoryError> {
        let current = self.current_for(keys)?;
        let refused = |source: InspectError| RepositoryError::Package {
            path: package.to_owned(),
            source: Box::new(source.in_file(package)),
        };
        // The newest root: what keys signed that were retired since is packed again, or not published.
        let found = open_signed(package, keys.root()).map_err(refused)?;
        let SignedPackage { bytes, manifest, released, payload, .. } = found;
        if let Some(hook) = manifest.hook() {
            return Err(RepositoryError::Hooks { path: package.to_owned(), hook: hook.to_owned() });
        }
        let offer = Offer {
            appliance: manifest.appliance().to_owned(),
            version: manifest.version().clone(),
            arch: manifest.arch().to_owned(),
            released,
            requires: manifest.requires().cloned(),
            payload_bytes: manifest.payload_bytes(),
            installed_bytes: manifest.installed_bytes(),
        };
        let (name, digest) = (offer.target_name(), Digest::of(&bytes));
        let target = signed_part::target(&bytes, json!(offer));
        let typed: Target = serde_json::from_value(target.clone())
            .map_err(|source| KeysError::Encode { role: RoleType::Targets, source: Box::new(source) })?;
        let listed = current.targets.content.targets.get(&name);
        if listed.is_some_and(|taken| taken.hashes != typed.hashes) {
            return Err(RepositoryError::Taken { name });
        }
        let path = |found: Option<String>| self.dir.join(found.unwrap_or_else(|| name.clone()));
        let payload_path = path(payload_path(&name, &typed));
        let manifest_path = path(typed.consistent_path(&name).map(|path| format!("{TARGETS_DIR}{path}")));
        let dir = payload_path.parent().unwrap_or(&self.dir);
        let is_whole = || {
            durable::read_limited(&manifest_path, MANIFEST_BYTES_MAX).is_ok_and(|found| found == bytes)
                && payload_problem(&payload_path, &manifest, &mut |_bytes| {}).is_none()
        };
        if listed.is_some() && is_whole() {
            check_payload(payload, &manifest, |_stored| Ok(())).map_err(refused)?;
            return Ok(Addition { offer, digest, outcome: Outcome::Present });
        }

        // Until it is found to be in order it lies in what there is of its directory: a refusal leaves nothing.
        let place = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(&self.dir);
        let mut temp = temp().tempfile_in(place).map_err(file_error("make a file in", place))?;
        let copied = check_payload(payload, &manifest, |stored| temp.write_all(stored).map_err(Copying::Write));
        copied.map_err(|error| match error {
            Copying::Package(source) => refused(source.into()),
            Copying::Write(source) => file_error("write", &payload_path)(source).into(),
        })?;
        let signed = if listed.is_some() {
            None
        } else {
            let mut targets = self.target_values(&current)?;
            targets.insert(name.clone(), target);
            Some(self.sign_next(keys, terms, &current, Some(targets))?)
        };

        durable::create_dirs(dir, OPEN_DIR).map_err(file_error("make", dir))?;
        let readable = temp.as_file().set_permissions(Permissions::from_mode(FILE_MODE));
        let named = readable.and_then(|()| durable::commit_file(temp, &payload_path));
        named.map_err(file_error("write", &payload_path))?;
        replace(&manifest_path, &bytes)?;
        match signed {
            Some(signed) => {
                self.write(keys, &signed)?;
                Ok(Addition { offer, digest, outcome: Outcome::Added })
            }
            None => Ok(Addition { offer, digest, outcome: Outcome::Restored }),
        }
    }

    /// Signs the timestamp anew, and targets and snapshot when their time comes or the keys changed, and takes newer roots
    /// over from the keys.
    ///
    /// # Errors
    /// The metadata is not what `keys` signed, the keys cannot sign or are an older copy, or a file operation failed.
    pub fn refresh(&mut self, keys: &Keys, terms: &Terms) -> Result<Contents, RepositoryError> {
        let current = self.current_for(keys)?;
        let root = self.root_of(keys)?;
        let soon = terms.now.checked_add(SignedDuration::from_hours(24 * RENEW_DAYS)).unwrap_or(Timestamp::MAX);
        let stale = current.targets.expires.min(current.snapshot.expires) <= soon
            || Document::<TargetsContent>::verify("targets.json", &current.targets.bytes, &root).is_err()
            || Document::<SnapshotContent>::verify("snapshot.json", &current.snapshot.bytes, &root).is_err();
        let targets = if stale { Some(self.target_values(&current)?) } else { None };
        let signed = self.sign_next(keys, terms, &current, targets)?;
        self.write(keys, &signed)?;
        self.contents(keys)
    }

    /// Returns the newest root of the keys.
    fn root_of(&self, keys: &Keys) -> Result<tough::schema::Root, RepositoryError> {
        RootDocument::verify_root("root.json", keys.root())
            .map(|document| document.content)
            .map_err(|source| RepositoryError::Metadata { dir: self.dir.clone(), source: Box::new(source) })
    }

    fn metadata_path(&self, name: &str) -> PathBuf {
        self.dir.join(METADATA_DIR).join(name)
    }
}

fn lock(dir: &Path) -> Result<File, RepositoryError> {
    let path = dir.join(LOCK_NAME);
    let file = durable::open_or_create(&path, FILE_MODE).map_err(file_error("make", &path))?;
    file.lock().map_err(file_error("lock", &path))?;
    Ok(file)
}

/// Returns what makes files and directories that are known for leftovers.
fn temp() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMP_PREFIX);
    builder
}

/// Removes what is called by [`TEMP_PREFIX`] in `dir`, and `below` it.
fn remove_leftovers(dir: &Path, below: bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
            durable::remove_tree(&entry.path())?;
        } else if below && entry.file_type()?.is_dir() {
            remove_leftovers(&entry.path(), below)?;
        }
    }
    Ok(())
}

/// Returns whether nobody can ever have seen a repository in `dir`: there is nothing of one, or what [`Repository::init`]
/// left before it wrote the first timestamp.
fn is_fresh(dir: &Path) -> Result<bool, RepositoryError> {
    let metadata = names_in(&dir.join(METADATA_DIR))?;
    let begun =
        |name: &String| matches!(name.as_str(), "1.targets.json" | "1.snapshot.json") || name.ends_with(".root.json");
    let is_begun = dir.join(INIT_NAME).exists() && metadata.iter().all(begun);
    Ok(names_in(&dir.join(TARGETS_DIR))?.is_empty() && (metadata.is_empty() || is_begun))
}

/// Returns the names in `dir`, which need not exist; what is hidden is on its way, ours or that of a program that copies.
fn names_in(dir: &Path) -> Result<BTreeSet<String>, RepositoryError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(BTreeSet::new());
        }
        Err(error) => return Err(file_error("read", dir)(error).into()),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: io::Result<BTreeSet<String>> = names.collect();
    let mut names = names.map_err(file_error("read", dir))?;
    names.retain(|name| !name.starts_with('.'));
    Ok(names)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), RepositoryError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(file_error("write", path)(io::ErrorKind::InvalidInput.into()).into());
    };
    let written = durable::replace_by(&temp(), dir, &name.to_string_lossy(), bytes, FILE_MODE);
    Ok(written.map_err(file_error("write", path))?)
}
