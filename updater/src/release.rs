//! Releases on disk: the layout of a home, admitting, verifying and dropping releases.
//!
//! A release is a directory `releases/VERSION` that is never written to again, unless it is to be repaired. It got there by one
//! rename of a tree that was verified and synced before, so what has the name is whole. `current` is a link that the journal decides about.

mod checked;
mod damage;
mod received;
mod repair;
mod staging;
mod verify;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use refit_base::{Exit, FileError, Report, Reported, file_error};
use semver::Version;

use crate::digest::Digest;
use crate::durable;
use crate::fault;
use crate::journal;
use crate::manifest::{self, Body, MANIFEST_BYTES_MAX, Manifest, ManifestError, Mode};
use crate::modes::{self, Repaired};
use crate::spare;

pub(crate) use checked::Checked;
pub use damage::Damage;
pub use received::Received;
pub use verify::{FileProblem, Problem, VerifyProgress, VerifyReport};

/// The link to the release that runs.
pub const CURRENT: &str = "current";

/// The directory of the releases in a home.
const RELEASES: &str = "releases";
/// The directories of a home, as design fixes them.
const LAYOUT: [&str; 6] = [RELEASES, "config", "data", "trust", "staging", "run"];

/// The releases of one home.
#[derive(Debug, Clone)]
pub struct Store {
    home: PathBuf,
}

/// An installed release.
#[derive(Debug, Clone)]
pub struct Release {
    /// Its version, which is its directory's name.
    pub version: Version,
    /// Digest of its `manifest.json`: its identity.
    pub digest: Digest,
    /// What it holds.
    pub manifest: Manifest,
    /// Where it lies.
    pub dir: PathBuf,
}

impl Release {
    /// Returns the bytes of all its files; those it shares with a neighbour are counted, too.
    #[must_use]
    pub fn installed_bytes(&self) -> u64 {
        self.manifest.installed_bytes()
    }
}

/// What went wrong with the releases on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory that is no home.
    #[error("{} is no home of refit: it has neither releases nor a journal", home.display())]
    NoHome {
        /// The directory.
        home: PathBuf,
    },
    /// No such release.
    #[error("release {version} is not installed")]
    Unknown {
        /// The version asked for.
        version: Version,
    },
    /// An installed release whose manifest cannot be read.
    #[error("the manifest of {} is damaged", dir.display())]
    Manifest {
        /// The release's directory.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// The directory's name and the manifest disagree.
    #[error("{} holds release {version}", dir.display())]
    Misplaced {
        /// The directory.
        dir: PathBuf,
        /// What its manifest says.
        version: Version,
    },
    /// Another release of the same version is installed.
    #[error("release {version} is installed with other content: {installed}, not {offered}")]
    Occupied {
        /// The version.
        version: Version,
        /// Identity of what is installed.
        installed: Digest,
        /// Identity of what was to be admitted.
        offered: Digest,
    },
    /// The release that runs is damaged, and is not replaced as a whole.
    #[error("release {version}, which runs, is damaged: {problem}")]
    Damaged {
        /// The version.
        version: Version,
        /// The first thing that is wrong.
        problem: Problem,
    },
    /// The release that runs is not dropped.
    #[error("release {version} is the current one")]
    IsCurrent {
        /// The version.
        version: Version,
    },
    /// The file at `current` is no link.
    #[error("{} is not a link into releases/", path.display())]
    CurrentIsNoLink {
        /// Its path.
        path: PathBuf,
    },
}

impl StoreError {
    /// What to do about a release that is damaged.
    pub const MADE_WHOLE: &str =
        "its very package makes it whole, and has it run: `refit install PACKAGE --allow-downgrade`";
}

impl Reported for StoreError {
    fn report(&self) -> Report<'_> {
        let remedy = match self {
            Self::File(_) => "free space or check the disk and its permissions, then try again",
            Self::NoHome { .. } => "name the right directory with --home, or make a home there with `refit init`",
            Self::Unknown { .. } => "see `refit releases` for what is installed",
            Self::Manifest { .. } | Self::Misplaced { .. } | Self::Damaged { .. } => Self::MADE_WHOLE,
            Self::Occupied { .. } => "give the new package a version of its own",
            Self::IsCurrent { .. } => "update or roll back to another release first",
            Self::CurrentIsNoLink { .. } => "remove it; refit makes the link again at its next start",
        };
        Report::new("release_unusable", Exit::Failed, remedy)
    }
}

impl Store {
    /// Makes the directories of a home, those that are missing, and returns its store.
    ///
    /// # Errors
    /// A directory could not be made; those before it may be there.
    pub fn init(home: &Path) -> Result<Self, StoreError> {
        Self::make_missing(home)?;
        Ok(Self { home: home.to_owned() })
    }

