//! The package format: bytes to metadata, manifest and payload, within limits.
//!
//! A package is a plain tar with a fixed order and fixed header fields, so that one package has one spelling: what a
//! header may say is compared with the header this crate itself would write. Nothing here is trusted yet: see
//! [`crate::trust`]. Reading never seeks and holds no more in memory than metadata and manifest.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};
use std::ops::Range;

use refit_base::{Exit, Report, Reported};
use refit_tuf::ROOTS_MAX;

use crate::manifest::{MANIFEST_BYTES_MAX, PAYLOAD_BYTES_MAX};

pub use refit_tuf::METADATA_BYTES_MAX;

/// The unit of a tar.
pub const BLOCK_BYTES: usize = 512;
/// Bytes of the end of a package: two blocks with nothing in them.
pub const END_BYTES: u64 = 2 * BLOCK_BYTES as u64;
/// Bytes of all metadata files of a package: they are held in memory.
pub const METADATA_BYTES_TOTAL_MAX: u64 = 4 << 20;

/// Where a package keeps its metadata.
pub const METADATA_DIR: &str = "metadata/";
/// The manifest's entry, and its name as a target.
pub const MANIFEST_NAME: &str = "manifest.json";
/// The payload's entry.
pub const PAYLOAD_NAME: &str = "payload";

/// Why bytes are no package.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// The source of the bytes failed.
    #[error("the package could not be read to its end")]
    Input {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The first bytes are those of something else.
    #[error("this is no package of refit")]
    NotAPackage,
    /// The bytes end early.
    #[error("the package ends early, within {within}")]
    Truncated {
        /// What was being read.
        within: &'static str,
    },
    /// A header that no package has.
    #[error("the header of entry {name:?} {why}")]
    Header {
        /// The name it gives.
        name: String,
        /// What is wrong with it.
        why: HeaderFault,
    },
    /// An entry that does not belong here.
    #[error("entry {name:?} where {expected} should be")]
    Order {
        /// The entry's name.
        name: String,
        /// What comes here in a package.
        expected: &'static str,
    },
    /// An entry beyond its limit.
    #[error("entry {name:?} has {bytes} bytes, {max} are allowed")]
    TooLarge {
        /// The entry's name.
        name: String,
        /// How many it has.
        bytes: u64,
        /// How many it may have.
        max: u64,
    },
    /// More root files than a package may have.
    #[error("the package has more than {ROOTS_MAX} root files")]
    TooManyRoots,
    /// The bytes that fill up a block are not zero.
    #[error("the filling behind {within} is not empty")]
    Filling {
        /// The entry before it.
        within: &'static str,
    },
    /// The payload is longer or shorter than the manifest says.
    #[error("the payload has {bytes} bytes, the manifest says {manifest}")]
    PayloadLength {
        /// What its header says.
        bytes: u64,
        /// What the manifest says.
        manifest: u64,
    },
    /// Something follows the payload that is not the end of a tar.
    #[error("the package does not end behind its payload")]
    NoEnd,
    /// Bytes behind the end.
    #[error("there are bytes behind the end of the package")]
    Trailing,
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// Its checksum is that of another header.
    #[error("has a wrong checksum")]
    Checksum,
    /// It is not the header of a plain file.
    #[error("is that of {kind}, where only plain files may be")]
    Kind {
        /// What it is the header of.
        kind: &'static str,
    },
    /// Its size is negative, binary or no number.
    #[error("gives no plain size")]
    Size,
    /// Its name is no text.
    #[error("has a name that is not UTF-8")]
    NameText,
    /// Its name is empty, climbs, is absolute or not in its shortest form.
    #[error("has a name that no entry may have")]
    Name,
    /// Something in it is not as every package has it.
    #[error("has permissions, owner, time, spelling or unused bytes that no package has")]
    Fields,
}

impl Reported for PackageError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Input { .. } => {
                Report::new("package_interrupted", Exit::TryLater, "send the package again; nothing was changed")
            }
            Self::NotAPackage => Report::new(
                "not_a_package",
                Exit::Refused,
                "choose a file that `refit pack` has made; nothing was changed",
            ),
            Self::Truncated { .. } => Report::new(
                "package_truncated",
                Exit::Refused,
                "copy or download the package again; nothing was changed",
            ),
            Self::Header { .. }
            | Self::Order { .. }
            | Self::TooLarge { .. }
            | Self::TooManyRoots
            | Self::Filling { .. }
            | Self::PayloadLength { .. }
            | Self::NoEnd
            | Self::Trailing => Report::new(
                "package_malformed",
                Exit::Refused,
                "get the package again from its vendor; nothing was changed",
            ),
        }
    }
}

