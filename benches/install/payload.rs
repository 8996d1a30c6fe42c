//! The payload: files of this machine's own `/usr`, by a rule.
//!
//! In order of their paths, bytewise: the shared libraries below `/usr/lib` (a name that ends in `.so` or has `.so.` in it)
//! until the next would make more than 250 MB; then the files below `/usr/share` of at least 64 KiB until 50 MB. Only regular
//! files of at most 32 MiB count, with names that may be in a release. They lie in the release as `lib/…` and `share/…`, with
//! mode 0644, the way they lay below `/usr`.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::{BenchError, failed};

const LIBRARY_BYTES_MAX: u64 = 250_000_000;
const DATA_BYTES_MAX: u64 = 50_000_000;
const DATA_FILE_BYTES_MIN: u64 = 64 << 10;
const FILE_BYTES_MAX: u64 = 32 << 20;
/// A release has no deeper paths than this, which is under its limit.
const PATH_BYTES_MAX: usize = 512;

/// Copies the payload into `dir`. Returns the paths there, in order, and the sum of their bytes.
pub(crate) fn copy(dir: &Path) -> Result<(Vec<String>, u64), BenchError> {
    let is_library = |name: &str, _size| name.ends_with(".so") || name.contains(".so.");
    let is_data = |_name: &str, size| size >= DATA_FILE_BYTES_MIN;
    let (mut paths, mut bytes) = (Vec::new(), 0);
    let mut seen = HashSet::new();
    let mut take = |top: &str, max: u64, wanted: &dyn Fn(&str, u64) -> bool| -> Result<(), BenchError> {
        let mut found = Vec::new();
        find(&Path::new("/usr").join(top), top, &mut found)?;
        found.sort();
        let mut sum = 0;
        for (path, size) in found {
            let name = path.rsplit('/').next().unwrap_or_default();
            if size > FILE_BYTES_MAX || path.len() > PATH_BYTES_MAX || !wanted(name, size) {
                continue;
            }
            if sum + size > max {
                break;
            }
            // Two that differ in upper and lower case alone cannot be in one release.
            if !seen.insert(path.to_lowercase()) {
                continue;
            }
            copy_file(&Path::new("/usr").join(&path), &dir.join(&path))?;
            sum += size;
            paths.push(path);
        }
        bytes += sum;
        Ok(())
    };
    take("lib", LIBRARY_BYTES_MAX, &is_library)?;
    take("share", DATA_BYTES_MAX, &is_data)?;
    Ok((paths, bytes))
}

/// Adds every regular file below `dir`, with its path and size.
fn find(dir: &Path, path: &str, found: &mut Vec<(String, u64)>) -> Result<(), BenchError> {
    for entry in fs::read_dir(dir).map_err(failed("read a directory of /usr"))? {
        let entry = entry.map_err(failed("read a directory of /usr"))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.contains(|letter: char| letter.is_control() || letter == '\\') {
            continue;
        }
        let metadata = entry.metadata().map_err(failed("look at a file of /usr"))?;
        let path = format!("{path}/{name}");
        if metadata.is_dir() {
            find(&entry.path(), &path, found)?;
        } else if metadata.is_file() {
            found.push((path, metadata.len()));
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &PathBuf) -> Result<(), BenchError> {
    let parent = to.parent().unwrap_or(to);
    DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed("make a directory"))?;
    fs::copy(from, to).map_err(failed("copy a file of /usr"))?;
    fs::set_permissions(to, Permissions::from_mode(0o644)).map_err(failed("set permissions"))
}
