//! Writing a repository: [`Repository::init`], [`Repository::add`], [`Repository::refresh`].
//!
//! Files are written so that a web server may serve the directory at any moment: names carry versions and digests, and what
//! leads to them is replaced last, `timestamp.json` as the very last. The metadata that is there is verified before anything is
//! signed anew: whoever can write to the directory cannot have the vendor sign what they put there. Of a package every byte is
//! read once: what was checked is what is written and signed.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tough::schema::RoleType;

use super::{Directory, Metadata, Offer, TARGETS_DIR, offers_of, payload_path};
use crate::class::Class;
use crate::durable;
use crate::inspect::{InspectError, Signed as SignedPackage, check_payload, open_signed};
use crate::keys::{Keys, KeysError, metadata};
use crate::package::{MANIFEST_NAME, METADATA_DIR};
use crate::tuf::document::{Document, SnapshotContent, TargetsContent};
use crate::tuf::{Client, Dates, MemoryShelf, SameVersion, Target, TufError};

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
}

/// Why a repository is not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is a repository already.
    #[error("{} is a repository already", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// There is none.
    #[error("{} is no repository", dir.display())]
    None {
        /// The directory.
        dir: PathBuf,
    },
    /// Its metadata is not what these keys, or those before them, signed.
    #[error("the metadata in {} is not signed by these keys", dir.display())]
    Metadata {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<TufError>,
    },
    /// Its metadata is that of a package.
    #[error("the metadata in {} is that of a single package", dir.display())]
    PackageMetadata {
        /// The directory.
        dir: PathBuf,
    },
    /// The package is not in order.
    #[error("{} is refused", path.display())]
    Package {
        /// The package.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<InspectError>,
    },
    /// Another release has its name.
    #[error("{name} is in the repository already, with other content")]
    Taken {
        /// Its name.
        name: String,
    },
    /// The keys cannot sign.
    #[error(transparent)]
    Keys {
        /// Why.
        #[from]
        source: KeysError,
    },
}

impl RepositoryError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Returns what kind of failure it was.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Io { .. } => Class::Disk,
            Self::Package { source, .. } => source.class(),
            Self::Exists { .. }
            | Self::None { .. }
            | Self::Metadata { .. }
            | Self::PackageMetadata { .. }
            | Self::Taken { .. }
            | Self::Keys { .. } => Class::Refused,
        }
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Io { .. } => "check that the directory can be written and has space",
            Self::Exists { .. } => "add releases with `refit repo add`, or choose another directory",
            Self::None { .. } => "make one with `refit repo init`",
            Self::Metadata { .. } => "name the keys of this repository, or restore its metadata/ from a backup",
            Self::PackageMetadata { .. } => "restore its metadata/ from a backup: somebody has replaced it",
            Self::Package { source, .. } => source.remedy(),
            Self::Taken { .. } => "give the release a version of its own: what was published never changes",
            Self::Keys { source } => source.remedy(),
        }
    }
}

