//! What was tried on the appliance.

use std::collections::BTreeMap;

use refit_base::names;
use refit_updater::{attempt, history};
use semver::Version;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::describe_names;
use super::step::{self, Step};
use super::update::AttemptKind;

names! {
    /// How an attempt ended.
    pub enum Outcome {
        /// The release it went to proved healthy and stays.
        Done = "done",
        /// The release it went to was started, and the previous one runs again.
        RolledBack = "rolled-back",
        /// It ended before anything was stopped.
        Failed = "failed",
    }
}

names! {
    /// Whose trouble a failure is.
    pub enum Cause {
        /// The release's: it would happen again.
        Release = "release",
        /// The machine's, or that of somebody who works on it.
        Machine = "machine",
    }
}

describe_names!(Outcome, Cause);

impl From<attempt::Outcome> for Outcome {
    fn from(outcome: attempt::Outcome) -> Self {
        match outcome {
            attempt::Outcome::Done => Self::Done,
            attempt::Outcome::RolledBack => Self::RolledBack,
            attempt::Outcome::Failed => Self::Failed,
        }
    }
}

impl From<refit_base::Cause> for Cause {
    fn from(cause: refit_base::Cause) -> Self {
        match cause {
            refit_base::Cause::Release => Self::Release,
            refit_base::Cause::Machine => Self::Machine,
        }
    }
}

/// What was tried.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct History {
    /// The attempts that have ended, the newest first.
    pub history: Vec<Attempt>,
}

impl History {
    /// Returns the history of `entries`, which are the oldest first.
    pub fn newest_first(entries: Vec<history::Entry>) -> Self {
        Self { history: entries.into_iter().rev().map(Attempt::from).collect() }
    }
}

/// One attempt that has ended, or a crash of the runtime.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// The name of its ticket.
    #[schema(example = "18c2f1-3")]
    pub id: String,
    /// When it ended, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:09.000Z")]
    pub at: String,
    /// Who asked.
    #[schema(example = "root (local)")]
    pub who: String,
    /// What it was.
    pub kind: AttemptKind,
    /// The release before.
    #[schema(value_type = String, example = "1.0.0")]
    pub from: Version,
    /// The release it went to.
    #[schema(value_type = String, example = "1.1.0")]
    pub to: Version,
    /// How it ended.
    pub outcome: Outcome,
    /// The step it ended in.
    #[schema(schema_with = step::schema)]
    pub step: Step,
    /// Why it did not succeed.
    #[schema(example = "component web did not start: ended with status 3")]
    pub reason: Option<String>,
    /// The same for programs, such as `signature_invalid`, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "start_failed")]
    pub reason_code: Option<String>,
    /// The component at fault.
    #[schema(example = "web")]
    pub component: Option<String>,
    /// The last lines printed by what failed.
    #[serde(default)]
    #[schema(example = json!(["cannot open prices.json"]))]
    pub output: Vec<String>,
    /// From the request to the end, in milliseconds.
    #[serde(default)]
    #[schema(example = 8400)]
    pub duration_ms: u64,
    /// How long each step took, in milliseconds, by the step's name.
    #[serde(default)]
    #[schema(example = json!({ "staging": 120, "probation": 5000 }))]
    pub durations: BTreeMap<String, u64>,
    /// Whose trouble it was, if it did not succeed and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The exit status of a command that waited for it, where that does not follow from the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 74)]
    pub exit: Option<u8>,
}

impl From<history::Entry> for Attempt {
    fn from(entry: history::Entry) -> Self {
        Self {
            id: entry.id,
            at: entry.at,
            who: entry.who,
            kind: entry.kind.into(),
            from: entry.from,
            to: entry.to,
            outcome: entry.outcome.into(),
            step: entry.step,
            reason: entry.reason,
            reason_code: entry.reason_code,
            component: entry.component,
            output: entry.output,
            duration_ms: entry.duration_ms,
            durations: entry.durations,
            cause: entry.cause.map(Cause::from),
            exit: entry.exit,
        }
    }
}
