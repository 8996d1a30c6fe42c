//! The only file that renames, links and syncs: every change of a name on disk goes through here.
//!
//! Content is synced before its name, and the name with its directory, so that after a power cut a name holds the old or
//! the new content, whole; functions whose result need not outlive one say so. Leftovers of an interrupted operation have
//! names that nothing reads.
//!
//! Whoever works on another account's home, as root does, leaves it to that account: what is replaced keeps owner and group, and
//! what is new gets those of its directory. Links have no use for an owner, and trees that are unpacked belong to who unpacks.
#![expect(clippy::disallowed_methods, reason = "the calls that are forbidden elsewhere because they belong here")]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK, O_PATH};
use rustix::fs::{FallocateFlags, FlockOperation, flock};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use crate::fault;
use crate::modes::OPEN_DIR;

/// Permissions of a file that [`replace`] makes: it is everybody's to read.
const REPLACE_MODE: u32 = 0o644;
/// What a file is called until it is whole: this, and letters that nothing else has.
const TEMP_PREFIX: &str = ".tmp";
/// The same, of a link.
const LINK_PREFIX: &str = ".link";
/// Permissions of a file that holds nothing but blocks.
const RESERVE_MODE: u32 = 0o600;

/// Replaces `dir/name`: after a power cut it holds the old or the new content, whole.
///
/// # Errors
/// Nothing has changed; or, if only the last sync failed, the new content is there but may be lost.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    replace_with_mode(dir, name, bytes, REPLACE_MODE)
}

/// Replaces `dir/name`, with the permissions `mode`, by what a power cut may take away or tear: a reader must find that out, and do
/// without.
///
/// # Errors
/// Nothing has changed.
pub fn replace_dispensable(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temp = write_beside(tempfile::Builder::new().prefix(TEMP_PREFIX), dir, bytes, mode)?;
    keep_owner(temp.as_file(), &dir.join(name))?;
    temp.persist(dir.join(name))?; // nobody ever reads a half
    Ok(())
}

/// Does as [`replace`], with the permissions `mode`.
///
/// # Errors
/// As [`replace`].
pub fn replace_with_mode(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_by(tempfile::Builder::new().prefix(TEMP_PREFIX), dir, name, bytes, mode)
}

/// Does as [`replace_with_mode`], with a file that `temp` names until it is whole.
///
/// # Errors
/// As [`replace`].
pub fn replace_by(temp: &tempfile::Builder<'_, '_>, dir: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    commit_file(write_beside(temp, dir, bytes, mode)?, &dir.join(name))
}

/// Returns a file in `dir` with this content and a name that nothing reads.
fn write_beside(temp: &tempfile::Builder<'_, '_>, dir: &Path, bytes: &[u8], mode: u32) -> io::Result<NamedTempFile> {
    let mut temp = temp.tempfile_in(dir).map_err(without_path)?; // same file system, or rename is not atomic
    hold(temp.as_file());
    temp.as_file_mut().write_all(bytes)?;
    temp.as_file().set_permissions(Permissions::from_mode(mode))?;
    Ok(temp)
}

/// Shows that `file` is being written, until it is closed: see [`is_being_written`]. A file system without locks shows nothing.
fn hold(file: &File) {
    flock(file, FlockOperation::NonBlockingLockExclusive).ok(); // then a start that removes what is left may take it
}

/// Returns whether some process still writes the file at `path`, which [`is_temporary`].
pub(crate) fn is_being_written(path: &Path) -> bool {
    let Ok(file) = open_regular(path) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

/// Returns whether `path` has a name that is given here until what has it is whole: one that is left was never made so.
pub(crate) fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let rest = [TEMP_PREFIX, LINK_PREFIX].iter().find_map(|prefix| name.strip_prefix(prefix));
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Returns what the system said, without the name of a file that never came to be: the same trouble has the same words each time.
fn without_path(error: io::Error) -> io::Error {
    let said = error.get_ref().and_then(|inner| inner.source()).and_then(|inner| inner.downcast_ref::<io::Error>());
    match said.and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => error,
    }
}

