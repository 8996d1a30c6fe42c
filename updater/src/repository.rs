//! A repository: releases side by side in a directory on any static web server.
//!
//! It has the parts of packages as files: TUF metadata of all releases together, and for each release its manifest and its
//! payload, of which a client fetches only the byte ranges that it lacks. `refit-author` writes one; [`check`] and
//! [`Receiver::fetch`] are the appliance's side, with the same client, policy and unpacking as for a package ([`crate::trust`],
//! [`crate::receive`]). How bytes are had is a [`Server`]'s business.

mod ranges;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;

use jiff::Timestamp;
use refit_tuf::{Fetch, Target, TufError};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::manifest::{ARCH_ANY, MANIFEST_BYTES_MAX};
use crate::package::{MANIFEST_NAME, METADATA_DIR, Payload};
use crate::receive::{Policy, ReceiveError, ReceiveProgress, Receiver};
use crate::release::Received;
use crate::trust::{Catalogue, Trust, TrustError};
use ranges::RangeReader;

/// Where manifests and payloads lie.
pub const TARGETS_DIR: &str = "targets/";
/// What ends the name of a payload.
const PAYLOAD_SUFFIX: &str = "payload";

/// What a server gives of a file.
pub struct Answer {
    /// Its bytes.
    pub input: Box<dyn Read + Send>,
    /// Whether it is the whole file, although a range was asked for: a server need not know ranges (RFC 9110, section
    /// 14.2).
    pub whole: bool,
}

/// Where a repository is served.
pub trait Server: Send {
    /// Returns the bytes of the file `path`, or those in `range` alone; `None` if there is no such file.
    ///
    /// # Errors
    /// Whether there is one cannot be told.
    fn open(&mut self, path: &str, range: Option<Range<u64>>) -> io::Result<Option<Answer>>;
}

/// A repository in a directory: on a stick, or a shared file system.
#[derive(Debug, Clone)]
pub struct Directory(pub PathBuf);

impl Server for Directory {
    fn open(&mut self, path: &str, range: Option<Range<u64>>) -> io::Result<Option<Answer>> {
        let mut file = match File::open(self.0.join(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(range) = range else { return Ok(Some(Answer { input: Box::new(file), whole: true })) };
        file.seek(SeekFrom::Start(range.start))?;
        Ok(Some(Answer { input: Box::new(file.take(range.end - range.start)), whole: false }))
    }
}

/// The metadata of a [`Server`], as the TUF client fetches it.
pub struct Metadata<'a, S>(pub &'a mut S);

impl<S: Server> Fetch for Metadata<'_, S> {
    fn metadata(&mut self, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        read_file(self.0, &format!("{METADATA_DIR}{name}"), bytes_max)
    }
}

/// Reads a whole file, of which more than `bytes_max` bytes are an error.
fn read_file(server: &mut impl Server, path: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(Answer { input, .. }) = server.open(path, None)? else { return Ok(None) };
    let mut bytes = Vec::new();
    input.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}

/// What the signed metadata says of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The model.
    pub appliance: String,
    /// The version.
    pub version: Version,
    /// The machine.
    pub arch: String,
    /// When it was made.
    pub released: Option<Timestamp>,
    /// The oldest release that it updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<Version>,
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// Bytes of the unpacked release.
    pub installed_bytes: u64,
}

impl Offer {
    /// Returns the release that the target `name` is, if it is one.
    #[must_use]
    pub fn of(name: &str, target: &Target) -> Option<Self> {
        let offer = Self::deserialize(&target.custom).ok()?;
        // The name is signed along with what it says, and must agree: the manifest is asked for by it.
        (offer.target_name() == name).then_some(offer)
    }

    /// Returns the name of the manifest as a target.
    #[must_use]
    pub fn target_name(&self) -> String {
        format!("{}/{}/{}/{MANIFEST_NAME}", self.appliance, self.version, self.arch)
    }
}

