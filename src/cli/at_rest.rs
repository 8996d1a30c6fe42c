//! The commands on an appliance at rest: what can be done with the files while no guard runs, or one whose runtime does not start.
//!
//! [`AtRest`] holds the home, so that no guard starts meanwhile; [`Files`] only looks. Nothing is started here: which release runs next is
//! journaled, and `refit run` starts it.

use std::path::PathBuf;

use nix::unistd::{User, geteuid};
use refit_base::{Chain, Exit, FileError, Report, Reported, clock};
use refit_updater::attempt::{Attempt, Ending, Kind, Outcome, Step};
use refit_updater::config::{ConfigError as MergeError, Existing, merge_config};
use refit_updater::history::{self, Entry};
use refit_updater::journal::{self, Journal, JournalError, State, TRIAL_STARTS};
use refit_updater::receive::ReceiveError;
use refit_updater::release::{Damage, Release, StoreError};
use refit_updater::removal::RemovalError;
use refit_updater::{Digest, Store};
use semver::Version;
use serde::Serialize;

use super::client::ClientError;
use super::context::Context;
use crate::config::ConfigError;
use crate::home::turn::Held;
use crate::home::{Home, HomeError, HomeLock};
use crate::wire::{RequestName, Ticket, TicketState};

/// Why something is not done on an appliance at rest.
#[derive(Debug, thiserror::Error)]
pub(super) enum AtRestError {
    /// A guard runs.
    #[error(transparent)]
    Client(ClientError),
    /// A guard runs, and what was asked for is for an appliance at rest.
    #[error("the appliance in {} runs: its guard is process {pid}", home.display())]
    Running {
        home: PathBuf,
        pid: i32,
        /// What to do.
        remedy: String,
    },
    #[error(transparent)]
    Home(HomeError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Removal(#[from] RemovalError),
    /// A release that waits for its trial, or that the trial would go back to, is not removed.
    #[error("release {version} is part of the update {from} -> {to}, which the next start tries")]
    Waits { version: Version, from: Box<Version>, to: Box<Version> },
    /// The package cannot be read.
    #[error(transparent)]
    Package(FileError),
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The history cannot be read.
    #[error("cannot read the history")]
    History(#[source] std::io::Error),
    /// The release is not whole.
    #[error("release {version} is damaged: {}", Chain(&**damage))]
    Damaged { version: Version, damage: Box<Damage> },
    /// Nothing was ever good here but the current release.
    #[error("there is no release to go back to")]
    NoPrevious,
    /// The package is not the one that was approved.
    #[error("release {version} has the digest {found}, {approved} was approved")]
    NotApproved { version: Version, found: Digest, approved: Digest },
    /// It cannot be told of which appliance this is the home.
    #[error("no release in {} can be read, and {version} is not one that was installed here", home.path().display())]
    Nameless { home: Home, version: Version },
    /// What was asked for takes a runtime.
    #[error("{what} takes an appliance that runs")]
    NeedsRuntime { what: &'static str },
}

impl From<HomeError> for AtRestError {
    fn from(error: HomeError) -> Self {
        match error {
            HomeError::InUse { home, pid } => Self::Client(ClientError::no_runtime(&home, pid)),
            error @ (HomeError::Missing { .. }
            | HomeError::Empty { .. }
            | HomeError::Lost { .. }
            | HomeError::Forbidden { .. }
            | HomeError::Foreign { .. }
            | HomeError::Moved { .. }
            | HomeError::File(_)) => Self::Home(error),
        }
    }
}

impl Reported for AtRestError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Client(error) => error.report(),
            Self::Running { remedy, .. } => Report::new("home_in_use", Exit::TryLater, remedy),
            Self::Home(error) => error.report(),
            Self::Journal(error) => error.report(),
            Self::Store(error @ StoreError::Unknown { .. }) => Report { exit: Exit::Usage, ..error.report() },
            Self::Store(error) => error.report(),
            Self::Removal(error) => error.report(),
            Self::Waits { .. } => Report::new(
                "update_waits",
                Exit::Failed,
                "`refit run` tries it; `refit recover VERSION` of the release that is to run instead gives it up; nothing was removed",
            ),
            Self::Package(_) => {
                Report::new("file_unreadable", Exit::Usage, "check the name and the permissions; nothing was changed")
            }
            Self::Receive(error) => Report { code: "package_refused", ..error.report() },
            Self::Config(error) => error.report(),
            Self::Merge(error) => error.report(),
            Self::History(_) => {
                Report::new("history_unreadable", Exit::Disk, "check the disk and the permissions of the home")
            }
            Self::Damaged { .. } => Report::new(
                "release_damaged",
                Exit::Failed,
                "`refit recover` lists the releases that are whole; its very package makes it whole, and the release that runs next: \
                 `refit install PACKAGE --allow-downgrade`",
            ),
            Self::NoPrevious => Report::new("no_previous_release", Exit::Usage, "install a release from its package"),
            Self::NotApproved { .. } => Report::new(
                "package_not_approved",
                Exit::Refused,
                "approve what it is, or choose another release; nothing was changed",
            ),
            Self::Nameless { .. } => Report::new(
                "package_refused",
                Exit::Refused,
                "install the very package of a release that was installed here; nothing was changed",
            ),
            Self::NeedsRuntime { .. } => Report::new(
                "no_running_appliance",
                Exit::Unavailable,
                "start it with `refit run`, or install a package that is a file",
            ),
        }
    }
}

/// Does `work` with the files instead of what no appliance answered to. Without any appliance, `unavailable` says more.
pub(super) fn instead(
    context: &Context,
    unavailable: ClientError,
    work: impl FnOnce() -> Result<(), AtRestError>,
) -> Result<Exit, ClientError> {
    match work() {
        Ok(()) => Ok(Exit::Done),
        Err(AtRestError::Home(HomeError::Missing { .. } | HomeError::Empty { .. })) => Err(unavailable),
        Err(error) => Ok(context.fail(&error)),
    }
}

/// The files of an appliance, to be looked at.
pub(super) struct Files {
    pub(super) store: Store,
    /// What the journal says, or its copy; `None` if neither can be read.
    pub(super) journal: Option<Journal>,
    /// Whether nothing runs that could end an attempt.
    is_at_rest: bool,
}

impl Files {
    /// Looks at the home of `context`.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(super) fn look(context: &Context) -> Result<Self, AtRestError> {
        let home = &context.home;
        home.require_appliance()?;
        let is_at_rest = home.guard().is_none();
        Ok(Self { store: Store::open(home.path())?, journal: journal::recall(home.path())?, is_at_rest })
    }

