//! Trust: TUF metadata and SHA-256, bytes to a [`VerifiedManifest`].
//!
//! An appliance trusts a root, `trust/root.json`, that it was given with its factory software, and everything that root's
//! keys lead to: newer roots, and the metadata of a package, down to the digest of its manifest. [`tough`] decides; it
//! works on a copy, and what must be remembered is written by [`Trust::commit`], each file in one piece and synced.
//!
//! What is protected: nobody without the keys can change a byte of a package, pass off an older root for a newer one, or
//! bring back metadata of a lower version than was seen (`trust/packages.json`). Every package is a small repository of
//! its own, whose metadata has version 1 unless the vendor says otherwise: so an older package stays acceptable to TUF,
//! and that versions only go upward is the policy of [`crate::receive()`], which an operator may override. A vendor who
//! must make old packages unacceptable for good packs newer ones with a higher metadata version. Metadata has one
//! spelling (canonical JSON), so that one package has one sequence of bytes.

mod load;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tough::schema::{RoleType, Root, Signed};

use crate::class::Class;
use crate::digest::Digest;
use crate::durable;
use crate::fault;
use crate::manifest::{Manifest, ManifestError};
use crate::package::{METADATA_BYTES_MAX, Metadata};

pub(crate) use load::load;

/// The trusted root, in `trust/`.
const ROOT_NAME: &str = "root.json";
/// What was seen of packages, in `trust/`.
const SEEN_NAME: &str = "packages.json";
/// Three metadata files, in another spelling.
const SEEN_BYTES_MAX: u64 = 4 * METADATA_BYTES_MAX;
/// The format of [`Seen`].
const SEEN_FORMAT: u64 = 1;

/// What to do with a package whose metadata is past its date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expired {
    /// Accept it and say so: a stick in a drawer goes on being useful, and the signature is as good as ever.
    #[default]
    Warn,
    /// Refuse it.
    Refuse,
}

/// The trust of one home.
#[derive(Debug, Clone)]
pub struct Trust {
    home: PathBuf,
}

/// A manifest whose bytes match a signed digest. Only verification makes one.
#[derive(Debug)]
pub struct VerifiedManifest {
    bytes: Vec<u8>,
    digest: Digest,
    manifest: Manifest,
    expired: bool,
    remember: Remember,
}

impl VerifiedManifest {
    /// Returns the manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the manifest's bytes, which the signature covers.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the digest of the manifest's bytes: the identity of the release.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns whether some of the metadata is past its date.
    #[must_use]
    pub fn expired(&self) -> bool {
        self.expired
    }

    /// Returns the manifest by value.
    #[must_use]
    pub fn into_manifest(self) -> Manifest {
        self.manifest
    }
}

/// What must be remembered once a package is accepted.
#[derive(Debug)]
struct Remember {
    root: Option<Vec<u8>>,
    seen: Seen,
}

/// `trust/packages.json`: the newest metadata that was accepted with a package.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seen {
    format: u64,
    /// When; a clock before this is wrong.
    time: Option<Timestamp>,
    pub(crate) timestamp: Option<Value>,
    pub(crate) snapshot: Option<Value>,
    pub(crate) targets: Option<Value>,
}

