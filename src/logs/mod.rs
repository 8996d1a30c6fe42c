//! What components print, line by line: in memory, on disk, and in the system's journal.
//!
//! Every line has a number that is unique and grows, over the whole life of an appliance: microseconds since 1970, raised where
//! two would be equal or the clock was set back. With the number of the last line that it saw, a reader goes on where it was,
//! across an exec, a crash and a reboot. The newest lines of each component are in memory, whatever happens to the disk; older
//! ones are read from the files ([`files`], written by the one thread of [`writer`]). Nobody who prints is ever made to wait: what
//! is too much is dropped, counted, and said.

mod budget;
mod files;
pub mod journal;
mod lines;
mod read;
mod writer;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::{clock, lock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::wire::LogLine;
use read::Reading;
use writer::Writer;

pub use crate::wire::Stream;
pub(crate) use lines::{Lines, Piece, priority};
pub use writer::Place;

/// How many lines of each component are in memory.
const LINES_MAX: usize = 1000;
/// How many bytes of them: two hundred components that print long lines take no more than a small machine has.
const RING_BYTES_MAX: usize = 256 << 10;
/// How many lines of each component the next image gets; it reads older ones from the disk.
const LINES_CARRIED: usize = 100;
/// How many bytes of them: the document that they are in is written at every change of a component.
const CARRIED_BYTES_MAX: usize = 16 << 10;
/// The most lines that one answer has.
pub const LINES_ASKED_MAX: usize = 100_000;
/// Numbers go on so far above the highest that is known when lines may have been lost that a reader has seen.
const NUMBERS_LEFT_OUT: u64 = 1_000_000;
/// How long a reader of files waits for lines that are on their way to them.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// How long an image that ends waits for the disk: what is not written by then is lost with a disk that hangs.
const CLOSE_MAX: Duration = Duration::from_millis(500);
/// How long it waits for those who read the pipes: they only have to put down what they hold.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Returns about how much memory a line takes.
fn bytes_of(line: &LogLine) -> usize {
    line.line.len() + line.instance.len() + size_of::<LogLine>()
}

/// What an image leaves to the next of what it has read.
#[derive(Debug, Clone, Default)]
pub struct Carried {
    /// The newest lines of each component.
    pub lines: BTreeMap<String, Vec<LogLine>>,
    /// The lines that have begun, by process and stream.
    pub partial: BTreeMap<String, Vec<u8>>,
    /// Whether they are all that was read: so it is after an exec, but not after a crash.
    pub complete: bool,
}

/// The newest lines of one component.
#[derive(Debug)]
struct Ring {
    name: Arc<str>,
    lines: VecDeque<Arc<LogLine>>,
    bytes: usize,
    /// Lines up to this number are not here any more.
    evicted: u64,
    newest: watch::Sender<u64>,
}

impl Ring {
    fn new(name: &str, evicted: u64) -> Self {
        Self { name: name.into(), lines: VecDeque::new(), bytes: 0, evicted, newest: watch::channel(evicted).0 }
    }

    fn push(&mut self, line: Arc<LogLine>) {
        self.newest.send_replace(line.seq);
        self.bytes += bytes_of(&line);
        self.lines.push_back(line);
        while self.lines.len() > LINES_MAX || self.bytes > RING_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= bytes_of(&oldest);
            self.evicted = oldest.seq;
        }
    }

    fn last(&self, count: usize) -> impl DoubleEndedIterator<Item = &Arc<LogLine>> {
        self.lines.range(self.lines.len().saturating_sub(count)..)
    }
}

#[derive(Debug)]
struct Inner {
    /// The highest number that was given.
    last: u64,
    rings: BTreeMap<String, Ring>,
    partial: BTreeMap<String, Vec<u8>>,
}

impl Inner {
    fn ring(&mut self, component: &str) -> &mut Ring {
        let last = self.last;
        self.rings.entry(component.to_owned()).or_insert_with(|| Ring::new(component, last))
    }
}

/// The lines of every component.
#[derive(Debug)]
pub struct Logs {
    inner: Mutex<Inner>,
    place: Option<Place>,
    writer: Option<Writer>,
    /// Cancelled when nobody is to read the pipes any more.
    paused: CancellationToken,
    /// How many read.
    readers: watch::Sender<usize>,
}

