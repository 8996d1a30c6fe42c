//! Receiving a package while it streams in: verified and unpacked into staging, or refused; and what waits there.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use refit_base::{Chain, clock, lock};
use refit_updater::Digest;
use refit_updater::manifest::Changes;
use refit_updater::receive::{MakeRoom, Policy, ReceiveError, ReceiveProgress, Receiver};
use refit_updater::release::Received;
use semver::Version;
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::io::SyncIoBridge;

use super::error::UpdateError;
use super::house::House;
use super::journal::JournalKeeper;
use super::parts::{Parts, blocking};
use super::reception_thread::ReceptionThread;
use crate::wire::event::PackageProgress;
use crate::wire::{Event, Package, Reception, ReceptionStep, Staged};

/// How often the progress of a package is published.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// A package that waits in staging, and where it lies.
struct Waiting {
    package: Staged,
    dir: PathBuf,
}

/// Is told how far a reception is.
pub(super) type Progress<'a> = dyn FnMut(ReceiveProgress) + Send + 'a;

/// Ends a reception whose sender is gone.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Shows a reception as long as it lives.
struct Shown(Arc<Receiving>);

impl Shown {
    fn new(receiving: &Arc<Receiving>, total_bytes: Option<u64>) -> Self {
        let since = clock::stamp();
        let reception = Reception {
            since,
            step: ReceptionStep::Metadata,
            version: None,
            digest: None,
            received_bytes: 0,
            total_bytes,
        };
        *lock(&receiving.reception) = Some(reception);
        Self(Arc::clone(receiving))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        *lock(&self.0.reception) = None;
    }
}

/// Brings `reception` in line with `progress`.
fn note(reception: &mut Reception, progress: &ReceiveProgress) {
    match progress {
        ReceiveProgress::Verified { digest, version, bytes_total, .. } => {
            reception.step = ReceptionStep::Unpacking;
            reception.version = Some(version.clone());
            reception.digest = Some(*digest);
            reception.total_bytes = Some(*bytes_total);
        }
        ReceiveProgress::Unpacking { bytes, bytes_total } => {
            reception.received_bytes = *bytes;
            reception.total_bytes = Some(*bytes_total);
        }
        ReceiveProgress::Syncing => reception.step = ReceptionStep::Syncing,
    }
}

/// The owner of what arrives: one reception at a time, and the packages that wait in staging.
pub struct Receiving {
    pub(super) parts: Arc<Parts>,
    pub(super) journal: Arc<JournalKeeper>,
    house: Arc<House>,
    thread: ReceptionThread,
    /// Holding it is receiving a package.
    permit: Arc<Semaphore>,
    reception: Mutex<Option<Reception>>,
    /// What was received since this image emptied staging; some of it may have gone from there.
    staged: Mutex<Vec<Waiting>>,
    /// Whether [`Receiving::tidy`] has been.
    is_tidy: watch::Sender<bool>,
}

impl Receiving {
    pub(super) fn new(parts: Arc<Parts>, journal: Arc<JournalKeeper>, house: Arc<House>) -> Self {
        Self {
            parts,
            journal,
            house,
            thread: ReceptionThread::default(),
            permit: Arc::new(Semaphore::new(1)),
            reception: Mutex::new(None),
            staged: Mutex::default(),
            is_tidy: watch::Sender::new(false),
        }
    }

