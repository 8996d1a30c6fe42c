//! A health command: a process of its component, which ends with the try.

use std::time::Duration;

use refit_bus::Failure;

use super::Probed;
use crate::component::aside::Aside;

/// Runs a health command as a process of its component.
pub(super) async fn run(words: &[String], limit: Duration, probed: &Probed) -> Result<(), Failure> {
    let Probed { component, carried, context } = probed;
    let what = "the health command";
    Aside { what, words, limit, lines: 1, with_listeners: false, component, carried, context }.run().await
}
