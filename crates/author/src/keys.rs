//! The vendor's signing keys: a directory with the chain of signed roots and the keys that are at hand.
//!
//! `N.root.json` are the roots, from the first to the newest. Keys are files as [`signer`] describes: ed25519 keys, plain or
//! with a passphrase, and descriptions of keys behind a command, for a security module or a key service. A directory may
//! hold any of the keys, and further directories may be named, such as that of an offline root: what can be signed
//! depends on the roles that the newest root gives the keys found.

mod error;
mod making;
pub(crate) mod metadata;
mod program;
mod published;
mod retire;
mod rotate;
mod signer;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use refit_base::file_error;
use refit_tuf::document::{canonical, spell};
use refit_tuf::{METADATA_BYTES_MAX, ROOTS_MAX};
use refit_updater::durable;
use refit_updater::manifest::RELEASED;
use refit_updater::package::{MANIFEST_NAME, METADATA_DIR};
use serde::Serialize;
use serde_json::{Value, json};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{Role, RoleType, Root, Signature, Signed};
use zeroize::Zeroizing;

use signer::Signer;

pub use error::KeysError;
pub use published::PublishedError;
pub use rotate::{Rotated, Rotation, Setup};
pub use signer::Passphrase;
pub use tough::schema::RoleType as KeyRole;

/// What ends the name of a root.
const ROOT_SUFFIX: &str = ".root.json";
/// The roles of a root.
const ROLES: [RoleType; 4] = [RoleType::Root, RoleType::Timestamp, RoleType::Snapshot, RoleType::Targets];

/// The keys and roots of a vendor.
pub struct Keys {
    dir: PathBuf,
    roots: BTreeMap<u64, Vec<u8>>,
    newest: Root,
    newest_bytes: Vec<u8>,
    signers: Vec<Signer>,
    passphrase: Arc<Passphrase<'static>>,
}

/// A role and the keys it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// The role.
    pub role: &'static str,
    /// How many signatures it needs.
    pub threshold: u64,
    /// Its keys: their ids, and the file of each that is at hand.
    pub keys: Vec<(String, Option<PathBuf>)>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the keys themselves.
        f.debug_struct("Keys").field("root_version", &self.newest.version).field("keys", &self.signers.len()).finish()
    }
}

/// A passphrase that nobody has.
fn nobody(_path: &Path) -> io::Result<Option<Zeroizing<String>>> {
    Ok(None)
}

/// Returns a role's name.
fn role_name(role: RoleType) -> &'static str {
    match role {
        RoleType::Root => "root",
        RoleType::Timestamp => "timestamp",
        RoleType::Snapshot => "snapshot",
        RoleType::Targets => "targets",
        RoleType::DelegatedTargets => "delegated-targets",
    }
}

/// Returns the names of the roles that keys are for.
pub fn role_names() -> impl Iterator<Item = &'static str> {
    ROLES.into_iter().map(role_name)
}

/// Returns the role with this name.
#[must_use]
pub fn role_named(name: &str) -> Option<RoleType> {
    ROLES.into_iter().find(|role| role_name(*role) == name)
}

impl Keys {
    /// Makes one ed25519 key for all four roles in `dir`, and the first root, which trusts it until `root_expires`.
    ///
    /// # Errors
    /// `dir` holds keys already, and nothing has changed; or a file operation failed.
    pub fn init(dir: &Path, root_expires: Timestamp) -> Result<Self, KeysError> {
        Self::create(dir, &Setup::one_key(root_expires))
    }

    /// Returns whether any of the keys at hand is protected by a passphrase.
    #[must_use]
    pub fn are_locked(&self) -> bool {
        self.signers.iter().any(Signer::is_locked)
    }

    /// Reads the keys and roots in `dir`; keys with a passphrase are not usable.
    ///
    /// # Errors
    /// There is no root, or a file is not what its name says.
    pub fn open(dir: &Path) -> Result<Self, KeysError> {
        Self::open_with(dir, &[], Arc::new(nobody))
    }

    /// Reads the keys and roots in `dir` and the keys in `others`. A passphrase is asked for when a key must sign.
    ///
    /// # Errors
    /// There is no root, or a file is not what its name says.
    pub fn open_with(dir: &Path, others: &[PathBuf], passphrase: Arc<Passphrase<'static>>) -> Result<Self, KeysError> {
        let mut signers: Vec<Signer> = Vec::new();
        for dir in [dir].into_iter().chain(others.iter().map(PathBuf::as_path)) {
            let mut names = Vec::new();
            for entry in fs::read_dir(dir).map_err(file_error("read", dir))? {
                names.push(entry.map_err(file_error("read", dir))?.file_name().to_string_lossy().into_owned());
            }
            names.sort(); // the order of signatures does not depend on the directory
            for name in names.iter().filter(|name| Signer::is_name(name)) {
                let signer = Signer::read(&dir.join(name), &*passphrase)?;
                if !signers.iter().any(|known| known.id == signer.id) {
                    signers.push(signer);
                }
            }
        }
        let (mut roots, mut newest) = (BTreeMap::new(), None);
        for number in 1..=ROOTS_MAX as u64 {
            let path = dir.join(format!("{number}{ROOT_SUFFIX}"));
            if !path.exists() {
                break;
            }
            let bytes = durable::read_limited(&path, METADATA_BYTES_MAX).map_err(file_error("read", &path))?;
            let root = serde_json::from_slice::<Signed<Root>>(&bytes).map(|root| root.signed).ok();
            let Some(root) = root.filter(|root| root.version.get() == number) else {
                return Err(KeysError::Root { path });
            };
            roots.insert(number, bytes.clone());
            newest = Some((root, bytes));
        }
        let Some((newest, newest_bytes)) = newest else { return Err(KeysError::NoRoot { dir: dir.to_owned() }) };
        Ok(Self { dir: dir.to_owned(), roots, newest, newest_bytes, signers, passphrase })
    }

