//! A configuration as a tree: where its files lie, its links and directories, and what else belongs to each.
//!
//! Files stay where they are until the tree is written: they may be large. Whatever cannot be carried over is a [`Kind::Opaque`], which
//! has no content and is like nothing else.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use refit_base::file_error;
use rustix::fs::{SeekFrom, XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;

use super::ConfigError;
use super::scan::{self, Access, Scan, Unread, What};
use crate::durable;
use crate::modes::CONFIG_DIR;

/// Permissions that the owner of a live configuration needs: the defaults in a release are read-only.
const OWNER_FILE_MODE: u32 = 0o600;
/// The same, of directories.
const OWNER_DIR_MODE: u32 = 0o700;
/// The bits of a mode.
const MODE_BITS: u32 = 0o7777;
/// Permissions of what is not whole yet.
const FRESH_MODE: u32 = 0o600;
/// The same, of directories.
const FRESH_DIR_MODE: u32 = 0o700;
/// An access list, as an extended attribute.
pub(super) const ACCESS_LIST: &str = "system.posix_acl_access";
/// The longest list of names of extended attributes, and the longest value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX` of Linux).
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;
/// How much is copied or compared at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Whose tree it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The defaults of a release: it says nothing but content and mode.
    Defaults,
    /// A live configuration: all that an admin can give it counts.
    Live,
}

/// What lies at a path.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
}

/// What an entry is, and holds.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Directory,
    File(Content),
    Link(PathBuf),
    /// It cannot be carried over, and why.
    Opaque(String),
}

/// The content of a file.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// It lies here.
    At { path: PathBuf, bytes: u64 },
    /// It is this.
    Text(Vec<u8>),
}

/// What belongs to an entry besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    /// User and group; those of the directory above where nobody said.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) modified: Option<SystemTime>,
    /// Extended attributes, access lists among them.
    pub(super) extended: BTreeMap<OsString, Vec<u8>>,
}

impl Attributes {
    pub(super) fn access_list(&self) -> Option<&Vec<u8>> {
        self.extended.get(OsStr::new(ACCESS_LIST))
    }

    /// Whether both let the same accounts do the same, and say the same besides: all but the time.
    pub(super) fn same_rights(&self, other: &Self) -> bool {
        (self.mode, self.owner, &self.extended) == (other.mode, other.owner, &other.extended)
    }
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::At { bytes, .. } => *bytes,
            Self::Text(text) => text.len() as u64,
        }
    }

    pub(super) fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::At { path, .. } => Box::new(scan::open(path, Access::AsOwner)?),
            Self::Text(text) => Box::new(text.as_slice()),
        })
    }

    /// Returns whether both hold the same.
    pub(super) fn same(&self, other: &Self) -> io::Result<bool> {
        if self.len() != other.len() {
            return Ok(false);
        }
        let (mut one, mut other) = (self.open()?, other.open()?);
        loop {
            let [mut left, mut right] = [Vec::new(), Vec::new()];
            one.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut left)?;
            other.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut right)?;
            if left != right {
                return Ok(false);
            }
            if left.is_empty() {
                return Ok(true);
            }
        }
    }
}

impl Entry {
    pub(super) fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }

    /// Whether both hold the same, whoever they belong to. What cannot be read is like nothing else.
    pub(super) fn same_content(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Directory, Kind::Directory) => true,
            (Kind::File(one), Kind::File(other)) => one.same(other).unwrap_or(false),
            (Kind::Link(one), Kind::Link(other)) => one == other,
            (Kind::Directory | Kind::File(_) | Kind::Link(_) | Kind::Opaque(_), _) => false,
        }
    }
}

/// Everything below one directory, by path, each directory before what lies in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    pub(super) entries: BTreeMap<PathBuf, Entry>,
    /// What belongs to the directory itself, as far as an update keeps it.
    pub(super) top: Attributes,
    /// What could not be read at all.
    pub(super) unread: Vec<Unread>,
}