/// Why a package is not trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
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
    /// The home trusts nobody yet.
    #[error("no root is trusted: {} is missing", path.display())]
    NoRoot {
        /// Where the root belongs.
        path: PathBuf,
    },
    /// The home trusts another root already.
    #[error("{} is trusted already and differs", path.display())]
    OtherRootTrusted {
        /// Where it lies.
        path: PathBuf,
    },
    /// What remembers the metadata seen is missing or damaged.
    #[error("{} is missing or damaged: rollbacks cannot be told", path.display())]
    SeenDamaged {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong with it, if it is there.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// Bytes that are no metadata of the role their name says.
    #[error("{name} is not the metadata its name says")]
    Metadata {
        /// The file's name.
        name: String,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// Metadata in another spelling than the one it has.
    #[error("{name} is not in canonical form")]
    Spelling {
        /// The file's name.
        name: String,
    },
    /// A root without enough signatures of its own keys, or of those of the root before it.
    #[error("root {version} is not signed as it and the root before it require")]
    RootUnsigned {
        /// The root's version.
        version: u64,
        /// What the check found.
        #[source]
        source: Box<tough::schema::Error>,
    },
    /// A root whose name and version differ.
    #[error("root {name} says that it is version {version}")]
    RootMisnamed {
        /// The number in its name.
        name: u64,
        /// The version in it.
        version: u64,
    },
    /// The package's root of the trusted version is another one.
    #[error("the package's root {version} is not the one this appliance trusts")]
    OtherRoot {
        /// The version.
        version: u64,
    },
    /// The metadata is not signed as the trusted root requires, or is older than what was seen.
    #[error("the package's signatures do not hold")]
    Refused {
        /// What the check found.
        #[source]
        source: Box<tough::error::Error>,
    },
    /// The metadata does not name the manifest.
    #[error("the signed metadata names no manifest.json")]
    NoTarget,
    /// The manifest is not the one that was signed.
    #[error("manifest.json has the digest {found}, {signed} was signed")]
    OtherManifest {
        /// The digest it has.
        found: Digest,
        /// The digest that was signed.
        signed: Digest,
    },
    /// The signed manifest describes what must not be in a release.
    #[error("the manifest is refused")]
    Manifest {
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// The metadata is past its date, and the policy refuses that.
    #[error("the {role} metadata expired at {at}")]
    Expired {
        /// The role that expired first.
        role: RoleType,
        /// When.
        at: Timestamp,
    },
    /// The clock is before a moment that was seen, and expiry cannot be judged.
    #[error("the clock says {now}, but {seen} was seen before")]
    ClockWentBack {
        /// What it says.
        now: Timestamp,
        /// What it said before.
        seen: Timestamp,
    },
    /// The work could not be started.
    #[error("cannot start the verification")]
    Start {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The work ended without a result.
    #[error("the verification ended without a result")]
    Lost,
}

impl TrustError {
    /// Returns what kind of failure it was.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Io { .. } | Self::SeenDamaged { .. } => Class::Disk,
            Self::Start { .. } | Self::Lost => Class::Internal,
            Self::NoRoot { .. }
            | Self::OtherRootTrusted { .. }
            | Self::Metadata { .. }
            | Self::Spelling { .. }
            | Self::RootUnsigned { .. }
            | Self::RootMisnamed { .. }
            | Self::OtherRoot { .. }
            | Self::Refused { .. }
            | Self::NoTarget
            | Self::OtherManifest { .. }
            | Self::Manifest { .. }
            | Self::Expired { .. }
            | Self::ClockWentBack { .. } => Class::Refused,
        }
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Io { .. } => "free space or check the disk and its permissions, then try again",
            Self::NoRoot { .. } => "give the appliance the vendor's root.json first",
            Self::OtherRootTrusted { .. } => "a trusted root changes only through a package signed with it",
            Self::SeenDamaged { .. } => "restore trust/ from a backup, or trust the vendor's root.json anew",
            Self::Metadata { .. }
            | Self::Spelling { .. }
            | Self::RootUnsigned { .. }
            | Self::RootMisnamed { .. }
            | Self::Refused { .. }
            | Self::NoTarget
            | Self::OtherManifest { .. } => "get the package again from its vendor; nothing was changed",
            Self::Manifest { source: ManifestError::Format { .. } } => {
                "update to a release with a newer refit first; nothing was changed"
            }
            Self::Manifest { .. } => "ask the vendor for a package that is in order; nothing was changed",
            Self::OtherRoot { .. } => "choose a package of this appliance's vendor; nothing was changed",
            Self::Expired { .. } => "get a package with newer metadata; nothing was changed",
            Self::ClockWentBack { .. } => "set the clock; nothing was changed",
            Self::Start { .. } | Self::Lost => "try again; if it stays so, report it as a bug of refit",
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrustError {
    let path = path.to_owned();
    move |source| TrustError::Io { action, path, source }
}

impl Trust {
    /// Makes `root` the trusted root of a home that has none yet; the same root again changes nothing.
    ///
    /// # Errors
    /// The bytes are no root that its own keys signed, the home trusts another one, or a file operation failed.
    pub fn install_root(home: &Path, root: &[u8]) -> Result<Self, TrustError> {
        let dir = home.join("trust");
        let path = dir.join(ROOT_NAME);
        let parsed = load::parse_root(ROOT_NAME, root)?;
        parsed.signed.verify_role(&parsed).map_err(|source| TrustError::RootUnsigned {
            version: parsed.signed.version.get(),
            source: Box::new(source),
        })?;
        if path.exists() {
            let same = fs::read(&path).map_err(io_error("read", &path))? == root;
            return if same { Ok(Self { home: home.to_owned() }) } else { Err(TrustError::OtherRootTrusted { path }) };
        }
        durable::create_dirs(&dir).map_err(io_error("make", &dir))?;
        // The root last: while it is missing, nothing is trusted and the rest has no meaning.
        write_seen(&dir, &Seen { format: SEEN_FORMAT, ..Seen::default() })?;
        durable::replace(&dir, ROOT_NAME, root).map_err(io_error("write", &path))?;
        Ok(Self { home: home.to_owned() })
    }

    /// Returns the trust of a home that was given a root.
    ///
    /// # Errors
    /// It was given none.
    pub fn open(home: &Path) -> Result<Self, TrustError> {
        let path = home.join("trust").join(ROOT_NAME);
        if path.is_file() { Ok(Self { home: home.to_owned() }) } else { Err(TrustError::NoRoot { path }) }
    }

    /// Returns the trusted root's bytes.
    ///
    /// # Errors
    /// They could not be read.
    pub fn root(&self) -> Result<Vec<u8>, TrustError> {
        let path = self.dir().join(ROOT_NAME);
        durable::read_limited(&path, METADATA_BYTES_MAX).map_err(io_error("read", &path))
    }

    /// Returns the manifest in `bytes`, if the trusted root's keys signed it.
    ///
    /// Changes nothing on disk but in `staging/`, where its scratch directory is gone again when it returns: what is to be
    /// remembered is written by [`Trust::commit`].
    ///
    /// # Errors
    /// The package is not to be trusted, or the home's own trust is damaged.
    pub fn verify(
        &self,
        metadata: &Metadata,
        bytes: &[u8],
        expired: Expired,
        now: Timestamp,
    ) -> Result<VerifiedManifest, TrustError> {
        let root = self.root()?;
        let mut seen = self.seen()?;
        let staging = self.home.join("staging");
        let scratch = tempfile::Builder::new()
            .prefix("trust-")
            .tempdir_in(&staging)
            .map_err(io_error("make a directory in", &staging))?;
        let loaded = load(&root, metadata, Some((scratch.path(), &seen)))?;
        let is_expired = loaded.first_expiry.0 <= now;
        if expired == Expired::Refuse {
            if let Some(seen) = seen.time.filter(|seen| *seen > now) {
                return Err(TrustError::ClockWentBack { now, seen });
            }
            if is_expired {
                return Err(TrustError::Expired { role: loaded.first_expiry.1, at: loaded.first_expiry.0 });
            }
        }
        let manifest = loaded.manifest(bytes)?;
        seen.time = seen.time.max(Some(now));
        let value = |name: &'static str, result: Result<Value, serde_json::Error>| {
            result.map(Some).map_err(|source| TrustError::Metadata { name: name.to_owned(), source })
        };
        seen.timestamp = value("timestamp.json", serde_json::to_value(&loaded.timestamp))?;
        seen.snapshot = value("snapshot.json", serde_json::to_value(&loaded.snapshot))?;
        seen.targets = value("targets.json", serde_json::to_value(&loaded.targets))?;
        Ok(VerifiedManifest {
            bytes: bytes.to_vec(),
            digest: Digest::of(bytes),
            manifest,
            expired: is_expired,
            remember: Remember { root: loaded.new_root, seen },
        })
    }

    /// Remembers what was accepted: a newer root, and the versions that later metadata must not go below.
    ///
    /// # Errors
    /// The old or the new trust is on disk, each file whole.
    pub fn commit(&self, verified: &VerifiedManifest) -> Result<(), TrustError> {
        let dir = self.dir();
        // The root first: should the second write be lost, older metadata is still judged by keys that are newer.
        if let Some(root) = &verified.remember.root {
            durable::replace(&dir, ROOT_NAME, root).map_err(io_error("write", &dir.join(ROOT_NAME)))?;
        }
        write_seen(&dir, &verified.remember.seen)?;
        fault::point("trust_saved");
        Ok(())
    }

    fn dir(&self) -> PathBuf {
        self.home.join("trust")
    }

    fn seen(&self) -> Result<Seen, TrustError> {
        let path = self.dir().join(SEEN_NAME);
        if !path.exists() {
            return Err(TrustError::SeenDamaged { path, source: None });
        }
        let bytes = durable::read_limited(&path, SEEN_BYTES_MAX).map_err(io_error("read", &path))?;
        match serde_json::from_slice::<Seen>(&bytes) {
            Ok(seen) if seen.format == SEEN_FORMAT => Ok(seen),
            Ok(_other_format) => Err(TrustError::SeenDamaged { path, source: None }),
            Err(source) => Err(TrustError::SeenDamaged { path, source: Some(source) }),
        }
    }
}

fn write_seen(dir: &Path, seen: &Seen) -> Result<(), TrustError> {
    let path = dir.join(SEEN_NAME);
    let bytes = serde_json::to_vec(seen)
        .map_err(|source| TrustError::SeenDamaged { path: path.clone(), source: Some(source) })?;
    durable::replace(dir, SEEN_NAME, &bytes).map_err(io_error("write", &path))
}

/// Returns the ids of the keys whose signatures `root` carries, for readers.
pub(crate) fn key_ids<T>(signed: &Signed<T>) -> Vec<String> {
    signed.signatures.iter().map(|signature| hex::encode(&*signature.keyid)).collect()
}

/// Returns the root in `bytes`.
pub(crate) fn parse_root(bytes: &[u8]) -> Result<Signed<Root>, TrustError> {
    load::parse_root(ROOT_NAME, bytes)
}
