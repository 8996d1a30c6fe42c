//! How an update replaces this image, and what it does to each component's process.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use refit_bus::Replacement;
use refit_updater::Manifest;
use refit_updater::config::Live;

use super::error::UpdateError;
use super::parts::Parts;
use super::preflight::Examined;
use crate::carry::{CarriedInstance, Role};
use crate::component::fingerprint;
use crate::config::{Config, Handover};

/// Returns how this image is replaced by one of the release that was examined.
///
/// # Errors
/// A component cannot be described.
pub(super) fn replacement(parts: &Parts, examined: &Examined) -> Result<Arc<Replacement>, UpdateError> {
    let running = parts.context.registry.instances();
    let live = Live::read(&parts.store.config_dir(&examined.release.version));
    let keep_running = keep_running(&running, &examined.config, &examined.release.manifest, &live)
        .map_err(|source| UpdateError::Io { what: "describe the components", source })?;
    Ok(Arc::new(Replacement {
        label: examined.release.version.to_string(),
        program: examined.program.clone(),
        keep_running,
    }))
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
