//! Refit: a self-updating appliance runtime.
//!
//! An appliance that replaces all of itself, its own running binary included, without dropping a connection, and that always
//! comes back. The modules, from the outside in; each imports only modules below it, as `tests/rooms/` checks:
//!
//! - [`cli`]: the commands, one file each; they talk to a running appliance through its API, or work on files;
//! - [`runtime`]: everything put together for one release, in one process image after the other;
//! - [`guard`]: the parent process, which keeps descriptors, starts the runtime and decides the release;
//! - [`api`] and [`web`]: the same HTTP for the page, for scripts and for the commands;
//! - [`peers`]: other processes on the bus, each with the rights of its component;
//! - [`requests`]: requests to the bus and to the update manager, each with a ticket;
//! - [`update`]: the transaction from a package to a release that proved good, or back;
//! - `access`: who asks, and what they may;
//! - [`component`]: the programs that the appliance is made of;
//! - [`http`]: the server, its connections, and the client; it knows no resource;
//! - [`carry`]: what outlives a process image, as one document;
//! - [`logs`]: what components print;
//! - [`auth`]: the accounts of the page and their sessions;
//! - [`config`]: `appliance.toml` and `local.toml`;
//! - [`process`]: processes started, found, signalled and ended, and their control groups;
//! - [`probe`]: listeners tried from outside;
//! - [`wire`]: what the API says and is told, as types;
//! - [`handover`]: how descriptors and state get from one process image to the next;
//! - [`tickets`], [`events`], [`home`], `awake`: what the others share.
//!
//! The bus is the crate `refit-bus`, which this one re-exports as [`bus`]. Packages, trust, releases on disk and the journal
//! are the crate `refit-updater`; signing keys, packing and publishing are `refit-author`; the TUF client below both is
//! `refit-tuf`; errors, exit statuses, the clock and locks are `refit-base`.
#![deny(unsafe_code)]

pub(crate) mod access;
pub mod api;
pub mod auth;
pub(crate) mod awake;
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
pub mod probe;
pub mod process;
pub mod requests;
pub mod runtime;
pub mod tickets;
pub mod update;
pub mod web;
pub mod wire;

pub use refit_bus as bus;
pub use refit_bus::{Bus, Component, Failure, Fault, Origin, Progress, Request, State, Ticket};
