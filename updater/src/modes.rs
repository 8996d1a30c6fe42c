//! The modes of what Refit makes in a home: one table, [`PLACES`], and the repair of what differs from it.
//!
//! What is made has the mode of its place, whatever umask the process has. What was changed since is repaired at a start: what is
//! too open is closed, what is too closed for those who need it is opened. Links are not followed, and what belongs to another
//! account is left alone: see [`find_foreign`] for what that means. Below a release the modes are those of its manifest, and
//! below `data/` they are the components' own, once a directory is made.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_PATH};
use refit_base::{FileError, file_error};
use semver::Version;

use crate::manifest::DIR_MODE;

/// Permissions of a directory that everybody may look into.
pub const OPEN_DIR: u32 = 0o755;
/// Permissions of a directory that is nobody else's business.
pub const PRIVATE_DIR: u32 = 0o700;
/// Permissions of a file that is nobody else's business.
pub const PRIVATE_FILE: u32 = 0o600;
/// Permissions of a file that the home's group may read, and no component: it may hold what components printed, or a password.
pub const STATE_FILE: u32 = 0o640;
/// Permissions of the directory of what components print, and of each one's below it.
pub const LOG_DIR: u32 = 0o750;
/// Permissions of a release's live configuration: the accounts of its components are let in one by one.
pub const CONFIG_DIR: u32 = 0o750;
/// The same where the file system keeps no access lists: its files then say themselves who reads them.
pub const CONFIG_DIR_WITHOUT_LISTS: u32 = 0o751;
/// The machine's own settings, which the admin writes.
const SETTINGS: &str = "local.toml";
/// The bits by which everybody may read.
const READABLE: u32 = 0o444;
/// The bits of a mode that say who may do what.
const PERMISSIONS: u32 = 0o777;

/// What lies at a [`Place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A Unix socket.
    Socket,
}

/// A place in a home.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its path below the home; `VERSION` is any version, `*` any name, and empty the home itself.
    pub path: &'static str,
    /// What lies there.
    pub kind: Kind,
    /// The mode it is made with.
    pub mode: u32,
    /// The bits that it must have.
    pub least: u32,
    /// The bits that it may have.
    pub most: u32,
    /// Why it is so open and not more.
    pub why: &'static str,
}

impl Place {
    /// Returns the permissions that something here gets which has `mode`.
    fn repaired(&self, mode: u32) -> u32 {
        // What is too open is as it was made again; of what is too closed no more is opened than must be.
        if mode & !self.most == 0 { mode | self.least } else { self.mode }
    }
}

const fn exactly(path: &'static str, kind: Kind, mode: u32, why: &'static str) -> Place {
    Place { path, kind, mode, least: mode, most: mode, why }
}

/// A directory that accounts of components pass through: they need no more than that.
const fn passed(path: &'static str, why: &'static str) -> Place {
    Place { path, kind: Kind::Directory, mode: OPEN_DIR, least: 0o711, most: OPEN_DIR, why }
}

