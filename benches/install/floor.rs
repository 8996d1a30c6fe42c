//! What no installation can do without: decode, hash, write, sync, on all cores and with the libraries that Refit uses.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use refit_author::inspect::inspect;
use refit_updater::Digest;
use refit_updater::durable::FileSystem;
use refit_updater::manifest::Body;

use crate::{BenchError, failed, refit_failed};

/// Writes what the floor must know about a package into the file `list`: a line for each frame.
pub(crate) fn list(package: &Path, list: &Path) -> Result<(), BenchError> {
    let found = inspect(package, None, false, jiff::Timestamp::UNIX_EPOCH).map_err(refit_failed("read the package"))?;
    let manifest = &found.manifest;
    let payload = found.payload_begin();
    let mut text = String::new();
    for directory in manifest.directories() {
        text.push_str(&format!("0 0 0 0 {}\n", directory.path));
    }
    for file in manifest.files() {
        let Body::Regular { frames, .. } = &file.body else { continue };
        let mut at = 0;
        for frame in frames {
            text.push_str(&format!("{} {} {} {at} {}\n", payload + frame.offset, frame.stored, frame.size, file.path));
            at += frame.size;
        }
    }
    File::create(list).and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed("write the list"))
}

struct Frame<'a> {
    offset: u64,
    stored: usize,
    size: usize,
    at: u64,
    path: &'a str,
}

/// Unpacks `package` into the directory `to`.
pub(crate) fn unpack(package: &Path, list: &Path, to: &Path) -> Result<(), BenchError> {
    let text = fs::read_to_string(list).map_err(failed("read the list"))?;
    let package = File::open(package).map_err(failed("open the package"))?;
    fs::create_dir(to).map_err(failed("make a directory"))?;
    let file_system = FileSystem::of(to).map_err(failed("open a directory"))?;
    let mut frames = Vec::new();
    for line in text.lines() {
        let mut words = line.splitn(5, ' ');
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        let (offset, stored, size, at) = (number(), number() as usize, number() as usize, number());
        let path = words.next().unwrap_or_default();
        if stored == 0 {
            fs::create_dir(to.join(path)).map_err(failed("make a directory"))?;
        } else {
            frames.push(Frame { offset, stored, size, at, path });
        }
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), BenchError> {
        let mut decoder = zstd::bulk::Decompressor::new().map_err(failed("make a decoder"))?;
        let (mut stored, mut content) = (Vec::new(), Vec::new());
        while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
            stored.resize(frame.stored, 0);
            content.resize(frame.size, 0);
            package.read_exact_at(&mut stored, frame.offset).map_err(failed("read the package"))?;
            decoder.decompress_to_buffer(&stored, content.as_mut_slice()).map_err(failed("decode a frame"))?;
            std::hint::black_box(Digest::of(&content));
            let file = File::options().write(true).create(true).truncate(false).open(to.join(frame.path));
            file.and_then(|file| file.write_all_at(&content, frame.at)).map_err(failed("write a file"))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(done) => done,
            Err(_panicked) => Err(BenchError::Figures("nothing".to_owned())),
        })
    })?;
    file_system.sync().map_err(failed("sync"))
}
