//! What a repository has now, and whether it is ours to sign anew.
//!
//! The newest root of the keys decides. Right after a rotation a repository is still signed under an older one, and then
//! signatures say nothing: the rotation may be there because a key was stolen. Such metadata is ours if it is what was
//! published last with this directory of keys ([`crate::keys`] remembers that), or if somebody vouches for it.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;

use jiff::Timestamp;
use refit_tuf::document::{Document, RootDocument, SnapshotContent, TargetsContent};
use refit_tuf::{Client, Dates, Fetch, MemoryStore, SameVersion, TufError};
use refit_updater::digest::Digest;
use refit_updater::package::MANIFEST_NAME;
use refit_updater::repository::{Directory, Listed, Metadata, listed};
use serde_json::Value;
use tough::schema::{RoleType, Root};

use super::{Contents, Repository, RepositoryError};
use crate::keys::Keys;

/// The metadata of a repository, verified.
pub(super) struct Current {
    pub(super) targets: Document<TargetsContent>,
    pub(super) snapshot: Document<SnapshotContent>,
    pub(super) timestamp_version: NonZeroU64,
    pub(super) timestamp_expires: Timestamp,
    /// Digest of the timestamp, which leads to everything else.
    pub(super) timestamp: Digest,
    pub(super) root: RootDocument,
}

impl Current {
    pub(super) fn contents(&self) -> Contents {
        Contents {
            releases: listed(&self.targets.content.targets),
            versions: [
                self.root.version.get(),
                self.timestamp_version.get(),
                self.snapshot.version.get(),
                self.targets.version.get(),
            ],
            timestamp_expires: self.timestamp_expires,
            list_bytes: self.targets.bytes.len() as u64,
        }
    }
}

/// Which roots a verification may go on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Roots {
    /// Those that the repository has, each signed with the keys of the one before.
    Follow,
    /// None: a retired key signs a next root as well as anything else.
    Stay,
}

/// The metadata of a directory, with or without its roots.
pub(super) struct Files(pub(super) Directory, pub(super) Roots);

impl Fetch for Files {
    fn metadata(&mut self, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        if self.1 == Roots::Stay && name.ends_with(".root.json") {
            return Ok(None);
        }
        Metadata(&mut self.0).metadata(name, bytes_max)
    }
}

impl Repository {
    /// Vouches for what the repository has now, although keys signed it that were retired since: it will be signed anew.
    /// Returns the releases for which that is so; none if the newest root's keys signed it, or it is known to be ours.
    ///
    /// # Errors
    /// No keys of this chain of roots signed the metadata.
    pub fn accept_retired(&mut self, keys: &Keys) -> Result<Vec<Listed>, RepositoryError> {
        match self.current(keys) {
            Ok(_ours) => return Ok(Vec::new()),
            Err(RepositoryError::Retired { .. }) => {}
            Err(error) => return Err(error),
        }
        let Some(retired) = self.read_retired(keys) else { return Ok(Vec::new()) };
        // These bytes and no others: what is written to the directory from now on was never shown to anybody.
        self.accepted = Some(retired.timestamp);
        Ok(listed(&retired.targets.content.targets))
    }

    /// Returns the repository's metadata, if it may be signed anew and `keys` are not an older copy, as far as that can be
    /// told before they have signed.
    pub(super) fn current_for(&self, keys: &Keys) -> Result<Current, RepositoryError> {
        let current = self.current(keys)?;
        let (own, newest) = (self.root_of(keys)?, &current.root.content);
        let is_role_theirs = |role: &RoleType| {
            let ids = |root: &Root| root.roles.get(role).map(|keys| keys.keyids.clone()).unwrap_or_default();
            let theirs = ids(&own);
            let shared = ids(newest).into_iter().filter(|id| theirs.contains(id)).count() as u64;
            newest.roles.get(role).is_some_and(|keys| shared >= keys.threshold.get())
        };
        let roles = [RoleType::Timestamp, RoleType::Snapshot, RoleType::Targets];
        if newest.version > own.version && !roles.iter().all(is_role_theirs) {
            return Err(self.older_keys(own.version, newest.version));
        }
        Ok(current)
    }

