//! A restart in place: examined before it is asked for, so that one that cannot work stops nothing.

use std::sync::Arc;

use refit_base::lock;
use refit_bus::{Bus, Level, Origin, Replacement, Request, Ticket};

use super::error::{UpdateError, reason};
use super::parts::Parts;
use super::{plan, preflight};
use crate::config::{self, Config};

/// Asks for the replacement of this image by a new one of the same release, in which every component stays. First the
/// program makes a dry run: that the file is there, can be executed and understands the configuration is seen before
/// anything stops, and so is that every listener can be had. Where another one is to listen in the place of one that a component
/// has, that component stops before.
///
/// # Errors
/// The program cannot take over; nothing was asked.
pub(super) async fn restart_in_place(parts: &Parts, bus: &Bus, origin: Origin) -> Result<Ticket, UpdateError> {
    let config = &parts.config;
    let program = config.runtime.as_ref().map(|program| parts.context.release_dir.join(program));
    let (home, found) = (&parts.context.home, parts.context.found);
    let program = preflight::examine_runtime(home, program, &parts.installed, &config.version, found).await?;
    // The settings may be others by now.
    let version = config.version.clone();
    let wrong = |source| UpdateError::Config { version, source };
    let next =
        Config::load(&parts.context.release_dir, &parts.context.home.path().join(config::LOCAL_FILE)).map_err(wrong)?;
    let held = {
        let listeners = lock(&parts.context.listeners);
        listeners.try_all(&next.listeners)?;
        listeners.addresses()
    };
    let running = parts.context.registry.instances();
    let stays = |name: &String| !plan::is_in_the_way(name, &running, &held, &next);
    let replacement = Replacement {
        label: config.version.to_string(),
        program,
        keep_running: config.components.iter().map(|component| component.name.clone()).filter(stays).collect(),
    };
    Ok(bus.request(Request::Restart(Arc::new(replacement)), origin))
}

/// Asks as [`restart_in_place`] does, for somebody who waits for no answer: a refusal goes to the log.
pub(super) async fn restart_or_log(parts: &Parts, bus: &Bus, origin: Origin) {
    if let Err(error) = restart_in_place(parts, bus, origin.clone()).await {
        bus.log(Level::Error, format!("request restart of {origin}: refused: {}", reason(&error)));
    }
}
