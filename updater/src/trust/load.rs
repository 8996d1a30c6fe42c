//! One package's metadata through the TUF client.

use std::io;

use jiff::Timestamp;
use refit_tuf::document::{Document, RootDocument, SnapshotContent, TargetsContent, TimestampContent, spell};
use refit_tuf::{Client, Dates, Fetch, MemoryStore, SameVersion, Target, TufError};
use serde_json::Value;
use tough::schema::{RoleType, Signed};

use super::TrustError;
use crate::digest::Digest;
use crate::manifest::{Manifest, RELEASED};
use crate::package::{MANIFEST_NAME, Metadata};

/// Metadata that is signed as a root requires.
pub struct Loaded {
    /// The newest root.
    pub root: RootDocument,
    /// The timestamp.
    pub timestamp: Document<TimestampContent>,
    /// The snapshot.
    pub snapshot: Document<SnapshotContent>,
    /// The targets.
    pub targets: Document<TargetsContent>,
    /// Whether the package brought a root that is newer than the trusted one.
    pub is_root_new: bool,
}

impl Loaded {
    /// Returns the manifest in `bytes`, if it is the one that was signed, and when its release was made.
    ///
    /// # Errors
    /// It is not, or it describes what must not be in a release.
    pub fn manifest(&self, bytes: &[u8]) -> Result<(Manifest, Option<Timestamp>), TrustError> {
        let target = self.targets.content.targets.get(MANIFEST_NAME).ok_or(TrustError::NoTarget)?;
        parse_manifest(target, MANIFEST_NAME, bytes)
    }

    /// Returns when the first of the roles expires, and which.
    #[must_use]
    pub fn first_expiry(&self) -> (Timestamp, RoleType) {
        let root = (self.root.expires, RoleType::Root);
        [
            (self.timestamp.expires, RoleType::Timestamp),
            (self.snapshot.expires, RoleType::Snapshot),
            (self.targets.expires, RoleType::Targets),
        ]
        .into_iter()
        .fold(root, |first, next| if next.0 < first.0 { next } else { first })
    }
}

/// Returns the manifest in `bytes`, if it is the target that was signed, and when its release was made.
pub(super) fn parse_manifest(
    target: &Target,
    name: &str,
    bytes: &[u8],
) -> Result<(Manifest, Option<Timestamp>), TrustError> {
    if let Err(source) = target.check(name, bytes) {
        return Err(TrustError::OtherManifest { found: Digest::of(bytes), source: Box::new(source) });
    }
    let released = target.custom.get(RELEASED).and_then(Value::as_str).and_then(|text| text.parse().ok());
    Ok((Manifest::parse(bytes).map_err(|source| TrustError::Manifest { source })?, released))
}

/// Verifies `metadata` against the root that `store` holds, and against what else it holds of earlier packages.
///
/// # Errors
/// It is not to be trusted.
pub fn load(store: MemoryStore, trusted: &RootDocument, metadata: &Metadata) -> Result<Loaded, TrustError> {
    check_spelling(metadata)?;
    check_roots(metadata, trusted)?;
    // Expiry is judged by the caller: a package in a drawer may be older than any date.
    let mut client = Client::new(Entries(metadata), store, Dates::Ignored, SameVersion::Replace)?;
    client.refresh()?;
    let missing = |name: &str| TufError::Missing { name: name.to_owned() };
    Ok(Loaded {
        is_root_new: client.root().version.get() > trusted.version.get(),
        root: client.root().clone(),
        timestamp: client.timestamp().cloned().ok_or_else(|| missing("timestamp.json"))?,
        snapshot: client.snapshot().cloned().ok_or_else(|| missing("snapshot.json"))?,
        targets: client.targets().cloned().ok_or_else(|| missing("targets.json"))?,
    })
}

/// Refuses metadata that says the same in other bytes: a signature covers the meaning, not the spelling.
fn check_spelling(metadata: &Metadata) -> Result<(), TrustError> {
    for (name, bytes) in metadata.iter() {
        let envelope: Signed<Value> =
            serde_json::from_slice(bytes).map_err(|source| TufError::Format { name: name.clone(), source })?;
        if spell(&envelope.signed, &envelope.signatures).is_none_or(|spelled| spelled != bytes) {
            return Err(TrustError::Spelling { name });
        }
    }
    Ok(())
}

/// Checks the package's whole chain of roots, also the part that is older than the trusted one: the client looks only
/// at what is newer, and a package has no bytes that nobody vouches for.
fn check_roots(metadata: &Metadata, trusted: &RootDocument) -> Result<(), TrustError> {
    let mut before: Option<RootDocument> = None;
    for (number, bytes) in &metadata.roots {
        let name = format!("{number}.root.json");
        let root = RootDocument::verify_root(&name, bytes)?;
        if root.version.get() != *number {
            return Err(TufError::Version { name, expected: *number, found: root.version.get() }.into());
        }
        if root.version.get() == trusted.version.get() && root.content != trusted.content {
            return Err(TrustError::OtherRoot { version: *number });
        }
        if let Some(before) = &before {
            before.signs_root(&name, &root)?;
        }
        before = Some(root);
    }
    Ok(())
}

/// Serves the entries of one package.
struct Entries<'a>(&'a Metadata);

impl Fetch for Entries<'_> {
    fn metadata(&mut self, name: &str, _bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let root = name.strip_suffix(".root.json").and_then(|number| number.parse().ok());
        let found = root.and_then(|number: u64| self.0.roots.get(&number)).or_else(|| self.0.files.get(name));
        Ok(found.cloned())
    }
}
