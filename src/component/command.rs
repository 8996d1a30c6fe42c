//! What the task that owns a component's processes can be told.

use refit_bus::Failure;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// What the task can be told to do.
pub(super) enum Action {
    /// To run, until it is cancelled.
    Start {
        /// Somebody asked for this component, and not for the whole site.
        alone: bool,
        /// Says that nobody wants it any more.
        cancelled: CancellationToken,
    },
    /// Not to run.
    Stop {
        /// The next image takes the process over.
        keep_running: bool,
        /// An operator wants it to stay down, also under the next image.
        stays_down: bool,
        /// Says that the time is over.
        hurry: CancellationToken,
    },
    /// Not to run, in the time that is left to it: somebody has asked for that under an image before.
    LeaveDown,
    /// To read its settings again.
    Reload,
    /// To be tried again as its restart policy says, after a start that failed.
    Retry,
}

/// An action, and where its outcome goes.
pub(super) struct Command {
    pub(super) action: Action,
    pub(super) reply: oneshot::Sender<Result<(), Failure>>,
}
