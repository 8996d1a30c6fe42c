//! What was tried on this appliance: one line of `history.jsonl` per finished attempt.
//!
//! An entry is first written into the journal, together with the state it led to, and then appended here. Appending the same
//! attempt twice changes nothing, so a crash between the two loses and repeats nothing.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use refit_base::{Cause, Exit, clock};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, Ending, Kind, Outcome};
use crate::durable;
use crate::modes;
use crate::spare;

/// The history's file below the home.
pub const HISTORY_FILE: &str = "history.jsonl";
/// How much of the file's end is read: some thousand entries, more than anybody scrolls through.
pub const HISTORY_TAIL_BYTES_MAX: u64 = 4 << 20;
/// How many lines of output an entry keeps.
pub const OUTPUT_LINES_MAX: usize = 40;

/// One finished attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The ticket's name.
    pub id: String,
    /// When it ended, RFC 3339.
    pub at: String,
    /// Who asked.
    pub who: String,
    /// To a new release, or back.
    pub kind: Kind,
    /// The release before.
    pub from: Version,
    /// The release it went to.
    pub to: Version,
    /// How it ended.
    pub outcome: Outcome,
    /// The step it ended in.
    pub step: String,
    /// Why it did not succeed.
    pub reason: Option<String>,
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
        Self {
            id: attempt.id,
            at: clock::rfc3339(ending.at),
            who: attempt.who,
            kind: attempt.kind,
            from: attempt.from,
            to: attempt.to,
            outcome,
            step: ending.step.clone(),
            reason: (!ending.reason.is_empty()).then(|| ending.reason.clone()),
            component: ending.component.clone(),
            output: output[output.len().saturating_sub(OUTPUT_LINES_MAX)..].to_vec(),
            duration_ms: u64::try_from(ending.at.as_millisecond() - attempt.started_ms).unwrap_or(0),
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
    spare::with_room(home, || durable::append_line(&home.join(HISTORY_FILE), &line, modes::of(HISTORY_FILE)))
}

/// Returns the entries, oldest first. A line that is no entry (a torn last line after a power cut) is passed over.
///
/// # Errors
/// The file cannot be read.
pub fn read(home: &Path) -> io::Result<Vec<Entry>> {
    let mut file = match durable::open_regular(&home.join(HISTORY_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(HISTORY_TAIL_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(HISTORY_TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::digest::Digest;

    fn entry(id: &str) -> Entry {
        let (from, to) = (Version::new(1, 0, 0), Version::new(1, 1, 0));
        let begun = Timestamp::from_millisecond(1_000).expect("a time");
        let attempt = Attempt::begin(id, Kind::Update, "cli", from, to, Digest::of(b"manifest"), begun);
        let ending = Ending {
            at: Timestamp::from_millisecond(3_000).expect("a time"),
            step: "probation".into(),
            reason: String::new(),
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
}
