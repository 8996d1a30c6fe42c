//! Putting the release that runs right where it lies, from a whole copy of it.
//!
//! Programs run in its directory and have it as their working directory, so another one cannot take its place: single files
//! do, each by one rename of a file that was verified and synced before. Whatever ends this halfway leaves a release of which less is
//! damaged than before, and doing it again finishes it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use refit_base::file_error;

use super::verify::{self, Problem};
use super::{Checked, Received, Release, Store, StoreError, read_manifest};
use crate::durable;
use crate::manifest::{DIR_MODE, INSTALLED_PATH, RESERVED_DIR};

impl Store {
    /// Puts everything right in which the installed release differs from `received`, a whole copy of the very same release.
    /// Returns how much that was; 0, and nothing was done, for a release that is as it was signed.
    ///
    /// That it is the same release is for the caller to know: the manifest that could tell may be what is damaged. The copy stays in
    /// staging.
    ///
    /// # Errors
    /// It is not installed, or a file operation failed: a part of it may be repaired.
    pub fn repair(&self, received: &Received) -> Result<usize, StoreError> {
        let version = received.manifest.version().clone();
        let dir = self.release_dir(&version);
        if !dir.is_dir() {
            return Err(StoreError::Unknown { version });
        }
        let manifest_is_whole = read_manifest(&dir).is_ok_and(|(digest, _)| digest == received.digest);
        let release = Release { version, digest: received.digest, manifest: received.manifest.clone(), dir };
        let mut problems = verify::verify(&release, &mut |_| {})?.problems;
        if manifest_is_whole && problems.is_empty() {
            return Ok(0);
        }
        let releases = self.releases_dir();
        Checked::forget(&releases).map_err(file_error("forget what was checked in", &releases))?;
        let staging = self.release_staging()?;
        let beside = tempfile::Builder::new()
            .prefix("repair-")
            .tempdir_in(&staging)
            .map_err(file_error("make a directory in", &staging))?;
        let bench = Bench { whole: &received.dir, damaged: &release.dir, beside: beside.path().join("file") };
        let file_system = durable::FileSystem::of(&staging).map_err(file_error("open", &staging))?;
        // First, for without it nothing starts.
        if !manifest_is_whole {
            bench.make_dir(RESERVED_DIR)?;
            bench.replace(INSTALLED_PATH)?;
        }
        for problem in &problems {
            if !problem.is_of_the_release() {
                bench.clear(&problem.path)?;
            }
        }
        let mut made = 0;
        for directory in release.manifest.directories() {
            made += usize::from(bench.make_dir(&directory.path)?);
        }
        if made > 0 {
            // What was looked at through a link that was no directory lies elsewhere.
            problems = verify::verify(&release, &mut |_| {})?.problems;
        }
        for problem in &problems {
            bench.mend(problem)?;
        }
        bench.protect(&release)?;
        file_system.sync().map_err(file_error("sync", &release.dir))?;
        Ok(problems.len() + made + usize::from(!manifest_is_whole))
    }
}

/// A damaged tree, a whole one, and a name in the same file system for what is on its way from one to the other.
struct Bench<'a> {
    whole: &'a Path,
    damaged: &'a Path,
    beside: PathBuf,
}

impl Bench<'_> {
    /// Makes a file or link whole. Directories are all there, and get their permissions at the end.
    fn mend(&self, problem: &Problem) -> Result<(), StoreError> {
        if !problem.is_of_the_release() {
            return Ok(()); // gone
        }
        let whole = self.whole.join(&problem.path);
        let is_dir = fs::symlink_metadata(&whole).map_err(file_error("read", &whole))?.is_dir();
        if is_dir { Ok(()) } else { self.replace(&problem.path) }
    }

    /// Makes `path` a directory. Returns whether it was none.
    fn make_dir(&self, path: &str) -> Result<bool, StoreError> {
        let dir = self.damaged.join(path);
        if fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir()) {
            return Ok(false);
        }
        self.clear(path)?;
        fs::create_dir(&dir).and_then(|()| durable::set_owner_write(&dir)).map_err(file_error("make", &dir))?;
        Ok(true)
    }

    /// Makes `path` the file or link that the whole tree has there.
    fn replace(&self, path: &str) -> Result<(), StoreError> {
        let (whole, damaged) = (self.whole.join(path), self.damaged.join(path));
        if fs::symlink_metadata(&damaged).is_ok_and(|found| found.is_dir()) {
            self.clear(path)?;
        }
        make_writable(parent(&damaged))?;
        durable::hard_link(&whole, &self.beside).map_err(file_error("link", &self.beside))?;
        Ok(durable::rename_unsynced(&self.beside, &damaged).map_err(file_error("replace", &damaged))?)
    }

    /// Removes whatever is at `path`.
    fn clear(&self, path: &str) -> Result<(), StoreError> {
        let damaged = self.damaged.join(path);
        make_writable(parent(&damaged))?;
        Ok(durable::remove_tree(&damaged).map_err(file_error("remove", &damaged))?)
    }

    /// Gives every directory the permissions that it is to have, children before parents.
    fn protect(&self, release: &Release) -> Result<(), StoreError> {
        let chmod = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(file_error("protect", path))
        };
        chmod(&self.damaged.join(RESERVED_DIR), DIR_MODE)?;
        for directory in release.manifest.directories().iter().rev() {
            chmod(&self.damaged.join(&directory.path), directory.mode.installed().bits())?;
        }
        Ok(chmod(self.damaged, DIR_MODE)?)
    }
}

fn make_writable(dir: &Path) -> Result<(), StoreError> {
    Ok(durable::set_owner_write(dir).map_err(file_error("make writable", dir))?)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
