//! The vendor's side: what makes packages, signs them and publishes them.
//!
//! - [`keys`] is the directory of signing keys and roots, and what follows a root;
//! - [`pack`] makes a signed package from a directory;
//! - [`inspect`] shows what a package holds, and what it changes of another, without installing it;
//! - [`publish`] writes a repository that any static web server can serve.
//!
//! The formats, and what an appliance accepts, are `refit_updater`'s; nothing here runs on an appliance. The crate reads no
//! environment variable and no working directory, and takes every path and the time as arguments.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed"))]

pub mod inspect;
pub mod keys;
pub mod pack;
pub mod publish;