impl Logs {
    /// Returns the lines that were carried over; new ones are written to `place`, too. If that cannot be, a warning says so.
    pub fn open(carried: Carried, place: Option<Place>) -> Self {
        let lines = carried.lines.values().flatten();
        let mut last = lines.map(|line| line.seq).max().unwrap_or(0);
        if !carried.complete {
            let written = place.as_ref().map_or(0, newest_written);
            last = last.max(written) + NUMBERS_LEFT_OUT;
        }
        let mut inner = Inner { last, rings: BTreeMap::new(), partial: carried.partial };
        for (name, lines) in carried.lines {
            let evicted = lines.first().map_or(last, |first| first.seq.saturating_sub(1));
            let mut ring = Ring::new(&name, evicted);
            for line in lines {
                ring.push(Arc::new(line));
            }
            inner.rings.insert(name, ring);
        }
        let writer = place.clone().and_then(|place| match Writer::start(place) {
            Ok(writer) => Some(writer),
            Err(error) => {
                tracing::warn!(%error, "what components print is not written to the disk: there is no thread for it");
                None
            }
        });
        Self { inner: Mutex::new(inner), place, writer, paused: CancellationToken::new(), readers: watch::channel(0).0 }
    }

    /// Adds a line that a process of `component` printed. Never waits.
    pub(crate) fn push(&self, component: &str, instance: &str, stream: Stream, piece: Piece<'_>, priority: Option<u8>) {
        let now = clock::now();
        let (name, line) = {
            let mut inner = lock(&self.inner);
            let seq = (inner.last + 1).max(u64::try_from(now.as_microsecond()).unwrap_or(0));
            let line = Arc::new(LogLine {
                seq,
                at: clock::rfc3339(now),
                stream,
                instance: instance.to_owned(),
                line: lines::text(piece.bytes),
                priority,
                cut: piece.cut,
            });
            // Made before the number is taken: until now nothing of this component lies above it.
            let ring = inner.ring(component);
            ring.push(Arc::clone(&line));
            let name = Arc::clone(&ring.name);
            inner.last = seq;
            if let Some(writer) = &self.writer {
                // Under the lock, so that the files have the order of the numbers.
                writer.push(&name, &line);
            }
            (name, line)
        };
        if self.writer.is_none() {
            writer::echo(&name, &line);
        }
    }

    /// Returns the last `count` lines that one process printed.
    pub fn last_of(&self, component: &str, instance: &str, count: usize) -> Vec<String> {
        let inner = lock(&self.inner);
        let Some(ring) = inner.rings.get(component) else { return Vec::new() };
        let of_it = ring.lines.iter().rev().filter(|line| line.instance == instance && line.stream != Stream::Refit);
        let mut lines: Vec<String> = of_it.take(count).map(|line| line.line.clone()).collect();
        lines.reverse();
        lines
    }

    /// Returns the last `count` lines of `component`, oldest first, from memory and disk.
    pub async fn last(self: &Arc<Self>, component: &str, count: usize) -> Vec<Arc<LogLine>> {
        let count = count.min(LINES_ASKED_MAX);
        let newest: Vec<Arc<LogLine>> = {
            let inner = lock(&self.inner);
            inner.rings.get(component).map_or_else(Vec::new, |ring| ring.last(count).cloned().collect())
        };
        let missing = count - newest.len();
        if missing == 0 {
            return newest;
        }
        let before = newest.first().map_or(u64::MAX, |first| first.seq);
        let older = self.read(component, move |reading| reading.last(missing, before)).await.unwrap_or_default();
        older.into_iter().map(Arc::new).chain(newest).collect()
    }

    /// Returns the first `count` lines of `component` after the number `after`, oldest first, from memory and disk.
    pub async fn after(self: &Arc<Self>, component: &str, after: u64, count: usize) -> Vec<Arc<LogLine>> {
        let count = count.min(LINES_ASKED_MAX);
        let (here, before, whole) = {
            let mut inner = lock(&self.inner);
            let ring = inner.ring(component);
            let begin = ring.lines.partition_point(|line| line.seq <= after);
            let here: Vec<Arc<LogLine>> = ring.lines.range(begin..).take(count).cloned().collect();
            (here, ring.lines.front().map_or(u64::MAX, |first| first.seq), after >= ring.evicted)
        };
        if whole {
            return here;
        }
        let older = self.read(component, move |reading| reading.after(after, count, before)).await.unwrap_or_default();
        let mut lines: Vec<Arc<LogLine>> = older.into_iter().map(Arc::new).collect();
        let bytes: usize = lines.iter().map(|line| bytes_of(line)).sum();
        // An answer that is full ends there: what comes next is on the disk, too.
        if lines.len() < count && bytes < read::ANSWER_BYTES_MAX - read::LONGEST_BYTES {
            let room = count - lines.len();
            lines.extend(here.into_iter().take(room));
        }
        lines
    }

