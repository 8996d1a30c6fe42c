//! Runs of zeros, which take no room on disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::manifest::HOLE_BYTES;

/// Writes `content` at `at` into a file of its final size, but for its holes: those are there already.
pub(super) fn write_with_holes(file: &File, content: &[u8], at: u64) -> io::Result<()> {
    let (mut begin, mut end) = (0, 0); // the run that is to be written
    for piece in content.chunks(HOLE_BYTES) {
        if is_hole(piece) {
            file.write_all_at(&content[begin..end], at + begin as u64)?;
            begin = end + piece.len();
        }
        end += piece.len();
    }
    file.write_all_at(&content[begin..end], at + begin as u64)
}

/// Returns whether `piece` is nothing but zeros.
#[must_use]
pub fn is_hole(piece: &[u8]) -> bool {
    // The first bytes decide nearly always; the rest is compared by the word.
    piece.iter().take(16).all(|byte| *byte == 0) && piece.iter().fold(0, |any, byte| any | byte) == 0
}