    /// Returns the journal.
    ///
    /// # Errors
    /// Neither it nor its copy can be read.
    pub(super) fn journal(&self, context: &Context) -> Result<Journal, AtRestError> {
        Ok(self.journal.clone().ok_or_else(|| context.home.without_journal())?)
    }

    /// Returns the journal as the next start makes it, if nothing runs: an attempt that was cut short is over. `None` if it is lost.
    pub(super) fn as_seen(&self) -> Option<Journal> {
        self.journal.as_ref().map(|journal| if self.is_at_rest { journal.at_rest() } else { journal.clone() })
    }

    /// Returns the attempts that ended, oldest first, those included that the journal has not given to the history yet.
    ///
    /// # Errors
    /// The history cannot be read.
    pub(super) fn history(&self) -> Result<Vec<Entry>, AtRestError> {
        let mut entries = history::read(self.store.home()).map_err(AtRestError::History)?;
        for entry in self.as_seen().iter().flat_map(|journal| &journal.finished) {
            if !entries.iter().any(|known| known.id == entry.id) {
                entries.push(entry.clone());
            }
        }
        Ok(entries)
    }

    /// Returns the releases that may be gone back to, the last good one first, the current one included.
    ///
    /// # Errors
    /// It cannot be listed which there are.
    pub(super) fn good(&self) -> Result<Vec<Version>, AtRestError> {
        if let Some(journal) = &self.journal {
            return Ok(journal.good.iter().rev().cloned().collect());
        }
        // Nobody knows: those that are there, but for what never ended well.
        let entries = self.history().unwrap_or_default();
        let mut versions = self.store.versions()?;
        versions.retain(|version| {
            let tried: Vec<Outcome> = entries
                .iter()
                .filter(|entry| entry.to == *version && entry.kind.is_attempt())
                .map(|entry| entry.outcome)
                .collect();
            tried.is_empty() || tried.contains(&Outcome::Done)
        });
        versions.reverse();
        Ok(versions)
    }
}

/// Which release runs next.
pub(super) struct Chosen {
    /// The one that was to run before, if that is known.
    pub(super) before: Option<Version>,
    pub(super) to: Version,
    start: Start,
}

/// How a release that was chosen is started.
enum Start {
    /// It was good here.
    Proven,
    /// It has to prove itself; `previous` runs again if it fails.
    OnTrial { previous: Version },
    /// It never proved good, and nothing is left to go back to: it is started as the first release of a home is.
    NoWayBack,
}

impl Chosen {
    /// Whether it has to prove itself at the next start.
    pub(super) const fn is_on_trial(&self) -> bool {
        matches!(self.start, Start::OnTrial { .. })
    }
}

