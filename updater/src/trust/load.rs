//! One package's metadata through the TUF client, without a network and without a runtime of the caller's.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tough::schema::{Role, RoleType, Root, Signed, Snapshot, Targets, Timestamp as TimestampRole};
use tough::{
    ExpirationEnforcement, Limits, RepositoryLoader, TargetName, Transport, TransportError, TransportErrorKind,
    TransportStream,
};
use url::Url;

use super::{Seen, TrustError};
use crate::digest::Digest;
use crate::keys::spell;
use crate::manifest::Manifest;
use crate::package::{MANIFEST_NAME, METADATA_BYTES_MAX, Metadata, ROOTS_MAX};

/// Where the client believes the metadata lies; the transport looks at the last name only.
const BASE_URL: &str = "package:///metadata/";

/// Metadata that is signed as a root requires.
pub(crate) struct Loaded {
    pub(crate) timestamp: Signed<TimestampRole>,
    pub(crate) snapshot: Signed<Snapshot>,
    pub(crate) targets: Signed<Targets>,
    pub(crate) root_version: u64,
    /// The newest root, if the package brought one that is newer than the trusted one.
    pub(crate) new_root: Option<Vec<u8>>,
    /// When the first of the roles expires, and which.
    pub(crate) first_expiry: (Timestamp, RoleType),
}

impl Loaded {
    /// Returns the manifest in `bytes`, if it is the one that was signed.
    pub(crate) fn manifest(&self, bytes: &[u8]) -> Result<Manifest, TrustError> {
        let name = TargetName::new(MANIFEST_NAME).map_err(|_no_name| TrustError::NoTarget)?;
        let target = self.targets.signed.find_target(&name, false).map_err(|_missing| TrustError::NoTarget)?;
        let signed = <[u8; 32]>::try_from(&*target.hashes.sha256).map_err(|_no_digest| TrustError::NoTarget)?;
        let (found, signed) = (Digest::of(bytes), Digest::from(signed));
        if found != signed || target.length != bytes.len() as u64 {
            return Err(TrustError::OtherManifest { found, signed });
        }
        Manifest::parse(bytes).map_err(|source| TrustError::Manifest { source })
    }
}

/// Verifies `metadata` against the trusted `root`, and against what was seen before, if that is given along with a
/// directory to work in.
pub(crate) fn load(root: &[u8], metadata: &Metadata, seen: Option<(&Path, &Seen)>) -> Result<Loaded, TrustError> {
    let trusted = super::parse_root(root)?;
    check_spelling(metadata)?;
    check_roots(metadata, &trusted)?;
    let mut scratch_path = None;
    if let Some((scratch, seen)) = seen {
        write_scratch::<TimestampRole>(scratch, "timestamp.json", seen.timestamp.as_ref())?;
        write_scratch::<Snapshot>(scratch, "snapshot.json", seen.snapshot.as_ref())?;
        write_scratch::<Targets>(scratch, "targets.json", seen.targets.as_ref())?;
        scratch_path = Some(scratch.to_owned());
    }
    let entries =
        Entries(Arc::new(metadata.iter().map(|(name, bytes)| (name, Bytes::copy_from_slice(bytes))).collect()));
    let base = Url::parse(BASE_URL).map_err(|_constant| TrustError::Lost)?;
    let limits = Limits {
        max_root_size: METADATA_BYTES_MAX,
        max_targets_size: METADATA_BYTES_MAX,
        max_timestamp_size: METADATA_BYTES_MAX,
        max_snapshot_size: METADATA_BYTES_MAX,
        max_root_updates: ROOTS_MAX as u64 + 1,
    };
    // Expiry is judged by the caller, with the caller's clock.
    let mut loader = RepositoryLoader::new(&root, base.clone(), base)
        .transport(entries)
        .limits(limits)
        .expiration_enforcement(ExpirationEnforcement::Unsafe);
    if let Some(path) = scratch_path {
        loader = loader.datastore(path);
    }
    let repository = block_on(loader.load())?.map_err(|source| TrustError::Refused { source: Box::new(source) })?;
    let newest = repository.root().signed.version.get();
    let new_root = if newest > trusted.signed.version.get() { metadata.roots.get(&newest).cloned() } else { None };
    let (timestamp, snapshot, targets) =
        (repository.timestamp().clone(), repository.snapshot().clone(), repository.targets().clone());
    let first_expiry = [
        (repository.root().signed.expires, RoleType::Root),
        (timestamp.signed.expires, RoleType::Timestamp),
        (snapshot.signed.expires, RoleType::Snapshot),
        (targets.signed.expires, RoleType::Targets),
    ]
    .into_iter()
    .min_by_key(|(at, _)| *at)
    .unwrap_or((repository.root().signed.expires, RoleType::Root));
    Ok(Loaded { timestamp, snapshot, targets, root_version: newest, new_root, first_expiry })
}

