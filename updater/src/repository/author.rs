//! Writing a repository: [`Repository::init`], [`Repository::add`], [`Repository::refresh`].
//!
//! Files are written so that a web server may serve the directory at any moment: names carry versions and digests, and what
//! leads to them is replaced last, `timestamp.json` as the very last. The metadata that is there is verified before anything is
//! signed anew: whoever can write to the directory cannot have the vendor sign what they put there, not even with a key
//! that was retired. Of a package every byte is read once: what was checked is what is written and signed.

mod current;
mod error;
mod publish;
#[cfg(test)]
mod tests;

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use tempfile::NamedTempFile;
use tough::schema::RoleType;

use super::{Offer, TARGETS_DIR, offers_of, payload_path};
use crate::digest::Digest;
use crate::durable;
use crate::inspect::{InspectError, Signed as SignedPackage, check_payload, open_signed};
use crate::keys::{Keys, KeysError, PublishedError, metadata};
use crate::package::{METADATA_BYTES_MAX, METADATA_DIR};
use crate::tuf::Target;
use crate::tuf::document::{Document, RootDocument, SnapshotContent, TargetsContent};

pub use current::RetiredRelease;
pub use error::RepositoryError;

/// Bytes of the list of releases, `targets.json`: what appliances and `refit repo` itself read. Some 3,000 releases.
pub const LIST_BYTES_MAX: u64 = METADATA_BYTES_MAX;
/// Held while the directory is changed.
const LOCK_NAME: &str = ".lock";
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
    pub releases: Vec<Offer>,
    /// Versions of root, timestamp, snapshot and targets.
    pub versions: [u64; 4],
    /// When the timestamp expires.
    pub timestamp_expires: Timestamp,
    /// Bytes of the list of releases, of which there may be [`LIST_BYTES_MAX`].
    pub list_bytes: u64,
}

/// Why a payload was not taken over.
enum Copying {
    Package(InspectError),
    Write(io::Error),
}

impl From<InspectError> for Copying {
    fn from(error: InspectError) -> Self {
        Self::Package(error)
    }
}

impl Repository {
    /// Makes an empty repository in `dir`.
    ///
    /// # Errors
    /// There is one already, the keys cannot sign, or a file operation failed.
    pub fn init(dir: &Path, keys: &Keys, terms: &Terms) -> Result<Self, RepositoryError> {
        for dir in [dir.to_owned(), dir.join(METADATA_DIR), dir.join(TARGETS_DIR)] {
            durable::create_dirs(&dir).map_err(RepositoryError::io("make", &dir))?;
        }
        let mut repository = Self::locked(dir)?;
        if repository.metadata_path("timestamp.json").exists() {
            return Err(RepositoryError::Exists { dir: dir.to_owned() });
        }
        let signed = repository.sign_first(keys, terms)?;
        repository.write(keys, &signed)?;
        Ok(repository)
    }

    /// Opens the repository in `dir`, and keeps others from changing it.
    ///
    /// # Errors
    /// There is none.
    pub fn open(dir: &Path) -> Result<Self, RepositoryError> {
        if !dir.join(METADATA_DIR).join("timestamp.json").is_file() {
            return Err(RepositoryError::None { dir: dir.to_owned() });
        }
        Self::locked(dir)
    }

    fn locked(dir: &Path) -> Result<Self, RepositoryError> {
        Ok(Self { dir: dir.to_owned(), accepted: None, not_remembered: None, _lock: lock(dir)? })
    }

    /// Returns what is in it.
    ///
    /// # Errors
    /// Its metadata is not what `keys` signed.
    pub fn contents(&self, keys: &Keys) -> Result<Contents, RepositoryError> {
        let current = self.current(keys)?;
        Ok(Contents {
            releases: offers_of(&current.targets.content.targets),
            versions: [
                current.root_version,
                current.timestamp_version.get(),
                current.snapshot.version.get(),
                current.targets.version.get(),
            ],
            timestamp_expires: current.timestamp_expires,
            list_bytes: current.targets.bytes.len() as u64,
        })
    }

