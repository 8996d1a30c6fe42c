//! What is to be said, in the order in which it happened.
//!
//! Whatever changes the bus puts what is to be said of it here, under the same lock as the change; it is then delivered outside
//! that lock, by one thread at a time. So the log and the observer hear of everything in one order, and neither can hold up
//! whoever asks: somebody who finds another thread delivering leaves it to him.

use std::collections::VecDeque;
use std::sync::Mutex;

use refit_base::lock;
use tokio::sync::oneshot;

use crate::log::LogEntry;
use crate::shared::{BusEvent, Fault};
use crate::state::State;

/// Something to be said, or to be done in that order.
pub(crate) enum Item {
    Log(LogEntry),
    Event(BusEvent),
    /// What was promised for a state is kept once everybody has heard of it.
    Settle(State, Vec<Fault>),
    /// All before it was said.
    Said(oneshot::Sender<()>),
}

#[derive(Default)]
struct Inner {
    items: VecDeque<Item>,
    delivering: bool,
}

/// What waits to be said.
#[derive(Default)]
pub(crate) struct Outbox(Mutex<Inner>);

impl Outbox {
    pub(crate) fn push(&self, items: impl IntoIterator<Item = Item>) {
        lock(&self.0).items.extend(items);
    }

    /// Has `say` say what waits, unless another thread is at it.
    pub(crate) fn deliver(&self, mut say: impl FnMut(Item)) {
        /// Lets others deliver, also after a panic.
        struct Free<'a>(&'a Outbox, bool);
        impl Drop for Free<'_> {
            fn drop(&mut self) {
                if self.1 {
                    lock(&self.0.0).delivering = false;
                }
            }
        }
        {
            let mut inner = lock(&self.0);
            if inner.delivering || inner.items.is_empty() {
                return;
            }
            inner.delivering = true;
        }
        let mut free = Free(self, true);
        loop {
            let item = {
                let mut inner = lock(&self.0);
                let item = inner.items.pop_front();
                // Under the lock: who comes now delivers himself.
                inner.delivering = item.is_some();
                free.1 = inner.delivering;
                item
            };
            let Some(item) = item else { return };
            say(item);
        }
    }
}
