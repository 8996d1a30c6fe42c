//! What every process of one release shares: where it runs, and what it needs there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use refit_base::lock;
use refit_bus as bus;
use tokio::sync::watch;

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