    /// Returns the store of an existing home.
    ///
    /// # Errors
    /// `home` is no home.
    pub fn open(home: &Path) -> Result<Self, StoreError> {
        // All of them are made again when they are missing: what tells a home without releases is that it had some.
        let had_some = || journal::exists(home) || fs::symlink_metadata(home.join(CURRENT)).is_ok();
        if home.join(RELEASES).is_dir() || had_some() {
            Ok(Self { home: home.to_owned() })
        } else {
            Err(StoreError::NoHome { home: home.to_owned() })
        }
    }

    /// Makes the directories again that are missing in a home in which an appliance is installed: a cleaner may have taken them. Returns
    /// their names.
    ///
    /// # Errors
    /// One could not be made.
    pub fn make_missing(home: &Path) -> Result<Vec<&'static str>, FileError> {
        let missing: Vec<&str> = LAYOUT.into_iter().filter(|name| !home.join(name).is_dir()).collect();
        for name in &missing {
            let dir = home.join(name);
            durable::create_dirs(&dir, modes::of(name)).map_err(file_error("make", &dir))?;
        }
        Ok(missing)
    }

    /// Returns the home's directory.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Returns where what arrives is put together.
    #[must_use]
    pub fn staging_dir(&self) -> PathBuf {
        self.home.join("staging")
    }

    /// Returns where release `version` lies, or would lie.
    #[must_use]
    pub fn release_dir(&self, version: &Version) -> PathBuf {
        self.releases_dir().join(version.to_string())
    }

    /// Returns where the live configuration of release `version` lies, or would lie.
    #[must_use]
    pub fn config_dir(&self, version: &Version) -> PathBuf {
        self.configs_dir().join(version.to_string())
    }

    /// Returns where it is recorded what the merge of the configuration of release `version` made.
    #[must_use]
    pub(crate) fn config_record(&self, version: &Version) -> PathBuf {
        self.merged_dir().join(version.to_string())
    }

    /// Returns where all of that is recorded.
    pub(crate) fn merged_dir(&self) -> PathBuf {
        self.configs_dir().join(".merged")
    }

    /// Returns the versions of everything in `releases/`, in order, damaged ones included.
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn versions(&self) -> Result<Vec<Version>, StoreError> {
        let dir = self.releases_dir();
        let mut versions = Vec::new();
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(versions),
            entries => entries.map_err(file_error("read", &dir))?,
        };
        for entry in entries {
            let entry = entry.map_err(file_error("read", &dir))?;
            // Anything else in there is not ours: it is neither shown nor removed.
            if let Some(version) = entry.file_name().to_str().and_then(|name| Version::parse(name).ok()) {
                versions.push(version);
            }
        }
        versions.sort();
        Ok(versions)
    }

    /// Returns the installed releases in order of their versions; one that is damaged is left out and logged.
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn releases(&self) -> Result<Vec<Release>, StoreError> {
        let mut releases = Vec::new();
        for version in self.versions()? {
            match self.release(&version) {
                Ok(release) => releases.push(release),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(release.version = %version, error, "release is damaged");
                }
            }
        }
        Ok(releases)
    }

    /// Returns the installed release `version`. Its files are not looked at: see [`Store::verify`].
    ///
    /// # Errors
    /// It is not installed, or its manifest is damaged.
    pub fn release(&self, version: &Version) -> Result<Release, StoreError> {
        let dir = self.release_dir(version);
        if !dir.is_dir() {
            return Err(StoreError::Unknown { version: version.clone() });
        }
        let (digest, manifest) = read_manifest(&dir)?;
        if manifest.version() != version {
            return Err(StoreError::Misplaced { dir, version: manifest.version().clone() });
        }
        Ok(Release { version: version.clone(), digest, manifest, dir })
    }

    /// Returns whether this very release is installed: a package of it may be received to repair it, whatever it holds.
    pub(crate) fn has(&self, version: &Version, digest: Digest) -> bool {
        self.release(version).is_ok_and(|release| release.digest == digest)
    }

    /// Returns the package with manifest `digest` that was received before and not admitted yet.
    ///
    /// # Errors
    /// Its manifest could not be read.
    pub fn received(&self, digest: &Digest) -> Result<Option<Received>, StoreError> {
        let dir = self.release_staging()?.join(digest.to_string());
        // The name alone says that it is whole: it was given after everything below it was synced.
        if !dir.is_dir() {
            return Ok(None);
        }
        let (found, manifest) = read_manifest(&dir)?;
        Ok((found == *digest).then(|| Received::from_staging(found, manifest, dir)))
    }

    /// Gives a received package its place and name in `releases/`.
    ///
    /// The same release may be there already: it is verified, and kept when it is whole. Another one of the same version,
    /// or a damaged one, is replaced only when its version is in `replaceable`; a damaged copy of the very same release always,
    /// unless it runs, for then it takes [`Store::repair`].
    ///
    /// # Errors
    /// Another release has the version, or a file operation failed; the release that was there still is, or, after a
    /// failed rename, is gone and the received package is still in staging.
    pub fn admit(&self, received: Received, replaceable: &[Version]) -> Result<Release, StoreError> {
        let version = received.manifest.version().clone();
        let dir = self.release_dir(&version);
        if fs::symlink_metadata(&dir).is_ok() {
            let installed = read_manifest(&dir).map(|(digest, _)| digest);
            let same = installed.as_ref().is_ok_and(|digest| *digest == received.digest);
            if same {
                let problems = self.verify(&version, &mut |_| {})?.problems;
                let is_in_use = self.current()?.as_ref() == Some(&version) && !replaceable.contains(&version);
                let damage = problems.iter().find(|problem| problem.is_of_the_release());
                // What lies beside a release that runs is left alone; one that does not run is made as it was signed.
                if problems.is_empty() || (is_in_use && damage.is_none()) {
                    self.discard(&received.dir)?;
                    return self.release(&version);
                }
                if let Some(problem) = damage.filter(|_| is_in_use) {
                    return Err(StoreError::Damaged { version, problem: problem.clone() });
                }
            } else if !replaceable.contains(&version) {
                return Err(StoreError::Occupied { version, installed: installed?, offered: received.digest });
            }
            self.discard(&dir)?;
        }
        durable::rename_tree(&received.dir, &dir).map_err(file_error("name", &dir))?;
        fault::point("admitted");
        Ok(Release { version, digest: received.digest, manifest: received.manifest, dir })
    }

    /// Removes release `version` and its configuration.
    ///
    /// # Errors
    /// It is the current one, or a file operation failed: the release is whole or gone from `releases/`.
    pub fn remove(&self, version: &Version) -> Result<(), StoreError> {
        if self.current()?.as_ref() == Some(version) {
            return Err(StoreError::IsCurrent { version: version.clone() });
        }
        for dir in [self.release_dir(version), self.config_dir(version), self.config_record(version)] {
            if fs::symlink_metadata(&dir).is_ok() {
                self.discard(&dir)?;
            }
        }
        fault::point("pruned");
        Ok(())
    }

    /// Removes a package that was received and is not wanted.
    ///
    /// # Errors
    /// A file operation failed: the package is whole or gone.
    pub fn drop_received(&self, received: &Received) -> Result<(), StoreError> {
        self.discard(&received.dir)
    }

    /// Makes `current` point to release `version`; repeating it changes nothing.
    ///
    /// # Errors
    /// The link is what it was; or, if only the last sync failed, the new one may be lost.
    pub fn point_current(&self, version: &Version) -> Result<(), StoreError> {
        let target = Path::new("releases").join(version.to_string());
        let linked = spare::with_room(&self.home, || durable::replace_symlink(&self.home, CURRENT, &target));
        Ok(linked.map_err(file_error("link", &self.home.join(CURRENT)))?)
    }

    /// Returns the version that `current` points to.
    ///
    /// # Errors
    /// It is no link into `releases/`.
    pub fn current(&self) -> Result<Option<Version>, StoreError> {
        let path = self.home.join(CURRENT);
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(StoreError::CurrentIsNoLink { path });
            }
            Err(source) => return Err(FileError { action: "read", path, source }.into()),
        };
        let version =
            target.strip_prefix("releases").ok().and_then(Path::to_str).and_then(|name| Version::parse(name).ok());
        version.map(Some).ok_or(StoreError::CurrentIsNoLink { path })
    }

    /// Compares the installed release `version` with its manifest, byte for byte.
    ///
    /// # Errors
    /// It is not installed or its manifest is damaged. What is wrong with its files is in the report.
    pub fn verify(
        &self,
        version: &Version,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<VerifyReport, StoreError> {
        let report = verify::verify(&self.release(version)?, progress)?;
        if !report.problems.is_empty()
            && let Err(error) = Checked::forget(&self.releases_dir())
        {
            // The next update will still compare how the files look; the report is what matters here.
            tracing::warn!(%error, "cannot forget what was checked before");
        }
        Ok(report)
    }

    /// Does what [`Store::repair_modes`] does to release `version`, as far as its manifest can be read.
    pub fn repair_modes_of(&self, version: &Version) -> Repaired {
        self.release(version).map(|release| self.repair_modes(&release)).unwrap_or_default()
    }

    /// Gives every directory and file of `release` that belongs to this account the mode that its manifest says; what they hold is not
    /// looked at, and links are not followed.
    #[must_use]
    pub fn repair_modes(&self, release: &Release) -> Repaired {
        let mut repaired = Repaired::default();
        // Directories first: nothing is reached below one that is closed.
        for directory in release.manifest.directories() {
            let wanted = directory.mode.installed().bits();
            repaired.try_one(&release.dir.join(&directory.path), false, modes::Kind::Directory, |_was| wanted);
        }
        for file in release.manifest.files() {
            if let Body::Regular { mode, .. } = &file.body {
                let wanted = mode.installed().bits();
                repaired.try_one(&release.dir.join(&file.path), false, modes::Kind::File, |_was| wanted);
            }
        }
        repaired
    }

    /// Returns where each content already lies: in a kept release, under any name.
    pub(crate) fn content_index(&self) -> Result<ContentIndex, StoreError> {
        let mut index = ContentIndex::new();
        // The newest first, which stay longest.
        for release in self.releases()?.into_iter().rev() {
            for file in release.manifest.files() {
                if let Body::Regular { mode, sha256, size, .. } = &file.body
                    && *size > 0
                {
                    let place = Place { path: release.dir.join(&file.path), mode: mode.installed() };
                    index.entry(*sha256).or_default().push(place);
                }
            }
        }
        Ok(index)
    }

    /// Returns what is known of the files of kept releases without reading them.
    pub(crate) fn checked(&self) -> Checked {
        Checked::load(&self.releases_dir())
    }

    /// Notes what is in the tree `dir`: its contents were hashed or written a moment ago.
    pub(crate) fn note_checked(&self, checked: &mut Checked, dir: &Path, manifest: &Manifest) {
        checked.record(regular_files(dir, manifest));
        checked.store(&self.releases_dir());
    }

    pub(crate) fn releases_dir(&self) -> PathBuf {
        self.home.join(RELEASES)
    }

    /// Returns where the live configurations of all releases lie.
    pub(crate) fn configs_dir(&self) -> PathBuf {
        self.home.join("config")
    }

    /// Returns every file of every tree but `without`: kept releases, and received packages in staging.
    fn files_without(&self, without: &Path) -> Vec<(PathBuf, Digest)> {
        let mut files = Vec::new();
        let staging = self.release_staging().unwrap_or_else(|_| self.staging_dir());
        for dir in [self.releases_dir(), staging] {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for dir in entries.flatten().map(|entry| entry.path()).filter(|dir| dir != without) {
                // What has no manifest, or a damaged one, is no tree of ours.
                if let Ok((_, manifest)) = read_manifest(&dir) {
                    files.extend(regular_files(&dir, &manifest).map(|(path, sha256)| (path, *sha256)));
                }
            }
        }
        files
    }

    /// Removes a tree from its place at once, and its files after that.
    pub(crate) fn discard(&self, dir: &Path) -> Result<(), StoreError> {
        Checked::around(&self.releases_dir(), &self.files_without(dir), || self.discard_tree(dir))
    }

    fn discard_tree(&self, dir: &Path) -> Result<(), StoreError> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let is_config = dir.starts_with(self.configs_dir());
        let staging = if is_config { self.config_staging()? } else { self.release_staging()? };
        let gone = tempfile::Builder::new()
            .prefix(&format!("gone-{name}-"))
            .tempdir_in(&staging)
            .map_err(file_error("make a directory in", &staging))?
            .keep();
        durable::rename_tree(dir, &gone.join("tree")).map_err(file_error("move away", dir))?;
        Ok(durable::remove_tree(&gone).map_err(file_error("remove", &gone))?)
    }
}

/// Where contents of kept releases lie.
pub(crate) type ContentIndex = HashMap<Digest, Vec<Place>>;

/// One file of a kept release.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) mode: Mode,
}

/// Returns path and digest of each regular file that is not empty.
fn regular_files<'m>(dir: &Path, manifest: &'m Manifest) -> impl Iterator<Item = (PathBuf, &'m Digest)> {
    manifest.files().iter().filter_map(move |file| match &file.body {
        Body::Regular { sha256, size, .. } if *size > 0 => Some((dir.join(&file.path), sha256)),
        Body::Regular { .. } | Body::Link { .. } => None,
    })
}

fn read_manifest(dir: &Path) -> Result<(Digest, Manifest), StoreError> {
    let path = dir.join(manifest::INSTALLED_PATH);
    let bytes = durable::read_limited(&path, MANIFEST_BYTES_MAX).map_err(file_error("read", &path))?;
    let manifest = Manifest::parse(&bytes).map_err(|source| StoreError::Manifest { dir: dir.to_owned(), source })?;
    Ok((Digest::of(&bytes), manifest))
}
