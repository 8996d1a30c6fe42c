//! What is sent to a peer: answers, calls and notifications, each in its JSON-RPC envelope.

use refit_base::Chain;
use refit_bus::{Call, LogEntry};
use serde::Serialize;
use serde_json::Value;

use super::protocol::PeerError;
use crate::wire::{BusState, Phase, Report, Ticket, TicketAnswer};

/// The version of JSON-RPC.
const JSONRPC: &str = "2.0";

/// The answer to a request.
#[derive(Debug, Serialize)]
pub(super) struct Answer<'a> {
    jsonrpc: &'static str,
    id: &'a Value,
    #[serde(flatten)]
    body: Body<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Body<'a> {
    Result(&'a Said),
    Error(Refusal),
}

/// Why a request is refused.
#[derive(Debug, Serialize)]
struct Refusal {
    code: i32,
    message: String,
    data: RefusalData,
}

#[derive(Debug, Serialize)]
struct RefusalData {
    code: String,
    remedy: String,
    retry: bool,
}

/// What is answered to a request.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Said {
    /// It is done.
    Done,
    /// Whether there was something to do.
    Whether(bool),
    /// The peer has a name now.
    Welcome(Welcome),
    /// Where the site stands, and in which process image.
    Site { state: BusState, generation: u32 },
    /// Where the site stands.
    State { state: BusState },
    /// A ticket.
    Ticket(TicketAnswer),
    /// A request was taken.
    Taken { ticket: TakenTicket },
    /// What became of a publication.
    Report(Report),
}

/// The answer to a hello.
#[derive(Debug, Serialize)]
pub(super) struct Welcome {
    pub(super) protocol: u32,
    pub(super) version: &'static str,
    pub(super) name: String,
    pub(super) component: Option<String>,
    pub(super) state: BusState,
    pub(super) generation: u32,
    pub(super) channels: Vec<String>,
}

/// The ticket of a request that was taken.
#[derive(Debug, Serialize)]
pub(super) struct TakenTicket {
    #[serde(flatten)]
    pub(super) ticket: Ticket,
    /// The number of the request in this process image.
    pub(super) number: Option<u64>,
    /// The number of the request that it was merged with.
    pub(super) merged_with: Option<u64>,
}

/// A notification.
#[derive(Debug, Serialize)]
pub(super) struct Notification {
    jsonrpc: &'static str,
    #[serde(flatten)]
    notice: Notice,
}

/// What is told without having been asked.
#[derive(Debug, Serialize)]
#[serde(tag = "method", content = "params", rename_all = "lowercase")]
pub(super) enum Notice {
    /// The site is in another state.
    State { state: BusState },
    /// A request has an outcome.
    Ticket(Box<TicketAnswer>),
    /// An entry of the log, and how many were dropped before it.
    Log {
        #[serde(flatten)]
        entry: LogEntry,
        dropped: u64,
    },
    /// The call `id` is no longer waited for.
    Cancel { id: u64, reason: String },
    /// The connection ends.
    Bye { reason: &'static str },
}

/// A call of a listener.
#[derive(Debug, Serialize)]
pub(super) struct CallMessage<'a> {
    jsonrpc: &'static str,
    id: u64,
    method: &'static str,
    params: CallParams<'a>,
}

#[derive(Debug, Serialize)]
struct CallParams<'a> {
    channel: &'a str,
    publication: u64,
    state: BusState,
    argument: &'a Value,
    deadline_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<Phase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// Returns the answer to the request `id`.
pub(super) fn answer<'a>(id: &'a Value, result: Result<&'a Said, &PeerError>) -> Answer<'a> {
    let body = result.map_or_else(|error| Body::Error(Refusal::of(error)), Body::Result);
    Answer { jsonrpc: JSONRPC, id, body }
}

/// Returns a notification.
pub(super) fn notification(notice: Notice) -> Notification {
    Notification { jsonrpc: JSONRPC, notice }
}

impl<'a> CallMessage<'a> {
    /// Returns the message of `call`, which the peer answers by this `id`.
    pub(super) fn new(id: u64, call: &'a Call) -> Self {
        let params = CallParams {
            channel: &call.channel,
            publication: call.publication,
            state: call.state.into(),
            argument: &call.argument,
            deadline_ms: u64::try_from(call.limit.as_millis()).unwrap_or(u64::MAX),
            phase: call.phase.map(|phase| phase.name().into()),
            generation: call.phase.map(|_| call.generation),
            reason: call.reason.as_ref().map(refit_bus::StopReason::name),
        };
        Self { jsonrpc: JSONRPC, id, method: "call", params }
    }
}

impl Refusal {
    fn of(error: &PeerError) -> Self {
        let (code, name) = error.code();
        let data = RefusalData { code: name.to_owned(), remedy: error.remedy().to_owned(), retry: error.may_pass() };
        Self { code, message: Chain(error).to_string(), data }
    }
}
