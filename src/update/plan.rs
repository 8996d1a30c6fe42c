//! How an update replaces this image, and what it does to each component's process.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use refit_base::lock;
use refit_bus::Replacement;
use refit_updater::Manifest;
use refit_updater::config::Live;

use super::error::UpdateError;
use super::parts::Parts;
use super::preflight::Examined;
use crate::carry::{CarriedInstance, Role};
use crate::component::fingerprint;
use crate::config::{Config, Handover};
use crate::handover::beside::clash;

/// Returns how this image is replaced by one of the release that was examined.
///
/// # Errors
/// A component cannot be described.
pub(super) fn replacement(parts: &Parts, examined: &Examined) -> Result<Arc<Replacement>, UpdateError> {
    let running = parts.context.registry.instances();
    let live = Live::read(&parts.store.config_dir(&examined.release.version));
    let mut keep_running = keep_running(&running, &examined.config, &examined.release.manifest, &live)
        .map_err(|source| UpdateError::Io { what: "describe the components", source })?;
    let held = lock(&parts.context.listeners).addresses();
    keep_running.retain(|name| !is_in_the_way(name, &running, &held, &examined.config));
    Ok(Arc::new(Replacement {
        label: examined.release.version.to_string(),
        program: examined.program.clone(),
        keep_running,
    }))
}

/// Returns whether a process of the component `name` that runs has one of the listeners `held` in whose place `next` has another one, or
/// which it gives to other components: it has to stop before those accept.
pub(super) fn is_in_the_way(
    name: &str,
    running: &[CarriedInstance],
    held: &[(String, SocketAddr)],
    next: &Config,
) -> bool {
    let gets = |listener: &String| {
        let mut owners = next.components.iter().filter(|component| component.listeners.contains(listener));
        (owners.clone().any(|owner| owner.name == name), owners.next().is_some())
    };
    let is_taken_over = |held: SocketAddr| {
        next.listeners.iter().any(|(listener, wanted)| {
            let (is_its, is_somebodys) = gets(listener);
            clash(held, *wanted) && (held != *wanted || (is_somebodys && !is_its))
        })
    };
    let its = running.iter().filter(|instance| instance.component == name);
    its.flat_map(|instance| held.iter().filter(|(listener, _)| instance.has(listener)))
        .any(|(_, address)| is_taken_over(*address))
}

/// Returns the components whose processes are left running for the next image.
///
/// Those that the next release wants unchanged, those that hand over by overlapping, and those that say `keep`; what the next
/// release does not have, and what restarts, is stopped before.
///
/// # Errors
/// A component cannot be described.
fn keep_running(
    running: &[CarriedInstance],
    next: &Config,
    manifest: &Manifest,
    live: &Live,
) -> io::Result<BTreeSet<String>> {
    let mut keep_running = BTreeSet::new();
    for component in &next.components {
        let stays = match component.handover {
            Handover::Overlap | Handover::Keep => true,
            Handover::Restart => {
                let fingerprint = fingerprint::of(component, next, manifest, live)?;
                running.iter().any(|instance| {
                    instance.component == component.name
                        && instance.role == Role::Current
                        && instance.fingerprint == fingerprint
                })
            }
        };
        if stays {
            keep_running.insert(component.name.clone());
        }
    }
    Ok(keep_running)
}
