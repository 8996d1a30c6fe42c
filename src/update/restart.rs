//! A restart in place: examined before it is asked for, so that one that cannot work stops nothing.

use std::sync::Arc;

use refit_bus::{Bus, Level, Origin, Replacement, Request, Ticket};

use super::error::{UpdateError, reason};
use super::parts::Parts;
use super::preflight;

/// Asks for the replacement of this image by a new one of the same release, in which every component stays. First the
/// program makes a dry run: that the file is there, can be executed and understands the configuration is seen before
/// anything stops.
///
/// # Errors
/// The program cannot take over; nothing was asked.
pub(super) async fn restart_in_place(parts: &Parts, bus: &Bus, origin: Origin) -> Result<Ticket, UpdateError> {
    let config = &parts.config;
    let program = match &config.runtime {
        Some(program) => parts.context.release_dir.join(program),
        None => parts.installed.clone(),
    };
    preflight::examine_runtime(&parts.context.home, &program, &config.version, parts.context.found).await?;
    let replacement = Replacement {
        label: config.version.to_string(),
        program,
        keep_running: config.components.iter().map(|component| component.name.clone()).collect(),
    };
    Ok(bus.request(Request::Restart(Arc::new(replacement)), origin))
}

/// Asks as [`restart_in_place`] does, for somebody who waits for no answer: a refusal goes to the log.
pub(super) async fn restart_or_log(parts: &Parts, bus: &Bus, origin: Origin) {
    if let Err(error) = restart_in_place(parts, bus, origin.clone()).await {
        bus.log(Level::Error, format!("request restart of {origin}: refused: {}", reason(&error)));
    }
}
