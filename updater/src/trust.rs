//! Trust: TUF metadata and SHA-256, bytes to a [`VerifiedManifest`].
//!
//! An appliance trusts a root, `trust/root.json`, that it was given with its factory software, and everything that root's
//! keys lead to: newer roots, and the metadata of a package or repository, down to the digest of a manifest. [`refit_tuf`]
//! decides; what must be remembered is written by [`Trust::commit`] and [`Trust::refresh`], each file in one piece and
//! synced.
//!
//! What is protected: nobody without the keys can change a byte of a package, pass off an older root for a newer one, or
//! bring back metadata of a lower version than was seen (`trust/packages.json`, `trust/repository.json`). Every package is
//! a small repository of its own, whose metadata has version 1 unless the vendor says otherwise: so an older package stays
//! acceptable to TUF, and that versions only go upward is the policy of [`crate::receive`], which an operator may
//! override. A vendor who must make old packages unacceptable for good packs newer ones with a higher metadata version
//! (`refit pack --metadata-version`). Those versions and a repository's have nothing to do with each other: metadata of a
//! package that somebody serves as a repository is not remembered as one.
//! Metadata of a package has one spelling (canonical JSON), so that one package has one sequence of bytes.
//!
//! A file of `trust/` that is missing, torn or altered is an error, never an empty memory; [`Trust::reset`] is the way out
//! that somebody must ask for.

mod error;
mod load;
mod seen;
mod status;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use refit_base::file_error;
use refit_tuf::document::RootDocument;
use refit_tuf::{Client, Dates, Fetch, METADATA_BYTES_MAX, MemoryStore, SameVersion, Target};
use serde::{Deserialize, Serialize};
use tough::schema::RoleType;

use crate::digest::Digest;
use crate::durable;
use crate::fault;
use crate::manifest::Manifest;
use crate::modes;
use crate::package::{MANIFEST_NAME, Metadata};
use seen::{Seen, Source};

pub use error::{SeenProblem, TrustError};
pub use load::{Loaded, load};
pub use status::{RoleStatus, TrustStatus};

/// The trusted root, in `trust/`.
const ROOT_NAME: &str = "root.json";

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
    expired: Option<(RoleType, Timestamp)>,
    clock_behind: Option<Timestamp>,
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

    /// Returns the role whose metadata was the first to be past its date, if some is, and the date.
    #[must_use]
    pub fn expired(&self) -> Option<(RoleType, Timestamp)> {
        self.expired
    }

    /// Returns the date of a signed release that the clock is before, if it is: then dates cannot be judged.
    #[must_use]
    pub fn clock_behind(&self) -> Option<Timestamp> {
        self.clock_behind
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
    source: Source,
    root: Option<Vec<u8>>,
    seen: Seen,
}

impl Trust {
    /// Makes `root` the trusted root of a home that has none yet; the same root again changes nothing.
    ///
    /// # Errors
    /// The bytes are no root that its own keys signed, the home trusts another one, or a file operation failed.
    pub fn install_root(home: &Path, root: &[u8]) -> Result<Self, TrustError> {
        let trust = Self { home: home.to_owned() };
        let path = trust.dir().join(ROOT_NAME);
        parse_new_root(root)?;
        if path.exists() {
            let same = fs::read(&path).map_err(file_error("read", &path))? == root;
            return if same { Ok(trust) } else { Err(TrustError::OtherRootTrusted { path }) };
        }
        trust.begin(root)?;
        Ok(trust)
    }

    /// Makes `root` the trusted root, whatever was trusted before, and forgets which versions were seen.
    ///
    /// It is for a home whose trust is damaged: whoever calls it vouches for `root`.
    ///
    /// # Errors
    /// The bytes are no root that its own keys signed, and nothing has changed; or a file operation failed, and nothing may
    /// be trusted any more until this is done again.
    pub fn reset(home: &Path, root: &[u8]) -> Result<Self, TrustError> {
        parse_new_root(root)?;
        let trust = Self { home: home.to_owned() };
        trust.begin(root)?;
        Ok(trust)
    }

