//! One metadata file: bytes to content whose signatures were checked.
//!
//! A file is parsed once, into plain JSON. The signatures are checked over the canonical form of that, and the content is
//! read from the same value: there are no two readings of one file. [`tough`] has the keys, the canonical form and the
//! check of signatures and thresholds.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::num::NonZeroU64;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use jiff::Timestamp;
use olpc_cjson::CanonicalFormatter;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::schema::{Role, RoleKeys, RoleType, Root, Signature, Signed};

use crate::error::TufError;

/// The major version of the specification, and what follows it.
const SPECIFICATION: &str = "1.";

/// What a role's metadata holds.
pub trait Content: DeserializeOwned {
    /// The role whose keys sign it.
    const ROLE: RoleType;
    /// What its `_type` says.
    const TYPE: &'static str;
}

/// Content of a timestamp or a snapshot: files and their versions.
#[derive(Debug, Clone, Deserialize)]
pub struct Meta {
    /// The files, by name.
    pub meta: BTreeMap<String, MetaFile>,
}

/// One file of a [`Meta`].
#[derive(Debug, Clone, Deserialize)]
pub struct MetaFile {
    /// Its version.
    pub version: NonZeroU64,
    /// Its bytes, if they are signed here.
    pub length: Option<u64>,
    /// Its digests in hexadecimal, by the name of the algorithm, if they are signed here.
    pub hashes: Option<BTreeMap<String, String>>,
}

impl MetaFile {
    /// Checks a file's bytes, as far as they are signed here.
    ///
    /// # Errors
    /// They are not those that were signed.
    pub fn check(&self, name: &str, bytes: &[u8]) -> Result<(), TufError> {
        if let Some(signed) = self.length.filter(|length| *length != bytes.len() as u64) {
            return Err(TufError::Length { name: name.to_owned(), found: bytes.len() as u64, signed });
        }
        self.hashes.as_ref().map_or(Ok(()), |hashes| check_digests(name, bytes, hashes))
    }
}

/// Content of a timestamp.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct TimestampContent(pub Meta);

impl Content for TimestampContent {
    const ROLE: RoleType = RoleType::Timestamp;
    const TYPE: &'static str = "timestamp";
}

/// Content of a snapshot.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct SnapshotContent(pub Meta);

impl Content for SnapshotContent {
    const ROLE: RoleType = RoleType::Snapshot;
    const TYPE: &'static str = "snapshot";
}

/// Content of a targets role.
#[derive(Debug, Clone, Deserialize)]
pub struct TargetsContent {
    /// The targets, by name.
    pub targets: BTreeMap<String, Target>,
    pub(crate) delegations: Option<Delegations>,
}

impl Content for TargetsContent {
    const ROLE: RoleType = RoleType::Targets;
    const TYPE: &'static str = "targets";
}

/// Content of a delegated targets role.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct DelegatedContent(pub(crate) TargetsContent);

impl Content for DelegatedContent {
    const ROLE: RoleType = RoleType::DelegatedTargets;
    const TYPE: &'static str = "targets";
}

/// One target file.
#[derive(Debug, Clone, Deserialize)]
pub struct Target {
    /// Its bytes.
    pub length: u64,
    /// Its digests in hexadecimal, by the name of the algorithm.
    pub hashes: BTreeMap<String, String>,
    /// What the vendor says of it.
    #[serde(default)]
    pub custom: Value,
}

impl Target {
    /// Checks a target's bytes.
    ///
    /// # Errors
    /// They are not those that were signed.
    pub fn check(&self, name: &str, bytes: &[u8]) -> Result<(), TufError> {
        if self.length != bytes.len() as u64 {
            let name = name.to_owned();
            return Err(TufError::Length { name, found: bytes.len() as u64, signed: self.length });
        }
        check_digests(name, bytes, &self.hashes)
    }

    /// Returns the path of the target called `name` in a repository whose names carry digests.
    #[must_use]
    pub fn consistent_path(&self, name: &str) -> Option<String> {
        let digest = self.hashes.get("sha256").or_else(|| self.hashes.get("sha512"))?;
        Some(match name.rsplit_once('/') {
            Some((dir, file)) => format!("{dir}/{digest}.{file}"),
            None => format!("{digest}.{name}"),
        })
    }
}

