//! Blocks put aside for a full disk: what must be written all the same has room.
//!
//! A component may fill the disk, and the release that does so is on trial: going back has to be journaled, and the next start has
//! files to write, too. `.spare` in the home holds nothing but blocks. Where the disk is full, [`replace`] writes into these very
//! blocks and gives the file its new name, so that nobody else can take them in between; [`with_room`] gives them up. The
//! file is made again after each write, as large as there is space for.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::durable;

/// The file that holds the blocks, in the home: blocks of another file system would be of no use.
pub const SPARE_FILE: &str = ".spare";
/// What is put aside: the largest journal that any appliance is known to have, a few times over.
pub const SPARE_BYTES: u64 = 256 << 10;
/// Less than this is not worth a file: a journal with a failure's reason and output has some kilobytes.
const SPARE_BYTES_MIN: u64 = 16 << 10;
/// What `st_blocks` counts in, whatever the file system's own blocks are.
const BLOCKS_UNIT: u64 = 512;

/// Puts blocks aside in the home `home`: as many as are wanted, or half, or half of that.
///
/// # Errors
/// There is no space for any, or the file cannot be made; what was put aside before still is.
pub fn keep(home: &Path) -> io::Result<()> {
    let path = home.join(SPARE_FILE);
    // Blocks count and not the length: a copy of a home may have brought a file that is all hole.
    let has = fs::symlink_metadata(&path).map_or(0, |found| found.len().min(found.blocks() * BLOCKS_UNIT));
    let mut wanted = SPARE_BYTES;
    while wanted > has {
        match durable::reserve(&path, wanted) {
            Err(error) if is_full(&error) && wanted / 2 >= SPARE_BYTES_MIN => wanted /= 2,
            result => return result,
        }
    }
    Ok(())
}

/// Replaces `home/name` as [`durable::replace_with_mode`] does, also where the disk is full.
///
/// # Errors
/// As there.
pub(crate) fn replace(home: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let written = match durable::replace_with_mode(home, name, bytes, mode) {
        Err(error) if is_full(&error) => {
            tracing::warn!(%error, file = name, "the disk is full; writing to what was put aside");
            durable::replace_with_blocks_of(&home.join(SPARE_FILE), home, name, bytes, mode).map_err(|_none_left| error)
        }
        written => written,
    };
    keep_or_say(home);
    written
}

/// Does `write`, and where the disk is full does it again with the blocks that were put aside.
///
/// # Errors
/// Those of `write`.
pub fn with_room<T>(home: &Path, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match write() {
        Err(error) if is_full(&error) => {
            tracing::warn!(%error, "the disk is full; giving up what was put aside");
            durable::remove_file(&home.join(SPARE_FILE))?;
            let again = write();
            keep_or_say(home);
            again
        }
        written => written,
    }
}

/// Does as [`keep`], where nothing depends on it now.
fn keep_or_say(home: &Path) {
    if let Err(error) = keep(home) {
        tracing::debug!(%error, "cannot put blocks aside; the next write tries again");
    }
}

/// Returns whether a write failed because there is no room for it, in blocks, files or a quota.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> io::Error {
        io::Error::from(io::ErrorKind::StorageFull)
    }

    #[test]
    fn blocks_are_put_aside_given_up_and_put_aside_again() {
        let home = tempfile::tempdir().unwrap();
        let spare = home.path().join(SPARE_FILE);
        fs::File::create(&spare).and_then(|copied| copied.set_len(SPARE_BYTES)).unwrap();
        keep(home.path()).unwrap();
        let found = fs::metadata(&spare).unwrap();
        assert_eq!(found.len(), SPARE_BYTES);
        assert!(found.blocks() * 512 >= SPARE_BYTES, "{} blocks", found.blocks());
        keep(home.path()).unwrap();

        let mut tries = 0;
        let written = with_room(home.path(), || {
            tries += 1;
            if spare.exists() { Err(full()) } else { Ok(tries) }
        });
        assert_eq!((written.unwrap(), fs::metadata(&spare).unwrap().len()), (2, SPARE_BYTES));
        let denied = || Err::<(), _>(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(with_room(home.path(), denied).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(with_room(home.path(), || Err::<(), _>(full())).is_err());
        assert_eq!(fs::metadata(&spare).unwrap().len(), SPARE_BYTES);
    }

    #[test]
    fn a_file_takes_over_the_blocks_with_its_own_length() {
        let home = tempfile::tempdir().unwrap();
        let spare = home.path().join(SPARE_FILE);
        keep(home.path()).unwrap();
        let inode = fs::metadata(&spare).unwrap().ino();
        durable::replace(home.path(), "file", b"old").unwrap();
        durable::replace_with_blocks_of(&spare, home.path(), "file", b"the new content", 0o640).unwrap();
        assert_eq!(fs::read(home.path().join("file")).unwrap(), b"the new content");
        let found = fs::metadata(home.path().join("file")).unwrap();
        assert_eq!((found.ino(), found.mode() & 0o7777), (inode, 0o640));
        assert!(!spare.exists());
        // What does not fit into the blocks would need more of them.
        keep(home.path()).unwrap();
        let large = vec![1; usize::try_from(SPARE_BYTES).unwrap() + 1];
        assert!(durable::replace_with_blocks_of(&spare, home.path(), "file", &large, 0o640).is_err());
        assert_eq!(fs::read(home.path().join("file")).unwrap(), b"the new content");
    }
}