    fn begin(&self, root: &[u8]) -> Result<(), TrustError> {
        let dir = self.dir();
        durable::create_dirs(&dir, modes::of("trust")).map_err(file_error("make", &dir))?;
        // While the root is missing nothing is trusted and the rest has no meaning: it goes first and comes last.
        let root_path = dir.join(ROOT_NAME);
        durable::remove_file(&root_path).map_err(file_error("remove", &root_path))?;
        for source in Source::ALL {
            Seen::default().write(&dir, source)?;
        }
        Ok(durable::replace(&dir, ROOT_NAME, root).map_err(file_error("write", &root_path))?)
    }

    /// Returns the trust of a home, whatever state it is in: an appliance runs on when its trust is damaged, and only
    /// accepts nothing.
    #[must_use]
    pub fn of(home: &Path) -> Self {
        Self { home: home.to_owned() }
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
        Ok(self.trusted_root()?.bytes)
    }

    fn trusted_root(&self) -> Result<RootDocument, TrustError> {
        let path = self.dir().join(ROOT_NAME);
        if !path.exists() {
            return Err(TrustError::NoRoot { path });
        }
        let bytes = durable::read_limited(&path, METADATA_BYTES_MAX).map_err(file_error("read", &path))?;
        RootDocument::verify_root(ROOT_NAME, &bytes)
            .map_err(|source| TrustError::RootDamaged { path, source: Box::new(source) })
    }

    /// Returns the trusted root and what is remembered of `source`.
    fn remembered(&self, source: Source) -> Result<(RootDocument, Seen), TrustError> {
        let root = self.trusted_root()?;
        let (seen, accepted) = Seen::read(&self.dir(), source)?;
        if let Some(accepted) = accepted {
            let (found, seen) = (root.version.get(), accepted.root.version.get());
            if found < seen || (found == seen && root.content != accepted.root.content) {
                return Err(TrustError::RootWentBack { path: self.dir().join(ROOT_NAME), found, seen });
            }
        }
        Ok((root, seen))
    }

    /// Returns the latest date of a signed release that this home has accepted.
    fn released(&self) -> Result<Option<Timestamp>, TrustError> {
        let mut latest = None;
        for source in Source::ALL {
            latest = latest.max(Seen::read(&self.dir(), source)?.0.released);
        }
        Ok(latest)
    }

