//! The life of one update, as data: no clock, no disk, no network.
//!
//! [`State`] is what the journal stores; [`State::next`] is the only way from one state to another; [`Journal`] is the whole
//! document with what belongs to the state: the attempt under way, the one that just ended, and which releases proved good
//! or bad. The caller writes the new journal first and acts on it second. [`select_release`] is asked at every start, by
//! whoever starts, so a crash at any instruction needs no path of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use refit_base::{Cause, Exit, Report, Reported, clock};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, Ending, Kind, Outcome, Step};
use crate::digest::Digest;
use crate::durable;
use crate::history::Entry;
use crate::modes;
use crate::spare;

/// The version of the journal's format that this code writes, and the only one that it reads.
pub const JOURNAL_FORMAT: u32 = 1;
/// The journal's file below the home.
pub const JOURNAL_FILE: &str = "state.json";
/// Its copy in the home, for when the journal is damaged or gone. Nothing waits until the disk has it.
pub const COPY_FILE: &str = "state.json.copy";
/// How often a release on trial may be started: once. A crash, a hang or a power cut then means the previous release.
pub const TRIAL_STARTS: u32 = 1;
/// The largest journal that is read: a hundred releases with their reasons fit many times over.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 20;
/// How many releases that failed are remembered: enough for a repository that offers the same few again.
pub const FAILED_MAX: usize = 64;
/// How many attempts that ended the journal keeps while the history cannot be written: weeks of an appliance whose disk is damaged
/// in one place.
pub const FINISHED_MAX: usize = 32;
/// How much output they keep, the newest aside: the journal has to fit into the blocks that are put aside for a full disk.
pub const EARLIER_BYTES_MAX: usize = 32 << 10;

/// Where the appliance stands between two releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", deny_unknown_fields)]
pub enum State {
    /// One release runs and no update is under way.
    Idle {
        /// The release that runs.
        current: Version,
    },
    /// The next release is complete on disk and being examined; the current one runs untouched.
    Staged {
        /// The release that runs.
        current: Version,
        /// The release that is to replace it.
        next: Version,
    },
    /// The next release runs, or is about to, and has not proved healthy yet.
    Trial {
        /// The release to go back to.
        previous: Version,
        /// The release on trial.
        next: Version,
        /// How often it may still be started.
        starts_left: u32,
    },
}

/// What can happen to the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A release was unpacked, verified and given its name.
    Admitted(Version),
    /// The next release was examined and may be tried: the running release is about to stop.
    Approved,
    /// A runtime is about to be started. Written before the start, by the side that works.
    Started,
    /// The release on trial proved healthy.
    Healthy,
    /// The update failed, or was given up.
    Failed,
}

/// An event that has no meaning in a state. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the journal cannot take the event {event:?} in the state {state:?}")]
pub struct Impossible {
    /// The state, unchanged.
    pub state: Box<State>,
    /// The event.
    pub event: Box<Event>,
}

impl Impossible {
    fn new(state: State, event: Event) -> Self {
        Self { state: Box::new(state), event: Box::new(event) }
    }
}

impl State {
    /// Returns the state after `event`.
    ///
    /// # Errors
    /// The event has no meaning here; the error has the state unchanged.
    pub fn next(self, event: Event) -> Result<Self, Impossible> {
        match self {
            Self::Idle { ref current } => match event {
                Event::Admitted(next) => Ok(Self::Staged { current: current.clone(), next }),
                Event::Started => Ok(self),
                Event::Approved | Event::Healthy | Event::Failed => Err(Impossible::new(self, event)),
            },
            Self::Staged { current, next } => match event {
                Event::Approved => Ok(Self::Trial { previous: current, next, starts_left: TRIAL_STARTS }),
                Event::Started | Event::Failed => Ok(Self::Idle { current }),
                Event::Admitted(_) | Event::Healthy => Err(Impossible::new(Self::Staged { current, next }, event)),
            },
            Self::Trial { previous, next, starts_left } => match event {
                Event::Healthy => Ok(Self::Idle { current: next }),
                Event::Failed => Ok(Self::Idle { current: previous }),
                Event::Started if starts_left == 0 => Ok(Self::Idle { current: previous }),
                Event::Started => Ok(Self::Trial { previous, next, starts_left: starts_left - 1 }),
                Event::Admitted(_) | Event::Approved => {
                    Err(Impossible::new(Self::Trial { previous, next, starts_left }, event))
                }
            },
        }
    }

