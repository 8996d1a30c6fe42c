//! Where a task runs: what the listener that it is was called for, and how deep. A listener that would wait for its own
//! transition is told so by it.

use std::cell::Cell;
use std::future::Future;

/// Why a wait inside a listener of a transition fails.
pub(crate) const INSIDE: &str = "a listener cannot wait for the transition that waits for it";

/// What a listener is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A transition, which waits for it.
    Transition,
    /// A publication of somebody's.
    Publication,
    /// An entry of the log.
    Log,
}

tokio::task_local! {
    /// Set in the task of a listener: what it is called for, and how deep.
    static CONTEXT: Cell<(Purpose, u32)>;
}

/// Runs `work` as the task of a listener.
pub(crate) async fn inside<T>(purpose: Purpose, depth: u32, work: impl Future<Output = T>) -> T {
    CONTEXT.scope(Cell::new((purpose, depth)), work).await
}

/// Returns whether this task is a listener that is called for `purpose`.
pub(crate) fn is_inside(purpose: Purpose) -> bool {
    CONTEXT.try_with(|context| context.get().0 == purpose).unwrap_or(false)
}

/// Returns what a publication of this task is for: whoever waits for a listener waits for all those that it publishes to.
pub(crate) fn purpose() -> Purpose {
    CONTEXT.try_with(|context| context.get().0).unwrap_or(Purpose::Publication)
}

/// Returns how many listeners deep this task is.
pub(crate) fn depth() -> u32 {
    CONTEXT.try_with(|context| context.get().1).unwrap_or(0)
}
