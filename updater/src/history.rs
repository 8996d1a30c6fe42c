//! What was tried on this appliance: one line of `history.jsonl` per finished attempt.
//!
//! A file that has grown large is put aside as a whole under the name of the one before it, which goes: what is kept is bounded, and
//! a reader that has the old file open reads it to its end.
//!
//! An entry is first written into the journal, together with the state it led to, and then appended here. Appending the same
//! attempt twice changes nothing, so a crash between the two loses and repeats nothing.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use refit_base::{Cause, Exit, clock};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, Ending, Kind, Outcome, Step};
use crate::durable;
use crate::modes;
use crate::spare;

/// The history's file below the home.
pub const HISTORY_FILE: &str = "history.jsonl";
/// The entries before those of [`HISTORY_FILE`].
pub const EARLIER_FILE: &str = "history.jsonl.1";
/// How large the file may become before it is put aside: some thousand entries, more than anybody scrolls through.
pub const HISTORY_BYTES_MAX: u64 = 2 << 20;
/// How much of each file's end is read: one that an older program wrote may be larger.
pub const HISTORY_TAIL_BYTES_MAX: u64 = 2 * HISTORY_BYTES_MAX;
/// How many lines of output an entry keeps.
pub const OUTPUT_LINES_MAX: usize = 40;

/// What an entry is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// An attempt to go to a release that arrived in a package.
    Update,
    /// An attempt to go back to a release that ran here before.
    Rollback,
    /// The runtime of a good release died again, and was started again. An older program passes such a line over.
    Crash,
    /// A reload that had to be confirmed, and was, or was reverted. An older program passes such a line over.
    Reload,
}

impl EntryKind {
    /// Returns the name that tickets and messages use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Rollback => "rollback",
            Self::Crash => "crash",
            Self::Reload => "reload",
        }
    }

    /// Returns whether it is an attempt to go to another release.
    pub const fn is_attempt(self) -> bool {
        match self {
            Self::Update | Self::Rollback => true,
            Self::Crash | Self::Reload => false,
        }
    }
}

impl From<Kind> for EntryKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Update => Self::Update,
            Kind::Rollback => Self::Rollback,
        }
    }
}

/// One finished attempt, death of a runtime, or reload that had to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The ticket's name.
    pub id: String,
    /// When it ended, RFC 3339.
    pub at: String,
    /// Who asked.
    pub who: String,
    /// To a new release, or back, or neither.
    pub kind: EntryKind,
    /// The release before.
    pub from: Version,
    /// The release it went to.
    pub to: Version,
    /// How it ended.
    pub outcome: Outcome,
    /// The step it ended in.
    pub step: Step,
    /// Why it did not succeed.
    pub reason: Option<String>,
    /// The same for programs, in lower case, such as `signature_invalid`; `None` where it is not known, or an older program wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason_code: Option<String>,
    /// The component at fault.
    pub component: Option<String>,
    /// The last output of what failed.
    pub output: Vec<String>,
    /// From the request to the end, in milliseconds.
    pub duration_ms: u64,
    /// How long each step took, in milliseconds.
    pub durations: BTreeMap<String, u64>,
    /// Whose trouble it was, if it did not succeed; `None` where an older program wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The exit status of a command that waited for it, where that does not follow from the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<u8>,
}

impl Entry {
    /// Returns the entry of `attempt`, which ended so.
    pub fn of(attempt: Attempt, outcome: Outcome, ending: &Ending) -> Self {
        let output = &ending.output;
        let duration_ms = attempt.took_ms(ending);
        Self {
            id: attempt.id,
            at: clock::rfc3339(ending.at),
            who: attempt.who,
            kind: attempt.kind.into(),
            from: attempt.from,
            to: attempt.to,
            outcome,
            step: ending.step.clone(),
            reason: (!ending.reason.is_empty()).then(|| ending.reason.clone()),
            reason_code: (!ending.reason_code.is_empty()).then(|| ending.reason_code.clone()),
            component: ending.component.clone(),
            output: output[output.len().saturating_sub(OUTPUT_LINES_MAX)..].to_vec(),
            duration_ms,
            durations: attempt.durations,
            cause: (outcome != Outcome::Done).then_some(ending.cause),
            exit: ending.exit.map(Exit::code),
        }
    }
}

