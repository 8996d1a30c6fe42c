//! The bus: its state, channels, publications and failures.

use refit_base::names;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::confirm::Unconfirmed;
use super::names::describe_names;
use super::peer::Peer;

names! {
    /// Where the site stands.
    pub enum BusState {
        /// Nothing was done yet.
        Initial = "Initial",
        /// What has to be done once per process image is under way.
        Entering = "Entering",
        /// Prepared; nothing serves.
        Idle = "Idle",
        /// The components are coming up.
        Starting = "Starting",
        /// Serving.
        Running = "Running",
        /// The components are going down.
        Stopping = "Stopping",
        /// The last clean-up.
        Exiting = "Exiting",
        /// All is done.
        Exited = "Exited",
    }
}

names! {
    /// What became of one listener's call.
    pub enum AnswerOutcome {
        /// It answered.
        Ok = "ok",
        /// It failed, or was lost.
        Failed = "failed",
        /// It did not answer within its limit.
        Timeout = "timeout",
        /// It was not called.
        Skipped = "skipped",
    }
}

describe_names!(BusState, AnswerOutcome);

impl From<refit_bus::State> for BusState {
    fn from(state: refit_bus::State) -> Self {
        state.name().into()
    }
}

impl BusState {
    /// Returns whether the site rests here: nothing is under way that ends by itself.
    pub fn rests(&self) -> bool {
        matches!(self, Self::Running | Self::Idle)
    }
}

/// The bus as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Bus {
    /// Where the site stands.
    pub state: BusState,
    /// The reload that waits to be confirmed, if one does.
    #[serde(default)]
    pub unconfirmed: Option<Unconfirmed>,
    /// Every channel that is built in, declared or listened to.
    #[serde(default)]
    pub channels: Vec<Channel>,
    /// The other processes that are connected to the bus.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Everything that has failed since this process image began, the oldest first.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// What became of the entries of the log so far.
    #[serde(default)]
    pub log: LogCounts,
}

/// A channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Channel {
    /// Its name.
    #[schema(example = "prices")]
    pub name: String,
    /// Whether the bus itself has it: then it cannot be published on from outside.
    #[serde(default)]
    #[schema(example = false)]
    pub built_in: bool,
    /// Who listens, in the order in which they are called.
    #[serde(default)]
    #[schema(example = json!(["till"]))]
    pub listeners: Vec<String>,
}

/// What became of the entries of the log so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogCounts {
    /// How many a listener has taken.
    #[schema(example = 214)]
    pub delivered: u64,
    /// How many were dropped because a listener's queue was full, or because there was no time for them at the end.
    #[schema(example = 0)]
    pub dropped: u64,
    /// How many went to a listener that failed or took too long.
    #[schema(example = 0)]
    pub failed: u64,
}

impl From<refit_bus::LogCounts> for LogCounts {
    fn from(counts: refit_bus::LogCounts) -> Self {
        let refit_bus::LogCounts { delivered, dropped, failed } = counts;
        Self { delivered, dropped, failed }
    }
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// What failed: a component, or a listener of the bus.
    #[schema(example = "web")]
    pub component: String,
    /// Its priority, if it is a listener that failed when it was called; lower is called earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 50)]
    pub priority: Option<i32>,
    /// What it was to do, such as `start`.
    #[schema(example = "start")]
    pub phase: String,
    /// Why it failed.
    #[schema(example = "ended with status 3 before it was ready")]
    pub cause: String,
    /// When, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub at: String,
    /// The last lines that it printed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["cannot open prices.json"]))]
    pub output: Vec<String>,
}

impl From<&refit_bus::Fault> for Fault {
    fn from(fault: &refit_bus::Fault) -> Self {
        Self {
            component: fault.component.clone(),
            priority: fault.priority,
            phase: fault.phase.clone(),
            cause: fault.cause.clone(),
            at: fault.at.clone(),
            output: fault.output.clone(),
        }
    }
}

/// What somebody publishes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// The channel: one of the appliance's own.
    #[schema(example = "prices")]
    pub channel: String,
    /// What each listener is given: any JSON.
    #[serde(default)]
    #[schema(example = json!({ "apple": 2 }))]
    pub argument: Value,
}

/// The answer to a publication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Published {
    /// What became of it.
    pub report: Report,
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// The channel.
    #[schema(example = "prices")]
    pub channel: String,
    /// Whether the channel was ever declared or listened to.
    #[schema(example = true)]
    pub known: bool,
    /// Why no listener was called, if that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "too many publications lead to one another")]
    pub refused: Option<String>,
    /// What each listener answered, in the order of the calls.
    #[serde(default)]
    pub answers: Vec<Answer>,
}

/// What one listener made of a publication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Answer {
    /// The listener.
    #[schema(example = "till")]
    pub listener: String,
    /// Its priority; lower is called earlier.
    #[serde(default)]
    #[schema(example = 50)]
    pub priority: i32,
    /// What became of the call.
    pub outcome: AnswerOutcome,
    /// What it answered, if it did: any JSON, `null` included.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(null))]
    pub value: Option<Value>,
    /// Why it did not answer, if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "no answer within 5 s")]
    pub reason: Option<String>,
    /// The last lines printed by what failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["cannot open prices.json"]))]
    pub output: Vec<String>,
    /// Whether the machine was to blame for the failure, and not the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<super::Cause>,
    /// Whether the listener is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = false)]
    pub lost: bool,
    /// Whether it failed because time that it shares with others was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = false)]
    pub late: bool,
    /// How long the call took, in microseconds.
    #[serde(default)]
    #[schema(example = 840)]
    pub elapsed_us: u64,
}

/// A value that is there, also if it is null.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl From<&refit_bus::Report> for Report {
    fn from(report: &refit_bus::Report) -> Self {
        Self {
            channel: report.channel.to_string(),
            known: report.known,
            refused: report.refused.clone(),
            answers: report.answers.iter().map(Answer::from).collect(),
        }
    }
}

impl From<&refit_bus::Answer> for Answer {
    fn from(answer: &refit_bus::Answer) -> Self {
        let made = Self {
            listener: answer.listener.to_string(),
            priority: answer.priority,
            outcome: AnswerOutcome::Ok,
            value: None,
            reason: None,
            output: Vec::new(),
            cause: None,
            lost: false,
            late: false,
            elapsed_us: answer.elapsed_us,
        };
        match &answer.outcome {
            refit_bus::Outcome::Ok { value } => Self { value: Some(value.clone()), ..made },
            refit_bus::Outcome::Failed { failure } => Self {
                outcome: AnswerOutcome::Failed,
                reason: Some(failure.reason.clone()),
                output: failure.output.clone(),
                cause: (failure.cause != refit_base::Cause::default()).then(|| failure.cause.into()),
                lost: failure.lost,
                late: failure.late,
                ..made
            },
            refit_bus::Outcome::Timeout { reason } => {
                Self { outcome: AnswerOutcome::Timeout, reason: Some(reason.clone()), ..made }
            }
            refit_bus::Outcome::Skipped { reason } => {
                Self { outcome: AnswerOutcome::Skipped, reason: Some(reason.clone()), ..made }
            }
        }
    }
}
