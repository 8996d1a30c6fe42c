//! What becomes of each content of a package: linked from a kept release, or decoded from the payload.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use refit_base::{file_error, into_inner, lock};

use super::ReceiveError;
use super::holes::write_with_holes;
use crate::digest::Digest;
use crate::durable;
use crate::manifest::{Body, Manifest, Mode};
use crate::release::{Checked, ContentIndex, Place};

/// The unit in which file systems give out space; smaller ones only make the estimate too careful.
const BLOCK_BYTES: u64 = 4096;
/// Space that stays free beside a new release: for the journal, logs and what components write meanwhile.
const SPACE_RESERVE_BYTES: u64 = 8 << 20;
/// Files beside those of the release: its manifest, what is replaced in the home, and what components make meanwhile.
const INODES_RESERVE: u64 = 64;
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 << 10;
/// Names of one file. File systems have limits (65,000 on ext4), and what later releases share takes more of them.
const NAMES_MAX: usize = 1_000;

/// One content, and where it goes.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) size: u64,
    holes: u64,
    /// Files on disk, with every path of each: one for a set of permissions, or more where one would have too many names.
    pub(super) files: Vec<(Mode, Vec<String>)>,
    /// Where a kept release has it.
    kept: Option<Kept>,
}

/// A file of a kept release whose content was checked, and how it looked then.
#[derive(Debug)]
struct Kept {
    place: Place,
    looks: Metadata,
}

impl Kept {
    /// Whether a file with the permissions `mode` can be another name of this one. What its manifest says is not enough: somebody
    /// may have changed the permissions, which is no change of the content, and a name has no permissions of its own.
    fn can_link(&self, mode: Mode) -> bool {
        self.place.mode == mode && has_mode(&self.looks, mode)
    }
}

/// Returns whether a file has exactly these permissions; set-id and sticky bits are none of a release.
fn has_mode(looks: &Metadata, mode: Mode) -> bool {
    looks.mode() & 0o7777 == mode.bits()
}

/// Returns the file at `place`, if it holds the content `digest`.
fn check(place: &Place, digest: Digest, size: u64, checked: &Checked) -> Option<Kept> {
    let looks = fs::symlink_metadata(&place.path).ok()?;
    if !looks.is_file() || looks.len() != size {
        return None;
    }
    let whole = checked.vouches(&looks, digest)
        || File::open(&place.path).and_then(Digest::of_reader).is_ok_and(|found| found == (digest, size));
    whole.then(|| Kept { place: place.clone(), looks })
}

impl Content {
    /// Whether the payload must bring it.
    pub(super) fn is_wanted(&self) -> bool {
        self.size > 0 && self.kept.is_none()
    }
}

/// What came from kept releases.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) linked_bytes: u64,
    pub(super) copied_bytes: u64,
}

/// Where everything in a release comes from.
#[derive(Debug)]
pub(super) struct Plan {
    contents: HashMap<Digest, Content>,
    links: Vec<(String, String)>,
    directories: u64,
}

impl Plan {
    /// Plans to decode everything.
    pub(super) fn new(manifest: &Manifest) -> Self {
        let mut contents: HashMap<Digest, Content> = HashMap::new();
        let mut links = Vec::new();
        for file in manifest.files() {
            match &file.body {
                Body::Regular { mode, size, holes, sha256, .. } => {
                    let new = || Content { size: *size, holes: *holes, files: Vec::new(), kept: None };
                    let content = contents.entry(*sha256).or_insert_with(new);
                    let mode = mode.installed();
                    match content.files.iter_mut().rfind(|(other, _)| *other == mode) {
                        Some((_, paths)) if paths.len() < NAMES_MAX => paths.push(file.path.clone()),
                        Some(_) | None => content.files.push((mode, vec![file.path.clone()])),
                    }
                }
                Body::Link { target } => links.push((file.path.clone(), target.clone())),
            }
        }
        Self { contents, links, directories: manifest.directories().len() as u64 }
    }

    /// Finds contents that kept releases have. A name proves nothing about a disk: each is hashed, unless it was before and
    /// was not written to since.
    pub(super) fn find_kept(
        &mut self,
        index: &ContentIndex,
        checked: &Checked,
        cancel: &AtomicBool,
    ) -> Result<(), ReceiveError> {
        let work: Vec<(Digest, u64, Vec<Place>)> = self
            .contents
            .iter()
            .filter(|(_, content)| content.size > 0)
            .filter_map(|(digest, content)| {
                let wanted = content.files.first().map(|(mode, _)| *mode);
                let mut places = index.get(digest)?.clone();
                // One that can be linked before one that must be copied.
                let can_link = |place: &Place| {
                    Some(place.mode) == wanted
                        && fs::symlink_metadata(&place.path).is_ok_and(|looks| has_mode(&looks, place.mode))
                };
                places.sort_by_cached_key(|place| !can_link(place));
                Some((*digest, content.size, places))
            })
            .collect();
        let found = Mutex::new(Vec::new());
        on_all_cores(&work, |(digest, size, places)| {
            let mut whole = places.iter().filter_map(|place| check(place, *digest, *size, checked));
            if let Some(kept) = whole.next() {
                lock(&found).push((*digest, kept));
            }
            if cancel.load(Ordering::Relaxed) { Err(ReceiveError::Cancelled) } else { Ok(()) }
        })?;
        for (digest, kept) in into_inner(found) {
            if let Some(content) = self.contents.get_mut(&digest) {
                content.kept = Some(kept);
            }
        }
        Ok(())
    }

