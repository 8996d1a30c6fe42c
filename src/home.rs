//! `REFIT_HOME`: where everything of one appliance lies, and the lock that makes its holder the only one.
//!
//! [`HomeLock`] is held by the guard and shared with the runtime, so that the home stays locked until the last of the two is
//! gone. Below `releases/` nothing is named here: that is the updater's. Who may read and write what is in
//! [`modes`]; [`Home::repair`] puts it right at each start, and [`acl`] opens the live configuration to components.

pub mod acl;
pub mod names;
mod run;
pub mod trouble;
pub mod turn;

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User, geteuid};
use refit_base::{Chain, Exit, FileError, Report, Reported, file_error};
use refit_updater::history::HISTORY_FILE;
use refit_updater::journal::{self, JOURNAL_FILE, Journal};
use refit_updater::{durable, modes, spare};
use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::process::{Pid, test_kill_process};

use crate::process::stat::Stat;

/// How long a new guard waits for a runtime whose guard is gone: it stops its components first, within their deadlines.
pub const ORPHAN_WAIT_MAX: Duration = Duration::from_secs(60);
/// How often the lock is tried meanwhile: the kernel tells nobody when a lock is free.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Where a journal goes that is none, before another one takes its place.
const DAMAGED_FILE: &str = "state.json.damaged";
/// The file in `run/` that says which process the guard is.
const PID_FILE: &str = "pid";

