//! What every crate of Refit stands on.
//!
//! - [`Exit`] is the exit status of a command, fixed by the command-line contract;
//! - [`Reported`] is what an error at a boundary says about itself: a code, a remedy and an exit status;
//! - [`Chain`] joins an error and its causes into one line for readers;
//! - [`Cause`] is whose trouble a failure is, the release's or the machine's;
//! - [`FileError`] is a file operation that failed, with the file's name;
//! - [`Bucket`] says how often something may happen;
//! - [`network()`] says which addresses may be one machine's;
//! - [`clock`] is the only place that reads the wall clock;
//! - [`visible()`] and [`visible_lines`] show a text that must not steer a terminal;
//! - [`names!`] declares an enum that is a name in JSON, also of another version;
//! - [`lock`] takes a mutex, poisoned or not, as do [`wait`] and [`into_inner`].
//!
//! The crate knows no file format, no network and no process, and stays light: everything depends on it.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed"))]

mod address;
mod cause;
mod chain;
pub mod clock;
mod file_error;
mod lock;
mod names;
mod rate;
mod report;
mod visible;

pub use address::network;
pub use cause::Cause;
pub use chain::Chain;
pub use file_error::{FileError, file_error};
pub use lock::{into_inner, lock, wait};
pub use rate::{Bucket, Rate};
pub use report::{Exit, Report, Reported, message};
pub use visible::{visible, visible_lines};

#[doc(hidden)]
pub use serde; // for the macro
