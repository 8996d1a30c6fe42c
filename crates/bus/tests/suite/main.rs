//! The bus by itself: [the conformance cases](../../../../docs/bus-cases.md) that need no other process, and a model test.
//!
//! A test of a case begins with its number and says the behaviour. One file per section of the list; [`probe`] has the listeners
//! and components that they share. What a case says about processes is shown with the real program, in the suite of the root
//! package. Nothing here waits by resting, and every test has a hard limit.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed"
)]

mod confirm;
mod edges;
mod held;
mod host;
mod limits;
mod log;
mod model;
mod order;
mod probe;
mod publish;
mod reload;
mod restart;
mod start;
mod stop;
mod wait;