impl std::fmt::Display for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let to = &self.to;
        match &self.start {
            Start::Proven => write!(f, "release {to} is whole and runs next"),
            Start::OnTrial { previous } => {
                write!(f, "release {to} is whole and is tried next; if it fails, release {previous} runs again")
            }
            Start::NoWayBack => {
                write!(f, "release {to} is whole and runs next, without a trial, for no other good release is whole")
            }
        }
    }
}

/// A home that is held: no guard starts, and one that runs starts no runtime, as long as this lives.
pub(super) struct AtRest {
    pub(super) files: Files,
    home: Home,
    lock: Lock,
}

/// What keeps a guard from starting a runtime.
enum Lock {
    /// None runs.
    Home(#[expect(dead_code, reason = "held as long as the files are worked with")] HomeLock),
    /// One runs, whose runtime does not start, and waits.
    Turn(Held),
}

impl AtRest {
    /// Takes the home of `context`.
    ///
    /// # Errors
    /// A guard has it, or there is none.
    pub(super) fn take(context: &Context) -> Result<Self, AtRestError> {
        let home = context.home.clone();
        home.require_own()?;
        home.check_owner()?;
        let lock = match HomeLock::acquire(&home, std::process::id(), || {}) {
            Ok(lock) => Lock::Home(lock),
            Err(HomeError::InUse { home: path, pid }) => {
                Lock::Turn(Held::wait(&home, pid).ok_or(HomeError::InUse { home: path, pid })?)
            }
            Err(error) => return Err(error.into()),
        };
        Store::make_missing(home.path()).map_err(HomeError::File)?;
        let files = Files::look(context)?;
        Ok(Self { files, home, lock })
    }

    /// Returns what follows, for people.
    pub(super) fn then(&self) -> String {
        match &self.lock {
            Lock::Home(_) => "start it with `refit run`".to_owned(),
            Lock::Turn(held) => format!("the guard, process {}, starts it now", held.guard),
        }
    }

    /// Has release `version`, the last good one that is whole if none is named, run from the next start on. One that never proved good
    /// here, or failed since, is on trial then, if there is a release to go back to.
    ///
    /// # Errors
    /// It is not there, or damaged; nothing was changed.
    pub(super) fn go_to(&self, version: Option<&Version>, kind: Kind, reason: &str) -> Result<Chosen, AtRestError> {
        let Files { store, journal, .. } = &self.files;
        let before = journal.as_ref().map(|journal| journal.state.wanted().clone());
        let to = match version {
            Some(version) => version.clone(),
            None => self.last_whole(before.as_ref())?,
        };
        let is_known = journal.as_ref().is_some_and(|journal| journal.good.contains(&to));
        if !is_known && !store.release_dir(&to).exists() {
            return Err(StoreError::Unknown { version: to }.into());
        }
        if let Some(damage) = self.find_damage(&to)? {
            return Err(AtRestError::Damaged { version: to, damage: Box::new(damage) });
        }
        let ending = Ending::now(Step::Committed, reason.to_owned());
        let journal = match journal.clone() {
            Some(journal) => idle(journal, &ending),
            None => {
                self.home.keep_journal_aside().map_err(HomeError::File)?;
                self.begin_anew(&to)?
            }
        };
        let proved = journal.good.contains(&to) && !journal.failed.contains_key(&to);
        let previous = if proved || *journal.state.wanted() == to { None } else { self.way_back(&journal, &to) };
        let start = match &previous {
            Some(previous) => Start::OnTrial { previous: previous.clone() },
            None if proved || *journal.state.wanted() == to => Start::Proven,
            None => Start::NoWayBack,
        };
        let next = match previous {
            Some(previous) => {
                // A rollback finds the configuration that it left; where there is none yet it is made in either case.
                let existing = if kind == Kind::Rollback { Existing::Keep } else { Existing::Replace };
                merge_config(store, Some(&previous), &to, existing)?;
                tried_next(journal, kind, previous, &store.release(&to)?)
            }
            None => journal.clone().gone_back(&to, &who(), &ending).unwrap_or(journal),
        };
        self.store(&next)?;
        Ok(Chosen { before, to, start })
    }

    /// Returns what is damaged of release `version`, once its permissions are put right.
    ///
    /// # Errors
    /// It cannot be told now: the system refuses to read it.
    pub(super) fn find_damage(&self, version: &Version) -> Result<Option<Damage>, StoreError> {
        self.files.store.repair_modes_of(version);
        self.files.store.find_damage(version, &mut || {})
    }

