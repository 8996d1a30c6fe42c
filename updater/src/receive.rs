//! Receiving a package: from a stream of bytes to a verified, synced, read-only tree in staging.
//!
//! The order is the order of the package: signatures, manifest, this appliance's policy, free space; only then is anything
//! made on disk. Workers read, check and decode frames and write each to its place. There is no temporary copy of the
//! package, and what is in flight has a fixed number of bytes, whatever the package's size.
//! Whatever fails leaves staging without a trace of it, and the home's trust as it was.

mod error;
mod holes;
mod plan;
mod unpack;

use std::fs::{self, Permissions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use jiff::Timestamp;
use refit_base::file_error;
use semver::Version;
use serde::Serialize;

use crate::digest::Digest;
use crate::durable;
use crate::fault;
use crate::manifest::{ARCH_ANY, DIR_MODE, INSTALLED_PATH, Manifest, RESERVED_DIR};
use crate::modes::PRIVATE_DIR;
use crate::package::{Package, PackageError, Payload};
use crate::release::{Checked, Received, Store};
use crate::trust::{Expired, Trust, VerifiedManifest};

pub use error::{FrameProblem, PayloadError, ReceiveError};
pub use holes::is_hole;
pub use unpack::check_payload;

/// Headers and small frames are read in one call.
const INPUT_BUFFER_BYTES: usize = 64 << 10;
/// Permissions of the installed manifest.
const MANIFEST_MODE: u32 = 0o444;

/// What this appliance accepts.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The model; `None` where it is the package that decides, in the factory.
    pub appliance: Option<String>,
    /// The machine, as `std::env::consts::ARCH` names it.
    pub arch: String,
    /// The release that runs, if any does.
    pub current: Option<Version>,
    /// Whether the running version, or an older one, is welcome.
    pub allow_downgrade: bool,
    /// What to do with a package whose metadata is past its date.
    pub expired: Expired,
    /// The time.
    pub now: Timestamp,
}