/// The metadata of a repository, verified.
struct Current {
    targets: Document<TargetsContent>,
    snapshot: Document<SnapshotContent>,
    timestamp_version: NonZeroU64,
    timestamp_expires: Timestamp,
    root_version: u64,
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
        let repository = Self { dir: dir.to_owned(), _lock: lock(dir)? };
        if repository.metadata_path("timestamp.json").exists() {
            return Err(RepositoryError::Exists { dir: dir.to_owned() });
        }
        let version = NonZeroU64::MIN;
        repository.publish(keys, terms, Some((BTreeMap::new(), version)), None, (version, version))?;
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
        Ok(Self { dir: dir.to_owned(), _lock: lock(dir)? })
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
        })
    }

    /// Adds the release of a package, after every byte of it was checked.
    ///
    /// # Errors
    /// The package is not in order or not signed by the same vendor, another release has its name, the keys cannot sign, or
    /// a file operation failed: the repository offers what it offered before.
    pub fn add(&self, package: &Path, keys: &Keys, terms: &Terms) -> Result<Offer, RepositoryError> {
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

        durable::create_dirs(dir).map_err(RepositoryError::io("make", dir))?;
        let readable = temp.as_file().set_permissions(Permissions::from_mode(FILE_MODE));
        let named = readable.and_then(|()| durable::commit_file(temp, &payload_path));
        named.map_err(RepositoryError::io("write", &payload_path))?;
        replace(&manifest_path, &bytes)?;
        self.publish_next(keys, terms, &current, Some(targets))?;
        Ok(offer)
    }

    /// Signs the timestamp anew, and targets and snapshot when their time comes or the keys changed, and takes newer roots
    /// over from the keys.
    ///
    /// # Errors
    /// The metadata is not what `keys` signed, the keys cannot sign, or a file operation failed.
    pub fn refresh(&self, keys: &Keys, terms: &Terms) -> Result<Contents, RepositoryError> {
        let current = self.current(keys)?;
        let root = self.root_of(keys)?;
        let soon = terms.now.checked_add(SignedDuration::from_hours(24 * RENEW_DAYS)).unwrap_or(Timestamp::MAX);
        let stale = current.targets.expires.min(current.snapshot.expires) <= soon
            || Document::<TargetsContent>::verify("targets.json", &current.targets.bytes, &root).is_err()
            || Document::<SnapshotContent>::verify("snapshot.json", &current.snapshot.bytes, &root).is_err();
        let targets = if stale { Some(self.target_values(&current)?) } else { None };
        self.publish_next(keys, terms, &current, targets)?;
        self.contents(keys)
    }

    fn publish_next(
        &self,
        keys: &Keys,
        terms: &Terms,
        current: &Current,
        targets: Option<BTreeMap<String, Value>>,
    ) -> Result<(), RepositoryError> {
        let next = |version: NonZeroU64| version.saturating_add(1);
        let targets = targets.map(|targets| (targets, next(current.targets.version)));
        let snapshot_version =
            if targets.is_some() { next(current.snapshot.version) } else { current.snapshot.version };
        let versions = (snapshot_version, next(current.timestamp_version));
        self.publish(keys, terms, targets, Some(&current.snapshot.bytes), versions)
    }

    /// Writes roots, targets, snapshot and timestamp, in this order: each is reached only through the next.
    fn publish(
        &self,
        keys: &Keys,
        terms: &Terms,
        targets: Option<(BTreeMap<String, Value>, NonZeroU64)>,
        kept_snapshot: Option<&[u8]>,
        (snapshot_version, timestamp_version): (NonZeroU64, NonZeroU64),
    ) -> Result<(), RepositoryError> {
        // Everything is signed before the first byte is written: a key that is missing changes nothing.
        let mut files = Vec::new();
        let snapshot = match &targets {
            Some((targets, version)) => {
                let bytes = keys.sign(RoleType::Targets, &metadata::targets(targets, *version, terms.expires))?;
                let snapshot = metadata::snapshot(&bytes, *version, snapshot_version, terms.expires);
                files.push((format!("{version}.targets.json"), bytes));
                let bytes = keys.sign(RoleType::Snapshot, &snapshot)?;
                files.push((format!("{snapshot_version}.snapshot.json"), bytes.clone()));
                bytes
            }
            None => kept_snapshot.unwrap_or_default().to_vec(),
        };
        let timestamp = metadata::timestamp(&snapshot, snapshot_version, timestamp_version, terms.timestamp_expires);
        files.push(("timestamp.json".to_owned(), keys.sign(RoleType::Timestamp, &timestamp)?));
        for (number, bytes) in keys.roots() {
            let path = self.metadata_path(&format!("{number}.root.json"));
            if fs::read(&path).ok().as_deref() != Some(bytes.as_slice()) {
                replace(&path, bytes)?;
            }
        }
        for (name, bytes) in files {
            replace(&self.metadata_path(&name), &bytes)?;
        }
        Ok(())
    }

    /// Returns the repository's metadata, verified along the chain of roots that it has itself.
    fn current(&self, keys: &Keys) -> Result<Current, RepositoryError> {
        let refused = |source| RepositoryError::Metadata { dir: self.dir.clone(), source: Box::new(source) };
        let missing = |name: &str| refused(TufError::Missing { name: name.to_owned() });
        let first = keys.roots().values().next().cloned().unwrap_or_default();
        let shelf = MemoryShelf(BTreeMap::from([("root".to_owned(), first)]));
        let mut server = Directory(self.dir.clone());
        let client = Client::new(Metadata(&mut server), shelf, Dates::Ignored, SameVersion::Keep);
        let mut client = client.map_err(refused)?;
        client.refresh().map_err(refused)?;
        let timestamp = client.timestamp().ok_or_else(|| missing("timestamp.json"))?;
        let targets = client.targets().cloned().ok_or_else(|| missing("targets.json"))?;
        // Signed by the same keys, and everybody's to take: no appliance would take a list that goes on from this.
        if targets.content.targets.contains_key(MANIFEST_NAME) {
            return Err(RepositoryError::PackageMetadata { dir: self.dir.clone() });
        }
        Ok(Current {
            timestamp_version: timestamp.version,
            timestamp_expires: timestamp.expires,
            root_version: client.root().version.get(),
            targets,
            snapshot: client.snapshot().cloned().ok_or_else(|| missing("snapshot.json"))?,
        })
    }

    /// Returns the newest root of the keys.
    fn root_of(&self, keys: &Keys) -> Result<tough::schema::Root, RepositoryError> {
        crate::tuf::document::RootDocument::verify_root("root.json", keys.root())
            .map(|document| document.content)
            .map_err(|source| RepositoryError::Metadata { dir: self.dir.clone(), source: Box::new(source) })
    }

    /// Returns the targets as they are written, to be signed again.
    fn target_values(&self, current: &Current) -> Result<BTreeMap<String, Value>, RepositoryError> {
        let format = |source| RepositoryError::Metadata {
            dir: self.dir.clone(),
            source: Box::new(TufError::Format { name: "targets.json".to_owned(), source }),
        };
        let envelope: Value = serde_json::from_slice(&current.targets.bytes).map_err(format)?;
        serde_json::from_value(envelope["signed"]["targets"].clone()).map_err(format)
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
