//! Waiting for conditions, always with a bound: the only place of the suite that rests.

use std::time::{Duration, Instant};

/// How long anything may take on a busy machine of two cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// The pause between two looks: nobody tells us of most of what we wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until `look` finds something, and returns it.
///
/// Panics when it has found nothing after `limit`, saying `what` was waited for.
pub(crate) fn until<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < limit, "waited {limit:?} in vain until {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Waits until `met` is true.
///
/// Panics when it is not after `limit`, saying `what` was waited for.
pub(crate) fn eventually(limit: Duration, what: &str, mut met: impl FnMut() -> bool) {
    until(limit, what, || met().then_some(()));
}

/// Waits for so long: for what must not happen meanwhile.
pub(crate) fn passes(time: Duration) {
    let begun = Instant::now();
    eventually(time + LIMIT, "time passes", || begun.elapsed() >= time);
}