    /// Returns the release that has to run in this state, the one that the `current` link names.
    pub const fn wanted(&self) -> &Version {
        match self {
            Self::Idle { current } | Self::Staged { current, .. } => current,
            Self::Trial { next, .. } => next,
        }
    }
}

/// A release that was tried and did not prove healthy, by what it did itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedRelease {
    /// The digest of its manifest.
    pub digest: Digest,
    /// Why it failed.
    pub reason: String,
    /// When, RFC 3339.
    pub at: String,
}

/// The journal's document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// Where the appliance stands.
    pub state: State,
    /// The attempt that `Staged` or `Trial` belongs to.
    pub attempt: Option<Attempt>,
    /// Attempts that ended but may not be in the history yet, oldest first: each is appended there, once, and then cleared.
    pub finished: Vec<Entry>,
    /// Releases that proved good, newest last; the current one is the last of them.
    pub good: Vec<Version>,
    /// Releases that failed by what they did: they are not offered again unless somebody names them.
    pub failed: BTreeMap<Version, FailedRelease>,
}

impl Journal {
    /// Returns the journal of an appliance whose first release is `current`.
    pub fn first(current: Version) -> Self {
        Self {
            state: State::Idle { current: current.clone() },
            attempt: None,
            finished: Vec::new(),
            good: vec![current],
            failed: BTreeMap::new(),
        }
    }

    /// Returns the release to go back to when nobody names one: the last good one before the current.
    pub fn previous(&self) -> Option<&Version> {
        match &self.state {
            State::Trial { previous, .. } => Some(previous),
            State::Idle { current } | State::Staged { current, .. } => {
                self.good.iter().rev().find(|version| *version != current)
            }
        }
    }

    /// Returns the journal after the attempt under way has failed, with its history entry.
    ///
    /// # Errors
    /// No attempt is under way.
    pub fn failed(mut self, ending: &Ending) -> Result<Self, Impossible> {
        let tried = matches!(self.state, State::Trial { .. });
        self.state = self.state.next(Event::Failed)?;
        self.finish(if tried { Outcome::RolledBack } else { Outcome::Failed }, ending);
        Ok(self)
    }

    /// Returns the journal after the attempt under way was given up before its release was started, with its history entry.
    ///
    /// # Errors
    /// No attempt is under way.
    pub fn given_up(mut self, ending: &Ending) -> Result<Self, Impossible> {
        self.state = self.state.next(Event::Failed)?;
        self.finish(Outcome::Failed, ending);
        Ok(self)
    }

    /// Returns the journal with the entry of one more attempt that ended. While the history cannot be written they gather here:
    /// [`FINISHED_MAX`] of them, and the output of the older ones only as far as [`EARLIER_BYTES_MAX`].
    #[must_use]
    pub fn with_finished(mut self, entry: Entry) -> Self {
        if self.finished.len() == FINISHED_MAX {
            self.finished.remove(0);
        }
        let mut bytes = 0;
        for earlier in self.finished.iter_mut().rev() {
            bytes += earlier.output.iter().map(String::len).sum::<usize>();
            if bytes > EARLIER_BYTES_MAX {
                earlier.output.clear();
            }
        }
        self.finished.push(entry);
        self
    }

    /// Returns the journal after the release on trial has proved healthy, with its history entry.
    ///
    /// # Errors
    /// No release is on trial.
    pub fn healthy(mut self, ending: &Ending) -> Result<Self, Impossible> {
        self.state = self.state.next(Event::Healthy)?;
        let current = self.state.wanted().clone();
        self.failed.remove(&current);
        self.good.retain(|version| *version != current);
        self.good.push(current);
        self.finish(Outcome::Done, ending);
        Ok(self)
    }

