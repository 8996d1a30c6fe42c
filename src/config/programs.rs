//! Whether the programs that a configuration names are there and can be executed.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::expand::expand_release;

/// Where programs are looked for when there is no `PATH`: as execvp(3) does.
const PATH_DEFAULT: &str = "/bin:/usr/bin";

/// Where programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The release: what is written with a slash is below it.
    pub release: PathBuf,
    /// The directories of those that are not, on the machine that they will run on; `None` on another machine.
    pub search: Option<OsString>,
}

impl Programs {
    /// Returns the programs of the release in `release`, on the machine whose `PATH` is `search`.
    pub fn here(release: &Path, search: Option<&OsStr>) -> Self {
        let search = search.map_or_else(|| OsString::from(PATH_DEFAULT), OsStr::to_owned);
        Self { release: release.to_owned(), search: Some(search) }
    }

    /// Returns the programs of the release in `release`, as they can be known on any machine.
    pub fn anywhere(release: &Path) -> Self {
        Self { release: release.to_owned(), search: None }
    }

    /// Checks `program`, which gets `path` as its own `PATH` if it has one.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn check(&self, program: &str, path: Option<&str>) -> Result<(), String> {
        // What lies elsewhere may be made before it is needed.
        let Some(word) = expand_release(program, self.release.as_os_str()) else { return Ok(()) };
        if word.as_encoded_bytes().contains(&b'/') {
            return match executable(&self.release.join(word)) {
                Found::Yes => Ok(()),
                Found::No => Err(format!("there is no program {program:?} in the release")),
                Found::NotExecutable => Err(format!("the file {program:?} is not executable")),
            };
        }
        let Some(search) = &self.search else { return Ok(()) };
        let search = match path {
            Some(path) => expand_release(path, self.release.as_os_str()),
            None => Some(search.clone()),
        };
        let Some(search) = search else { return Ok(()) };
        let found: Vec<Found> = std::env::split_paths(&search).map(|dir| executable(&dir.join(&word))).collect();
        if found.contains(&Found::Yes) {
            return Ok(());
        }
        Err(format!("there is no program {program:?} on PATH; one of the release is written with a slash"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Yes,
    No,
    NotExecutable,
}

fn executable(path: &Path) -> Found {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => Found::Yes,
        Ok(metadata) if metadata.is_file() => Found::NotExecutable,
        Ok(_) | Err(_) => Found::No,
    }
}
