//! From the payload to the files: workers that read, check, decode, write and hash, each a frame at a time.
//!
//! One worker reads at a time, in the order of the payload; whoever has read goes on to the rest while the next one reads.
//! So nobody waits for somebody who hands out work, and what is in flight is one frame for each worker.
//!
//! A frame's stored bytes are checked before they are decoded. What was decoded is hashed file by file, in order: workers
//! take frames in order, so one that waits for its turn waits for a worker that began before it. A file whose digest is
//! not the signed one fails the whole tree, which has no name yet.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use refit_base::{file_error, into_inner, lock, wait};

use super::holes::write_with_holes;
use super::plan::{Content, Plan};
use super::{FrameProblem, PayloadError, ReceiveError, ReceiveProgress};
use crate::codec::Decoder;
use crate::digest::{Digest, Hasher};
use crate::durable;
use crate::manifest::{Body, FileEntry, Frame, Manifest};
use crate::package::Payload;

/// Bytes of all buffers, which is what bounds the workers of a machine with many cores: an appliance that receives, with
/// manifest and program, stays below 32 MiB.
const BUFFER_BYTES_MAX: u64 = 10 << 20;
/// More workers than this write no faster to any disk.
const WORKERS_MAX: usize = 8;

/// A frame that was read.
struct Job<'m> {
    frame: &'m Frame,
    /// Where in the file it belongs.
    at: u64,
    target: Arc<Target<'m>>,
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

/// The first failure of any worker: those after it are mostly its consequences.
#[derive(Default)]
struct Failure {
    failed: AtomicBool,
    error: Mutex<Option<ReceiveError>>,
}

