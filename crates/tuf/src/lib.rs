//! The TUF client: from a trusted root and files that anybody may have made to metadata and targets that were signed.
//!
//! [`Client`] follows the client workflow of the TUF specification (section 5) step by step: newer roots, timestamp,
//! snapshot, targets, and delegated roles only when a target is looked for. Each file is accepted by itself, in the bytes it
//! came in, and given to the [`MetadataStore`] at that moment; what fails leaves what was accepted before. [`tough`] has the schema
//! of roots, the keys, the canonical form and the check of signatures. Its own loader is not used: it rewrites what it
//! stores, fetches every delegated role at once and wants SHA-256 everywhere, none of which can be changed from outside.
//!
//! Packages, repositories and the program that the public conformance suite drives (`examples/tuf_client.rs`) all
//! verify through this crate. It knows no file and no network: see [`Fetch`] and [`MetadataStore`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed"))]

mod delegation;
pub mod document;
mod error;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::num::NonZeroU64;

use jiff::Timestamp;

use delegation::file_stem;
use document::{
    Content, DelegatedContent, DelegatedRole, Delegations, Document, MetaFile, RootDocument, SnapshotContent,
    TargetsContent, TimestampContent,
};

pub use document::Target;
pub use error::TufError;

/// Bytes of one metadata file: root, timestamp, snapshot and targets have a few kilobytes each.
pub const METADATA_BYTES_MAX: u64 = 1 << 20;
/// Roots that are followed one after another: a key rotation a month for twenty years.
pub const ROOTS_MAX: usize = 240;
/// Delegated roles that are asked for one target: the reference implementation's limit.
const DELEGATIONS_MAX: usize = 32;
/// Names of what a [`MetadataStore`] keeps, beside the delegated roles.
const ROOT: &str = "root";
const TIMESTAMP: &str = "timestamp";
const SNAPSHOT: &str = "snapshot";
const TARGETS: &str = "targets";

/// Where metadata comes from.
pub trait Fetch {
    /// Returns the metadata file `name`, of which at most `bytes_max` bytes are wanted; `None` if there is none.
    ///
    /// # Errors
    /// Whether there is one cannot be told, or it is larger.
    fn metadata(&mut self, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>>;
}

/// Where accepted metadata is kept.
pub trait MetadataStore {
    /// Returns the file that was kept under `name`.
    ///
    /// # Errors
    /// It cannot be read.
    fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Keeps `bytes`, which were accepted, under `name`.
    ///
    /// # Errors
    /// They could not be kept.
    fn put(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

/// A [`MetadataStore`] in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStore(pub BTreeMap<String, Vec<u8>>);

impl MetadataStore for MemoryStore {
    fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(name).cloned())
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }
}

/// What is done about dates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dates {
    /// Metadata past its date is refused; the time is this.
    Enforced(Timestamp),
    /// They are somebody else's business.
    Ignored,
}

/// What a timestamp of a version that was accepted before is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameVersion {
    /// The same file, whatever it says: the one accepted before holds. So it is in a repository.
    Keep,
    /// Another file: so it is among packages, each of which is a repository of its own.
    Replace,
}

/// A TUF client.
pub struct Client<F, S> {
    fetch: F,
    store: S,
    dates: Dates,
    same_version: SameVersion,
    root: RootDocument,
    timestamp: Option<Document<TimestampContent>>,
    snapshot: Option<Document<SnapshotContent>>,
    targets: Option<Document<TargetsContent>>,
}

impl<F, S> std::fmt::Debug for Client<F, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("root_version", &self.root.version.get()).finish_non_exhaustive()
    }
}

impl<F: Fetch, S: MetadataStore> Client<F, S> {
    /// Returns a client that trusts the root in `store`.
    ///
    /// # Errors
    /// There is none, or it is no root that its own keys signed.
    pub fn new(fetch: F, store: S, dates: Dates, same_version: SameVersion) -> Result<Self, TufError> {
        let bytes = kept(&store, ROOT)?.ok_or_else(|| TufError::Missing { name: ROOT.to_owned() })?;
        let root = RootDocument::verify_root("root.json", &bytes)?;
        Ok(Self { fetch, store, dates, same_version, root, timestamp: None, snapshot: None, targets: None })
    }

