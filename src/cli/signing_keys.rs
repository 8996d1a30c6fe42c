//! The signing keys that a command of the vendor is given.

use std::path::{Path, PathBuf};

use refit_author::keys::{Keys, KeysError};

use super::context::Context;
use super::passphrase;

/// Returns the keys in `dir` and `with`; passphrases are asked for when they are needed.
pub(super) fn open(context: &Context, dir: &Path, with: &[PathBuf]) -> Result<Keys, KeysError> {
    let with: Vec<PathBuf> = with.iter().map(|dir| context.path(dir)).collect();
    Keys::open_with(&context.path(dir), &with, passphrase::finder(context))
}
