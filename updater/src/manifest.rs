//! What a release holds, as data: the `manifest.json` of a package and of an installed release.
//!
//! A [`Manifest`] has been checked: [`Manifest::parse`] and [`Manifest::new`] are the only ways to one, and both end in the
//! one validation (`manifest/check.rs`), which refuses every name, mode and number that must never reach a disk. What
//! signed it is another question: see [`crate::trust`].

mod changes;
mod check;
mod totals;

use std::collections::HashMap;
use std::fmt;

use semver::Version;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

pub use changes::Changes;
pub use check::ManifestError;
pub use totals::{KindTotals, Totals};

/// The manifest format this crate reads and writes.
pub const FORMAT: u64 = 1;
/// Where the manifest lies in an installed release.
pub const INSTALLED_PATH: &str = ".refit/manifest.json";
/// The directory of a release that belongs to Refit itself; no package may fill it.
pub const RESERVED_DIR: &str = ".refit";
/// The architecture of a package that holds no native code and so fits every machine.
pub const ARCH_ANY: &str = "any";
/// Permissions of the directories that are Refit's own in a release, and of its top.
pub(crate) const DIR_MODE: u32 = 0o555;
/// The field of the signed metadata that dates the release.
pub const RELEASED: &str = "released";

/// The manifest is held in memory while a package streams by; some 30,000 files fit.
pub const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Files and directories together; more would not fit in the bytes above.
pub const ENTRIES_MAX: usize = 100_000;
/// What a release may unpack to: the largest appliance images in use stay well below.
pub const INSTALLED_BYTES_MAX: u64 = 16 << 30;
/// Below the 8 GiB that a size field of a plain tar header can say.
pub const PAYLOAD_BYTES_MAX: u64 = 7 << 30;
/// Decoded bytes of one frame: what a decoder holds in memory.
pub const FRAME_BYTES_MAX: u64 = 4 << 20;
/// Pieces of a frame of this many bytes, cut from its beginning, that hold nothing but zeros are holes: they are not written.
/// A multiple of every file system's block.
pub const HOLE_BYTES: usize = 64 << 10;
/// Stored bytes of one frame: incompressible content grows a little, never by more than this.
pub const FRAME_STORED_BYTES_MAX: u64 = FRAME_BYTES_MAX + (64 << 10);
/// Bytes of a path in a release, so that the path below any home stays under the kernel's 4096.
pub const PATH_BYTES_MAX: usize = 1024;
/// Bytes of one name in a path: what every file system in use takes.
pub const NAME_BYTES_MAX: usize = 255;
/// Directories above a file.
pub const DEPTH_MAX: usize = 32;
/// Links followed to see where one ends: as many as the kernel follows.
pub const LINK_HOPS_MAX: usize = 40;
/// Bytes of a version: it is the name of a directory, with room for what a work in progress adds to it.
pub const VERSION_BYTES_MAX: usize = 128;
/// Bytes of an appliance's name or an architecture.
pub const LABEL_BYTES_MAX: usize = 64;

/// The entry at the top of a release that is for programs of an update. Refit does not run them, so no release with one is packed
/// or received.
pub const HOOKS: &str = "hooks";

/// How the frames of a payload are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Zstandard: smaller and faster to decode.
    Zstd,
    /// Gzip: readable with the tools of every machine.
    Gzip,
}

/// What a file is for, told by the directory it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A program, below `bin/`.
    Binary,
    /// A library, below `lib/`.
    Library,
    /// A default configuration file, below `config/`.
    Config,
    /// A program below [`HOOKS`]: only in releases that were received before these were refused.
    Hook,
    /// Everything else.
    Asset,
}

impl Kind {
    /// Returns the kind of the file at `path`.
    #[must_use]
    pub fn of(path: &str) -> Self {
        match path.split_once('/') {
            Some(("bin", _)) => Self::Binary,
            Some(("lib", _)) => Self::Library,
            Some(("config", _)) => Self::Config,
            Some((HOOKS, _)) => Self::Hook,
            Some(_) | None => Self::Asset,
        }
    }
}

/// Permission bits, at most 0777; written as octal text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode(u32);

impl Mode {
    /// Returns the mode with these bits, if none is beyond 0777: set-id and sticky bits have no place in a release.
    #[must_use]
    pub fn new(bits: u32) -> Option<Self> {
        (bits <= 0o777).then_some(Self(bits))
    }

    /// Returns the bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Returns the mode an installed file or directory has: this one, without any write permission.
    #[must_use]
    pub fn installed(self) -> Self {
        Self(self.0 & !0o222)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mode({self})")
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let mode = match text.len() {
            4 if text.bytes().all(|byte| byte.is_ascii_digit()) => u32::from_str_radix(&text, 8).ok(),
            _other_length => None,
        };
        mode.and_then(Self::new)
            .ok_or_else(|| serde::de::Error::custom(format_args!("mode {text:?}: \"0000\" to \"0777\" expected")))
    }
}