    /// Reads the files of `component` where that holds nobody up. `None` if there is nothing to read.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        component: &str,
        work: impl FnOnce(&Reading) -> io::Result<T> + Send + 'static,
    ) -> Option<T> {
        let place = self.place.as_ref()?;
        let reading = Reading::new(&place.dir, component);
        let logs = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            if let Some(writer) = &logs.writer {
                writer.settle(SETTLE_MAX);
            }
            work(&reading)
        });
        match read.await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                tracing::warn!(component.name = component, %error, "cannot read a component's older output");
                None
            }
            Err(error) => {
                tracing::error!(component.name = component, %error, "reading a component's older output broke off");
                None
            }
        }
    }

    /// Returns a receiver of the number of the newest line of `component`.
    pub fn watch(&self, component: &str) -> watch::Receiver<u64> {
        lock(&self.inner).ring(component).newest.subscribe()
    }

    /// Returns what the next image gets. It is complete when nobody reads any more, which is not for us to say.
    pub fn carried(&self) -> Carried {
        let inner = lock(&self.inner);
        let lines = inner.rings.iter().map(|(name, ring)| {
            let mut bytes = 0;
            let mut lines: Vec<LogLine> = ring
                .last(LINES_CARRIED)
                .rev()
                .take_while(|line| {
                    bytes += bytes_of(line);
                    bytes <= CARRIED_BYTES_MAX
                })
                .map(|line| (**line).clone())
                .collect();
            lines.reverse();
            (name.clone(), lines)
        });
        Carried { lines: lines.collect(), partial: inner.partial.clone(), complete: false }
    }

    /// Counts one who reads a pipe, until it is dropped.
    pub(crate) fn reader(self: &Arc<Self>) -> Reader {
        self.readers.send_modify(|count| *count += 1);
        Reader { logs: Arc::clone(self) }
    }

    /// Has the files opened anew: somebody has moved them.
    pub fn reopen(&self) {
        if let Some(writer) = &self.writer {
            writer.reopen();
        }
    }

    /// Has everybody stop reading, so that what is in the pipes is the next image's. What was read is kept for it.
    pub async fn pause(&self) {
        self.paused.cancel();
        if !self.are_all_done().await {
            tracing::warn!("somebody still reads what components print; the next image may miss a line");
        }
    }

    /// Waits until nobody reads any more. Returns whether that is so within a limit.
    async fn are_all_done(&self) -> bool {
        let mut readers = self.readers.subscribe();
        tokio::time::timeout(PAUSE_MAX, readers.wait_for(|count| *count == 0)).await.is_ok()
    }

    /// Has everything written that is on its way to the disk, within a limit. Whoever reads is about to end.
    pub async fn close(self: &Arc<Self>) {
        if !self.are_all_done().await {
            tracing::warn!("somebody still reads what components print; its last lines may be missing on the disk");
        }
        let logs = Arc::clone(self);
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(writer) = &logs.writer {
                writer.close(CLOSE_MAX);
            }
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "writing what components printed broke off");
        }
    }
}

/// Returns the highest number on the disk.
fn newest_written(place: &Place) -> u64 {
    let newest = || -> io::Result<u64> {
        let mut newest = 0;
        for entry in std::fs::read_dir(&place.dir)? {
            if let Some(name) = entry?.file_name().to_str() {
                newest = newest.max(Reading::new(&place.dir, name).newest()?);
            }
        }
        Ok(newest)
    };
    match newest() {
        Ok(newest) => newest,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => {
            tracing::warn!(%error, "cannot read the older output of the components");
            0
        }
    }
}

/// One who reads a pipe. Only [`Logs::reader`] makes one.
#[derive(Debug)]
pub(crate) struct Reader {
    logs: Arc<Logs>,
}

impl Reader {
    /// Returns the lines.
    pub(crate) fn logs(&self) -> &Arc<Logs> {
        &self.logs
    }

    /// Waits until nobody is to read any more.
    pub(crate) fn paused(&self) -> impl Future<Output = ()> + use<> {
        self.logs.paused.clone().cancelled_owned()
    }

    /// Returns whether nobody is to read any more.
    pub(crate) fn is_paused(&self) -> bool {
        self.logs.paused.is_cancelled()
    }

    /// Keeps a line that has begun for the next image.
    pub(crate) fn leave(&self, place: String, partial: Vec<u8>) {
        lock(&self.logs.inner).partial.insert(place, partial);
    }

    /// Returns the line that had begun when the image before ended.
    pub(crate) fn found(&self, place: &str) -> Vec<u8> {
        lock(&self.logs.inner).partial.remove(place).unwrap_or_default()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.logs.readers.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's files need not be durable")]
mod tests;
