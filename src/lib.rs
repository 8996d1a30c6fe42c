//! Refit: a self-updating appliance runtime.
//!
//! An appliance that replaces all of itself, its own running binary included, without dropping a connection, and that always
//! comes back. The modules, from the outside in:
//!
//! - [`cli`]: the commands; they talk to a running appliance through its API;
//! - [`guard`]: the parent process, which keeps descriptors, starts the runtime and decides the release;
//! - [`runtime`]: everything put together for one release, in one process image after the other;
//! - [`component`]: the programs that the appliance is made of;
//! - [`handover`]: how descriptors and state get from one process image to the next;
//! - [`peers`]: other processes on the bus, each with the rights of its component;
//! - [`update`]: the transaction from a package to a release that proved good, or back;
//! - [`api`] and [`web`]: the same HTTP for the page, for scripts and for the commands;
//! - [`http`]: the server below the API, and the client;
//! - [`auth`] and `access`: accounts and sessions; who asks, and what they may;
//! - [`config`], [`requests`], [`events`], [`tickets`], [`home`]: what they share.
//!
//! The bus is the crate `refit-bus`, which this one re-exports as [`bus`]. Packages, trust, releases on disk and the journal
//! are the crate `refit-updater`; errors, exit statuses and the clock are `refit-base`.
#![deny(unsafe_code)]

pub(crate) mod access;
pub mod api;
pub mod auth;
pub mod carry;
pub mod cli;
pub mod component;
pub mod config;
pub mod events;
pub mod guard;
pub mod handover;
pub mod home;
pub mod http;
pub mod logs;
pub mod peers;
pub mod process;
pub mod requests;
pub mod runtime;
pub mod tickets;
pub mod update;
pub mod web;

pub use refit_bus as bus;
pub use refit_bus::{Bus, Component, Failure, Fault, Origin, Progress, Request, State, Ticket};
