//! The smallest program that is a component: says that it is ready, and waits to be told to stop.
//!
//! Compiled by `rustc` when the bench runs, as the shop's programs are when Refit is built.

#[path = "../../fixtures/appliances/shop/service.rs"]
#[allow(dead_code, reason = "it needs no directory")]
mod service;

use std::io::{self, Read};

fn main() -> io::Result<()> {
    let mut stop = service::termination()?;
    service::notify("READY=1")?;
    stop.read_exact(&mut [0])
}