impl Policy {
    /// Returns whether the release that `manifest` describes may be installed here and now.
    ///
    /// # Errors
    /// It is for another appliance or machine, is not newer, or needs a newer release first.
    pub fn check(&self, manifest: &Manifest) -> Result<(), ReceiveError> {
        if let Some(appliance) = &self.appliance
            && appliance != manifest.appliance()
        {
            return Err(ReceiveError::OtherAppliance {
                package: manifest.appliance().to_owned(),
                appliance: appliance.clone(),
            });
        }
        if manifest.arch() != self.arch && manifest.arch() != ARCH_ANY {
            return Err(ReceiveError::OtherArch { package: manifest.arch().to_owned(), machine: self.arch.clone() });
        }
        let Some(current) = &self.current else { return Ok(()) };
        // Build metadata does not make a version newer.
        if manifest.version().cmp_precedence(current).is_le() && !self.allow_downgrade {
            return Err(ReceiveError::NotNewer { package: manifest.version().clone(), current: current.clone() });
        }
        match manifest.requires() {
            Some(requires) if current.cmp_precedence(requires).is_lt() => {
                Err(ReceiveError::RequiresNewer { requires: requires.clone(), current: current.clone() })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// How far receiving is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum ReceiveProgress {
    /// The signatures hold and the policy agrees: this is what arrives.
    Verified {
        /// Digest of the manifest: the identity of the release.
        digest: Digest,
        /// Its version.
        version: Version,
        /// Bytes of the payload.
        bytes_total: u64,
        /// Bytes of the unpacked release.
        installed_bytes: u64,
    },
    /// The payload arrives.
    Unpacking {
        /// Bytes of the payload so far.
        bytes: u64,
        /// Bytes of the payload.
        bytes_total: u64,
    },
    /// Everything has arrived and is being synced.
    Syncing,
}

/// Makes room on the disk, where a release does not fit.
pub trait MakeRoom: Sync {
    /// Removes what can be done without. Blocks.
    fn make_room(&self);
}

/// What receives releases: a home, whom it trusts, and what it accepts.
#[derive(Clone, Copy)]
pub struct Receiver<'a> {
    /// The home's releases.
    pub store: &'a Store,
    /// Whom it trusts.
    pub trust: &'a Trust,
    /// What it accepts.
    pub policy: &'a Policy,
    /// Ends the work at the next frame, once it is true.
    pub cancel: &'a AtomicBool,
    /// Is asked for room before a release is refused for want of space; `None` where there is nothing to do without.
    pub room: Option<&'a dyn MakeRoom>,
}

impl Receiver<'_> {
    /// Reads a package from `input`, a stream, and leaves it, verified and unpacked, in staging.
    ///
    /// Blocks; may be called inside a runtime from a thread that may block. A package that was received before is checked
    /// again and found in its place.
    ///
    /// # Errors
    /// The package is refused, the disk is full or failing, or the work was cancelled: nothing of it is left in staging.
    pub fn receive(
        self,
        input: impl Read + Send,
        progress: &mut (dyn FnMut(ReceiveProgress) + Send),
    ) -> Result<Received, ReceiveError> {
        let input = BufReader::with_capacity(INPUT_BUFFER_BYTES, Cancellable { input, cancel: self.cancel });
        self.receive_package(Package::open(input), progress)
    }

    /// Does as [`Receiver::receive`] with a package in a file: what kept releases have is not even read.
    ///
    /// # Errors
    /// As there.
    pub fn receive_file(
        self,
        file: impl Read + Seek + Send,
        progress: &mut (dyn FnMut(ReceiveProgress) + Send),
    ) -> Result<Received, ReceiveError> {
        let input = BufReader::with_capacity(INPUT_BUFFER_BYTES, Cancellable { input: file, cancel: self.cancel });
        self.receive_package(Package::open_file(input), progress)
    }

    fn receive_package(
        self,
        package: Result<Package<impl Read + Send>, PackageError>,
        progress: &mut (dyn FnMut(ReceiveProgress) + Send),
    ) -> Result<Received, ReceiveError> {
        let receive = || {
            let (package, policy) = (package?, self.policy);
            let verified = self.trust.verify(package.metadata(), package.manifest(), policy.expired, policy.now)?;
            self.receive_verified(verified, |bytes| package.into_payload(bytes), progress)
        };
        match receive() {
            Err(ReceiveError::Package { source: PackageError::Input { .. } })
                if self.cancel.load(Ordering::Relaxed) =>
            {
                Err(ReceiveError::Cancelled)
            }
            other => other,
        }
    }

    /// Unpacks a release whose manifest is verified, from the payload that `payload` gives for its length.
    pub(crate) fn receive_verified<R: Read + Send>(
        self,
        verified: VerifiedManifest,
        payload: impl FnOnce(u64) -> Result<Payload<R>, PackageError>,
        progress: &mut (dyn FnMut(ReceiveProgress) + Send),
    ) -> Result<Received, ReceiveError> {
        let Self { store, trust, policy, .. } = self;
        let manifest = verified.manifest();
        policy.check(manifest)?;
        if let Some(path) = manifest.hook()
            && !store.has(manifest.version(), verified.digest())
        {
            return Err(ReceiveError::Hooks { path: path.to_owned() });
        }
        progress(ReceiveProgress::Verified {
            digest: verified.digest(),
            version: manifest.version().clone(),
            bytes_total: manifest.payload_bytes(),
            installed_bytes: manifest.installed_bytes(),
        });
        let mut payload = payload(manifest.payload_bytes())?;

        let staging = store.release_staging()?;
        let (mut checked, mut plan) = self.plan(manifest, &staging)?;

        // Opened before the first byte is written: every error of writing back since then is one of this sync.
        let file_system = durable::FileSystem::of(&staging).map_err(file_error("open", &staging))?;
        let tree = Tree::new(&staging)?;
        make_directories(&tree.path, manifest)?;
        let made = plan.make_kept_and_empty(&tree.path)?;
        payload.announce(plan.wanted_ranges(manifest));
        let unpacked_bytes = unpack::unpack(&mut payload, manifest, &plan, &tree.path, self.cancel, progress)?;
        payload.finish()?;
        progress(ReceiveProgress::Syncing);
        finish_tree(&tree.path, &verified)?;
        let dir = staging.join(verified.digest().to_string());
        let received_before = dir.is_dir();
        let synced = thread::scope(|scope| {
            if !received_before {
                // Noted while the disk works: if this sync fails, or the power, the files that the notes are about are gone.
                // Where there is no thread to be had there are no notes, which costs the next update time.
                let note = || store.note_checked(&mut checked, &tree.path, manifest);
                let _noting = thread::Builder::new().name("refit-note".to_owned()).spawn_scoped(scope, note);
            }
            file_system.sync()
        });
        synced.map_err(file_error("sync", &tree.path))?;
        fault::point("unpacked");

        if received_before {
            // It may be in use, so it is the new tree that goes, and with it names of shared files.
            drop(tree);
            store.note_checked(&mut checked, &dir, manifest);
        } else {
            tree.name(&dir)?;
        }
        fault::point("staged");
        if let Err(error) = trust.commit(&verified) {
            // The error that matters is the one at hand; what cannot be removed now is removed at the next start.
            drop(durable::remove_tree(&dir));
            return Err(error.into());
        }
        let (digest, expired, clock_behind) = (verified.digest(), verified.expired(), verified.clock_behind());
        Ok(Received {
            digest,
            manifest: verified.into_manifest(),
            dir,
            expired,
            clock_behind,
            linked_bytes: made.linked_bytes,
            written_bytes: made.copied_bytes + unpacked_bytes,
        })
    }

    /// Returns what is known of the files of kept releases, and what is to be written, which fits.
    fn plan(self, manifest: &Manifest, staging: &Path) -> Result<(Checked, plan::Plan), ReceiveError> {
        let planned = || {
            let checked = self.store.checked();
            let mut plan = plan::Plan::new(manifest);
            plan.find_kept(&self.store.content_index()?, &checked, self.cancel)?;
            plan.check_space(staging)?;
            Ok((checked, plan))
        };
        match (planned(), self.room) {
            (Err(ReceiveError::NoSpace { .. } | ReceiveError::NoInodes { .. }), Some(room)) => {
                room.make_room();
                // Planned anew: a file may have gone that would have been linked.
                planned()
            }
            (planned, _) => planned,
        }
    }
}

/// Lets a read fail once the work is cancelled.
struct Cancellable<'a, R> {
    input: R,
    cancel: &'a AtomicBool,
}