/// The directory of one appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// Returns the home at `path`, which is taken from the working directory `cwd` and followed over links: one home has one name. Of one
    /// that is not there yet its directory is followed.
    pub fn new(cwd: &Path, path: &Path) -> Self {
        let given: PathBuf = cwd.join(path).components().collect();
        let followed = given.canonicalize().ok().or_else(|| {
            let (above, name) = (given.parent()?, given.file_name()?);
            Some(above.canonicalize().ok()?.join(name))
        });
        Self(followed.unwrap_or(given))
    }

    /// Returns its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Finds out whether the home of an appliance that runs is where it was.
    ///
    /// # Errors
    /// It was moved or removed.
    pub fn require(&self) -> Result<(), HomeError> {
        match fs::symlink_metadata(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(HomeError::Moved { home: self.0.clone() }),
            Ok(_) | Err(_) => Ok(()), // what else is wrong shows when it is read
        }
    }

    /// Returns whether the appliance ever ran, as far as it is known from what `journal` says, and what a run leaves: a cleaner may have
    /// removed some of that.
    pub fn has_run(&self, journal: &Journal) -> bool {
        let was_updated = journal.good.len() > 1 || !journal.failed.is_empty() || !journal.finished.is_empty();
        was_updated || [self.log(), self.0.join(HISTORY_FILE)].iter().any(|path| path.exists())
    }

    /// Has it be known that the appliance runs.
    ///
    /// # Errors
    /// The disk does not let it: the next start is taken for the first one.
    pub fn note_run(&self) -> io::Result<()> {
        durable::create_dirs(&self.log(), modes::of("log"))
    }

    /// Returns whether its disk is read-only.
    pub fn is_read_only(&self) -> bool {
        run::is_read_only(&self.0)
    }

    /// Returns the directory of sockets and PID file: that of the home, or one in memory while the disk is read-only.
    pub fn run(&self) -> PathBuf {
        run::in_memory(&self.0).unwrap_or_else(|| self.0.join("run"))
    }

    /// Returns the API's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.run().join("refit.sock")
    }

    /// Returns the socket of those who take part in the bus.
    pub fn bus_socket(&self) -> PathBuf {
        self.run().join("bus.sock")
    }

    /// Returns the directory of second names of the sockets, by which those in `run/` are made again.
    pub fn socket_names(&self) -> PathBuf {
        self.run().join(".sockets")
    }

    /// Returns the socket on which the runtime reports to the guard.
    pub fn guard_socket(&self) -> PathBuf {
        self.run().join("guard.sock")
    }

    /// Returns the directory of the components' notification sockets.
    pub fn notify(&self) -> PathBuf {
        self.run().join("notify")
    }

    /// Returns the file that says which process the guard is.
    pub fn pid_file(&self) -> PathBuf {
        self.run().join(PID_FILE)
    }

    /// Returns the file whose lock keeps the appliance from restarting by itself.
    pub fn inhibitor(&self) -> PathBuf {
        self.run().join("inhibit")
    }

    /// Returns the directory of a release.
    pub fn release(&self, version: &semver::Version) -> PathBuf {
        self.0.join("releases").join(version.to_string())
    }

    /// Returns the directory of a release's live configuration.
    pub fn config(&self, version: &semver::Version) -> PathBuf {
        self.0.join("config").join(version.to_string())
    }

    /// Returns the components' own directory.
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Returns the directory of what the components printed.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Returns the process that has the home, as the kernel lists it, if there is one. Nothing is locked for that.
    pub fn guard(&self) -> Option<i32> {
        File::open(&self.0).and_then(|directory| holder_of(&directory)).ok().filter(|pid| *pid > 0)
    }

    /// Returns whether an appliance was installed here once, whatever became of its journal: the link to the release that runs is made
    /// in the last step but one.
    pub fn had_appliance(&self) -> bool {
        fs::symlink_metadata(self.0.join(refit_updater::release::CURRENT)).is_ok()
    }

    /// Returns what is wrong with a home of whose journal and copy neither can be read.
    pub fn without_journal(&self) -> HomeError {
        let home = self.0.clone();
        if self.had_appliance() || journal::exists(&home) {
            HomeError::Lost { home }
        } else {
            HomeError::Empty { home }
        }
    }

    /// Finds out whether an appliance is installed here, whatever became of its journal, and whether this account may look at it.
    ///
    /// # Errors
    /// There is none, or it is another account's.
    pub fn require_appliance(&self) -> Result<(), HomeError> {
        let home = self.0.clone();
        let journal = home.join(JOURNAL_FILE);
        let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        match fs::metadata(&home) {
            Ok(found) if found.is_dir() => {}
            Err(error) if is_denied(&error) => return Err(self.forbidden(error)),
            Ok(_) | Err(_) => return Err(HomeError::Missing { home }),
        }
        // What is this account's own and closed all the same is put right when it is run.
        let is_others = |path: &Path| fs::metadata(path).is_ok_and(|found| found.uid() != geteuid().as_raw());
        match fs::symlink_metadata(&journal) {
            // A directory or a pipe in its place is opened by nobody.
            Ok(found) if found.is_file() => match File::open(&journal) {
                Err(error) if is_denied(&error) && is_others(&journal) => Err(self.forbidden(error)),
                Ok(_) | Err(_) => Ok(()), // what else is wrong shows when it is read
            },
            Err(error) if is_denied(&error) => {
                if is_others(&home) {
                    Err(self.forbidden(error))
                } else {
                    Ok(())
                }
            }
            Ok(_) | Err(_) if self.had_appliance() || journal::exists(&home) => Ok(()),
            Ok(_) | Err(_) => Err(HomeError::Empty { home }),
        }
    }

    /// The same, and whether this account may change something in it.
    ///
    /// # Errors
    /// As [`Home::require_appliance`], or it may only look.
    pub fn require_own(&self) -> Result<(), HomeError> {
        self.require_appliance()?;
        let is_others = fs::metadata(&self.0).is_ok_and(|found| found.uid() != geteuid().as_raw());
        match access(&self.0, Access::WRITE_OK) {
            Err(rustix::io::Errno::ACCESS) if is_others => Err(self.forbidden(rustix::io::Errno::ACCESS.into())),
            Ok(()) | Err(_) => Ok(()), // a disk that is read-only, for example, has words of its own
        }
    }

    fn forbidden(&self, source: io::Error) -> HomeError {
        let owner = fs::metadata(&self.0).map_or(0, |found| found.uid());
        let owner = name_of(owner);
        let remedy = as_account(&owner);
        HomeError::Forbidden { home: self.0.clone(), owner, remedy, source }
    }

    /// Gives a journal that cannot be read a second name, under which somebody may look at it; one that is missing leaves an earlier one.
    ///
    /// # Errors
    /// It cannot have it.
    pub fn keep_journal_aside(&self) -> Result<(), FileError> {
        let (journal, aside) = (self.0.join(JOURNAL_FILE), self.0.join(DAMAGED_FILE));
        let kept = match fs::symlink_metadata(&journal) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            // What is no file has no second name, and may be a directory with anything in it: no other takes its place.
            Ok(found) if !found.is_file() || aside.is_dir() => durable::rename(&journal, &free_name(&aside)),
            Ok(_) => durable::remove_file(&aside).and_then(|()| durable::hard_link(&journal, &aside)),
        };
        kept.map_err(file_error("keep the damaged journal as", &aside))
    }

    /// Returns the file with the accounts.
    pub fn users(&self) -> PathBuf {
        self.0.join("auth").join("users.json")
    }

    /// Lets this account into its own home, as far as it takes to see whether it is one.
    pub fn make_passable(&self) {
        if let Err(error) = fs::symlink_metadata(self.0.join("releases"))
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            durable::set_owner_write(&self.0).ok(); // what follows says that it cannot be looked into
        }
    }

    /// Gives what Refit made in the home the modes that it must have, and has `say` hear of each that had another, or cannot be
    /// changed. That is no reason to stop: the appliance runs as well as it did.
    pub fn repair(&self, say: impl FnMut(&str)) {
        tell(&modes::repair(&self.0), say);
    }

    /// Closes the machine's own settings to those who need not read them, once the appliance runs with them.
    pub fn close_settings(&self, say: impl FnMut(&str)) {
        tell(&modes::close_settings(&self.0), say);
    }

    /// Refuses a home of which what decides who is admin, and which releases are accepted, belongs to another account.
    ///
    /// # Errors
    /// It does, or cannot be looked at.
    pub fn check_owner(&self) -> Result<(), HomeError> {
        let Some(modes::Foreign { path, owner }) = modes::find_foreign(&self.0)? else { return Ok(()) };
        Err(HomeError::Foreign { path, owner: name_of(owner), own: name_of(geteuid().as_raw()) })
    }
}