    pub(super) fn older_keys(&self, keys: NonZeroU64, newest: NonZeroU64) -> RepositoryError {
        RepositoryError::OlderKeys { dir: self.dir.clone(), keys: keys.get(), newest: newest.get() }
    }

    /// Returns the repository's metadata, if it may be signed anew by the newest of the keys.
    pub(super) fn current(&self, keys: &Keys) -> Result<Current, RepositoryError> {
        let refused = match self.read(keys.root(), Roots::Follow) {
            Ok(current) => return Ok(current),
            Err(error) => error,
        };
        let Some(retired) = self.read_retired(keys) else { return Err(refused) };
        let published = keys.has_published(retired.timestamp);
        if self.accepted == Some(retired.timestamp) || matches!(published, Ok(true)) {
            return Ok(retired);
        }
        Err(RepositoryError::Retired {
            dir: self.dir.clone(),
            signed: retired.root.version.get(),
            newest: keys.root_version().0,
            source: published.err().map(Box::new),
        })
    }

    /// Returns the metadata, if it is whole and signed under one of the roots before the newest.
    fn read_retired(&self, keys: &Keys) -> Option<Current> {
        let newest = keys.root_version().0;
        let older = keys.roots().range(..newest).rev();
        older.map(|(_, root)| self.read(root, Roots::Stay)).find_map(Result::ok)
    }

    fn read(&self, root: &[u8], roots: Roots) -> Result<Current, RepositoryError> {
        read(&self.dir, root, roots)
    }

    /// Returns the targets as they are written, to be signed again.
    pub(super) fn target_values(&self, current: &Current) -> Result<BTreeMap<String, Value>, RepositoryError> {
        let format = |source| RepositoryError::Metadata {
            dir: self.dir.clone(),
            source: Box::new(TufError::Format { name: "targets.json".to_owned(), source }),
        };
        let envelope: Value = serde_json::from_slice(&current.targets.bytes).map_err(format)?;
        serde_json::from_value(envelope["signed"]["targets"].clone()).map_err(format)
    }
}

/// Returns what is in the repository in `dir`, whose metadata `root`, or one that follows it, vouches for. Nothing is locked or
/// written: of a repository that is published to meanwhile it is what it had before or what it has after.
///
/// # Errors
/// Its metadata is not to be trusted.
pub fn contents(dir: &Path, root: &[u8]) -> Result<Contents, RepositoryError> {
    check_root(root)?;
    Ok(read(dir, root, Roots::Follow)?.contents())
}

/// Checks that what somebody named is a root at all.
pub(super) fn check_root(root: &[u8]) -> Result<RootDocument, RepositoryError> {
    RootDocument::verify_root("root.json", root)
        .map_err(|source| RepositoryError::NotARoot { source: Box::new(source) })
}

/// Verifies the metadata in `dir` with `root`.
pub(super) fn read(dir: &Path, root: &[u8], roots: Roots) -> Result<Current, RepositoryError> {
    let refused = |source| {
        let dir = dir.to_owned();
        if let TufError::Missing { name } = source {
            return RepositoryError::Incomplete { dir, name };
        }
        RepositoryError::Metadata { dir, source: Box::new(source) }
    };
    let missing = |name: &str| refused(TufError::Missing { name: name.to_owned() });
    let store = MemoryStore(BTreeMap::from([("root".to_owned(), root.to_vec())]));
    let files = Files(Directory(dir.to_owned()), roots);
    let mut client = Client::new(files, store, Dates::Ignored, SameVersion::Keep).map_err(refused)?;
    client.refresh().map_err(refused)?;
    let timestamp = client.timestamp().ok_or_else(|| missing("timestamp.json"))?;
    let targets = client.targets().cloned().ok_or_else(|| missing("targets.json"))?;
    // Signed by the same keys, and everybody's to take: no appliance would take a list that goes on from this.
    if targets.content.targets.contains_key(MANIFEST_NAME) {
        return Err(RepositoryError::PackageMetadata { dir: dir.to_owned() });
    }
    Ok(Current {
        timestamp: Digest::of(&timestamp.bytes),
        timestamp_version: timestamp.version,
        timestamp_expires: timestamp.expires,
        root: client.root().clone(),
        targets,
        snapshot: client.snapshot().cloned().ok_or_else(|| missing("snapshot.json"))?,
    })
}
