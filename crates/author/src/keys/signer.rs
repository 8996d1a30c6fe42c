//! One key that signs: in a file, in a file with a passphrase, or behind a command.
//!
//! - `NAME.key.pem`: ed25519 in PKCS#8, plain or encrypted (PBES2, as OpenSSL reads and writes it). The public key of an
//!   encrypted one lies beside it as `NAME.pub.pem`: nobody is asked for a passphrase to find out whose key it is.
//! - `NAME.key.toml`: a key that never leaves its device or service. `public` names the public key (PEM, beside it),
//!   `command` a program that gets the bytes to sign on standard input and writes the bare signature to standard output:
//!   64 bytes for ed25519, ASN.1 DER for ECDSA P-256 with SHA-256, PSS with SHA-256 for RSA. What it writes is checked
//!   before it is used. `timeout` is how long it may take.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;
use jiff::SignedDuration;
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use refit_base::file_error;
use refit_tuf::document;
use refit_updater::durable;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tough::schema::Signature;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::{Ed25519Key, Ed25519Scheme, Key};
use tough::sign::Sign;
use zeroize::Zeroizing;

use super::error::KeysError;
use super::making::{self, KEY_BYTES_MAX};
use super::program;

/// What ends the name of a private key.
const KEY_SUFFIX: &str = ".key.pem";
/// What ends the name of the description of a key outside.
const OUTSIDE_SUFFIX: &str = ".key.toml";
/// What ends the name of a public key.
const PUBLIC_SUFFIX: &str = ".pub.pem";
/// The labels of keys in PEM.
const PRIVATE_TAG: &str = "PRIVATE KEY";
const ENCRYPTED_TAG: &str = "ENCRYPTED PRIVATE KEY";
const PUBLIC_TAG: &str = "PUBLIC KEY";
/// A private key is its owner's.
const PRIVATE_MODE: u32 = 0o600;
/// A public key is everybody's.
const PUBLIC_MODE: u32 = 0o644;
/// What precedes the 32 bytes of an ed25519 public key in its DER form (RFC 8410).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// How long a program may take to sign if its description does not say: somebody may have to find a token and touch it.
const SIGN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(180);
/// The longest that a description may say: somebody else may have to approve, and may be asleep.
const SIGN_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Returns the passphrase of the key in this file, if there is one to be had.
pub type Passphrase<'a> = dyn Fn(&Path) -> io::Result<Option<Zeroizing<String>>> + Send + Sync + 'a;

/// One key that signs.
pub(super) struct Signer {
    pub(super) id: Decoded<Hex>,
    pub(super) key: Key,
    pub(super) path: PathBuf,
    kind: Kind,
}

/// A new key, and the files that are to hold it: path, content, permissions.
pub(super) struct Fresh {
    pub(super) signer: Signer,
    pub(super) files: Vec<(PathBuf, Zeroizing<String>, u32)>,
}

enum Kind {
    Open(Box<Ed25519KeyPair>),
    Locked { sealed: Vec<u8>, opened: OnceLock<Box<Ed25519KeyPair>> },
    Outside { program: PathBuf, arguments: Vec<String>, dir: PathBuf, timeout: Duration },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    public: PathBuf,
    command: Vec<String>,
    #[serde(default = "timeout_default", deserialize_with = "timeout")]
    timeout: Duration,
}

impl Signer {
    /// Returns whether `name` is that of a key.
    pub(super) fn is_name(name: &str) -> bool {
        name.ends_with(KEY_SUFFIX) || name.ends_with(OUTSIDE_SUFFIX)
    }

    /// Makes a new key for `dir/STEM.key.pem`, encrypted if there is a passphrase. Nothing is written yet.
    pub(super) fn generate(dir: &Path, stem: &str, passphrase: Option<&str>) -> Result<Fresh, KeysError> {
        let unspecified = |_unspecified| KeysError::Generate;
        let pair = Ed25519KeyPair::generate().map_err(unspecified)?;
        let secret = pair.to_pkcs8v1().map_err(unspecified)?;
        let path = dir.join(format!("{stem}{KEY_SUFFIX}"));
        let key = pair.tuf_key();
        let mut files = Vec::new();
        let pem = match passphrase {
            Some(passphrase) => {
                let sealed = PrivateKeyInfoRef::try_from(secret.as_ref())
                    .and_then(|info| info.encrypt(passphrase))
                    .map_err(|_pkcs8| KeysError::Generate)?;
                let spki = [&ED25519_SPKI[..], public_bytes(&key)].concat();
                let public = Zeroizing::new(pem::encode(&pem::Pem::new(PUBLIC_TAG, spki)));
                files.push((dir.join(format!("{stem}{PUBLIC_SUFFIX}")), public, PUBLIC_MODE));
                pem::encode(&pem::Pem::new(ENCRYPTED_TAG, sealed.as_bytes().to_vec()))
            }
            None => pem::encode(&pem::Pem::new(PRIVATE_TAG, secret.as_ref().to_vec())),
        };
        files.push((path.clone(), Zeroizing::new(pem), PRIVATE_MODE));
        Ok(Fresh { signer: Self::of(key, path, Kind::Open(Box::new(pair)))?, files })
    }