/// Which roles a targets role trusts for which targets.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Delegations {
    keys: Value,
    pub(crate) roles: Vec<DelegatedRole>,
}

/// One delegated role.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct DelegatedRole {
    pub(crate) name: String,
    keyids: Vec<Decoded<Hex>>,
    threshold: NonZeroU64,
    pub(crate) terminating: bool,
    pub(crate) paths: Option<Vec<String>>,
    pub(crate) path_hash_prefixes: Option<Vec<String>>,
}

impl Delegations {
    /// Returns the keys of one delegated role, as a root that knows no other role: one check of signatures for all.
    fn verifier(&self, role: &DelegatedRole, name: &str) -> Result<Root, TufError> {
        let keys = HashMap::<Decoded<Hex>, Key>::deserialize(&self.keys)
            .map_err(|source| TufError::Format { name: name.to_owned(), source })?;
        for (id, key) in &keys {
            let right = key.key_id().is_ok_and(|calculated| calculated == *id);
            if !right {
                return Err(TufError::KeyId { name: name.to_owned(), id: hex::encode(&**id) });
            }
        }
        let role = RoleKeys { keyids: role.keyids.clone(), threshold: role.threshold, _extra: HashMap::new() };
        Ok(only(keys, role))
    }
}

/// The signed part of a file as it is written, in the shape that [`tough`] checks.
struct Part<C> {
    value: Value,
    head: Head,
    content: PhantomData<C>,
}

#[derive(Debug, Clone, Deserialize)]
struct Head {
    #[serde(rename = "_type")]
    kind: String,
    spec_version: String,
    version: NonZeroU64,
    expires: Timestamp,
}

impl<C> Serialize for Part<C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<C: Content> Role for Part<C> {
    const TYPE: RoleType = C::ROLE;

    fn expires(&self) -> Timestamp {
        self.head.expires
    }

    fn version(&self) -> NonZeroU64 {
        self.head.version
    }

    fn filename(&self, _consistent_snapshot: bool) -> String {
        format!("{}.json", C::TYPE)
    }
}

/// A file whose signatures hold.
#[derive(Debug, Clone)]
pub struct Document<C> {
    /// The bytes it came in.
    pub bytes: Vec<u8>,
    /// Its version.
    pub version: NonZeroU64,
    /// When it expires.
    pub expires: Timestamp,
    /// Its signatures.
    pub signatures: Vec<Signature>,
    /// What it holds.
    pub content: C,
}

impl<C: Content> Document<C> {
    /// Reads a file that one of the roles of `root` signs.
    ///
    /// # Errors
    /// It is not metadata of the role, or not signed as the root requires.
    pub fn verify(name: &str, bytes: &[u8], root: &Root) -> Result<Self, TufError> {
        let format = |source| TufError::Format { name: name.to_owned(), source };
        let envelope: Signed<Value> = serde_json::from_slice(bytes).map_err(format)?;
        let head = Head::deserialize(&envelope.signed).map_err(format)?;
        if head.kind != C::TYPE {
            return Err(TufError::Type { name: name.to_owned(), expected: C::TYPE, found: head.kind });
        }
        check_specification(name, &head.spec_version)?;
        let content = C::deserialize(&envelope.signed).map_err(format)?;
        let (version, expires) = (head.version, head.expires);
        let part = Part::<C> { value: envelope.signed, head, content: PhantomData };
        let signed = Signed { signed: part, signatures: envelope.signatures };
        root.verify_role(&signed)
            .map_err(|source| TufError::Signature { name: name.to_owned(), source: Box::new(source) })?;
        Ok(Self { bytes: bytes.to_vec(), version, expires, signatures: signed.signatures, content })
    }
}

impl Document<DelegatedContent> {
    /// Reads the file of `role`, whose keys `delegations` name.
    pub(crate) fn verify_delegated(
        name: &str,
        bytes: &[u8],
        delegations: &Delegations,
        role: &DelegatedRole,
    ) -> Result<Self, TufError> {
        Self::verify(name, bytes, &delegations.verifier(role, name)?)
    }
}

