//! The pipeline from the payload to the files: one reader, the caller's thread; workers that check, decode, write and hash.
//!
//! A frame's stored bytes are checked before they are decoded. What was decoded is hashed file by file, in order: workers
//! take frames in order, so one that waits for its turn waits for a worker that began before it. A file whose digest is
//! not the signed one fails the whole tree, which has no name yet.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::plan::{Content, Plan};
use super::{FrameTrouble, ReceiveError, ReceiveProgress};
use crate::codec::Decoder;
use crate::digest::{Digest, Hasher};
use crate::manifest::{Body, Frame, HOLE_BYTES, Manifest};
use crate::package::Payload;

/// Bytes of all buffers of the pipeline: with manifest and program the whole stays below 32 MiB.
const BUFFER_BYTES_MAX: u64 = 20 << 20;
/// More workers than this write no faster to any disk.
const WORKERS_MAX: usize = 8;
/// Frames that wait for a worker: one, so that no worker waits for the reader.
const QUEUE_FRAMES: usize = 1;

/// One frame on its way to a worker.
struct Job<'a> {
    stored: Vec<u8>,
    frame: &'a Frame,
    /// Where in the file it belongs.
    at: u64,
    target: Arc<Target<'a>>,
}

/// A content that is being written; its files are made by the worker that comes first.
struct Target<'a> {
    path: &'a str,
    content: &'a Content,
    sha256: Digest,
    files: Mutex<Option<Arc<Vec<File>>>>,
    hashed: Mutex<Hashed>,
    moved: Condvar,
}

/// How far the content of a target was hashed.
#[derive(Default)]
struct Hashed {
    hasher: Hasher,
    bytes: u64,
    /// A frame will never be hashed, so nobody waits for its turn any more.
    broken: bool,
}

/// What reader and workers share.
struct Shared {
    failed: AtomicBool,
    error: Mutex<Option<ReceiveError>>,
    /// Buffers that are not in use.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Shared {
    fn fail(&self, error: ReceiveError) {
        // The first failure is the cause; those after it are mostly its consequences.
        lock(&self.error).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }
}

/// Writes every wanted content of `payload` to its files below `tree`. Returns the bytes written.
pub(super) fn unpack<R: Read>(
    payload: &mut Payload<R>,
    manifest: &Manifest,
    plan: &Plan,
    tree: &Path,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(ReceiveProgress),
) -> Result<u64, ReceiveError> {
    let shared = Shared { failed: AtomicBool::new(false), error: Mutex::new(None), buffers: Mutex::new(Vec::new()) };
    let (sender, receiver) = mpsc::sync_channel(QUEUE_FRAMES);
    let receiver = Mutex::new(receiver);
    let written = thread::scope(|scope| {
        let mut workers = Vec::new();
        for number in 0..workers_for(manifest) {
            let decoder = Decoder::new(manifest.codec()).map_err(|source| ReceiveError::Start { source })?;
            let worker = thread::Builder::new().name(format!("refit-unpack-{number}"));
            let (shared, receiver) = (&shared, &receiver);
            let worker = worker.spawn_scoped(scope, move || work(decoder, receiver, shared, tree));
            workers.push(worker.map_err(|source| ReceiveError::Start { source })?);
        }
        let read = Reader { payload, shared: &shared, cancel, progress }.read(manifest, plan, |job| {
            // Fails when no worker is left; the reason is theirs.
            sender.send(job).map_err(|_no_worker| ReceiveError::Lost)
        });
        drop(sender);
        let lost = workers.into_iter().map(|worker| worker.join().is_err()).fold(false, |any, lost| any | lost);
        if lost { Err(ReceiveError::Lost) } else { read }
    });
    match lock(&shared.error).take() {
        Some(error) => Err(error),
        None => written,
    }
}

/// Returns how many workers the machine has use for and the buffers have room for.
fn workers_for(manifest: &Manifest) -> usize {
    let (mut stored_max, mut size_max) = (1, 1);
    for file in manifest.files() {
        if let Body::Regular { frames, .. } = &file.body {
            for frame in frames {
                stored_max = stored_max.max(frame.stored);
                size_max = size_max.max(frame.size);
            }
        }
    }
    let reading = (QUEUE_FRAMES as u64 + 1) * stored_max;
    let affordable = BUFFER_BYTES_MAX.saturating_sub(reading) / (stored_max + size_max);
    let useful = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    usize::try_from(affordable).unwrap_or(useful).clamp(1, useful)
}

struct Reader<'a, R> {
    payload: &'a mut Payload<R>,
    shared: &'a Shared,
    cancel: &'a AtomicBool,
    progress: &'a mut dyn FnMut(ReceiveProgress),
}