impl<R: Read> Read for Cancellable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        self.input.read(buffer)
    }
}

impl<R: Seek> Seek for Cancellable<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.input.seek(to)
    }
}

/// A tree that is being unpacked: gone when it is dropped, unless it got its name.
struct Tree {
    path: PathBuf,
    named: bool,
}

impl Tree {
    fn new(staging: &Path) -> Result<Self, ReceiveError> {
        let path = tempfile::Builder::new()
            .prefix("part-")
            .tempdir_in(staging)
            .map_err(file_error("make a directory in", staging))?
            .keep();
        Ok(Self { path, named: false })
    }

    fn name(mut self, dir: &Path) -> Result<(), ReceiveError> {
        // Staging is emptied at every start.
        durable::rename_unsynced(&self.path, dir).map_err(file_error("name", dir))?;
        self.named = true;
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if !self.named
            && let Err(error) = durable::remove_tree(&self.path)
        {
            // Staging is emptied at every start; until then it only takes space.
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an unfinished tree");
        }
    }
}

fn make_directories(tree: &Path, manifest: &Manifest) -> Result<(), ReceiveError> {
    for directory in manifest.directories() {
        let path = tree.join(&directory.path);
        make_dir(&path)?;
    }
    Ok(())
}

/// Makes a directory that gets its own permissions when everything is in it.
fn make_dir(path: &Path) -> Result<(), ReceiveError> {
    let made = fs::create_dir(path).and_then(|()| fs::set_permissions(path, Permissions::from_mode(PRIVATE_DIR)));
    Ok(made.map_err(file_error("make", path))?)
}

/// Adds the manifest and takes the write permissions away.
fn finish_tree(tree: &Path, verified: &VerifiedManifest) -> Result<(), ReceiveError> {
    let reserved = tree.join(RESERVED_DIR);
    make_dir(&reserved)?;
    let path = tree.join(INSTALLED_PATH);
    // Synced with everything else.
    let written = durable::create_new(&path, MANIFEST_MODE).and_then(|mut file| file.write_all(verified.bytes()));
    written.map_err(file_error("write", &path))?;
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(file_error("protect", path))
    };
    chmod(&reserved, DIR_MODE)?;
    // Children before parents: a directory may be one that not even its owner may enter.
    for directory in verified.manifest().directories().iter().rev() {
        chmod(&tree.join(&directory.path), directory.mode.installed().bits())?;
    }
    Ok(chmod(tree, DIR_MODE)?)
}
