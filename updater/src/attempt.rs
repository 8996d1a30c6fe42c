//! One attempt to go to another release: what it is while it is under way, and how it ended.

use std::collections::BTreeMap;

use jiff::Timestamp;
use refit_base::{Cause, Exit, clock, names};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Whether an attempt goes to a new release or back to a kept one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// To a release that arrived in a package.
    Update,
    /// To a release that ran here before, because somebody asked.
    Rollback,
}

impl Kind {
    /// Returns the name that tickets and messages use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Rollback => "rollback",
        }
    }
}

names! {
    /// A step of an update.
    pub enum Step {
        /// The package has arrived. Only the page shows it.
        Received = "received",
        /// Its signatures and digests are right. Only the page shows it.
        Verified = "verified",
        /// The release gets its place on the disk, and its configuration.
        Staging = "staging",
        /// The release is complete on the disk.
        Staged = "staged",
        /// Everything is examined that can be known before anything stops.
        Preflight = "preflight",
        /// It is journaled that the release is on trial.
        Trial = "trial",
        /// What the release replaces is stopping.
        Stopping = "stopping",
        /// The runtime replaces itself.
        Exec = "exec",
        /// The components of the release are starting.
        Starting = "starting",
        /// The release has to prove healthy.
        Probation = "probation",
        /// The release is healthy, and the journal cannot be written yet.
        Committing = "committing",
        /// The release is good.
        Committed = "committed",
        /// The release is good and runs: of a runtime that died. Only the history has it.
        Running = "running",
        /// New settings were confirmed. Only the history has it.
        Confirmed = "confirmed",
        /// New settings were reverted, for nobody has confirmed them in time. Only the history has it.
        Reverted = "reverted",
        /// The runtime died while new settings waited to be confirmed. Only the history has it.
        Lost = "lost",
        /// The release has failed, and the previous one is starting.
        RollingBack = "rolling-back",
        /// The previous release runs again.
        RolledBack = "rolled-back",
        /// The update has failed before anything was stopped.
        Failed = "failed",
    }
}

impl Step {
    /// Returns whether it is the end of an attempt.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Committed | Self::RolledBack | Self::Failed)
    }
}

/// An update or rollback under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// The ticket's name.
    pub id: String,
    /// To a new release, or back.
    pub kind: Kind,
    /// Who asked.
    pub who: String,
    /// The release it starts from.
    pub from: Version,
    /// The release it goes to.
    pub to: Version,
    /// The digest of that release's manifest.
    pub digest: Digest,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// When it began, in milliseconds since the epoch, for durations across a start.
    pub started_ms: i64,
    /// How long each finished step took, in milliseconds.
    #[serde(default)]
    pub durations: BTreeMap<String, u64>,
    /// When it began by a clock that nobody sets: the journal does not have it.
    #[serde(skip)]
    pub begun: Begun,
}

/// A moment of the monotonic clock, in nanoseconds, where it is known: it means nothing after the next boot. It belongs to no document, so any
/// two are equal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Begun(pub Option<u64>);

impl PartialEq for Begun {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Begun {}

impl Attempt {
    /// Returns how long it has taken at its end, in milliseconds: by the monotonic clock, if this boot saw it begin, and else by the wall
    /// clock, which may have been set meanwhile.
    #[must_use]
    pub fn took_ms(&self, ending: &Ending) -> u64 {
        let by_steps = self.durations.values().sum();
        match self.begun.0 {
            Some(begun_ns) => ending.at_ns.saturating_sub(begun_ns) / 1_000_000,
            None => u64::try_from(ending.at.as_millisecond() - self.started_ms).unwrap_or(0).max(by_steps),
        }
    }

    /// Returns an attempt that begins `now`, with the ticket `id`.
    pub fn begin(id: &str, kind: Kind, who: &str, from: Version, to: Version, digest: Digest, now: Timestamp) -> Self {
        Self {
            id: id.to_owned(),
            kind,
            who: who.to_owned(),
            from,
            to,
            digest,
            started_at: clock::rfc3339(now),
            started_ms: now.as_millisecond(),
            durations: BTreeMap::new(),
            begun: Begun::default(),
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The release it went to proved healthy and stays.
    Done,
    /// The release it went to was started and the previous one runs again.
    RolledBack,
    /// It ended before anything was stopped.
    Failed,
}

/// How an attempt ended, as whoever saw it end reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// When.
    pub at: Timestamp,
    /// The same by the monotonic clock, in nanoseconds.
    pub at_ns: u64,
    /// The step it ended in.
    pub step: Step,
    /// Why; empty for one that succeeded.
    pub reason: String,
    /// The same for programs; empty for one that succeeded, or where it is not known.
    pub reason_code: String,
    /// The component that was at fault.
    pub component: Option<String>,
    /// The last output of what failed.
    pub output: Vec<String>,
    /// Whose trouble it was, if it did not succeed.
    pub cause: Cause,
    /// The exit status of a command that waits for it, where that does not follow from the outcome.
    pub exit: Option<Exit>,
}

impl Ending {
    /// Returns the ending of an attempt that ends now, in this step, by what its release did: no component is to blame, nothing was
    /// printed.
    pub fn now(step: Step, reason: String) -> Self {
        Self {
            at: clock::now(),
            at_ns: clock::monotonic_ns(),
            step,
            reason,
            reason_code: String::new(),
            component: None,
            output: Vec::new(),
            cause: Cause::Release,
            exit: None,
        }
    }

    /// Returns it with the reason for programs.
    #[must_use]
    pub fn with_code(mut self, reason_code: &str) -> Self {
        reason_code.clone_into(&mut self.reason_code);
        self
    }

    /// Returns it as the trouble of `cause`.
    #[must_use]
    pub fn with_cause(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }
}
