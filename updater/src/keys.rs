//! The vendor's signing keys: a directory with the chain of signed roots and the private keys.
//!
//! `N.root.json` are the roots, from the first to the newest; every `*.key.pem` is an ed25519 key in PKCS#8. A directory
//! may hold any of the keys: what can be signed with it depends on the roles that the newest root gives them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use jiff::Timestamp;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{
    Hashes, Metafile, Role, RoleKeys, RoleType, Root, Signature, Signed, Snapshot, Target, Targets,
    Timestamp as TimestampRole,
};
use tough::sign::Sign;

use crate::digest::Digest;
use crate::durable;
use crate::package::{MANIFEST_NAME, METADATA_BYTES_MAX, METADATA_DIR, ROOTS_MAX};

/// The version of the TUF specification that the metadata follows.
const SPEC_VERSION: &str = "1.0.0";
/// The private key that [`Keys::init`] makes.
const KEY_NAME: &str = "refit.key.pem";
/// What ends the name of a private key.
const KEY_SUFFIX: &str = ".key.pem";
/// What ends the name of a root.
const ROOT_SUFFIX: &str = ".root.json";
/// The label of a PKCS#8 key.
const PEM_TAG: &str = "PRIVATE KEY";
/// A private key is its owner's.
const KEY_MODE: u32 = 0o600;
/// A key file has some 120 bytes; a larger one is something else.
const KEY_BYTES_MAX: u64 = 16 << 10;
/// The roles of a root.
const ROLES: [RoleType; 4] = [RoleType::Root, RoleType::Timestamp, RoleType::Snapshot, RoleType::Targets];

/// The keys and roots of one directory.
pub struct Keys {
    roots: BTreeMap<u64, Vec<u8>>,
    newest: Root,
    newest_bytes: Vec<u8>,
    pairs: Vec<(Decoded<Hex>, Ed25519KeyPair)>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the keys themselves.
        f.debug_struct("Keys").field("root_version", &self.newest.version).field("keys", &self.pairs.len()).finish()
    }
}

/// What went wrong with a directory of keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
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
    /// There are keys already.
    #[error("{} holds keys already", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// No root file.
    #[error("{} holds no 1.root.json", dir.display())]
    NoRoot {
        /// The directory.
        dir: PathBuf,
    },
    /// A file that is no root, or a gap in the numbers.
    #[error("{} is no root, or not the one its name says", path.display())]
    Root {
        /// The file.
        path: PathBuf,
    },
    /// A file that is no private key.
    #[error("{} is no ed25519 key in PKCS#8", path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// Too few of a role's keys are here.
    #[error("role {role} needs {threshold} signatures, {have} of its keys are here")]
    TooFew {
        /// The role.
        role: RoleType,
        /// How many signatures it needs.
        threshold: u64,
        /// How many keys are here.
        have: u64,
    },
    /// The cryptographic library failed.
    #[error("cannot make a key")]
    Generate,
    /// Metadata could not be written as JSON.
    #[error("cannot encode the metadata of role {role}")]
    Encode {
        /// The role.
        role: RoleType,
        /// Why.
        #[source]
        source: Box<tough::schema::Error>,
    },
    /// A version of zero.
    #[error("metadata versions begin with 1")]
    VersionZero,
}

impl KeysError {
    /// Returns what to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Io { .. } => "check that the directory can be read and written",
            Self::Exists { .. } => "choose an empty directory: keys are never overwritten",
            Self::NoRoot { .. } => "make keys with `refit keys init`, or name the directory that has them",
            Self::Root { .. } | Self::Key { .. } => "restore the file from a backup of the directory",
            Self::TooFew { .. } => "bring the role's other keys into the directory",
            Self::Generate | Self::Encode { .. } => "report this as a bug of refit",
            Self::VersionZero => "give a version of 1 or more",
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.to_owned();
    move |source| KeysError::Io { action, path, source }
}

