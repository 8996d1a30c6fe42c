//! What listeners make of a publication: the outcome of each call, and the [`Report`] of them all.
//!
//! A listener whose time is over is a failure: its call is cancelled, and after a short grace abandoned. A panic is a failure,
//! too.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::failure::{Failure, combined};
use crate::registry::Entry;

/// How many publications may lead to one another, each inside a listener of the one before: a circle ends here.
pub const DEPTH_MAX: u32 = 8;

/// What one listener made of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// It answered.
    Ok {
        /// Its answer.
        value: Value,
    },
    /// It failed, or panicked, or was lost.
    Failed {
        /// Why.
        #[serde(flatten)]
        failure: Box<Failure>,
    },
    /// Its time was over.
    Timeout {
        /// How long it was waited for, for people.
        reason: String,
    },
    /// It was not called.
    Skipped {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// Returns why it is not what was wanted; `None` if it is, or was never tried.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Ok { .. } | Self::Skipped { .. } => None,
            Self::Failed { failure } => Some((**failure).clone()),
            Self::Timeout { reason } => Some(Failure::new(reason.clone())),
        }
    }

    /// Returns whether it answered.
    pub const fn is_ok(&self) -> bool {
        match self {
            Self::Ok { .. } => true,
            Self::Failed { .. } | Self::Timeout { .. } | Self::Skipped { .. } => false,
        }
    }
}

/// What one listener did in a publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The listener.
    #[serde(serialize_with = "as_text")]
    pub listener: Arc<str>,
    /// Its priority.
    pub priority: i32,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took, in microseconds.
    pub elapsed_us: u64,
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The channel.
    #[serde(serialize_with = "as_text")]
    pub channel: Arc<str>,
    /// Whether anybody ever declared or subscribed to it: a name that nobody knows is likely a mistake.
    pub known: bool,
    /// Why nobody was called, if that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Every listener, in the order of the calls.
    pub answers: Vec<Answer>,
}

impl Report {
    /// Returns the report of a publication that called nobody.
    pub(crate) fn refused(channel: &str, why: &str) -> Self {
        Self { channel: channel.into(), known: true, refused: Some(why.to_owned()), answers: Vec::new() }
    }

    /// Returns what the listeners answered, in the order of the calls.
    pub fn values(&self) -> Vec<&Value> {
        self.answers
            .iter()
            .filter_map(|answer| match &answer.outcome {
                Outcome::Ok { value } => Some(value),
                Outcome::Failed { .. } | Outcome::Timeout { .. } | Outcome::Skipped { .. } => None,
            })
            .collect()
    }

    /// Returns who failed and why, in the order of the calls.
    pub fn failures(&self) -> Vec<(&str, Failure)> {
        self.answers.iter().filter_map(|answer| Some((&*answer.listener, answer.outcome.failure()?))).collect()
    }

    /// Returns all failures, for people: one line, or if there are several one line each with the priority; `None` if there is none.
    pub fn summary(&self) -> Option<String> {
        let failures: Vec<_> = self
            .answers
            .iter()
            .filter_map(|answer| Some((&*answer.listener, answer.priority, answer.outcome.failure()?.reason)))
            .collect();
        combined(failures.iter().map(|(name, priority, reason)| (*name, Some(*priority), reason.as_str())))
    }
}

/// Returns the line of a report.
pub(crate) fn answer(entry: &Entry, outcome: Outcome, elapsed: Duration) -> Answer {
    let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    Answer { listener: Arc::clone(&entry.name), priority: entry.priority, outcome, elapsed_us }
}