/// Returns the name of the account `number`.
pub fn name_of(number: u32) -> String {
    let user = User::from_uid(Uid::from_raw(number)).ok().flatten();
    user.map_or_else(|| number.to_string(), |user| user.name)
}

/// Returns how the command is run as the account `owner` of the home, or as root.
pub fn as_account(owner: &str) -> String {
    match owner {
        "root" => "run it as root, or as the account that runs the appliance (`sudo refit ...`)".to_owned(),
        name => format!("run it as {name}, which owns the appliance, or as root (`sudo -u {name} refit ...`)"),
    }
}

/// Has `say` hear of what was repaired, and of what could not be.
fn tell(modes::Repaired { repairs, failures }: &modes::Repaired, mut say: impl FnMut(&str)) {
    repairs.iter().for_each(|repair| say(&repair.to_string()));
    failures.iter().for_each(|failure| say(&Chain(failure).to_string()));
}

/// A home that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The directory does not exist.
    #[error("there is no home {}", home.display())]
    Missing {
        /// The directory.
        home: PathBuf,
    },
    /// The directory exists, but no appliance was ever installed there.
    #[error("no appliance is installed in {}", home.display())]
    Empty {
        /// The directory.
        home: PathBuf,
    },
    /// An appliance was installed there, and neither its journal nor the copy is there and whole.
    #[error("the update journal of {} is lost: neither state.json nor its copy can be read", home.display())]
    Lost {
        /// The directory.
        home: PathBuf,
    },
    /// Another guard runs the appliance.
    #[error("the home {} is in use by another guard, process {pid}", home.display())]
    InUse {
        /// The directory.
        home: PathBuf,
        /// The other guard.
        pid: i32,
    },
    /// This account may not look into it, or not change anything there.
    #[error("the home {} belongs to the account {owner}, and is closed to this account", home.display())]
    Forbidden {
        /// The directory.
        home: PathBuf,
        /// The account.
        owner: String,
        /// What to do.
        remedy: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another account could make itself admin.
    #[error("{} belongs to the account {owner}, and refit runs as {own}", path.display())]
    Foreign {
        /// What belongs to it.
        path: PathBuf,
        /// The account.
        owner: String,
        /// The account that this process has.
        own: String,
    },
    /// It is somewhere else now, or nowhere.
    #[error("the home {} is not there any more: it was moved or removed while the appliance runs", home.display())]
    Moved {
        /// Where it was.
        home: PathBuf,
    },
    /// A file of the home cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Reported for HomeError {
    fn report(&self) -> Report<'_> {
        const NAME_ANOTHER: &str =
            "name the right directory with --home, or make it with `refit init PACKAGE --home DIR --root ROOT`";
        match self {
            Self::Missing { .. } => Report::new("home_missing", Exit::Config, NAME_ANOTHER),
            Self::Empty { .. } => Report::new("home_empty", Exit::Config, NAME_ANOTHER),
            Self::Lost { .. } => Report::new(
                "journal_lost",
                Exit::Config,
                "`refit recover` lists the releases that are whole, and `refit recover VERSION` has one of them run; nothing was changed",
            ),
            Self::InUse { .. } => Report::new(
                "home_in_use",
                Exit::TryLater,
                "stop the other one first, or use its page; nothing was changed",
            ),
            Self::Forbidden { remedy, .. } => Report::new("home_forbidden", Exit::Unavailable, remedy),
            Self::Foreign { .. } => Report::new(
                "home_foreign",
                Exit::Config,
                "run refit as the account that the home belongs to, or see what that account has changed and give all of it back \
                 with `chown -R`; nothing was started",
            ),
            Self::Moved { .. } => Report::new(
                "home_moved",
                Exit::Config,
                "move it back, or end this `refit run` and start it with the home where it is now; nothing was changed",
            ),
            Self::File(_) => Report::new("home_unusable", Exit::Disk, "check the disk and the permissions of the home"),
        }
    }
}