/// Gives `temp`, whose directory is that of `path`, the name `path`: content first, then the name, then the directory.
///
/// # Errors
/// As [`replace`].
pub fn commit_file(temp: NamedTempFile, path: &Path) -> io::Result<()> {
    keep_owner(temp.as_file(), path)?;
    temp.as_file().sync_all()?; // content before name
    fault::point("temp_synced");
    temp.persist(path)?; // the commit point
    fault::point("switched");
    sync_dir(parent(path))
}

/// Replaces `dir/name` as [`replace_with_mode`] does, with no block that is not there yet: `blocks`, a file of [`reserve`] in the same file
/// system, is overwritten and gets the name.
///
/// # Errors
/// There is no such file or it is too small; or as [`replace`]. What `blocks` holds is of no use, as before.
pub fn replace_with_blocks_of(blocks: &Path, dir: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).custom_flags(O_NOFOLLOW).open(blocks)?;
    if file.metadata()?.len() < bytes.len() as u64 {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let path = dir.join(name);
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    keep_owner(&file, &path)?;
    file.sync_all()?; // content before name
    fault::point("temp_synced");
    fs::rename(blocks, &path)?; // the commit point
    fault::point("switched");
    sync_dir(dir)
}

/// Makes the file at `path` `bytes` long, with a block of the disk behind each of them. What it holds means nothing, so neither
/// is synced.
///
/// # Errors
/// It is as long as it was, and not there if it was not.
pub fn reserve(path: &Path, bytes: u64) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(RESERVE_MODE).custom_flags(O_NOFOLLOW);
    let mut file = options.open(path)?;
    let had = file.metadata()?.len();
    let reserved = match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP) => io::copy(&mut io::repeat(0).take(bytes), &mut file).map(drop),
        result => result.map_err(io::Error::from),
    };
    if had == 0 {
        file.set_permissions(Permissions::from_mode(RESERVE_MODE))?; // whatever the process's mask is
        keep_owner(&file, parent(path))?;
    }
    if reserved.is_err() {
        if had == 0 { fs::remove_file(path)? } else { file.set_len(had)? }
    }
    reserved
}

/// Gives `file` owner and group of what has the name `path` now, or else those of the directory.
///
/// # Errors
/// They cannot be found out, or not be given by who may give them.
fn keep_owner(file: &File, path: &Path) -> io::Result<()> {
    let wanted = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::symlink_metadata(parent(path))?,
        found => found?,
    };
    let found = file.metadata()?;
    if (found.uid(), found.gid()) == (wanted.uid(), wanted.gid()) {
        return Ok(());
    }
    match fchown(file, Some(wanted.uid()), Some(wanted.gid())) {
        // Only root may, and not to an account that its namespace does not know: then it is as it was made.
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => Ok(()),
        result => result,
    }
}

/// Writes a new file, synced, that must not exist yet; its directory is not synced.
///
/// # Errors
/// The file exists, or a part of it may be there.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = create_new(path, mode)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Creates an empty file that must not exist yet, with exactly these permissions. Nothing is synced.
///
/// # Errors
/// The file exists, or it may be there.
pub fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?; // whatever the process's mask is
    Ok(file)
}

/// Opens the file at `path` to read and write, which is made with exactly the permissions `mode` when it is missing. Nothing is synced.
///
/// # Errors
/// It cannot be made or opened.
pub fn open_or_create(path: &Path, mode: u32) -> io::Result<File> {
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {} // somebody was faster
            Err(error) => return Err(error),
            Ok(file) => {
                file.set_permissions(Permissions::from_mode(mode))?; // whatever the process's mask is
                return Ok(file);
            }
        }
    }
}