/// Every place, a directory before what lies in it.
pub const PLACES: &[Place] = &[
    passed("", "components pass through it; nobody else puts anything there"),
    passed("releases", "components pass through it"),
    exactly("releases/VERSION", Kind::Directory, DIR_MODE, "read-only; below it the modes are those of its manifest"),
    exactly("releases/VERSION/.refit", Kind::Directory, DIR_MODE, "as the release"),
    exactly("releases/VERSION/.refit/manifest.json", Kind::File, 0o444, "as the release"),
    exactly("releases/.checked.json", Kind::File, 0o644, "digests of what everybody may read"),
    passed("config", "components pass through it"),
    Place {
        path: "config/VERSION",
        kind: Kind::Directory,
        mode: CONFIG_DIR,
        least: CONFIG_DIR,
        most: CONFIG_DIR_WITHOUT_LISTS,
        why: "it may hold secrets: an access list lets the accounts of the release's components in; the modes of its files are the \
              admin's",
    },
    exactly("config/.merged", Kind::Directory, PRIVATE_DIR, "digests of what may be secret"),
    exactly("config/.merged/*", Kind::File, PRIVATE_FILE, "as the directory"),
    Place {
        path: "data",
        kind: Kind::Directory,
        mode: OPEN_DIR,
        least: 0o711,
        most: PERMISSIONS,
        why: "components pass through it; what lies below it is theirs",
    },
    Place {
        path: "data/*",
        kind: Kind::Directory,
        mode: 0o750,
        least: 0,
        most: PERMISSIONS,
        why: "made for a component that names it in `data`, with its account and group; from then on it is theirs",
    },
    exactly("trust", Kind::Directory, OPEN_DIR, "public keys: everybody may read them, and nobody else change them"),
    exactly("trust/*", Kind::File, 0o644, "as the directory"),
    exactly("staging", Kind::Directory, PRIVATE_DIR, "what arrives is nobody's business until it is verified"),
    exactly("releases/.staging", Kind::Directory, PRIVATE_DIR, "the same, where `releases` is a mount of its own"),
    exactly("config/.staging", Kind::Directory, PRIVATE_DIR, "the same, where `config` is a mount of its own"),
    passed("run", "components reach their sockets through it"),
    exactly("run/lock", Kind::File, PRIVATE_FILE, "who holds it is the guard"),
    exactly("run/inhibit", Kind::File, PRIVATE_FILE, "who holds it keeps the appliance from restarting"),
    exactly("run/turn", Kind::File, PRIVATE_FILE, "who holds it says what is started while no runtime starts"),
    exactly("run/trouble.json", Kind::File, STATE_FILE, "it may quote what the runtime printed"),
    exactly("run/pid", Kind::File, 0o644, "everybody may know the guard's process"),
    exactly("run/guard.sock", Kind::Socket, PRIVATE_FILE, "the runtime reports there, and nobody else"),
    exactly("run/refit.sock", Kind::Socket, 0o660, "the API is for root, this account and the operators' group"),
    exactly("run/bus.sock", Kind::Socket, 0o666, "every account may connect; who asks is known by process and token"),
    exactly(
        "run/.sockets",
        Kind::Directory,
        PRIVATE_DIR,
        "second names of the sockets: those in `run` are made again from them",
    ),
    exactly("run/.sockets/refit.sock", Kind::Socket, 0o660, "as in `run`"),
    exactly("run/.sockets/bus.sock", Kind::Socket, 0o666, "as in `run`"),
    exactly("run/.sockets/notify", Kind::Directory, PRIVATE_DIR, "the same of the sockets on which components report"),
    exactly("run/.sockets/notify/*", Kind::Socket, PRIVATE_FILE, "a component reports there, and nobody else"),
    exactly("auth", Kind::Directory, PRIVATE_DIR, "who writes here is admin"),
    exactly("auth/*", Kind::File, PRIVATE_FILE, "hashes of passwords"),
    exactly("log", Kind::Directory, LOG_DIR, "what components print may be secret; the home's group may read it"),
    exactly("log/*", Kind::Directory, LOG_DIR, "as the directory above"),
    exactly("log/*/*", Kind::File, STATE_FILE, "as the directory"),
    exactly("state.json", Kind::File, STATE_FILE, "it quotes what components printed"),
    exactly("state.json.copy", Kind::File, STATE_FILE, "as the journal"),
    exactly("history.jsonl", Kind::File, STATE_FILE, "it quotes what components printed"),
    exactly("history.jsonl.1", Kind::File, STATE_FILE, "the entries before those"),
    exactly(".spare", Kind::File, PRIVATE_FILE, "it holds nothing"),
    Place {
        path: SETTINGS,
        kind: Kind::File,
        mode: STATE_FILE,
        least: 0o400,
        most: STATE_FILE,
        why: "it may hold secrets, and says which programs run; the admin writes it",
    },
];

