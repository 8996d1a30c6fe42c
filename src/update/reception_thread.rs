//! The thread on which packages are received, one after the other.
//!
//! It is always the same one: what reading a large manifest took, the allocator keeps for the thread that took it, and on threads of
//! a pool a few of those would add up.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, mpsc};
use std::thread;

use refit_base::lock;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::UpdateError;

type Job = Box<dyn FnOnce() + Send>;

/// The thread, once there was something to receive.
#[derive(Default)]
pub(super) struct ReceptionThread(Mutex<Option<mpsc::Sender<Job>>>);

impl ReceptionThread {
    /// Does `work`, which may block. The work goes on when its caller stops waiting.
    ///
    /// # Errors
    /// It panicked, or the system has no thread left.
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
        let jobs = self.jobs().map_err(|source| UpdateError::Io { what: "start the thread that receives", source })?;
        jobs.send(Box::new(job)).map_err(|_refused| UpdateError::Panicked)?;
        done.await.map_err(|_gone| UpdateError::Panicked)
    }

    fn jobs(&self) -> io::Result<mpsc::Sender<Job>> {
        let mut started = lock(&self.0);
        if let Some(jobs) = &*started {
            return Ok(jobs.clone());
        }
        let (jobs, waiting) = mpsc::channel::<Job>();
        let work = move || {
            for job in waiting {
                // The caller learns that its work ended without a result.
                drop(catch_unwind(AssertUnwindSafe(job)));
            }
        };
        thread::Builder::new().name("refit-receive".to_owned()).spawn(work)?;
        *started = Some(jobs.clone());
        Ok(jobs)
    }
}