/// Appends `entry` unless the history already has it.
///
/// # Errors
/// The file cannot be read or written; the history may lack the entry.
pub fn append(home: &Path, entry: &Entry) -> io::Result<()> {
    if read(home)?.iter().any(|old| old.id == entry.id) {
        return Ok(());
    }
    let line = serde_json::to_string(entry)?;
    if let Err(error) = put_aside(home, line.len() as u64) {
        tracing::warn!(%error, "cannot put the older history aside; the file grows on");
    }
    spare::with_room(home, || durable::append_line(&home.join(HISTORY_FILE), &line, modes::of(HISTORY_FILE)))
}

/// Puts the file aside if it would become too large with `more` bytes.
///
/// # Errors
/// Nothing is lost: what is in the file is there, or in the one that is put aside, or in both.
fn put_aside(home: &Path, more: u64) -> io::Result<()> {
    let path = home.join(HISTORY_FILE);
    let length = match fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() => found.len(),
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if length + more <= HISTORY_BYTES_MAX {
        return Ok(());
    }
    if length <= HISTORY_TAIL_BYTES_MAX {
        return durable::rename(&path, &home.join(EARLIER_FILE));
    }
    // Older programs let it grow.
    durable::replace_with_mode(home, EARLIER_FILE, &tail(&path)?, modes::of(EARLIER_FILE))?;
    durable::remove_file(&path)
}

/// Returns the entries, oldest first. A line that is no entry (a torn last line after a power cut) is passed over.
///
/// # Errors
/// The file cannot be read.
pub fn read(home: &Path) -> io::Result<Vec<Entry>> {
    let newest = entries(&home.join(HISTORY_FILE))?;
    let earlier = entries(&home.join(EARLIER_FILE)).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the earlier history");
        Vec::new()
    });
    // A power cut may leave what was put aside in both.
    let known: HashSet<&str> = newest.iter().map(|entry| entry.id.as_str()).collect();
    let mut all = earlier;
    all.retain(|entry| !known.contains(entry.id.as_str()));
    all.extend(newest);
    Ok(all)
}

