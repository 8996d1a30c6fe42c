//! What lies in a directory that is to be packed, in order, and what it says about itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use refit_base::file_error;
use refit_updater::digest::Digest;
use refit_updater::manifest::{Body, DirectoryEntry, FileEntry, Kind, Mode, is_hook};
use semver::Version;
use serde::Deserialize;

use super::PackError;

/// The description of an appliance, at the top of its release.
const DESCRIPTION_NAME: &str = "appliance.toml";

/// What a release says about itself.
#[derive(Debug, Deserialize)]
pub(super) struct Description {
    pub(super) name: String,
    pub(super) version: Version,
    #[serde(default)]
    pub(super) requires: Option<Version>,
}

/// The part of `appliance.toml` that matters here; the rest is for the runtime.
#[derive(Deserialize)]
struct File {
    appliance: Description,
}

/// A regular file.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// Where it lies.
    pub(super) path: PathBuf,
    /// Its path in the release.
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) size: u64,
}

/// Everything in a directory; each list sorted by name.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) directories: Vec<DirectoryEntry>,
    pub(super) files: Vec<SourceFile>,
    pub(super) links: Vec<FileEntry>,
}

impl Tree {
    /// Returns the first path that is for programs of an update: a file or link if there is one, or else the directory.
    pub(super) fn hook(&self) -> Option<String> {
        let files = self.names().into_iter().map(|file| file.path);
        files.chain(self.directories.iter().map(|directory| directory.path.clone())).find(|path| is_hook(path))
    }

    /// Returns every file and link by name, in order; the files as if there was nothing in them.
    pub(super) fn names(&self) -> Vec<FileEntry> {
        let empty = |file: &SourceFile| {
            let body =
                Body::Regular { mode: file.mode, size: 0, holes: 0, sha256: Digest::of(&[]), frames: Vec::new() };
            FileEntry { path: file.name.clone(), kind: Kind::of(&file.name), body }
        };
        let mut names: Vec<FileEntry> = self.files.iter().map(empty).chain(self.links.iter().cloned()).collect();
        names.sort_by(|one, other| one.path.cmp(&other.path));
        names
    }
}

/// Returns what the release in `dir` says about itself.
pub(super) fn describe(dir: &Path) -> Result<Description, PackError> {
    let path = dir.join(DESCRIPTION_NAME);
    if !path.is_file() {
        return Err(PackError::NoDescription { dir: dir.to_owned() });
    }
    let text = fs::read_to_string(&path).map_err(file_error("read", &path))?;
    let file: File =
        toml::from_str(&text).map_err(|source| PackError::Description { path, source: Box::new(source) })?;
    Ok(file.appliance)
}

/// Returns everything in `dir`.
pub(super) fn walk(dir: &Path) -> Result<Tree, PackError> {
    let mut tree = Tree::default();
    walk_into(dir, "", &mut tree)?;
    // By whole paths, as the manifest wants it: "a-b" comes between "a" and "a/c".
    tree.directories.sort_by(|one, other| one.path.cmp(&other.path));
    tree.files.sort_by(|one, other| one.name.cmp(&other.name));
    tree.links.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(tree)
}

fn walk_into(dir: &Path, prefix: &str, tree: &mut Tree) -> Result<(), PackError> {
    for entry in fs::read_dir(dir).map_err(file_error("read", dir))? {
        let entry = entry.map_err(file_error("read", dir))?;
        let path = entry.path();
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str() else { return Err(PackError::Name { path }) };
        let name = format!("{prefix}{name}");
        let metadata = fs::symlink_metadata(&path).map_err(file_error("read", &path))?;
        if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(file_error("read", &path))?;
            let Some(target) = target.to_str() else { return Err(PackError::Name { path }) };
            let body = Body::Link { target: target.to_owned() };
            tree.links.push(FileEntry { kind: Kind::of(&name), path: name, body });
            continue;
        }
        let bits = metadata.permissions().mode() & 0o7777;
        let Some(mode) = Mode::new(bits) else { return Err(PackError::Mode { path, mode: bits }) };
        if metadata.is_dir() {
            walk_into(&path, &format!("{name}/"), tree)?;
            tree.directories.push(DirectoryEntry { path: name, mode });
        } else if metadata.is_file() {
            tree.files.push(SourceFile { path, name, mode, size: metadata.len() });
        } else {
            return Err(PackError::Type { path });
        }
    }
    Ok(())
}