impl<R: Read> Reader<'_, R> {
    fn read<'m>(
        self,
        manifest: &'m Manifest,
        plan: &'m Plan,
        mut send: impl FnMut(Job<'m>) -> Result<(), ReceiveError>,
    ) -> Result<u64, ReceiveError> {
        let (mut written, bytes_total) = (0, manifest.payload_bytes());
        for file in manifest.files() {
            let Body::Regular { sha256, frames, .. } = &file.body else { continue };
            let Some(content) = plan.content(sha256) else { continue };
            if frames.is_empty() {
                continue;
            }
            let wanted = content.is_wanted();
            let target = Arc::new(Target {
                path: &file.path,
                content,
                sha256: *sha256,
                files: Mutex::new(None),
                hashed: Mutex::new(Hashed::default()),
                moved: Condvar::new(),
            });
            let mut at = 0;
            for frame in frames {
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(ReceiveError::Cancelled);
                }
                if self.shared.failed.load(Ordering::Acquire) {
                    return Ok(written); // the failure is reported by the one who had it
                }
                if wanted {
                    let mut stored = lock(&self.shared.buffers).pop().unwrap_or_default();
                    stored.reserve_exact(usize::try_from(frame.stored).unwrap_or_default());
                    self.payload.read(frame.stored, &mut stored)?;
                    send(Job { stored, frame, at, target: Arc::clone(&target) })?;
                    written += frame.size * content.files.len() as u64;
                } else {
                    self.payload.skip(frame.stored)?;
                }
                at += frame.size;
                (self.progress)(ReceiveProgress::Unpacking { bytes: self.payload.position(), bytes_total });
            }
        }
        Ok(written)
    }
}

/// Takes frames until there are no more. After a failure they are only taken, so that the reader never waits in vain.
fn work(mut decoder: Decoder, receiver: &Mutex<Receiver<Job<'_>>>, shared: &Shared, tree: &Path) {
    let mut content = Vec::new();
    loop {
        // A statement of its own: the lock is held while waiting for a frame, not while working on it.
        let job = lock(receiver).recv();
        let Ok(job) = job else { return };
        let mut turn = Turn { target: &job.target, done: false };
        if !shared.failed.load(Ordering::Acquire) {
            match write_frame(&mut decoder, &job, &mut content, tree) {
                Ok(()) => turn.done = true,
                Err(error) => shared.fail(error),
            }
        }
        drop(turn);
        lock(&shared.buffers).push(job.stored);
    }
}

/// The duty to hash a frame: without it, those that come after would wait for ever.
struct Turn<'a> {
    target: &'a Target<'a>,
    done: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.done {
            lock(&self.target.hashed).broken = true;
            self.target.moved.notify_all();
        }
    }
}

fn write_frame(decoder: &mut Decoder, job: &Job<'_>, content: &mut Vec<u8>, tree: &Path) -> Result<(), ReceiveError> {
    let trouble = |why| ReceiveError::Frame { path: job.target.path.to_owned(), why };
    check_frame(decoder, job.frame, &job.stored, content).map_err(trouble)?;
    let files = job.target.files(tree)?;
    for file in files.iter() {
        write_with_holes(file, content, job.at).map_err(ReceiveError::disk("write", &tree.join(job.target.path)))?;
    }
    job.target.hash(content, job.at).map_err(trouble)
}

/// Decodes a frame into `content`, if its stored bytes are those that were signed.
pub(crate) fn check_frame(
    decoder: &mut Decoder,
    frame: &Frame,
    stored: &[u8],
    content: &mut Vec<u8>,
) -> Result<(), FrameTrouble> {
    // First of all: the decoder, a large piece of software, only ever sees what the vendor signed.
    if Digest::of(stored) != frame.stored_sha256 {
        return Err(FrameTrouble::Stored);
    }
    let size = usize::try_from(frame.size).map_err(|_too_large| FrameTrouble::Decode)?;
    decoder.decode(stored, size, content).map_err(|_no_frame| FrameTrouble::Decode)
}

impl Target<'_> {
    fn files(&self, tree: &Path) -> Result<Arc<Vec<File>>, ReceiveError> {
        let mut files = lock(&self.files);
        match &*files {
            Some(files) => Ok(Arc::clone(files)),
            None => Ok(Arc::clone(files.insert(Arc::new(self.content.create(tree)?)))),
        }
    }

    /// Adds a frame to the hash of the whole, in its turn; the last one completes it.
    fn hash(&self, content: &[u8], at: u64) -> Result<(), FrameTrouble> {
        let mut hashed = lock(&self.hashed);
        while hashed.bytes != at {
            if hashed.broken {
                return Ok(()); // the failure is reported by the one who had it
            }
            hashed = self.moved.wait(hashed).unwrap_or_else(PoisonError::into_inner);
        }
        hashed.hasher.update(content);
        hashed.bytes += content.len() as u64;
        self.moved.notify_all();
        let whole = hashed.bytes == self.content.size;
        if whole && std::mem::take(&mut hashed.hasher).finish() != self.sha256 {
            return Err(FrameTrouble::Content);
        }
        Ok(())
    }
}

/// Writes `content` at `at` into a file of its final size, but for its holes: those are there already.
fn write_with_holes(file: &File, content: &[u8], at: u64) -> std::io::Result<()> {
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
pub(crate) fn is_hole(piece: &[u8]) -> bool {
    // The first bytes decide nearly always; the rest is compared by the word.
    piece.iter().take(16).all(|byte| *byte == 0) && piece.iter().fold(0, |any, byte| any | byte) == 0
}

/// A panic of another thread is reported when that thread is joined; until then its data is as good as ever.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