    /// Returns the journal after the appliance has gone back to release `to`, without a trial, with its history entry: the guard because the
    /// current release is damaged, or an operator while nothing runs. `None` where an attempt is under way, or `to` is the current one.
    ///
    /// The release that it leaves stays among the good ones, with its configuration: installed again from its package, it is whole.
    #[must_use]
    pub fn gone_back(mut self, to: &Version, who: &str, ending: &Ending) -> Option<Self> {
        let State::Idle { current } = &self.state else { return None };
        if to == current {
            return None;
        }
        let entry = Entry {
            id: format!("back-{:x}", ending.at.as_millisecond()),
            at: clock::rfc3339(ending.at),
            who: who.to_owned(),
            kind: Kind::Rollback.into(),
            from: current.clone(),
            to: to.clone(),
            outcome: Outcome::Done,
            step: ending.step.clone(),
            reason: (!ending.reason.is_empty()).then(|| ending.reason.clone()),
            reason_code: (!ending.reason_code.is_empty()).then(|| ending.reason_code.clone()),
            component: None,
            output: Vec::new(),
            duration_ms: 0,
            durations: BTreeMap::new(),
            cause: None,
            exit: None,
        };
        self.state = State::Idle { current: to.clone() };
        self.good.retain(|version| version != to);
        self.good.push(to.clone());
        Some(self.with_finished(entry))
    }

    fn finish(&mut self, outcome: Outcome, ending: &Ending) {
        let Some(attempt) = self.attempt.take() else { return };
        if outcome != Outcome::Done && ending.cause == Cause::Release {
            self.failed.insert(
                attempt.to.clone(),
                FailedRelease { digest: attempt.digest, reason: ending.reason.clone(), at: clock::rfc3339(ending.at) },
            );
            while self.failed.len() > FAILED_MAX {
                self.failed.pop_first();
            }
        }
        *self = self.clone().with_finished(Entry::of(attempt, outcome, ending));
    }
}

impl Journal {
    /// Returns the journal as the next start makes it, for an appliance at rest: an attempt that was cut short is over. A release that waits for
    /// its trial still waits.
    #[must_use]
    pub fn at_rest(&self) -> Self {
        match &self.state {
            State::Trial { starts_left: 1.., .. } => self.clone(),
            State::Idle { .. } | State::Staged { .. } | State::Trial { .. } => {
                let ending =
                    Ending::now(Step::Trial, "it was cut short; nothing runs".to_owned()).with_code("cut_short");
                select_release(self, &ending.with_cause(Cause::Machine)).1.unwrap_or_else(|| self.clone())
            }
        }
    }
}

/// Returns the release to start and the journal to write before it is started; `None` if the journal stays as it is.
///
/// `ending` says what was seen of a start that went before, in case that start was a trial.
pub fn select_release(journal: &Journal, ending: &Ending) -> (Version, Option<Journal>) {
    let Ok(state) = journal.state.clone().next(Event::Started) else {
        return (journal.state.wanted().clone(), None); // `Started` has a meaning in every state
    };
    let mut next = journal.clone();
    match (&journal.state, &state) {
        (State::Trial { .. }, State::Idle { .. }) => next.finish(Outcome::RolledBack, ending),
        (State::Staged { .. }, State::Idle { .. }) => {
            // Whoever examined the release has gone before it could be tried: that says nothing against the release.
            if let Some(attempt) = next.attempt.take() {
                next = next.with_finished(Entry::of(attempt, Outcome::Failed, ending));
            }
        }
        (State::Idle { .. } | State::Staged { .. } | State::Trial { .. }, _) => {}
    }
    next.state = state;
    let wanted = next.state.wanted().clone();
    let changed = next != *journal;
    (wanted, changed.then_some(next))
}

/// A journal that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read.
    #[error("cannot read the update journal {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no journal, or one of a newer format.
    #[error("the update journal {} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The file is a journal of another format.
    #[error("the update journal {} has the format {found}; this program knows {JOURNAL_FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The file cannot be replaced.
    #[error("cannot write the update journal {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Reported for JournalError {
    fn report(&self) -> Report<'_> {
        let (exit, remedy) = match self {
            Self::Read { .. } => (
                Exit::Disk,
                "check the disk, and run the command as the account of the home; where the file is lost, `mv state.json state.json.lost` in the \
                 home has its copy used",
            ),
            Self::Damaged { .. } => (
                Exit::Config,
                "`refit recover` lists the releases that are whole, and `refit recover VERSION` has one of them run; nothing was changed",
            ),
            Self::Format { .. } => (Exit::Config, "start the refit that wrote it; nothing was changed"),
            Self::Write { .. } => (Exit::Disk, "free space or check the disk; the journal is as it was"),
        };
        Report::new("journal_unusable", exit, remedy)
    }
}