/// Holding this is being the guard of the home, or the runtime that the guard shared it with.
#[derive(Debug)]
pub struct HomeLock {
    file: File,
    /// The directory itself, whose lock nobody can remove: of the guard alone.
    _directory: File,
}

impl HomeLock {
    /// Locks `home` for the process `pid`.
    ///
    /// When the guard that wrote its PID into the lock is gone but its runtime still stops, this waits for the runtime, up to
    /// [`ORPHAN_WAIT_MAX`], and calls `waiting` once before.
    ///
    /// # Errors
    /// Another guard lives, or the file cannot be used.
    pub fn acquire(home: &Home, pid: u32, waiting: impl FnOnce()) -> Result<Self, HomeError> {
        let directory = lock_directory(home)?;
        let is_read_only = run::choose(home.path()).map_err(file_error("use", home.path()))?;
        let path = home.path().join("run/lock");
        let failed = |source| file_error("use", &path)(source);
        let mut file = open_lock(home, &path, is_read_only).map_err(failed)?;
        let deadline = Instant::now() + ORPHAN_WAIT_MAX;
        let mut waiting = Some(waiting);
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let holder = read_pid(&mut file).map_err(failed)?;
                    // What cannot be written says who it was before; the lock of the directory says that nobody is.
                    if (!is_read_only && is_alive(holder)) || Instant::now() >= deadline {
                        return Err(HomeError::InUse { home: home.path().to_owned(), pid: holder });
                    }
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(error) => return Err(failed(error.into()).into()),
            }
        }
        let text = format!("{pid}\n");
        let write = || file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
        if !is_read_only {
            spare::with_room(home.path(), write).map_err(failed)?;
        }
        Ok(Self { file, _directory: directory })
    }

    /// Returns a descriptor that holds the same lock, for the runtime.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

