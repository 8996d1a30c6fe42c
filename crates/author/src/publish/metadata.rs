//! Signing and writing the metadata of a repository: two steps, so that what cannot be signed or would not be read changes
//! nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroU64;

use refit_tuf::{Client, Dates, Fetch, MemoryStore, SameVersion};
use refit_updater::digest::Digest;
use refit_updater::repository::Directory;
use serde_json::Value;
use tough::schema::RoleType;

use super::current::{Current, Files, Roots};
use super::{LIST_BYTES_MAX, Repository, RepositoryError, Terms, replace};
use crate::keys::{Keys, metadata as signed_part};

/// Metadata that is signed and not written yet.
#[derive(Debug)]
pub(super) struct Signed {
    /// Names and bytes, in the order in which they are written: each is reached only through the next.
    files: Vec<(String, Vec<u8>)>,
    /// Digest of the last of them, the timestamp.
    timestamp: Digest,
    /// Digest of the timestamp that it replaces.
    before: Option<Digest>,
}

/// The metadata of a repository as it will be: what was signed, over what is there.
struct Upcoming<'a> {
    signed: &'a [(String, Vec<u8>)],
    there: Files,
}

impl Fetch for Upcoming<'_> {
    fn metadata(&mut self, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        match self.signed.iter().find(|(signed, _)| signed == name) {
            Some((_, bytes)) => Ok(Some(bytes.clone())),
            None => self.there.metadata(name, bytes_max),
        }
    }
}

impl Repository {
    /// Signs the first metadata of a repository, which offers nothing.
    pub(super) fn sign_first(&self, keys: &Keys, terms: &Terms) -> Result<Signed, RepositoryError> {
        let version = NonZeroU64::MIN;
        self.sign(keys, terms, Some((BTreeMap::new(), version)), &[], (version, version))
    }

    /// Signs what follows `current`: targets and snapshot only if there are `targets`.
    pub(super) fn sign_next(
        &self,
        keys: &Keys,
        terms: &Terms,
        current: &Current,
        targets: Option<BTreeMap<String, Value>>,
    ) -> Result<Signed, RepositoryError> {
        let next = |version: NonZeroU64| version.saturating_add(1);
        let targets = targets.map(|targets| (targets, next(current.targets.version)));
        let snapshot_version =
            if targets.is_some() { next(current.snapshot.version) } else { current.snapshot.version };
        let versions = (snapshot_version, next(current.timestamp_version));
        let signed = self.sign(keys, terms, targets, &current.snapshot.bytes, versions)?;
        Ok(Signed { before: Some(current.timestamp), ..signed })
    }

    fn sign(
        &self,
        keys: &Keys,
        terms: &Terms,
        targets: Option<(BTreeMap<String, Value>, NonZeroU64)>,
        kept_snapshot: &[u8],
        (snapshot_version, timestamp_version): (NonZeroU64, NonZeroU64),
    ) -> Result<Signed, RepositoryError> {
        let mut files = Vec::new();
        let snapshot = match &targets {
            Some((targets, version)) => {
                let bytes = keys.sign(RoleType::Targets, &signed_part::targets(targets, *version, terms.expires))?;
                let snapshot = signed_part::snapshot(&bytes, *version, snapshot_version, terms.expires);
                files.push((format!("{version}.targets.json"), bytes));
                let bytes = keys.sign(RoleType::Snapshot, &snapshot)?;
                files.push((format!("{snapshot_version}.snapshot.json"), bytes.clone()));
                bytes
            }
            None => kept_snapshot.to_vec(),
        };
        let timestamp = signed_part::timestamp(&snapshot, snapshot_version, timestamp_version, terms.timestamp_expires);
        let timestamp = keys.sign(RoleType::Timestamp, &timestamp)?;
        let digest = Digest::of(&timestamp);
        files.push(("timestamp.json".to_owned(), timestamp));
        if let Some((name, bytes)) = files.iter().find(|(_, bytes)| bytes.len() as u64 > LIST_BYTES_MAX) {
            let (dir, bytes) = (self.dir.clone(), bytes.len() as u64);
            return Err(RepositoryError::Full { dir, name: name.clone(), bytes });
        }
        self.verify_signed(keys, &files)?;
        Ok(Signed { files, timestamp: digest, before: None })
    }

    /// Verifies what was signed as appliances will: those that trust the newest root of `keys`, and those that follow the
    /// repository to a root that is newer still. These keys may be a copy that missed a rotation.
    fn verify_signed(&self, keys: &Keys, signed: &[(String, Vec<u8>)]) -> Result<(), RepositoryError> {
        let refused = |source| RepositoryError::Metadata { dir: self.dir.clone(), source: Box::new(source) };
        for roots in [Roots::Stay, Roots::Follow] {
            let there = Files(Directory(self.dir.clone()), roots);
            let store = MemoryStore(BTreeMap::from([("root".to_owned(), keys.root().to_vec())]));
            let upcoming = Upcoming { signed, there };
            let mut client = Client::new(upcoming, store, Dates::Ignored, SameVersion::Keep).map_err(refused)?;
            let own = client.root().version;
            if let Err(error) = client.refresh() {
                let newest = client.root().version;
                return Err(if newest > own { self.older_keys(own, newest) } else { refused(error) });
            }
        }
        Ok(())
    }

    /// Writes the roots of `keys` and then what was signed, the timestamp last, and remembers it beside the keys.
    pub(super) fn write(&mut self, keys: &Keys, signed: &Signed) -> Result<(), RepositoryError> {
        // A directory of keys that cannot be written is no reason not to publish: what is not remembered is missed after a
        // rotation, and then somebody can vouch for it.
        let begun = keys.begin_publishing(signed.timestamp, signed.before);
        for (number, bytes) in keys.roots() {
            let path = self.metadata_path(&format!("{number}.root.json"));
            if fs::read(&path).ok().as_deref() != Some(bytes.as_slice()) {
                replace(&path, bytes)?;
            }
        }
        for (name, bytes) in &signed.files {
            replace(&self.metadata_path(name), bytes)?;
        }
        self.not_remembered = begun.and_then(|()| keys.end_publishing(signed.timestamp)).err();
        Ok(())
    }
}