/// The document as it is on disk: separate from [`Journal`], because another version of this program may read it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JournalV1 {
    format: u32,
    state: State,
    attempt: Option<Attempt>,
    finished: Option<FinishedV1>,
    good: Vec<Version>,
    failed: BTreeMap<Version, FailedRelease>,
}

/// The newest attempt that ended, with those before it: a field that older programs pass over.
#[derive(Serialize, Deserialize)]
struct FinishedV1 {
    #[serde(flatten)]
    newest: Entry,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Entry>,
}

impl FinishedV1 {
    fn of(mut finished: Vec<Entry>) -> Option<Self> {
        let newest = finished.pop()?;
        Some(Self { newest, earlier: finished })
    }

    fn into_entries(self) -> Vec<Entry> {
        self.earlier.into_iter().chain([self.newest]).collect()
    }
}

/// Reads only the format, so that a newer journal is refused by its number and not by its fields.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// Returns the journal of the home `home`; `None` if it has none yet.
///
/// # Errors
/// The file cannot be read, is damaged or has another format. Nothing was changed.
pub fn load(home: &Path) -> Result<Option<Journal>, JournalError> {
    read(&home.join(JOURNAL_FILE))
}

/// Whether what lies at the place of the journal of the home `home` is no file at all, but a directory, a pipe, or the like.
pub fn is_no_file(home: &Path) -> bool {
    fs::metadata(home.join(JOURNAL_FILE)).is_ok_and(|found| !found.is_file())
}

/// Returns the same, or, where the file is gone, damaged or no file, what its copy says: that may be older by the last step. `None` if that is of
/// no use either, in whatever way: the journal is lost, or there never was one.
///
/// # Errors
/// The file may be whole, and cannot be read; or one of the two has another format.
pub fn recall(home: &Path) -> Result<Option<Journal>, JournalError> {
    match load(home) {
        Ok(None) | Err(JournalError::Damaged { .. }) => {}
        Err(JournalError::Read { .. }) if is_no_file(home) => {}
        loaded => return loaded,
    }
    match read(&home.join(COPY_FILE)) {
        Ok(copy) => Ok(copy),
        Err(error @ JournalError::Format { .. }) => Err(error),
        Err(JournalError::Read { .. } | JournalError::Damaged { .. } | JournalError::Write { .. }) => Ok(None),
    }
}

