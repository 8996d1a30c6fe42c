//! Making a package from a directory, in the same bytes each time.
//!
//! The directory is walked in order of names, every file is hashed, and each content is compressed once, in frames, on all
//! cores; the frames lie in a nameless file until manifest and signatures are known, for those come first. What must not
//! be in a release is refused here already, by the same check that every appliance makes. The package gets its name last:
//! a failed pack leaves nothing.

mod error;
mod examine;
mod parallel;
mod tree;

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use refit_base::file_error;
use refit_updater::codec::Encoder;
use refit_updater::digest::{Digest, Hasher};
use refit_updater::durable;
use refit_updater::manifest::{About, Body, Codec, FileEntry, Frame, HOLE_BYTES, Kind, Manifest, Totals};
use refit_updater::package::{BLOCK_BYTES, END_BYTES, MANIFEST_NAME, PAYLOAD_NAME, filling, header};
use refit_updater::receive::is_hole;
use semver::Version;
use serde::Serialize;

use crate::keys::Keys;

pub use error::PackError;
pub(crate) use error::TAKE_HOOKS_OUT;
pub use examine::{Closed, Examined, Warning, examine};

/// Decoded bytes of a frame. Smaller than a frame may be: it fits a core's cache while it is hashed and written, and even
/// one large file keeps all cores busy.
const FRAME_BYTES: u64 = 1 << 20;
/// Bytes read at a time while a file is hashed.
const READ_BYTES: usize = 256 << 10;
/// A package is for everybody to read: it is signed, not secret.
const PACKAGE_MODE: u32 = 0o644;
/// Links that are followed from one to the next to where a package goes: as many as the kernel follows.
const LINKS_MAX: u32 = 40;
/// The metadata version of a package whose vendor asks for none: see [`refit_updater::trust`].
pub const METADATA_VERSION: u64 = 1;

/// How a package is made.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// How its frames are compressed.
    pub codec: Codec,
    /// How hard; `None` is the codec's own choice.
    pub level: Option<i32>,
    /// The machine it is for, as `std::env::consts::ARCH` names it, or [`refit_updater::manifest::ARCH_ANY`].
    pub arch: String,
    /// When its metadata expires.
    pub expires: Timestamp,
    /// When the release was made: a clock before this is wrong.
    pub released: Timestamp,
    /// The version of its metadata: an appliance that has accepted a package refuses those with a lower one, whatever its
    /// operator says. [`METADATA_VERSION`] unless older packages must become unacceptable.
    pub metadata_version: u64,
}

/// What packing is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackStep {
    /// Files are hashed.
    Hashing,
    /// Contents are compressed.
    Compressing,
}

/// How far packing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PackProgress {
    /// What it is doing.
    pub step: PackStep,
    /// Bytes done in this step.
    pub bytes: u64,
    /// Bytes of this step.
    pub bytes_total: u64,
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackReport {
    /// The model.
    pub appliance: String,
    /// The version.
    pub version: Version,
    /// The machine.
    pub arch: String,
    /// Digest of the manifest: the identity of the release.
    pub digest: Digest,
    /// Files and links.
    pub files: u64,
    /// Bytes of all files, unpacked.
    pub installed_bytes: u64,
    /// Bytes of the compressed contents.
    pub payload_bytes: u64,
    /// Bytes of the package.
    pub package_bytes: u64,
    /// What is in it, in numbers.
    pub totals: Totals,
}