impl Tree {
    /// Reads the tree at `dir`, which may be missing: then it is empty.
    ///
    /// # Errors
    /// The directory itself cannot be read.
    pub(super) fn read(dir: &Path, side: Side) -> Result<Self, ConfigError> {
        let Some(looks) = unless_missing(fs::metadata(dir)).map_err(file_error("read", dir))? else {
            return Ok(Self::default());
        };
        let Scan { found, unread } = Scan::read(dir);
        if let Some(unread) = unread.iter().find(|unread| unread.path.is_empty()) {
            return Err(file_error("read", dir)(io::Error::other(unread.why.clone())).into());
        }
        let mut tree = Self { top: attributes(dir, &looks, side), unread, ..Self::default() };
        tree.top.extended.retain(|name, _| name != ACCESS_LIST);
        for (path, found) in found {
            let at = dir.join(&path);
            let attributes = attributes(&at, &found.looks, side);
            let kind = match found.what {
                What::Directory => Kind::Directory,
                What::File => match scan::open(&at, Access::AsOwner) {
                    Ok(_readable) => Kind::File(Content::At { path: at, bytes: found.looks.len() }),
                    Err(error) => match scan::why(&error) {
                        Some(why) => Kind::Opaque(why),
                        None => continue, // gone
                    },
                },
                What::Link(target) => Kind::Link(target),
                What::Other(why) => Kind::Opaque(why),
            };
            tree.entries.insert(path, Entry { kind, attributes });
        }
        Ok(tree)
    }

    /// Returns the entries at `path` and below.
    pub(super) fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a PathBuf, &'a Entry)> {
        self.entries.range(path.to_owned()..).take_while(move |(at, _)| at.starts_with(path))
    }

    /// Returns the first entry that cannot be carried over, and why.
    pub(super) fn first_opaque(&self) -> Option<(PathBuf, String)> {
        let unread = self.unread.first().map(|unread| (PathBuf::from(&unread.path), unread.why.clone()));
        unread.or_else(|| {
            self.entries.iter().find_map(|(path, entry)| match &entry.kind {
                Kind::Opaque(why) => Some((path.clone(), why.clone())),
                Kind::Directory | Kind::File(_) | Kind::Link(_) => None,
            })
        })
    }

    /// Writes the tree as the new directory `dir`. Returns what could not be carried over after all. Nothing is synced.
    pub(super) fn write(&self, dir: &Path) -> Result<Vec<Unread>, ConfigError> {
        let mut lost = Vec::new();
        let mut owners: BTreeMap<&Path, Option<(u32, u32)>> = BTreeMap::from([(Path::new(""), self.top.owner)]);
        // Refit itself says who may look into the configuration.
        let mut dirs = vec![(PathBuf::new(), Attributes { mode: CONFIG_DIR, ..self.top.clone() })];
        make_dir(dir)?;
        for (path, entry) in &self.entries {
            let at = dir.join(path);
            let mut attributes = entry.attributes.clone();
            let above = path.parent().and_then(|above| owners.get(above)).copied().flatten();
            attributes.owner = attributes.owner.or(above);
            match &entry.kind {
                Kind::Directory => {
                    make_dir(&at)?;
                    owners.insert(path, attributes.owner);
                    dirs.push((path.clone(), attributes));
                }
                Kind::File(content) => {
                    let file = durable::create_new(&at, FRESH_MODE).map_err(file_error("write", &at))?;
                    match content.open() {
                        Ok(_readable) => write_content(content, &file, &at)?,
                        // It could be read a moment ago.
                        Err(error) => {
                            durable::remove_file(&at).map_err(file_error("remove", &at))?;
                            lost.extend(scan::why(&error).map(|why| Unread::new(path, why)));
                            continue;
                        }
                    }
                    let given = give_file(&file, &at, &attributes);
                    lost.extend(given.err().map(|error| not_given(path, &error)));
                }
                Kind::Link(target) => {
                    durable::symlink(target, &at).map_err(file_error("link", &at))?;
                    let given = attributes.owner.map_or(Ok(()), |owner| give_link(&at, owner));
                    lost.extend(given.err().map(|error| not_given(path, &error)));
                }
                Kind::Opaque(why) => lost.push(Unread::new(path, why.clone())),
            }
        }
        // At the end: whoever may not write there now could not have made what lies in it.
        for (path, attributes) in dirs.iter().rev() {
            let at = dir.join(path);
            let given = File::open(&at).and_then(|file| give_file(&file, &at, attributes));
            lost.extend(given.err().map(|error| not_given(path, &error)));
        }
        Ok(lost)
    }
}

fn not_given(path: &Path, error: &io::Error) -> Unread {
    Unread::new(path, format!("not all of its owner, mode and attributes can be given to its copy: {error}"))
}

