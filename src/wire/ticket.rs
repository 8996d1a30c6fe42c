//! A ticket: what was asked, and what became of it.

use refit_base::names;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::confirm::Confirmation;
use super::names::describe_names;
use super::request::RequestName;

names! {
    /// What has become of a request.
    pub enum TicketState {
        /// It is under way.
        Accepted = "accepted",
        /// It is done.
        Done = "done",
        /// What it asks for was so already.
        Already = "already",
        /// It was tried, and failed.
        Failed = "failed",
        /// It was not taken.
        Refused = "refused",
    }
}

names! {
    /// How somebody is asked to reload.
    pub enum How {
        /// On the bus.
        Bus = "bus",
        /// By a signal.
        Signal = "signal",
        /// It is the runtime itself.
        Runtime = "runtime",
        /// There is no way.
        None = "none",
    }
}

names! {
    /// A phase of a reload.
    pub enum Phase {
        /// Get the new settings ready beside those in force, or refuse them.
        Prepare = "prepare",
        /// Put the prepared settings into force.
        Commit = "commit",
        /// Drop the prepared settings.
        Abort = "abort",
        /// Put the settings before back into force.
        Revert = "revert",
    }
}

names! {
    /// How somebody answered who was asked to reload.
    pub enum Reply {
        /// It did what it was asked.
        Ok = "ok",
        /// It does not take the new settings.
        Refused = "refused",
        /// It had agreed, and could not do it.
        Failed = "failed",
        /// It did not answer in time.
        Timeout = "timeout",
        /// It ended before it answered.
        Gone = "gone",
        /// It was not asked.
        Skipped = "skipped",
    }
}

describe_names!(TicketState, How, Phase, Reply);

impl From<refit_bus::Reply> for Reply {
    fn from(reply: refit_bus::Reply) -> Self {
        match reply {
            refit_bus::Reply::Ok => Self::Ok,
            refit_bus::Reply::Refused => Self::Refused,
            refit_bus::Reply::Failed => Self::Failed,
            refit_bus::Reply::Timeout => Self::Timeout,
            refit_bus::Reply::Gone => Self::Gone,
            refit_bus::Reply::Skipped => Self::Skipped,
        }
    }
}

/// The answer that holds a ticket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TicketAnswer {
    /// The ticket.
    pub ticket: Ticket,
}

/// What was asked, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ticket {
    /// Its name.
    #[schema(example = "18c2f1-3")]
    pub id: String,
    /// What was asked.
    pub request: RequestName,
    /// Who asked.
    #[schema(example = "root (local)")]
    pub origin: String,
    /// What has become of it.
    pub state: TicketState,
    /// Why it failed or was refused.
    #[schema(example = "the site is ending")]
    pub reason: Option<String>,
    /// The same for programs, such as `signature_invalid`, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "signature_invalid")]
    pub reason_code: Option<String>,
    /// The exit status of a command that waited for it, once it has an outcome.
    #[serde(default)]
    #[schema(example = 0)]
    pub exit: Option<u8>,
    /// Of a reload with an outcome: who was asked, and what each answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<Asked>,
    /// Of a reload that has to be confirmed: how far that is. The state above stays what became of the reload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmation: Option<Box<Confirmation>>,
}

impl Ticket {
    /// Returns the ticket of a request that is under way.
    pub fn open(id: String, request: RequestName, origin: String) -> Self {
        let state = TicketState::Accepted;
        let (reason, reason_code, exit, asked, confirmation) = (None, None, None, Vec::new(), None);
        Self { id, request, origin, state, reason, reason_code, exit, asked, confirmation }
    }

    /// Returns whether nothing more will happen.
    pub fn is_final(&self) -> bool {
        self.state != TicketState::Accepted
    }

    /// Returns whether another release was asked for: then its end is in the history, too.
    pub fn is_update(&self) -> bool {
        matches!(self.request, RequestName::Update | RequestName::Rollback)
    }
}

/// Who was asked to reload, and what the answer was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Asked {
    /// The listener, or the component that is told by a signal.
    #[schema(example = "till")]
    pub name: String,
    /// The component; `null` for the operator's listeners and the runtime.
    #[schema(example = "till")]
    pub component: Option<String>,
    /// Its priority; lower is asked earlier.
    #[serde(default)]
    #[schema(example = 50)]
    pub priority: Option<i32>,
    /// How it is asked.
    pub how: How,
    /// The last phase that it was asked for.
    pub phase: Phase,
    /// How it answered.
    pub answer: Reply,
    /// What it answered beyond that: any JSON. Of one that is told by a signal, its name.
    #[serde(default)]
    #[schema(example = "HUP")]
    pub value: Value,
    /// Why it did not do it, or was not asked.
    #[schema(example = "prices.json: expected value at line 3")]
    pub reason: Option<String>,
}
