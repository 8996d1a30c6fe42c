//! Where a tree is put together before it gets its name: in `staging/`, or, where no rename leads from there to its place, beside it.
//!
//! `releases/` and `config/` may each be a mount or a subvolume of its own.

use std::fs;
use std::path::{Path, PathBuf};

use refit_base::{FileError, file_error};

use super::{Store, StoreError};
use crate::durable;
use crate::modes;
use crate::mount;

/// The name of what takes the place of `staging/` inside another directory.
const BESIDE: &str = ".staging";

impl Store {
    /// Returns where releases are put together before they get their name in `releases/`, and where they go when they lose it.
    ///
    /// # Errors
    /// It has to be made, and cannot be.
    pub(crate) fn release_staging(&self) -> Result<PathBuf, FileError> {
        self.staging_for(&self.releases_dir())
    }

    /// Returns the same of the live configurations in `config/`.
    ///
    /// # Errors
    /// It has to be made, and cannot be.
    pub(crate) fn config_staging(&self) -> Result<PathBuf, FileError> {
        self.staging_for(&self.configs_dir())
    }

    fn staging_for(&self, place: &Path) -> Result<PathBuf, FileError> {
        let staging = self.staging_dir();
        for dir in [&staging, place] {
            // While it runs a cleaner may take an empty directory.
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            durable::create_dirs(dir, modes::of(&name)).map_err(file_error("make", dir))?;
        }
        if mount::is_same(&staging, place).map_err(file_error("look at", place))? {
            return Ok(staging);
        }
        let beside = place.join(BESIDE);
        durable::create_dirs(&beside, modes::PRIVATE_DIR).map_err(file_error("make", &beside))?;
        Ok(beside)
    }

    /// Removes everything that is put together.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn empty_staging(&self) -> Result<(), StoreError> {
        for place in [self.releases_dir(), self.configs_dir()] {
            let beside = place.join(BESIDE);
            durable::remove_tree(&beside).map_err(file_error("remove", &beside))?;
        }
        let staging = self.staging_dir();
        durable::create_dirs(&staging, modes::of("staging")).map_err(file_error("make", &staging))?;
        for entry in fs::read_dir(&staging).map_err(file_error("read", &staging))? {
            let path = entry.map_err(file_error("read", &staging))?.path();
            durable::remove_tree(&path).map_err(file_error("remove", &path))?;
        }
        Ok(durable::sync_dir(&staging).map_err(file_error("sync", &staging))?)
    }
}