impl Keys {
    /// Makes one ed25519 key for all four roles in `dir`, and the first root, which trusts it until `root_expires`.
    ///
    /// # Errors
    /// `dir` holds keys already, and nothing has changed; or a file operation failed.
    pub fn init(dir: &Path, root_expires: Timestamp) -> Result<Self, KeysError> {
        durable::create_dirs(dir).map_err(io_error("make", dir))?;
        for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
            let name = entry.map_err(io_error("read", dir))?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(KEY_SUFFIX) || name.ends_with(ROOT_SUFFIX) {
                return Err(KeysError::Exists { dir: dir.to_owned() });
            }
        }
        let pair = Ed25519KeyPair::generate().map_err(|_unspecified| KeysError::Generate)?;
        let key = pair.tuf_key();
        let encode = |source| KeysError::Encode { role: RoleType::Root, source: Box::new(source) };
        let id = key.key_id().map_err(encode)?;
        let role = RoleKeys { keyids: vec![id.clone()], threshold: NonZeroU64::MIN, _extra: HashMap::new() };
        let root = Root {
            spec_version: SPEC_VERSION.to_owned(),
            // The same root serves a repository on a web server, where files of two moments lie side by side.
            consistent_snapshot: true,
            version: NonZeroU64::MIN,
            expires: whole_seconds(root_expires),
            keys: HashMap::from([(id.clone(), key)]),
            roles: ROLES.into_iter().map(|name| (name, role.clone())).collect(),
            _extra: HashMap::new(),
        };
        let secret = pair.to_pkcs8v1().map_err(|_unspecified| KeysError::Generate)?;
        let secret = pem::encode(&pem::Pem::new(PEM_TAG, secret.as_ref().to_vec()));
        let pairs = vec![(id, pair)];
        let newest_bytes = sign(&root, &root, &pairs)?;
        let path = dir.join(KEY_NAME);
        durable::write_new(&path, secret.as_bytes(), KEY_MODE).map_err(io_error("write", &path))?;
        let name = format!("1{ROOT_SUFFIX}");
        durable::replace(dir, &name, &newest_bytes).map_err(io_error("write", &dir.join(&name)))?;
        Ok(Self { roots: BTreeMap::from([(1, newest_bytes.clone())]), newest: root, newest_bytes, pairs })
    }

    /// Reads the keys and roots in `dir`.
    ///
    /// # Errors
    /// There is no root, or a file is not what its name says.
    pub fn open(dir: &Path) -> Result<Self, KeysError> {
        let (mut roots, mut pairs, mut newest) = (BTreeMap::new(), Vec::new(), None);
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
            names.push(entry.map_err(io_error("read", dir))?.file_name().to_string_lossy().into_owned());
        }
        names.sort(); // the order of signatures does not depend on the directory
        for name in names.iter().filter(|name| name.ends_with(KEY_SUFFIX)) {
            let path = dir.join(name);
            let bytes = durable::read_limited(&path, KEY_BYTES_MAX).map_err(io_error("read", &path))?;
            let pair = pem::parse(bytes)
                .ok()
                .filter(|pem| pem.tag() == PEM_TAG)
                .and_then(|pem| Ed25519KeyPair::from_pkcs8(pem.contents()).ok());
            let Some(pair) = pair else { return Err(KeysError::Key { path }) };
            let id = pair
                .tuf_key()
                .key_id()
                .map_err(|source| KeysError::Encode { role: RoleType::Root, source: Box::new(source) })?;
            pairs.push((id, pair));
        }
        for number in 1..=ROOTS_MAX as u64 {
            let path = dir.join(format!("{number}{ROOT_SUFFIX}"));
            if !path.exists() {
                break;
            }
            let bytes = durable::read_limited(&path, METADATA_BYTES_MAX).map_err(io_error("read", &path))?;
            let root = serde_json::from_slice::<Signed<Root>>(&bytes).map(|root| root.signed).ok();
            let Some(root) = root.filter(|root| root.version.get() == number) else {
                return Err(KeysError::Root { path });
            };
            roots.insert(number, bytes.clone());
            newest = Some((root, bytes));
        }
        let Some((newest, newest_bytes)) = newest else { return Err(KeysError::NoRoot { dir: dir.to_owned() }) };
        Ok(Self { roots, newest, newest_bytes, pairs })
    }

    /// Returns the newest root's bytes: what an appliance must be given to trust these keys.
    #[must_use]
    pub fn root(&self) -> &[u8] {
        &self.newest_bytes
    }

    /// Returns the metadata of a package with this manifest: names and bytes, in the order of the package.
    ///
    /// # Errors
    /// A role lacks keys.
    pub(crate) fn sign_package(
        &self,
        manifest: &[u8],
        expires: Timestamp,
        version: u64,
    ) -> Result<Vec<(String, Vec<u8>)>, KeysError> {
        let version = NonZeroU64::new(version).ok_or(KeysError::VersionZero)?;
        let expires = whole_seconds(expires);
        let spec = || SPEC_VERSION.to_owned();

        let mut targets = Targets::new(spec(), version, expires);
        targets.delegations = None;
        let target = Target {
            length: manifest.len() as u64,
            hashes: hashes(manifest),
            custom: HashMap::new(),
            _extra: HashMap::new(),
        };
        let name = tough::TargetName::new(MANIFEST_NAME).map_err(|_no_name| KeysError::Generate)?;
        targets.add_target(name, target);
        let targets_bytes = sign(&targets, &self.newest, &self.pairs)?;

        let mut snapshot = Snapshot::new(spec(), version, expires);
        snapshot.meta.insert("targets.json".to_owned(), metafile(&targets_bytes, version));
        let snapshot_bytes = sign(&snapshot, &self.newest, &self.pairs)?;

        let mut timestamp = TimestampRole::new(spec(), version, expires);
        timestamp.meta.insert("snapshot.json".to_owned(), metafile(&snapshot_bytes, version));
        let timestamp_bytes = sign(&timestamp, &self.newest, &self.pairs)?;

        let consistent = self.newest.consistent_snapshot;
        let mut files: Vec<_> = self
            .roots
            .iter()
            .map(|(number, bytes)| (format!("{METADATA_DIR}{number}{ROOT_SUFFIX}"), bytes.clone()))
            .collect();
        for (name, bytes) in [
            (timestamp.filename(consistent), timestamp_bytes),
            (snapshot.filename(consistent), snapshot_bytes),
            (targets.filename(consistent), targets_bytes),
        ] {
            files.push((format!("{METADATA_DIR}{name}"), bytes));
        }
        Ok(files)
    }
}

