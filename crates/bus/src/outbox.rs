//! What is to be said, in the order in which it happened.
//!
//! Whatever changes the bus puts what is to be said of it here, under the same lock as the change; it is then delivered outside
//! that lock, by one thread at a time. So the log and the observer hear of everything in one order, and neither can hold up
//! whoever asks: somebody who finds another thread delivering leaves it to him.

use std::collections::VecDeque;
use std::sync::Mutex;

use refit_base::lock;

struct Inner<T> {
    items: VecDeque<T>,
    delivering: bool,
}

/// What waits to be said.
pub(crate) struct Outbox<T>(Mutex<Inner<T>>);

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self(Mutex::new(Inner { items: VecDeque::new(), delivering: false }))
    }
}

impl<T> Outbox<T> {
    pub(crate) fn push(&self, items: impl IntoIterator<Item = T>) {
        lock(&self.0).items.extend(items);
    }

    /// Has `say` say what waits, unless another thread is at it.
    pub(crate) fn deliver(&self, mut say: impl FnMut(T)) {
        /// Lets others deliver, also after a panic.
        struct Free<'a, T>(&'a Outbox<T>, bool);
        impl<T> Drop for Free<'_, T> {
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