/// Returns `path`, or, where something is there, the first name with a number after it that nothing has.
fn free_name(path: &Path) -> PathBuf {
    let numbered = (1_u32..).map(|number| PathBuf::from(format!("{}.{number}", path.display())));
    let mut names = std::iter::once(path.to_owned()).chain(numbered);
    names.find(|name| fs::symlink_metadata(name).is_err()).unwrap_or_else(|| path.to_owned())
}

/// Opens the lock of the home at `path`: where nothing can be written as it is, or in memory.
fn open_lock(home: &Home, path: &Path, is_read_only: bool) -> io::Result<File> {
    if !is_read_only {
        durable::create_dirs(&home.run(), modes::of("run"))?;
        return durable::open_or_create(path, modes::of("run/lock"));
    }
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            durable::open_or_create(&home.run().join("lock"), modes::of("run/lock"))
        }
        opened => opened,
    }
}

/// Locks the directory of the home, whose `run/lock` a cleaner may have removed while its guard lives.
///
/// # Errors
/// Another guard lives, or the directory cannot be opened.
fn lock_directory(home: &Home) -> Result<File, HomeError> {
    let directory = File::open(home.path()).map_err(file_error("open", home.path()))?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = holder_of(&directory).map_err(file_error("use", home.path()))?;
            Err(HomeError::InUse { home: home.path().to_owned(), pid })
        }
        // A file system that locks no directories has `run/lock`.
        Ok(()) | Err(_) => Ok(directory),
    }
}

/// Returns the process that holds the lock of `file`, as the kernel lists it, proc_locks(5); 0 if it is not shown.
fn holder_of(file: &File) -> io::Result<i32> {
    let inode = format!(":{}", file.metadata()?.ino());
    let locks = fs::read_to_string("/proc/locks")?;
    let holder = locks.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        // Number, kind, whether it binds, what it allows, process, place, from, to; one that waits has an arrow after the number.
        let [_, "FLOCK", _, _, pid, place, ..] = columns.as_slice() else { return None };
        place.ends_with(&inode).then(|| pid.parse().ok())?
    });
    Ok(holder.unwrap_or(0))
}

/// The file that says which process the guard is, as long as this value lives. Whoever reads it finds a whole number or no
/// file; at the end only the own one is removed.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    text: String,
}

impl PidFile {
    /// Writes the file of the holder of `_lock`.
    ///
    /// # Errors
    /// It cannot be written; what was there before still is.
    pub fn write(home: &Home, pid: u32, _lock: &HomeLock) -> Result<Self, HomeError> {
        let path = home.pid_file();
        let text = format!("{pid}\n");
        // After a power cut no process has this number any more.
        spare::with_room(home.path(), || {
            durable::replace_dispensable(&home.run(), PID_FILE, text.as_bytes(), modes::of("run/pid"))
        })
        .map_err(file_error("use", &path))?;
        Ok(Self { path, text })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            fs::remove_file(&self.path).ok(); // one that stays names a process that is no more; the next guard replaces it
        }
    }
}

fn read_pid(file: &mut File) -> io::Result<i32> {
    let mut text = String::new();
    file.rewind()?;
    file.take(32).read_to_string(&mut text)?;
    Ok(text.trim().parse().unwrap_or(0))
}

/// Whether a process of that number exists; one that we may not signal exists, too.
fn is_alive(pid: i32) -> bool {
    let is_there = Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH));
    // One that has ended is there until its parent has collected it, which some never do.
    is_there && Stat::of(pid).map_or(true, |stat| stat.lives)
}
