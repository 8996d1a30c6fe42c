//! Mutexes whose data stays good when a thread panics.
//!
//! For data that is whole between any two statements, so that a panic elsewhere must not stop the rest of the appliance.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, whether or not a thread has panicked while it held the lock.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `changed` is notified, as [`lock`] locks.
pub fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Returns what `mutex` holds, as [`lock`] does.
pub fn into_inner<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}
