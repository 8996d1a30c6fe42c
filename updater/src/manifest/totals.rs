//! What a release holds in numbers, by kind: the bottom of a packing list.

use serde::Serialize;

use super::{Body, FileEntry, Kind, Manifest};

/// The files of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KindTotals {
    /// The kind.
    pub kind: Kind,
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files, unpacked.
    pub installed_bytes: u64,
    /// Bytes of their contents in the payload; a content that an earlier file brings counts with that one.
    pub stored_bytes: u64,
}

/// Everything in a release, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// By kind; a kind without files is left out.
    pub kinds: Vec<KindTotals>,
    /// Directories.
    pub directories: u64,
    /// Bytes of contents that an earlier file brings already.
    pub repeated_bytes: u64,
    /// Bytes that need no place on the disk, for they are zeros.
    pub hole_bytes: u64,
}

impl FileEntry {
    /// Returns the bytes of this file's own frames in the payload.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        match &self.body {
            Body::Regular { frames, .. } => frames.iter().map(|frame| frame.stored).sum(),
            Body::Link { .. } => 0,
        }
    }
}

impl Manifest {
    /// Returns what the release holds, in numbers.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals =
            Totals { kinds: Vec::new(), directories: self.directories.len() as u64, repeated_bytes: 0, hole_bytes: 0 };
        for kind in [Kind::Binary, Kind::Library, Kind::Config, Kind::Hook, Kind::Asset] {
            let mut sums = KindTotals { kind, files: 0, links: 0, installed_bytes: 0, stored_bytes: 0 };
            for file in self.files.iter().filter(|file| file.kind == kind) {
                sums.stored_bytes += file.stored_bytes();
                match &file.body {
                    Body::Regular { size, holes, frames, .. } => {
                        sums.files += 1;
                        sums.installed_bytes += size;
                        totals.hole_bytes += holes;
                        if frames.is_empty() {
                            totals.repeated_bytes += size;
                        }
                    }
                    Body::Link { .. } => sums.links += 1,
                }
            }
            if sums.files + sums.links > 0 {
                totals.kinds.push(sums);
            }
        }
        totals
    }
}
