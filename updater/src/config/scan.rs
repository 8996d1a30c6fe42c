//! The one reader of a configuration, which is an admin's directory and may hold anything.
//!
//! It never waits, never follows a link out of its directory to list what is there, and stops at named maxima. What cannot be read is
//! named with its path and does not keep the rest from being read: an editor's lock, a pipe, a file of another account. What goes
//! away while it is looked at was not there.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};
use serde::Serialize;

use crate::digest::Digest;
use crate::durable;

/// The most entries of a configuration: as many as a release may have of everything.
pub const ENTRIES_MAX: usize = 100_000;
/// Larger files are told apart by size and time alone: reading them would hold up every start.
pub const HASHED_BYTES_MAX: u64 = 64 << 20;
/// Of all files together so many bytes are read; what comes after is told apart by size and time, too.
pub const HASHED_BYTES_TOTAL_MAX: u64 = 256 << 20;

/// Something in a configuration that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// Path below the configuration; empty for the configuration itself.
    pub path: String,
    /// Why, as a clause: it may be no file at all.
    pub why: String,
}

impl Unread {
    pub(super) fn new(path: &Path, why: impl Into<String>) -> Self {
        Self { path: path.display().to_string(), why: why.into() }
    }
}

/// A live configuration, as far as it says what a process is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Live {
    /// What can be read, in order of the paths.
    pub files: Vec<LiveFile>,
    /// What cannot.
    pub unread: Vec<Unread>,
}

/// A file or link of a live configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveFile {
    /// Path below the configuration.
    pub path: PathBuf,
    /// What it holds, as a text that differs when that does: the digest of a file, also behind a link; of a link to a directory, where
    /// it leads.
    pub content: String,
}

impl Live {
    /// Reads the live configuration at `dir`, which may be missing. Blocks.
    #[must_use]
    pub fn read(dir: &Path) -> Self {
        Self::read_within(dir, HASHED_BYTES_TOTAL_MAX)
    }

    /// Reads the live configuration at `dir`, and of its files so many bytes.
    pub(super) fn read_within(dir: &Path, mut budget: u64) -> Self {
        let Scan { found, unread } = Scan::read(dir);
        let mut live = Self { files: Vec::new(), unread };
        for (path, found) in found {
            let at = dir.join(&path);
            let content = match found.what {
                What::Directory => continue,
                What::File => content_of(&at, &mut budget),
                What::Link(target) => behind(&at, &target, &mut budget),
                What::Other(why) => Err(Some(why)),
            };
            match content {
                Ok(content) => live.files.push(LiveFile { path, content }),
                Err(Some(why)) => live.unread.push(Unread::new(&path, why)),
                Err(None) => {}
            }
        }
        live.unread.sort_by(|one, other| one.path.cmp(&other.path));
        live
    }
}

/// Returns what of the configuration at `dir` cannot be read, without reading what can. Blocks.
#[must_use]
pub fn unread(dir: &Path) -> Vec<Unread> {
    Live::read_within(dir, 0).unread
}

/// Returns the same of a live configuration, which is there as long as its release is: that it is missing, too. Blocks.
#[must_use]
pub fn unread_live(dir: &Path) -> Vec<Unread> {
    match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = "it is missing; it is made again from the release's defaults when a component starts";
            vec![Unread::new(Path::new(""), why)]
        }
        Ok(_) | Err(_) => unread(dir),
    }
}

/// Returns what the file at `path` holds; or why that cannot be said, or nothing if it has gone.
fn content_of(path: &Path, budget: &mut u64) -> Result<String, Option<String>> {
    let mut read = || -> io::Result<String> {
        let file = open(path, Access::AsItIs)?;
        let looks = file.metadata()?;
        // A file of the kernel's own says that it is empty, and holds something.
        let bytes_max = HASHED_BYTES_MAX.min(*budget);
        if looks.len() <= bytes_max {
            let (digest, bytes) = Digest::of_reader(file.take(bytes_max))?;
            *budget -= bytes;
            return Ok(digest.to_string());
        }
        Ok(format!("{} bytes of {}.{:09}", looks.len(), looks.mtime(), looks.mtime_nsec()))
    };
    read().map_err(|error| why(&error))
}