/// The metadata files of a package, not verified.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    /// Root files by their number, without gaps.
    pub(crate) roots: BTreeMap<u64, Vec<u8>>,
    /// The other files, by name.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Metadata {
    /// Returns the bytes of the oldest root.
    #[must_use]
    pub fn first_root(&self) -> Option<&[u8]> {
        self.roots.values().next().map(Vec::as_slice)
    }

    /// Returns every file's name and bytes.
    pub fn iter(&self) -> impl Iterator<Item = (String, &[u8])> {
        let roots = self.roots.iter().map(|(number, bytes)| (format!("{number}.root.json"), bytes.as_slice()));
        roots.chain(self.files.iter().map(|(name, bytes)| (name.clone(), bytes.as_slice())))
    }
}

/// A package that is being read: the payload is still to come.
#[derive(Debug)]
pub struct Package<R> {
    input: R,
    skip: Skip<R>,
    metadata: Metadata,
    manifest: Vec<u8>,
}

/// What an entry is, told by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Root(u64),
    Timestamp,
    Snapshot,
    Targets,
    Manifest,
    Payload,
}

impl Part {
    fn of(name: &str) -> Option<Self> {
        let Some(file) = name.strip_prefix(METADATA_DIR) else {
            return match name {
                MANIFEST_NAME => Some(Self::Manifest),
                PAYLOAD_NAME => Some(Self::Payload),
                _other => None,
            };
        };
        let (number, role) = match file.split_once('.') {
            Some((number, role)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                // Written without leading zeros, or the same file would have many names.
                if number.starts_with('0') {
                    return None;
                }
                (Some(number.parse().ok()?), role)
            }
            Some(_) | None => (None, file),
        };
        match (role, number) {
            ("root.json", Some(number)) => Some(Self::Root(number)),
            ("timestamp.json", None) => Some(Self::Timestamp),
            ("snapshot.json", _) => Some(Self::Snapshot),
            ("targets.json", _) => Some(Self::Targets),
            (_other, _) => None,
        }
    }

    /// Whether `next` may follow this part.
    fn precedes(self, next: Self) -> bool {
        match self {
            Self::Root(number) => next == Self::Timestamp || number.checked_add(1).map(Self::Root) == Some(next),
            Self::Timestamp => next == Self::Snapshot,
            Self::Snapshot => next == Self::Targets,
            Self::Targets => next == Self::Manifest,
            Self::Manifest => next == Self::Payload,
            Self::Payload => false,
        }
    }

    fn successor(self) -> &'static str {
        match self {
            Self::Root(_) => "the next root or timestamp.json",
            Self::Timestamp => "snapshot.json",
            Self::Snapshot => "targets.json",
            Self::Targets => "manifest.json",
            Self::Manifest => "payload",
            Self::Payload => "the end",
        }
    }
}

impl<R: Read + Seek> Package<R> {
    /// Reads metadata and manifest of a package in a file; what is not wanted of the payload is not read.
    ///
    /// # Errors
    /// As [`Package::open`].
    pub fn open_file(input: R) -> Result<Self, PackageError> {
        Self::open_by(input, seek_past)
    }
}

impl<R: Read> Package<R> {
    /// Reads metadata and manifest.
    ///
    /// # Errors
    /// The bytes are not those of a package, or could not be read.
    pub fn open(input: R) -> Result<Self, PackageError> {
        Self::open_by(input, read_past)
    }

