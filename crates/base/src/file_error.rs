//! A file operation that failed.

use std::io;
use std::path::{Path, PathBuf};

/// A file operation that failed: what, on which file, and why.
///
/// Errors of a boundary contain it as a transparent variant, so that the message is the same everywhere.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// The operation, as a verb: `read`, `write`, `create`.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The reason that the system gave.
    #[source]
    pub source: io::Error,
}

/// Returns what makes the [`FileError`] of `action` on `path` from its reason: `.map_err(file_error("read", path))?`.
pub fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Chain;

    #[test]
    fn it_says_what_failed_on_which_file_and_why() {
        let error = file_error("read", Path::new("/a/b"))(io::Error::other("no more paper"));
        assert_eq!(Chain(&error).to_string(), "cannot read /a/b: no more paper");
    }
}
