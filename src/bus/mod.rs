//! The Web Site Process Bus: one task owns the state of the site, everybody else asks.
//!
//! [`Bus::open`] gives a handle and the seat of an [`Engine`]. The engine's [`run`](Engine::run) is the one task; the handle asks
//! ([`Bus::request`]) from any task or thread, never blocks, and gets a [`Ticket`]. [`Participant`]s start in waves (by
//! dependency, then priority) and stop in the exact reverse of what started. All are called although some fail; failures are
//! collected as [`Fault`]s beside the state, and decide the exit status. The bus never ends its host process.

mod engine;
mod participant;
mod request;
mod state;
mod wave;

pub use engine::{Bus, BusEvent, Ended, Engine, Fault, Hooks, Seat};
pub use participant::{Failure, Order, PRIORITY_DEFAULT, Participant, StopReason, Work};
pub use request::{Origin, Progress, Replacement, Request, Ticket};
pub use state::{Goal, State};
pub use wave::{Cycle, waves};