/// Returns the mode that something at `path`, which is written as in [`PLACES`], is made with.
#[must_use]
pub fn of(path: &str) -> u32 {
    // A place that is not in the table is nobody else's business until it is.
    PLACES.iter().find(|place| place.path == path).map_or(PRIVATE_FILE, |place| place.mode)
}

/// A mode that was repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// What had it.
    pub path: PathBuf,
    /// The permissions it had.
    pub was: u32,
    /// The permissions it has.
    pub now: u32,
}

impl std::fmt::Display for Repair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, was, now } = self;
        let how = match (was & !now != 0, now & !was != 0) {
            (true, false) => "too open",
            (false, _) => "too closed",
            (true, true) => "wrong",
        };
        write!(f, "{} had the mode {was:04o}, which is {how}; it has {now:04o} now", path.display())
    }
}

/// What a repair did.
#[derive(Debug, Default)]
pub struct Repaired {
    /// What was changed.
    pub repairs: Vec<Repair>,
    /// What could not be.
    pub failures: Vec<FileError>,
}

/// Gives everything in the home `home` that belongs to this account a mode that its place may have.
///
/// What is missing is passed over, and so are links. Nothing is synced: a mode that a power cut takes back is repaired again.
#[must_use]
pub fn repair(home: &Path) -> Repaired {
    let mut repaired = Repaired::default();
    for place in PLACES {
        // Who reads that is not changed while nobody knows whether the appliance can be started with it: see `close_settings`.
        let readable = if place.path == SETTINGS { READABLE } else { 0 };
        let place = Place { most: place.most | readable, ..*place };
        for path in found(home, place.path) {
            repaired.try_one(&path, place.path.is_empty(), place.kind, |mode| place.repaired(mode));
        }
    }
    repaired
}

/// Closes the machine's own settings to those who need not read them. For an appliance that runs with them: one that cannot be
/// started leaves everything as the admin has it.
#[must_use]
pub fn close_settings(home: &Path) -> Repaired {
    let mut repaired = Repaired::default();
    for place in PLACES.iter().filter(|place| place.path == SETTINGS) {
        repaired.try_one(&home.join(SETTINGS), false, place.kind, |mode| place.repaired(mode));
    }
    repaired
}

impl Repaired {
    /// Gives what lies at `path`, if it is of this kind and ours, the permissions that `wanted` makes of those it has.
    pub(crate) fn try_one(&mut self, path: &Path, follow: bool, kind: Kind, wanted: impl FnOnce(u32) -> u32) {
        match repair_one(path, follow, kind, wanted) {
            Ok(repair) => self.repairs.extend(repair),
            // Whatever lies below a directory that cannot be entered is not there for us either.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => self.failures.push(file_error("set the mode of", path)(error)),
        }
    }
}

/// Returns the paths below `home` that `pattern` names, but for what lies behind a link: that leads away from what is ours.
fn found(home: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut paths = vec![home.to_owned()];
    for name in pattern.split('/').filter(|name| !name.is_empty()) {
        paths.retain(|dir| dir == home || fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir()));
        let is_named = |found: &str| match name {
            "*" => true,
            _version => Version::parse(found).is_ok(),
        };
        paths = match name {
            "*" | "VERSION" => {
                let entries = paths.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
                let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_named));
                named.map(|entry| entry.path()).collect()
            }
            name => paths.into_iter().map(|dir| dir.join(name)).collect(),
        };
    }
    paths
}

fn repair_one(path: &Path, follow: bool, kind: Kind, wanted: impl FnOnce(u32) -> u32) -> io::Result<Option<Repair>> {
    // A descriptor of the place alone: it takes no right on what lies there, and what is looked at is what is changed.
    let flags = O_PATH | if follow { 0 } else { O_NOFOLLOW };
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let looks = file.metadata()?;
    let is_kind = match kind {
        Kind::Directory => looks.is_dir(),
        Kind::File => looks.is_file(),
        Kind::Socket => looks.file_type().is_socket(),
    };
    let mode = looks.permissions().mode();
    let was = mode & PERMISSIONS;
    let now = wanted(was);
    if !is_kind || was == now || looks.uid() != nix::unistd::geteuid().as_raw() {
        return Ok(None);
    }
    // What a directory hands on to what is made in it is the admin's.
    let special = if looks.is_dir() { mode & 0o7000 } else { 0 };
    set_mode(&file, special | now)?;
    Ok(Some(Repair { path: path.to_owned(), was, now }))
}

