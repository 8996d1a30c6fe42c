//! The lines on disk: `log/NAME/NUMBER.jsonl`, one JSON object a line, in files of bounded size and number.
//!
//! A file is named by the number of its first line and only ever appended to, so nothing is renamed, and which file is the oldest
//! of all can be told from the names. No line is synced: a power cut may take the last lines, and may leave one that is torn,
//! which readers pass over. What cannot be written is dropped and counted; nobody waits for a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use refit_updater::durable;
use refit_updater::modes::{LOG_DIR, STATE_FILE};

use super::LogLine;
use crate::config::LogLimits;

/// The end of the files' names.
const SUFFIX: &str = ".jsonl";
/// Enough digits for every number: names sort as their numbers do.
const NUMBER_DIGITS: usize = 20;
/// The smallest file, however many components share the total: a few of the longest lines fit.
const FILE_BYTES_MIN: u64 = 32 << 10;

/// The newest file of one component.
#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

/// The files of all components, for their one writer.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    /// The components of this release: their newest files stay.
    components: BTreeSet<String>,
    file_bytes: u64,
    limits: LogLimits,
    open: BTreeMap<String, Open>,
}

impl Files {
    /// Returns the files below `dir`. Nothing is opened yet.
    pub(super) fn new(dir: PathBuf, components: BTreeSet<String>, limits: LogLimits) -> Self {
        // Half of the total for the newest files of all, half for the older ones.
        let share = limits.total_bytes / 2 / (components.len().max(1) as u64);
        let file_bytes = limits.file_bytes.min(share).max(FILE_BYTES_MIN);
        Self { dir, components, file_bytes, limits, open: BTreeMap::new() }
    }

    /// Closes every file: somebody may have moved them. The next line opens the newest that is there then, or begins one.
    pub(super) fn reopen(&mut self) {
        self.open.clear();
    }

    /// Appends `lines` of `component`.
    ///
    /// # Errors
    /// Not all of them were written; the last may be torn. The next call begins with the files as they are then.
    pub(super) fn append(&mut self, component: &str, lines: &[&LogLine]) -> io::Result<()> {
        let written = self.try_append(component, lines);
        if written.is_err() {
            self.open.remove(component);
        }
        written
    }

    fn try_append(&mut self, component: &str, lines: &[&LogLine]) -> io::Result<()> {
        let mut batch: Vec<u8> = Vec::new();
        for line in lines {
            let begin = batch.len();
            serde_json::to_writer(&mut batch, line)?;
            batch.push(b'\n');
            let begun = match self.open.get(component) {
                Some(open) => open.bytes,
                None => self.open_newest(component, line.seq)?,
            };
            // A file that has no line yet takes one of any length.
            if begun + begin as u64 > 0 && begun + batch.len() as u64 > self.file_bytes {
                let rest = batch.split_off(begin);
                self.write(component, &batch)?;
                self.begin(component, line.seq)?;
                batch = rest;
            }
        }
        self.write(component, &batch)
    }

