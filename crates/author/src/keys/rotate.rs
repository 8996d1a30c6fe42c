//! New keys and new roots: the first root, and each that follows it.
//!
//! A root is signed by the keys of the one before it and by its own, so that an appliance that trusts any of the chain
//! reaches the newest. Key files are written first and the root last: a root that nobody can sign with never appears, and
//! what an interrupted run left is removed by the next one, see [`making`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use refit_base::file_error;
use refit_tuf::ROOTS_MAX;
use refit_tuf::document::{canonical, spell};
use refit_updater::durable;
use refit_updater::modes::OPEN_DIR;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::schema::{RoleKeys, RoleType, Root, Signed};
use zeroize::Zeroizing;

use super::error::KeysError;
use super::making::{self, Locked, Making, NewFile};
use super::metadata::{SPEC_VERSION, whole_seconds};
use super::retire::retire;
use super::signer::{Fresh, Signer};
use super::{Keys, ROLES, ROOT_SUFFIX, nobody, role_name};

/// How the first keys are made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// When the root expires.
    pub root_expires: Timestamp,
    /// How many keys are made for the root role.
    pub root_keys: u64,
    /// How many of them must sign a newer root.
    pub root_threshold: u64,
    /// Whether timestamp, snapshot and targets get keys of their own.
    pub separate_roles: bool,
    /// Where the keys of the root role go, if not beside the others: a medium that is put away.
    pub root_dir: Option<PathBuf>,
    /// Keys that are not made but described in these files (see [`crate::keys`]), by the role they are for: a key signs for
    /// the roles it is named for and for no other, and no key is made for these.
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
    /// How many keys are made for the root role, if not as many as it had; it must be among the roles.
    pub root_keys: Option<u64>,
    /// How many of them must sign, if that changes.
    pub root_threshold: Option<u64>,
    /// Where the new keys of the root role go, if not to the old ones.
    pub root_dir: Option<PathBuf>,
    /// As in [`Setup`]; each role must be among the roles. A role whose key is outside, or may be, must be here: with a file,
    /// or with none if its next key is to be made after all.
    pub outside: Vec<(RoleType, Option<PathBuf>)>,
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

/// Keys that are not made, and the roles they were named for.
struct Outside {
    signers: Vec<Signer>,
    named: Vec<(RoleType, Decoded<Hex>)>,
}

impl Outside {
    fn read<'a>(files: impl Iterator<Item = (RoleType, &'a PathBuf)>) -> Result<Self, KeysError> {
        let (mut signers, mut named) = (Vec::new(), Vec::new());
        for (role, path) in files {
            let signer = Signer::read(path, &nobody)?;
            named.push((role, signer.id.clone()));
            signers.push(signer);
        }
        Ok(Self { signers, named })
    }

    /// Returns the keys that were named for `role`; one that was named twice is one key.
    fn of(&self, role: RoleType) -> BTreeSet<&Decoded<Hex>> {
        self.named.iter().filter(|(named, _)| *named == role).map(|(_, id)| id).collect()
    }
}