impl Content for Root {
    const ROLE: RoleType = RoleType::Root;
    const TYPE: &'static str = "root";
}

/// A root that its own keys signed, and its bytes.
pub type RootDocument = Document<Root>;

impl RootDocument {
    /// Reads a root that its own keys signed.
    ///
    /// # Errors
    /// It is not a root, or not signed by its own keys.
    pub fn verify_root(name: &str, bytes: &[u8]) -> Result<Self, TufError> {
        let root: Signed<Root> =
            serde_json::from_slice(bytes).map_err(|source| TufError::Format { name: name.to_owned(), source })?;
        Self::verify(name, bytes, &root.signed)
    }

    /// Checks that the keys of this root signed `next`, too.
    ///
    /// # Errors
    /// They did not.
    pub fn signs_root(&self, name: &str, next: &Self) -> Result<(), TufError> {
        Self::verify(name, &next.bytes, &self.content).map(|_| ())
    }
}

fn check_specification(name: &str, found: &str) -> Result<(), TufError> {
    if found.starts_with(SPECIFICATION) {
        Ok(())
    } else {
        Err(TufError::Specification { name: name.to_owned(), found: found.to_owned() })
    }
}

/// Checks every digest that is known here; one at least must be.
fn check_digests(name: &str, bytes: &[u8], hashes: &BTreeMap<String, String>) -> Result<(), TufError> {
    let mut known = false;
    for (algorithm, function) in [("sha256", &SHA256), ("sha512", &SHA512)] {
        let Some(signed) = hashes.get(algorithm) else { continue };
        known = true;
        if !hex::encode(digest(function, bytes)).eq_ignore_ascii_case(signed) {
            return Err(TufError::Content { name: name.to_owned(), algorithm });
        }
    }
    if known { Ok(()) } else { Err(TufError::NoDigest { name: name.to_owned() }) }
}

/// Returns the canonical form of metadata, which signatures cover.
///
/// # Errors
/// It cannot be written as JSON.
pub fn canonical(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, CanonicalFormatter::new()))?;
    Ok(bytes)
}

/// Returns the file of a role in its one spelling: JSON without spaces, names in the order of their bytes, digits of keys and
/// signatures in lower case, no line end. (Canonical JSON, which signatures cover, is no JSON where a text has line ends.)
#[must_use]
pub fn spell(value: &Value, signatures: &[Signature]) -> Option<Vec<u8>> {
    let mut bytes = b"{\"signatures\":[".to_vec();
    for (index, signature) in signatures.iter().enumerate() {
        if index > 0 {
            bytes.push(b',');
        }
        let (keyid, sig) = (hex::encode(&*signature.keyid), hex::encode(&*signature.sig));
        bytes.extend_from_slice(format!("{{\"keyid\":\"{keyid}\",\"sig\":\"{sig}\"}}").as_bytes());
    }
    bytes.extend_from_slice(b"],\"signed\":");
    bytes.extend_from_slice(&serde_json::to_vec(value).ok()?);
    bytes.push(b'}');
    Some(bytes)
}

/// Returns whether `signature` is one of `value` with `key`.
#[must_use]
pub fn holds(key: &Key, value: &Value, signature: &Signature) -> bool {
    let role = RoleKeys { keyids: vec![signature.keyid.clone()], threshold: NonZeroU64::MIN, _extra: HashMap::new() };
    let root = only(HashMap::from([(signature.keyid.clone(), key.clone())]), role);
    let head =
        Head { kind: String::new(), spec_version: String::new(), version: NonZeroU64::MIN, expires: Timestamp::MAX };
    let signed = Part::<DelegatedContent> { value: value.clone(), head, content: PhantomData };
    root.verify_role(&Signed { signed, signatures: vec![signature.clone()] }).is_ok()
}

/// Returns a root that knows nothing but one delegated role.
fn only(keys: HashMap<Decoded<Hex>, Key>, role: RoleKeys) -> Root {
    Root {
        spec_version: SPECIFICATION.to_owned(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires: Timestamp::MAX,
        keys,
        roles: HashMap::from([(RoleType::DelegatedTargets, role)]),
        _extra: HashMap::new(),
    }
}