/// Appends `line` and a line feed to the file at `path`, which is created with the permissions `mode` when it is missing, and
/// syncs it. A torn last line, left by a power cut, is ended first, so that it takes no other line with it.
///
/// # Errors
/// A part of the line may be there: a reader must not trust a last line that has no end.
pub fn append_line(path: &Path, line: &str, mode: u32) -> io::Result<()> {
    let existed = path.exists();
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(mode).custom_flags(O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    if !existed {
        file.set_permissions(Permissions::from_mode(mode))?; // whatever the process's mask is
        keep_owner(&file, parent(path))?;
    }
    let mut whole = Vec::with_capacity(line.len() + 2);
    if let Some(last) = file.metadata()?.len().checked_sub(1) {
        let mut byte = [b'\n'];
        file.read_exact_at(&mut byte, last)?;
        if byte != [b'\n'] {
            whole.push(b'\n');
        }
    }
    whole.extend_from_slice(line.as_bytes());
    whole.push(b'\n');
    file.write_all(&whole)?;
    file.sync_all()?;
    if existed { Ok(()) } else { sync_dir(parent(path)) }
}

/// Opens the file at `path` for reading, if it is one: a pipe would be waited for.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let kind = file.metadata()?;
    if kind.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    Ok(file)
}

/// Reads the file at `path`, which may have at most `bytes_max` bytes: what is on a disk may be anything.
///
/// # Errors
/// The file cannot be read, is no regular file, or is larger.
pub fn read_limited(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Opens the file at `path` for reading, also where its mode keeps its owner, which is this account, from reading it.
///
/// # Errors
/// It cannot be opened.
pub fn open_as_owner(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => open_own(path),
        opened => opened,
    }
}

/// Lists the directory `path`, also where its mode keeps its owner, which is this account, from that.
///
/// # Errors
/// It cannot be listed.
pub fn list_as_owner(path: &Path) -> io::Result<fs::ReadDir> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let looks = fs::symlink_metadata(path)?;
            if !looks.is_dir() || looks.uid() != nix::unistd::geteuid().as_raw() {
                return Err(error);
            }
            fs::set_permissions(path, Permissions::from_mode(looks.permissions().mode() | 0o500))?;
            let listed = fs::read_dir(path);
            fs::set_permissions(path, looks.permissions())?;
            listed
        }
        listed => listed,
    }
}

/// Opens the file at `path`, which this account owns and its mode keeps it from reading: for a moment the mode allows that. A link is not
/// followed.
///
/// # Errors
/// It belongs to another account, is no regular file, or cannot be opened.
pub fn open_own(path: &Path) -> io::Result<File> {
    // A descriptor of the place alone: it takes no right on what lies there, and what is looked at is what is changed.
    let held = OpenOptions::new().read(true).custom_flags(O_PATH | O_NOFOLLOW).open(path)?;
    let looks = held.metadata()?;
    if !looks.is_file() || looks.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let by_number = format!("/proc/self/fd/{}", held.as_raw_fd());
    let mode = looks.permissions().mode();
    fs::set_permissions(&by_number, Permissions::from_mode(mode | 0o400))?;
    let opened = File::open(&by_number);
    fs::set_permissions(&by_number, Permissions::from_mode(mode))?;
    opened
}

/// Renames `from` to `to` and syncs both directories.
///
/// # Errors
/// Nothing has changed; or, if only a sync failed, the new name is there but may be lost.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    rename_unsynced(from, to)?;
    sync_dir(parent(to))?;
    if parent(from) == parent(to) { Ok(()) } else { sync_dir(parent(from)) }
}

/// Renames `from` to `to`, which need not outlive a power cut.
///
/// # Errors
/// Nothing has changed.
pub fn rename_unsynced(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    fault::point("renamed");
    Ok(())
}

/// Makes `dir/name` a symbolic link to `target`, whatever it was before: at no moment is the name missing.
///
/// # Errors
/// As [`replace`].
pub fn replace_symlink(dir: &Path, name: &str, target: &Path) -> io::Result<()> {
    let path = dir.join(name);
    if fs::read_link(&path).is_ok_and(|current| current == target) {
        return sync_dir(dir); // the link may be of a moment ago and not synced yet
    }
    let temp =
        tempfile::Builder::new().prefix(LINK_PREFIX).make_in(dir, |temp| std::os::unix::fs::symlink(target, temp))?;
    fs::rename(temp.path(), &path)?;
    // The name it had is gone; nothing is left for the guard to remove.
    temp.into_temp_path().keep().map_err(|error| error.error)?;
    fault::point("switched");
    sync_dir(dir)
}

