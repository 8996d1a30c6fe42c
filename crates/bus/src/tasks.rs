//! Tasks that the bus owns: each has a name, each result is read, and the end waits for them, but not for ever.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::panics::task_failure;

/// How many tasks may wait to be started: they do so only until the bus runs.
const WAITING_MAX: usize = 4096;

/// What a task does.
pub(crate) type Job = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

struct NamedTask {
    name: String,
    job: Job,
}

/// Where tasks are given.
#[derive(Clone)]
pub(crate) struct TaskSet(mpsc::Sender<NamedTask>);

/// Why a task was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the bus takes no task any more: it has ended, or {WAITING_MAX} wait for it to run")]
pub struct NotTaken;

impl TaskSet {
    /// Returns where tasks are given, and what starts them.
    pub(crate) fn new() -> (Self, TaskRunner) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Self(sender), TaskRunner { waiting: receiver, closing: CancellationToken::new() })
    }

    /// Starts a task, now or as soon as the bus runs.
    pub(crate) fn take(&self, name: String, job: Job) -> Result<(), NotTaken> {
        self.0.try_send(NamedTask { name, job }).map_err(|_| NotTaken)
    }
}

/// Starts the tasks and sees them end.
pub(crate) struct TaskRunner {
    waiting: mpsc::Receiver<NamedTask>,
    closing: CancellationToken,
}

impl TaskRunner {
    /// Returns what ends the work: nothing more is taken, and what runs has a time limit from then on.
    pub(crate) fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Works until it is closed. Calls `failed` for every task that failed or panicked. Returns the names of those that did not
    /// end within `limit` of the closing; they are aborted.
    pub(crate) async fn work(mut self, limit: Duration, failed: impl Fn(&str, Failure) + Send) -> Vec<String> {
        let mut tasks = JoinSet::new();
        let mut names: HashMap<Id, String> = HashMap::new();
        let ended = |joined, names: &mut HashMap<Id, String>| {
            let (id, result) = match joined {
                Ok((id, result)) => (id, result),
                Err(error) => {
                    let error: tokio::task::JoinError = error;
                    (error.id(), Err(task_failure(error)))
                }
            };
            if let (Some(name), Err(failure)) = (names.remove(&id), result) {
                failed(&name, failure);
            }
        };
        let start = |NamedTask { name, job }, tasks: &mut JoinSet<_>, names: &mut HashMap<Id, String>| {
            let task = tasks.spawn(job);
            names.insert(task.id(), name);
        };
        loop {
            // Cancel-safe: both take from queues, or wait. However many tasks come, the end is seen first, and ends before beginnings.
            tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                Some(joined) = tasks.join_next_with_id() => ended(joined, &mut names),
                Some(task) = self.waiting.recv() => start(task, &mut tasks, &mut names),
            }
        }
        self.waiting.close();
        // These were taken: they are begun as any other.
        while let Ok(task) = self.waiting.try_recv() {
            start(task, &mut tasks, &mut names);
        }
        let all = async {
            while let Some(joined) = tasks.join_next_with_id().await {
                ended(joined, &mut names);
            }
        };
        let late = tokio::time::timeout(limit, all).await.is_err();
        tasks.abort_all();
        let mut left: Vec<String> = if late { names.into_values().collect() } else { Vec::new() };
        left.sort();
        left
    }
}