    /// Returns whether `dir` has a file already that a key with this stem would have.
    pub(super) fn is_taken(dir: &Path, stem: &str) -> bool {
        let taken = |suffix| {
            let path = dir.join(format!("{stem}{suffix}"));
            [making::beside(&path), path].iter().any(|path| fs::symlink_metadata(path).is_ok())
        };
        [KEY_SUFFIX, OUTSIDE_SUFFIX, PUBLIC_SUFFIX].into_iter().any(taken)
    }

    /// Returns whether it is behind a command.
    pub(super) fn is_outside(&self) -> bool {
        matches!(self.kind, Kind::Outside { .. })
    }

    /// Returns the file of its public key, if that lies in the directory of its own and nobody says anything else of it.
    pub(super) fn public_beside(&self) -> Option<PathBuf> {
        let path = public_of(&self.path)?;
        (path.parent() == self.path.parent() && read_public(&path).ok()? == self.key).then_some(path)
    }

    /// Returns whether a passphrase protects it.
    pub(super) fn is_locked(&self) -> bool {
        matches!(self.kind, Kind::Locked { .. })
    }

    /// Reads the key that a file holds or describes.
    pub(super) fn read(path: &Path, passphrase: &Passphrase<'_>) -> Result<Self, KeysError> {
        if path.to_string_lossy().ends_with(OUTSIDE_SUFFIX) {
            return Self::read_description(path);
        }
        let no_key = || KeysError::Key { path: path.to_owned() };
        let pem = pem::parse(read(path)?.as_slice()).map_err(|_no_pem| no_key())?;
        match pem.tag() {
            PRIVATE_TAG => {
                let pair = Ed25519KeyPair::from_pkcs8(pem.contents()).map_err(|_other_key| no_key())?;
                Self::of(pair.tuf_key(), path.to_owned(), Kind::Open(Box::new(pair)))
            }
            ENCRYPTED_TAG => {
                let sealed = pem.contents().to_vec();
                let public = public_path(path);
                if public.exists() {
                    let kind = Kind::Locked { sealed, opened: OnceLock::new() };
                    return Self::of(read_public(&public)?, path.to_owned(), kind);
                }
                let pair = unseal(path, &sealed, passphrase)?;
                let (key, opened) = (pair.tuf_key(), OnceLock::from(Box::new(pair)));
                Self::of(key, path.to_owned(), Kind::Locked { sealed, opened })
            }
            _other_label => Err(no_key()),
        }
    }

    fn read_description(path: &Path) -> Result<Self, KeysError> {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        let described: Description = toml::from_str(&text)
            .map_err(|source| KeysError::Description { path: path.to_owned(), source: Box::new(source) })?;
        let dir = path.parent().unwrap_or(Path::new(".")).to_owned();
        let key = read_public(&dir.join(described.public))?;
        let mut words = described.command.into_iter();
        let program = words.next().ok_or_else(|| KeysError::NoCommand { path: path.to_owned() })?;
        // One with a slash lies beside the description, wherever that was carried; one without is looked for in PATH.
        let program = if program.contains('/') { dir.join(program) } else { PathBuf::from(program) };
        Self::of(
            key,
            path.to_owned(),
            Kind::Outside { program, arguments: words.collect(), dir, timeout: described.timeout },
        )
    }

    fn of(key: Key, path: PathBuf, kind: Kind) -> Result<Self, KeysError> {
        let id = key.key_id().map_err(|_no_json| KeysError::PublicKey { path: path.clone() })?;
        Ok(Self { id, key, path, kind })
    }

    /// Returns the signature of `canonical`, the canonical form of `value`.
    pub(super) fn sign(
        &self,
        value: &Value,
        canonical: &[u8],
        passphrase: &Passphrase<'_>,
    ) -> Result<Signature, KeysError> {
        let sig = match &self.kind {
            Kind::Open(pair) => pair.sign(canonical).as_ref().to_vec(),
            Kind::Locked { sealed, opened } => {
                let pair = match opened.get() {
                    Some(pair) => pair,
                    None => {
                        let pair = unseal(&self.path, sealed, passphrase)?;
                        if pair.tuf_key() != self.key {
                            return Err(KeysError::OtherKey { path: self.path.clone() });
                        }
                        opened.get_or_init(|| Box::new(pair))
                    }
                };
                pair.sign(canonical).as_ref().to_vec()
            }
            Kind::Outside { program, arguments, dir, timeout } => {
                let sig = self.run(Command::new(program).args(arguments).current_dir(dir), canonical, *timeout)?;
                let signature = Signature { keyid: self.id.clone(), sig: sig.clone().into() };
                if !document::holds(&self.key, value, &signature) {
                    let (program, path) = (program.display().to_string(), self.path.clone());
                    return Err(KeysError::NoSignature { program, path, bytes: sig.len() });
                }
                sig
            }
        };
        Ok(Signature { keyid: self.id.clone(), sig: sig.into() })
    }