    /// Brings the metadata of the root's roles up to date.
    ///
    /// # Errors
    /// Something is missing or not to be trusted. What was accepted before that, in the order of the workflow, is kept.
    pub fn refresh(&mut self) -> Result<(), TufError> {
        self.refresh_root()?;
        self.refresh_timestamp()?;
        self.refresh_snapshot()?;
        self.refresh_targets()
    }

    /// Returns what is signed about `target`.
    ///
    /// # Errors
    /// No role that is trusted for it lists it, or the metadata of one on the way to it is not to be trusted.
    pub fn target(&mut self, target: &str) -> Result<Target, TufError> {
        let unlisted = || TufError::Unlisted { name: target.to_owned() };
        let targets = self.targets.as_ref().ok_or_else(unlisted)?;
        if let Some(found) = targets.content.targets.get(target) {
            return Ok(found.clone());
        }
        let mut visited = HashSet::new();
        // Roles yet to be asked, the next one last, each with the delegation that leads to it.
        let mut stack = Vec::new();
        push(&mut stack, targets.content.delegations.as_ref(), target);
        while let Some((delegations, role)) = stack.pop() {
            if visited.contains(&role.name) {
                continue;
            }
            if visited.len() == DELEGATIONS_MAX {
                return Err(TufError::Delegations { target: target.to_owned(), max: DELEGATIONS_MAX });
            }
            let document = self.delegated(&delegations, &role)?;
            visited.insert(role.name.clone());
            if let Some(found) = document.content.0.targets.get(target) {
                return Ok(found.clone());
            }
            if role.terminating {
                stack.clear();
            }
            push(&mut stack, document.content.0.delegations.as_ref(), target);
        }
        Err(unlisted())
    }

    /// Returns whether targets lie under names that carry their digests.
    #[must_use]
    pub fn consistent_snapshot(&self) -> bool {
        self.root.content.consistent_snapshot
    }

    /// Returns the newest root.
    #[must_use]
    pub fn root(&self) -> &RootDocument {
        &self.root
    }

    /// Returns the accepted timestamp.
    #[must_use]
    pub fn timestamp(&self) -> Option<&Document<TimestampContent>> {
        self.timestamp.as_ref()
    }

