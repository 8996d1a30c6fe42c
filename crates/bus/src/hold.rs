//! Listeners that hold their thread: what says that they must not be called meanwhile.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

/// How many calls of a listener hold their threads. While there is one it is not called: each call would take one more thread.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    taken: AtomicU32,
    /// How many of them have had their time.
    given_up: AtomicU32,
    released: Notify,
}

impl Hold {
    pub(crate) fn take(&self) {
        self.taken.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn give_up(&self) {
        self.given_up.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn release(&self, given_up: bool) {
        if given_up {
            self.given_up.fetch_sub(1, Ordering::AcqRel);
        }
        self.taken.fetch_sub(1, Ordering::AcqRel);
        self.released.notify_waiters();
    }

    pub(crate) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire) > 0
    }

    /// Returns whether one that holds its thread has had its time: when it comes back nobody knows.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire) > 0
    }

    /// Waits until no call holds its thread.
    pub(crate) async fn free(&self) {
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            released.as_mut().enable(); // before the look: a release between the two is not missed
            if !self.is_taken() {
                return;
            }
            released.await;
        }
    }
}