/// A release that a repository lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// What the signed metadata says of it.
    #[serde(flatten)]
    pub offer: Offer,
    /// The digest of its manifest, the identity of the release, as `refit inspect` shows that of a package; `None` if the
    /// metadata has only one of another kind.
    pub digest: Option<Digest>,
}

/// Returns the path of the payload that belongs to the manifest `target`, called `name`.
#[must_use]
pub fn payload_path(name: &str, target: &Target) -> Option<String> {
    let manifest = target.consistent_path(name)?;
    Some(format!("{TARGETS_DIR}{}{PAYLOAD_SUFFIX}", manifest.strip_suffix(MANIFEST_NAME)?))
}

/// Returns the releases that these targets are, oldest first.
#[must_use]
pub fn listed(targets: &BTreeMap<String, Target>) -> Vec<Listed> {
    let listed = |(name, target): (&String, &Target)| {
        let digest = target.hashes.get("sha256").and_then(|digest| digest.parse().ok());
        Some(Listed { offer: Offer::of(name, target)?, digest })
    };
    let mut releases: Vec<Listed> = targets.iter().filter_map(listed).collect();
    releases
        .sort_by(|one, other| (&one.offer.version, &one.offer.arch).cmp(&(&other.offer.version, &other.offer.arch)));
    releases
}

/// Asks a repository for the releases that are for this appliance and machine, oldest first, whatever runs.
///
/// # Errors
/// The repository cannot be read or is not to be trusted. Newer metadata that was accepted is remembered.
pub fn check(server: &mut impl Server, trust: &Trust, policy: &Policy) -> Result<Vec<Listed>, TrustError> {
    let catalogue = trust.refresh(Metadata(server), policy.now)?;
    Ok(suitable(&catalogue, policy))
}

fn suitable(catalogue: &Catalogue, policy: &Policy) -> Vec<Listed> {
    let mut releases = listed(catalogue.targets());
    releases.retain(|Listed { offer, .. }| {
        let is_model = policy.appliance.as_ref().is_none_or(|appliance| *appliance == offer.appliance);
        is_model && (offer.arch == policy.arch || offer.arch == ARCH_ANY)
    });
    releases
}

impl Receiver<'_> {
    /// Fetches a release from a repository and leaves it, verified and unpacked, in staging, as [`Receiver::receive`] does
    /// with a package. Of the payload only what no kept release has is fetched.
    ///
    /// # Errors
    /// The repository cannot be read or is not to be trusted, has no such release, the release is refused, the disk is full
    /// or failing, or the work was cancelled: nothing of the release is left in staging.
    pub fn fetch(
        self,
        server: &mut impl Server,
        version: &Version,
        progress: &mut (dyn FnMut(ReceiveProgress) + Send),
    ) -> Result<Received, ReceiveError> {
        let Self { trust, policy, .. } = self;
        let catalogue = trust.refresh(Metadata(server), policy.now)?;
        let found = suitable(&catalogue, policy).into_iter().rfind(|listed| listed.offer.version == *version);
        let found = found.ok_or_else(|| ReceiveError::NotOffered { version: version.clone() })?;
        let name = found.offer.target_name();
        let target = catalogue.targets().get(&name).ok_or(TrustError::NoTarget)?;
        let unlisted = || TrustError::from(TufError::NoDigest { name: name.clone() });
        let path = format!("{TARGETS_DIR}{}", target.consistent_path(&name).ok_or_else(unlisted)?);
        let bytes = read_file(server, &path, target.length.min(MANIFEST_BYTES_MAX))
            .map_err(|source| TrustError::from(TufError::Fetch { name: path.clone(), source }))?
            .ok_or_else(|| TrustError::of_repository(TufError::Missing { name: path }))?;
        let verified = trust.verify_target(&catalogue, &name, &bytes, policy.now)?;
        let payload = payload_path(&name, target).ok_or_else(unlisted)?;
        let reader = RangeReader::new(server, payload);
        let payload = Payload::of_ranges(reader, verified.manifest().payload_bytes());
        self.receive_verified(verified, |_bytes| Ok(payload), progress)
    }
}