    /// Returns the newest root's bytes: what an appliance must be given to trust these keys.
    #[must_use]
    pub fn root(&self) -> &[u8] {
        &self.newest_bytes
    }

    /// Returns the newest root's version and when it expires.
    #[must_use]
    pub fn root_version(&self) -> (u64, Timestamp) {
        (self.newest.version.get(), self.newest.expires())
    }

    /// Returns every root, by its number.
    #[must_use]
    pub fn roots(&self) -> &BTreeMap<u64, Vec<u8>> {
        &self.roots
    }

    /// Returns the roles and their keys.
    #[must_use]
    pub fn status(&self) -> Vec<KeyStatus> {
        ROLES
            .into_iter()
            .filter_map(|role| {
                let found = self.newest.roles.get(&role)?;
                let file = |id: &Decoded<Hex>| {
                    self.signers.iter().find(|signer| signer.id == *id).map(|signer| signer.path.clone())
                };
                Some(KeyStatus {
                    role: role_name(role),
                    threshold: found.threshold.get(),
                    keys: found.keyids.iter().map(|id| (hex::encode(&**id), file(id))).collect(),
                })
            })
            .collect()
    }

    /// Returns the metadata of a package with this manifest: names and bytes, in the order of the package.
    ///
    /// # Errors
    /// A role lacks keys, or a key cannot be used.
    pub(crate) fn sign_package(
        &self,
        manifest: &[u8],
        expires: Timestamp,
        released: Timestamp,
        version: u64,
    ) -> Result<Vec<(String, Vec<u8>)>, KeysError> {
        let version = NonZeroU64::new(version).ok_or(KeysError::VersionZero)?;
        let custom = json!({ RELEASED: metadata::whole_seconds(released) });
        let named = BTreeMap::from([(MANIFEST_NAME.to_owned(), metadata::target(manifest, custom))]);
        let targets = self.sign(RoleType::Targets, &metadata::targets(&named, version, expires))?;
        let snapshot = self.sign(RoleType::Snapshot, &metadata::snapshot(&targets, version, version, expires))?;
        let timestamp = self.sign(RoleType::Timestamp, &metadata::timestamp(&snapshot, version, version, expires))?;
        let mut files: Vec<_> = self
            .roots
            .iter()
            .map(|(number, bytes)| (format!("{METADATA_DIR}{number}{ROOT_SUFFIX}"), bytes.clone()))
            .collect();
        let prefix = if self.newest.consistent_snapshot { format!("{version}.") } else { String::new() };
        files.push((format!("{METADATA_DIR}timestamp.json"), timestamp));
        files.push((format!("{METADATA_DIR}{prefix}snapshot.json"), snapshot));
        files.push((format!("{METADATA_DIR}{prefix}targets.json"), targets));
        Ok(files)
    }

    /// Returns the file of `role` with the content `value`, signed by as many of its keys as it needs.
    ///
    /// # Errors
    /// The role lacks keys, or a key cannot be used.
    pub(crate) fn sign(&self, role: RoleType, value: &Value) -> Result<Vec<u8>, KeysError> {
        let canonical = canonical(value).map_err(|source| KeysError::Encode { role, source: Box::new(source) })?;
        let mut signatures = Vec::new();
        self.add_signatures(role, &self.newest, value, &canonical, &mut signatures)?;
        spell(value, &signatures).ok_or(KeysError::Generate)
    }

    /// Refuses to go on without as many keys as `root` wants for `role`.
    fn require(&self, role: RoleType, root: &Root) -> Result<(), KeysError> {
        let (ids, threshold) =
            root.roles.get(&role).map_or((&[][..], 1), |keys| (keys.keyids.as_slice(), keys.threshold.get()));
        let have = self.signers.iter().filter(|signer| ids.contains(&signer.id)).count() as u64;
        if have < threshold { Err(KeysError::TooFew { role, threshold, have }) } else { Ok(()) }
    }

    /// Adds signatures until there are as many as `root` wants for `role`.
    fn add_signatures(
        &self,
        role: RoleType,
        root: &Root,
        value: &Value,
        canonical: &[u8],
        signatures: &mut Vec<Signature>,
    ) -> Result<(), KeysError> {
        let (ids, threshold) =
            root.roles.get(&role).map_or((&[][..], 1), |keys| (keys.keyids.as_slice(), keys.threshold.get()));
        self.require(role, root)?;
        let at_hand = self.signers.iter().filter(|signer| ids.contains(&signer.id));
        let mut signed = signatures.iter().filter(|signature| ids.contains(&signature.keyid)).count() as u64;
        for signer in at_hand {
            if signed == threshold {
                break;
            }
            if !signatures.iter().any(|signature| signature.keyid == signer.id) {
                signatures.push(signer.sign(value, canonical, &*self.passphrase)?);
                signed += 1;
            }
        }
        Ok(())
    }
}
