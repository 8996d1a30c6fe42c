//! A release that is whole and has no place among the others yet.

use std::path::PathBuf;

use jiff::Timestamp;
use tough::schema::RoleType;

use crate::digest::Digest;
use crate::manifest::Manifest;

/// A package that was received: a whole release in staging, without a name in `releases/` yet.
#[derive(Debug)]
pub struct Received {
    /// Digest of its manifest: the identity of the release.
    pub digest: Digest,
    /// What it holds.
    pub manifest: Manifest,
    /// Where it lies.
    pub dir: PathBuf,
    /// The role whose metadata was the first to be past its date, if some is, and the date.
    pub expired: Option<(RoleType, Timestamp)>,
    /// The date of a signed release that the clock is before, if it is.
    pub clock_behind: Option<Timestamp>,
    /// Bytes it shares with kept releases.
    pub linked_bytes: u64,
    /// Bytes that were written for it.
    pub written_bytes: u64,
}

impl Received {
    /// Returns what was received at an earlier time.
    pub(super) fn from_staging(digest: Digest, manifest: Manifest, dir: PathBuf) -> Self {
        let linked_bytes = manifest.installed_bytes();
        Self { digest, manifest, dir, expired: None, clock_behind: None, linked_bytes, written_bytes: 0 }
    }
}
