//! Where the passphrases of signing keys come from: a file, or a terminal; never the command line, which others can see.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use refit_author::keys::Passphrase;
use refit_updater::durable;
use zeroize::Zeroizing;

use super::context::Context;

/// Names a file whose first line is the passphrase.
const FILE_VARIABLE: &str = "REFIT_KEY_PASSPHRASE_FILE";
/// A passphrase is a line; a larger file is something else.
const FILE_BYTES_MAX: u64 = 4 << 10;

/// Returns what finds the passphrase of a key when it must sign. Its errors name the file of the passphrase, if there is one.
pub(super) fn finder(context: &Context) -> Arc<Passphrase<'static>> {
    let file = file(context);
    Arc::new(move |key: &Path| {
        let found = match &file {
            Some(file) => from_file(file).map(Some),
            None if io::stdin().is_terminal() => prompt(&format!("passphrase of {}: ", key.display())).map(Some),
            None => Ok(None),
        };
        found.map_err(|error| with_file(file.as_deref(), &error))
    })
}

/// Returns the passphrase for keys that are made; `None` if there is nobody to ask. Somebody who types it types it twice.
///
/// # Errors
/// It could not be read, is empty, or was not repeated; the file is named, if there is one.
pub(super) fn choose(context: &Context) -> io::Result<Option<Zeroizing<String>>> {
    let file = file(context);
    choose_from(file.as_deref()).map_err(|error| with_file(file.as_deref(), &error))
}

fn choose_from(file: Option<&Path>) -> io::Result<Option<Zeroizing<String>>> {
    let found = match file {
        Some(file) => from_file(file)?,
        None if io::stdin().is_terminal() => {
            let first = prompt("passphrase of the new keys: ")?;
            if *prompt("the same again: ")? != *first {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the two passphrases differ"));
            }
            first
        }
        None => return Ok(None),
    };
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the passphrase is empty"));
    }
    Ok(Some(found))
}

fn file(context: &Context) -> Option<PathBuf> {
    context.process.path(FILE_VARIABLE).map(|file| context.path(&file))
}

fn from_file(file: &Path) -> io::Result<Zeroizing<String>> {
    let bytes = Zeroizing::new(durable::read_limited(file, FILE_BYTES_MAX)?);
    let text = std::str::from_utf8(&bytes).map_err(|source| io::Error::new(io::ErrorKind::InvalidData, source))?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

fn prompt(text: &str) -> io::Result<Zeroizing<String>> {
    rpassword::prompt_password(text).map(Zeroizing::new)
}

/// Returns `error` with the name of the file that it is about, if there is one.
fn with_file(file: Option<&Path>, error: &io::Error) -> io::Error {
    let text = file.map_or_else(|| error.to_string(), |file| format!("{}: {error}", file.display()));
    io::Error::new(error.kind(), text)
}