/// Returns the entries of one file; none if it is missing.
fn entries(path: &Path) -> io::Result<Vec<Entry>> {
    let bytes = match tail(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Returns the last [`HISTORY_TAIL_BYTES_MAX`] bytes of the file at `path`, from the first line that begins in them.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = durable::open_regular(path)?;
    let begin = file.metadata()?.len().saturating_sub(HISTORY_TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(HISTORY_TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    if begin > 0 {
        let cut = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
        bytes.drain(..cut);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use jiff::Timestamp;

    use super::*;
    use crate::attempt::Begun;
    use crate::digest::Digest;

    fn entry(id: &str) -> Entry {
        let (from, to) = (Version::new(1, 0, 0), Version::new(1, 1, 0));
        let begun = Timestamp::from_millisecond(1_000).expect("a time");
        let attempt = Attempt::begin(id, Kind::Update, "cli", from, to, Digest::of(b"manifest"), begun);
        let ending = Ending {
            at: Timestamp::from_millisecond(3_000).expect("a time"),
            at_ns: 0,
            step: Step::Probation,
            reason: String::new(),
            reason_code: String::new(),
            component: None,
            output: Vec::new(),
            cause: Cause::Release,
            exit: None,
        };
        Entry::of(attempt, Outcome::Done, &ending)
    }

    #[test]
    fn an_entry_is_appended_once_and_a_torn_line_is_passed_over() {
        let dir = tempfile::tempdir().expect("a directory");
        append(dir.path(), &entry("a")).expect("appended");
        append(dir.path(), &entry("a")).expect("already there");
        durable::append_line(&dir.path().join(HISTORY_FILE), r#"{"id":"torn"#, 0o640).expect("appended");
        append(dir.path(), &entry("b")).expect("appended");
        let ids: Vec<String> = read(dir.path()).expect("read").into_iter().map(|entry| entry.id).collect();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(entry("a").duration_ms, 2_000);
    }

    #[test]
    fn durations_are_those_of_the_monotonic_clock_where_it_is_known() {
        let attempt = |started_ms: i64, begun: Option<u64>, step_ms: u64| {
            let (from, to) = (Version::new(1, 0, 0), Version::new(1, 1, 0));
            let at = Timestamp::from_millisecond(started_ms).unwrap();
            let mut attempt = Attempt::begin("a", Kind::Update, "cli", from, to, Digest::of(b""), at);
            attempt.begun = Begun(begun);
            attempt.durations.insert("staging".to_owned(), step_ms);
            attempt
        };
        let at = Timestamp::from_millisecond(100_000).unwrap();
        let ending = Ending { at, at_ns: 9_000_000_000, ..Ending::now(Step::Probation, String::new()) };
        for (started_ms, begun, step_ms, expected) in [
            (98_000, Some(7_500_000_000), 10, 1_500),
            // The clock was set: back, and forward.
            (3_700_000, Some(7_500_000_000), 10, 1_500),
            (0, Some(7_500_000_000), 10, 1_500),
            // Another boot: only the wall clock knows, and the steps if it went back.
            (98_000, None, 10, 2_000),
            (3_700_000, None, 10, 10),
        ] {
            let entry = Entry::of(attempt(started_ms, begun, step_ms), Outcome::Done, &ending);
            assert_eq!(entry.duration_ms, expected, "{started_ms} {begun:?}");
        }
    }

    /// Returns an entry of some kilobytes.
    fn large(number: usize) -> Entry {
        Entry { output: vec!["x".repeat(4 << 10)], ..entry(&format!("n-{number}")) }
    }

    fn size(dir: &Path, name: &str) -> u64 {
        fs::metadata(dir.join(name)).map_or(0, |found| found.len())
    }

    #[test]
    fn it_is_bounded_and_nothing_of_its_end_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(HISTORY_FILE);
        // As an older program left it.
        let line = |number: usize| serde_json::to_string(&large(number)).unwrap() + "\n";
        let text: String = (0..2_000).map(line).collect();
        durable::write_new(&path, text.as_bytes(), 0o640).unwrap();
        for number in 2_000..2_600 {
            if number % 100 != 0 {
                let text: String = line(number);
                fs::OpenOptions::new()
                    .append(true)
                    .open(&path)
                    .and_then(|mut file| file.write_all(text.as_bytes()))
                    .unwrap();
                continue;
            }
            append(dir.path(), &large(number)).unwrap();
            let ids: Vec<String> = read(dir.path()).unwrap().into_iter().map(|entry| entry.id).collect();
            let expected: Vec<String> = (number + 1 - 400..=number).map(|number| format!("n-{number}")).collect();
            assert!(ids.ends_with(&expected), "{number}: {:?}", ids.last());
            assert!(size(dir.path(), HISTORY_FILE) <= HISTORY_BYTES_MAX, "{number}");
            assert!(size(dir.path(), EARLIER_FILE) <= HISTORY_TAIL_BYTES_MAX, "{number}");
        }
    }

    #[test]
    fn what_a_power_cut_left_in_both_files_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["a", "b"] {
            append(dir.path(), &entry(id)).unwrap();
        }
        fs::copy(dir.path().join(HISTORY_FILE), dir.path().join(EARLIER_FILE)).unwrap();
        append(dir.path(), &entry("c")).unwrap();
        let ids: Vec<String> = read(dir.path()).unwrap().into_iter().map(|entry| entry.id).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        // The next entry is recorded even if the file cannot be put aside.
        fs::remove_file(dir.path().join(EARLIER_FILE)).unwrap();
        fs::create_dir(dir.path().join(EARLIER_FILE)).unwrap();
        append(dir.path(), &entry("d")).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 4);
    }
}