    /// Does what every start owes the disk: the `current` link, an empty staging, the history of an attempt that ended
    /// with the image before, and nothing left of what was cut short. Until then nothing is received and no update begins. Repeating it changes nothing.
    ///
    /// # Errors
    /// A file cannot be written; what is left is done at the next start.
    pub async fn tidy(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Result<(), UpdateError> {
        let receiving = Arc::clone(self);
        let alone = self.house.hold().await;
        let work = move || {
            let (_permit, _alone) = (permit, alone);
            let store = &receiving.parts.store;
            let pointed = store.point_current(receiving.parts.journal.state.wanted());
            let emptied = store.empty_staging();
            let recorded = receiving.journal.record_finished();
            receiving.house.clear_away();
            // What does not work leaves the others alone.
            if let (Err(_), Err(error)) = (&pointed, &emptied) {
                tracing::error!(error = %Chain(error), "cannot empty staging; the next start tries again");
            }
            pointed.and(emptied)?;
            recorded
        };
        let result = blocking(work).await;
        self.is_tidy.send_replace(true);
        result
    }

    /// Waits until [`Receiving::tidy`] has been.
    pub(super) async fn until_tidy(&self) {
        drop(self.is_tidy.subscribe().wait_for(|is_tidy| *is_tidy).await); // its sender lives as long as this
    }

    /// Returns whether [`Receiving::tidy`] has been.
    pub(super) fn is_tidy(&self) -> bool {
        *self.is_tidy.borrow()
    }

    /// Returns the right to receive packages, for [`Receiving::tidy`]; `None` if somebody has it.
    pub fn hold(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permit).try_acquire_owned().ok()
    }

    /// Returns the right to receive packages, which the start has for a moment.
    ///
    /// # Errors
    /// A package is being received.
    pub(super) async fn begin(&self) -> Result<OwnedSemaphorePermit, UpdateError> {
        if self.is_tidy() {
            return self.hold().ok_or(UpdateError::Receiving);
        }
        Arc::clone(&self.permit).acquire_owned().await.map_err(|_closed| UpdateError::Receiving)
    }

    /// Returns how long a package that arrives may bring nothing.
    pub fn receive_timeout(&self) -> Duration {
        self.parts.config.update.receive_timeout
    }

    /// Returns what this appliance accepts.
    pub(super) fn policy(&self, allow_downgrade: bool) -> Policy {
        let config = &self.parts.config;
        Policy {
            appliance: Some(config.name.clone()),
            arch: std::env::consts::ARCH.to_owned(),
            current: Some(self.journal.current().state.wanted().clone()),
            allow_downgrade,
            expired: config.update.expired_offline,
            now: clock::now(),
        }
    }

    /// Receives a package from `body`, of which `total_bytes` are expected.
    ///
    /// # Errors
    /// It is refused, or cannot be unpacked; nothing of it is left. Or another one is being received.
    pub async fn receive(
        self: &Arc<Self>,
        body: impl AsyncRead + Unpin + Send + 'static,
        total_bytes: Option<u64>,
        allow_downgrade: bool,
    ) -> Result<Package, UpdateError> {
        let body = SyncIoBridge::new(body);
        let receive = |receiver: Receiver<'_>, progress: &mut Progress<'_>| receiver.receive(body, progress);
        self.receive_by(receive, total_bytes, allow_downgrade).await
    }

    /// Has `receive` receive a release, on a thread that may block, until nobody waits for it any more.
    pub(super) async fn receive_by(
        self: &Arc<Self>,
        receive: impl FnOnce(Receiver<'_>, &mut Progress<'_>) -> Result<Received, ReceiveError> + Send + 'static,
        total_bytes: Option<u64>,
        allow_downgrade: bool,
    ) -> Result<Package, UpdateError> {
        let permit = self.begin().await?;
        let shown = Shown::new(self, total_bytes);
        let current = self.journal.current().state.wanted().clone();
        let policy = self.policy(allow_downgrade);
        let cancel = Arc::new(AtomicBool::new(false));
        let guard = CancelOnDrop(Arc::clone(&cancel));
        let receiving = Arc::clone(self);
        let work = move || {
            // Held until the work is over, even when nobody waits for it any more.
            let (_permit, _shown) = (permit, shown);
            let mut last = None;
            let mut progress =
                |progress: ReceiveProgress| receiving.publish_progress(&progress, total_bytes, &mut last);
            let parts = &receiving.parts;
            let room = Some(&*receiving.house as &dyn MakeRoom);
            let receiver =
                Receiver { store: &parts.store, trust: &parts.trust, policy: &policy, cancel: &cancel, room };
            let received = receive(receiver, &mut progress)?;
            Ok(receiving.describe(received, current))
        };
        let result = self.thread.run(work).await;
        drop(guard);
        result?
    }