/// Packs the release in `dir` into the package `out`, or the file that the link `out` leads to, signed with `keys`.
///
/// # Errors
/// The directory holds what no release may, is not described by an `appliance.toml`, cannot be read, `out` is there and no
/// file, or the package cannot be signed or written. `out` is what it was.
pub fn pack(
    dir: &Path,
    out: &Path,
    keys: &Keys,
    options: &PackOptions,
    progress: &mut dyn FnMut(PackProgress),
) -> Result<PackReport, PackError> {
    let level = options.level.unwrap_or(options.codec.default_level());
    if !options.codec.levels().contains(&level) {
        return Err(PackError::Level { codec: options.codec, level, levels: options.codec.levels() });
    }
    let out = &destination(out)?;
    let out_dir = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let real = |path: &Path| path.canonicalize().map_err(file_error("find", path));
    if real(out_dir)?.starts_with(real(dir)?) {
        return Err(PackError::OutInside { out: out.to_owned(), dir: dir.to_owned() });
    }
    let description = tree::describe(dir)?;
    let tree = tree::walk(dir)?;
    if let Some(path) = tree.hook() {
        return Err(PackError::Hooks { dir: dir.to_owned(), path });
    }
    let about = About {
        appliance: description.name,
        version: description.version,
        arch: options.arch.clone(),
        requires: description.requires,
        codec: options.codec,
    };
    // What is refused for its name is refused now, and not after minutes of compressing.
    Manifest::check_names(about.clone(), tree.directories.clone(), tree.names())?;
    let hashed = hash_files(tree.files, progress)?;

    let mut spool = tempfile::tempfile_in(out_dir).map_err(file_error("make a file in", out_dir))?;
    let files = compress(&hashed, &mut spool, out_dir, options.codec, level, progress)?;
    let mut entries: Vec<FileEntry> = files;
    entries.extend(tree.links);
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    let manifest = Manifest::new(about, tree.directories, entries)?;
    let manifest_bytes = manifest.to_bytes()?;
    let metadata = keys.sign_package(&manifest_bytes, options.expires, options.released, options.metadata_version)?;

    let temp = tempfile::NamedTempFile::new_in(out_dir).map_err(file_error("make a file in", out_dir))?;
    let mut assemble = || -> io::Result<u64> {
        let mut package = BufWriter::new(temp.as_file());
        for (name, bytes) in &metadata {
            write_entry(&mut package, name, bytes.len() as u64, &mut bytes.as_slice())?;
        }
        let length = manifest_bytes.len() as u64;
        write_entry(&mut package, MANIFEST_NAME, length, &mut manifest_bytes.as_slice())?;
        spool.rewind()?;
        write_entry(&mut package, PAYLOAD_NAME, manifest.payload_bytes(), &mut spool)?;
        package.write_all(&[0; END_BYTES as usize])?;
        package.flush()?;
        temp.as_file().set_permissions(Permissions::from_mode(PACKAGE_MODE))?;
        Ok(temp.as_file().metadata()?.len())
    };
    let package_bytes = assemble().map_err(file_error("write", out))?;
    durable::commit_file(temp, out).map_err(file_error("write", out))?;
    Ok(PackReport {
        appliance: manifest.appliance().to_owned(),
        version: manifest.version().clone(),
        arch: manifest.arch().to_owned(),
        digest: Digest::of(&manifest_bytes),
        files: manifest.files().len() as u64,
        installed_bytes: manifest.installed_bytes(),
        payload_bytes: manifest.payload_bytes(),
        package_bytes,
        totals: manifest.totals(),
    })
}

