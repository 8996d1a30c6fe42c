//! A decision that the journal could not take: the disk is read-only, full, or fails.
//!
//! The release that runs must not depend on a write. The guard decides, tries to write, and starts what it decided; the runtime
//! is told by a variable of its environment what the journal would say, takes it as said, and writes it as soon as the disk lets
//! it. A runtime that does not know the variable reads the journal as it is: it then runs the release on trial once more.

use jiff::Timestamp;
use refit_base::Cause;
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::attempt::{Ending, Step};
use crate::journal::{Journal, State, select_release};

/// The variable that holds it.
pub const VARIABLE: &str = "REFIT_DECIDED";
/// Who goes back from a release that is damaged, as the history calls it.
pub const GUARD: &str = "guard";
/// How much of the output of what failed is passed on: a variable holds 128 KiB, and each byte may need six.
const OUTPUT_BYTES_MAX: usize = 8 << 10;
/// How much of the reason is passed on.
const REASON_CHARS_MAX: usize = 1000;

/// A decision that is not in the journal yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The release that runs.
    release: Version,
    /// The release that ran before, where no attempt has ended: it is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<Version>,
    /// The attempt that has ended.
    attempt: Option<String>,
    at: Timestamp,
    /// The same by the monotonic clock; a program of an older release does not say it.
    at_ns: Option<u64>,
    step: Step,
    reason: String,
    #[serde(default)]
    reason_code: String,
    component: Option<String>,
    output: Vec<String>,
    cause: Cause,
}

impl Decided {
    /// Returns what was decided about the attempt of `journal`, as it is on disk: it has ended so, and `release` runs. Without an attempt
    /// it is the current release that was left.
    pub fn new(journal: &Journal, release: &Version, ending: &Ending) -> Self {
        let mut left = OUTPUT_BYTES_MAX;
        let fits = |line: &&String| {
            let fits = line.len() <= left;
            left = left.saturating_sub(line.len());
            fits
        };
        let mut output: Vec<String> = ending.output.iter().rev().take_while(fits).cloned().collect();
        output.reverse();
        let left = match &journal.state {
            State::Idle { current } => Some(current.clone()),
            State::Staged { .. } | State::Trial { .. } => None,
        };
        Self {
            release: release.clone(),
            left,
            attempt: journal.attempt.as_ref().map(|attempt| attempt.id.clone()),
            at: ending.at,
            at_ns: Some(ending.at_ns),
            step: ending.step.clone(),
            reason: ending.reason.chars().take(REASON_CHARS_MAX).collect(),
            reason_code: ending.reason_code.clone(),
            component: ending.component.clone(),
            output,
            cause: ending.cause,
        }
    }

    /// Returns the decision in the value of [`VARIABLE`].
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Returns the value of [`VARIABLE`].
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the journal as it would be after `journal`; `None` if it says so already, or of another attempt.
    pub fn applied_to(&self, journal: &Journal) -> Option<Journal> {
        if self.attempt != journal.attempt.as_ref().map(|attempt| attempt.id.clone()) {
            return None;
        }
        let now = Ending::now(self.step.clone(), self.reason.clone()).with_code(&self.reason_code);
        let ending = Ending {
            at: self.at,
            at_ns: self.at_ns.unwrap_or(now.at_ns),
            component: self.component.clone(),
            output: self.output.clone(),
            cause: self.cause,
            ..now
        };
        match &journal.state {
            State::Trial { previous, .. } if *previous == self.release => journal.clone().failed(&ending).ok(),
            State::Staged { current, .. } if *current == self.release => select_release(journal, &ending).1,
            State::Idle { current } if self.left.as_ref() == Some(current) => {
                journal.clone().gone_back(&self.release, GUARD, &ending)
            }
            State::Idle { .. } | State::Staged { .. } | State::Trial { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::{Attempt, Kind, Outcome};
    use crate::digest::Digest;

    fn journal(state: State, id: &str) -> Journal {
        let (from, to) = (Version::new(1, 0, 0), Version::new(1, 1, 0));
        let attempt = Attempt::begin(id, Kind::Update, "cli", from, to, Digest::of(b""), Timestamp::UNIX_EPOCH);
        Journal { state, attempt: Some(attempt), ..Journal::first(Version::new(1, 0, 0)) }
    }

    #[test]
    fn it_ends_the_attempt_that_it_was_made_for_and_no_other() {
        let (previous, next) = (Version::new(1, 0, 0), Version::new(1, 1, 0));
        let trial = journal(State::Trial { previous: previous.clone(), next: next.clone(), starts_left: 0 }, "1");
        let mut ending = Ending::now(Step::Probation, "it was killed".repeat(1000));
        ending.output = (0..10_000).map(|number| format!("line {number} \u{1}")).collect();
        let decided = Decided::new(&trial, &previous, &ending);
        let text = decided.to_text();
        assert!(text.len() < 100_000, "it fits into a variable");
        let decided = Decided::parse(&text).expect("it comes back");

        let after = decided.applied_to(&trial).expect("it applies");
        assert_eq!(after.state, State::Idle { current: previous.clone() });
        let finished = after.finished.last().expect("an entry");
        assert_eq!((finished.outcome, &finished.step), (Outcome::RolledBack, &Step::Probation));
        assert_eq!(finished.output.last(), ending.output.last());
        assert!(after.failed.contains_key(&next));

        assert_eq!(decided.applied_to(&after), None, "it is there already");
        let other = journal(trial.state.clone(), "2");
        assert_eq!(decided.applied_to(&other), None, "another attempt");
        let staged = journal(State::Staged { current: previous.clone(), next }, "1");
        let after = decided.applied_to(&staged).expect("it applies");
        assert_eq!((after.state, after.failed.len()), (State::Idle { current: previous }, 0));
        assert_eq!(Decided::parse("1.0.0"), None);
    }

    #[test]
    fn a_damaged_release_is_left_once() {
        let (good, damaged) = (Version::new(1, 0, 0), Version::new(1, 1, 0));
        let mut before = Journal::first(damaged.clone());
        before.good.insert(0, good.clone());
        let ending = Ending::now(Step::Committed, "release 1.1.0 is damaged".to_owned());
        let decided = Decided::new(&before, &good, &ending);
        let decided = Decided::parse(&decided.to_text()).expect("it comes back");
        let after = decided.applied_to(&before).expect("it applies");
        assert_eq!(before.gone_back(&good, GUARD, &ending), Some(after.clone()), "the guard writes the same");
        assert_eq!((after.state.wanted(), &*after.good), (&good, &[damaged.clone(), good.clone()][..]));
        let entry = after.finished.last().expect("an entry");
        assert_eq!((entry.outcome, &entry.from, &entry.to), (Outcome::Done, &damaged, &good));
        assert_eq!(decided.applied_to(&after), None, "it is there already");
        assert_eq!(decided.applied_to(&Journal::first(Version::new(1, 2, 0))), None, "of another release");
    }
}