impl Failure {
    fn report(&self, error: ReceiveError) {
        lock(&self.error).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    fn is_there(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// Writes every wanted content of `payload` to its files below `tree`. Returns the bytes written.
pub(super) fn unpack<R: Read + Send>(
    payload: &mut Payload<R>,
    manifest: &Manifest,
    plan: &Plan,
    tree: &Path,
    cancel: &AtomicBool,
    progress: &mut (dyn FnMut(ReceiveProgress) + Send),
) -> Result<u64, ReceiveError> {
    let failure = Failure::default();
    let bytes_total = manifest.payload_bytes();
    let frames = Frames {
        payload,
        plan,
        files: manifest.files().iter(),
        open: None,
        cancel,
        progress,
        bytes_total,
        written: 0,
        broken: false,
    };
    let frames = Mutex::new(frames);
    thread::scope(|scope| {
        let mut others = Vec::new();
        let start = |source| ReceiveError::Start { source };
        let decoder = || Decoder::new(manifest.codec()).map_err(start);
        for number in 1..workers_for(manifest) {
            let (decoder, worker) = (decoder()?, thread::Builder::new().name(format!("refit-unpack-{number}")));
            let (frames, failure) = (&frames, &failure);
            match worker.spawn_scoped(scope, move || work(decoder, frames, failure, tree)) {
                Ok(worker) => others.push(worker),
                Err(_no_more) => break, // those that are there do the work
            }
        }
        work(decoder()?, &frames, &failure, tree);
        let lost = others.into_iter().map(|worker| worker.join().is_err()).fold(false, |any, lost| any | lost);
        if lost { Err(ReceiveError::Lost) } else { Ok(()) }
    })?;
    match lock(&failure.error).take() {
        Some(error) => Err(error),
        None => Ok(into_inner(frames).written),
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
    let affordable = BUFFER_BYTES_MAX / (stored_max + size_max);
    let useful = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    usize::try_from(affordable).unwrap_or(useful).clamp(1, useful)
}

/// The frames of a payload, one after the other.
struct Frames<'a, 'm, R> {
    payload: &'a mut Payload<R>,
    plan: &'m Plan,
    files: std::slice::Iter<'m, FileEntry>,
    /// The file whose frames come next: where the next one belongs, and those that are left.
    open: Option<(Arc<Target<'m>>, u64, std::slice::Iter<'m, Frame>)>,
    cancel: &'a AtomicBool,
    progress: &'a mut (dyn FnMut(ReceiveProgress) + Send),
    bytes_total: u64,
    written: u64,
    /// Reading failed, so nothing is known about where the payload goes on.
    broken: bool,
}

impl<'m, R: Read> Frames<'_, 'm, R> {
    /// Reads the next frame that is wanted into `stored`; `None` behind the last one, and after an error.
    fn next(&mut self, stored: &mut Vec<u8>) -> Result<Option<Job<'m>>, ReceiveError> {
        if self.broken {
            return Ok(None);
        }
        let job = self.read_next(stored);
        self.broken = job.is_err();
        job
    }

    fn read_next(&mut self, stored: &mut Vec<u8>) -> Result<Option<Job<'m>>, ReceiveError> {
        loop {
            let Some((target, at, frames)) = &mut self.open else {
                let Some(file) = self.files.next() else { return Ok(None) };
                if let Body::Regular { sha256, frames, .. } = &file.body
                    && let Some(content) = self.plan.content(sha256)
                {
                    self.open = Some((Arc::new(Target::new(&file.path, content, *sha256)), 0, frames.iter()));
                }
                continue;
            };
            let Some(frame) = frames.next() else {
                self.open = None;
                continue;
            };
            if self.cancel.load(Ordering::Relaxed) {
                return Err(ReceiveError::Cancelled);
            }
            let job = Job { frame, at: *at, target: Arc::clone(target) };
            *at += frame.size;
            let wanted = job.target.content.is_wanted();
            if wanted {
                stored.clear();
                stored.reserve_exact(usize::try_from(frame.stored).unwrap_or_default());
                self.payload.read(frame.stored, stored)?;
                self.written += frame.size * job.target.content.files.len() as u64;
            } else {
                self.payload.skip(frame.stored)?;
            }
            let bytes = self.payload.position();
            (self.progress)(ReceiveProgress::Unpacking { bytes, bytes_total: self.bytes_total });
            if wanted {
                return Ok(Some(job));
            }
        }
    }
}

/// Takes frames until there are no more, or somebody failed.
fn work<R: Read>(mut decoder: Decoder, frames: &Mutex<Frames<'_, '_, R>>, failure: &Failure, tree: &Path) {
    let (mut stored, mut content) = (Vec::new(), Vec::new());
    while !failure.is_there() {
        // A statement of its own: the lock is held while reading, not while working on what was read.
        let job = lock(frames).next(&mut stored);
        let job = match job {
            Ok(Some(job)) => job,
            Ok(None) => return,
            Err(error) => return failure.report(error),
        };
        let mut turn = Turn { target: &job.target, done: false };
        match write_frame(&mut decoder, &job, &stored, &mut content, tree) {
            Ok(()) => turn.done = true,
            Err(error) => failure.report(error),
        }
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

fn write_frame(
    decoder: &mut Decoder,
    job: &Job<'_>,
    stored: &[u8],
    content: &mut Vec<u8>,
    tree: &Path,
) -> Result<(), ReceiveError> {
    let problem = |why| ReceiveError::Frame { path: job.target.path.to_owned(), why };
    check_frame(decoder, job.frame, stored, content).map_err(problem)?;
    let files = job.target.files(tree)?;
    for file in files.iter() {
        write_with_holes(file, content, job.at).map_err(file_error("write", &tree.join(job.target.path)))?;
    }
    if job.target.hash(content, job.at).map_err(problem)? {
        files.iter().for_each(durable::begin_writeback);
    }
    Ok(())
}

/// Decodes a frame into `content`, if its stored bytes are those that were signed.
fn check_frame(decoder: &mut Decoder, frame: &Frame, stored: &[u8], content: &mut Vec<u8>) -> Result<(), FrameProblem> {
    // First of all: the decoder, a large piece of software, only ever sees what the vendor signed.
    if Digest::of(stored) != frame.stored_sha256 {
        return Err(FrameProblem::Stored);
    }
    let size = usize::try_from(frame.size).map_err(|_too_large| FrameProblem::Decode)?;
    decoder.decode(stored, size, content).map_err(|_no_frame| FrameProblem::Decode)
}

/// Decodes every frame of `payload` and compares what it finds with the manifest. The stored bytes of each frame are given
/// to `keep` right after they were found to be those that were signed: all together they are the payload.
///
/// # Errors
/// The payload is not the one that was signed, or `keep` failed.
pub fn check_payload<R: Read, E: From<PayloadError>>(
    mut payload: Payload<R>,
    manifest: &Manifest,
    mut keep: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut decoder = Decoder::new(manifest.codec()).map_err(|source| PayloadError::Codec { source })?;
    let (mut stored, mut content) = (Vec::new(), Vec::new());
    for file in manifest.files() {
        let Body::Regular { frames, sha256, .. } = &file.body else { continue };
        let problem = |why| PayloadError::Frame { path: file.path.clone(), why };
        let mut whole = Hasher::default();
        for frame in frames {
            payload.read(frame.stored, &mut stored).map_err(PayloadError::from)?;
            check_frame(&mut decoder, frame, &stored, &mut content).map_err(problem)?;
            keep(&stored)?;
            whole.update(&content);
        }
        if !frames.is_empty() && whole.finish() != *sha256 {
            return Err(problem(FrameProblem::Content).into());
        }
    }
    Ok(payload.finish().map_err(PayloadError::from)?)
}

impl<'m> Target<'m> {
    fn new(path: &'m str, content: &'m Content, sha256: Digest) -> Self {
        let (files, hashed) = (Mutex::new(None), Mutex::new(Hashed::default()));
        Self { path, content, sha256, files, hashed, moved: Condvar::new() }
    }

    fn files(&self, tree: &Path) -> Result<Arc<Vec<File>>, ReceiveError> {
        let mut files = lock(&self.files);
        match &*files {
            Some(files) => Ok(Arc::clone(files)),
            None => Ok(Arc::clone(files.insert(Arc::new(self.content.create(tree)?)))),
        }
    }

    /// Adds a frame to the hash of the whole, in its turn. Returns whether that is complete, and thereby right.
    fn hash(&self, content: &[u8], at: u64) -> Result<bool, FrameProblem> {
        let mut hashed = lock(&self.hashed);
        while hashed.bytes != at {
            if hashed.broken {
                return Ok(false); // the failure is reported by the one who had it
            }
            hashed = wait(&self.moved, hashed);
        }
        hashed.hasher.update(content);
        hashed.bytes += content.len() as u64;
        self.moved.notify_all();
        let whole = hashed.bytes == self.content.size;
        if whole && std::mem::take(&mut hashed.hasher).finish() != self.sha256 {
            return Err(FrameProblem::Content);
        }
        Ok(whole)
    }
}
