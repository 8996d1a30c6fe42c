//! One attempt to go to another release: what it is while it is under way, and how it ended.

use std::collections::BTreeMap;

use jiff::Timestamp;
use refit_base::{Cause, Exit, clock};
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
}

impl Attempt {
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
    /// The step it ended in.
    pub step: String,
    /// Why; empty for one that succeeded.
    pub reason: String,
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
    pub fn now(step: &str, reason: String) -> Self {
        Self {
            at: clock::now(),
            step: step.to_owned(),
            reason,
            component: None,
            output: Vec::new(),
            cause: Cause::Release,
            exit: None,
        }
    }

    /// Returns it as the trouble of `cause`.
    #[must_use]
    pub fn with_cause(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }
}
