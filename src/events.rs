//! What happens, as a stream: for the page, the command line, and whoever else watches.
//!
//! Events are numbered over the whole life of an appliance's runtime, across an exec too, and the last ones are kept: a reader
//! whose connection broke names the last number it saw and misses nothing.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::clock;

/// How many events are kept: several updates' worth.
pub const EVENTS_MAX: usize = 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number.
    pub id: u64,
    /// Its type, such as `update.step`.
    pub event: String,
    /// When, RFC 3339.
    pub at: String,
    /// What, by type.
    pub data: Value,
}

/// The events and who waits for them.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<VecDeque<Event>>,
    /// The number of the newest event: waiting for a level, nothing can be missed.
    newest: watch::Sender<u64>,
}

impl Events {
    /// Returns a stream that goes on after `kept`.
    pub fn new(kept: Vec<Event>) -> Self {
        let newest = kept.last().map_or(0, |event| event.id);
        Self { kept: Mutex::new(kept.into()), newest: watch::channel(newest).0 }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event.
    pub fn publish(&self, event: &str, data: Value) {
        let id = {
            let mut kept = self.lock();
            let id = kept.back().map_or(0, |last| last.id) + 1;
            if kept.len() == EVENTS_MAX {
                kept.pop_front();
            }
            kept.push_back(Event { id, event: event.to_owned(), at: clock::stamp(), data });
            id
        };
        self.newest.send_replace(id);
    }

    /// Returns the events after number `seen`, oldest first.
    pub fn after(&self, seen: u64) -> Vec<Event> {
        let kept = self.lock();
        let begin = kept.partition_point(|event| event.id <= seen);
        kept.range(begin..).cloned().collect()
    }

    /// Returns the number of the newest event, to wait for a newer one.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Returns the last `count` events.
    pub fn last(&self, count: usize) -> Vec<Event> {
        let kept = self.lock();
        kept.range(kept.len().saturating_sub(count)..).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_returns_misses_nothing_also_over_an_exec() {
        let events = Events::new(Vec::new());
        for number in 0..5 {
            events.publish("tick", Value::from(number));
        }
        assert_eq!(events.after(3).iter().map(|event| event.id).collect::<Vec<_>>(), [4, 5]);
        let next = Events::new(events.last(2));
        next.publish("tick", Value::from(5));
        assert_eq!(next.after(4).iter().map(|event| event.id).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(*next.watch().borrow(), 6);
    }
}
