//! What happens, as a stream: for the page, the command line, and whoever else watches.
//!
//! Events are numbered over the whole life of an appliance's runtime, across an exec too, and the last ones are kept: a reader
//! whose connection broke names the last number it saw and misses nothing. An image that crashed may have given numbers that
//! nobody kept: the next one begins above all of them.

use std::collections::VecDeque;
use std::sync::Mutex;

use refit_base::{clock, lock};
use tokio::sync::watch;

use crate::wire::{Event, EventRecord};

/// How many events are kept: several updates' worth.
pub const EVENTS_MAX: usize = 1024;

/// Numbers that each process image has for itself; none gives as many events.
const IMAGE_IDS: u64 = 1 << 32;

/// The events and who waits for them.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<VecDeque<EventRecord>>,
    /// Every number is above this one.
    begin: u64,
    /// The number of the newest event: waiting for a level, nothing can be missed.
    newest: watch::Sender<u64>,
}

impl Events {
    /// Returns a stream that goes on after `kept`, of which nothing is missing.
    pub fn new(kept: Vec<EventRecord>) -> Self {
        Self::from(kept, 0)
    }

    /// Returns a stream that goes on after `kept`, the last that is known of `images` process images, and above whatever
    /// numbers they gave.
    pub fn after_crash(kept: Vec<EventRecord>, images: u32) -> Self {
        Self::from(kept, u64::from(images) * IMAGE_IDS)
    }

    fn from(kept: Vec<EventRecord>, begin: u64) -> Self {
        let newest = kept.last().map_or(begin, |event| event.id.max(begin));
        Self { kept: Mutex::new(kept.into()), begin, newest: watch::channel(newest).0 }
    }

    /// Adds an event.
    pub fn publish(&self, event: Event) {
        let id = {
            let mut kept = lock(&self.kept);
            let id = kept.back().map_or(self.begin, |last| last.id.max(self.begin)) + 1;
            if kept.len() == EVENTS_MAX {
                kept.pop_front();
            }
            let monotonic_ms = Some(clock::monotonic_ns() / 1_000_000);
            kept.push_back(EventRecord { id, at: clock::stamp(), monotonic_ms, event });
            id
        };
        self.newest.send_replace(id);
    }

    /// Returns the events after number `seen`, oldest first.
    pub fn after(&self, seen: u64) -> Vec<EventRecord> {
        let kept = lock(&self.kept);
        let begin = kept.partition_point(|event| event.id <= seen);
        kept.range(begin..).cloned().collect()
    }

    /// Returns after which number a reader goes on that saw `seen` last: a number that this stream has not reached is one of a
    /// stream that is lost, and nothing that is kept was seen.
    pub fn resume(&self, seen: u64) -> u64 {
        if seen > *self.newest.borrow() { 0 } else { seen }
    }

    /// Returns the number of the newest event, to wait for a newer one.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Returns the last `count` events.
    pub fn last(&self, count: usize) -> Vec<EventRecord> {
        let kept = lock(&self.kept);
        kept.range(kept.len().saturating_sub(count)..).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(number: u32) -> Event {
        Event::Other { name: "tick".to_owned(), data: number.into() }
    }

    #[test]
    fn a_reader_that_returns_misses_nothing_also_over_an_exec() {
        let events = Events::new(Vec::new());
        for number in 0..5 {
            events.publish(tick(number));
        }
        assert_eq!(events.after(3).iter().map(|event| event.id).collect::<Vec<_>>(), [4, 5]);
        let next = Events::new(events.last(2));
        next.publish(tick(5));
        assert_eq!(next.after(4).iter().map(|event| event.id).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(*next.watch().borrow(), 6);
    }

    #[test]
    fn a_reader_that_returns_after_a_crash_misses_nothing_of_what_is_left() {
        let events = Events::new(Vec::new());
        for number in 0..5 {
            events.publish(tick(number));
        }
        let next = Events::after_crash(events.last(2), 1);
        assert_eq!((next.resume(6), next.after(6)), (6, Vec::new()));
        // This one is lost: the image crashes before it is kept.
        events.publish(tick(5));
        next.publish(tick(6));
        assert_eq!(next.after(6).iter().map(|event| event.id).collect::<Vec<_>>(), [IMAGE_IDS + 1]);
        assert_eq!(next.after(4).iter().map(|event| event.id).collect::<Vec<_>>(), [5, IMAGE_IDS + 1]);
        assert_eq!(*next.watch().borrow(), IMAGE_IDS + 1);
        assert_eq!((next.resume(4), next.resume(IMAGE_IDS + 1), next.resume(2 * IMAGE_IDS)), (4, IMAGE_IDS + 1, 0));
    }
}
