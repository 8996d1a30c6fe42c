//! Re-hashing an installed release: what is on disk against what was signed.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use refit_base::file_error;
use serde::Serialize;

use super::{Release, StoreError};
use crate::digest::Digest;
use crate::durable;
use crate::manifest::{Body, FileEntry, INSTALLED_PATH, Mode, RESERVED_DIR};

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct VerifyProgress {
    /// Bytes compared.
    pub bytes: u64,
    /// Bytes of the whole release.
    pub bytes_total: u64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Files compared.
    pub files: u64,
    /// Bytes compared.
    pub bytes: u64,
    /// What differs; empty for a release that is as it was signed.
    pub problems: Vec<Problem>,
}

/// One difference between a release and its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Path below the release.
    pub path: String,
    /// What is wrong there.
    pub what: FileProblem,
}

impl Problem {
    /// Returns whether something of the release is not as it was signed. A file that is no part of it, such as what a program caches
    /// beside its sources, takes nothing away.
    pub const fn is_of_the_release(&self) -> bool {
        self.what.is_of_the_release()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

/// What can be wrong with a path of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FileProblem {
    /// It is not there.
    #[error("missing")]
    Missing,
    /// It is there and in no manifest.
    #[error("not part of the release")]
    Unexpected,
    /// A file where a directory should be, or the like.
    #[error("of another type")]
    Type,
    /// Its permissions are others.
    #[error("other permissions")]
    Mode,
    /// It is a program, and may not be executed.
    #[error("not executable")]
    NotExecutable,
    /// It has another length.
    #[error("other size")]
    Size,
    /// It has another content.
    #[error("other content")]
    Content,
    /// It is a link to something else.
    #[error("points elsewhere")]
    Target,
    /// It could not be read.
    #[error("unreadable")]
    Unreadable,
}

impl FileProblem {
    /// Returns whether something of the release is not as it was signed: what is beside it takes nothing away.
    #[must_use]
    pub const fn is_of_the_release(self) -> bool {
        match self {
            Self::Unexpected => false,
            Self::Missing
            | Self::Type
            | Self::Mode
            | Self::NotExecutable
            | Self::Size
            | Self::Content
            | Self::Target
            | Self::Unreadable => true,
        }
    }
}

/// Compares `release` with its manifest.
pub(super) fn verify(release: &Release, progress: &mut dyn FnMut(VerifyProgress)) -> Result<VerifyReport, StoreError> {
    let bytes_total = release.manifest.installed_bytes();
    let mut report = VerifyReport { files: 0, bytes: 0, problems: Vec::new() };
    let mut known: HashSet<&str> = HashSet::from([RESERVED_DIR, INSTALLED_PATH]);
    for directory in release.manifest.directories() {
        known.insert(&directory.path);
        if let Some(what) = directory_problem(&release.dir.join(&directory.path), directory.mode) {
            report.problems.push(Problem { path: directory.path.clone(), what });
        }
    }
    for file in release.manifest.files() {
        known.insert(&file.path);
        report.files += 1;
        if let Body::Regular { size, .. } = &file.body {
            report.bytes += size;
        }
        if let Some(what) = file_problem(&release.dir.join(&file.path), file) {
            report.problems.push(Problem { path: file.path.clone(), what });
        }
        progress(VerifyProgress { bytes: report.bytes, bytes_total });
    }
    find_unexpected(&release.dir, "", &known, &mut report.problems)?;
    Ok(report)
}

/// Returns what is wrong with the directory at `path`.
pub(super) fn directory_problem(path: &Path, mode: Mode) -> Option<FileProblem> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Some(unseen(&error)),
    };
    if !metadata.is_dir() {
        Some(FileProblem::Type)
    } else if metadata.permissions().mode() & 0o7777 != mode.installed().bits() {
        Some(FileProblem::Mode)
    } else {
        None
    }
}

/// Returns what is wrong with the file or link at `path`.
pub(super) fn file_problem(path: &Path, file: &FileEntry) -> Option<FileProblem> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Some(unseen(&error)),
    };
    match &file.body {
        Body::Link { target } => match fs::read_link(path) {
            Ok(found) if found == Path::new(target) => None,
            Ok(_elsewhere) => Some(FileProblem::Target),
            Err(_no_link) => Some(FileProblem::Type),
        },
        Body::Regular { mode, size, sha256, .. } => {
            if !metadata.is_file() {
                return Some(FileProblem::Type);
            }
            if metadata.len() != *size {
                return Some(FileProblem::Size);
            }
            match durable::open_as_owner(path).and_then(Digest::of_reader) {
                Ok((found, _)) if found != *sha256 => Some(FileProblem::Content),
                Ok(_) => mode_problem(metadata.permissions().mode(), mode.installed()),
                Err(_unreadable) => Some(FileProblem::Unreadable),
            }
        }
    }
}

/// Returns what it means that a file has the permissions `found` and not those of `installed`.
fn mode_problem(found: u32, installed: Mode) -> Option<FileProblem> {
    const EXECUTE: u32 = 0o111;
    let (found, installed) = (found & 0o7777, installed.bits());
    if found == installed {
        None
    } else if installed & EXECUTE & !found != 0 {
        Some(FileProblem::NotExecutable)
    } else {
        Some(FileProblem::Mode)
    }
}

/// Returns what it means that a path cannot be looked at.
fn unseen(error: &io::Error) -> FileProblem {
    let is_gone = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    if is_gone { FileProblem::Missing } else { FileProblem::Unreadable }
}

fn find_unexpected(
    dir: &Path,
    prefix: &str,
    known: &HashSet<&str>,
    problems: &mut Vec<Problem>,
) -> Result<(), StoreError> {
    for entry in durable::list_as_owner(dir).map_err(file_error("read", dir))? {
        let entry = entry.map_err(file_error("read", dir))?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if !known.contains(path.as_str()) {
            problems.push(Problem { path, what: FileProblem::Unexpected });
        } else if entry.file_type().map_err(file_error("read", dir))?.is_dir() {
            find_unexpected(&entry.path(), &format!("{path}/"), known, problems)?;
        }
    }
    Ok(())
}
