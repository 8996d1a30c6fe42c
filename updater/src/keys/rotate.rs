//! New keys and new roots: the first root, and each that follows it.
//!
//! A root is signed by the keys of the one before it and by its own, so that an appliance that trusts any of the chain
//! reaches the newest. Key files are written first and the root last: a root that nobody can sign with never appears.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use tough::schema::{RoleKeys, RoleType, Root};
use zeroize::Zeroizing;

use super::error::KeysError;
use super::metadata::{SPEC_VERSION, spell, whole_seconds};
use super::signer::{Fresh, Signer};
use super::{Keys, ROLES, ROOT_SUFFIX, io_error, nobody, role_name};
use crate::durable;
use crate::package::ROOTS_MAX;
use crate::tuf::document::canonical;

/// Where keys go that a newer root no longer names.
const RETIRED_DIR: &str = "retired";

/// How the first keys are made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// When the root expires.
    pub root_expires: Timestamp,
    /// How many keys the root role gets.
    pub root_keys: u64,
    /// How many of them must sign a newer root.
    pub root_threshold: u64,
    /// Whether timestamp, snapshot and targets get keys of their own.
    pub separate_roles: bool,
    /// Where the keys of the root role go, if not beside the others: a medium that is put away.
    pub root_dir: Option<PathBuf>,
    /// Keys that are not made but described in these files (see [`crate::keys`]), by the role they are for.
    pub outside: Vec<(RoleType, PathBuf)>,
    /// Encrypts every key that is made.
    pub passphrase: Option<Zeroizing<String>>,
}

impl Setup {
    /// Returns the setup of one key for everything.
    #[must_use]
    pub fn one_key(root_expires: Timestamp) -> Self {
        Self {
            root_expires,
            root_keys: 1,
            root_threshold: 1,
            separate_roles: false,
            root_dir: None,
            outside: Vec::new(),
            passphrase: None,
        }
    }
}

/// What a newer root changes.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// The roles that get new keys; with none only the date changes.
    pub roles: BTreeSet<&'static str>,
    /// When the new root expires.
    pub root_expires: Timestamp,
    /// How many keys the root role has from now on, if that changes; it must be among the roles.
    pub root_keys: Option<u64>,
    /// How many of them must sign, if that changes.
    pub root_threshold: Option<u64>,
    /// Where the new keys of the root role go, if not to the old ones.
    pub root_dir: Option<PathBuf>,
    /// As in [`Setup`].
    pub outside: Vec<(RoleType, PathBuf)>,
    /// As in [`Setup`].
    pub passphrase: Option<Zeroizing<String>>,
}

/// What [`Keys::rotate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The newer root's file.
    pub root: PathBuf,
    /// Its version.
    pub version: u64,
    /// Files of private keys that were made.
    pub made: Vec<PathBuf>,
    /// Files of keys that no role uses any more, where they are now.
    pub retired: Vec<PathBuf>,
}

/// Keys for roles that share them.
struct Group<'a> {
    roles: Vec<RoleType>,
    stem: String,
    dir: &'a Path,
    keys: u64,
}

/// What makes keys.
struct Maker<'a> {
    outside: &'a [(RoleType, PathBuf)],
    passphrase: Option<&'a str>,
    fresh: Vec<Fresh>,
    described: Vec<Signer>,
}

impl Maker<'_> {
    /// Makes the keys of a group, and enters them into `root` with `threshold`.
    fn make(&mut self, group: &Group<'_>, threshold: u64, root: &mut Root) -> Result<(), KeysError> {
        let mut keys = Vec::new();
        for (role, path) in self.outside {
            if group.roles.contains(role) {
                let signer = Signer::read(path, &nobody)?;
                keys.push((signer.id.clone(), signer.key.clone()));
                self.described.push(signer);
            }
        }
        if keys.is_empty() {
            for number in 1..=group.keys {
                let stem = if group.keys == 1 { group.stem.clone() } else { format!("{}-{number}", group.stem) };
                let fresh = Signer::generate(group.dir, &stem, self.passphrase)?;
                keys.push((fresh.signer.id.clone(), fresh.signer.key.clone()));
                self.fresh.push(fresh);
            }
        }
        let found = keys.len() as u64;
        let met = NonZeroU64::new(threshold).filter(|threshold| threshold.get() <= found);
        let threshold = met.ok_or(KeysError::Threshold { threshold, keys: found })?;
        let keyids: Vec<_> = keys.iter().map(|(id, _)| id.clone()).collect();
        root.keys.extend(keys);
        for role in &group.roles {
            root.roles.insert(*role, RoleKeys { keyids: keyids.clone(), threshold, _extra: HashMap::new() });
        }
        Ok(())
    }
}

