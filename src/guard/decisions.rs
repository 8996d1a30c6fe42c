//! Which release runs: what the journal says, what the guard remembers of it, and what it could not write.
//!
//! The decision never waits for the disk. The guard remembers the last journal that it could read; a journal that is unreadable
//! for a while is no reason to run nothing, or something else. A decision that cannot be written holds all the same: it is
//! remembered, passed on to the runtime ([`Decided`]), and written at the next start if the journal is still the one that it
//! was made for.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use refit_base::Chain;
use refit_updater::attempt::{Begun, Ending};
use refit_updater::decided::{Decided, GUARD};
use refit_updater::journal::{self, JOURNAL_FILE, Journal, JournalError, State};
use semver::Version;

use super::GuardError;
use crate::home::Home;

/// What makes the journal's file another one: it is replaced as a whole.
type Look = (u64, u64, i64, i64);

/// The decisions of one guard.
#[derive(Debug)]
pub(super) struct Decisions {
    home: PathBuf,
    /// What the journal says, or would say if the last decision had been written.
    known: Journal,
    /// The journal on disk, where it lacks the last decision, and how that attempt ended.
    unwritten: Option<(Journal, Ending)>,
    look: Option<Look>,
    /// The last attempt that the runtime told of, and when it began: nanoseconds of the monotonic clock.
    begun: Option<(String, u64)>,
    /// Whether the journal on disk is one that only a newer program understands.
    is_foreign: bool,
}

/// What runs next.
#[derive(Debug)]
pub(super) struct Decision {
    /// The release.
    pub(super) version: Version,
    /// The release that just failed its trial, if that is why.
    pub(super) failed: Option<Version>,
    /// What the runtime has to know because the journal does not say it.
    pub(super) unwritten: Option<Decided>,
    /// What is wrong with the journal, for people.
    pub(super) trouble: Option<String>,
}

impl Decisions {
    /// Returns the decisions about `home`, whose journal was just read.
    pub(super) fn new(home: &Path, known: Journal) -> Self {
        Self { home: home.to_owned(), known, unwritten: None, look: look(home), begun: None, is_foreign: false }
    }

    /// Returns the decisions about `home`. Its journal is put right from its copy where it is damaged or gone, which is said.
    ///
    /// # Errors
    /// Neither says which release runs.
    pub(super) fn recalled(home: &Path) -> Result<(Self, Option<String>), GuardError> {
        let trouble = match journal::load(home) {
            Ok(Some(journal)) => {
                journal::refresh_copy(home, &journal);
                return Ok((Self::new(home, journal), None));
            }
            Ok(None) => gone(home),
            Err(error) => Chain(&error).to_string(),
        };
        let copy = journal::recall(home)?.ok_or_else(|| Home::new(home, home).without_journal())?;
        let mut decisions = Self::new(home, copy);
        let said = match decisions.keep_aside().and_then(|()| decisions.store()) {
            Ok(()) => format!("{trouble}; it was replaced by its copy"),
            Err(error) => format!("{trouble}; its copy is believed, and cannot take its place: {error}"),
        };
        decisions.look = look(home);
        Ok((decisions, Some(said)))
    }

    /// Reads the journal if its file is another one than at the last look. One that cannot be read changes nothing.
    pub(super) fn refresh(&mut self) {
        let look = look(&self.home);
        if look.is_some() && look != self.look {
            let _trouble = self.read();
        }
    }

