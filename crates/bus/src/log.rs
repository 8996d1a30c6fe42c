//! The `log` channel: what happens, for people. Bounded and lossy, so that nobody who reads it can hold anything up.
//!
//! Every listener has a queue and a task of its own: a slow one loses lines, a broken one is counted, and neither delays a
//! transition or another listener. Standard error is the last resort: it gets what a listener could not take, and the warnings
//! that nobody listens to.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::{clock, lock};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use crate::call::CallInfo;
use crate::calls::{Calls, Monitor, Planned, Rules, Terms, Until};
use crate::context::{self, Purpose};
use crate::failure::Failure;
use crate::registry::{self, Entry, Registry};
use crate::state::State;
use crate::tasks::TaskSet;

/// How many entries may wait for one listener: a life of the site with room to spare.
const QUEUE_MAX: usize = 1024;

/// How much an entry matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For whoever looks for a mistake.
    Debug,
    /// What happens.
    Info,
    /// What should not happen, and did no harm.
    Warning,
    /// What failed.
    Error,
}

impl Level {
    /// Returns the name that logs show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When, RFC 3339.
    pub at: String,
    /// How much it matters.
    pub level: Level,
    /// What, for people.
    pub text: String,
}

/// What became of the entries so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LogCounts {
    /// Taken by a listener.
    pub delivered: u64,
    /// Dropped because a listener's queue was full, or because it had no time for them at the end.
    pub dropped: u64,
    /// Given to a listener that failed or took too long.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    delivered: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

/// What waits for a listener. Whatever it never gets is counted, however the delivering ends.
struct Waiting {
    entries: mpsc::Receiver<LogEntry>,
    /// Whether one was taken and its end is not known.
    in_hand: bool,
    counters: Arc<Counters>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let missed = u64::try_from(self.entries.len()).unwrap_or(u64::MAX);
        self.counters.dropped.fetch_add(missed.saturating_add(self.in_hand.into()), Ordering::Relaxed);
    }
}

struct Sink {
    name: Arc<str>,
    queue: mpsc::Sender<LogEntry>,
    /// Whether somebody listens under that name without a break.
    there: Arc<AtomicBool>,
}

/// All listeners of the `log` channel.
pub(crate) struct Log {
    sinks: Mutex<Vec<Sink>>,
    counters: Arc<Counters>,
    log_tasks: TaskSet,
}

/// Returns what is to be said of `text`; `None` if a log listener says it, which goes to standard error: each entry would make the next.
pub(crate) fn entry(level: Level, text: String) -> Option<LogEntry> {
    let entry = LogEntry { at: clock::stamp(), level, text };
    if context::is_inside(Purpose::Log) {
        last_resort(&entry, " (said by a log listener)");
        return None;
    }
    Some(entry)
}

impl Log {
    /// Returns a log without listeners; their tasks will be among `log_tasks`.
    pub(crate) fn new(log_tasks: TaskSet) -> Self {
        Self { sinks: Mutex::new(Vec::new()), counters: Arc::new(Counters::default()), log_tasks }
    }

    /// Begins to deliver to the listener `name` of the channel. Whoever takes the place of another one goes on with what waits.
    pub(crate) fn add(&self, name: Arc<str>, means: Means) {
        let (queue, entries) = mpsc::channel::<LogEntry>(QUEUE_MAX);
        let there = Arc::new(AtomicBool::new(true));
        {
            let mut sinks = lock(&self.sinks);
            if sinks.iter().any(|sink| sink.name == name) {
                return;
            }
            sinks.push(Sink { name: Arc::clone(&name), queue, there: Arc::clone(&there) });
        }
        let delivery = Delivery {
            waiting: Waiting { entries, in_hand: false, counters: Arc::clone(&self.counters) },
            there,
            means,
            name,
        };
        let task = format!("the log listener {}", delivery.name);
        // A bus that has ended delivers nothing any more.
        drop(self.log_tasks.take(task, Box::pin(delivery.run())));
    }

    /// Ends delivering to the listener `name`.
    pub(crate) fn remove(&self, name: &str) {
        for sink in lock(&self.sinks).extract_if(.., |sink| *sink.name == *name) {
            sink.there.store(false, Ordering::Release);
        }
    }

    /// Hands `entry` to every listener that has room for it.
    pub(crate) fn hand(&self, entry: &LogEntry) {
        let sinks = lock(&self.sinks);
        if sinks.is_empty() {
            if entry.level >= Level::Warning {
                last_resort(entry, "");
            }
            return;
        }
        for sink in sinks.iter() {
            if sink.queue.try_send(entry.clone()).is_err() {
                self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes nothing more; what waits is still delivered.
    pub(crate) fn close(&self) {
        lock(&self.sinks).clear();
    }

    pub(crate) fn counts(&self) -> LogCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogCounts {
            delivered: read(&self.counters.delivered),
            dropped: read(&self.counters.dropped),
            failed: read(&self.counters.failed),
        }
    }
}

/// What delivers to one listener.
struct Delivery {
    waiting: Waiting,
    there: Arc<AtomicBool>,
    means: Means,
    name: Arc<str>,
}

/// What it takes to call a listener.
pub(crate) struct Means {
    pub(crate) registry: Arc<Registry>,
    pub(crate) monitor: Arc<Monitor>,
    /// How long a listener has that says nothing itself.
    pub(crate) limit: Duration,
    pub(crate) grace: Duration,
}

impl Delivery {
    async fn run(mut self) -> Result<(), Failure> {
        while let Some(entry) = self.waiting.entries.recv().await {
            self.waiting.in_hand = true;
            if !self.there.load(Ordering::Acquire) {
                break;
            }
            let Some(listener) = self.means.registry.find(registry::LOG, &self.name) else { break };
            let failure = self.deliver(listener, &entry).await;
            self.waiting.in_hand = false;
            let counters = &self.waiting.counters;
            match failure {
                None => drop(counters.delivered.fetch_add(1, Ordering::Relaxed)),
                Some(failure) => {
                    counters.failed.fetch_add(1, Ordering::Relaxed);
                    last_resort(&entry, &format!(" (the log listener {} failed: {failure})", self.name));
                }
            }
        }
        Ok(())
    }

    async fn deliver(&self, entry: Arc<Entry>, text: &LogEntry) -> Option<Failure> {
        let info = CallInfo::plain(registry::LOG.into(), 0, State::Initial, json!(text), 0);
        let rules = Rules { info, purpose: Purpose::Log, grace: self.means.grace, cancelled: None, until: None };
        let calls = Calls::new(rules);
        let limit = entry.limit.unwrap_or(self.means.limit);
        calls.begin([Planned { entry, limit, wave: 0, terms: Terms::Usual }], &self.means.monitor);
        let end = calls.next(Until::All).await;
        calls.let_go();
        end?.outcome.failure()
    }
}

/// Writes to standard error. That it fails, too, is nobody's to hear.
fn last_resort(entry: &LogEntry, note: &str) {
    drop(writeln!(std::io::stderr().lock(), "{} {}: {}{note}", entry.at, entry.level.name(), entry.text));
}
