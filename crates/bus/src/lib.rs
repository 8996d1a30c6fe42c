//! The Web Site Process Bus: one task owns the state of the site, everybody else asks.
//!
//! [`Bus::new`] gives a handle and an [`Engine`], whose [`run`](Engine::run) is the one task. The handle asks
//! ([`Bus::request`]) from any task or thread, never blocks, and gets a [`Ticket`]; it publishes on channels
//! ([`Bus::publish`]), listens ([`Bus::subscribe`]) and waits for states ([`Bus::wait`]). [`Component`]s start in waves (by
//! dependency, then priority) and stop in the exact reverse of what started; they take new settings in two phases. All
//! listeners are called although some fail; each has a deadline; failures are collected as [`Fault`]s beside the state, and
//! decide the exit status. The bus never ends its host process.
//!
//! The subjects: `state` and `machine` are the pure part; `shared` is what handles (`handle`) and `engine` share; `request` has
//! requests and tickets; `registry` says who listens where, `gate` until when, `hold` who must not be called just now, `order` in which order; `calls` calls them, `call` is
//! what each is told, `publication` what came of it, and `context` where a call must not wait; `component` and `service` start and stop with the site; `confirm` is a reload that may be taken back; `failure` is what
//! a failure says, `panics` where a panic came from; `log` is the lossy channel for people; `tasks` are those that the bus owns.
//!
//! The crate knows no HTTP, no TLS and no package: it is for any daemon that wants to start, reload and stop in order.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed"))]

mod asked;
mod call;
mod calls;
mod component;
mod confirm;
mod context;
mod engine;
mod failure;
mod gate;
mod handle;
mod hold;
mod log;
mod machine;
mod order;
mod origin;
mod outbox;
mod panics;
mod phase;
mod publication;
mod registry;
mod request;
mod service;
mod shared;
mod state;
mod tasks;

pub use asked::{Asked, Reply};
pub use call::{Call, CallInfo, Listener, Work, listener};
pub use component::{Act, Component, Limits};
pub use confirm::{ConfirmStep, ConfirmTerms, Confirmation, Unconfirmed};
pub use engine::{Ended, Engine};
pub use failure::{Failure, combined};
pub use handle::{Bus, WaitError};
pub use log::{Level, LogCounts, LogEntry};
pub use machine::{ConfirmState, Decision, RequestKind, RequestRefused, SiteStatus, decide, decide_provisional};
pub use order::{Cycle, Order, PRIORITY_DEFAULT, Row, waves};
pub use origin::Origin;
pub use phase::Phase;
pub use publication::{Answer, DEPTH_MAX, Outcome, Report};
pub use registry::{AttachError, BUILT_IN, ENTER, EXIT, LOG, RELOAD, START, STOP, Subscription};
pub use request::{Progress, Replacement, Request, StopReason, Ticket};
pub use service::{OnEnd, Service, ServiceState};
pub use shared::{AfterFailure, BusEvent, Fault, Observer, Options, causes};
pub use state::{Goal, State};
pub use tasks::NotTaken;
pub use tokio_util::sync::CancellationToken;