    /// Returns the first of `versions` that is whole, as far as that can be told.
    fn first_whole<'v>(&self, versions: impl IntoIterator<Item = &'v Version>) -> Option<Version> {
        versions.into_iter().find(|version| matches!(self.find_damage(version), Ok(None))).cloned()
    }

    /// Returns a journal in the place of one that is lost with its copy, for an appliance that is to run `to`: that is the current release, or, where
    /// the history knows that it never ended well, the last other one that is whole.
    fn begin_anew(&self, to: &Version) -> Result<Journal, AtRestError> {
        let mut good = self.files.good()?;
        let proved = good.contains(to);
        good.reverse();
        good.retain(|version| version != to);
        let other = if proved { None } else { self.first_whole(good.iter().rev()) };
        let current = other.unwrap_or_else(|| to.clone());
        if current == *to {
            good.push(to.clone());
        }
        Ok(Journal { good, ..Journal::first(current) })
    }

    /// Returns the release to go back to if `to` fails: the current one, or the last other good one that is whole.
    pub(super) fn way_back(&self, journal: &Journal, to: &Version) -> Option<Version> {
        let current = journal.state.wanted();
        let others = journal.good.iter().rev().filter(|good| *good != current && !journal.failed.contains_key(good));
        self.first_whole([current].into_iter().chain(others).filter(|version| *version != to))
    }

    /// Returns the last good release that is whole, but for `current`.
    fn last_whole(&self, current: Option<&Version>) -> Result<Version, AtRestError> {
        let mut first = None;
        for version in self.files.good()?.into_iter().filter(|version| Some(version) != current) {
            match self.find_damage(&version)? {
                None => return Ok(version),
                Some(damage) => {
                    first.get_or_insert(AtRestError::Damaged { version, damage: Box::new(damage) });
                }
            }
        }
        Err(first.unwrap_or(AtRestError::NoPrevious))
    }

    /// Writes the journal.
    ///
    /// # Errors
    /// It cannot be written, and is what it was.
    pub(super) fn store(&self, journal: &Journal) -> Result<(), AtRestError> {
        if journal::is_no_file(self.home.path()) {
            self.home.keep_journal_aside().map_err(HomeError::File)?;
        }
        Ok(journal::store(self.home.path(), journal)?)
    }
}

/// Returns the journal after the attempt that was under way, if any, has ended.
pub(super) fn idle(journal: Journal, ending: &Ending) -> Journal {
    match &journal.state {
        State::Idle { .. } => journal,
        State::Staged { .. } | State::Trial { .. } => {
            let mut ending = ending.clone().with_cause(refit_base::Cause::Machine);
            if !matches!(journal.state, State::Trial { starts_left: 0, .. }) {
                ending.reason = format!("it was never started: {}", ending.reason);
                return journal.clone().given_up(&ending).unwrap_or(journal);
            }
            journal.clone().failed(&ending).unwrap_or(journal)
        }
    }
}

/// Returns the journal with which the next start tries `release`, as if power had failed at the right moment of an update.
pub(super) fn tried_next(journal: Journal, kind: Kind, previous: Version, release: &Release) -> Journal {
    let (id, next) = (format!("rest-{:x}", clock::now().as_millisecond()), release.manifest.version().clone());
    let attempt = Attempt::begin(&id, kind, &who(), previous.clone(), next.clone(), release.digest, clock::now());
    let state = State::Trial { previous, next, starts_left: TRIAL_STARTS };
    Journal { state, attempt: Some(attempt), ..journal }
}

/// Returns who works with the files, as the history shows it.
pub(super) fn who() -> String {
    let uid = geteuid();
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    format!("{name} (local)")
}

/// What is said in JSON of a request that has come to its end here.
#[derive(Debug, Serialize)]
pub(super) struct EndedHere {
    ticket: TicketHere,
    /// The release that runs next.
    version: Version,
    /// Whether it is tried.
    trial: bool,
}

#[derive(Debug, Serialize)]
struct TicketHere {
    #[serde(flatten)]
    ticket: Ticket,
    /// Nobody: nothing runs.
    asked: [(); 0],
}

/// Returns what is said in JSON of a `request` that is done here: release `next` runs next, maybe on trial.
pub(super) fn done(request: RequestName, next: &Version, is_trial: bool) -> EndedHere {
    let open = Ticket::open(format!("rest-{:x}", clock::now().as_millisecond()), request, who());
    let ticket = Ticket { state: TicketState::Done, exit: Some(Exit::Done.code()), ..open };
    EndedHere { ticket: TicketHere { ticket, asked: [] }, version: next.clone(), trial: is_trial }
}
