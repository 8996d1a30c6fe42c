//! Where every call of a listener begins: closed by its removal.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use refit_base::lock;

use crate::hold::Hold;

/// How long a removal waits for a call that is just beginning on another thread. One that takes longer has begun
/// long ago, and holds its thread.
const BEGIN_WAIT_MAX: Duration = Duration::from_millis(100);
/// In the count of a gate: it is closed.
const CLOSED: u32 = 1 << 31;

/// Why nobody may pass a gate any more.
pub(crate) enum Closed<T> {
    Removed,
    Replaced(Arc<T>),
}

impl<T> Clone for Closed<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Removed => Self::Removed,
            Self::Replaced(by) => Self::Replaced(Arc::clone(by)),
        }
    }
}

/// Where every call of a listener begins; `T` is what may take its place.
pub(crate) struct Gate<T> {
    passing: Passing,
    why: OnceLock<Closed<T>>,
}

impl<T> Default for Gate<T> {
    fn default() -> Self {
        Self { passing: Passing::default(), why: OnceLock::new() }
    }
}

/// Who is in a gate.
#[derive(Default)]
struct Passing {
    /// How many they are, and whether it is closed.
    count: AtomicU32,
    leaving: Mutex<()>,
    left: Condvar,
}

thread_local! {
    /// The gates in which this thread is.
    static OWN: RefCell<Vec<*const Passing>> = const { RefCell::new(Vec::new()) };
}

/// Who is in a gate; leaves it when dropped, also by a panic.
pub(crate) struct Inside<'a>(&'a Passing);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        OWN.with_borrow_mut(|own| {
            if let Some(place) = own.iter().rposition(|gate| std::ptr::eq(*gate, self.0)) {
                own.remove(place);
            }
        });
        let before = self.0.count.fetch_sub(1, Ordering::AcqRel);
        // Only who closes waits; telling nobody is a system call all the same.
        if before & CLOSED != 0 {
            let _leaving = lock(&self.0.leaving);
            self.0.left.notify_all();
        }
    }
}

impl<T> Gate<T> {
    /// Enters, unless it is closed.
    pub(crate) fn enter(&self) -> Result<Inside<'_>, Closed<T>> {
        let before = self.passing.count.fetch_add(1, Ordering::AcqRel);
        OWN.with_borrow_mut(|own| own.push(&raw const self.passing));
        let inside = Inside(&self.passing);
        if before & CLOSED == 0 {
            return Ok(inside);
        }
        drop(inside);
        Err(self.why.get().cloned().unwrap_or(Closed::Removed))
    }

    /// Closes it.
    pub(crate) fn close(&self, why: Closed<T>) {
        drop(self.why.set(why)); // the first reason stays
        self.passing.count.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Waits for those who are in it and have only just begun; a listener may close its own. `hold` says that somebody in it
    /// holds his thread: he has begun.
    pub(crate) fn wait(&self, hold: &Hold) {
        let own =
            OWN.with_borrow(|own| own.iter().filter(|gate| std::ptr::eq(**gate, &raw const self.passing)).count());
        let others = || (self.passing.count.load(Ordering::Acquire) & !CLOSED) as usize > own && !hold.is_taken();
        if others() {
            drop(self.passing.left.wait_timeout_while(lock(&self.passing.leaving), BEGIN_WAIT_MAX, |()| others()));
        }
    }
}