/// Returns the root in `bytes`.
pub(super) fn parse_root(name: &str, bytes: &[u8]) -> Result<Signed<Root>, TrustError> {
    parse(name, bytes)
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, TrustError> {
    serde_json::from_slice(bytes).map_err(|source| TrustError::Metadata { name: name.to_owned(), source })
}

/// Refuses metadata that says the same in other bytes: a signature covers the meaning, not the spelling.
fn check_spelling(metadata: &Metadata) -> Result<(), TrustError> {
    for (name, bytes) in metadata.iter() {
        let role = name.strip_suffix(".json").and_then(|stem| stem.rsplit('.').next());
        let spelled = match role {
            Some("root") => respell::<Root>(&name, bytes)?,
            Some("timestamp") => respell::<TimestampRole>(&name, bytes)?,
            Some("snapshot") => respell::<Snapshot>(&name, bytes)?,
            Some("targets") => respell::<Targets>(&name, bytes)?,
            Some(_) | None => Vec::new(),
        };
        if spelled != bytes {
            return Err(TrustError::Spelling { name });
        }
    }
    Ok(())
}

fn respell<T: Role + DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<Vec<u8>, TrustError> {
    let role: Signed<T> = parse(name, bytes)?;
    let canonical = role.signed.canonical_form().map_err(|_no_json| TrustError::Spelling { name: name.to_owned() })?;
    Ok(spell(&canonical, &role.signatures))
}

/// Checks the package's whole chain of roots, also the part that is older than the trusted one: the client looks only
/// at what is newer, and a package has no bytes that nobody vouches for.
fn check_roots(metadata: &Metadata, trusted: &Signed<Root>) -> Result<(), TrustError> {
    let mut before: Option<Signed<Root>> = None;
    for (number, bytes) in &metadata.roots {
        let root = parse_root(&format!("{number}.root.json"), bytes)?;
        let version = root.signed.version.get();
        if version != *number {
            return Err(TrustError::RootMisnamed { name: *number, version });
        }
        if version == trusted.signed.version.get() && root.signed != trusted.signed {
            return Err(TrustError::OtherRoot { version });
        }
        for signer in before.iter().chain([&root]) {
            let unsigned = |source| TrustError::RootUnsigned { version, source: Box::new(source) };
            signer.signed.verify_role(&root).map_err(unsigned)?;
        }
        before = Some(root);
    }
    Ok(())
}

/// Gives the client what was seen before. It takes what it cannot read for nothing, so that is found here.
fn write_scratch<T: DeserializeOwned>(dir: &Path, name: &str, value: Option<&Value>) -> Result<(), TrustError> {
    let Some(value) = value else { return Ok(()) };
    let path = dir.join(name);
    if let Err(source) = Signed::<T>::deserialize(value) {
        return Err(TrustError::SeenDamaged { path, source: Some(source) });
    }
    let write = || -> std::io::Result<()> {
        let file = std::fs::File::create(&path)?;
        serde_json::to_writer(file, value).map_err(std::io::Error::from)
    };
    write().map_err(super::io_error("write", &path))
}

/// Runs the future to its end on a thread of its own: the caller may be inside a runtime or not.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> Result<T, TrustError> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("refit-trust".to_owned()).spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            Ok(runtime.block_on(future))
        });
        let worker = worker.map_err(|source| TrustError::Start { source })?;
        match worker.join() {
            Ok(result) => result.map_err(|source| TrustError::Start { source }),
            Err(_panicked) => Err(TrustError::Lost),
        }
    })
}

/// Serves the entries of one package.
#[derive(Clone)]
struct Entries(Arc<HashMap<String, Bytes>>);

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

#[async_trait]
impl Transport for Entries {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let name = url.path().rsplit('/').next().unwrap_or_default();
        match self.0.get(name) {
            Some(bytes) => Ok(Box::pin(futures_util::stream::iter([Ok(bytes.clone())]))),
            None => Err(TransportError::new(TransportErrorKind::FileNotFound, url)),
        }
    }
}