    /// Returns what the program that signs writes.
    fn run(&self, command: &mut Command, input: &[u8], limit: Duration) -> Result<Vec<u8>, KeysError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let path = self.path.clone();
        let run = match program::run(command, input, limit) {
            Ok(run) => run,
            Err(source) => return Err(KeysError::Run { program, path, source }),
        };
        let said = String::from_utf8_lossy(&run.complaint).trim().replace('\n', "; ");
        let said = if said.is_empty() { said } else { format!(": {said}") };
        match (run.status, run.output) {
            (None, _) => Err(KeysError::Late { program, path, limit, said }),
            (Some(status), _) if !status.success() => {
                Err(KeysError::Failed { program, path, how: format!("ended with {status}{said}") })
            }
            (Some(_), None) => {
                let how = format!("ended, but something that it started keeps its standard output open{said}");
                Err(KeysError::Failed { program, path, how })
            }
            (Some(_), Some(output)) => Ok(output),
        }
    }
}

/// Reads how long a program may take to sign.
fn timeout<'de, D: Deserializer<'de>>(value: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(value)?;
    let wrong = || D::Error::custom(format!("{text:?} is no duration: write a number and a unit, such as \"10m\""));
    let found: SignedDuration = text.trim().parse().map_err(|_no_duration| wrong())?;
    let found = Duration::try_from(found).map_err(|_negative| wrong())?;
    if found.is_zero() || found > SIGN_TIMEOUT_MAX {
        return Err(D::Error::custom(format!("{text:?} is not between nothing and a day")));
    }
    Ok(found)
}

fn timeout_default() -> Duration {
    SIGN_TIMEOUT_DEFAULT
}

fn unseal(path: &Path, sealed: &[u8], passphrase: &Passphrase<'_>) -> Result<Ed25519KeyPair, KeysError> {
    let no_key = || KeysError::Key { path: path.to_owned() };
    let info = EncryptedPrivateKeyInfoRef::try_from(sealed).map_err(|_no_pkcs8| no_key())?;
    let found = passphrase(path).map_err(|source| KeysError::NoPassphrase { path: path.to_owned(), source })?;
    let found = found.ok_or_else(|| KeysError::Locked { path: path.to_owned() })?;
    let secret = info.decrypt(found.as_bytes()).map_err(|_wrong| KeysError::Passphrase { path: path.to_owned() })?;
    Ed25519KeyPair::from_pkcs8(secret.as_bytes()).map_err(|_other_key| no_key())
}

fn public_bytes(key: &Key) -> &[u8] {
    match key {
        Key::Ed25519 { keyval, .. } => &keyval.public,
        Key::Rsa { keyval, .. } => &keyval.public,
        Key::Ecdsa { keyval, .. } | Key::EcdsaOld { keyval, .. } => &keyval.public,
    }
}

fn public_path(path: &Path) -> PathBuf {
    let name = path.to_string_lossy();
    PathBuf::from(format!("{}{PUBLIC_SUFFIX}", name.strip_suffix(KEY_SUFFIX).unwrap_or(&name)))
}

/// Returns where the public key of the key in this file lies, if the file says or implies it.
pub(super) fn public_of(path: &Path) -> Option<PathBuf> {
    let name = path.to_string_lossy();
    if name.ends_with(OUTSIDE_SUFFIX) {
        let described: Description = toml::from_str(&String::from_utf8_lossy(&read(path).ok()?)).ok()?;
        return Some(path.parent()?.join(described.public));
    }
    name.ends_with(KEY_SUFFIX).then(|| public_path(path))
}

fn read_public(path: &Path) -> Result<Key, KeysError> {
    let no_key = || KeysError::PublicKey { path: path.to_owned() };
    let text = String::from_utf8(read(path)?.to_vec()).map_err(|_no_text| no_key())?;
    let pem = pem::parse(&text).map_err(|_no_pem| no_key())?;
    if let Some(public) = pem.contents().strip_prefix(&ED25519_SPKI) {
        let keyval = Ed25519Key { public: public.to_vec().into(), _extra: HashMap::new() };
        return Ok(Key::Ed25519 { keyval, scheme: Ed25519Scheme::Ed25519, _extra: HashMap::new() });
    }
    text.trim().parse().map_err(|_unknown| no_key())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeysError> {
    Ok(durable::read_limited(path, KEY_BYTES_MAX).map(Zeroizing::new).map_err(file_error("read", path))?)
}