    /// Returns the accepted snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Document<SnapshotContent>> {
        self.snapshot.as_ref()
    }

    /// Returns the accepted targets.
    #[must_use]
    pub fn targets(&self) -> Option<&Document<TargetsContent>> {
        self.targets.as_ref()
    }

    /// Returns the store.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Returns where the metadata came from.
    pub fn fetch_mut(&mut self) -> &mut F {
        &mut self.fetch
    }

    /// Section 5.3: each newer root is signed by its own keys and by those of the one before.
    fn refresh_root(&mut self) -> Result<(), TufError> {
        for _ in 0..ROOTS_MAX {
            let number = self.root.version.get() + 1;
            let name = format!("{number}.root.json");
            let Some(bytes) = self.get(&name, METADATA_BYTES_MAX)? else {
                return self.check_date("root.json", self.root.expires);
            };
            let next = RootDocument::verify_root(&name, &bytes)?;
            self.root.signs_root(&name, &next)?;
            if next.version.get() != number {
                return Err(TufError::Version { name, expected: number, found: next.version.get() });
            }
            self.put(ROOT, &bytes)?;
            self.root = next;
        }
        Err(TufError::Roots { max: ROOTS_MAX })
    }

    /// Section 5.4.
    fn refresh_timestamp(&mut self) -> Result<(), TufError> {
        const NAME: &str = "timestamp.json";
        // One that the root's keys no longer vouch for is what the root's owner got rid of (5.3.11).
        self.timestamp =
            kept(&self.store, TIMESTAMP)?.and_then(|bytes| Document::verify(NAME, &bytes, &self.root.content).ok());
        let bytes = self.get(NAME, METADATA_BYTES_MAX)?.ok_or_else(|| TufError::Missing { name: NAME.to_owned() })?;
        let new: Document<TimestampContent> = Document::verify(NAME, &bytes, &self.root.content)?;
        let offered = snapshot_of(&new)?;
        if let Some(old) = &self.timestamp {
            let seen = snapshot_of(old)?;
            not_below(NAME, new.version, old.version)?;
            not_below("snapshot.json", offered.version, seen.version)?;
            if new.version == old.version && self.same_version == SameVersion::Keep {
                return self.check_date(NAME, old.expires);
            }
        }
        self.check_date(NAME, new.expires)?;
        self.put(TIMESTAMP, &bytes)?;
        self.timestamp = Some(new);
        Ok(())
    }

    /// Section 5.5.
    fn refresh_snapshot(&mut self) -> Result<(), TufError> {
        const NAME: &str = "snapshot.json";
        let announced = match &self.timestamp {
            Some(timestamp) => snapshot_of(timestamp)?.clone(),
            None => return Err(TufError::Missing { name: "timestamp.json".to_owned() }),
        };
        let old: Option<Document<SnapshotContent>> =
            kept(&self.store, SNAPSHOT)?.and_then(|bytes| Document::verify(NAME, &bytes, &self.root.content).ok());
        if let Some(old) = &old
            && old.version == announced.version
            && announced.check(NAME, &old.bytes).is_ok()
            && self.check_date(NAME, old.expires).is_ok()
        {
            self.snapshot = Some(old.clone());
            return Ok(());
        }
        let (bytes, new) = self.announced::<SnapshotContent>(NAME, SNAPSHOT, &announced)?;
        for (name, seen) in old.iter().flat_map(|old| &old.content.0.meta) {
            let offered = new.content.0.meta.get(name).ok_or_else(|| TufError::Removed { name: name.clone() })?;
            not_below(name, offered.version, seen.version)?;
        }
        self.check_date(NAME, new.expires)?;
        self.put(SNAPSHOT, &bytes)?;
        self.snapshot = Some(new);
        Ok(())
    }

    /// Section 5.6.
    fn refresh_targets(&mut self) -> Result<(), TufError> {
        const NAME: &str = "targets.json";
        let announced = self.listed(NAME)?;
        if let Some(bytes) = kept(&self.store, TARGETS)?
            && let Ok(old) = Document::<TargetsContent>::verify(NAME, &bytes, &self.root.content)
            && old.version == announced.version
            && announced.check(NAME, &bytes).is_ok()
            && self.check_date(NAME, old.expires).is_ok()
        {
            self.targets = Some(old);
            return Ok(());
        }
        let (bytes, new) = self.announced::<TargetsContent>(NAME, TARGETS, &announced)?;
        self.check_date(NAME, new.expires)?;
        self.put(TARGETS, &bytes)?;
        self.targets = Some(new);
        Ok(())
    }

    /// Section 5.6.7: a role is verified with the keys of the delegation that leads to it, each time it is asked.
    fn delegated(
        &mut self,
        delegations: &Delegations,
        role: &DelegatedRole,
    ) -> Result<Document<DelegatedContent>, TufError> {
        if role.is_misnamed() {
            return Err(TufError::Name { name: role.name.clone() });
        }
        let (stem, name) = (file_stem(&role.name), format!("{}.json", role.name));
        let announced = self.listed(&name)?;
        if let Some(bytes) = kept(&self.store, &stem)?
            && let Ok(old) = Document::verify_delegated(&name, &bytes, delegations, role)
            && old.version == announced.version
            && announced.check(&name, &bytes).is_ok()
            && self.check_date(&name, old.expires).is_ok()
        {
            return Ok(old);
        }
        let bytes = self.announced_bytes(&name, &stem, &announced)?;
        let new = Document::verify_delegated(&name, &bytes, delegations, role)?;
        has_version(&name, new.version, announced.version)?;
        self.check_date(&name, new.expires)?;
        self.put(&stem, &bytes)?;
        Ok(new)
    }

    fn listed(&self, name: &str) -> Result<MetaFile, TufError> {
        let snapshot = self.snapshot.as_ref().ok_or_else(|| TufError::Missing { name: "snapshot.json".to_owned() })?;
        let listed = snapshot.content.0.meta.get(name);
        listed.cloned().ok_or_else(|| TufError::Unlisted { name: name.to_owned() })
    }

    fn announced<C: Content>(
        &mut self,
        name: &str,
        stem: &str,
        announced: &MetaFile,
    ) -> Result<(Vec<u8>, Document<C>), TufError> {
        let bytes = self.announced_bytes(name, stem, announced)?;
        let document = Document::verify(name, &bytes, &self.root.content)?;
        has_version(name, document.version, announced.version)?;
        Ok((bytes, document))
    }

    fn announced_bytes(&mut self, name: &str, stem: &str, announced: &MetaFile) -> Result<Vec<u8>, TufError> {
        let file = if self.consistent_snapshot() {
            format!("{}.{stem}.json", announced.version)
        } else {
            format!("{stem}.json")
        };
        let bytes_max = announced.length.unwrap_or(METADATA_BYTES_MAX).min(METADATA_BYTES_MAX);
        let bytes = self.get(&file, bytes_max)?.ok_or(TufError::Missing { name: file })?;
        announced.check(name, &bytes)?;
        Ok(bytes)
    }

    fn check_date(&self, name: &str, at: Timestamp) -> Result<(), TufError> {
        match self.dates {
            Dates::Enforced(now) if at <= now => Err(TufError::Expired { name: name.to_owned(), at }),
            Dates::Enforced(_) | Dates::Ignored => Ok(()),
        }
    }

    fn get(&mut self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, TufError> {
        let bytes = self.fetch.metadata(name, bytes_max);
        let bytes = bytes.map_err(|source| TufError::Fetch { name: name.to_owned(), source })?;
        match &bytes {
            Some(bytes) if bytes.len() as u64 > bytes_max => {
                Err(TufError::Length { name: name.to_owned(), found: bytes.len() as u64, signed: bytes_max })
            }
            Some(_) | None => Ok(bytes),
        }
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), TufError> {
        self.store.put(name, bytes).map_err(|source| TufError::Keep { name: name.to_owned(), source })
    }
}