/// Makes a symbolic link that must not exist yet; its directory is not synced.
///
/// # Errors
/// Nothing has changed.
pub fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// Gives the file `from` the second name `to`, which must not exist yet; its directory is not synced.
///
/// # Errors
/// Nothing has changed.
pub fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)
}

/// Makes the directory `path`, with exactly the permissions `mode`, and those above it, which everybody may look into, and syncs
/// what was added. What is there already stays as it is.
///
/// # Errors
/// Some of the directories may be there.
pub fn create_dirs(path: &Path, mode: u32) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut at = path;
    while !at.is_dir() {
        missing.push(at);
        match at.parent() {
            Some(above) if !above.as_os_str().is_empty() => at = above,
            Some(_) | None => break,
        }
    }
    for dir in missing.into_iter().rev() {
        let mode = if dir == path { mode } else { OPEN_DIR };
        match fs::DirBuilder::new().mode(mode).create(dir) {
            Ok(()) => {
                let directory = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(dir)?;
                directory.set_permissions(Permissions::from_mode(mode))?; // whatever the process's mask is
                keep_owner(&directory, parent(dir))?;
                sync_dir(parent(dir))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes the file at `path` for good; what is missing is gone already.
///
/// # Errors
/// Nothing has changed; or, if only a sync failed, the file may come back.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.and_then(|()| sync_dir(parent(path))),
    }
}

/// Removes the file, link or directory tree at `path`, read-only directories included; what is missing is gone already.
///
/// # Errors
/// A part of the tree may be gone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.is_dir() {
        return fs::remove_file(path);
    }
    make_dirs_writable(path)?;
    fs::remove_dir_all(path)
}

/// Makes every directory of a tree writable for its owner, so that it can be moved and removed.
///
/// # Errors
/// A part of the directories may be writable.
pub fn make_dirs_writable(path: &Path) -> io::Result<()> {
    set_owner_write(path)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_dirs_writable(&entry.path())?;
        }
    }
    Ok(())
}

/// Makes the directory `path` readable, writable and passable for its owner.
///
/// # Errors
/// Nothing has changed.
pub fn set_owner_write(path: &Path) -> io::Result<()> {
    let mode = fs::symlink_metadata(path)?.permissions().mode();
    if mode & 0o700 == 0o700 { Ok(()) } else { fs::set_permissions(path, Permissions::from_mode(mode | 0o700)) }
}

/// Moves a tree whose own directory is read-only: a directory that gets another parent must be writable for its owner.
/// It has the permissions it had when it arrives.
///
/// # Errors
/// The tree is where it was, or at its new place with its top directory writable.
pub fn rename_tree(from: &Path, to: &Path) -> io::Result<()> {
    let permissions = fs::symlink_metadata(from)?.permissions();
    set_owner_write(from)?;
    rename(from, to)?;
    fs::set_permissions(to, permissions)?;
    sync_dir(to)
}

/// Syncs a directory: the names in it survive a power cut.
///
/// # Errors
/// The names are there but may be lost.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file system that is written to and then synced as a whole: one call for a tree of any size, where one for each file
/// would wait for the disk as often.
///
/// The kernel writes back on its own, too, and reports what fails then to those who had the file system open before: so
/// this is opened before the first write.
#[derive(Debug)]
pub struct FileSystem(File);