impl Keys {
    /// Makes keys in `dir`, which holds none yet, and the first root, which names them.
    ///
    /// # Errors
    /// `dir` holds keys already or the setup is impossible, and nothing has changed; or a file operation failed.
    pub fn create(dir: &Path, setup: &Setup) -> Result<Self, KeysError> {
        durable::create_dirs(dir).map_err(io_error("make", dir))?;
        let root_dir = setup.root_dir.as_deref().unwrap_or(dir);
        durable::create_dirs(root_dir).map_err(io_error("make", root_dir))?;
        for dir in [dir, root_dir] {
            for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
                let entry = entry.map_err(io_error("read", dir))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let named = setup.outside.iter().any(|(_, path)| path.file_name() == entry.path().file_name());
                if name.ends_with(ROOT_SUFFIX) || (Signer::is_name(&name) && !named) {
                    return Err(KeysError::Exists { dir: dir.to_owned() });
                }
            }
        }
        let mut root = Root {
            spec_version: SPEC_VERSION.to_owned(),
            // The same root serves a repository on a web server, where files of two moments lie side by side.
            consistent_snapshot: true,
            version: NonZeroU64::MIN,
            expires: whole_seconds(setup.root_expires),
            keys: HashMap::new(),
            roles: HashMap::new(),
            _extra: HashMap::new(),
        };
        let root_apart = setup.separate_roles
            || setup.root_dir.is_some()
            || setup.root_keys > 1
            || setup.outside.iter().any(|(role, _)| *role == RoleType::Root);
        let others: Vec<RoleType> = ROLES.into_iter().filter(|role| *role != RoleType::Root).collect();
        let group = |roles: &[RoleType], stem: &str, dir, keys| Group {
            roles: roles.to_vec(),
            stem: stem.to_owned(),
            dir,
            keys,
        };
        let mut groups = Vec::new();
        if root_apart {
            groups.push(group(&[RoleType::Root], "root", root_dir, setup.root_keys));
            if setup.separate_roles {
                groups.extend(others.iter().map(|role| group(&[*role], role_name(*role), dir, 1)));
            } else {
                groups.push(group(&others, "online", dir, 1));
            }
        } else {
            groups.push(group(&ROLES, "refit", dir, 1));
        }
        let passphrase = setup.passphrase.as_ref().map(|text| text.as_str());
        let mut maker = Maker { outside: &setup.outside, passphrase, fresh: Vec::new(), described: Vec::new() };
        for group in &groups {
            let threshold = if group.roles.contains(&RoleType::Root) { setup.root_threshold } else { 1 };
            maker.make(group, threshold, &mut root)?;
        }
        let keys = Self {
            dir: dir.to_owned(),
            roots: BTreeMap::new(),
            newest: root.clone(),
            newest_bytes: Vec::new(),
            signers: Vec::new(),
            passphrase: Arc::new(nobody),
        };
        keys.publish(root, maker).map(|(keys, _made)| keys)
    }

    /// Makes the next root, with new keys for some of the roles, signed by the keys of the newest root and by its own.
    /// Files of keys that no role uses any more are put into `retired/`.
    ///
    /// # Errors
    /// Keys of the root role are missing or the change is impossible, and nothing has changed; or a file operation failed.
    pub fn rotate(self, rotation: &Rotation) -> Result<(Self, Rotated), KeysError> {
        let mut root = self.newest.clone();
        let version = root.version.get() + 1;
        if version > ROOTS_MAX as u64 {
            return Err(KeysError::Roots { max: ROOTS_MAX });
        }
        root.version = NonZeroU64::new(version).ok_or(KeysError::VersionZero)?;
        root.expires = whole_seconds(rotation.root_expires);
        let dir = self.dir.clone();
        // A root that was put away does not come out of its safe because nobody said so again.
        let root_dir = rotation.root_dir.clone().unwrap_or_else(|| self.root_dir());
        durable::create_dirs(&root_dir).map_err(io_error("make", &root_dir))?;

        // Roles that share their keys go on sharing them.
        let mut sharing: BTreeMap<Vec<Vec<u8>>, Vec<RoleType>> = BTreeMap::new();
        for role in ROLES.into_iter().filter(|role| rotation.roles.contains(role_name(*role))) {
            let mut ids: Vec<Vec<u8>> =
                self.newest.roles.get(&role).iter().flat_map(|keys| &keys.keyids).map(|id| id.to_vec()).collect();
            ids.sort();
            sharing.entry(ids).or_default().push(role);
        }
        let passphrase = rotation.passphrase.as_ref().map(|text| text.as_str());
        let mut maker = Maker { outside: &rotation.outside, passphrase, fresh: Vec::new(), described: Vec::new() };
        for (ids, roles) in sharing {
            let has_root = roles.contains(&RoleType::Root);
            let stem = match roles.as_slice() {
                [role] => role_name(*role),
                _several if has_root => "refit",
                _several => "online",
            };
            let old = roles.first().and_then(|role| self.newest.roles.get(role)).map_or(1, |keys| keys.threshold.get());
            let (keys, threshold) = if has_root {
                (rotation.root_keys.unwrap_or(ids.len() as u64), rotation.root_threshold.unwrap_or(old))
            } else {
                (ids.len() as u64, old)
            };
            let group =
                Group { roles, stem: format!("{stem}-v{version}"), dir: if has_root { &root_dir } else { &dir }, keys };
            maker.make(&group, threshold, &mut root)?;
        }
        if let (Some(threshold), false) = (rotation.root_threshold, rotation.roles.contains("root"))
            && let Some(role) = root.roles.get_mut(&RoleType::Root)
        {
            let keys = role.keyids.len() as u64;
            let met = NonZeroU64::new(threshold).filter(|threshold| threshold.get() <= keys);
            role.threshold = met.ok_or(KeysError::Threshold { threshold, keys })?;
        }
        let used: BTreeSet<Vec<u8>> = root.roles.values().flat_map(|role| &role.keyids).map(|id| id.to_vec()).collect();
        root.keys.retain(|id, _| used.contains(&**id));

        let (mut keys, made) = self.publish(root, maker)?;
        let mut retired = Vec::new();
        let (kept, gone): (Vec<Signer>, Vec<Signer>) =
            keys.signers.into_iter().partition(|signer| used.contains(&*signer.id));
        for signer in &gone {
            retired.push(retire(&signer.path)?);
        }
        keys.signers = kept;
        let root = dir.join(format!("{version}{ROOT_SUFFIX}"));
        Ok((keys, Rotated { root, version, made, retired }))
    }

    /// Returns where the keys of the root role lie that are at hand.
    fn root_dir(&self) -> PathBuf {
        let ids = self.newest.roles.get(&RoleType::Root).map(|keys| keys.keyids.as_slice()).unwrap_or_default();
        let signer = self.signers.iter().find(|signer| ids.contains(&signer.id));
        signer.and_then(|signer| signer.path.parent()).unwrap_or(&self.dir).to_owned()
    }

    /// Signs `root` as the newest root and itself require, writes the new keys, and then the root.
    fn publish(mut self, root: Root, maker: Maker<'_>) -> Result<(Self, Vec<PathBuf>), KeysError> {
        let encode = |source| KeysError::Encode { role: RoleType::Root, source: Box::new(source) };
        let value = serde_json::to_value(&root).map_err(encode)?;
        let canonical = canonical(&value).map_err(encode)?;
        let Maker { fresh, described, .. } = maker;
        let mut files = Vec::new();
        for Fresh { signer, files: new } in fresh {
            files.push((signer.path.clone(), new));
            self.signers.push(signer);
        }
        for signer in described {
            if !self.signers.iter().any(|known| known.id == signer.id) {
                self.signers.push(signer);
            }
        }
        let mut signatures = Vec::new();
        if !self.roots.is_empty() {
            self.add_signatures(RoleType::Root, &self.newest, &value, &canonical, &mut signatures)?;
        }
        self.add_signatures(RoleType::Root, &root, &value, &canonical, &mut signatures)?;
        let bytes = spell(&value, &signatures).ok_or(KeysError::Generate)?;
        for (path, content, mode) in files.iter().flat_map(|(_, files)| files) {
            durable::write_new(path, content.as_bytes(), *mode).map_err(io_error("write", path))?;
        }
        for dir in files.iter().filter_map(|(path, _)| path.parent()).collect::<BTreeSet<_>>() {
            durable::sync_dir(dir).map_err(io_error("sync", dir))?;
        }
        let (number, name) = (root.version.get(), format!("{}{ROOT_SUFFIX}", root.version));
        durable::replace(&self.dir, &name, &bytes).map_err(io_error("write", &self.dir.join(&name)))?;
        self.roots.insert(number, bytes.clone());
        self.newest = root;
        self.newest_bytes = bytes;
        Ok((self, files.into_iter().map(|(path, _)| path).collect()))
    }
}

/// Puts a key's file aside: it signs nothing that anybody accepts, and may still be wanted as evidence.
fn retire(path: &Path) -> Result<PathBuf, KeysError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path.to_owned()) };
    let aside = dir.join(RETIRED_DIR);
    durable::create_dirs(&aside).map_err(io_error("make", &aside))?;
    let to = aside.join(name);
    durable::rename(path, &to).map_err(io_error("move", path))?;
    Ok(to)
}