/// Returns a role's file in its one spelling: canonical JSON, digits of keys and signatures in lower case, no line end.
pub(crate) fn spell(canonical: &[u8], signatures: &[Signature]) -> Vec<u8> {
    let mut bytes = b"{\"signatures\":[".to_vec();
    for (index, signature) in signatures.iter().enumerate() {
        if index > 0 {
            bytes.push(b',');
        }
        let (keyid, sig) = (hex::encode(&*signature.keyid), hex::encode(&*signature.sig));
        bytes.extend_from_slice(format!("{{\"keyid\":\"{keyid}\",\"sig\":\"{sig}\"}}").as_bytes());
    }
    bytes.extend_from_slice(b"],\"signed\":");
    bytes.extend_from_slice(canonical);
    bytes.push(b'}');
    bytes
}

fn sign<T: Role>(role: &T, root: &Root, pairs: &[(Decoded<Hex>, Ed25519KeyPair)]) -> Result<Vec<u8>, KeysError> {
    let canonical =
        role.canonical_form().map_err(|source| KeysError::Encode { role: T::TYPE, source: Box::new(source) })?;
    let (ids, threshold) = match root.roles.get(&T::TYPE) {
        Some(keys) => (keys.keyids.as_slice(), keys.threshold.get()),
        None => (&[][..], 1),
    };
    let signatures: Vec<_> = pairs
        .iter()
        .filter(|(id, _)| ids.contains(id))
        .map(|(id, pair)| Signature { keyid: id.clone(), sig: pair.sign(&canonical).as_ref().to_vec().into() })
        .collect();
    let have = signatures.len() as u64;
    if have < threshold {
        return Err(KeysError::TooFew { role: T::TYPE, threshold, have });
    }
    Ok(spell(&canonical, &signatures))
}

fn hashes(bytes: &[u8]) -> Hashes {
    Hashes { sha256: Digest::of(bytes).as_bytes().to_vec().into(), _extra: HashMap::new() }
}

fn metafile(bytes: &[u8], version: NonZeroU64) -> Metafile {
    Metafile { length: Some(bytes.len() as u64), hashes: Some(hashes(bytes)), version, _extra: HashMap::new() }
}

/// Dates in metadata have no fractions of a second: other implementations refuse them.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let made = Keys::init(&dir.path().join("keys"), "2100-01-01T00:00:00Z".parse().unwrap()).unwrap();
        let read = Keys::open(&dir.path().join("keys")).unwrap();
        assert_eq!(made.root(), read.root());
        let mode = fs::metadata(dir.path().join("keys").join(KEY_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, KEY_MODE);
        let again = Keys::init(&dir.path().join("keys"), Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(again.to_string().ends_with("holds keys already"), "{again}");
        let expires = "2100-01-01T00:00:00.5Z".parse().unwrap();
        assert_eq!(made.sign_package(b"x", expires, 1).unwrap(), read.sign_package(b"x", expires, 1).unwrap());
        assert!(matches!(made.sign_package(b"x", expires, 0), Err(KeysError::VersionZero)));
    }

    #[test]
    fn what_is_no_directory_of_keys() {
        fn check(name: &str, bytes: &[u8], expected: &str) {
            let dir = tempfile::tempdir().unwrap();
            Keys::init(dir.path(), "2100-01-01T00:00:00Z".parse().unwrap()).unwrap();
            fs::remove_file(dir.path().join(name)).ok();
            durable::replace(dir.path(), name, bytes).unwrap();
            let message = Keys::open(dir.path()).unwrap_err().to_string();
            assert!(message.ends_with(expected), "{message}");
        }
        check(KEY_NAME, b"nothing", "is no ed25519 key in PKCS#8");
        check("1.root.json", b"{}", "is no root, or not the one its name says");
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(Keys::open(empty.path()), Err(KeysError::NoRoot { .. })));
    }
}