/// One frame: a piece of a file, compressed by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// Where its stored bytes begin in the payload.
    pub offset: u64,
    /// Stored bytes.
    pub stored: u64,
    /// Digest of the stored bytes: a decoder only ever sees bytes that were signed.
    pub stored_sha256: Digest,
    /// Decoded bytes.
    pub size: u64,
}

/// A file of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Path below the release, with `/` between names.
    pub path: String,
    /// What it is for.
    pub kind: Kind,
    /// What lies there.
    pub body: Body,
}

/// What lies at the path of a [`FileEntry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A regular file.
    Regular {
        /// Permissions as packed; installed, without the write permissions.
        mode: Mode,
        /// Bytes.
        size: u64,
        /// Bytes of it that need no place on the disk: see [`HOLE_BYTES`].
        holes: u64,
        /// Digest of the content.
        sha256: Digest,
        /// The content's frames; empty where an earlier file has the same content, or where there is none.
        frames: Vec<Frame>,
    },
    /// A symbolic link.
    Link {
        /// Where it points, relative to its own directory; never out of the release.
        target: String,
    },
}

/// A directory of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryEntry {
    /// Path below the release.
    pub path: String,
    /// Permissions as packed; installed, without the write permissions.
    pub mode: Mode,
}

/// The checked description of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    format: u64,
    appliance: String,
    version: Version,
    arch: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    requires: Option<Version>,
    codec: Codec,
    payload_bytes: u64,
    installed_bytes: u64,
    directories: Vec<DirectoryEntry>,
    files: Vec<FileEntry>,
}

/// What a manifest says about the release as a whole.
#[derive(Debug, Clone)]
pub struct About {
    /// The model the release is for.
    pub appliance: String,
    /// The release's version.
    pub version: Version,
    /// The machine it is for, or [`ARCH_ANY`].
    pub arch: String,
    /// The oldest release that can update to it.
    pub requires: Option<Version>,
    /// How its frames are compressed.
    pub codec: Codec,
}

/// Returns whether `path`, below a release, is [`HOOKS`] or below it, whatever it is: a directory, a file or a link.
#[must_use]
pub fn is_hook(path: &str) -> bool {
    path.split('/').next() == Some(HOOKS)
}

impl Manifest {
    /// Returns the manifest of a release with these directories and files, each list sorted by path.
    ///
    /// # Errors
    /// Something in it must not be in a release.
    pub fn new(about: About, directories: Vec<DirectoryEntry>, files: Vec<FileEntry>) -> Result<Self, ManifestError> {
        let manifest = Self::unchecked(about, directories, files);
        check::check(&manifest)?;
        Ok(manifest)
    }

    /// Does as [`Manifest::new`] for a release whose contents are not known yet: names, places and links.
    ///
    /// # Errors
    /// One of them must not be in a release.
    pub fn check_names(
        about: About,
        directories: Vec<DirectoryEntry>,
        files: Vec<FileEntry>,
    ) -> Result<(), ManifestError> {
        check::check_names(&Self::unchecked(about, directories, files))
    }

    fn unchecked(about: About, directories: Vec<DirectoryEntry>, files: Vec<FileEntry>) -> Self {
        let (mut payload_bytes, mut installed_bytes) = (0_u64, 0_u64);
        for file in &files {
            if let Body::Regular { size, frames, .. } = &file.body {
                installed_bytes = installed_bytes.saturating_add(*size);
                for frame in frames {
                    payload_bytes = payload_bytes.saturating_add(frame.stored);
                }
            }
        }
        let About { appliance, version, arch, requires, codec } = about;
        Self {
            format: FORMAT,
            appliance,
            version,
            arch,
            requires,
            codec,
            payload_bytes,
            installed_bytes,
            directories,
            files,
        }
    }

