//! The signing keys that a command of the vendor is given.

use std::io;
use std::path::{Path, PathBuf};

use refit_author::keys::{Keys, KeysError};
use refit_base::{Exit, FileError};

use super::context::Context;
use super::passphrase;

/// Returns the keys in `dir` and `with`; passphrases are asked for when they are needed.
pub(super) fn open(context: &Context, dir: &Path, with: &[PathBuf]) -> Result<Keys, KeysError> {
    let with: Vec<PathBuf> = with.iter().map(|dir| context.path(dir)).collect();
    Keys::open_with(&context.path(dir), &with, passphrase::finder(context))
}

/// Returns the exit status of a command that fails with `error`.
pub(super) fn exit_of(error: &KeysError) -> Exit {
    let is_missing =
        matches!(error, KeysError::File(FileError { source, .. }) if source.kind() == io::ErrorKind::NotFound);
    if is_missing || matches!(error, KeysError::Threshold { .. } | KeysError::NotRotated { .. }) {
        Exit::Usage // the command line names what is not there, or asks for the impossible, whatever the files hold
    } else if matches!(error, KeysError::Busy { .. }) {
        Exit::TryLater
    } else if matches!(error, KeysError::Generate | KeysError::Encode { .. }) {
        Exit::Failed
    } else if error.is_disk() {
        Exit::Disk
    } else {
        Exit::Config
    }
}
