//! The one validation of a manifest: names, places, modes and numbers.

use std::collections::{HashMap, HashSet};

use super::{
    Body, DEPTH_MAX, DirectoryEntry, ENTRIES_MAX, FRAME_BYTES_MAX, FRAME_STORED_BYTES_MAX, INSTALLED_BYTES_MAX, Kind,
    LABEL_BYTES_MAX, LINK_HOPS_MAX, MANIFEST_BYTES_MAX, Manifest, NAME_BYTES_MAX, PATH_BYTES_MAX, PAYLOAD_BYTES_MAX,
    RESERVED_DIR, VERSION_BYTES_MAX,
};
use crate::digest::Digest;

/// Why bytes are no manifest of a release.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// More bytes than a manifest may have.
    #[error("the manifest has {bytes} bytes, {MANIFEST_BYTES_MAX} are allowed")]
    TooLong {
        /// How many it has.
        bytes: u64,
    },
    /// There is nothing in it.
    #[error("the manifest is empty")]
    Empty,
    /// Not JSON, or not the JSON of a manifest.
    #[error("the manifest cannot be read")]
    Json {
        /// What the parser found, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// A format of another time.
    #[error("the manifest has format {format}, this refit knows format {}", super::FORMAT)]
    Format {
        /// The number it gives.
        format: u64,
    },
    /// Neither a file (mode, size, sha256) nor a link (link).
    #[error("manifest entry {path:?} is neither a whole file nor a link")]
    Fields {
        /// The entry's path.
        path: String,
    },
    /// A name with other characters than are allowed.
    #[error("{what} {label:?}: 1 to {LABEL_BYTES_MAX} of a-z, 0-9, '-', '_' expected, a letter first")]
    Label {
        /// Which name.
        what: &'static str,
        /// The name.
        label: String,
    },
    /// A version with more characters than the name of a directory has room for.
    #[error("a version of {bytes} bytes is too long, {VERSION_BYTES_MAX} are allowed")]
    Version {
        /// How many it has.
        bytes: usize,
    },
    /// More entries than a release may have.
    #[error("the release has {entries} entries, {ENTRIES_MAX} are allowed")]
    Entries {
        /// How many it has.
        entries: usize,
    },
    /// A path that must not be in a release.
    #[error("path {path:?} {why}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: PathFault,
    },
    /// The kind does not fit the directory.
    #[error("{path:?} is of kind {kind:?}, its directory says {:?}", Kind::of(path))]
    Kind {
        /// The file's path.
        path: String,
        /// The kind it claims.
        kind: Kind,
    },
    /// A link that leaves the release, or is absolute.
    #[error("link {path:?} points to {target:?}, which is not inside the release")]
    LinkEscapes {
        /// The link's path.
        path: String,
        /// Where it points.
        target: String,
    },
    /// Numbers of one file that contradict each other.
    #[error("{path:?}: {why}")]
    Frames {
        /// The file's path.
        path: String,
        /// What does not fit.
        why: FrameFault,
    },
    /// A sum that does not fit its parts, or exceeds its limit.
    #[error("{what} is given as {given} bytes, its parts are {sum}, {max} are allowed")]
    Sum {
        /// Which sum.
        what: &'static str,
        /// What the manifest says.
        given: u64,
        /// What the parts add up to.
        sum: u64,
        /// What is allowed.
        max: u64,
    },
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathFault {
    /// Empty.
    #[error("is empty")]
    Empty,
    /// Begins with a slash.
    #[error("is absolute")]
    Absolute,
    /// Has a `..`.
    #[error("climbs with \"..\"")]
    Climbs,
    /// Has a `.`, an empty name or a slash at its end.
    #[error("is not in its shortest form")]
    NotNormal,
    /// Has a control character or a backslash.
    #[error("has a control character or a backslash")]
    Characters,
    /// Has a character that nobody sees, or that turns the direction of reading.
    #[error("has a character that changes how text reads")]
    Disguise,
    /// Too long, or a name in it is.
    #[error("is too long")]
    TooLong,
    /// Too many directories.
    #[error("is too deep")]
    TooDeep,
    /// Below `.refit`.
    #[error("is reserved for Refit")]
    Reserved,
    /// Not behind the one before it.
    #[error("is not in order, or is there twice")]
    Order,
    /// Differs from another only in upper and lower case.
    #[error("differs from another only in upper and lower case")]
    Case,
    /// Its directory is not in the manifest: it is missing, or a file or a link.
    #[error("lies below what is no directory of the release")]
    NoParent,
}

