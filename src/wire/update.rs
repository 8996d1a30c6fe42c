//! The update under way.

use refit_base::names;
use refit_updater::{attempt, history};
use semver::Version;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::describe_names;
use super::step::{self, Step};

names! {
    /// What was attempted.
    pub enum AttemptKind {
        /// To go to a release that arrived in a package.
        Update = "update",
        /// To go back to a release that ran here before.
        Rollback = "rollback",
        /// Nothing: the runtime died and was started again. Only the history has it.
        Crash = "crash",
        /// None: a reload that had to be confirmed has ended. Only the history has it.
        Reload = "reload",
    }
}

describe_names!(AttemptKind);

impl From<attempt::Kind> for AttemptKind {
    fn from(kind: attempt::Kind) -> Self {
        match kind {
            attempt::Kind::Update => Self::Update,
            attempt::Kind::Rollback => Self::Rollback,
        }
    }
}

impl From<history::EntryKind> for AttemptKind {
    fn from(kind: history::EntryKind) -> Self {
        match kind {
            history::EntryKind::Update => Self::Update,
            history::EntryKind::Rollback => Self::Rollback,
            history::EntryKind::Crash => Self::Crash,
            history::EntryKind::Reload => Self::Reload,
        }
    }
}

/// What an update is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Update {
    /// The name of its ticket.
    #[schema(example = "18c2f1-3")]
    pub id: String,
    /// To a new release, or back.
    pub kind: AttemptKind,
    /// The step under way.
    #[schema(schema_with = step::schema)]
    pub phase: Step,
    /// The release it starts from.
    #[schema(value_type = String, example = "1.0.0")]
    pub from: Version,
    /// The release it goes to.
    #[schema(value_type = String, example = "1.1.0")]
    pub to: Version,
    /// The share of the step that is done, 0 to 1.
    #[serde(default)]
    #[schema(example = 0.4)]
    pub progress: f64,
    /// What is being done, for people.
    #[serde(default)]
    #[schema(example = "watching release 1.1.0 for 5 s")]
    pub step: String,
    /// When it began, RFC 3339.
    #[serde(default)]
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub started_at: String,
    /// When the probation ends if all stays well, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:05.000Z")]
    pub probation_ends_at: Option<String>,
}
