//! New keys on their way to the disk: each file is whole or absent, and what an interrupted run left is removed.
//!
//! `.making.json`, beside the roots, lists the files before the first of them is written, and is removed once the root that
//! names their keys is there. A file that it lists while that root is missing is of a run that did not come to its end: no
//! root will ever name its key, for it is the root that is written last. It is known by its digest: a key that somebody
//! prepared is never touched, whatever its name. One run at a time: [`lock`].

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use refit_base::{FileError, file_error};
use refit_updater::digest::Digest;
use refit_updater::durable;
use serde::{Deserialize, Serialize};
use tough::schema::decoded::{Decoded, Hex};
use zeroize::Zeroizing;

use super::error::KeysError;

/// Where the list lies in a directory of keys. It is no name of a key or root.
const MAKING_NAME: &str = ".making.json";
/// An RSA key of 8192 bits has some 6 KiB; a larger file is something else.
pub(super) const KEY_BYTES_MAX: u64 = 16 << 10;
/// The format of [`MakingFile`].
const FORMAT: u64 = 1;
/// Keys of a role and their public halves are some forty files, with paths of at most 4 KiB; a larger file is something else.
const MAKING_BYTES_MAX: u64 = 256 << 10;

/// The list.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MakingFile {
    format: u64,
    /// The name of the root that is written last.
    root: String,
    files: Vec<MadeFile>,
}

/// A file that is made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MadeFile {
    /// Where it is made. A medium may be somewhere else when it comes back.
    dir: String,
    name: String,
    digest: Digest,
    key: Decoded<Hex>,
}

/// A file of a new key.
pub(super) struct NewFile {
    pub(super) key: Decoded<Hex>,
    pub(super) path: PathBuf,
    pub(super) content: Zeroizing<String>,
    pub(super) mode: u32,
}

/// Keys that were written, and the list of them, until their root is there.
pub(super) struct Making<'a> {
    dir: &'a Path,
    list: MakingFile,
}

/// The right to change a directory of keys.
pub(super) struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // To close it is not enough: a process that another thread just forked has it open until it executes its program.
        drop(self.0.unlock());
    }
}

/// Locks a directory of keys.
///
/// # Errors
/// Somebody else changes it.
pub(super) fn lock(dir: &Path) -> Result<Locked, KeysError> {
    let file = File::open(dir).map_err(file_error("read", dir))?;
    match file.try_lock() {
        // Some file systems lock no directories; there two runs at once are not told apart.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Locked(file)),
        Err(TryLockError::WouldBlock) => Err(KeysError::Busy { dir: dir.to_owned() }),
    }
}

/// Returns where the content of the file at `path` is written, before it gets that name. Nothing reads it there.
pub(super) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// Removes the keys that an interrupted run left in `dir`, in `others` or where it made them, unless they are among `named`.
///
/// # Errors
/// Some may be left.
pub(super) fn clear(dir: &Path, others: &[&Path], named: &BTreeSet<Decoded<Hex>>) -> Result<(), KeysError> {
    let path = dir.join(MAKING_NAME);
    let bytes = match durable::read_limited(&path, MAKING_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::FileTooLarge) => return Ok(()),
        Err(source) => return Err(FileError { action: "read", path, source }.into()),
    };
    // A list that this program did not write says nothing about any file.
    match serde_json::from_slice::<MakingFile>(&bytes) {
        Ok(list) if list.format == FORMAT => list.clear(dir, others, named),
        Ok(_) | Err(_) => Ok(()),
    }
}

impl MakingFile {
    /// Removes the files of the list, and the list, unless the root that was to be written last is there.
    fn clear(&self, dir: &Path, others: &[&Path], named: &BTreeSet<Decoded<Hex>>) -> Result<(), KeysError> {
        if !dir.join(&self.root).exists() {
            for file in self.files.iter().filter(|file| !named.contains(&file.key)) {
                for at in [Path::new(&file.dir), dir].iter().chain(others) {
                    file.clear(at)?;
                }
            }
        }
        let path = dir.join(MAKING_NAME);
        Ok(durable::remove_file(&path).map_err(file_error("remove", &path))?)
    }
}

impl MadeFile {
    /// Removes the file from `dir`, if it lies there and nobody has changed it.
    fn clear(&self, dir: &Path) -> Result<(), KeysError> {
        // The list is no way out of the directory.
        let Some(name) = Path::new(&self.name).file_name() else { return Ok(()) };
        let path = dir.join(name);
        let beside = beside(&path);
        if fs::symlink_metadata(&beside).is_ok() {
            durable::remove_file(&beside).map_err(file_error("remove", &beside))?; // whole or not
        }
        match durable::read_limited(&path, KEY_BYTES_MAX) {
            Ok(bytes) if Digest::of(&bytes) == self.digest => {
                Ok(durable::remove_file(&path).map_err(file_error("remove", &path))?)
            }
            Ok(_) | Err(_) => Ok(()), // missing, or somebody's
        }
    }
}

impl<'a> Making<'a> {
    /// Writes `files`, none of which exists, of keys that the root `dir/ROOT` is going to name.
    ///
    /// # Errors
    /// Nothing has changed, unless not even that worked: then [`clear`] removes what is left.
    pub(super) fn write(dir: &'a Path, root: &str, files: &[NewFile]) -> Result<Self, KeysError> {
        let made = |file: &NewFile| MadeFile {
            dir: file.path.parent().unwrap_or(dir).to_string_lossy().into_owned(),
            name: file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            digest: Digest::of(file.content.as_bytes()),
            key: file.key.clone(),
        };
        let list = MakingFile { format: FORMAT, root: root.to_owned(), files: files.iter().map(made).collect() };
        let making = Self { dir, list };
        if files.is_empty() {
            return Ok(making);
        }
        let path = dir.join(MAKING_NAME);
        let written = serde_json::to_vec(&making.list)
            .map_err(io::Error::from)
            .and_then(|bytes| durable::replace(dir, MAKING_NAME, &bytes))
            .map_err(|source| file_error("write", &path)(source).into())
            .and_then(|()| write_files(files));
        match written {
            Ok(()) => Ok(making),
            Err(error) => Err(making.undo(error)),
        }
    }

    /// Removes what was written, and returns why.
    pub(super) fn undo(self, error: KeysError) -> KeysError {
        // The first error is the one to report; what is left here is removed by the next run.
        drop(self.list.clear(self.dir, &[], &BTreeSet::new()));
        error
    }

    /// Forgets the list: the root is there.
    pub(super) fn finish(self) {
        // One that stays says nothing, for its root is there.
        drop(durable::remove_file(&self.dir.join(MAKING_NAME)));
    }
}

fn write_files(files: &[NewFile]) -> Result<(), KeysError> {
    for NewFile { path, content, mode, .. } in files {
        let beside = beside(path);
        durable::write_new(&beside, content.as_bytes(), *mode).map_err(file_error("write", path))?;
        durable::rename_unsynced(&beside, path).map_err(file_error("write", path))?;
    }
    for dir in files.iter().filter_map(|file| file.path.parent()).collect::<BTreeSet<_>>() {
        durable::sync_dir(dir).map_err(file_error("sync", dir))?;
    }
    Ok(())
}
