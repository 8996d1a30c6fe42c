//! A restart in place: examined before it is asked for, so that one that cannot work stops nothing.

use std::sync::Arc;

use refit_bus::{Bus, Level, Origin, Replacement, Request, Ticket};

use super::{Manager, UpdateError, preflight};

impl Manager {
    /// Asks for the replacement of this image by a new one of the same release, in which every component stays. First the
    /// program makes a dry run: that the file is there, can be executed and understands the configuration is seen before
    /// anything stops.
    ///
    /// # Errors
    /// The program cannot take over; nothing was asked.
    pub async fn restart_in_place(&self, bus: &Bus, origin: Origin) -> Result<Ticket, UpdateError> {
        let config = &self.parts.config;
        let program = match &config.runtime {
            Some(program) => self.parts.context.release_dir.join(program),
            None => self.parts.installed.clone(),
        };
        preflight::examine_runtime(&self.parts.context.home, &program, &config.version).await?;
        let replacement = Replacement {
            label: config.version.to_string(),
            program,
            keep_running: config.components.iter().map(|component| component.name.clone()).collect(),
        };
        Ok(bus.request(Request::Restart(Arc::new(replacement)), origin))
    }

    /// Asks as [`Manager::restart_in_place`] does, for somebody who waits for no answer: a refusal goes to the log.
    pub async fn restart_or_log(&self, bus: &Bus, origin: Origin) {
        if let Err(error) = self.restart_in_place(bus, origin.clone()).await {
            bus.log(Level::Error, format!("request restart of {origin}: refused: {}", super::error::reason(&error)));
        }
    }
}
