//! Which files of the kept releases were checked, and how they looked then: what makes a second installation fast.
//!
//! A release shares unchanged files with its neighbour, and a file is only shared after its content was checked. Reading all
//! of it again at each update would take most of the update's time, so `releases/.checked.json` says for each file on disk
//! (device and inode) which content it was seen to have, with size, time of modification and time of change. The kernel sets
//! the time of change at every write, and nobody can set it to a chosen value: a file that still looks the same was not
//! written to since. Whatever looks different is hashed again, so a lost, stale or unreadable record costs time and
//! nothing else.
//!
//! A new name and a removed one change the time of change, too: [`Checked::around`] carries the records across such steps. What the
//! records cannot see, a disk that forgets, is the matter of [`crate::release::Store::verify`].

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{self, FsType};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::durable;
use crate::modes;

/// The records, beside the releases that they are about; no version has such a name.
const FILE_NAME: &str = ".checked.json";
/// The format of the records; records of another one are not used.
const FORMAT: u64 = 1;
/// Some 100,000 files have records in so many bytes; a home with more hashes them again.
const FILE_BYTES_MAX: u64 = 24 << 20;
/// The kernel's clock of file times moves at least this often.
const TICK_MAX: Duration = Duration::from_millis(20);
/// How often it is looked at: on most machines it moves every 4 ms.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// File systems of this machine alone, on which the kernel itself keeps the time of change.
const FILE_SYSTEMS: [FsType; 6] = [
    statfs::EXT4_SUPER_MAGIC, // and ext2 and ext3
    FsType(0x5846_5342),      // XFS: the name is not there with every libc
    statfs::BTRFS_SUPER_MAGIC,
    statfs::F2FS_SUPER_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
];

/// What one file is on a disk, whatever its names.
type Inode = (u64, u64);

/// How a file looked, and what it held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    sha256: Digest,
}

impl Record {
    fn of(metadata: &Metadata, sha256: Digest) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            sha256,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckedV1 {
    format: u64,
    files: Vec<Record>,
}

/// The records of one home.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    records: HashMap<Inode, Record>,
}

impl Checked {
    /// Returns the records of the releases in `dir`; none where they cannot be used.
    pub(crate) fn load(dir: &Path) -> Self {
        let mut checked = Self::default();
        let usable = statfs::statfs(dir).is_ok_and(|found| FILE_SYSTEMS.contains(&found.filesystem_type()));
        if usable
            && let Ok(bytes) = durable::read_limited(&dir.join(FILE_NAME), FILE_BYTES_MAX)
            && let Ok(CheckedV1 { format: FORMAT, files }) = serde_json::from_slice(&bytes)
        {
            checked.records = files.into_iter().map(|record| ((record.device, record.inode), record)).collect();
        }
        checked
    }

    /// Forgets everything: what is linked next is hashed first.
    ///
    /// # Errors
    /// The records are as they were.
    pub(crate) fn forget(dir: &Path) -> io::Result<()> {
        durable::remove_tree(&dir.join(FILE_NAME))
    }

    /// Whether the file that looks like `metadata` was seen to hold the content `sha256` and was not written to since.
    pub(crate) fn vouches(&self, metadata: &Metadata, sha256: Digest) -> bool {
        let record = self.records.get(&(metadata.dev(), metadata.ino()));
        metadata.is_file() && record == Some(&Record::of(metadata, sha256))
    }

    /// Records that the files at `paths` have these contents now: they were hashed, or written by this process, a moment ago.
    pub(crate) fn record<'p>(&mut self, files: impl Iterator<Item = (PathBuf, &'p Digest)>) {
        let mut fresh = self.record_settled(files.map(|(path, sha256)| (path, *sha256)));
        // In one tick of the clock a file can change twice and look the same: the next one is waited for.
        let begun = Instant::now();
        while !fresh.is_empty() && begun.elapsed() < TICK_MAX {
            thread::sleep(LOOK_AGAIN);
            fresh = self.record_settled(fresh.into_iter());
        }
    }

    /// Records the files whose time of change is past, and returns the others.
    fn record_settled(&mut self, files: impl Iterator<Item = (PathBuf, Digest)>) -> Vec<(PathBuf, Digest)> {
        let Ok(now) = clock_gettime(ClockId::CLOCK_REALTIME_COARSE) else { return Vec::new() };
        let now = (now.tv_sec(), now.tv_nsec());
        let mut fresh = Vec::new();
        for (path, sha256) in files {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let record = Record::of(&metadata, sha256);
            self.records.remove(&(record.device, record.inode));
            if !metadata.is_file() {
                continue;
            }
            if record.changed < now {
                self.records.insert((record.device, record.inode), record);
            } else {
                fresh.push((path, sha256));
            }
        }
        fresh
    }

    /// Does `step`, which removes or adds names of files, and keeps the records of those at `files` that it leaves as they
    /// are, and only these. `files` is everything that stays.
    pub(crate) fn around<T>(dir: &Path, files: &[(PathBuf, Digest)], step: impl FnOnce() -> T) -> T {
        let mut checked = Self::load(dir);
        let looks = |path: &Path| fs::symlink_metadata(path).ok();
        let before: Vec<(&(PathBuf, Digest), Metadata)> = files
            .iter()
            .filter_map(|file| Some((file, looks(&file.0).filter(|found| checked.vouches(found, file.1))?)))
            .collect();
        let done = step();
        let same = |one: &Metadata, other: &Metadata| {
            let with_times = |found: &Metadata| Record { changed: (0, 0), ..Record::of(found, Digest::of(&[])) };
            with_times(one) == with_times(other)
        };
        checked.records.clear();
        let kept = before.iter().filter(|((path, _), before)| looks(path).is_some_and(|now| same(before, &now)));
        checked.record(kept.map(|((path, sha256), _)| (path.clone(), sha256)));
        checked.store(dir);
        done
    }

    /// Writes the records. They are an aid: one that cannot be written is missed by nobody.
    pub(crate) fn store(&self, dir: &Path) {
        let mut files: Vec<Record> = self.records.values().copied().collect();
        files.sort_by_key(|record| (record.device, record.inode));
        let written =
            serde_json::to_vec(&CheckedV1 { format: FORMAT, files }).map_err(io::Error::from).and_then(|bytes| {
                durable::replace_dispensable(dir, FILE_NAME, &bytes, modes::of("releases/.checked.json"))
            });
        if let Err(error) = written {
            tracing::warn!(path = %dir.join(FILE_NAME).display(), %error, "cannot note what was checked");
        }
    }
}