    /// Checks that what is to be written fits.
    pub(super) fn check_space(&self, staging: &Path) -> Result<(), ReceiveError> {
        let mut needed = SPACE_RESERVE_BYTES;
        let mut inodes = INODES_RESERVE + self.directories + self.links.len() as u64;
        for content in self.contents.values() {
            let written = content.files.iter().filter(|(mode, _)| !content.can_link(*mode)).count() as u64;
            let bytes = content.size.saturating_sub(content.holes).div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
            needed = needed.saturating_add(written.saturating_mul(bytes));
            inodes += written;
        }
        needed = needed.saturating_add(self.directories * BLOCK_BYTES);
        let stat = nix::sys::statvfs::statvfs(staging)
            .map_err(|source| file_error("measure", staging)(io::Error::from(source)))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if needed > free {
            return Err(ReceiveError::NoSpace { needed, free, path: staging.to_owned() });
        }
        // A file system that makes them as it goes says that it has none at all.
        if stat.files() > 0 && inodes > stat.files_available() {
            return Err(ReceiveError::NoInodes {
                needed: inodes,
                free: stat.files_available(),
                path: staging.to_owned(),
            });
        }
        Ok(())
    }

    /// Makes everything that needs nothing from the payload: links, empty files, and what kept releases have. What a release
    /// had that was removed meanwhile is wanted from now on.
    pub(super) fn make_kept_and_empty(&mut self, tree: &Path) -> Result<Made, ReceiveError> {
        for (path, target) in &self.links {
            let path = tree.join(path);
            durable::symlink(Path::new(target), &path).map_err(file_error("link", &path))?;
        }
        let contents: Vec<(&Digest, &Content)> =
            self.contents.iter().filter(|(_, content)| !content.is_wanted()).collect();
        let total = Mutex::new((Made::default(), Vec::new()));
        on_all_cores(&contents, |(digest, content)| {
            let made = content.make(**digest, tree)?;
            let (total, gone) = &mut *lock(&total);
            match made {
                Some(made) => {
                    total.linked_bytes += made.linked_bytes;
                    total.copied_bytes += made.copied_bytes;
                }
                None => gone.push(**digest),
            }
            Ok(())
        })?;
        let (total, gone) = into_inner(total);
        for digest in gone {
            if let Some(content) = self.contents.get_mut(&digest) {
                content.kept = None;
            }
        }
        Ok(total)
    }

    /// Returns the parts of the payload that are wanted, in ascending order.
    pub(super) fn wanted_ranges(&self, manifest: &Manifest) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for file in manifest.files() {
            let Body::Regular { sha256, frames, .. } = &file.body else { continue };
            if !self.content(sha256).is_some_and(Content::is_wanted) {
                continue;
            }
            for frame in frames {
                let range = frame.offset..frame.offset + frame.stored;
                match ranges.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    Some(_) | None => ranges.push(range),
                }
            }
        }
        ranges
    }

    /// Returns the content with this digest.
    pub(super) fn content(&self, digest: &Digest) -> Option<&Content> {
        self.contents.get(digest)
    }
}