/// Sets the mode of what `file` leads to, also where it was opened as a place alone, which fchmod(2) refuses.
pub(crate) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), Permissions::from_mode(mode))
}

/// Something that belongs to an account which must not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// What.
    pub path: PathBuf,
    /// The account's number.
    pub owner: u32,
}

/// Returns what of the home itself, its accounts and its trust belongs to neither this account nor root, if anything does:
/// that account could make itself admin, or have releases of its own accepted.
///
/// # Errors
/// It cannot be looked at.
pub fn find_foreign(home: &Path) -> Result<Option<Foreign>, FileError> {
    let mut below = Vec::new();
    // At the top a link is followed: who may write to the home has put it there, and what it leads to counts.
    for path in [home.to_owned(), home.join("auth"), home.join("trust")] {
        let Some(looks) = unless_missing(fs::metadata(&path)).map_err(file_error("look at", &path))? else { continue };
        if !is_ours(&looks) {
            return Ok(Some(Foreign { path, owner: looks.uid() }));
        }
        if path != home {
            below.push(path);
        }
    }
    while let Some(dir) = below.pop() {
        // One that is closed to this account is of no use to anybody else but root.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.map_err(file_error("read", &dir))?.path();
            let looks = unless_missing(fs::symlink_metadata(&path)).map_err(file_error("look at", &path))?;
            match looks {
                Some(looks) if !is_ours(&looks) => return Ok(Some(Foreign { path, owner: looks.uid() })),
                Some(looks) if looks.is_dir() => below.push(path),
                Some(_) | None => {}
            }
        }
    }
    Ok(None)
}

fn is_ours(looks: &Metadata) -> bool {
    looks.uid() == 0 || looks.uid() == nix::unistd::geteuid().as_raw()
}

fn unless_missing(looks: io::Result<Metadata>) -> io::Result<Option<Metadata>> {
    match looks {
        Ok(looks) => Ok(Some(looks)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_made_as_it_may_be_and_comes_after_its_directory() {
        for (number, place) in PLACES.iter().enumerate() {
            assert_eq!(place.repaired(place.mode), place.mode, "{}", place.path);
            assert_eq!(place.least & !place.most, 0, "{}", place.path);
            if let Some((above, _)) = place.path.rsplit_once('/') {
                assert!(PLACES[..number].iter().any(|other| other.path == above), "{}", place.path);
            }
        }
    }

    #[test]
    fn what_is_too_open_is_closed_and_what_is_too_closed_is_opened() {
        let check = |path: &str, rows: &[(u32, u32)]| {
            let place = PLACES.iter().find(|place| place.path == path).unwrap();
            for (was, now) in rows {
                assert_eq!(place.repaired(*was), *now, "{path}: {was:04o}");
            }
        };
        check("", &[(0o777, 0o755), (0o775, 0o755), (0o000, 0o711), (0o700, 0o711), (0o711, 0o711), (0o751, 0o751)]);
        check("auth", &[(0o777, 0o700), (0o000, 0o700), (0o755, 0o700)]);
        check("config/VERSION", &[(0o755, 0o750), (0o700, 0o750), (0o751, 0o751), (0o777, 0o750), (0o000, 0o750)]);
        check("data", &[(0o700, 0o711), (0o777, 0o777), (0o750, 0o751)]);
        check("local.toml", &[(0o644, 0o640), (0o600, 0o600), (0o666, 0o640), (0o000, 0o400)]);
    }
}
