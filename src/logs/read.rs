//! Lines read back from the disk, while their writer goes on.
//!
//! Numbers only grow from line to line and from file to file; what is no line (torn by a power cut, or anybody's garbage) is
//! passed over. A file that is removed meanwhile was the oldest.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::files::list;
use super::{LogLine, bytes_of};

/// The most that one answer holds: an answer is made in memory.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 20;
/// More than any one line takes: an answer with less room than this is full.
pub(super) const LONGEST_BYTES: usize = 64 << 10;
/// A line on disk that is longer was not written by us: the longest text, each byte escaped in six, and what is around it.
const LINE_BYTES_MAX: u64 = 6 * super::lines::LINE_BYTES_MAX as u64 + 1024;

/// The files of one component.
#[derive(Debug)]
pub(super) struct Reading {
    dir: PathBuf,
}

impl Reading {
    /// Returns the files of `component` below `dir`.
    pub(super) fn new(dir: &Path, component: &str) -> Self {
        Self { dir: dir.join(component) }
    }

    /// Returns the last `count` lines before the number `before`, oldest first; fewer if they are too much for one answer.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(super) fn last(&self, count: usize, before: u64) -> io::Result<Vec<LogLine>> {
        let mut kept: VecDeque<LogLine> = VecDeque::new();
        for (_, path) in list(&self.dir)?.into_iter().rev() {
            let wanted = count.saturating_sub(kept.len());
            let room = ANSWER_BYTES_MAX.saturating_sub(kept.iter().map(bytes_of).sum());
            if wanted == 0 || room == 0 {
                break;
            }
            let before = kept.front().map_or(before, |first| first.seq);
            let mut older: VecDeque<LogLine> = VecDeque::new();
            let mut bytes = 0;
            each(&path, |line| {
                if line.seq >= before {
                    return false;
                }
                bytes += bytes_of(&line);
                older.push_back(line);
                while older.len() > wanted || bytes > room {
                    bytes -= older.pop_front().map_or(bytes, |line| bytes_of(&line));
                }
                true
            })?;
            for line in older.into_iter().rev() {
                kept.push_front(line);
            }
        }
        Ok(kept.into())
    }

    /// Returns the first `count` lines after the number `after` and before `before`; fewer if they are too much for one answer.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(super) fn after(&self, after: u64, count: usize, before: u64) -> io::Result<Vec<LogLine>> {
        let files = list(&self.dir)?;
        // All before the last one that begins at or before the place are too old.
        let begin = files.partition_point(|(first, _)| *first <= after).saturating_sub(1);
        let mut kept: Vec<LogLine> = Vec::new();
        let mut bytes = 0;
        for (_, path) in &files[begin..] {
            let mut go_on = true;
            each(path, |line| {
                if line.seq > after && line.seq < before {
                    bytes += bytes_of(&line);
                    go_on = kept.len() < count && bytes <= ANSWER_BYTES_MAX;
                    if go_on {
                        kept.push(line);
                    }
                }
                go_on
            })?;
            if !go_on {
                break;
            }
        }
        Ok(kept)
    }

    /// Returns the number of the last line; 0 if there is none.
    pub(super) fn newest(&self) -> io::Result<u64> {
        Ok(self.last(1, u64::MAX)?.last().map_or(0, |line| line.seq))
    }
}

/// Calls `line` with each line of a file, until it returns false.
fn each(path: &Path, mut line: impl FnMut(LogLine) -> bool) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        if let Ok(read) = serde_json::from_slice(&bytes)
            && !line(read)
        {
            return Ok(());
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's files need not be durable")]
mod tests {
    use std::fs;

    use super::super::Stream;
    use super::*;

    fn line(seq: u64) -> LogLine {
        LogLine {
            seq,
            at: "2026-01-01T00:00:00.000Z".to_owned(),
            stream: Stream::Stderr,
            instance: "web-1".to_owned(),
            line: format!("line {seq}"),
            priority: Some(3),
            cut: false,
        }
    }

    /// Returns three files with the lines 10, 20 ... 90, and garbage between.
    fn some() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let web = dir.path().join("web");
        fs::create_dir(&web).expect("a directory");
        for first in [10, 40, 70] {
            let mut text = String::new();
            for seq in [first, first + 10, first + 20] {
                text.push_str(&format!("{}\n\u{fffd} no line\n", serde_json::json!(line(seq))));
            }
            fs::write(web.join(format!("{first:020}.jsonl")), text).expect("written");
        }
        fs::write(web.join("notes.txt"), "somebody's").expect("written");
        dir
    }

    #[test]
    fn the_last_lines_are_found_across_files() {
        let dir = some();
        let reading = Reading::new(dir.path(), "web");
        for (count, before, expected) in [
            (100, u64::MAX, &[10, 20, 30, 40, 50, 60, 70, 80, 90][..]),
            (2, u64::MAX, &[80, 90]),
            (4, 80, &[40, 50, 60, 70]),
            (3, 40, &[10, 20, 30]),
            (3, 10, &[]),
            (0, u64::MAX, &[]),
        ] {
            let found: Vec<u64> = reading.last(count, before).expect("read").iter().map(|line| line.seq).collect();
            assert_eq!(found, expected, "the last {count} before {before}");
        }
        assert_eq!(reading.newest().expect("read"), 90);
        assert_eq!(Reading::new(dir.path(), "nobody").newest().expect("read"), 0);
    }

    #[test]
    fn the_lines_after_a_number_are_found_across_files() {
        let dir = some();
        let reading = Reading::new(dir.path(), "web");
        for (after, count, before, expected) in [
            (0, 100, u64::MAX, &[10, 20, 30, 40, 50, 60, 70, 80, 90][..]),
            (30, 3, u64::MAX, &[40, 50, 60]),
            (35, 2, u64::MAX, &[40, 50]),
            (60, 100, 90, &[70, 80]),
            (90, 100, u64::MAX, &[]),
            (0, 0, u64::MAX, &[]),
        ] {
            let found: Vec<u64> =
                reading.after(after, count, before).expect("read").iter().map(|line| line.seq).collect();
            assert_eq!(found, expected, "{count} after {after} before {before}");
        }
    }
}
