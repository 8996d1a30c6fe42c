//! What everybody may see of a component.

use std::collections::BTreeMap;

use refit_base::Cause;
use refit_bus::Failure;

use super::health;
pub use super::reports::Announced;
use crate::carry::CarriedLimit;
use crate::config::{Handover, Kind};
use crate::wire::{self, Peer, Run};

/// What a component is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is coming up.
    Starting,
    /// It serves.
    Running,
    /// It is going down.
    Stopping,
    /// It is down.
    Stopped,
    /// It ended by itself and is started again after a pause.
    Backoff,
    /// It ended by itself and is not started again.
    Failed,
    /// It runs once at each start of the site, and has ended well.
    Done,
    /// It runs every so often, and the next run is not due yet.
    Waiting,
}

impl State {
    /// Returns the name that API and page show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
            Self::Done => "done",
            Self::Waiting => "waiting",
        }
    }

    /// Returns whether it is as it is to be while the site runs.
    pub const fn is_up(self) -> bool {
        match self {
            Self::Running | Self::Done | Self::Waiting => true,
            Self::Starting | Self::Stopping | Self::Stopped | Self::Backoff | Self::Failed => false,
        }
    }
}

/// What everybody may see of a component.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Its name.
    pub name: String,
    /// For how long its process is to live.
    pub kind: Kind,
    /// What it is doing.
    pub state: State,
    /// Its process.
    pub pid: Option<i32>,
    /// Counts its processes.
    pub generation: u32,
    /// Its health.
    pub health: health::State,
    /// What an update does to it.
    pub handover: Handover,
    /// The release that its process was started from.
    pub release: Option<semver::Version>,
    /// When its process was started.
    pub started_at: Option<String>,
    /// How often it was started again after it had ended by itself.
    pub restarts: u32,
    /// What it says of itself.
    pub status: Option<String>,
    /// What it is about to do, in its own words.
    pub announced: Option<Announced>,
    /// The limits of its process, and what keeps each.
    pub limits: BTreeMap<String, CarriedLimit>,
    /// Why it is not running.
    pub reason: Option<String>,
    /// The last output that belongs to the reason.
    pub output: Vec<String>,
    /// Whose trouble the reason is.
    pub cause: Cause,
    /// Whether it was started and not stopped since. One that is down all the same has done its work, or failed.
    pub wanted: bool,
    /// How often it ended without having been asked to, in this process image.
    pub unexpected_exits: u32,
    /// Its last run, if it is to end.
    pub last_run: Option<Run>,
    /// When its next run is due.
    pub next_run_at: Option<String>,
}

impl View {
    /// Returns what is shown of it and its `peers`.
    pub fn shown(&self, peers: Vec<Peer>) -> wire::Component {
        let why_unhealthy = match &self.health {
            health::State::Unhealthy(reason) | health::State::Doubtful(reason) => Some(reason.clone()),
            health::State::None | health::State::Unknown | health::State::Healthy => None,
        };
        wire::Component {
            name: self.name.clone(),
            kind: self.kind.name().into(),
            state: self.state.name().into(),
            pid: self.pid,
            generation: self.generation,
            health: self.health.name().into(),
            handover: self.handover.name().into(),
            release: self.release.clone(),
            started_at: self.started_at.clone(),
            restarts: self.restarts,
            status: self.status.clone(),
            announced: self.announced.map(|step| step.name().into()),
            limits: self.limits.iter().map(|(name, limit)| (name.clone(), (*limit).into())).collect(),
            last_run: self.last_run.clone(),
            next_run_at: self.next_run_at.clone(),
            peers,
            reason: self.reason.clone().or(why_unhealthy),
        }
    }

    /// Shows why it failed.
    pub(super) fn note_failure(&mut self, failure: &Failure) {
        self.reason = Some(failure.reason.clone());
        self.output.clone_from(&failure.output);
        self.cause = failure.cause;
    }
}
