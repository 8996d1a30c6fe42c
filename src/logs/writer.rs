//! One thread that writes what was printed: to the files, and to the journal or standard error.
//!
//! Whoever has a line queues it and goes on. A component beyond its [`Budget`], a queue that is full because a disk is slow, a disk
//! that takes nothing: in each case lines are dropped and counted, and one line of the log says how many were, in their place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use refit_base::lock;

use super::budget::Budget;
use super::files::Files;
use super::journal::Journal;
use super::{LogLine, Stream, bytes_of};
use crate::config::LogLimits;

/// How much may wait for the disk: all components' bursts together on a small machine, and a second of a slow disk.
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// How often a component that is over its budget is looked at, to say what was dropped when it has fallen silent.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The priority of a line that says that others are missing: a warning.
const PRIORITY_WARNING: u8 = 4;
/// How long a place that refused is left alone: trying costs a system call for each batch.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where lines are written.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory of the files.
    pub dir: PathBuf,
    /// How much is kept there.
    pub limits: LogLimits,
    /// The components of this release.
    pub components: BTreeSet<String>,
    /// The journal's socket, if the output of this appliance goes to the journal.
    pub journal: Option<PathBuf>,
}

/// What was dropped of a component's lines.
#[derive(Debug)]
struct Dropped {
    count: u64,
    /// The first of them: its number and time are those of the line that says so.
    first: Arc<LogLine>,
}

/// A line on its way.
#[derive(Debug)]
struct Queued {
    component: Arc<str>,
    line: Arc<LogLine>,
    /// How many lines it stands for: one, or as many as it says were dropped.
    count: u64,
}

#[derive(Debug, Default)]
struct Queue {
    lines: Vec<Queued>,
    bytes: usize,
    /// By component.
    budgets: BTreeMap<Arc<str>, Budget>,
    dropped: BTreeMap<Arc<str>, Dropped>,
    busy: bool,
    closed: bool,
    /// Whether the files are to be opened anew.
    reopen: bool,
}

impl Queue {
    fn drop_line(&mut self, queued: &Queued) {
        let line = &queued.line;
        let fresh = || Dropped { count: 0, first: Arc::clone(line) };
        let dropped = self.dropped.entry(Arc::clone(&queued.component)).or_insert_with(fresh);
        dropped.count += queued.count;
        if line.seq < dropped.first.seq {
            dropped.first = Arc::clone(line);
        }
    }

    /// Queues the line that says what was dropped of `component`, if something was.
    fn tell(&mut self, component: &Arc<str>) {
        let Some(Dropped { count, first }) = self.dropped.remove(component) else { return };
        let notice = LogLine {
            stream: Stream::Refit,
            line: format!("{count} lines were dropped: more was printed than is kept, or could be written"),
            priority: Some(PRIORITY_WARNING),
            cut: false,
            ..(*first).clone()
        };
        self.push(Queued { component: Arc::clone(component), line: Arc::new(notice), count });
    }

    fn push(&mut self, queued: Queued) {
        self.bytes += bytes_of(&queued.line);
        self.lines.push(queued);
    }