    /// Writes the journal back if its file is gone, for the guard that comes next.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn put_back(&self) -> Result<(), JournalError> {
        let path = self.home.join(JOURNAL_FILE);
        let is_gone = fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_gone && !self.is_foreign { journal::store(&self.home, &self.known) } else { Ok(()) }
    }

    /// Returns whether the end of the runtime is the end of a trial: the next start is of another release.
    pub(super) fn is_trial(&self) -> bool {
        !self.is_foreign && matches!(self.known.state, State::Trial { .. })
    }

    /// Returns the release that is on trial.
    pub(super) fn on_trial(&self) -> Option<&Version> {
        self.is_trial().then(|| self.known.state.wanted())
    }

    /// Returns the journal if it says which release runs, and no attempt is under way.
    pub(super) fn settled(&self) -> Option<&Journal> {
        (!self.is_foreign && matches!(self.known.state, State::Idle { .. })).then_some(&self.known)
    }

    /// Has release `to` run from the next start on, because the current one is damaged, as `ending` says. Written there, too.
    pub(super) fn go_back(&mut self, to: &Version, ending: &Ending) {
        let Some(next) = self.known.clone().gone_back(to, GUARD, ending) else { return };
        let before = std::mem::replace(&mut self.known, next);
        let on_disk = self.unwritten.take().map_or(before, |(on_disk, _)| on_disk);
        self.unwritten = Some((on_disk, ending.clone()));
    }

    /// Notes when an attempt began, as the runtime says it: its name and the moment.
    pub(super) fn note_attempt(&mut self, text: &str) {
        let said = text.rsplit_once(' ').and_then(|(id, begun)| Some((id.to_owned(), begun.parse().ok()?)));
        self.begun = said.or(self.begun.take());
    }

    /// Decides what runs next, and journals it if it can. `ending` says how the runtime before ended.
    pub(super) fn decide(&mut self, ending: &Ending) -> Decision {
        let trouble = self.read();
        if self.is_foreign {
            // Only the release that wrote it can say what it means, and that is the one that ran.
            return self.decision(None, trouble.map(|trouble| trouble.text));
        }
        if let (Some(attempt), Some((id, begun_ns))) = (&mut self.known.attempt, &self.begun)
            && attempt.id == *id
        {
            attempt.begun = Begun(Some(*begun_ns));
        }
        let (_, changed) = journal::select_release(&self.known, ending);
        let failed = match (&self.known.state, changed.as_ref().map(|changed| &changed.state)) {
            (State::Trial { next, .. }, Some(State::Idle { .. })) => Some(next.clone()),
            (State::Idle { .. } | State::Staged { .. } | State::Trial { .. }, _) => None,
        };
        let can_mend = trouble.as_ref().is_some_and(|trouble| trouble.can_mend);
        let has_changed = changed.is_some();
        let next = changed.unwrap_or_else(|| self.known.clone());
        let before = std::mem::replace(&mut self.known, next);
        if has_changed {
            let on_disk = self.unwritten.take().map_or(before, |(on_disk, _)| on_disk);
            self.unwritten = Some((on_disk, ending.clone()));
        }
        if self.unwritten.is_none() && !can_mend {
            return self.decision(failed, trouble.map(|trouble| trouble.text));
        }
        let said = trouble.as_ref().map(|trouble| trouble.text.clone());
        let written = match &trouble {
            Some(trouble) if !trouble.can_mend => Err(trouble.text.clone()),
            Some(_) => self.keep_aside(),
            None => Ok(()),
        }
        .and_then(|()| self.store());
        let trouble = match written {
            Ok(()) => {
                self.unwritten = None;
                self.look = look(&self.home);
                said.map(|text| format!("{text}; it was replaced by what was last read of it"))
            }
            Err(text) => Some(text),
        };
        self.decision(failed, trouble)
    }

    fn decision(&self, failed: Option<Version>, trouble: Option<String>) -> Decision {
        let version = self.known.state.wanted().clone();
        let unwritten = self.unwritten.as_ref();
        let unwritten = unwritten.map(|(journal, ending)| Decided::new(journal, &version, ending));
        Decision { version, failed, unwritten, trouble }
    }

    /// Reads the journal. Returns why it cannot be believed.
    fn read(&mut self) -> Option<Trouble> {
        self.look = look(&self.home);
        let error = match journal::load(&self.home) {
            Ok(Some(journal)) => {
                self.is_foreign = false;
                // One without the last decision is the one that it was made for; any other was written since.
                if self.unwritten.as_ref().is_none_or(|(before, _)| *before != journal) {
                    self.known = journal;
                    self.unwritten = None;
                }
                return None;
            }
            Ok(None) => {
                return Some(Trouble { text: gone(&self.home), can_mend: true });
            }
            Err(error) => error,
        };
        let can_mend = match &error {
            JournalError::Damaged { .. } => true,
            JournalError::Format { .. } => {
                self.is_foreign = true;
                false
            }
            // It may be whole, and newer than what is remembered.
            JournalError::Read { .. } | JournalError::Write { .. } => false,
        };
        Some(Trouble { text: Chain(&error).to_string(), can_mend })
    }

    /// Writes what is known to the disk.
    fn store(&self) -> Result<(), String> {
        journal::store(&self.home, &self.known).map_err(|error| Chain(&error).to_string())
    }

    /// Gives a file that is not a journal a second name, under which somebody may look at it.
    fn keep_aside(&self) -> Result<(), String> {
        Home::new(&self.home, &self.home).keep_journal_aside().map_err(|error| Chain(&error).to_string())
    }
}

