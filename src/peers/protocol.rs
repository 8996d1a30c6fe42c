//! The messages of the protocol, version 1, and every reason to refuse one. `docs/formats/bus-protocol.md` is its text.

use refit_base::Reported;
use refit_bus::{Level, State};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::limits;
use crate::access::principal::IdentityError;
use crate::requests::RequestError;
use crate::wire::RequestBody;

/// The version of the protocol.
pub const PROTOCOL: u32 = 1;

/// A message as it comes: a request, a notification, or the answer to a call.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) id: Option<Value>,
    pub(super) method: Option<String>,
    #[serde(default)]
    pub(super) params: Value,
    #[serde(default, deserialize_with = "there")]
    pub(super) result: Option<Value>,
    pub(super) error: Option<Broken>,
}

/// A result of null is a result.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// The error with which a peer answers a call.
#[derive(Debug, Deserialize)]
pub(super) struct Broken {
    pub(super) message: String,
    #[serde(default)]
    pub(super) output: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) name: Option<String>,
    pub(super) token: Option<String>,
    #[serde(default)]
    pub(super) channels: Vec<Subscribe>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Subscribe {
    pub(super) channel: String,
    pub(super) priority: Option<i32>,
    pub(super) limit_ms: Option<u64>,
    /// On `reload`: whether it can go back from what it has committed.
    #[serde(default)]
    pub(super) reverts: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Unsubscribe {
    pub(super) channel: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Publish {
    pub(super) channel: String,
    #[serde(default)]
    pub(super) argument: Value,
}

#[derive(Debug, Deserialize)]
pub(super) struct Wait {
    #[serde(default)]
    pub(super) states: Vec<State>,
    pub(super) ticket: Option<String>,
    pub(super) limit_ms: Option<u64>,
    /// Whether another thread waits than the one that has to answer the open call.
    #[serde(default)]
    pub(super) outside: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct TicketOf {
    pub(super) id: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct LogLine {
    #[serde(default = "info")]
    pub(super) level: Level,
    pub(super) text: String,
}

fn info() -> Level {
    Level::Info
}

/// What a peer asks.
#[derive(Debug)]
pub(super) enum Verb {
    Hello(Hello),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    Request(RequestBody),
    Publish(Publish),
    Wait(Wait),
    Ticket(TicketOf),
    State,
    Log(LogLine),
    Bye,
}

impl Verb {
    /// Returns what `method` with `params` asks.
    pub(super) fn parse(method: &str, params: Value) -> Result<Self, PeerError> {
        fn of<T: serde::de::DeserializeOwned>(method: &str, params: Value) -> Result<T, PeerError> {
            serde_json::from_value(params).map_err(|source| PeerError::Params { method: method.to_owned(), source })
        }
        match method {
            "hello" => of(method, params).map(Self::Hello),
            "subscribe" => of(method, params).map(Self::Subscribe),
            "unsubscribe" => of(method, params).map(Self::Unsubscribe),
            "request" => of(method, params).map(Self::Request),
            "publish" => of(method, params).map(Self::Publish),
            "wait" => of(method, params).map(Self::Wait),
            "ticket" => of(method, params).map(Self::Ticket),
            "state" => Ok(Self::State),
            "log" => of(method, params).map(Self::Log),
            "bye" => Ok(Self::Bye),
            _ => Err(PeerError::UnknownMethod { method: shortened(method) }),
        }
    }
}

/// Returns the beginning of what a stranger wrote, for a message about it.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(limits::NAME_BYTES_MAX).collect()
}

/// Why something that a peer asks is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("the line is not JSON")]
    NotJson {
        #[source]
        source: serde_json::Error,
    },
    #[error("the message has neither a method nor the answer to a call")]
    NotAMessage,
    #[error("there is no method {method:?}")]
    UnknownMethod { method: String },
    #[error("the parameters of {method} are not understood")]
    Params {
        method: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{method:?} before hello")]
    HelloFirst { method: String },
    #[error("hello was said before")]
    HelloTwice,
    #[error("the protocol has version {PROTOCOL}, not {version}")]
    Version { version: u32 },
    #[error("the process {pid} belongs to the component {component} and has shown no token")]
    TokenMissing { component: String, pid: i32 },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{name:?} is no name")]
    Name { name: String },
    #[error("the name {name} is another's")]
    NotYours { name: String },
    #[error("the name {name} is taken")]
    NameTaken { name: String },
    #[error("there is no channel {channel:?}")]
    UnknownChannel { channel: String },
    #[error("nobody listens on {channel:?} from outside: it is over before a peer can connect")]
    TooLate { channel: String },
    #[error("{reason}")]
    NotPermitted { reason: String },
    #[error("nobody publishes on {channel:?} from outside")]
    BuiltIn { channel: String },
    #[error("the priority {priority} is beyond {}", limits::PRIORITY_MAX)]
    Priority { priority: i32 },
    #[error("more than {max} {what}")]
    TooMany { what: &'static str, max: usize },
    #[error("more than {per_second} {what} a second")]
    TooFast { what: &'static str, per_second: u32 },
    #[error("a wait needs states or a ticket")]
    WaitForNothing,
    #[error("a listener cannot wait for the transition that waits for it")]
    Inside,
    #[error("the time is over, the site is {}", state.name())]
    Timeout { state: State },
    #[error("the site has ended")]
    Ended,
    #[error("there is no ticket {id:?}, or it is too old")]
    UnknownTicket { id: String },
    #[error("not published: {reason}")]
    NotPublished { reason: String },
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the answer is longer than {} bytes", limits::LINE_BYTES_MAX)]
    LongAnswer,
}

impl PeerError {
    /// Returns the number of JSON-RPC, and the name for programs.
    pub(crate) fn code(&self) -> (i32, &str) {
        match self {
            Self::NotJson { .. } => (-32700, "not_json"),
            Self::NotAMessage => (-32600, "not_a_message"),
            Self::UnknownMethod { .. } => (-32601, "unknown_method"),
            Self::Params { .. } | Self::WaitForNothing | Self::Priority { .. } => (-32602, "bad_parameters"),
            Self::HelloFirst { .. } | Self::HelloTwice => (-32000, "hello"),
            Self::Version { .. } => (-32001, "version"),
            Self::Identity(error) => (-32002, error.code()),
            Self::TokenMissing { .. } => (-32002, "not_known"),
            Self::Name { .. } | Self::NotYours { .. } | Self::NameTaken { .. } => (-32003, "name"),
            Self::UnknownChannel { .. } | Self::TooLate { .. } => (-32004, "unknown_channel"),
            Self::BuiltIn { .. } => (-32005, "built_in_channel"),
            Self::TooMany { .. } | Self::TooFast { .. } => (-32006, "too_much"),
            Self::Inside => (-32007, "inside"),
            Self::Timeout { .. } => (-32008, "timeout"),
            Self::Ended => (-32009, "ended"),
            Self::UnknownTicket { .. } => (-32010, "unknown_ticket"),
            Self::NotPublished { .. } => (-32011, "not_published"),
            Self::Request(error) => (-32012, error.code()),
            Self::LongAnswer => (-32013, "long_answer"),
            Self::NotPermitted { .. } => (-32014, "not_permitted"),
        }
    }

    /// Returns what to do about it.
    pub(crate) fn remedy(&self) -> &str {
        match self {
            Self::NotJson { .. } | Self::NotAMessage => "send one JSON-RPC 2.0 message a line",
            Self::UnknownMethod { .. } | Self::Params { .. } | Self::Priority { .. } | Self::WaitForNothing => {
                "see the documentation of the protocol"
            }
            Self::HelloFirst { .. } => "say hello first",
            Self::HelloTwice => "say hello once",
            Self::Version { .. } => "use a client of the same version",
            Self::Identity(error) => error.remedy(),
            Self::TokenMissing { .. } => "send the REFIT_TOKEN of the environment with the hello",
            Self::Name { .. } => "use letters, digits, -, _ and .",
            Self::NotYours { .. } => "name no component, or show its token",
            Self::NameTaken { .. } => "use another name or none, or try again when the other connection has ended",
            Self::UnknownChannel { .. } => "declare it below [bus] in appliance.toml",
            Self::TooLate { .. } => "listen to another channel",
            Self::NotPermitted { .. } => {
                "allow it in appliance.toml: what a component may request and look at is in its `allow`, where it may listen in its `listen`"
            }
            Self::BuiltIn { .. } => "make a request instead, or use the method log",
            Self::TooMany { .. } | Self::TooFast { .. } => "wait, then try again",
            Self::Inside => "answer the call first",
            Self::Timeout { .. } => "ask again to go on waiting",
            Self::Ended => "connect again: the next runtime may be there",
            Self::UnknownTicket { .. } => "see the history for what became of it",
            Self::NotPublished { .. } => "publish outside of a listener",
            Self::Request(error) => error.remedy(),
            Self::LongAnswer => "ask for less",
        }
    }

    /// Returns whether the same may be taken a little later.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::NameTaken { .. } | Self::TooMany { .. } | Self::TooFast { .. })
    }
}