    /// Returns the manifest in `bytes`, if the trusted root's keys signed it.
    ///
    /// Changes nothing on disk: what is to be remembered is written by [`Trust::commit`].
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
        let (root, mut seen) = self.remembered(Source::Packages)?;
        let mut store = seen.store.clone();
        store.0.insert("root".to_owned(), root.bytes.clone());
        let loaded = load(store, &root, metadata)?;
        let (manifest, released) = loaded.manifest(bytes)?;
        let clock_behind = self.released()?.max(released).filter(|date| *date > now);
        let (first_at, first_role) = loaded.first_expiry();
        let past = (first_at <= now).then_some((first_role, first_at));
        if expired == Expired::Refuse {
            if let Some(seen) = seen.time.max(clock_behind).filter(|seen| *seen > now) {
                return Err(TrustError::ClockWentBack { now, seen });
            }
            if let Some((role, at)) = past {
                return Err(TrustError::Expired { role, at });
            }
        }
        seen.time = seen.time.max(Some(now));
        seen.released = seen.released.max(released);
        seen.store = MemoryStore(BTreeMap::from([
            ("root".to_owned(), loaded.root.bytes.clone()),
            ("timestamp".to_owned(), loaded.timestamp.bytes),
            ("snapshot".to_owned(), loaded.snapshot.bytes),
            ("targets".to_owned(), loaded.targets.bytes),
        ]));
        Ok(VerifiedManifest {
            bytes: bytes.to_vec(),
            digest: Digest::of(bytes),
            manifest,
            expired: past,
            clock_behind,
            remember: Remember {
                source: Source::Packages,
                root: loaded.is_root_new.then_some(loaded.root.bytes),
                seen,
            },
        })
    }

    /// Remembers what was accepted: a newer root, and the versions that later metadata must not go below.
    ///
    /// # Errors
    /// The old or the new trust is on disk, each file whole.
    pub fn commit(&self, verified: &VerifiedManifest) -> Result<(), TrustError> {
        let Remember { source, root, seen } = &verified.remember;
        self.save(*source, root.as_deref(), seen)?;
        fault::point("trust_saved");
        Ok(())
    }

    /// Brings what is known of a repository up to date and remembers it. Dates are enforced: a repository that serves
    /// what is past its date hides what is newer.
    ///
    /// # Errors
    /// The repository cannot be read or is not to be trusted, or the home's own trust is damaged. Newer roots that were
    /// accepted before that are remembered, and nothing else: whether timestamp and snapshot are a repository's shows only
    /// in the targets, and those of a package, which the same keys sign, would shut out the repository's own.
    pub fn refresh(&self, fetch: impl Fetch, now: Timestamp) -> Result<Catalogue, TrustError> {
        let (root, seen) = self.remembered(Source::Repository)?;
        if let Some(seen) = self.released()?.filter(|date| *date > now) {
            return Err(TrustError::ClockWentBack { now, seen });
        }
        let mut store = seen.store.clone();
        store.0.insert("root".to_owned(), root.bytes.clone());
        let mut client = Client::new(fetch, store, Dates::Enforced(now), SameVersion::Keep)?;
        let refreshed = client.refresh().map_err(TrustError::of_repository).and_then(|()| {
            let targets = client.targets().map(|targets| targets.content.targets.clone()).unwrap_or_default();
            if targets.contains_key(MANIFEST_NAME) { Err(TrustError::PackageMetadata) } else { Ok(targets) }
        });
        let newest = client.root().bytes.clone();
        let new_root = (client.root().version.get() > root.version.get()).then(|| newest.clone());
        let mut new = seen.clone();
        if refreshed.is_ok() {
            new.store = client.into_store();
        } else {
            new.store.0.insert("root".to_owned(), newest);
        }
        new.drop_revoked();
        if new.store != seen.store {
            self.save(Source::Repository, new_root.as_deref(), &new)?;
        }
        Ok(Catalogue { targets: refreshed?, seen: new })
    }

    /// Returns the manifest in `bytes`, if it is the target `name` of the repository that was asked.
    ///
    /// # Errors
    /// There is no such target, or it is another.
    pub fn verify_target(
        &self,
        catalogue: &Catalogue,
        name: &str,
        bytes: &[u8],
        now: Timestamp,
    ) -> Result<VerifiedManifest, TrustError> {
        let target = catalogue.targets.get(name).ok_or(TrustError::NoTarget)?;
        let (manifest, released) = load::parse_manifest(target, name, bytes)?;
        let clock_behind = self.released()?.max(released).filter(|date| *date > now);
        let mut seen = catalogue.seen.clone();
        seen.time = seen.time.max(Some(now));
        seen.released = seen.released.max(released);
        Ok(VerifiedManifest {
            bytes: bytes.to_vec(),
            digest: Digest::of(bytes),
            manifest,
            expired: None,
            clock_behind,
            remember: Remember { source: Source::Repository, root: None, seen },
        })
    }

    fn save(&self, source: Source, root: Option<&[u8]>, seen: &Seen) -> Result<(), TrustError> {
        let dir = self.dir();
        // The root first: should the second write be lost, older metadata is still judged by keys that are newer.
        if let Some(root) = root {
            durable::replace(&dir, ROOT_NAME, root).map_err(file_error("write", &dir.join(ROOT_NAME)))?;
        }
        seen.write(&dir, source)
    }

    fn dir(&self) -> PathBuf {
        self.home.join("trust")
    }
}

/// What a repository offers: metadata that is up to date and signed.
#[derive(Debug)]
pub struct Catalogue {
    targets: BTreeMap<String, Target>,
    seen: Seen,
}

impl Catalogue {
    /// Returns what is signed, by name.
    #[must_use]
    pub fn targets(&self) -> &BTreeMap<String, Target> {
        &self.targets
    }
}

fn parse_new_root(root: &[u8]) -> Result<RootDocument, TrustError> {
    RootDocument::verify_root(ROOT_NAME, root).map_err(|source| TrustError::NotARoot { source: Box::new(source) })
}
