//! What every process of one release shares: where it runs, and what it needs there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use refit_base::{Chain, lock};
use refit_bus as bus;
use refit_updater::Store;
use refit_updater::config::{Existing, merge_config};
use semver::Version;
use tokio::sync::watch;

use super::reach::open_config;
use crate::carry::Registry;
use crate::config::{Component, Config};
use crate::handover::listener::Listeners;
use crate::home::Home;
use crate::probe::queue;
use crate::process::cgroup::Cgroups;
use crate::process::resources::Resources;

/// Where the components of one release run.
#[derive(Debug)]
pub struct RunContext {
    /// The home.
    pub home: Home,
    /// The release's directory.
    pub release_dir: PathBuf,
    /// The release.
    pub version: semver::Version,
    /// The live configuration.
    pub config_dir: PathBuf,
    /// What is configured: whose accounts may look into that.
    pub config: Arc<Config>,
    /// Held while the live configuration is made again.
    pub restoring: Mutex<()>,
    /// The listeners.
    pub listeners: Mutex<Listeners>,
    /// The names of the listeners that each of the release's components is given.
    pub shares: BTreeMap<String, Vec<String>>,
    /// The registry of what survives.
    pub registry: Arc<Registry>,
    /// How processes ended that the guard collected, by PID.
    pub reaped: watch::Receiver<BTreeMap<i32, String>>,
    /// This process's own environment.
    pub environment: BTreeMap<OsString, OsString>,
    /// Where the site stands.
    pub site: watch::Receiver<bus::State>,
    /// The control groups.
    pub cgroups: Cgroups,
    /// Whether the old processes of components that overlap may be told to stop. On trial that is once all of the release is ready: one
    /// that fails before has cost nothing that it would need on its way back.
    pub overlap_ends: watch::Sender<bool>,
    /// What this process had before it was given more: what its children get.
    pub found: Resources,
}

impl RunContext {
    /// Makes the live configuration again where it is gone: a cleaner may have taken it while everything runs.
    pub(super) fn restore_config(&self) {
        let _alone = lock(&self.restoring);
        if !is_gone(&self.config_dir) {
            return;
        }
        if let Ok(store) = Store::open(self.home.path()) {
            restore_config(&store, &self.version);
        }
        open_config(&self.config_dir, &self.config);
    }

    /// Gives the listeners of `component` their whole queue again, whatever its program has made of it.
    pub(super) fn restore_queues(&self, component: &Component) {
        let listeners = lock(&self.listeners);
        for listener in component.listeners.iter().filter_map(|name| listeners.get(name)) {
            if let Err(error) = queue::restore(listener) {
                tracing::warn!(component.name = component.name, %error, "a listener cannot get its whole queue again");
            }
        }
    }
}

/// Makes the live configuration of release `version` from its defaults where it is gone. What is in the way is logged: its components say what
/// they lack. Blocks.
pub fn restore_config(store: &Store, version: &Version) {
    let dir = store.config_dir(version);
    if !is_gone(&dir) {
        return;
    }
    let path = dir.display();
    match merge_config(store, None, version, Existing::Keep) {
        Ok(_) => tracing::warn!(%path, "the live configuration was missing; it was made from the release's defaults"),
        Err(error) => {
            tracing::error!(%path, error = %Chain(&error), "the live configuration is missing and cannot be made again");
        }
    }
}

fn is_gone(dir: &Path) -> bool {
    dir.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}