    fn open_by(mut input: R, skip: Skip<R>) -> Result<Self, PackageError> {
        let mut metadata = Metadata::default();
        let (mut before, mut total) = (None, 0_u64);
        loop {
            let entry = read_header(&mut input, before.is_none())?;
            let part = Part::of(&entry.name);
            let expected = before.map_or("the first root", Part::successor);
            let part = match (part, before) {
                (Some(part @ Part::Root(_)), None) => part,
                (Some(part), Some(before)) if before.precedes(part) => part,
                (_misplaced, _) => return Err(PackageError::Order { name: entry.name, expected }),
            };
            before = Some(part);
            if part == Part::Manifest {
                check_size(&entry, MANIFEST_BYTES_MAX)?;
                let manifest = read_entry(&mut input, &entry, "manifest.json")?;
                return Ok(Self { input, skip, metadata, manifest });
            }
            check_size(&entry, METADATA_BYTES_MAX)?;
            total = total.saturating_add(entry.bytes);
            if total > METADATA_BYTES_TOTAL_MAX {
                return Err(PackageError::TooLarge { name: entry.name, bytes: total, max: METADATA_BYTES_TOTAL_MAX });
            }
            let bytes = read_entry(&mut input, &entry, "the metadata")?;
            if let Part::Root(number) = part {
                metadata.roots.insert(number, bytes);
                if metadata.roots.len() > ROOTS_MAX {
                    return Err(PackageError::TooManyRoots);
                }
            } else {
                let name = entry.name.strip_prefix(METADATA_DIR).unwrap_or(&entry.name).to_owned();
                metadata.files.insert(name, bytes);
            }
        }
    }

    /// Returns the metadata files.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns the manifest's bytes.
    #[must_use]
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// Returns how many bytes of the package lie before the entry of the payload.
    #[must_use]
    pub fn bytes_before_payload(&self) -> u64 {
        let metadata = self.metadata.roots.values().chain(self.metadata.files.values());
        metadata.chain([&self.manifest]).map(|bytes| entry_bytes(bytes.len() as u64)).sum()
    }

    /// Goes on to the payload, which must have the length that the manifest says.
    ///
    /// # Errors
    /// Something else follows the manifest.
    pub fn into_payload(mut self, payload_bytes: u64) -> Result<Payload<R>, PackageError> {
        let entry = read_header(&mut self.input, false)?;
        if Part::of(&entry.name) != Some(Part::Payload) {
            return Err(PackageError::Order { name: entry.name, expected: PAYLOAD_NAME });
        }
        check_size(&entry, PAYLOAD_BYTES_MAX)?;
        if entry.bytes != payload_bytes {
            return Err(PackageError::PayloadLength { bytes: entry.bytes, manifest: payload_bytes });
        }
        Ok(Payload { input: self.input, bytes: payload_bytes, read: 0, skip: self.skip, announce: None })
    }
}

/// The payload of a package, read from its beginning to its end.
#[derive(Debug)]
pub struct Payload<R> {
    input: R,
    bytes: u64,
    read: u64,
    skip: Skip<R>,
    /// How it is told what is wanted, if it is a payload by itself and not the end of a package.
    announce: Option<Announce<R>>,
}

/// Passes over bytes of an input. Returns how many there were.
type Skip<R> = fn(&mut R, u64) -> io::Result<u64>;

/// Tells an input which of its parts are wanted.
type Announce<R> = fn(&mut R, Vec<Range<u64>>);

fn read_past<R: Read>(input: &mut R, bytes: u64) -> io::Result<u64> {
    io::copy(&mut input.take(bytes), &mut io::sink())
}

/// As [`read_past`]; that a file ends before is found by who reads on.
fn seek_past<R: Read + Seek>(input: &mut R, bytes: u64) -> io::Result<u64> {
    let Ok(offset) = i64::try_from(bytes) else { return read_past(input, bytes) };
    match input.seek_relative(offset) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotSeekable => read_past(input, bytes), // the path of a pipe
        Err(error) => Err(error),
    }
}

/// A payload by itself, of which any part can be had.
pub trait Ranged: Read {
    /// Is told, before the first byte is read, which parts will be: in ascending order.
    fn announce(&mut self, wanted: Vec<Range<u64>>);

    /// Passes over the next `bytes`.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

impl<R: Ranged> Payload<R> {
    /// Returns the payload that `input` is, of `bytes`.
    pub(crate) fn of_ranges(input: R, bytes: u64) -> Self {
        let skip = |input: &mut R, bytes| input.skip(bytes).map(|()| bytes);
        Self { input, bytes, read: 0, skip, announce: Some(R::announce) }
    }
}

impl<R: Read> Payload<R> {
    /// Reads the next `bytes` into `buffer`, replacing what it held.
    ///
    /// # Errors
    /// The package ends early, or could not be read.
    pub fn read(&mut self, bytes: u64, buffer: &mut Vec<u8>) -> Result<(), PackageError> {
        buffer.clear();
        let left = self.bytes - self.read;
        if bytes > left {
            return Err(PackageError::Truncated { within: PAYLOAD_NAME });
        }
        read_into(&mut self.input, bytes, buffer, PAYLOAD_NAME)?;
        self.read += bytes;
        Ok(())
    }