    /// Returns why what was published last through this value is not remembered beside the keys, if that is so: after the
    /// next rotation somebody will have to vouch for it.
    #[must_use]
    pub fn not_remembered(&self) -> Option<&PublishedError> {
        self.not_remembered.as_ref()
    }

    /// Adds the release of a package, after every byte of it was checked.
    ///
    /// # Errors
    /// The package is not in order or not signed by the same vendor, another release has its name, the list of releases is
    /// full, the keys cannot sign, or a file operation failed: the repository offers what it offered before.
    pub fn add(&mut self, package: &Path, keys: &Keys, terms: &Terms) -> Result<Offer, RepositoryError> {
        let current = self.current(keys)?;
        let refused = |source| RepositoryError::Package { path: package.to_owned(), source: Box::new(source) };
        // The newest root: what keys signed that were retired since is packed again, or not published.
        let found = open_signed(package, keys.root()).map_err(refused)?;
        let SignedPackage { bytes, manifest, released, payload, .. } = found;
        let offer = Offer {
            appliance: manifest.appliance().to_owned(),
            version: manifest.version().clone(),
            arch: manifest.arch().to_owned(),
            released,
            requires: manifest.requires().cloned(),
            payload_bytes: manifest.payload_bytes(),
            installed_bytes: manifest.installed_bytes(),
        };
        let name = offer.target_name();
        let target = metadata::target(&bytes, json!(offer));
        let typed: Target = serde_json::from_value(target.clone())
            .map_err(|source| KeysError::Encode { role: RoleType::Targets, source: Box::new(source) })?;
        if let Some(taken) = current.targets.content.targets.get(&name) {
            if taken.hashes != typed.hashes {
                return Err(RepositoryError::Taken { name });
            }
            check_payload(payload, &manifest, |_stored| Ok(())).map_err(refused)?;
            return Ok(offer);
        }
        let path = |found: Option<String>| self.dir.join(found.unwrap_or_else(|| name.clone()));
        let payload_path = path(payload_path(&name, &typed));
        let manifest_path = path(typed.consistent_path(&name).map(|path| format!("{TARGETS_DIR}{path}")));
        let dir = payload_path.parent().unwrap_or(&self.dir);

        // Until it is found to be in order it lies in what there is of its directory: a refusal leaves nothing.
        let place = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(&self.dir);
        let mut temp = NamedTempFile::new_in(place).map_err(RepositoryError::io("make a file in", place))?;
        let copied = check_payload(payload, &manifest, |stored| temp.write_all(stored).map_err(Copying::Write));
        copied.map_err(|error| match error {
            Copying::Package(source) => refused(source),
            Copying::Write(source) => RepositoryError::io("write", &payload_path)(source),
        })?;
        let mut targets = self.target_values(&current)?;
        targets.insert(name.clone(), target);
        let signed = self.sign_next(keys, terms, &current, Some(targets))?;

        durable::create_dirs(dir).map_err(RepositoryError::io("make", dir))?;
        let readable = temp.as_file().set_permissions(Permissions::from_mode(FILE_MODE));
        let named = readable.and_then(|()| durable::commit_file(temp, &payload_path));
        named.map_err(RepositoryError::io("write", &payload_path))?;
        replace(&manifest_path, &bytes)?;
        self.write(keys, &signed)?;
        Ok(offer)
    }

    /// Signs the timestamp anew, and targets and snapshot when their time comes or the keys changed, and takes newer roots
    /// over from the keys.
    ///
    /// # Errors
    /// The metadata is not what `keys` signed, the keys cannot sign, or a file operation failed.
    pub fn refresh(&mut self, keys: &Keys, terms: &Terms) -> Result<Contents, RepositoryError> {
        let current = self.current(keys)?;
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
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(RepositoryError::io("make", &path))?;
    file.lock().map_err(RepositoryError::io("lock", &path))?;
    Ok(file)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), RepositoryError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(RepositoryError::io("write", path)(io::ErrorKind::InvalidInput.into()));
    };
    durable::replace_with_mode(dir, &name.to_string_lossy(), bytes, FILE_MODE)
        .map_err(RepositoryError::io("write", path))
}