/// What is wrong with a file's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameFault {
    /// A frame that does not begin where the one before it ended.
    #[error("a frame does not begin where the one before it ends")]
    Gap,
    /// A frame without stored or decoded bytes, or with too many.
    #[error("a frame is empty or larger than allowed")]
    Size,
    /// The frames' sizes are not the file's size.
    #[error("its frames do not add up to its size")]
    Sum,
    /// Content without frames that no earlier file has.
    #[error("it has no frames, and no earlier file has its content")]
    Missing,
    /// Frames for content that an earlier file has.
    #[error("an earlier file already brought its content")]
    Repeated,
    /// One digest with two sizes.
    #[error("another file has the same digest and another size")]
    SizeDiffers,
    /// An empty file with the digest of something.
    #[error("it is empty, and its digest is that of something")]
    EmptyDigest,
    /// More holes than bytes.
    #[error("it has more holes than bytes")]
    Holes,
}

/// Refuses a manifest that describes what must not be in a release.
pub(super) fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    check_names(manifest)?;
    check_contents(manifest)
}

/// Refuses names, places and links that must not be in a release, whatever the files hold.
pub(super) fn check_names(manifest: &Manifest) -> Result<(), ManifestError> {
    label("appliance name", &manifest.appliance)?;
    label("architecture", &manifest.arch)?;
    for version in [Some(&manifest.version), manifest.requires.as_ref()].into_iter().flatten() {
        let bytes = version.to_string().len();
        if bytes > VERSION_BYTES_MAX {
            return Err(ManifestError::Version { bytes });
        }
    }
    let entries = manifest.files.len() + manifest.directories.len();
    if entries > ENTRIES_MAX {
        return Err(ManifestError::Entries { entries });
    }
    let directories = check_directories(&manifest.directories)?;
    let mut lower: HashSet<String> = HashSet::with_capacity(entries);
    for path in manifest.directories.iter().map(|directory| &directory.path) {
        if !lower.insert(path.to_lowercase()) {
            return Err(path_error(path, PathFault::Case));
        }
    }
    let links = manifest
        .files
        .iter()
        .filter_map(|file| match &file.body {
            Body::Link { target } => Some((file.path.as_str(), target.as_str())),
            Body::Regular { .. } => None,
        })
        .collect();
    let mut before: Option<&str> = None;
    for file in &manifest.files {
        check_path(&file.path, before)?;
        before = Some(&file.path);
        if directories.contains(file.path.as_str()) {
            return Err(path_error(&file.path, PathFault::Order));
        }
        if !lower.insert(file.path.to_lowercase()) {
            return Err(path_error(&file.path, PathFault::Case));
        }
        check_parent(&file.path, &directories)?;
        if file.kind != Kind::of(&file.path) {
            return Err(ManifestError::Kind { path: file.path.clone(), kind: file.kind });
        }
        if let Body::Link { target } = &file.body
            && !stays_inside(&file.path, target, &links)
        {
            return Err(ManifestError::LinkEscapes { path: file.path.clone(), target: target.clone() });
        }
    }
    Ok(())
}

fn path_error(path: &str, why: PathFault) -> ManifestError {
    ManifestError::Path { path: path.to_owned(), why }
}

fn label(what: &'static str, label: &str) -> Result<(), ManifestError> {
    let good = label.len() <= LABEL_BYTES_MAX
        && label.starts_with(|first: char| first.is_ascii_lowercase())
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'));
    if good { Ok(()) } else { Err(ManifestError::Label { what, label: label.to_owned() }) }
}

fn check_directories(entries: &[DirectoryEntry]) -> Result<HashSet<&str>, ManifestError> {
    let mut directories = HashSet::with_capacity(entries.len());
    let mut before: Option<&str> = None;
    for entry in entries {
        check_path(&entry.path, before)?;
        before = Some(&entry.path);
        check_parent(&entry.path, &directories)?;
        directories.insert(entry.path.as_str());
    }
    Ok(directories)
}

/// Every entry's directory is an entry itself, and one that came as a directory: nothing lies below a file or a link.
fn check_parent(path: &str, directories: &HashSet<&str>) -> Result<(), ManifestError> {
    match path.rsplit_once('/') {
        Some((parent, _)) if !directories.contains(parent) => Err(path_error(path, PathFault::NoParent)),
        Some(_) | None => Ok(()),
    }
}

