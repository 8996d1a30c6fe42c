//! Update packages and releases: everything between the bytes of a package and an installed release.
//!
//! This is the appliance's side; `refit-author`, which makes and publishes packages, is the vendor's.
//!
//! The way of an update through the modules:
//!
//! - [`package`] takes the bytes apart, within limits; [`trust`] decides whether they are signed, with [`refit_tuf`];
//! - [`manifest`] says what is in a release, and refuses what must never be;
//! - [`receive`] streams a package into staging: verified, decoded, synced, read-only;
//! - [`release`] keeps the releases on disk, [`removal`] says which may go, [`config`] carries the admin's edits from one to the next;
//! - [`journal`] is the state of the update transaction, [`attempt`] one run of it, [`history`] what became of each, [`decided`] a
//!   decision that the disk could not take;
//! - [`repository`] has the same parts side by side on a web server;
//! - [`modes`] is the table of who may read and write what in a home, and repairs it;
//! - [`mount`] says what may be done where a path lies;
//! - [`leftovers`] finds what a write that was cut short has left;
//! - [`durable`] is the only file that renames, links and syncs; [`fault`] names the points where tests crash it.
//!
//! The crate knows no HTTP server, no bus and no component, reads no environment variable and no working directory (the
//! crash points of test builds excepted), and takes every path as an argument.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed"))]

pub mod attempt;
pub mod codec;
pub mod config;
pub mod decided;
pub mod digest;
pub mod durable;
pub mod fault;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod history;
pub mod journal;
pub mod leftovers;
pub mod manifest;
pub mod modes;
pub mod mount;
pub mod package;
pub mod receive;
pub mod release;
pub mod removal;
pub mod repository;
pub mod spare;
pub mod trust;

pub use digest::Digest;
pub use manifest::Manifest;
pub use receive::Receiver;
pub use release::Store;
