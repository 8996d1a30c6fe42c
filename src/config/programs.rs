//! Whether the programs that a configuration names are there and can be executed.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use refit_updater::mount;

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
    /// Whether it is this machine that they will run on, from where they are.
    pub run_here: bool,
}

impl Programs {
    /// Returns the programs of the release in `release`, on the machine whose `PATH` is `search`.
    pub fn here(release: &Path, search: Option<&OsStr>) -> Self {
        let search = search.map_or_else(|| OsString::from(PATH_DEFAULT), OsStr::to_owned);
        Self { release: release.to_owned(), search: Some(search), run_here: true }
    }

    /// Returns the programs of the release in `release`, as they can be known on any machine.
    pub fn anywhere(release: &Path) -> Self {
        Self { release: release.to_owned(), search: None, run_here: false }
    }

    /// Returns the programs of the release in `release`, which is on its machine, whatever `PATH` is there in the end.
    pub fn installed(release: &Path) -> Self {
        Self { release: release.to_owned(), search: None, run_here: true }
    }

    /// Checks `program`, which gets `path` as its own `PATH` if it has one.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn check(&self, program: &str, path: Option<&str>) -> Result<(), String> {
        // What lies elsewhere may be made before it is needed.
        let Some(word) = expand_release(program, self.release.as_os_str()) else { return Ok(()) };
        if word.as_encoded_bytes().contains(&b'/') {
            return match self.find(&self.release.join(word)) {
                Found::Yes => Ok(()),
                Found::NoExec => Err(noexec(program)),
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
        let found: Vec<Found> = std::env::split_paths(&search).map(|dir| self.find(&dir.join(&word))).collect();
        if found.contains(&Found::Yes) {
            return Ok(());
        }
        if found.contains(&Found::NoExec) {
            return Err(noexec(program));
        }
        Err(format!("there is no program {program:?} on PATH; one of the release is written with a slash"))
    }

    fn find(&self, path: &Path) -> Found {
        match path.metadata() {
            Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
                if self.run_here && mount::is_noexec(path) { Found::NoExec } else { Found::Yes }
            }
            Ok(metadata) if metadata.is_file() => Found::NotExecutable,
            Ok(_) | Err(_) => Found::No,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Yes,
    No,
    NotExecutable,
    NoExec,
}

fn noexec(program: &str) -> String {
    format!(
        "the program {program:?} is on a file system that is mounted noexec; mount it without that option, or have it on another one"
    )
}