fn unless_missing<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns what belongs to the entry at `path`, as it is in a live configuration.
fn attributes(path: &Path, looks: &fs::Metadata, side: Side) -> Attributes {
    let mode = looks.permissions().mode();
    match side {
        Side::Defaults => {
            let needed = if looks.is_dir() { OWNER_DIR_MODE } else { OWNER_FILE_MODE };
            Attributes { mode: mode & 0o777 | needed, ..Attributes::default() }
        }
        Side::Live => Attributes {
            mode: mode & MODE_BITS,
            owner: Some((looks.uid(), looks.gid())),
            modified: if looks.is_file() { looks.modified().ok() } else { None },
            // Without them it is still the same file.
            extended: if looks.is_symlink() { BTreeMap::new() } else { extended(path).unwrap_or_default() },
        },
    }
}

fn extended(path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>, Errno> {
    use std::os::unix::ffi::OsStrExt;
    let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = llistxattr(path, &mut names[..])?;
    let mut found = BTreeMap::new();
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if is_the_machines(name) {
            continue;
        }
        let name = std::ffi::OsStr::from_bytes(name);
        if let Ok(length) = lgetxattr(path, name, &mut value[..]) {
            found.insert(name.to_owned(), value[..length].to_vec());
        }
    }
    Ok(found)
}

/// Whether an extended attribute is the machine's own to give: the labels of its policy, and what its overlays note.
fn is_the_machines(name: &[u8]) -> bool {
    name.starts_with(b"security.") && name != b"security.capability" || name.starts_with(b"trusted.overlay.")
}

/// Gives the file or directory at `path` what belongs to it. Tries all of it, and returns the first failure.
fn give_file(file: &File, path: &Path, attributes: &Attributes) -> io::Result<()> {
    let mut result = Ok(());
    let mut keep = |done: io::Result<()>| {
        if result.is_ok() {
            result = done;
        }
    };
    let looks = file.metadata()?;
    if let Some((user, group)) = attributes.owner {
        // An account may give its file to one of its groups, and to nobody else.
        if looks.gid() != group {
            keep(fchown(file, None, Some(group)));
        }
        if looks.uid() != user {
            keep(fchown(file, Some(user), None));
        }
    }
    keep(file.set_permissions(Permissions::from_mode(attributes.mode)));
    for (name, value) in &attributes.extended {
        keep(lsetxattr(path, name, value, XattrFlags::empty()).map_err(io::Error::from));
    }
    if let Some(modified) = attributes.modified {
        keep(file.set_times(FileTimes::new().set_modified(modified)));
    }
    result
}

fn give_link(path: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    let looks = fs::symlink_metadata(path)?;
    if (looks.uid(), looks.gid()) == (user, group) { Ok(()) } else { lchown(path, Some(user), Some(group)) }
}

fn make_dir(path: &Path) -> Result<(), ConfigError> {
    fs::create_dir(path).map_err(file_error("make", path))?;
    Ok(fs::set_permissions(path, Permissions::from_mode(FRESH_DIR_MODE)).map_err(file_error("protect", path))?)
}

/// Writes `content` into the empty file `to` at `path`, with its holes.
fn write_content(content: &Content, to: &File, path: &Path) -> Result<(), ConfigError> {
    match content {
        Content::Text(text) => to.write_all_at(text, 0).map_err(file_error("write", path))?,
        Content::At { path: from, bytes } => {
            let mut file = scan::open(from, Access::AsOwner).map_err(file_error("read", from))?;
            copy(&mut file, to, *bytes).map_err(file_error("copy", from))?;
        }
    }
    Ok(())
}

/// Copies the first `bytes` of `from` to `to`: not more, for a file may grow all the time.
fn copy(from: &mut File, to: &File, bytes: u64) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let data = match rustix::fs::seek(&*from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break, // nothing but a hole, or shorter than it was
            Err(Errno::INVAL) => at,   // a file system that does not say where holes are
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&*from, SeekFrom::Hole(data)).unwrap_or(bytes).min(bytes);
        from.seek(io::SeekFrom::Start(data))?;
        at = data;
        let mut piece = Vec::new();
        while at < end {
            piece.clear();
            from.by_ref().take((end - at).min(PIECE_BYTES as u64)).read_to_end(&mut piece)?;
            if piece.is_empty() {
                return Ok(());
            }
            to.write_all_at(&piece, at)?;
            at += piece.len() as u64;
        }
    }
    to.set_len(bytes.min(from.metadata()?.len()))
}