/// Says that there is no journal.
fn gone(home: &Path) -> String {
    format!("the update journal {} is gone", home.join(JOURNAL_FILE).display())
}

/// Why the journal on disk cannot be believed.
struct Trouble {
    text: String,
    /// Whether there is nothing in it that what is remembered could overwrite.
    can_mend: bool,
}

fn look(home: &Path) -> Option<Look> {
    let found = fs::symlink_metadata(home.join(JOURNAL_FILE)).ok()?;
    Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed, and does to the disk what anybody may"
)]
mod tests {
    use jiff::Timestamp;
    use refit_updater::Digest;
    use refit_updater::attempt::{Attempt, Kind, Step};

    use super::*;

    fn version(minor: u64) -> Version {
        Version::new(1, minor, 0)
    }

    fn trial(starts_left: u32) -> Journal {
        let (digest, now) = (Digest::of(b""), Timestamp::UNIX_EPOCH);
        let attempt = Attempt::begin("1", Kind::Update, "cli", version(0), version(1), digest, now);
        let state = State::Trial { previous: version(0), next: version(1), starts_left };
        Journal { state, attempt: Some(attempt), ..Journal::first(version(0)) }
    }

    fn ending() -> Ending {
        Ending::now(Step::Probation, "the runtime was killed".into())
    }

    /// Returns a home whose journal is `journal`, and what a guard decides there.
    fn home(journal: &Journal) -> (tempfile::TempDir, Decisions) {
        let home = tempfile::tempdir().unwrap();
        journal::store(home.path(), journal).unwrap();
        let decisions = Decisions::new(home.path(), journal.clone());
        (home, decisions)
    }

    fn on_disk(home: &Path) -> Journal {
        journal::load(home).unwrap().unwrap()
    }

    #[test]
    fn a_journal_that_is_no_journal_is_replaced_by_what_is_remembered_and_kept() {
        for damage in ["", "{", "{}", "{\"format\":1}", "\0\0\0"] {
            let (home, mut decisions) = home(&Journal::first(version(0)));
            let path = home.path().join(JOURNAL_FILE);
            fs::write(&path, damage).unwrap();
            let decision = decisions.decide(&ending());
            assert_eq!((decision.version, decision.unwritten), (version(0), None));
            assert!(decision.trouble.unwrap().contains("it was replaced"));
            assert_eq!(on_disk(home.path()), Journal::first(version(0)));
            assert_eq!(fs::read_to_string(home.path().join("state.json.damaged")).unwrap(), damage);
            fs::remove_file(&path).unwrap();
            assert!(decisions.decide(&ending()).trouble.unwrap().contains("is gone"));
            assert_eq!(on_disk(home.path()), Journal::first(version(0)));
            assert_eq!(decisions.decide(&ending()).trouble, None);
        }
    }

