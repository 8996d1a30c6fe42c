//! What goes between the appliance and those who ask it: one type per resource, event, step and problem.
//!
//! The API's handlers and the bus's protocol fill these types, the commands and the page read them, and the description of the API is
//! derived from them. Two ends may have different versions: a reader passes over fields that it does not know, takes a default for
//! those that came later, and keeps names and events that it does not know as they are.
//!
//! The room decides nothing and does nothing: what a value means is said here, where it comes from elsewhere.

pub mod bus;
pub mod component;
pub mod config;
pub mod confirm;
pub mod event;
pub mod health;
pub mod history;
pub mod log;
mod names;
pub mod package;
pub mod peer;
pub mod problem;
pub mod release;
pub mod repository;
pub mod request;
pub mod session;
pub mod status;
pub mod step;
pub mod ticket;
pub mod trust;
pub mod update;

pub use bus::{Answer, AnswerOutcome, Bus, BusState, Channel, Fault, LogCounts, Publication, Published, Report};
pub use component::{
    Acted, Announced, Component, ComponentState, Components, Handover, Health, Kind, Limit, LimitBy, Run,
};
pub use config::{Clash, Config, MergeOutcome, MergedFile, Unmerged, Unread};
pub use confirm::{Confirmation, ConfirmationState, Unconfirmed};
pub use event::{Event, EventRecord};
pub use health::{Condition, Overall};
pub use history::{Attempt, Cause, History, Outcome};
pub use log::{LogLine, LogLines, Stream};
pub use package::{Changes, FetchBody, Package, Packages, Reception, ReceptionStep, Staged};
pub use peer::{Peer, Place};
pub use problem::Problem;
pub use release::{Release, ReleaseState, Releases, Removed};
pub use repository::{Offer, Repository};
pub use request::{Destination, RequestBody, RequestName};
pub use session::{Login, Session};
pub use status::{CurrentRelease, Guard, Listener, Runtime, SiteState, Status};
pub use ticket::{Asked, How, Phase, Reply, Ticket, TicketAnswer, TicketState};
pub use trust::{Role, Trust};
pub use update::{AttemptKind, Update};
