//! Whether a repository is whole: its metadata, and every file that the metadata leads to. It needs no keys and changes nothing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use jiff::Timestamp;
use refit_base::Chain;
use refit_tuf::document::RootDocument;
use refit_tuf::{METADATA_BYTES_MAX, Target, TufError};
use refit_updater::digest::Digest;
use refit_updater::durable;
use refit_updater::manifest::{Body, MANIFEST_BYTES_MAX, Manifest, ManifestError};
use refit_updater::package::METADATA_DIR;
use refit_updater::repository::{Offer, TARGETS_DIR, payload_path};
use serde::{Serialize, Serializer};

use super::current::{Current, Roots, check_root, read};
use super::{Contents, RepositoryError};

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckProgress {
    /// Bytes of payloads that were read, or need not be.
    pub bytes: u64,
    /// Bytes of all payloads.
    pub bytes_total: u64,
}

/// What a check found.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// What the metadata says.
    #[serde(flatten)]
    pub contents: Contents,
    /// What is wrong, in the order of the metadata and then of the releases; nothing, if the repository is whole.
    pub problems: Vec<Problem>,
}

/// What is wrong with a file of a repository.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// Its path below the repository.
    pub path: String,
    /// What is wrong.
    #[serde(serialize_with = "as_text")]
    pub why: FileProblem,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.path, Chain(&self.why))
    }
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// There is none.
    #[error("is missing")]
    Missing,
    /// It is a directory, or something else that has no content.
    #[error("is no file")]
    NoFile,
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// It is shorter or longer.
    #[error("has {found} bytes, {signed} were signed")]
    Length {
        /// Bytes it has.
        found: u64,
        /// Bytes that were signed.
        signed: u64,
    },
    /// It is another.
    #[error("differs from what was signed")]
    Content(#[source] TufError),
    /// A frame is another.
    #[error("differs from what was signed, in the {length} bytes from {offset} on")]
    Frame {
        /// Where the frame begins.
        offset: u64,
        /// How long it is.
        length: u64,
    },
    /// It was signed, and no appliance takes it.
    #[error("is no manifest that an appliance takes")]
    Manifest(#[source] ManifestError),
    /// It was signed, and has programs that an update should run: no appliance takes it.
    #[error("has {0:?}, and no appliance runs hooks")]
    Hooks(String),
    /// It was signed for another release than its name says.
    #[error("is listed as a release that it is not")]
    Misnamed,
    /// It is past its date.
    #[error("expired at {0}")]
    Expired(Timestamp),
    /// It is no link of the chain of roots.
    #[error("does not belong to the chain of roots")]
    Root(#[source] TufError),
}

fn as_text<S: Serializer>(why: &FileProblem, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Chain(why))
}

/// Checks the repository in `dir`: that `root`, or one that follows it, vouches for its metadata, that nothing is past its
/// date, that the chain of roots is whole, and that every manifest and every frame of every payload is what was signed.
///
/// # Errors
/// The metadata is not to be trusted, and nothing else can be told. What is wrong with files is in what is returned.
pub fn check(
    dir: &Path,
    root: &[u8],
    now: Timestamp,
    progress: &mut dyn FnMut(CheckProgress),
) -> Result<Checked, RepositoryError> {
    check_root(root)?;
    let current = read(dir, root, Roots::Follow)?;
    let contents = current.contents();
    let bytes_total = contents.releases.iter().map(|release| release.offer.payload_bytes).sum();
    let mut problems = check_roots(dir, current.root.version.get());
    problems.extend(expired(&current, now));
    let mut before = 0;
    for (name, target) in &current.targets.content.targets {
        let offer = Offer::of(name, target);
        progress(CheckProgress { bytes: before, bytes_total });
        let mut within = 0;
        problems.extend(check_target(dir, name, target, offer.as_ref(), &mut |bytes| {
            within += bytes;
            progress(CheckProgress { bytes: before + within, bytes_total });
        }));
        before += offer.map_or(0, |offer| offer.payload_bytes);
    }
    progress(CheckProgress { bytes: bytes_total, bytes_total });
    Ok(Checked { contents, problems })
}

/// Returns what is wrong with the roots up to the newest: an appliance may trust any of them, and goes on from there.
fn check_roots(dir: &Path, newest: u64) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut before: Option<RootDocument> = None;
    for number in 1..=newest {
        let name = format!("{number}.root.json");
        let path = format!("{METADATA_DIR}{name}");
        let link = |bytes: Vec<u8>| {
            let root = RootDocument::verify_root(&name, &bytes)?;
            if root.version.get() != number {
                return Err(TufError::Version { name: name.clone(), expected: number, found: root.version.get() });
            }
            before.as_ref().map_or(Ok(()), |before| before.signs_root(&name, &root))?;
            Ok(root)
        };
        let read = durable::read_limited(&dir.join(&path), METADATA_BYTES_MAX).map_err(unread);
        match read.and_then(|bytes| link(bytes).map_err(FileProblem::Root)) {
            Ok(root) => before = Some(root),
            Err(why) => {
                problems.push(Problem { path, why });
                before = None;
            }
        }
    }
    problems
}