    #[test]
    fn one_that_cannot_be_read_is_left_alone_and_a_trial_without_starts_means_the_previous_release() {
        let (home, mut decisions) = home(&trial(0));
        let path = home.path().join(JOURNAL_FILE);
        let saved = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        for number in 0..3 {
            let decision = decisions.decide(&ending());
            assert_eq!((decision.version, decision.failed), (version(0), (number == 0).then(|| version(1))));
            assert!(decision.trouble.is_some() && path.is_dir());
            let decided = decision.unwritten.unwrap().applied_to(&trial(0)).unwrap();
            assert_eq!(decided.state, State::Idle { current: version(0) });
            assert!(!decisions.is_trial());
        }
        // Once it can be read again the decision is written, and not made again.
        fs::remove_dir(&path).unwrap();
        fs::write(&path, saved).unwrap();
        let decision = decisions.decide(&Ending::now(Step::Exec, "something else".into()));
        assert_eq!((decision.version, decision.unwritten, decision.trouble), (version(0), None, None));
        let written = on_disk(home.path());
        assert_eq!(written.state, State::Idle { current: version(0) });
        assert_eq!(written.finished[0].reason.as_ref().unwrap(), "the runtime was killed");
    }

    #[test]
    fn what_was_written_meanwhile_wins_over_what_is_remembered() {
        let (home, mut decisions) = home(&trial(0));
        fs::rename(home.path(), home.path().with_extension("away")).unwrap();
        assert_eq!(decisions.decide(&ending()).version, version(0), "nothing can be read or written");
        fs::rename(home.path().with_extension("away"), home.path()).unwrap();
        let newer = Journal::first(version(3));
        journal::store(home.path(), &newer).unwrap();
        decisions.refresh();
        let decision = decisions.decide(&ending());
        assert_eq!((decision.version, decision.unwritten), (version(3), None));
        assert_eq!(on_disk(home.path()), newer);
    }

    #[test]
    fn starts_of_a_trial_are_counted_also_where_nothing_can_be_written() {
        let (home, mut decisions) = home(&trial(1));
        fs::rename(home.path(), home.path().with_extension("away")).unwrap();
        assert_eq!(decisions.decide(&ending()).version, version(1));
        assert!(decisions.is_trial());
        assert_eq!(decisions.decide(&ending()).version, version(0));
        assert_eq!(decisions.decide(&ending()).version, version(0));
        fs::remove_dir_all(home.path().with_extension("away")).unwrap();
    }

    #[test]
    fn a_damaged_release_is_left_also_where_nothing_can_be_written() {
        let known = Journal { good: vec![version(0), version(1)], ..Journal::first(version(1)) };
        let (home, mut decisions) = home(&known);
        let away = home.path().with_extension("away");
        fs::rename(home.path(), &away).unwrap();
        let ending = Ending::now(Step::Committed, "release 1.1.0 is damaged".into());
        decisions.go_back(&version(0), &ending);
        let decision = decisions.decide(&self::ending());
        assert_eq!((&decision.version, decision.failed), (&version(0), None));
        let decided = decision.unwritten.unwrap().applied_to(&known).unwrap();
        fs::rename(&away, home.path()).unwrap();
        let decision = decisions.decide(&self::ending());
        assert_eq!((decision.version, decision.unwritten), (version(0), None));
        assert_eq!(on_disk(home.path()), decided, "the guard and its runtime say the same");
        assert_eq!(decided.finished[0].reason.as_ref().unwrap(), "release 1.1.0 is damaged");
    }

    #[test]
    fn a_journal_of_a_newer_program_is_left_to_the_release_that_ran() {
        let (home, mut decisions) = home(&trial(0));
        let path = home.path().join(JOURNAL_FILE);
        fs::write(&path, "{\"format\":99}").unwrap();
        decisions.refresh();
        assert!(!decisions.is_trial(), "nobody here knows");
        let decision = decisions.decide(&ending());
        assert_eq!((decision.version, decision.failed, decision.unwritten), (version(1), None, None));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"format\":99}");
    }
}
