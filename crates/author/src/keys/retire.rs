//! Keys that are put aside: they sign nothing that anybody accepts, and may still be wanted as evidence.
//!
//! They go to `retired/`, or where that has another file of the same name, to `retired/2/` and so on: nothing is
//! overwritten. The public key goes with its key, under its own name; a description finds it there as it did before.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use refit_updater::durable;
use refit_updater::modes::OPEN_DIR;

use super::making::KEY_BYTES_MAX;
use super::signer::{Signer, public_of};

/// Where keys go that a newer root no longer names.
const RETIRED_DIR: &str = "retired";
/// A public key is everybody's.
const PUBLIC_MODE: u32 = 0o644;

/// Puts a key's file aside, with that of its public key, and returns where it is now.
///
/// # Errors
/// It is where it was; or it was put aside, and the public key was not.
pub(super) fn retire(signer: &Signer) -> io::Result<PathBuf> {
    let (Some(dir), Some(name)) = (signer.path.parent(), signer.path.file_name()) else {
        return Ok(signer.path.clone());
    };
    let public = signer.public_beside();
    let shared = public.as_deref().map(|public| is_shared(dir, public, &signer.path)).transpose()?;
    let files: Vec<&Path> = [signer.path.as_path()].into_iter().chain(public.as_deref()).collect();
    let aside = free_dir(&dir.join(RETIRED_DIR), &files)?;
    durable::create_dirs(&aside, OPEN_DIR)?;
    let to = aside.join(name);
    // The key first: without it nobody misses the public one, and what describes it would not be read without that.
    durable::rename(&signer.path, &to)?;
    if let Some((public, name)) = public.as_deref().and_then(|public| Some((public, public.file_name()?))) {
        let to = aside.join(name);
        if shared == Some(false) {
            durable::rename(public, &to)?;
        } else if fs::symlink_metadata(&to).is_err() {
            durable::write_new(&to, &durable::read_limited(public, KEY_BYTES_MAX)?, PUBLIC_MODE)?;
            durable::sync_dir(&aside)?;
        }
    }
    Ok(to)
}

/// Returns whether another key in `dir` than that of the file `own` has its public key in the file `public`.
fn is_shared(dir: &Path, public: &Path, own: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_key = path.file_name().is_some_and(|name| Signer::is_name(&name.to_string_lossy()));
        if is_key && path != own && public_of(&path).as_deref() == Some(public) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    if fs::metadata(one)?.len() > KEY_BYTES_MAX {
        return Ok(false); // no key
    }
    Ok(durable::read_limited(one, KEY_BYTES_MAX)? == durable::read_limited(other, KEY_BYTES_MAX)?)
}

/// Returns the first of `aside`, `aside/2` and so on where each of the files may go: its name is free, or its content is
/// there already.
fn free_dir(aside: &Path, files: &[&Path]) -> io::Result<PathBuf> {
    let dirs = std::iter::once(aside.to_owned()).chain((2u64..).map(|number| aside.join(number.to_string())));
    for dir in dirs {
        if dir != aside && fs::symlink_metadata(&dir).is_ok_and(|found| !found.is_dir()) {
            continue;
        }
        let mut free = true;
        for file in files {
            let to = dir.join(file.file_name().unwrap_or_default());
            free &= match fs::symlink_metadata(&to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                Err(error) => return Err(error),
                Ok(found) => found.is_file() && same_content(&to, file)?,
            };
        }
        if free {
            return Ok(dir);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