impl FileSystem {
    /// Opens the file system that `path` lies on.
    ///
    /// # Errors
    /// The path cannot be opened.
    pub fn of(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Syncs everything on it.
    ///
    /// # Errors
    /// Something that was written since it was opened, by anybody, is not on the disk.
    pub fn sync(self) -> io::Result<()> {
        nix::unistd::syncfs(&self.0).map_err(io::Error::from)
    }
}

/// Has the kernel begin to write back a file that is complete, without waiting: the sync at the end finds less to do.
///
/// `POSIX_FADV_DONTNEED` does that on Linux (`mm/fadvise.c`); pages that are on their way to the disk stay cached. It is
/// advice: a file system that does not take it has more to sync.
pub fn begin_writeback(file: &File) {
    let _advice = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        Some(_) | None => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn replace_leaves_one_file_whole() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["one", "", "another, longer one"] {
            replace(dir.path(), "file", content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), content);
            assert_eq!(mode(&dir.path().join("file")), REPLACE_MODE);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("missing"), "file", b"").is_err());
    }

    /// Only root can make files of another account.
    #[test]
    fn owner_and_group_are_kept_and_new_files_have_those_of_their_directory() {
        if !refit_fixtures::tools::as_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let owner = |name: &str| {
            let found = fs::symlink_metadata(dir.path().join(name)).unwrap();
            (found.uid(), found.gid())
        };
        write_new(&dir.path().join("file"), b"old", 0o600).unwrap();
        let chown = |name: &str, uid, gid| std::os::unix::fs::chown(dir.path().join(name), Some(uid), Some(gid));
        chown("", 4_711, 4_712).and_then(|()| chown("file", 4_713, 4_714)).unwrap();
        replace_with_mode(dir.path(), "file", b"new", 0o600).unwrap();
        assert_eq!((owner("file"), mode(&dir.path().join("file"))), ((4_713, 4_714), 0o600));
        replace_dispensable(dir.path(), "file", b"newer", 0o644).unwrap();
        assert_eq!(owner("file"), (4_713, 4_714));
        replace(dir.path(), "other", b"").unwrap();
        replace_dispensable(dir.path(), "aid", b"", 0o644).unwrap();
        append_line(&dir.path().join("lines"), "one", 0o640).unwrap();
        create_dirs(&dir.path().join("deep/er"), 0o755).unwrap();
        replace(&dir.path().join("deep/er"), "file", b"").unwrap();
        for name in ["other", "aid", "lines", "deep", "deep/er", "deep/er/file"] {
            assert_eq!(owner(name), (4_711, 4_712), "{name}");
        }
    }

    #[test]
    fn lines_are_appended_also_behind_a_torn_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        append_line(&path, "one", 0o640).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"tor").unwrap();
        append_line(&path, "two", 0o640).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntor\ntwo\n");
        assert_eq!(read_limited(&path, 12).unwrap().len(), 12);
        assert_eq!(read_limited(&path, 11).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_link_is_replaced_whatever_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for target in ["releases/1.0.0", "releases/1.1.0", "releases/1.1.0"] {
            replace_symlink(dir.path(), "current", Path::new(target)).unwrap();
            assert_eq!(fs::read_link(dir.path().join("current")).unwrap(), Path::new(target));
        }
        replace(dir.path(), "file", b"").unwrap();
        replace_symlink(dir.path(), "file", Path::new("elsewhere")).unwrap();
        assert_eq!(fs::read_link(dir.path().join("file")).unwrap(), Path::new("elsewhere"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn read_only_trees_are_moved_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a/tree"), dir.path().join("b"));
        create_dirs(&from.join("deep/er"), 0o755).unwrap();
        create_dirs(&to, 0o755).unwrap();
        write_new(&from.join("deep/er/file"), b"", 0o444).unwrap();
        assert_eq!(write_new(&from.join("deep/er/file"), b"", 0o444).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        for path in [from.join("deep/er"), from.join("deep"), from.clone()] {
            fs::set_permissions(path, Permissions::from_mode(0o555)).unwrap();
        }
        rename_tree(&from, &to.join("tree")).unwrap();
        assert_eq!(mode(&to.join("tree")), 0o555);
        remove_tree(&to.join("tree")).unwrap();
        remove_tree(&to.join("tree")).unwrap();
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    }
}
