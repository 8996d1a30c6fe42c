//! A configuration in memory: small files, links and directories.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use refit_base::file_error;

use super::ConfigError;
use crate::durable;
use crate::modes::CONFIG_DIR;

/// Permissions that the owner of a live configuration needs: the defaults in a release are read-only.
const OWNER_FILE_MODE: u32 = 0o600;
/// The same, of directories.
const OWNER_DIR_MODE: u32 = 0o700;

/// Returns the paths of the files below `dir`, in order; none if there is no such directory.
pub(super) fn file_names(dir: &Path) -> Result<Vec<String>, ConfigError> {
    let mut names = Vec::new();
    let mut dirs = vec![String::new()];
    while let Some(prefix) = dirs.pop() {
        let at = dir.join(&prefix);
        let entries = match fs::read_dir(&at) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(file_error("read", &at)(source).into()),
        };
        for entry in entries {
            let entry = entry.map_err(file_error("read", &at))?;
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str() else { return Err(ConfigError::Name { path: entry.path() }) };
            if entry.file_type().map_err(file_error("read", &at))?.is_dir() {
                dirs.push(format!("{prefix}{name}/"));
            } else {
                names.push(format!("{prefix}{name}"));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    File {
        bytes: Vec<u8>,
        mode: u32,
        /// User and group, where they are to be kept.
        owner: Option<(u32, u32)>,
    },
    Link {
        target: String,
    },
}

impl Entry {
    /// Whether both say the same; permissions and owners do not matter.
    pub(super) fn same_content(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { bytes: one, .. }, Self::File { bytes: other, .. }) => one == other,
            (Self::Link { target: one }, Self::Link { target: other }) => one == other,
            (Self::File { .. }, Self::Link { .. }) | (Self::Link { .. }, Self::File { .. }) => false,
        }
    }
}

/// Everything below one directory, by path.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) dirs: BTreeMap<String, u32>,
    pub(super) entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Reads the tree at `dir`, which may be missing: then it is empty.
    pub(super) fn read(dir: &Path) -> Result<Self, ConfigError> {
        let mut tree = Self::default();
        if dir.is_dir() {
            tree.read_into(dir, "")?;
        }
        Ok(tree)
    }

    fn read_into(&mut self, dir: &Path, prefix: &str) -> Result<(), ConfigError> {
        for entry in fs::read_dir(dir).map_err(file_error("read", dir))? {
            let entry = entry.map_err(file_error("read", dir))?;
            let path = entry.path();
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str() else { return Err(ConfigError::Name { path }) };
            let name = format!("{prefix}{name}");
            let metadata = fs::symlink_metadata(&path).map_err(file_error("read", &path))?;
            let mode = metadata.permissions().mode() & 0o777;
            if metadata.is_symlink() {
                let target = fs::read_link(&path).map_err(file_error("read", &path))?;
                let Some(target) = target.to_str() else { return Err(ConfigError::Name { path }) };
                self.entries.insert(name, Entry::Link { target: target.to_owned() });
            } else if metadata.is_dir() {
                self.read_into(&path, &format!("{name}/"))?;
                self.dirs.insert(name, mode | OWNER_DIR_MODE);
            } else if metadata.is_file() {
                let bytes = fs::read(&path).map_err(file_error("read", &path))?;
                let owner = Some((metadata.uid(), metadata.gid()));
                self.entries.insert(name, Entry::File { bytes, mode: mode | OWNER_FILE_MODE, owner });
            } else {
                return Err(ConfigError::Type { path });
            }
        }
        Ok(())
    }

    /// Writes the tree as the new directory `dir`.
    pub(super) fn write(&self, dir: &Path) -> Result<(), ConfigError> {
        make_dir(dir, CONFIG_DIR)?;
        for (path, mode) in &self.dirs {
            make_dir(&dir.join(path), *mode)?;
        }
        for (name, entry) in &self.entries {
            let path = dir.join(name);
            match entry {
                Entry::File { bytes, mode, owner } => {
                    durable::write_new(&path, bytes, *mode).map_err(file_error("write", &path))?;
                    if let Some((user, group)) = owner {
                        keep_owner(&path, *user, *group).map_err(file_error("give back", &path))?;
                    }
                }
                Entry::Link { target } => {
                    durable::symlink(Path::new(target), &path).map_err(file_error("link", &path))?;
                }
            }
        }
        Ok(())
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), ConfigError> {
    fs::create_dir(path).map_err(file_error("make", path))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(file_error("protect", path))?)
}

/// Gives a file the owner it had. Who is not root owns what it could write, and cannot give it away.
fn keep_owner(path: &Path, user: u32, group: u32) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if (metadata.uid(), metadata.gid()) == (user, group) {
        return Ok(());
    }
    match chown(path, Some(user), Some(group)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}
