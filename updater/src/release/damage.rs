//! Whether an installed release can still be trusted to be what was signed: what decides that another one is started instead.
//!
//! Only what the manifest proves counts: digests, and that a program can be executed. Other permissions hinder nobody, files that a program
//! left in its release hurt nobody, and a file that this process cannot read just now says nothing. Permissions can be put right, which
//! [`Store::repair_modes`] does: whoever looks for a release to start does that first.

use std::fs;
use std::io;
use std::path::PathBuf;

use refit_base::{FileError, file_error};
use rustix::io::Errno;
use semver::Version;

use super::verify::{FileProblem, Problem, directory_problem, file_problem};
use super::{Release, Store, StoreError};
use crate::digest::Digest;
use crate::durable;

/// Why a release is not what was signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// It is gone.
    #[error("{} is missing", dir.display())]
    Gone {
        /// Where it was.
        dir: PathBuf,
    },
    /// Its manifest is missing, cut or of another release.
    #[error(transparent)]
    Manifest(StoreError),
    /// One of its files is, the first that was found.
    #[error("{0}")]
    File(Problem),
}

impl Store {
    /// Compares release `version` with its manifest until the first damage. Returns that; `None` for a release that is whole. `tick` is called
    /// between two files, for whoever has something else to do meanwhile.
    ///
    /// # Errors
    /// It cannot be told now: the system refuses to read it.
    pub fn find_damage(&self, version: &Version, tick: &mut dyn FnMut()) -> Result<Option<Damage>, StoreError> {
        let dir = self.release_dir(version);
        match fs::metadata(&dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_other) => return Ok(Some(Damage::Gone { dir })),
            Err(error) if is_damage(&error) => return Ok(Some(Damage::Gone { dir })),
            Err(error) => return Err(file_error("read", &dir)(error).into()),
        }
        let release = match self.release(version) {
            Ok(release) => release,
            Err(StoreError::File(FileError { action, path, source })) if !is_damage(&source) => {
                return Err(FileError { action, path, source }.into());
            }
            Err(error) => return Ok(Some(Damage::Manifest(error))),
        };
        for directory in release.manifest.directories() {
            // Of one that cannot be looked into, its files tell more.
            if let Some(what @ (FileProblem::Missing | FileProblem::Type)) =
                directory_problem(&release.dir.join(&directory.path), directory.mode)
            {
                return Ok(Some(Damage::File(Problem { path: directory.path.clone(), what })));
            }
        }
        for file in release.manifest.files() {
            let path = release.dir.join(&file.path);
            if let Some(what) = file_problem(&path, file) {
                if what == FileProblem::Unreadable
                    && let Err(error) = durable::open_as_owner(&path).and_then(Digest::of_reader)
                    && !is_damage(&error)
                {
                    return Err(file_error("read", &path)(error).into());
                }
                if what.is_of_the_release() && what != FileProblem::Mode {
                    return Ok(Some(Damage::File(Problem { path: file.path.clone(), what })));
                }
            }
            tick();
        }
        Ok(None)
    }

    /// Returns what is damaged of the one file at `path` of `release`.
    #[must_use]
    pub fn find_damage_of(&self, release: &Release, path: &str) -> Option<Problem> {
        let file = release.manifest.files().iter().find(|file| file.path == path)?;
        let what = file_problem(&release.dir.join(path), file)?;
        (what.is_of_the_release() && what != FileProblem::Mode).then(|| Problem { path: path.to_owned(), what })
    }
}

/// Whether an error says something of what is on the disk, and not of this process or this moment.
fn is_damage(error: &io::Error) -> bool {
    const OF_THE_DISK: [Errno; 6] = [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::LOOP, Errno::IO, Errno::UCLEAN];
    // Those without a number are of a file that is no regular one, or too large.
    error.raw_os_error().is_none_or(|number| OF_THE_DISK.iter().any(|errno| errno.raw_os_error() == number))
}