fn check_path(path: &str, before: Option<&str>) -> Result<(), ManifestError> {
    let fault = |why| Err(path_error(path, why));
    if path.is_empty() {
        return fault(PathFault::Empty);
    }
    if path.starts_with('/') {
        return fault(PathFault::Absolute);
    }
    if path.len() > PATH_BYTES_MAX {
        return fault(PathFault::TooLong);
    }
    if path.chars().any(|character| character.is_control() || character == '\\') {
        return fault(PathFault::Characters);
    }
    if path.chars().any(disguises) {
        return fault(PathFault::Disguise);
    }
    for (depth, name) in path.split('/').enumerate() {
        if depth > DEPTH_MAX {
            return fault(PathFault::TooDeep);
        }
        match name {
            ".." => return fault(PathFault::Climbs),
            "" | "." => return fault(PathFault::NotNormal),
            _usual if name.len() > NAME_BYTES_MAX => return fault(PathFault::TooLong),
            _usual => {}
        }
    }
    // Compared without case: on a file system that folds case this is the same place.
    let first = path.split('/').next().unwrap_or(path);
    if first.eq_ignore_ascii_case(RESERVED_DIR) {
        return fault(PathFault::Reserved);
    }
    if before.is_some_and(|before| before >= path) {
        return fault(PathFault::Order);
    }
    Ok(())
}

/// Whether a name with this character may look like another one: soft hyphens, joiners, marks of direction.
fn disguises(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

/// Whether a link at `path` that points to `target` stays inside the release when it is followed, links on the way
/// included: judged from the manifest alone, before anything is on disk.
fn stays_inside(path: &str, target: &str, links: &HashMap<&str, &str>) -> bool {
    if target.is_empty() || target.len() > PATH_BYTES_MAX || target.starts_with('/') {
        return false;
    }
    if target.chars().any(|character| character.is_control() || character == '\\') {
        return false;
    }
    let mut at: Vec<&str> = path.split('/').collect();
    at.pop();
    let mut ahead: Vec<&str> = target.rsplit('/').collect();
    let mut hops = 0;
    while let Some(name) = ahead.pop() {
        match name {
            "" | "." => {}
            ".." => {
                if at.pop().is_none() {
                    return false;
                }
            }
            _down => {
                at.push(name);
                if let Some(next) = links.get(at.join("/").as_str()) {
                    hops += 1;
                    if hops > LINK_HOPS_MAX {
                        return false;
                    }
                    at.pop();
                    ahead.extend(next.rsplit('/'));
                }
            }
        }
    }
    // Pointing at the release itself would make walking it endless.
    !at.is_empty()
}

fn check_contents(manifest: &Manifest) -> Result<(), ManifestError> {
    let (mut payload, mut installed) = (0_u64, 0_u64);
    let mut sizes: HashMap<Digest, u64> = HashMap::new();
    for file in &manifest.files {
        let Body::Regular { size, holes, sha256, frames, .. } = &file.body else { continue };
        let fault = |why| Err(ManifestError::Frames { path: file.path.clone(), why });
        if holes > size {
            return fault(FrameFault::Holes);
        }
        installed = installed.saturating_add(*size);
        match sizes.insert(*sha256, *size) {
            Some(earlier) if earlier != *size => return fault(FrameFault::SizeDiffers),
            Some(_) if !frames.is_empty() => return fault(FrameFault::Repeated),
            Some(_) => continue,
            None if *size > 0 && frames.is_empty() => return fault(FrameFault::Missing),
            None => {}
        }
        let mut decoded = 0_u64;
        for frame in frames {
            if frame.offset != payload {
                return fault(FrameFault::Gap);
            }
            let whole = frame.size > 0 && frame.size <= FRAME_BYTES_MAX;
            if !whole || frame.stored == 0 || frame.stored > FRAME_STORED_BYTES_MAX {
                return fault(FrameFault::Size);
            }
            payload = payload.saturating_add(frame.stored);
            decoded = decoded.saturating_add(frame.size);
        }
        if decoded != *size {
            return fault(FrameFault::Sum);
        }
        if *size == 0 && *sha256 != Digest::of(&[]) {
            return fault(FrameFault::EmptyDigest);
        }
    }
    sum("the payload", manifest.payload_bytes, payload, PAYLOAD_BYTES_MAX)?;
    sum("the unpacked release", manifest.installed_bytes, installed, INSTALLED_BYTES_MAX)
}

fn sum(what: &'static str, given: u64, sum: u64, max: u64) -> Result<(), ManifestError> {
    if given == sum && sum <= max { Ok(()) } else { Err(ManifestError::Sum { what, given, sum, max }) }
}