fn kept(store: &impl MetadataStore, name: &str) -> Result<Option<Vec<u8>>, TufError> {
    store.get(name).map_err(|source| TufError::Keep { name: name.to_owned(), source })
}

fn snapshot_of(timestamp: &Document<TimestampContent>) -> Result<&MetaFile, TufError> {
    const NAME: &str = "snapshot.json";
    timestamp.content.0.meta.get(NAME).ok_or_else(|| TufError::Unlisted { name: NAME.to_owned() })
}

fn not_below(name: &str, found: NonZeroU64, seen: NonZeroU64) -> Result<(), TufError> {
    if found >= seen {
        Ok(())
    } else {
        Err(TufError::Rollback { name: name.to_owned(), found: found.get(), seen: seen.get() })
    }
}

fn has_version(name: &str, found: NonZeroU64, expected: NonZeroU64) -> Result<(), TufError> {
    if found == expected {
        Ok(())
    } else {
        Err(TufError::Version { name: name.to_owned(), expected: expected.get(), found: found.get() })
    }
}

/// Puts the roles that are trusted for `target` on the stack, the first of them last; none after a terminating one.
fn push(stack: &mut Vec<(Delegations, DelegatedRole)>, delegations: Option<&Delegations>, target: &str) {
    let Some(delegations) = delegations else { return };
    let mut roles = Vec::new();
    for role in delegations.roles.iter().filter(|role| role.covers(target)) {
        roles.push((delegations.clone(), role.clone()));
        if role.terminating {
            break;
        }
    }
    stack.extend(roles.into_iter().rev());
}