/// Returns `roles` in groups that share their keys: those for which `sharing` returns the same, and which have the same
/// keys outside. Anything else would let a key sign for a role that nobody named it for.
fn groups<K: PartialEq>(
    roles: impl Iterator<Item = RoleType>,
    outside: &Outside,
    sharing: impl Fn(RoleType) -> K,
) -> Vec<Vec<RoleType>> {
    let mut groups: Vec<(_, Vec<RoleType>)> = Vec::new();
    for role in roles {
        let shared = (sharing(role), outside.of(role));
        match groups.iter_mut().find(|(known, _)| *known == shared) {
            Some((_, group)) => group.push(role),
            None => groups.push((shared, vec![role])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Returns what the files of a group's keys are called. Of four roles at most one group of several has root and at most
/// one has not: no two groups have the same name.
fn stem(roles: &[RoleType]) -> &'static str {
    match roles {
        [role] => role_name(*role),
        several if several.contains(&RoleType::Root) => "refit",
        _several => "online",
    }
}

/// What makes keys.
struct Maker<'a> {
    outside: Outside,
    passphrase: Option<&'a str>,
    fresh: Vec<Fresh>,
}

impl Maker<'_> {
    /// Enters a group's keys into `root`: those outside, or else as many new ones as `count` for `dir`.
    fn make(
        &mut self,
        roles: &[RoleType],
        (dir, stem, count): (&Path, &str, u64),
        threshold: impl Fn(RoleType) -> u64,
        root: &mut Root,
    ) -> Result<(), KeysError> {
        let named = roles.first().map(|role| self.outside.of(*role)).unwrap_or_default();
        let mut keyids: Vec<_> = named.into_iter().cloned().collect();
        let outside = self.outside.signers.iter().filter(|signer| keyids.contains(&signer.id));
        root.keys.extend(outside.map(|signer| (signer.id.clone(), signer.key.clone())));
        if keyids.is_empty() {
            durable::create_dirs(dir, OPEN_DIR).map_err(file_error("make", dir))?;
            for stem in stems(dir, stem, count) {
                let fresh = Signer::generate(dir, &stem, self.passphrase)?;
                keyids.push(fresh.signer.id.clone());
                root.keys.insert(fresh.signer.id.clone(), fresh.signer.key.clone());
                self.fresh.push(fresh);
            }
        }
        for role in roles {
            let (threshold, keys) = (threshold(*role), keyids.len() as u64);
            let threshold = threshold_of(threshold, keys)?;
            root.roles.insert(*role, RoleKeys { keyids: keyids.clone(), threshold, _extra: HashMap::new() });
        }
        Ok(())
    }
}

/// Returns `threshold`, if so many of `keys` can sign.
fn threshold_of(threshold: u64, keys: u64) -> Result<NonZeroU64, KeysError> {
    let met = NonZeroU64::new(threshold).filter(|threshold| threshold.get() <= keys);
    met.ok_or(KeysError::Threshold { threshold, keys })
}

/// Returns the stems of `count` new keys in `dir`: `root`, or `root-1` and so on. If one is taken, by a key outside or one that
/// somebody prepared, they are `root_2` or `root_2-1` and so on.
fn stems(dir: &Path, stem: &str, count: u64) -> Vec<String> {
    let numbered = |stem: &str| -> Vec<String> {
        if count == 1 { vec![stem.to_owned()] } else { (1..=count).map(|key| format!("{stem}-{key}")).collect() }
    };
    let mut found = numbered(stem);
    let mut next = 2u64..;
    while found.iter().any(|stem| Signer::is_taken(dir, stem))
        && let Some(number) = next.next()
    {
        found = numbered(&format!("{stem}_{number}"));
    }
    found
}

impl Keys {
    /// Makes keys in `dir`, which holds none yet, and the first root, which names them.
    ///
    /// # Errors
    /// `dir` holds keys already or the setup is impossible, and nothing has changed; or a file operation failed.
    pub fn create(dir: &Path, setup: &Setup) -> Result<Self, KeysError> {
        let outside = Outside::read(setup.outside.iter().map(|(role, path)| (*role, path)))?;
        durable::create_dirs(dir, OPEN_DIR).map_err(file_error("make", dir))?;
        // A medium for the root's keys is not touched when they are elsewhere.
        let root_dir = setup.root_dir.as_deref().filter(|_| outside.of(RoleType::Root).is_empty()).unwrap_or(dir);
        durable::create_dirs(root_dir, OPEN_DIR).map_err(file_error("make", root_dir))?;
        let _locked = making::lock(dir)?;
        if !dir.join(format!("1{ROOT_SUFFIX}")).exists() {
            making::clear(dir, &[root_dir], &outside.signers.iter().map(|signer| signer.id.clone()).collect())?;
        }
        for dir in [dir, root_dir] {
            for entry in fs::read_dir(dir).map_err(file_error("read", dir))? {
                let entry = entry.map_err(file_error("read", dir))?;
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
        // Whoever has a key outside sign releases does not want the root's to lie where releases are made.
        let root_apart = setup.root_dir.is_some() || setup.root_keys > 1 || !setup.outside.is_empty();
        let groups = groups(ROLES.into_iter(), &outside, |role| {
            (setup.separate_roles || (root_apart && role == RoleType::Root)).then_some(role)
        });
        let passphrase = setup.passphrase.as_ref().map(|text| text.as_str());
        let mut maker = Maker { outside, passphrase, fresh: Vec::new() };
        let threshold = |role| if role == RoleType::Root { setup.root_threshold } else { 1 };
        for roles in &groups {
            let (dir, count) = if roles.contains(&RoleType::Root) { (root_dir, setup.root_keys) } else { (dir, 1) };
            maker.make(roles, (dir, stem(roles), count), threshold, &mut root)?;
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
    /// Files of keys that roots have named and no role uses any more are put into `retired/`.
    ///
    /// # Errors
    /// Keys of the root role are missing, a key outside has no successor or the change is impossible, and nothing has changed;
    /// or a file operation failed.
    pub fn rotate(mut self, rotation: &Rotation) -> Result<(Self, Rotated), KeysError> {
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
        let mut told = rotation.outside.iter().map(|(role, _)| *role).chain(rotation.root_keys.map(|_| RoleType::Root));
        if let Some(role) = told.find(|role| !rotation.roles.contains(role_name(*role))) {
            return Err(KeysError::NotRotated { role });
        }
        self.require(RoleType::Root, &self.newest)?;
        self.check_successors(rotation)?;
        let named = |(role, path): &'_ (RoleType, Option<PathBuf>)| Some((*role, path.clone()?));
        let files: Vec<_> = rotation.outside.iter().filter_map(named).collect();
        let outside = Outside::read(files.iter().map(|(role, path)| (*role, path)))?;
        let _locked = self.begin(version, &root_dir, &outside)?;

        // Roles that share their keys go on sharing them, unless it is said what sets the root apart from the beginning, too.
        let old = |role| {
            let keys = self.newest.roles.get(&role);
            let ids: BTreeSet<_> = keys.iter().flat_map(|keys| &keys.keyids).cloned().collect();
            (ids, keys.map_or(1, |keys| keys.threshold.get()))
        };
        let root_count = old(RoleType::Root).0.len() as u64;
        let root_apart = rotation.root_dir.is_some()
            || rotation.root_keys.is_some_and(|count| count != root_count)
            || !files.is_empty();
        let roles = ROLES.into_iter().filter(|role| rotation.roles.contains(role_name(*role)));
        let groups = groups(roles, &outside, |role| (old(role).0, root_apart && role == RoleType::Root));
        let passphrase = rotation.passphrase.as_ref().map(|text| text.as_str());
        let mut maker = Maker { outside, passphrase, fresh: Vec::new() };
        let threshold = |role| match rotation.root_threshold {
            Some(threshold) if role == RoleType::Root => threshold,
            Some(_) | None => old(role).1,
        };
        for roles in &groups {
            let has_root = roles.contains(&RoleType::Root);
            let count = roles.first().map_or(0, |role| old(*role).0.len() as u64);
            let count = rotation.root_keys.filter(|_| has_root).unwrap_or(count);
            let (dir, stem) = (if has_root { &root_dir } else { &dir }, format!("{}-v{version}", stem(roles)));
            maker.make(roles, (dir, &stem, count), threshold, &mut root)?;
        }
        if let (Some(threshold), false) = (rotation.root_threshold, rotation.roles.contains("root"))
            && let Some(role) = root.roles.get_mut(&RoleType::Root)
        {
            let keys = role.keyids.len() as u64;
            role.threshold = threshold_of(threshold, keys)?;
        }
        let used: BTreeSet<Vec<u8>> = root.roles.values().flat_map(|role| &role.keyids).map(|id| id.to_vec()).collect();
        root.keys.retain(|id, _| used.contains(&**id));

        let (mut keys, made) = self.publish(root, maker)?;
        let mut retired = Vec::new();
        // A key that no root has named yet is not one that is not used any more: somebody has put it there for the next.
        let named = keys.named();
        let (gone, kept): (Vec<Signer>, Vec<Signer>) =
            keys.signers.into_iter().partition(|signer| named.contains(&signer.id) && !used.contains(&*signer.id));
        for signer in &gone {
            let failed = |source| KeysError::Retire { version, path: signer.path.clone(), source };
            retired.push(retire(signer).map_err(failed)?);
        }
        keys.signers = kept;
        let root = dir.join(format!("{version}{ROOT_SUFFIX}"));
        Ok((keys, Rotated { root, version, made, retired }))
    }

    /// Refuses to replace a key that is outside by one in a file, unless somebody has said so.
    fn check_successors(&self, rotation: &Rotation) -> Result<(), KeysError> {
        let told = |role: RoleType| rotation.outside.iter().any(|(told, _)| *told == role);
        for role in ROLES.into_iter().filter(|role| rotation.roles.contains(role_name(*role)) && !told(*role)) {
            let ids = self.newest.roles.get(&role).map(|keys| keys.keyids.as_slice()).unwrap_or_default();
            let mut here = self.signers.iter().filter(|signer| ids.contains(&signer.id)).peekable();
            let is_here = here.peek().is_some();
            if let Some(signer) = here.find(|signer| signer.is_outside()) {
                return Err(KeysError::Outside { role, key: signer.path.display().to_string() });
            }
            // Keys that are made are all of one kind: one of another is outside, wherever that is.
            let other = |id: &&Decoded<Hex>| {
                let is_here = self.signers.iter().any(|signer| signer.id == **id);
                !is_here && !matches!(self.newest.keys.get(*id), Some(Key::Ed25519 { .. }))
            };
            if let Some(id) = ids.iter().find(other) {
                return Err(KeysError::Outside { role, key: hex::encode(&**id) });
            }
            if !is_here {
                return Err(KeysError::Absent { role });
            }
        }
        Ok(())
    }

    /// Returns the lock of the directory, in which root `version` is made and nothing is left of a run before.
    fn begin(&mut self, version: u64, root_dir: &Path, outside: &Outside) -> Result<Locked, KeysError> {
        let locked = making::lock(&self.dir)?;
        if self.dir.join(format!("{version}{ROOT_SUFFIX}")).exists() {
            return Err(KeysError::Busy { dir: self.dir.clone() }); // it was not there when the directory was read
        }
        let mut named = self.named();
        named.extend(outside.signers.iter().map(|signer| signer.id.clone()));
        let mut dirs: BTreeSet<&Path> = self.signers.iter().filter_map(|signer| signer.path.parent()).collect();
        dirs.insert(root_dir);
        making::clear(&self.dir, &dirs.into_iter().collect::<Vec<_>>(), &named)?;
        self.signers.retain(|signer| signer.path.exists());
        Ok(locked)
    }

    /// Returns the keys that any of the roots names.
    fn named(&self) -> BTreeSet<Decoded<Hex>> {
        let roots = self.roots.values().filter_map(|bytes| serde_json::from_slice::<Signed<Root>>(bytes).ok());
        roots.flat_map(|root| root.signed.keys.into_keys()).collect()
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
        let Maker { fresh, outside, .. } = maker;
        let (mut made, mut files) = (Vec::new(), Vec::new());
        for Fresh { signer, files: new } in fresh {
            made.push(signer.path.clone());
            let file = |(path, content, mode)| NewFile { key: signer.id.clone(), path, content, mode };
            files.extend(new.into_iter().map(file));
            self.signers.push(signer);
        }
        for signer in outside.signers {
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
        let (number, name) = (root.version.get(), format!("{}{ROOT_SUFFIX}", root.version));
        let making = Making::write(&self.dir, &name, &files)?;
        if let Err(source) = durable::replace(&self.dir, &name, &bytes) {
            return Err(making.undo(file_error("write", &self.dir.join(&name))(source).into()));
        }
        making.finish();
        self.roots.insert(number, bytes.clone());
        self.newest = root;
        self.newest_bytes = bytes;
        Ok((self, made))
    }
}