    /// Queues what is to be said of the components whose budgets allow it; of all, at the end.
    fn tell_all(&mut self, now: Instant) {
        let Self { dropped, budgets, closed, .. } = self;
        let mut is_due = |name: &Arc<str>| budgets.get_mut(name).is_none_or(|budget| !budget.is_closed(now));
        let due: Vec<Arc<str>> = dropped.keys().filter(|name| *closed || is_due(name)).cloned().collect();
        for component in due {
            self.tell(&component);
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The writer.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread is left.
    pub(super) fn start(place: Place) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let output = Output::new(place);
        let seen = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("refit-log".to_owned()).spawn(move || write(&seen, output))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a line; drops and counts it if there is too much. Never waits.
    pub(super) fn push(&self, component: &Arc<str>, line: &Arc<LogLine>) {
        let now = Instant::now();
        let mut queue = lock(&self.shared.queue);
        let allowed =
            queue.budgets.entry(Arc::clone(component)).or_insert_with(|| Budget::new(now)).allows(line.line.len(), now);
        let queued = Queued { component: Arc::clone(component), line: Arc::clone(line), count: 1 };
        if !allowed || queue.closed || queue.bytes + bytes_of(line) > QUEUE_BYTES_MAX {
            queue.drop_line(&queued);
        } else {
            queue.tell(component);
            queue.push(queued);
        }
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Has the files closed; the next line goes to the newest that is there then.
    pub(super) fn reopen(&self) {
        lock(&self.shared.queue).reopen = true;
        self.shared.changed.notify_all();
    }

    /// Waits until what was queued before is written, at most `limit`. Blocks.
    pub(super) fn settle(&self, limit: Duration) {
        let queue = lock(&self.shared.queue);
        let waited =
            self.shared.changed.wait_timeout_while(queue, limit, |queue| queue.busy || !queue.lines.is_empty());
        drop(waited);
    }

    /// Has the thread write what is queued and end, and waits for it, at most `limit`. Blocks.
    pub(super) fn close(&self, limit: Duration) {
        let mut queue = lock(&self.shared.queue);
        queue.closed = true;
        self.shared.changed.notify_all();
        // What was dropped is said last of all.
        let unwritten = |queue: &mut Queue| queue.busy || !queue.lines.is_empty() || !queue.dropped.is_empty();
        let waited = self.shared.changed.wait_timeout_while(queue, limit, unwritten);
        let (queue, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        let ended = !waited.timed_out();
        drop(queue);
        let thread = lock(&self.thread).take();
        // One that hangs in a write ends with the process.
        if let (true, Some(thread)) = (ended, thread)
            && thread.join().is_err()
        {
            tracing::error!("the writer of the components' output has panicked");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.changed.notify_all();
    }
}

fn write(shared: &Shared, mut output: Output) {
    let mut looked = Instant::now();
    loop {
        let mut queue = lock(&shared.queue);
        queue.busy = false;
        shared.changed.notify_all();
        loop {
            if queue.closed || (!queue.dropped.is_empty() && looked.elapsed() >= LOOK_AGAIN) {
                looked = Instant::now();
                queue.tell_all(looked);
            }
            if !queue.lines.is_empty() || queue.reopen {
                break;
            }
            if queue.closed {
                return;
            }
            queue = if queue.dropped.is_empty() {
                refit_base::wait(&shared.changed, queue)
            } else {
                shared.changed.wait_timeout(queue, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0
            };
        }
        let lines = std::mem::take(&mut queue.lines);
        queue.bytes = 0;
        queue.busy = true;
        let reopen = std::mem::take(&mut queue.reopen);
        drop(queue);
        if reopen {
            output.files.reopen();
        }
        let lost = output.write(&lines);
        let mut queue = lock(&shared.queue);
        if !queue.closed {
            for queued in lost {
                queue.drop_line(queued);
            }
        }
    }
}

/// What the thread writes to.
struct Output {
    files: Files,
    journal: Option<Journal>,
    /// What refuses is said once, and once when it has stopped.
    files_refused: BTreeMap<Arc<str>, Instant>,
    journal_refused: Option<Instant>,
}

impl Output {
    fn new(place: Place) -> Self {
        let journal = place.journal.as_deref().and_then(|address| match Journal::new(address) {
            Ok(journal) => Some(journal),
            Err(error) => {
                tracing::warn!(%error, "cannot reach the journal; what components print goes to standard error");
                None
            }
        });
        Self {
            files: Files::new(place.dir, place.components, place.limits),
            journal,
            files_refused: BTreeMap::new(),
            journal_refused: None,
        }
    }

    /// Writes a batch. Returns those of the lines that are in no file.
    fn write<'a>(&mut self, lines: &'a [Queued]) -> Vec<&'a Queued> {
        let mut by_component: BTreeMap<&Arc<str>, Vec<&Queued>> = BTreeMap::new();
        for queued in lines {
            by_component.entry(&queued.component).or_default().push(queued);
        }
        let mut lost = Vec::new();
        for (component, queued) in by_component {
            let batch: Vec<&LogLine> = queued.iter().map(|queued| &*queued.line).collect();
            let kept = self.keep(component, &batch);
            for line in &batch {
                // What was dropped is said again when it can be kept.
                if kept || line.stream != Stream::Refit {
                    self.pass_on(component, line);
                }
            }
            if !kept {
                lost.extend(queued);
            }
        }
        lost
    }

    /// Writes lines of one component to its files. Returns whether they are there.
    fn keep(&mut self, component: &Arc<str>, batch: &[&LogLine]) -> bool {
        let refused = self.files_refused.get(component).copied();
        if refused.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return false;
        }
        match self.files.append(component, batch) {
            Ok(()) => {
                if self.files_refused.remove(component).is_some() {
                    tracing::info!(component.name = &**component, "a component's output is written again");
                }
                true
            }
            Err(error) => {
                if refused.is_none() {
                    tracing::warn!(component.name = &**component, %error, "cannot write a component's output");
                }
                self.files_refused.insert(Arc::clone(component), Instant::now());
                false
            }
        }
    }

    /// Gives a line to whoever reads the appliance's output.
    fn pass_on(&mut self, component: &Arc<str>, line: &LogLine) {
        let Some(journal) = &self.journal else {
            return echo(component, line);
        };
        if self.journal_refused.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return;
        }
        match journal.send(component, line) {
            Ok(()) => self.journal_refused = None,
            Err(error) => {
                if self.journal_refused.replace(Instant::now()).is_none() {
                    tracing::warn!(%error, "the journal does not take what components print; the files have it");
                }
            }
        }
    }
}

/// Gives a line to whoever reads the runtime's own log.
pub(super) fn echo(component: &str, line: &LogLine) {
    let text = &line.line;
    tracing::event!(target: "refit::output", tracing::Level::INFO, component.name = component, "{text}");
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's files need not be durable")]
mod tests {
    use super::super::read::Reading;
    use super::*;

    /// As long as anything may take on a busy machine.
    const LIMIT: Duration = Duration::from_secs(40);

    fn place(dir: &std::path::Path) -> Place {
        let limits = LogLimits { file_bytes: 1 << 20, files: 4, total_bytes: 64 << 20 };
        Place { dir: dir.to_owned(), limits, components: ["web".to_owned()].into(), journal: None }
    }

    fn line(seq: u64, text: &str) -> Arc<LogLine> {
        Arc::new(LogLine {
            seq,
            at: "2026-01-01T00:00:00.000Z".to_owned(),
            stream: Stream::Stdout,
            instance: "web-1".to_owned(),
            line: text.to_owned(),
            priority: None,
            cut: false,
        })
    }

    #[test]
    fn a_flood_is_cut_short_counted_and_said_in_its_place() {
        const LINES: u64 = 20_000;
        let dir = tempfile::tempdir().expect("a directory");
        let writer = Writer::start(place(dir.path())).expect("a thread");
        let web: Arc<str> = "web".into();
        for seq in 1..=LINES {
            writer.push(&web, &line(seq, &"x".repeat(1000)));
        }
        writer.close(LIMIT);
        let kept = Reading::new(dir.path(), "web").last(LINES as usize, u64::MAX).expect("read");
        let mut next = 1;
        for line in &kept {
            assert_eq!(line.seq, next, "a line or what says how many are missing");
            next += match line.stream {
                Stream::Refit => line.line.split(' ').next().and_then(|count| count.parse().ok()).expect("a count"),
                Stream::Stdout | Stream::Stderr | Stream::Other => 1,
            };
        }
        assert_eq!(next, LINES + 1, "every line is there or counted");
        assert!(kept.iter().any(|line| line.stream == Stream::Refit) && kept.len() < 5000, "{} lines", kept.len());
    }

    #[test]
    fn a_disk_that_refuses_stops_nothing_and_what_it_lost_is_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("log");
        std::fs::write(&root, "in the way").expect("written");
        let writer = Writer::start(place(&root)).expect("a thread");
        let web: Arc<str> = "web".into();
        for seq in 1..=5 {
            writer.push(&web, &line(seq, "lost"));
            writer.settle(LIMIT);
        }
        std::fs::remove_file(&root).expect("out of the way");
        let reading = Reading::new(&root, "web");
        // The thread tries again by itself, to say what was lost.
        let begun = Instant::now();
        while reading.newest().expect("read") == 0 {
            assert!(begun.elapsed() < LIMIT, "nothing is written again");
            std::thread::sleep(Duration::from_millis(5));
        }
        writer.push(&web, &line(6, "kept"));
        writer.close(LIMIT);
        let kept = reading.last(10, u64::MAX).expect("read");
        assert_eq!((kept.len(), kept[0].stream, kept[0].seq), (2, Stream::Refit, 1), "{kept:?}");
        assert!(kept[0].line.starts_with("5 lines"), "{kept:?}");
        assert_eq!((kept[1].seq, kept[1].line.as_str()), (6, "kept"));
    }
}
