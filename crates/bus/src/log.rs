//! The `log` channel: what happens, for people. Bounded and lossy, so that nobody who reads it can hold anything up.
//!
//! Every listener has a queue and a task of its own: a slow one loses lines, a broken one is counted, and neither delays a
//! transition or another listener. Standard error is the last resort: it gets what a listener could not take, and the warnings
//! that nobody listens to.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::{clock, lock};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use crate::context::{self, Purpose};
use crate::publication::{Round, call_for, plain_call};
use crate::registry::{self, Registry};
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
    name: String,
    queue: mpsc::Sender<LogEntry>,
}

/// All listeners of the `log` channel.
pub(crate) struct Log {
    sinks: Mutex<Vec<Sink>>,
    counters: Arc<Counters>,
    log_tasks: TaskSet,
}

impl Log {
    /// Returns a log without listeners; their tasks will be among `log_tasks`.
    pub(crate) fn new(log_tasks: TaskSet) -> Self {
        Self { sinks: Mutex::new(Vec::new()), counters: Arc::new(Counters::default()), log_tasks }
    }

    /// Begins to deliver to the listener `name` of the channel.
    pub(crate) fn add(&self, name: &str, registry: &Arc<Registry>, limit: Duration, grace: Duration) {
        let (queue, entries) = mpsc::channel::<LogEntry>(QUEUE_MAX);
        let mut waiting = Waiting { entries, in_hand: false, counters: Arc::clone(&self.counters) };
        {
            let mut sinks = lock(&self.sinks);
            sinks.retain(|sink| sink.name != name);
            sinks.push(Sink { name: name.to_owned(), queue });
        }
        let (registry, counters, own) = (Arc::clone(registry), Arc::clone(&self.counters), name.to_owned());
        let deliver = async move {
            while let Some(entry) = waiting.entries.recv().await {
                waiting.in_hand = true;
                let there = registry.snapshot(registry::LOG).entries.into_iter().find(|there| there.name == own);
                let Some(listener) = there else { break };
                let call = plain_call(registry::LOG, 0, State::Initial, json!(entry), 0);
                let mut round = Round::new(grace);
                let limit = listener.limit.unwrap_or(limit);
                round.begin(0, listener, call_for(&call, limit), Purpose::Log);
                let failure = match round.next().await {
                    Some((_, outcome, _)) => outcome.failure(),
                    None => None,
                };
                waiting.in_hand = false;
                match failure {
                    None => drop(counters.delivered.fetch_add(1, Ordering::Relaxed)),
                    Some(failure) => {
                        counters.failed.fetch_add(1, Ordering::Relaxed);
                        last_resort(&entry, &format!(" (the log listener {own} failed: {failure})"));
                    }
                }
            }
            Ok(())
        };
        // A bus that has ended delivers nothing any more.
        drop(self.log_tasks.take(format!("the log listener {name}"), Box::pin(deliver)));
    }

    /// Ends delivering to the listener `name`.
    pub(crate) fn remove(&self, name: &str) {
        lock(&self.sinks).retain(|sink| sink.name != name);
    }

    /// Hands `text` to every listener that has room for it.
    pub(crate) fn write(&self, level: Level, text: String) {
        let entry = LogEntry { at: clock::stamp(), level, text };
        if context::is_inside(Purpose::Log) {
            return last_resort(&entry, " (said by a log listener)"); // or each entry would make the next
        }
        let sinks = lock(&self.sinks);
        if sinks.is_empty() {
            if level >= Level::Warning {
                last_resort(&entry, "");
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

/// Writes to standard error. That it fails, too, is nobody's to hear.
fn last_resort(entry: &LogEntry, note: &str) {
    drop(writeln!(std::io::stderr().lock(), "{} {}: {}{note}", entry.at, entry.level.name(), entry.text));
}
