//! The thread on which packages are received, one after the other.
//!
//! It is always the same one: what reading a large manifest took, the allocator keeps for the thread that took it, and on threads of
//! a pool a few of those would add up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::UpdateError;

type Job = Box<dyn FnOnce() + Send>;

/// The thread.
pub(super) struct Bench(mpsc::Sender<Job>);

impl Bench {
    /// Returns the bench. Where no thread is left it takes no work.
    pub(super) fn new() -> Self {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let work = move || {
            for job in waiting {
                // Who waits for it learns that it ended without a result.
                drop(catch_unwind(AssertUnwindSafe(job)));
            }
        };
        if let Err(error) = thread::Builder::new().name("refit-receive".to_owned()).spawn(work) {
            tracing::error!(%error, "no thread is left to receive packages; the next image of the runtime tries again");
        }
        Self(jobs)
    }

    /// Does `work`, which may block. It goes on when nobody waits for it any more.
    ///
    /// # Errors
    /// It panicked, or there is no thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, UpdateError> {
        let (result, done) = oneshot::channel();
        let runtime = Handle::current();
        let job = move || {
            let _inside = runtime.enter();
            drop(result.send(work()));
        };
        self.0.send(Box::new(job)).map_err(|_refused| UpdateError::Panicked)?;
        done.await.map_err(|_gone| UpdateError::Panicked)
    }
}
