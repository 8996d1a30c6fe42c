//! What anybody may ask of the bus, and the ticket that the asking gives.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::asked::Asked;
use crate::confirm::{ConfirmStep, ConfirmTerms, Confirmation};
use crate::context::{self, Purpose};
use crate::machine::RequestKind;

/// What is asked.
#[derive(Debug, Clone)]
pub enum Request {
    /// Start what is not running.
    Start,
    /// Stop all components; the process stays.
    Stop,
    /// Have every listener prepare new settings, then all of them commit, or all abort.
    Reload,
    /// The same, but what was committed is reverted unless it is confirmed in time.
    ReloadProvisionally(ConfirmTerms),
    /// Confirm the reload that waits for it.
    Confirm,
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
    /// Returns what is asked, without its parameters.
    pub const fn kind(&self) -> RequestKind {
        match self {
            Self::Start => RequestKind::Start,
            Self::Stop => RequestKind::Stop,
            Self::Reload | Self::ReloadProvisionally(_) => RequestKind::Reload,
            Self::Confirm => RequestKind::Confirm,
            Self::Restart(_) => RequestKind::Restart,
            Self::Exit => RequestKind::Exit,
            Self::Update(_) => RequestKind::Update,
            Self::Rollback(_) => RequestKind::Rollback,
        }
    }

    /// Returns the name that logs and the API use.
    pub const fn name(&self) -> &'static str {
        self.kind().name()
    }

    pub(crate) fn into_replacement(self) -> Option<Arc<Replacement>> {
        match self {
            Self::Restart(replacement) | Self::Update(replacement) | Self::Rollback(replacement) => Some(replacement),
            Self::Start | Self::Stop | Self::Reload | Self::ReloadProvisionally(_) | Self::Confirm | Self::Exit => None,
        }
    }

    /// Returns the terms of a reload that has to be confirmed.
    pub(crate) const fn terms(&self) -> Option<ConfirmTerms> {
        match self {
            Self::ReloadProvisionally(terms) => Some(*terms),
            Self::Start
            | Self::Stop
            | Self::Reload
            | Self::Confirm
            | Self::Restart(_)
            | Self::Exit
            | Self::Update(_)
            | Self::Rollback(_) => None,
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
    pub keep_running: BTreeSet<String>,
}

/// Why a component is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody asked for a stop.
    Stop,
    /// The process ends.
    Exit,
    /// Another one's start failed, or the start was cancelled.
    Undo,
    /// The process image is replaced.
    Replace(Arc<Replacement>),
}

impl StopReason {
    /// Returns whether the component `name` is to be left running for the next process image.
    pub fn keeps_running(&self, name: &str) -> bool {
        match self {
            Self::Stop | Self::Exit | Self::Undo => false,
            Self::Replace(replacement) => replacement.keep_running.contains(name),
        }
    }

    /// Returns the name that external listeners get.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Exit => "exit",
            Self::Undo => "undo",
            Self::Replace(_) => "replace",
        }
    }
}

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
    number: u64,
    merged_with: Option<u64>,
    progress: watch::Receiver<Progress>,
    asked: Arc<OnceLock<Vec<Asked>>>,
    confirmation: watch::Receiver<Option<Confirmation>>,
}

impl Ticket {
    /// Returns a ticket on what `progress` will say; `asked` is filled before that.
    pub(crate) const fn new(
        number: u64,
        merged_with: Option<u64>,
        progress: watch::Receiver<Progress>,
        asked: Arc<OnceLock<Vec<Asked>>>,
        confirmation: watch::Receiver<Option<Confirmation>>,
    ) -> Self {
        Self { number, merged_with, progress, asked, confirmation }
    }

    /// Returns a ticket whose outcome is known.
    pub(crate) fn settled(number: u64, progress: Progress) -> Self {
        let (progress, confirmation) = (watch::channel(progress).1, watch::channel(None).1);
        Self { number, merged_with: None, progress, asked: Arc::default(), confirmation }
    }

    /// Returns its number: the requests of one bus are counted from 1.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Returns the number of the request that this one was merged with, if there was one under way that asks for the same.
    pub const fn merged_with(&self) -> Option<u64> {
        self.merged_with
    }

    /// Returns what has become of the request so far.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Returns who was asked by a reload and what each answered, once the outcome is known.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.get().cloned().unwrap_or_default()
    }

    /// Returns what waits to be confirmed, or waited, once the outcome is known: a reload that has to be confirmed is done when it is
    /// in force, and then waits.
    pub fn confirmation(&self) -> Option<Confirmation> {
        self.confirmation.borrow().clone()
    }

    /// Returns a receiver of what [`Ticket::confirmation`] returns: of its level, not of every change.
    pub fn watch_confirmation(&self) -> watch::Receiver<Option<Confirmation>> {
        self.confirmation.clone()
    }

    /// Waits until the reload is confirmed or reverted. `None` if it does not wait to be confirmed, or the bus ended before. Inside a
    /// listener of a transition it does not wait.
    pub async fn confirmation_ended(mut self) -> Option<ConfirmStep> {
        if !context::is_inside(Purpose::Transition) {
            let has_ended = |said: &Option<Confirmation>| said.as_ref().is_none_or(|said| said.step.is_end());
            drop(self.confirmation.wait_for(has_ended).await); // who says it may be gone
        }
        Some(self.confirmation()?.step).filter(ConfirmStep::is_end)
    }

    /// Waits for the outcome. Inside a listener of a transition it fails at once: the transition waits for the listener.
    pub async fn outcome(mut self) -> Progress {
        if context::is_inside(Purpose::Transition) {
            let progress = self.progress();
            return if progress.is_final() { progress } else { Progress::Failed(context::INSIDE.to_owned()) };
        }
        match self.progress.wait_for(Progress::is_final).await {
            Ok(progress) => progress.clone(),
            Err(_) => Progress::Failed("the bus ended before the request was done".to_owned()),
        }
    }

    /// Waits for the outcome, at most for `limit`: what has become of the request by then.
    pub async fn outcome_within(self, limit: Duration) -> Progress {
        let watched = self.progress.clone();
        match tokio::time::timeout(limit, self.outcome()).await {
            Ok(progress) => progress,
            Err(_) => watched.borrow().clone(),
        }
    }
}