    fn write(&mut self, component: &str, bytes: &[u8]) -> io::Result<()> {
        let Some(open) = self.open.get_mut(component) else { return Ok(()) };
        open.file.write_all(bytes)?;
        open.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Goes on with the newest file, or begins the first. Returns its size.
    fn open_newest(&mut self, component: &str, seq: u64) -> io::Result<u64> {
        let dir = self.dir.join(component);
        let Some((_, newest)) = list(&dir)?.pop() else {
            self.begin(component, seq)?;
            return Ok(0);
        };
        let mut file = OpenOptions::new().read(true).append(true).open(&newest)?;
        let mut bytes = file.metadata()?.len();
        if bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?; // so that a torn line spoils none after it
                bytes += 1;
            }
        }
        self.open.insert(component.to_owned(), Open { file, bytes });
        Ok(bytes)
    }

    /// Begins a file whose first line has the number `seq`, and removes what is too much then.
    fn begin(&mut self, component: &str, seq: u64) -> io::Result<()> {
        let dir = self.dir.join(component);
        // The one of all components first: those above it are not ours to close.
        durable::create_dirs(&self.dir, LOG_DIR)?;
        durable::create_dirs(&dir, LOG_DIR)?;
        let mut mine = list(&dir)?;
        // The one that is begun counts, too.
        let too_many = (mine.len() + 1).saturating_sub(self.limits.files);
        for (_, path) in mine.drain(..too_many.min(mine.len())) {
            remove(&path)?;
        }
        self.shrink(component)?;
        let path = dir.join(format!("{seq:0NUMBER_DIGITS$}{SUFFIX}"));
        let file = OpenOptions::new().create(true).append(true).mode(STATE_FILE).open(&path)?;
        file.set_permissions(fs::Permissions::from_mode(STATE_FILE))?; // whatever the process's mask is
        let bytes = file.metadata()?.len();
        self.open.insert(component.to_owned(), Open { file, bytes });
        Ok(())
    }

    /// Removes the oldest files of all until the rest, with the newest files grown to their limit, keep within the total.
    fn shrink(&self, beginning: &str) -> io::Result<()> {
        let reserved = self.file_bytes * self.components.len().max(1) as u64;
        let mut older: Vec<(u64, PathBuf, u64)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let dir = entry?.path();
            let Some(name) = dir.file_name().and_then(|name| name.to_str()) else { continue };
            let mut files = list(&dir)?;
            // What is begun makes the newest of that component an older one.
            if name != beginning && self.components.contains(name) {
                files.pop();
            }
            for (seq, path) in files {
                let bytes = path.metadata()?.len();
                older.push((seq, path, bytes));
            }
        }
        older.sort();
        let mut total = reserved + older.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        for (_, path, bytes) in older {
            if total <= self.limits.total_bytes {
                break;
            }
            remove(&path)?;
            total -= bytes;
        }
        Ok(())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    // The directory of a component that is no more goes with its last file.
    match path.parent().map(fs::remove_dir) {
        Some(Err(error)) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        Some(Ok(()) | Err(_)) | None => Ok(()),
    }
}

