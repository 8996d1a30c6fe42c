//! Looking at a package without installing it: what is in it, who signed it, whether every byte is as signed, and what it
//! changes of another one.

mod compare;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use refit_base::{Exit, Report, Reported};
use refit_tuf::document::RootDocument;
use refit_tuf::{MemoryStore, TufError};
use refit_updater::digest::Digest;
use refit_updater::manifest::{Manifest, Totals};
use refit_updater::package::{END_BYTES, Package, PackageError, Payload, entry_bytes, filling};
use refit_updater::receive::{PayloadError, check_payload};
use refit_updater::trust::{Loaded, TrustError, load};
use serde::Serialize;

pub use compare::{Change, Comparison, FileChange, Side, compare};

/// Headers and small frames are read in one call.
const INPUT_BUFFER_BYTES: usize = 64 << 10;

/// What a package holds.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Digest of the manifest: the identity of the release.
    pub digest: Digest,
    /// Bytes of the package.
    pub package_bytes: u64,
    /// Whether the root it was checked against was given, and not the package's own.
    pub trusted: bool,
    /// Whether every frame was decoded and has its signed digest.
    pub checked: bool,
    /// The version of the newest root.
    pub root_version: u64,
    /// Ids of the keys that signed the targets.
    pub key_ids: Vec<String>,
    /// When the release was made, if its metadata says so.
    pub released: Option<Timestamp>,
    /// When the first of its roles expires.
    pub expires: Timestamp,
    /// The role that does.
    pub expires_role: String,
    /// Whether that is past.
    pub expired: bool,
    /// What the release holds, in numbers.
    pub totals: Totals,
    /// Everything in the release.
    pub manifest: Manifest,
}

/// Why a package cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a directory.
    #[error("{} is a directory, and no package", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// The file cannot be read to its end.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it was to be verified against is no root.
    #[error("the root of trust that was given is no root")]
    NotARoot {
        /// What is wrong with it.
        #[source]
        source: Box<TufError>,
    },
    /// The bytes are no package.
    #[error(transparent)]
    Package {
        /// What is wrong with them.
        #[from]
        source: PackageError,
    },
    /// The signatures do not hold.
    #[error(transparent)]
    Trust {
        /// Why.
        #[from]
        source: TrustError,
    },
    /// The payload is not the one that was signed.
    #[error(transparent)]
    Payload {
        /// Why.
        #[from]
        source: PayloadError,
    },
}

impl Inspection {
    /// Returns where in the package the payload begins.
    #[must_use]
    pub fn payload_begin(&self) -> u64 {
        let payload = self.manifest.payload_bytes();
        self.package_bytes - END_BYTES - payload - filling(payload) as u64
    }
}

impl InspectError {
    /// Returns the error for a package that is the file at `path`: nobody can send that again.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Package { source: PackageError::Input { source } }
            | Self::Payload { source: PayloadError::Package { source: PackageError::Input { source } } } => {
                Self::Read { path: path.to_owned(), source }
            }
            Self::Open { .. }
            | Self::Directory { .. }
            | Self::Read { .. }
            | Self::NotARoot { .. }
            | Self::Package { .. }
            | Self::Trust { .. }
            | Self::Payload { .. } => self,
        }
    }
}

impl Reported for InspectError {
    fn report(&self) -> Report<'_> {
        const CODE: &str = "package_refused";
        match self {
            Self::Open { .. } => Report::new(CODE, Exit::Disk, "check the path and its permissions"),
            Self::Read { .. } => Report::new(CODE, Exit::Disk, "check the disk that it lies on, or take another copy"),
            Self::Directory { .. } => {
                Report::new(CODE, Exit::Refused, "name the package: a file that `refit pack` has made")
            }
            Self::NotARoot { .. } => {
                Report::new(CODE, Exit::Refused, "name the vendor's root: N.root.json in the directory of the keys")
            }
            Self::Package { source } => source.report(),
            Self::Trust { source } => source.report(),
            Self::Payload { source } => source.report(),
        }
    }
}