fn read(path: &Path) -> Result<Option<Journal>, JournalError> {
    let bytes = match durable::read_limited(path, JOURNAL_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(JournalError::Read { path: path.to_owned(), source }),
    };
    let damaged = |source| JournalError::Damaged { path: path.to_owned(), source };
    let FormatOnly { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if format != JOURNAL_FORMAT {
        return Err(JournalError::Format { path: path.to_owned(), found: format });
    }
    let JournalV1 { format: _, state, attempt, finished, good, failed } =
        serde_json::from_slice(&bytes).map_err(damaged)?;
    let finished = finished.map(FinishedV1::into_entries).unwrap_or_default();
    Ok(Some(Journal { state, attempt, finished, good, failed }))
}

/// Replaces the journal of the home `home`, also on a full disk: see [`crate::spare`]. Its copy follows.
///
/// # Errors
/// As [`durable::replace`]: nothing has changed, or only the last sync failed.
pub fn store(home: &Path, journal: &Journal) -> Result<(), JournalError> {
    let failed = |source| JournalError::Write { path: home.join(JOURNAL_FILE), source };
    let bytes = to_bytes(journal).map_err(failed)?;
    spare::replace(home, JOURNAL_FILE, &bytes, modes::of(JOURNAL_FILE)).map_err(failed)?;
    store_copy(home, &bytes);
    Ok(())
}

/// Makes the copy of the journal what `journal`, which was loaded, says: a program that keeps no copy may have written that.
pub fn refresh_copy(home: &Path, journal: &Journal) {
    if let Ok(bytes) = to_bytes(journal)
        && durable::read_limited(&home.join(COPY_FILE), JOURNAL_BYTES_MAX).ok().as_ref() != Some(&bytes)
    {
        store_copy(home, &bytes);
    }
}

fn store_copy(home: &Path, bytes: &[u8]) {
    // An old copy would be worse than none.
    if durable::replace_dispensable(home, COPY_FILE, bytes, modes::of(COPY_FILE)).is_err() {
        drop(durable::remove_file(&home.join(COPY_FILE)));
    }
}

fn to_bytes(journal: &Journal) -> io::Result<Vec<u8>> {
    let document = JournalV1 {
        format: JOURNAL_FORMAT,
        state: journal.state.clone(),
        attempt: journal.attempt.clone(),
        finished: FinishedV1::of(journal.finished.clone()),
        good: journal.good.clone(),
        failed: journal.failed.clone(),
    };
    Ok(serde_json::to_vec_pretty(&document)?)
}

/// Returns whether a journal or its copy exists in the home `home`, that is: whether an appliance was installed there.
pub fn exists(home: &Path) -> bool {
    [JOURNAL_FILE, COPY_FILE].iter().any(|name| fs::symlink_metadata(home.join(name)).is_ok())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).expect("a version")
    }
    fn idle(current: &str) -> State {
        State::Idle { current: version(current) }
    }
    fn staged() -> State {
        State::Staged { current: version("1.0.0"), next: version("1.1.0") }
    }
    fn trial(starts_left: u32) -> State {
        State::Trial { previous: version("1.0.0"), next: version("1.1.0"), starts_left }
    }

    #[test]
    fn every_state_takes_every_event_as_the_table_says() {
        use Event::{Admitted, Approved, Failed, Healthy, Started};
        let new = || Admitted(version("1.1.0"));
        let rows: Vec<(State, Event, Option<State>)> = vec![
            (idle("1.0.0"), new(), Some(staged())),
            (idle("1.0.0"), Started, Some(idle("1.0.0"))),
            (idle("1.0.0"), Approved, None),
            (idle("1.0.0"), Healthy, None),
            (idle("1.0.0"), Failed, None),
            (staged(), new(), None),
            (staged(), Started, Some(idle("1.0.0"))),
            (staged(), Approved, Some(trial(1))),
            (staged(), Healthy, None),
            (staged(), Failed, Some(idle("1.0.0"))),
            (trial(1), new(), None),
            (trial(1), Approved, None),
            (trial(1), Started, Some(trial(0))),
            (trial(1), Healthy, Some(idle("1.1.0"))),
            (trial(1), Failed, Some(idle("1.0.0"))),
            (trial(0), new(), None),
            (trial(0), Approved, None),
            (trial(0), Started, Some(idle("1.0.0"))),
            (trial(0), Healthy, Some(idle("1.1.0"))),
            (trial(0), Failed, Some(idle("1.0.0"))),
        ];
        for (state, event, expected) in rows {
            let outcome = state.clone().next(event.clone());
            match expected {
                Some(expected) => assert_eq!(outcome, Ok(expected), "{state:?} {event:?}"),
                None => assert_eq!(outcome, Err(Impossible::new(state, event))),
            }
        }
    }

    fn ending() -> Ending {
        Ending {
            at: Timestamp::from_millisecond(5_000).expect("a time"),
            at_ns: 0,
            step: Step::Trial,
            reason: "the runtime ended: signal 6".into(),
            reason_code: "runtime_died".into(),
            component: None,
            output: vec!["oh".into()],
            cause: Cause::Release,
            exit: None,
        }
    }

    fn on_trial(starts_left: u32) -> Journal {
        let mut journal = Journal::first(version("1.0.0"));
        journal.state = trial(starts_left);
        let (from, to) = (version("1.0.0"), version("1.1.0"));
        let digest = Digest::of(b"manifest");
        journal.attempt = Some(Attempt::begin("t-1", Kind::Update, "cli", from, to, digest, Timestamp::UNIX_EPOCH));
        journal
    }

    #[test]
    fn a_second_start_of_a_trial_selects_the_previous_release_and_says_why() {
        let (wanted, journal) = select_release(&on_trial(0), &ending());
        let journal = journal.expect("a change");
        assert_eq!(wanted, version("1.0.0"));
        assert_eq!(journal.state, idle("1.0.0"));
        let failed = &journal.failed[&version("1.1.0")];
        assert_eq!(
            (failed.reason.as_str(), failed.at.as_str()),
            ("the runtime ended: signal 6", "1970-01-01T00:00:05.000Z")
        );
        let [entry] = journal.finished.as_slice() else { panic!("one entry: {:?}", journal.finished) };
        assert_eq!((entry.outcome, entry.duration_ms), (Outcome::RolledBack, 5_000));
        assert_eq!(entry.at, "1970-01-01T00:00:05.000Z");
    }

    #[test]
    fn a_release_is_marked_for_what_it_did_and_not_for_the_machines_trouble() {
        let machine = ending().with_cause(Cause::Machine);
        for (journal, ending, marked) in [
            (on_trial(0).failed(&ending()).expect("on trial"), ending(), true),
            (on_trial(0).failed(&machine).expect("on trial"), machine.clone(), false),
            (on_trial(0).given_up(&machine).expect("on trial"), machine.clone(), false),
            (select_release(&on_trial(0), &machine).1.expect("a change"), machine.clone(), false),
        ] {
            assert_eq!(journal.failed.contains_key(&version("1.1.0")), marked);
            assert_eq!(journal.state, idle("1.0.0"));
            assert_eq!(journal.finished[0].cause, Some(ending.cause));
        }
    }

    #[test]
    fn selecting_twice_is_selecting_once() {
        let (_, first) = select_release(&on_trial(0), &ending());
        let first = first.expect("a change");
        assert_eq!(select_release(&first, &ending()), (version("1.0.0"), None));
    }

    #[test]
    fn attempts_that_ended_gather_until_they_are_in_the_history() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = on_trial(0).healthy(&ending()).expect("it was on trial");
        store(dir.path(), &journal).expect("stored");
        // As an older program wrote it, and reads it: one entry, whatever else it says.
        let read = || fs::read(dir.path().join(JOURNAL_FILE)).expect("read");
        let text: serde_json::Value = serde_json::from_slice(&read()).expect("JSON");
        let entry = &journal.finished[0];
        assert_eq!(serde_json::from_value::<Entry>(text["finished"].clone()).expect("an entry"), *entry);
        assert!(text["finished"].get("earlier").is_none());
        let long = Entry { output: vec!["x".repeat(EARLIER_BYTES_MAX); 2], ..entry.clone() };
        for number in 0..FINISHED_MAX {
            journal = journal.with_finished(Entry { id: format!("n-{number}"), ..long.clone() });
        }
        store(dir.path(), &journal).expect("stored");
        assert!(read().len() < EARLIER_BYTES_MAX * 4, "{}", read().len());
        let loaded = load(dir.path()).expect("loaded").expect("a journal");
        assert_eq!(loaded, journal);
        let ids: Vec<&str> = loaded.finished.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!((ids.len(), ids[0], ids[FINISHED_MAX - 1]), (FINISHED_MAX, "n-0", "n-31"));
        assert_eq!(loaded.finished[FINISHED_MAX - 1].output.len(), 2);
    }

    #[test]
    fn the_journal_survives_its_file_and_refuses_a_newer_format() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(load(dir.path()).expect("no journal is no error"), None);
        let journal = on_trial(1);
        store(dir.path(), &journal).expect("stored");
        assert_eq!(load(dir.path()).expect("loaded"), Some(journal));
        durable::replace(dir.path(), JOURNAL_FILE, br#"{"format":2,"news":[]}"#).expect("replaced");
        let error = load(dir.path()).expect_err("a newer format");
        assert!(error.to_string().ends_with("has the format 2; this program knows 1"), "{error}");
    }
}
