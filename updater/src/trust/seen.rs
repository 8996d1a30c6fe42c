//! What a home remembers of the metadata it accepted: `trust/packages.json` and `trust/repository.json`.
//!
//! Each file is replaced in one piece and synced. It holds the metadata in the bytes it was signed in, and the root it was
//! accepted under, so that whatever happened to the file shows: what does not verify is an error that says how to
//! recover, and never an empty memory, which would let anybody bring back old metadata.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use refit_base::file_error;
use refit_tuf::document::{Document, RootDocument, SnapshotContent, TargetsContent, TimestampContent};
use refit_tuf::{METADATA_BYTES_MAX, MemoryStore, TufError};
use serde::{Deserialize, Serialize};

use super::error::{SeenProblem, TrustError};
use crate::durable;

/// Four metadata files, written as text in another.
const SEEN_BYTES_MAX: u64 = 16 * METADATA_BYTES_MAX;
/// The format of [`SeenFile`].
const FORMAT: u64 = 2;

/// Where metadata came from: each has versions of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Packages, each of which is a repository of its own.
    Packages,
    /// The repository that the appliance asks.
    Repository,
}

impl Source {
    pub(super) const ALL: [Self; 2] = [Self::Packages, Self::Repository];

    fn file_name(self) -> &'static str {
        match self {
            Self::Packages => "packages.json",
            Self::Repository => "repository.json",
        }
    }

    pub(super) fn path(self, dir: &Path) -> PathBuf {
        dir.join(self.file_name())
    }
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenFile {
    format: u64,
    time: Option<Timestamp>,
    released: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    accepted: Option<AcceptedFile>,
}

/// Metadata as text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AcceptedFile {
    root: String,
    timestamp: Option<String>,
    snapshot: Option<String>,
    targets: Option<String>,
}

/// What is remembered of one source.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// The latest time at which something was accepted; a clock before this is wrong, or was.
    pub(super) time: Option<Timestamp>,
    /// The latest signed date of a release that was accepted; a clock before this is wrong.
    pub(super) released: Option<Timestamp>,
    /// The newest metadata, under the names of a [`MemoryStore`], with its root; empty if none was accepted.
    pub(super) store: MemoryStore,
}

/// Metadata that was accepted, read again.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) root: RootDocument,
    pub(super) timestamp: Option<Document<TimestampContent>>,
    pub(super) snapshot: Option<Document<SnapshotContent>>,
    pub(super) targets: Option<Document<TargetsContent>>,
}

impl Seen {
    /// Reads what is remembered, and what of it is verified again.
    pub(super) fn read(dir: &Path, source: Source) -> Result<(Self, Option<Accepted>), TrustError> {
        let path = source.path(dir);
        if !path.exists() {
            return Err(TrustError::SeenMissing { path });
        }
        let bytes = durable::read_limited(&path, SEEN_BYTES_MAX).map_err(file_error("read", &path))?;
        Self::parse(&bytes).map_err(|source| TrustError::SeenDamaged { path, source: Box::new(source) })
    }

    fn parse(bytes: &[u8]) -> Result<(Self, Option<Accepted>), SeenProblem> {
        let file: SeenFile = serde_json::from_slice(bytes)?;
        if file.format != FORMAT {
            return Err(SeenProblem::Format { found: file.format, known: FORMAT });
        }
        let Some(accepted) = file.accepted else {
            return Ok((Self { time: file.time, released: file.released, store: MemoryStore::default() }, None));
        };
        let parts = [
            ("root", Some(accepted.root)),
            ("timestamp", accepted.timestamp),
            ("snapshot", accepted.snapshot),
            ("targets", accepted.targets),
        ];
        let store: BTreeMap<String, Vec<u8>> =
            parts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into_bytes()))).collect();
        let accepted = Accepted::verify(&store)?;
        Ok((Self { time: file.time, released: file.released, store: MemoryStore(store) }, Some(accepted)))
    }

    /// Writes what is to be remembered.
    pub(super) fn write(&self, dir: &Path, source: Source) -> Result<(), TrustError> {
        let path = source.path(dir);
        let damaged = |source| TrustError::SeenDamaged { path: path.clone(), source: Box::new(source) };
        let text = |name: &str| -> Result<Option<String>, TrustError> {
            let Some(bytes) = self.store.0.get(name) else { return Ok(None) };
            String::from_utf8(bytes.clone()).map(Some).map_err(|_no_text| damaged(SeenProblem::Text))
        };
        let accepted = match text("root")? {
            Some(root) => Some(AcceptedFile {
                root,
                timestamp: text("timestamp")?,
                snapshot: text("snapshot")?,
                targets: text("targets")?,
            }),
            None => None,
        };
        let file = SeenFile { format: FORMAT, time: self.time, released: self.released, accepted };
        let bytes = serde_json::to_vec(&file).map_err(|source| damaged(source.into()))?;
        Ok(durable::replace(dir, source.file_name(), &bytes).map_err(file_error("write", &path))?)
    }
}

impl Seen {
    /// Drops what the root that is now trusted no longer vouches for: its owner rotated the keys to get rid of that.
    pub(super) fn drop_revoked(&mut self) {
        let Some(Ok(root)) = self.store.0.get("root").map(|bytes| RootDocument::verify_root("root.json", bytes)) else {
            return;
        };
        let signer = &root.content;
        self.store.0.retain(|name, bytes| match name.as_str() {
            "timestamp" => Document::<TimestampContent>::verify(name, bytes, signer).is_ok(),
            "snapshot" => Document::<SnapshotContent>::verify(name, bytes, signer).is_ok(),
            "targets" => Document::<TargetsContent>::verify(name, bytes, signer).is_ok(),
            _root => true,
        });
    }
}

impl Accepted {
    fn verify(store: &BTreeMap<String, Vec<u8>>) -> Result<Self, SeenProblem> {
        let root = store.get("root").ok_or_else(|| TufError::Missing { name: "root".to_owned() })?;
        let root = RootDocument::verify_root("root.json", root)?;
        let signer = &root.content;
        let timestamp = store.get("timestamp").map(|bytes| Document::verify("timestamp.json", bytes, signer));
        let snapshot = store.get("snapshot").map(|bytes| Document::verify("snapshot.json", bytes, signer));
        let targets = store.get("targets").map(|bytes| Document::verify("targets.json", bytes, signer));
        let (timestamp, snapshot, targets) = (timestamp.transpose()?, snapshot.transpose()?, targets.transpose()?);
        Ok(Self { root, timestamp, snapshot, targets })
    }
}