/// Reads the package at `path` and checks its signatures: against `root` if it is given, or else against the first root in
/// the package itself, which shows that nobody altered it, but not who made it. With `check` every frame is decoded, too.
///
/// # Errors
/// It is no package, or not as it was signed.
pub fn inspect(path: &Path, root: Option<&[u8]>, check: bool, now: Timestamp) -> Result<Inspection, InspectError> {
    inspect_open(open(path)?, path, root, check, now)
}

/// Does as [`inspect`] with a package that is open: a file, or a pipe, which is read to its end. `path` is what messages call
/// it.
///
/// # Errors
/// As there.
pub fn inspect_open(
    file: File,
    path: &Path,
    root: Option<&[u8]>,
    check: bool,
    now: Timestamp,
) -> Result<Inspection, InspectError> {
    inspect_file(file, root, check, now).map_err(|error| error.in_file(path))
}

fn inspect_file(file: File, root: Option<&[u8]>, check: bool, now: Timestamp) -> Result<Inspection, InspectError> {
    let package = Package::open_file(BufReader::with_capacity(INPUT_BUFFER_BYTES, file))?;
    let before_payload = package.bytes_before_payload();
    let Signed { bytes, manifest, released, loaded, mut payload } = verify(package, root)?;
    if check {
        check_payload(payload, &manifest, |_stored| Ok::<_, PayloadError>(()))?;
    } else {
        payload.skip(manifest.payload_bytes())?;
        payload.finish()?;
    }
    let (expires, role) = loaded.first_expiry();
    Ok(Inspection {
        digest: Digest::of(&bytes),
        package_bytes: before_payload + entry_bytes(manifest.payload_bytes()) + END_BYTES,
        trusted: root.is_some(),
        checked: check,
        root_version: loaded.root.version.get(),
        key_ids: loaded.targets.signatures.iter().map(|signature| hex::encode(&*signature.keyid)).collect(),
        released,
        expires,
        expires_role: role.to_string(),
        expired: expires <= now,
        totals: manifest.totals(),
        manifest,
    })
}

/// A package whose signatures hold: the payload is still to come, from the same input.
pub(crate) struct Signed<R> {
    /// The manifest's bytes, which are signed.
    pub(crate) bytes: Vec<u8>,
    pub(crate) manifest: Manifest,
    pub(crate) released: Option<Timestamp>,
    pub(crate) payload: Payload<R>,
    loaded: Loaded,
}

fn open(path: &Path) -> Result<File, InspectError> {
    let open = |source| InspectError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(open)?;
    let metadata = file.metadata().map_err(open)?;
    if metadata.is_dir() { Err(InspectError::Directory { path: path.to_owned() }) } else { Ok(file) }
}

/// Reads a package from a file or a pipe, in one pass, and checks its signatures against `root`.
pub(crate) fn open_signed(path: &Path, root: &[u8]) -> Result<Signed<BufReader<File>>, InspectError> {
    let file = open(path)?;
    verify(Package::open(BufReader::with_capacity(INPUT_BUFFER_BYTES, file))?, Some(root))
}

fn verify<R: Read>(package: Package<R>, root: Option<&[u8]>) -> Result<Signed<R>, InspectError> {
    let own_root = package.metadata().first_root().unwrap_or_default();
    let root_bytes = root.unwrap_or(own_root);
    let trusted_root = RootDocument::verify_root("root.json", root_bytes).map_err(|source| match root {
        Some(_given) => InspectError::NotARoot { source: Box::new(source) },
        None => TrustError::from(source).into(),
    })?;
    let store = MemoryStore(BTreeMap::from([("root".to_owned(), root_bytes.to_vec())]));
    let loaded = load(store, &trusted_root, package.metadata())?;
    let bytes = package.manifest().to_vec();
    let (manifest, released) = loaded.manifest(&bytes)?;
    let payload = package.into_payload(manifest.payload_bytes())?;
    Ok(Signed { bytes, manifest, released, payload, loaded })
}
