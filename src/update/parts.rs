//! What the update manager works with: the same as long as the process image lives.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use refit_bus::Bus;
use refit_updater::attempt::{Attempt, Step};
use refit_updater::journal::Journal;
use refit_updater::trust::Trust;
use refit_updater::{Digest, Store};

use super::error::UpdateError;
use crate::component::{Process, RunContext};
use crate::config::Config;
use crate::process::installed;

/// What the manager is made of.
pub struct Parts {
    /// The releases on disk.
    pub store: Store,
    /// What packages are verified against.
    pub trust: Trust,
    /// The journal as this image found it.
    pub journal: Journal,
    /// The running release's configuration.
    pub config: Arc<Config>,
    /// The digest of its manifest, as this image read it when it began.
    pub digest: Digest,
    /// Where components run.
    pub context: Arc<RunContext>,
    /// The components.
    pub components: Vec<Arc<Process>>,
    /// Where the installed `refit` was when the guard began.
    pub installed: PathBuf,
    /// The bus that it asks.
    pub bus: Bus,
    /// Whether an image before this one ran the appliance.
    pub is_successor: bool,
    /// When the image before got how far.
    pub times: Times,
}

impl Parts {
    /// Returns what to execute as the installed `refit`.
    pub(super) fn installed(&self) -> PathBuf {
        installed::program(&self.installed, std::os::unix::process::parent_id())
    }
}

/// Moments of a handover on the monotonic clock, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The trial was journaled and the stop began.
    pub trial_ns: Option<u64>,
    /// The image before was about to execute this one.
    pub exec_ns: Option<u64>,
    /// This image began.
    pub begun_ns: u64,
}

impl Times {
    /// Adds to `attempt` how long stopping, exec and starting took, now that the site runs.
    pub(super) fn record(self, attempt: &mut Attempt, now_ns: u64) {
        let mut add = |step: Step, from: Option<u64>, to: Option<u64>| {
            if let (Some(from), Some(to)) = (from, to) {
                attempt.durations.insert(step.name().to_owned(), to.saturating_sub(from) / 1_000_000);
            }
        };
        add(Step::Stopping, self.trial_ns, self.exec_ns);
        add(Step::Exec, self.exec_ns, Some(self.begun_ns));
        add(Step::Starting, Some(self.begun_ns), Some(now_ns));
    }
}

/// Returns the milliseconds since then.
pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Returns the result of `work`, which may block.
///
/// # Errors
/// Those of `work`; or it panicked.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UpdateError> + Send + 'static,
) -> Result<T, UpdateError> {
    tokio::task::spawn_blocking(work).await.map_err(|source| UpdateError::Worker { source })?
}