/// Does `each` with every item, on all cores.
///
/// # Errors
/// The first error of any; no item is begun then.
fn on_all_cores<T: Sync>(
    items: &[T],
    each: impl Fn(&T) -> Result<(), ReceiveError> + Sync,
) -> Result<(), ReceiveError> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = each(item) {
                lock(&failure).get_or_insert(error);
                next.store(items.len(), Ordering::Relaxed);
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(items.len());
    thread::scope(|scope| {
        for _ in 1..workers {
            // Where there is no thread to be had, those that are there do the work.
            if thread::Builder::new().name("refit-share".to_owned()).spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    into_inner(failure).map_or(Ok(()), Err)
}

impl Content {
    /// Makes the files of a content that needs nothing from the payload; `None`, and no file, if the kept one is gone.
    fn make(&self, digest: Digest, tree: &Path) -> Result<Option<Made>, ReceiveError> {
        let mut made = Made::default();
        let Some(kept) = &self.kept else { return self.create(tree).map(|_empty| Some(made)) };
        let Kept { place, looks } = kept;
        for (mode, paths) in &self.files {
            if kept.can_link(*mode) && link_all(&place.path, tree, paths).is_ok() {
                made.linked_bytes += self.size * paths.len() as u64;
                continue;
            }
            let from = match File::open(&place.path) {
                Ok(from) => from,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.unmake(tree)?;
                    return Ok(None);
                }
                Err(source) => return Err(file_error("open", &place.path)(source).into()),
            };
            if self.copy(from, tree, *mode, paths)? {
                made.linked_bytes += self.size;
            } else {
                made.copied_bytes += self.size;
            }
        }
        if !looks_like(looks, &place.path) {
            // It was replaced meanwhile; or only looks so: overlayfs gives a file another inode when it gets another name.
            for (mode, path) in self.files.iter().filter_map(|(mode, paths)| Some((*mode, paths.first()?))) {
                let path = tree.join(path);
                is_whole(&path, digest, self.size, mode).map_err(file_error("share", &path))?;
            }
        }
        Ok(Some(made))
    }

    /// Removes what was made of a content.
    fn unmake(&self, tree: &Path) -> Result<(), ReceiveError> {
        for path in self.files.iter().flat_map(|(_, paths)| paths).map(|path| tree.join(path)) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file_error("remove", &path)(error).into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Copies a kept file with its holes. Returns whether both share their blocks, as some file systems can.
    fn copy(&self, mut from: File, tree: &Path, mode: Mode, paths: &[String]) -> Result<bool, ReceiveError> {
        let Some((first, others)) = paths.split_first() else { return Ok(true) };
        let path = tree.join(first);
        let mut copy = || -> io::Result<bool> {
            let to = durable::create_new(&path, mode.bits())?;
            let shares = rustix::fs::ioctl_ficlone(&to, &from).is_ok();
            if !shares {
                to.set_len(self.size)?;
                let mut buffer = vec![0; COPY_BYTES];
                let mut at = 0;
                while at < self.size {
                    let part = buffer.len().min(usize::try_from(self.size - at).unwrap_or(usize::MAX));
                    from.read_exact(&mut buffer[..part])?;
                    write_with_holes(&to, &buffer[..part], at)?;
                    at += part as u64;
                }
            }
            link_all(&path, tree, others)?;
            Ok(shares)
        };
        Ok(copy().map_err(file_error("copy", &path))?)
    }

    fn can_link(&self, mode: Mode) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.can_link(mode))
    }

    /// Creates the content's files, with their size and permissions and nothing in them, and returns them open.
    pub(super) fn create(&self, tree: &Path) -> Result<Vec<File>, ReceiveError> {
        let mut files = Vec::with_capacity(self.files.len());
        for (mode, paths) in &self.files {
            let Some((first, others)) = paths.split_first() else { continue };
            let path = tree.join(first);
            let create = || -> io::Result<File> {
                let file = durable::create_new(&path, mode.bits())?;
                file.set_len(self.size)?;
                link_all(&path, tree, others)?;
                Ok(file)
            };
            files.push(create().map_err(file_error("make", &path))?);
        }
        Ok(files)
    }
}

/// Returns whether the file at `path` looks as it did when it was checked. Its time of change is another since it has
/// another name.
fn looks_like(looks: &Metadata, path: &Path) -> bool {
    let of =
        |found: &Metadata| (found.dev(), found.ino(), found.mode(), found.len(), found.mtime(), found.mtime_nsec());
    fs::symlink_metadata(path).is_ok_and(|found| of(&found) == of(looks))
}

/// Makes sure that the file at `path` holds the content `digest` and has the permissions `mode`.
fn is_whole(path: &Path, digest: Digest, size: u64, mode: Mode) -> io::Result<()> {
    let file = File::open(path)?;
    if has_mode(&file.metadata()?, mode) && Digest::of_reader(file)? == (digest, size) {
        Ok(())
    } else {
        Err(io::Error::other("it changed after it was checked"))
    }
}

/// Gives `from` the names `paths`; those that were made are gone again when one fails.
fn link_all(from: &Path, tree: &Path, paths: &[String]) -> io::Result<()> {
    let mut made: Vec<PathBuf> = Vec::new();
    for path in paths {
        let path = tree.join(path);
        if let Err(error) = durable::hard_link(from, &path) {
            for path in made {
                fs::remove_file(path)?;
            }
            return Err(error);
        }
        made.push(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::Store;

    #[test]
    fn what_is_removed_before_it_is_shared_is_wanted() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::init(home.path()).unwrap();
        let (kept, tree) = (home.path().join("kept"), tempfile::tempdir_in(home.path()).unwrap());
        durable::write_new(&kept, b"content", 0o444).unwrap();
        let digest = Digest::of(b"content");
        let mode = Mode::new(0o444).unwrap();
        let files = vec![(mode, vec!["one".to_owned(), "other".to_owned()])];
        let content = Content { size: 7, holes: 0, files, kept: None };
        let mut plan = Plan { contents: HashMap::from([(digest, content)]), links: Vec::new(), directories: 0 };
        let index = ContentIndex::from([(digest, vec![Place { path: kept.clone(), mode }])]);
        plan.find_kept(&index, &store.checked(), &AtomicBool::new(false)).unwrap();
        assert!(!plan.contents[&digest].is_wanted());

        fs::remove_file(&kept).unwrap();
        let made = plan.make_kept_and_empty(tree.path()).unwrap();
        assert_eq!((made.linked_bytes, made.copied_bytes), (0, 0));
        assert!(plan.contents[&digest].is_wanted());
        assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 0);
    }
}
