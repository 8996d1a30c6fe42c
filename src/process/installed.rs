//! The program `refit` that is installed on the machine: the path by which it was started, for as long as a program is there, since another
//! version may be put there while this one runs; and what the guard was started from, once it is not.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use refit_base::Exit;

use super::program;

/// Returns the path by which this process was started: the one in `argument`, its first, which may lead over links, and is looked for in the
/// working directory `cwd` or in `search`, a `PATH`; or where its file lies, if that is not the same file.
#[must_use]
pub fn path(argument: &OsStr, cwd: &Path, search: Option<&OsStr>) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let program = identity(Path::new("/proc/self/exe"));
    let is_own = |path: &PathBuf| program.is_some() && identity(path) == program;
    let called = if argument.as_encoded_bytes().contains(&b'/') {
        Some(cwd.join(argument)).filter(is_own)
    } else {
        std::env::split_paths(search.unwrap_or_default()).map(|dir| cwd.join(dir).join(argument)).find(is_own)
    };
    called.unwrap_or(own)
}

/// Returns what to execute as the program at `path`: that file, or what the process `guard` was started from where it is none.
#[must_use]
pub fn program(path: &Path, guard: u32) -> PathBuf {
    if program::is_program(path) { path.to_owned() } else { held(guard) }
}

/// Returns what the process `guard` was started from, which the kernel keeps as long as that runs.
#[must_use]
pub fn held(guard: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{guard}/exe"))
}

/// Returns whether a `refit` that ended with this status has understood what was asked of it, and says what is wrong. Any other program, or
/// one of which a part is missing, ends by a signal or with a status of its own.
#[must_use]
pub const fn is_answer(status: Exit) -> bool {
    match status {
        Exit::Disk | Exit::TryLater | Exit::Config => true,
        Exit::Done | Exit::Degraded | Exit::Down | Exit::Usage | Exit::Refused | Exit::Unavailable | Exit::Failed => {
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_program_is_known_by_the_path_that_it_was_started_by() {
        let dir = tempfile::tempdir().expect("a directory");
        let own = std::env::current_exe().expect("this program");
        let link = dir.path().join("refit");
        symlink(&own, &link).expect("linked");
        assert_eq!(path(link.as_os_str(), Path::new("/"), None), link);
        assert_eq!(path(OsStr::new("./refit"), dir.path(), None), dir.path().join("./refit"));
        assert_eq!(path(OsStr::new("refit"), Path::new("/"), Some(dir.path().as_os_str())), link);
        for other in ["another", "/bin/sh", "refit"] {
            assert_eq!(path(OsStr::new(other), Path::new("/"), None), own, "{other}");
        }
    }

    #[test]
    fn what_the_guard_was_started_from_is_for_when_nothing_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("refit");
        let held = PathBuf::from("/proc/7/exe");
        assert_eq!(program(&file, 7), held);
        fs::copy("/bin/sh", &file).expect("copied");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");
        assert_eq!(program(&file, 7), held, "it cannot be executed");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("set");
        assert_eq!(program(&file, 7), file);
    }
}
