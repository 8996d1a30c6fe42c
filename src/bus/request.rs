//! What anybody may ask of the bus, and the ticket that the asking gives.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What is asked.
#[derive(Debug, Clone)]
pub enum Request {
    /// Start what is not running.
    Start,
    /// Stop all components; the process stays.
    Stop,
    /// Have every component take its new settings, without a stop.
    Reload,
    /// Replace this process image by a new one of the same release.
    Restart(Arc<Replacement>),
    /// Stop all and end.
    Exit,
    /// Replace this process image by one of the next release.
    Update(Arc<Replacement>),
    /// Replace this process image by one of the previous release.
    Rollback(Arc<Replacement>),
}

impl Request {
    /// Returns the name that logs and the API use.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reload => "reload",
            Self::Restart(_) => "restart",
            Self::Exit => "exit",
            Self::Update(_) => "update",
            Self::Rollback(_) => "rollback",
        }
    }
}

/// How this process image is to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The release it goes to, for log and status.
    pub label: String,
    /// The program to execute.
    pub program: PathBuf,
    /// The components that are not stopped: the next image takes them over as they run.
    pub leave: BTreeSet<String>,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin(pub String);

/// What has become of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason", rename_all = "lowercase")]
pub enum Progress {
    /// It is accepted and not done yet.
    Accepted,
    /// It is done.
    Done,
    /// What it asks for was so already.
    Already,
    /// It was accepted and failed.
    Failed(String),
    /// It was not accepted.
    Refused(String),
}

impl Progress {
    /// Returns whether nothing more will happen.
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Accepted => false,
            Self::Done | Self::Already | Self::Failed(_) | Self::Refused(_) => true,
        }
    }
}

/// The promise of an outcome.
#[derive(Debug, Clone)]
pub struct Ticket {
    progress: watch::Receiver<Progress>,
}

impl Ticket {
    /// Returns a ticket and the side that resolves it.
    pub(super) fn new() -> (watch::Sender<Progress>, Self) {
        let (sender, progress) = watch::channel(Progress::Accepted);
        (sender, Self { progress })
    }

    /// Returns what has become of the request so far.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits for the outcome.
    pub async fn outcome(mut self) -> Progress {
        match self.progress.wait_for(Progress::is_final).await {
            Ok(progress) => progress.clone(),
            Err(_) => Progress::Failed("the bus ended before the request was done".to_owned()),
        }
    }
}