    /// Returns the manifest in `bytes`.
    ///
    /// # Errors
    /// The bytes are too many, are no manifest, are of another format, or describe what must not be in a release.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { bytes: bytes.len() as u64 });
        }
        if bytes.is_empty() {
            return Err(ManifestError::Empty);
        }
        let json = |source| ManifestError::Json { source };
        // The number first, alone: another format may have any other field.
        let FormatOnly { format } = serde_json::from_slice(bytes).map_err(json)?;
        if format != FORMAT {
            return Err(ManifestError::Format { format });
        }
        let raw: RawManifest = serde_json::from_slice(bytes).map_err(json)?;
        let manifest = Self {
            format,
            appliance: raw.appliance,
            version: raw.version,
            arch: raw.arch,
            requires: raw.requires,
            codec: raw.codec,
            payload_bytes: raw.payload_bytes,
            installed_bytes: raw.installed_bytes,
            directories: raw.directories,
            files: raw.files.into_iter().map(FileEntry::try_from).collect::<Result<_, _>>()?,
        };
        check::check(&manifest)?;
        Ok(manifest)
    }

    /// Returns the first path of the release that is [`HOOKS`], or below it: a file if there is one, or else the directory.
    #[must_use]
    pub fn hook(&self) -> Option<&str> {
        let files = self.files.iter().map(|file| file.path.as_str());
        files.chain(self.directories.iter().map(|directory| directory.path.as_str())).find(|path| is_hook(path))
    }

    /// Returns the manifest's bytes: indented JSON, the same for the same manifest.
    ///
    /// # Errors
    /// They would be more than a manifest may have.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|source| ManifestError::Json { source })?;
        bytes.push(b'\n');
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { bytes: bytes.len() as u64 });
        }
        Ok(bytes)
    }

    /// Returns the model the release is for.
    #[must_use]
    pub fn appliance(&self) -> &str {
        &self.appliance
    }

    /// Returns the release's version.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Returns the machine the release is for, as `std::env::consts::ARCH` names it, or [`ARCH_ANY`].
    #[must_use]
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// Returns the oldest release that can update to this one.
    #[must_use]
    pub fn requires(&self) -> Option<&Version> {
        self.requires.as_ref()
    }

    /// Returns how the frames are compressed.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns the length of the payload.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Returns the bytes of all files, unpacked.
    #[must_use]
    pub fn installed_bytes(&self) -> u64 {
        self.installed_bytes
    }

    /// Returns every directory, sorted by path: a parent before what is in it.
    #[must_use]
    pub fn directories(&self) -> &[DirectoryEntry] {
        &self.directories
    }

    /// Returns every file, sorted by path.
    #[must_use]
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// Returns the file at `path`.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&FileEntry> {
        let index = self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        self.files.get(index)
    }

    /// Returns the content of every distinct digest: its size and its frames, in payload order where it has any.
    #[must_use]
    pub fn contents(&self) -> HashMap<Digest, (u64, &[Frame])> {
        let mut contents = HashMap::new();
        for file in &self.files {
            if let Body::Regular { size, sha256, frames, .. } = &file.body {
                contents.entry(*sha256).or_insert((*size, frames.as_slice()));
            }
        }
        contents
    }
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    #[serde(rename = "format")]
    _format: u64,
    appliance: String,
    version: Version,
    arch: String,
    #[serde(default)]
    requires: Option<Version>,
    codec: Codec,
    payload_bytes: u64,
    installed_bytes: u64,
    #[serde(deserialize_with = "entries")]
    directories: Vec<DirectoryEntry>,
    #[serde(deserialize_with = "entries")]
    files: Vec<RawFile>,
}

/// Reads a list of no more than [`ENTRIES_MAX`]: in memory, entries take several times the bytes they have in a manifest.
fn entries<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Entries<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Entries<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = list.next_element()? {
                if entries.len() == ENTRIES_MAX {
                    return Err(serde::de::Error::custom(format_args!("more than {ENTRIES_MAX} entries")));
                }
                entries.push(entry);
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_seq(Entries(std::marker::PhantomData))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    path: String,
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    holes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<Digest>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    frames: Vec<Frame>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl TryFrom<RawFile> for FileEntry {
    type Error = ManifestError;

    fn try_from(raw: RawFile) -> Result<Self, ManifestError> {
        let body = match (raw.mode, raw.size, raw.sha256, raw.link) {
            (Some(mode), Some(size), Some(sha256), None) => {
                Body::Regular { mode, size, holes: raw.holes, sha256, frames: raw.frames }
            }
            (None, None, None, Some(target)) if raw.frames.is_empty() && raw.holes == 0 => Body::Link { target },
            _neither_file_nor_link => return Err(ManifestError::Fields { path: raw.path }),
        };
        Ok(Self { path: raw.path, kind: raw.kind, body })
    }
}

impl Serialize for FileEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (path, kind) = (self.path.clone(), self.kind);
        match &self.body {
            Body::Regular { mode, size, holes, sha256, frames } => RawFile {
                path,
                kind,
                mode: Some(*mode),
                size: Some(*size),
                holes: *holes,
                sha256: Some(*sha256),
                frames: frames.clone(),
                link: None,
            },
            Body::Link { target } => RawFile {
                path,
                kind,
                mode: None,
                size: None,
                holes: 0,
                sha256: None,
                frames: Vec::new(),
                link: Some(target.clone()),
            },
        }
        .serialize(serializer)
    }
}