/// Returns what the link at `path` leads to, as [`content_of`] does.
fn behind(path: &Path, target: &Path, budget: &mut u64) -> Result<String, Option<String>> {
    match fs::metadata(path) {
        Ok(looks) if looks.is_file() => content_of(path, budget),
        Ok(looks) if looks.is_dir() => Ok(format!("link {}", target.display())),
        Ok(looks) => Err(Some(format!("it leads to {}, which is {}", target.display(), kind(&looks)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The link itself may have gone, too.
            let is_there = fs::symlink_metadata(path).is_ok();
            Err(is_there.then(|| format!("it is a link to {}, which is not there", target.display())))
        }
        Err(error) => Err(Some(format!("it is a link to {}: {error}", target.display()))),
    }
}

/// Returns why something cannot be read; nothing if it has gone meanwhile.
pub(super) fn why(error: &io::Error) -> Option<String> {
    (error.kind() != io::ErrorKind::NotFound).then(|| error.to_string())
}

/// Returns what something is that is neither file nor directory nor link.
fn kind(looks: &Metadata) -> &'static str {
    let found = looks.file_type();
    if found.is_fifo() {
        "a named pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// How far the reader goes to read what it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// As the modes say.
    AsItIs,
    /// What belongs to this account is made readable for a moment.
    AsOwner,
}

/// What lies below one directory, by path.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) found: BTreeMap<PathBuf, Found>,
    pub(super) unread: Vec<Unread>,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) looks: Metadata,
    pub(super) what: What,
}

/// What an entry is.
#[derive(Debug)]
pub(super) enum What {
    Directory,
    File,
    Link(PathBuf),
    /// Something that holds nothing to read, and why.
    Other(String),
}

impl Scan {
    /// Reads what lies below `dir`, which may be missing: then that is nothing. A directory that cannot be read is
    /// [`What::Other`].
    pub(super) fn read(dir: &Path) -> Self {
        let mut scan = Self::default();
        let mut ahead = vec![PathBuf::new()];
        while let Some(below) = ahead.pop() {
            if let Err(error) = scan.read_one(dir, &below, &mut ahead) {
                let Some(why) = why(&error) else { continue };
                match scan.found.get_mut(&below) {
                    Some(found) => found.what = What::Other(why),
                    None => scan.unread.push(Unread::new(&below, why)),
                }
            }
        }
        scan
    }

    fn read_one(&mut self, dir: &Path, below: &Path, ahead: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(dir.join(below))? {
            let path = below.join(entry?.file_name());
            if self.found.len() >= ENTRIES_MAX {
                ahead.clear();
                self.unread.push(Unread::new(below, format!("more than {ENTRIES_MAX} entries")));
                return Ok(());
            }
            let at = dir.join(&path);
            let looks = match fs::symlink_metadata(&at) {
                Ok(looks) => looks,
                Err(error) => {
                    self.unread.extend(why(&error).map(|why| Unread::new(&path, why)));
                    continue;
                }
            };
            let what = if looks.is_dir() {
                ahead.push(path.clone());
                What::Directory
            } else if looks.is_file() {
                What::File
            } else if looks.is_symlink() {
                match fs::read_link(&at) {
                    Ok(target) => What::Link(target),
                    Err(error) => What::Other(error.to_string()),
                }
            } else {
                What::Other(format!("it is {}", kind(&looks)))
            };
            self.found.insert(path, Found { looks, what });
        }
        Ok(())
    }
}

/// Opens the file at `path` to read it, without ever waiting for it.
///
/// # Errors
/// It cannot be opened, or is not a file.
pub(super) fn open(path: &Path, access: Access) -> io::Result<File> {
    // Looked at first: some devices do something when they are opened.
    let looks = match access {
        Access::AsItIs => fs::metadata(path)?,
        Access::AsOwner => fs::symlink_metadata(path)?,
    };
    if !looks.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file"));
    }
    let links = if access == Access::AsOwner { O_NOFOLLOW } else { 0 };
    let opened = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY | links).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && access == Access::AsOwner => {
            durable::open_own(path)?
        }
        opened => opened?,
    };
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, at(name)).unwrap();
        fs::create_dir(at("sub")).unwrap();
        for name in ["a.conf", "sub/b.conf"] {
            durable::write_new(&at(name), b"text", 0o644).unwrap();
        }
        File::create(at("huge")).unwrap().set_len(1 << 40).unwrap();
        link("user@host.1", ".#a.conf");
        link("loop", "loop");
        link("/dev/zero", "zero");
        link("sub", "dir");
        link("a.conf", "file");
        link("..", "up");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"odd\xff");
        durable::write_new(&dir.path().join(odd), b"text", 0o644).unwrap();
        let live = Live::read(dir.path());
        let read: Vec<_> = live.files.iter().map(|file| file.path.display().to_string()).collect();
        assert_eq!(read, ["a.conf", "dir", "file", "huge", "odd\u{fffd}", "sub/b.conf", "up"]);
        let unread: Vec<_> = live.unread.iter().map(|unread| unread.path.as_str()).collect();
        assert_eq!(unread, [".#a.conf", "loop", "pipe", "socket", "zero"], "{:?}", live.unread);
        assert_eq!(live, Live::read(dir.path()), "the same once more");
        assert_eq!(Live::read(&at("missing")), Live::default());
        assert_eq!(Live::read(&at("a.conf")).unread.len(), 1, "a file is not a configuration");
    }
}