/// Returns the files of one component with the numbers of their first lines, oldest first; none if there is no directory.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(SUFFIX)?.parse().ok());
        if let Some(number) = number {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::super::read::Reading;
    use super::super::{LogLine, Stream};
    use super::*;

    pub(crate) fn line(seq: u64, text: &str) -> LogLine {
        LogLine {
            seq,
            at: "2026-01-01T00:00:00.000Z".to_owned(),
            stream: Stream::Stdout,
            instance: "web-1".to_owned(),
            line: text.to_owned(),
            priority: None,
            cut: false,
        }
    }

    fn files(dir: &Path, components: &[&str], limits: LogLimits) -> Files {
        Files::new(dir.to_owned(), components.iter().map(|name| (*name).to_owned()).collect(), limits)
    }

    fn limits(file_bytes: u64, files: usize, total_bytes: u64) -> LogLimits {
        LogLimits { file_bytes, files, total_bytes }
    }

    /// Returns how many bytes lie below `dir`.
    fn total(dir: &Path) -> u64 {
        let mut bytes = 0;
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            for (_, path) in list(&entry.path()).expect("a list") {
                bytes += path.metadata().expect("its size").len();
            }
        }
        bytes
    }

    #[test]
    fn files_are_bounded_in_size_and_number_and_hold_the_newest_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut files = files(dir.path(), &["web"], limits(FILE_BYTES_MIN, 3, 1 << 30));
        for seq in 1..=2000 {
            files.append("web", &[&line(seq, &"x".repeat(100))]).expect("written");
        }
        let kept = list(&dir.path().join("web")).expect("a list");
        assert_eq!(kept.len(), 3);
        assert!(kept.iter().all(|(_, path)| path.metadata().expect("its size").len() <= FILE_BYTES_MIN));
        let lines = Reading::new(dir.path(), "web").last(5000, u64::MAX).expect("read");
        assert_eq!(lines.last().map(|line| line.seq), Some(2000));
        assert_eq!(lines.first().map(|line| line.seq), Some(kept[0].0), "a file has the number of its first line");
        assert!(lines.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1), "none is missing between");
    }

    #[test]
    fn a_batch_larger_than_a_file_is_spread_over_several() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut files = files(dir.path(), &["web"], limits(FILE_BYTES_MIN, 100, 1 << 30));
        let lines: Vec<LogLine> = (1..=1000).map(|seq| line(seq, &"y".repeat(200))).collect();
        files.append("web", &lines.iter().collect::<Vec<_>>()).expect("written");
        let kept = list(&dir.path().join("web")).expect("a list");
        assert!(kept.len() > 5, "{kept:?}");
        assert!(kept.iter().all(|(_, path)| path.metadata().expect("its size").len() <= FILE_BYTES_MIN));
        assert_eq!(Reading::new(dir.path(), "web").last(5000, u64::MAX).expect("read"), lines);
    }

    #[test]
    fn the_total_holds_for_all_components_and_the_oldest_go_first() {
        const TOTAL: u64 = 6 * FILE_BYTES_MIN;
        let dir = tempfile::tempdir().expect("a directory");
        // What a release left that had another component.
        let mut before = files(dir.path(), &["gone"], limits(FILE_BYTES_MIN, 2, TOTAL));
        for seq in 1..=300 {
            before.append("gone", &[&line(seq, &"x".repeat(100))]).expect("written");
        }
        let mut files = files(dir.path(), &["web", "db"], limits(FILE_BYTES_MIN, 50, TOTAL));
        for seq in 1001..=5000 {
            let name = if seq % 2 == 0 { "web" } else { "db" };
            files.append(name, &[&line(seq, &"x".repeat(100))]).expect("written");
            assert!(seq % 100 != 0 || total(dir.path()) <= TOTAL, "{} bytes", total(dir.path()));
        }
        assert!(!dir.path().join("gone").exists(), "the oldest of all are gone, and their directory");
        assert!(total(dir.path()) > TOTAL / 2, "and no more than had to");
    }

    #[test]
    fn many_components_share_the_total() {
        let names: Vec<String> = (0..200).map(|number| format!("c{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let files = files(Path::new("/nowhere"), &names, limits(1 << 20, 4, 64 << 20));
        assert!(files.file_bytes * 200 <= 64 << 20, "{}", files.file_bytes);
    }

    #[test]
    fn a_torn_last_line_spoils_none_after_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let limits = limits(FILE_BYTES_MIN, 3, 1 << 30);
        files(dir.path(), &["web"], limits).append("web", &[&line(1, "one"), &line(2, "two")]).expect("written");
        let path = list(&dir.path().join("web")).expect("a list").remove(0).1;
        let length = path.metadata().expect("its size").len();
        OpenOptions::new().write(true).open(&path).expect("open").set_len(length - 5).expect("tear it");
        files(dir.path(), &["web"], limits).append("web", &[&line(3, "three")]).expect("written");
        let lines = Reading::new(dir.path(), "web").last(10, u64::MAX).expect("read");
        assert_eq!(lines.iter().map(|line| line.line.as_str()).collect::<Vec<_>>(), ["one", "three"]);
    }

    #[test]
    fn nobody_else_reads_them() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("log");
        files(&root, &["web"], limits(FILE_BYTES_MIN, 3, 1 << 30)).append("web", &[&line(1, "one")]).expect("written");
        let file = list(&root.join("web")).expect("a list").remove(0).1;
        for path in [&root, &root.join("web"), &file] {
            assert_eq!(path.metadata().expect("its mode").permissions().mode() & 0o007, 0, "{}", path.display());
        }
    }

    #[test]
    fn a_disk_that_refuses_is_an_error_and_then_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let in_the_way = dir.path().join("log");
        File::create(&in_the_way).expect("a file where the directory belongs");
        let mut files = files(&in_the_way, &["web"], limits(FILE_BYTES_MIN, 3, 1 << 30));
        assert!(files.append("web", &[&line(1, "one")]).is_err());
        fs::remove_file(&in_the_way).expect("out of the way");
        files.append("web", &[&line(2, "two")]).expect("written");
        assert_eq!(Reading::new(&in_the_way, "web").last(10, u64::MAX).expect("read").len(), 1);
    }
}
