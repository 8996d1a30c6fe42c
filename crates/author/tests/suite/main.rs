//! The vendor's side from outside: keys are made and rotated, packages packed and shown, repositories written and mended.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed"
)]

mod keys;
mod making;
mod outside;
mod packing;
mod publishing;