/// Returns the file that `out` is, or is to become: a link leads to it, and stays.
fn destination(out: &Path) -> Result<PathBuf, PackError> {
    let mut path = out.to_owned();
    for _ in 0..=LINKS_MAX {
        match path.symlink_metadata() {
            Ok(found) if found.is_symlink() => {
                let target = path.read_link().map_err(file_error("read", &path))?;
                path = path.parent().unwrap_or(Path::new(".")).join(target);
            }
            Ok(found) if found.is_file() => return Ok(path),
            Ok(_other) => return Err(PackError::OutType { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(file_error("find", &path)(error).into()),
        }
    }
    Err(file_error("find", out)(io::Error::from(rustix::io::Errno::LOOP)).into())
}

/// A file that was hashed, and how it was then.
struct Hashed {
    source: tree::SourceFile,
    sha256: Digest,
    modified: SystemTime,
}

fn hash_files(files: Vec<tree::SourceFile>, progress: &mut dyn FnMut(PackProgress)) -> Result<Vec<Hashed>, PackError> {
    let (mut bytes, bytes_total) = (0, files.iter().map(|file| file.size).sum());
    let mut digests = Vec::with_capacity(files.len());
    parallel::in_order(
        &files,
        || Ok(vec![0; READ_BYTES]),
        |buffer, file| Ok(hash_file(buffer, file).map_err(file_error("read", &file.path))?),
        |(sha256, size, modified)| {
            bytes += size;
            digests.push((sha256, size, modified));
            progress(PackProgress { step: PackStep::Hashing, bytes, bytes_total });
            Ok(())
        },
    )?;
    files
        .into_iter()
        .zip(digests)
        .map(|(source, (sha256, size, modified))| {
            // The size goes into the manifest, and must be that of what was hashed.
            if size == source.size {
                Ok(Hashed { source, sha256, modified })
            } else {
                Err(PackError::Changed { path: source.path })
            }
        })
        .collect()
}

fn hash_file(buffer: &mut [u8], source: &tree::SourceFile) -> io::Result<(Digest, u64, SystemTime)> {
    use std::io::Read;
    let mut file = File::open(&source.path)?;
    let modified = file.metadata()?.modified()?;
    let (mut hasher, mut size) = (Hasher::new(), 0);
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok((hasher.finish(), size, modified)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// One frame to be made.
struct Job<'a> {
    path: &'a Path,
    /// Which of the entries it belongs to.
    entry: usize,
    /// Digest of the whole content.
    sha256: Digest,
    at: u64,
    size: u64,
}

/// Compresses every content once into `spool` and returns the files' entries with their frames.
fn compress(
    hashed: &[Hashed],
    spool: &mut File,
    out_dir: &Path,
    codec: Codec,
    level: i32,
    progress: &mut dyn FnMut(PackProgress),
) -> Result<Vec<FileEntry>, PackError> {
    let (mut holes, mut jobs) = (HashMap::new(), Vec::new());
    let mut frames: Vec<Vec<Frame>> = Vec::with_capacity(hashed.len());
    for (entry, file) in hashed.iter().enumerate() {
        frames.push(Vec::new());
        if holes.insert(file.sha256, 0).is_none() {
            let mut at = 0;
            while at < file.source.size {
                let size = FRAME_BYTES.min(file.source.size - at);
                jobs.push(Job { path: &file.source.path, entry, sha256: file.sha256, at, size });
                at += size;
            }
        }
    }
    let (mut bytes, bytes_total) = (0, jobs.iter().map(|job| job.size).sum());
    let mut offset = 0;
    let mut spool = BufWriter::with_capacity(READ_BYTES, spool);
    parallel::in_order(
        &jobs,
        || Ok(Encoder::new(codec, level).map_err(file_error("prepare the codec for", out_dir))?),
        |encoder, job| {
            let mut make = || -> io::Result<_> {
                let mut content = vec![0; usize::try_from(job.size).map_err(io::Error::other)?];
                File::open(job.path)?.read_exact_at(&mut content, job.at)?;
                let stored = encoder.encode(&content)?;
                let holes = content.chunks(HOLE_BYTES).filter(|piece| is_hole(piece)).map(|piece| piece.len() as u64);
                Ok((job, holes.sum::<u64>(), Digest::of(&stored), stored))
            };
            Ok(make().map_err(file_error("compress", job.path))?)
        },
        |(job, hole_bytes, stored_sha256, stored)| {
            spool.write_all(&stored).map_err(file_error("write into", out_dir))?;
            let length = stored.len() as u64;
            if let Some(frames) = frames.get_mut(job.entry) {
                frames.push(Frame { offset, stored: length, stored_sha256, size: job.size });
            }
            *holes.entry(job.sha256).or_default() += hole_bytes;
            offset += length;
            bytes += job.size;
            progress(PackProgress { step: PackStep::Compressing, bytes, bytes_total });
            Ok(())
        },
    )?;
    spool.flush().map_err(file_error("write into", out_dir))?;
    let holes = |file: &Hashed| holes.get(&file.sha256).copied().unwrap_or_default();
    hashed.iter().zip(frames).map(|(file, frames)| file_entry(file, holes(file), frames)).collect()
}

fn file_entry(file: &Hashed, holes: u64, frames: Vec<Frame>) -> Result<FileEntry, PackError> {
    let path = &file.source.path;
    let now = path.metadata().map_err(file_error("read", path))?;
    let modified = now.modified().map_err(file_error("read", path))?;
    // What was hashed and what was compressed must be the same.
    if now.len() != file.source.size || modified != file.modified {
        return Err(PackError::Changed { path: path.clone() });
    }
    let (name, mode, size) = (&file.source.name, file.source.mode, file.source.size);
    let body = Body::Regular { mode, size, holes, sha256: file.sha256, frames };
    Ok(FileEntry { path: name.clone(), kind: Kind::of(name), body })
}

fn write_entry(package: &mut impl Write, name: &str, bytes: u64, content: &mut impl io::Read) -> io::Result<()> {
    package.write_all(&header(name, bytes)?)?;
    if io::copy(content, package)? != bytes {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "an entry is shorter than announced"));
    }
    package.write_all(&[0; BLOCK_BYTES][..filling(bytes)])
}

/// Returns the usual name of a package.
#[must_use]
pub fn file_name(appliance: &str, version: &Version) -> PathBuf {
    PathBuf::from(format!("{appliance}-{version}.refit"))
}