fn expired(current: &Current, now: Timestamp) -> Vec<Problem> {
    [
        (format!("{}.root.json", current.root.version), current.root.expires),
        ("timestamp.json".to_owned(), current.timestamp_expires),
        (format!("{}.snapshot.json", current.snapshot.version), current.snapshot.expires),
        (format!("{}.targets.json", current.targets.version), current.targets.expires),
    ]
    .into_iter()
    .filter(|(_, expires)| *expires <= now)
    .map(|(name, expires)| Problem { path: format!("{METADATA_DIR}{name}"), why: FileProblem::Expired(expires) })
    .collect()
}

/// Returns what is wrong with the files of one release.
fn check_target(
    dir: &Path,
    name: &str,
    target: &Target,
    offer: Option<&Offer>,
    read: &mut dyn FnMut(u64),
) -> Vec<Problem> {
    let (Some(path), Some(payload)) = (target.consistent_path(name), payload_path(name, target)) else {
        return vec![Problem { path: format!("{TARGETS_DIR}{name}"), why: FileProblem::Misnamed }];
    };
    let path = format!("{TARGETS_DIR}{path}");
    let found = open(&dir.join(&path), target.length).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(MANIFEST_BYTES_MAX).read_to_end(&mut bytes).map_err(unread)?;
        target.check(name, &bytes).map_err(FileProblem::Content)?;
        Manifest::parse(&bytes).map_err(FileProblem::Manifest)
    });
    match found {
        // Without it nobody can say what the payload must be: only whether there is one of the length that is listed.
        Err(why) => {
            let length = offer.map(|offer| offer.payload_bytes);
            let other = length.and_then(|length| open(&dir.join(&payload), length).err());
            let other = other.map(|why| Problem { path: payload, why });
            [Problem { path, why }].into_iter().chain(other).collect()
        }
        Ok(manifest) => {
            let is_named = offer.is_some_and(|offer| {
                let (appliance, version, arch) = (manifest.appliance(), manifest.version(), manifest.arch());
                offer.appliance == appliance && offer.version == *version && offer.arch == arch
            });
            let misnamed = (!is_named).then(|| Problem { path: path.clone(), why: FileProblem::Misnamed });
            let hooks = manifest.hook().map(|hook| FileProblem::Hooks(hook.to_owned()));
            let hooks = hooks.map(|why| Problem { path: path.clone(), why });
            let why = payload_problem(&dir.join(&payload), &manifest, read);
            misnamed.into_iter().chain(hooks).chain(why.map(|why| Problem { path: payload, why })).collect()
        }
    }
}

/// Returns what is wrong with the payload at `path`. Every byte of it is read, and counted by `read`.
///
/// Frames are not decoded: they are byte for byte what was decoded before it was signed.
pub(super) fn payload_problem(path: &Path, manifest: &Manifest, read: &mut dyn FnMut(u64)) -> Option<FileProblem> {
    compare_payload(path, manifest, read).err()
}

fn compare_payload(path: &Path, manifest: &Manifest, read: &mut dyn FnMut(u64)) -> Result<(), FileProblem> {
    let mut file = open(path, manifest.payload_bytes())?;
    let (mut offset, mut stored) = (0, Vec::new());
    for file_entry in manifest.files() {
        let Body::Regular { frames, .. } = &file_entry.body else { continue };
        for frame in frames {
            stored.clear();
            (&mut file).take(frame.stored).read_to_end(&mut stored).map_err(unread)?;
            if Digest::of(&stored) != frame.stored_sha256 {
                return Err(FileProblem::Frame { offset, length: frame.stored });
            }
            offset += frame.stored;
            read(frame.stored);
        }
    }
    Ok(())
}

/// Opens a file that must have this length.
fn open(path: &Path, signed: u64) -> Result<File, FileProblem> {
    // Before it is opened: a pipe would have whoever opens it wait.
    let metadata = fs::metadata(path).map_err(unread)?;
    if !metadata.is_file() {
        return Err(FileProblem::NoFile);
    }
    let found = metadata.len();
    if found == signed { File::open(path).map_err(unread) } else { Err(FileProblem::Length { found, signed }) }
}

fn unread(error: io::Error) -> FileProblem {
    if error.kind() == io::ErrorKind::NotFound { FileProblem::Missing } else { FileProblem::Read(error) }
}