    /// Returns what is being received.
    pub fn reception(&self) -> Option<Reception> {
        lock(&self.reception).clone()
    }

    fn publish_progress(&self, progress: &ReceiveProgress, total: Option<u64>, last: &mut Option<Instant>) {
        let events = &self.parts.context.registry.events;
        if let Some(reception) = &mut *lock(&self.reception) {
            note(reception, progress);
        }
        let at = |step| PackageProgress {
            step,
            digest: None,
            version: None,
            total_bytes: None,
            received_bytes: None,
            installed_bytes: None,
        };
        let data = match progress {
            ReceiveProgress::Verified { digest, version, bytes_total, installed_bytes } => PackageProgress {
                digest: Some(*digest),
                version: Some(version.clone()),
                total_bytes: Some(total.unwrap_or(*bytes_total)),
                received_bytes: Some(0),
                installed_bytes: Some(*installed_bytes),
                ..at(ReceptionStep::Verified)
            },
            ReceiveProgress::Unpacking { bytes, bytes_total } => {
                if last.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) && bytes < bytes_total {
                    return;
                }
                *last = Some(Instant::now());
                PackageProgress {
                    received_bytes: Some(*bytes),
                    total_bytes: Some(*bytes_total),
                    ..at(ReceptionStep::Unpacking)
                }
            }
            ReceiveProgress::Syncing => at(ReceptionStep::Syncing),
        };
        events.publish(Event::PackageProgress(data));
    }

    /// Returns what is to be known about a received package. Blocks.
    fn describe(&self, received: Received, from: Version) -> Package {
        let journal = self.journal.current();
        // A release that is damaged is no reason to refuse the next one: that is the way out.
        let running = self.parts.store.release(&from).inspect_err(|error| {
            tracing::warn!(release.version = %from, error = %Chain(error), "cannot tell what a package changes");
        });
        let version = received.manifest.version().clone();
        self.note_staged(&received);
        Package {
            digest: received.digest,
            appliance: received.manifest.appliance().to_owned(),
            from,
            packed_bytes: received.manifest.payload_bytes(),
            installed_bytes: received.manifest.installed_bytes(),
            written_bytes: received.written_bytes,
            linked_bytes: received.linked_bytes,
            changes: running.ok().map(|running| Changes::between(&running.manifest, &received.manifest).into()),
            expired: received.expired.is_some(),
            clock_behind: received.clock_behind.map(clock::rfc3339),
            failed_before: journal.failed.get(&version).map(|failed| failed.reason.clone()),
            version,
        }
    }

    fn note_staged(&self, received: &Received) {
        let mut staged = lock(&self.staged);
        staged.retain(|other| other.package.digest != received.digest);
        let package = Staged {
            digest: received.digest,
            version: received.manifest.version().clone(),
            received_at: clock::stamp(),
            packed_bytes: received.manifest.payload_bytes(),
            installed_bytes: received.manifest.installed_bytes(),
        };
        staged.push(Waiting { package, dir: received.dir.clone() });
    }

    /// Returns what was received and waits, in the order in which it came.
    pub fn staged(&self) -> Vec<Staged> {
        let mut staged = lock(&self.staged);
        staged.retain(|waiting| waiting.dir.is_dir());
        staged.iter().map(|waiting| waiting.package.clone()).collect()
    }

    /// Drops a package that was received and not installed. Blocks.
    ///
    /// # Errors
    /// There is none with this digest, or its files cannot be removed.
    pub fn discard(&self, digest: &Digest) -> Result<(), UpdateError> {
        let received = self.parts.store.received(digest)?;
        let received = received.ok_or(UpdateError::UnknownPackage { digest: *digest })?;
        Ok(self.parts.store.drop_received(&received)?)
    }
}