    /// Says which parts will be read, in ascending order: the others need not be had.
    pub(crate) fn announce(&mut self, wanted: Vec<Range<u64>>) {
        if let Some(announce) = self.announce {
            announce(&mut self.input, wanted);
        }
    }

    /// Passes over the next `bytes`.
    ///
    /// # Errors
    /// As [`Payload::read`].
    pub fn skip(&mut self, bytes: u64) -> Result<(), PackageError> {
        if bytes > self.bytes - self.read {
            return Err(PackageError::Truncated { within: PAYLOAD_NAME });
        }
        let skipped = (self.skip)(&mut self.input, bytes).map_err(|source| PackageError::Input { source })?;
        self.read += skipped;
        if skipped == bytes { Ok(()) } else { Err(PackageError::Truncated { within: PAYLOAD_NAME }) }
    }

    /// Returns how many bytes were read or skipped.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.read
    }

    /// Reads the end of the package, behind the last byte of the payload.
    ///
    /// # Errors
    /// A part of the payload was not read, or the package does not end where it should.
    pub fn finish(mut self) -> Result<(), PackageError> {
        if self.read != self.bytes {
            return Err(PackageError::PayloadLength { bytes: self.bytes, manifest: self.read });
        }
        if self.announce.is_some() {
            return Ok(()); // a file by itself has no end that could be wrong: what was wanted of it was checked
        }
        read_filling(&mut self.input, self.bytes, PAYLOAD_NAME)?;
        let mut end = Vec::new();
        read_into(&mut self.input, END_BYTES, &mut end, "its end")?;
        if end.iter().any(|byte| *byte != 0) {
            return Err(PackageError::NoEnd);
        }
        let mut more = Vec::new();
        (&mut self.input).take(1).read_to_end(&mut more).map_err(|source| PackageError::Input { source })?;
        if more.is_empty() { Ok(()) } else { Err(PackageError::Trailing) }
    }
}

struct Entry {
    name: String,
    bytes: u64,
}

/// Returns the header that a package has for the entry `name` with `bytes`.
///
/// # Errors
/// The name does not fit a header.
pub fn header(name: &str, bytes: u64) -> io::Result<[u8; BLOCK_BYTES]> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// Returns how many bytes of a package an entry with `bytes` takes: its header, its content, and what fills up its last block.
#[must_use]
pub fn entry_bytes(bytes: u64) -> u64 {
    BLOCK_BYTES as u64 + bytes + filling(bytes) as u64
}

/// Returns how many bytes fill up the last block of an entry with `bytes`.
#[must_use]
pub fn filling(bytes: u64) -> usize {
    let block = BLOCK_BYTES as u64;
    usize::try_from((block - bytes % block) % block).unwrap_or(0)
}

fn read_header(input: &mut impl Read, first: bool) -> Result<Entry, PackageError> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    match read_into(input, BLOCK_BYTES as u64, &mut block, "a header") {
        Err(PackageError::Truncated { .. }) if first => return Err(PackageError::NotAPackage),
        other => other?,
    }
    let header = tar::Header::from_byte_slice(&block);
    let path = header.path_bytes();
    let name = String::from_utf8_lossy(&path).into_owned();
    match check_header(header, &path, &block) {
        Ok(bytes) => Ok(Entry { name, bytes }),
        Err(_fault) if first => Err(PackageError::NotAPackage),
        Err(why) => Err(PackageError::Header { name, why }),
    }
}

/// Returns the size that the header `block` gives its entry, if it says nothing but that and a name.
fn check_header(header: &tar::Header, path: &[u8], block: &[u8]) -> Result<u64, HeaderFault> {
    let mut summed = header.clone();
    summed.set_cksum();
    if summed.cksum().ok() != header.cksum().ok() {
        return Err(HeaderFault::Checksum);
    }
    if let Some(kind) = other_kind(header.entry_type().as_byte()) {
        return Err(HeaderFault::Kind { kind });
    }
    let name = std::str::from_utf8(path).map_err(|_no_text| HeaderFault::NameText)?;
    // A number in binary is one that a package cannot have: see `PAYLOAD_BYTES_MAX`.
    let plain = header.as_old().size.iter().all(|byte| matches!(byte, b'0'..=b'7' | 0));
    let bytes = header.entry_size().ok().filter(|_| plain).ok_or(HeaderFault::Size)?;
    // One header for one meaning: owner, time, checksum and every unused byte are those this crate writes.
    match self::header(name, bytes) {
        Ok(expected) if expected.as_slice() == block => Ok(bytes),
        Ok(_another) => Err(HeaderFault::Fields),
        Err(_no_name) => Err(HeaderFault::Name),
    }
}

