//! The crate from outside: packages are received, altered and refused, releases kept, verified and dropped.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed"
)]

mod config;
#[cfg(feature = "fault")]
mod crash;
mod hostile;
mod policy;
mod reading;
mod repair;
mod repository;
mod rights;
mod roundtrip;
mod sharing;
mod space;
mod tampering;
mod trust;