/// Returns what the header of this type is for, if it is not a plain file's.
fn other_kind(entry_type: u8) -> Option<&'static str> {
    match entry_type {
        b'0' => None,
        b'1' => Some("a hard link"),
        b'2' => Some("a symbolic link"),
        b'3' => Some("a character device"),
        b'4' => Some("a block device"),
        b'5' => Some("a directory"),
        b'6' => Some("a fifo"),
        b'S' => Some("a sparse file"),
        b'x' | b'g' | b'L' | b'K' => Some("an extended header"),
        _other => Some("an unknown kind"),
    }
}

fn check_size(entry: &Entry, max: u64) -> Result<(), PackageError> {
    if entry.bytes > max {
        return Err(PackageError::TooLarge { name: entry.name.clone(), bytes: entry.bytes, max });
    }
    Ok(())
}

fn read_entry(input: &mut impl Read, entry: &Entry, within: &'static str) -> Result<Vec<u8>, PackageError> {
    let mut bytes = Vec::new();
    read_into(input, entry.bytes, &mut bytes, within)?;
    read_filling(input, entry.bytes, within)?;
    Ok(bytes)
}

fn read_filling(input: &mut impl Read, bytes: u64, within: &'static str) -> Result<(), PackageError> {
    let mut zeros = Vec::with_capacity(BLOCK_BYTES);
    read_into(input, filling(bytes) as u64, &mut zeros, within)?;
    if zeros.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(PackageError::Filling { within }) }
}

/// Appends exactly `bytes` to `buffer`, which grows with what arrives and not with what was promised.
fn read_into(
    input: &mut impl Read,
    bytes: u64,
    buffer: &mut Vec<u8>,
    within: &'static str,
) -> Result<(), PackageError> {
    let read = input.take(bytes).read_to_end(buffer).map_err(|source| PackageError::Input { source })?;
    if read as u64 == bytes { Ok(()) } else { Err(PackageError::Truncated { within }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        fn check(name: &str, expected: Option<Part>) {
            assert_eq!(Part::of(name), expected, "{name}");
        }
        check("metadata/1.root.json", Some(Part::Root(1)));
        check("metadata/12.root.json", Some(Part::Root(12)));
        check("metadata/01.root.json", None);
        check("metadata/root.json", None);
        check("metadata/99999999999999999999.root.json", None);
        check("metadata/timestamp.json", Some(Part::Timestamp));
        check("metadata/1.timestamp.json", None);
        check("metadata/3.snapshot.json", Some(Part::Snapshot));
        check("metadata/snapshot.json", Some(Part::Snapshot));
        check("metadata/targets.json", Some(Part::Targets));
        check("metadata/../targets.json", None);
        check("manifest.json", Some(Part::Manifest));
        check("./manifest.json", None);
        check("payload", Some(Part::Payload));
        check("", None);
    }

    #[test]
    fn what_is_no_package() {
        fn check(bytes: &[u8], expected: &str) {
            let error = Package::open(bytes).map(|_| ()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        check(b"", "this is no package of refit");
        check(b"PK\x03\x04", "this is no package of refit");
        check(&[0; 1024], "this is no package of refit");
        check(&[b'x'; 5000], "this is no package of refit");
        let payload = header("payload", 0).unwrap();
        check(&payload, "entry \"payload\" where the first root should be");
        let root = header("metadata/1.root.json", 3).unwrap();
        check(&root, "the package ends early, within the metadata");
        let mut bytes = root.to_vec();
        bytes.extend_from_slice(b"{} ");
        bytes.extend_from_slice(&[1; 509]);
        check(&bytes, "the filling behind the metadata is not empty");
        check(
            &header("metadata/1.root.json", 2 << 20).unwrap(),
            "entry \"metadata/1.root.json\" has 2097152 bytes, 1048576 are allowed",
        );
    }
}
