//! The update manager: one transaction from a received package to a release that proved good, or back.
//!
//! [`Manager`] drives the updater, the bus and the handover through the states of the journal, which is written before each
//! act. It ends with this process image asking to be replaced; the next image goes on with [`trial`]. Whatever fails before the
//! trial leaves the running release untouched; whatever fails in it ends in the previous one, with the reason in the history.
//!
//! Each part owns its state: [`Receiving`] what arrives and waits in staging, [`Transaction`] an attempt up to the exec, [`Trial`]
//! what follows it. They share the journal, whose owner is [`JournalKeeper`], and what is shown of it all, by [`Steps`]. The
//! manager only asks one after the other, and hosts their tasks.

mod ending;
mod error;
mod gate;
mod house;
mod journal;
mod parts;
mod plan;
mod preflight;
mod probation;
mod receiving;
mod reception_thread;
mod repository;
mod restart;
mod revive;
mod shared;
mod steps;
mod transaction;
mod trial;

use std::sync::{Arc, Mutex};

use refit_base::{clock, lock};
use refit_bus::{self as bus, AfterFailure, Bus, Fault, Origin, Ticket};
use refit_updater::Store;
use refit_updater::attempt::Kind;
use refit_updater::config::{self, Unmerged, Unread};
use refit_updater::history::Entry;
use refit_updater::journal::{Journal, State};
use refit_updater::release::StoreError;
use refit_updater::trust::TrustStatus;
use semver::Version;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use self::ending::Endings;
use self::house::House;
use self::journal::JournalKeeper;
use self::shared::Shared;
use self::steps::Steps;
use self::transaction::Transaction;
use self::trial::Trial;
use crate::wire;

pub use error::UpdateError;
pub use parts::{Parts, Times};
pub use receiving::Receiving;
pub use transaction::Target;

/// The update manager: it coordinates what the parts own, and hosts their tasks.
pub struct Manager {
    parts: Arc<Parts>,
    journal: Arc<JournalKeeper>,
    steps: Arc<Steps>,
    endings: Arc<Endings>,
    receiving: Arc<Receiving>,
    transaction: Arc<Transaction>,
    trial: Arc<Trial>,
    house: Arc<House>,
    tasks: Mutex<JoinSet<()>>,
}

impl Manager {
    /// Returns the manager. Nothing is written yet: the way from an exec to the first accept is kept short.
    pub fn new(parts: Parts) -> Self {
        let parts = Arc::new(parts);
        let journal = Arc::new(JournalKeeper::new(parts.store.home(), parts.journal.clone()));
        let steps = Arc::new(Steps::new(Arc::clone(&parts.context.registry)));
        let endings = Arc::new(Endings::new(Arc::clone(&parts), Arc::clone(&journal), Arc::clone(&steps)));
        let house = Arc::new(House::new(Arc::clone(&parts), Arc::clone(&journal)));
        let shared = Shared { parts, journal, steps, endings, house };
        let (transaction, trial) = (Arc::new(Transaction::new(&shared)), Arc::new(Trial::new(&shared)));
        let Shared { parts, journal, steps, endings, house } = shared;
        let manager = Self {
            receiving: Arc::new(Receiving::new(Arc::clone(&parts), Arc::clone(&journal), Arc::clone(&house))),
            transaction,
            trial,
            parts,
            journal,
            steps,
            endings,
            house,
            tasks: Mutex::new(JoinSet::new()),
        };
        manager.trial.show_start();
        manager
    }

    /// Has a start of the site end when an update would be taken.
    pub fn attach(&self) {
        gate::attach(&self.parts.bus, &self.receiving);
    }

    /// Tidies the disk, and ends an attempt that the image before had only prepared. Until then nothing is received and no update begins.
    ///
    /// # Errors
    /// A file cannot be written; the next start does the rest.
    pub async fn tidy(&self, permit: OwnedSemaphorePermit) -> Result<(), UpdateError> {
        self.endings.give_up_prepared().await;
        self.receiving.tidy(permit).await
    }

    /// Returns the owner of what arrives.
    pub fn receiving(&self) -> &Arc<Receiving> {
        &self.receiving
    }

    /// Returns the journal.
    pub fn journal(&self) -> Journal {
        self.journal.current()
    }

    /// Returns what an update under way is doing.
    pub fn view(&self) -> Option<wire::Update> {
        self.steps.view()
    }

    /// Returns the store of the releases on disk.
    pub fn store(&self) -> &Store {
        &self.parts.store
    }

    /// Removes release `version`. Returns how large it was, in bytes; `None` if that is not known any more.
    ///
    /// # Errors
    /// It is needed, or not there: nothing was changed. Or its files cannot be removed.
    pub async fn remove(&self, version: Version) -> Result<Option<u64>, UpdateError> {
        self.house.remove(version).await
    }

    /// Returns the configuration files of the running release that wait for the admin. Blocks.
    #[must_use]
    pub fn unmerged(&self) -> Vec<Unmerged> {
        config::unmerged(&self.parts.store, self.journal().state.wanted())
    }

    /// Returns what of the running release's live configuration cannot be read. Blocks.
    #[must_use]
    pub fn unread(&self) -> Vec<Unread> {
        config::unread_live(&self.parts.store.config_dir(self.journal().state.wanted()))
    }

    /// Returns how long what is trusted is good. Blocks.
    ///
    /// # Errors
    /// The home's trust is missing or damaged.
    pub fn trust_status(&self) -> Result<TrustStatus, UpdateError> {
        Ok(self.parts.trust.status(clock::now())?)
    }

    /// Returns the attempts that ended, oldest first. Blocks.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn history(&self) -> Result<Vec<Entry>, UpdateError> {
        self.journal.history().map_err(|source| UpdateError::Io { what: "read the history", source })
    }

    /// Returns the ticket `id` of an update or a rollback, as the journal or the history has it, when no other is known. Blocks.
    pub fn ticket_of(&self, id: &str) -> Option<wire::Ticket> {
        self.endings.ticket_of(id)
    }

    /// Begins an update or a rollback. Returns its ticket.
    ///
    /// # Errors
    /// It cannot begin: nothing was changed.
    pub fn begin(&self, target: Target, kind: Kind, who: &str) -> Result<wire::Ticket, UpdateError> {
        self.check_running()?;
        let (ticket, begun) = self.transaction.begin(target, kind, who, None)?;
        self.spawn(Arc::clone(&self.transaction).run(begun));
        Ok(ticket)
    }

    /// Returns whether the release `version` is on the disk, whole or not. Blocks for a look at it.
    pub fn is_here(&self, version: &Version) -> bool {
        !matches!(self.parts.store.release(version), Err(StoreError::Unknown { .. }))
    }

    /// Returns an error if an update cannot begin now.
    ///
    /// # Errors
    /// Another one is under way, or the site does not run.
    pub fn check_free(&self) -> Result<(), UpdateError> {
        self.check_running()?;
        self.steps.claim().map(drop)
    }

    /// Fetches the release `version` of the repository, or the newest that is newer than the running one, and begins the update to it, of
    /// which `ticket` is told. Returns false if there is none that is newer.
    ///
    /// # Errors
    /// It cannot be fetched, or the update cannot begin; the running release is untouched.
    pub async fn fetch_and_begin(
        &self,
        version: Option<Version>,
        ticket: wire::Ticket,
        who: &str,
    ) -> Result<bool, UpdateError> {
        let version = match version {
            Some(version) => version,
            None => match self.receiving.check_repository().await?.newer {
                Some(version) => version,
                None => return Ok(false),
            },
        };
        let target = if self.is_here(&version) {
            Target::Version(version)
        } else {
            Target::Digest(self.receiving.fetch(version, false).await?.digest)
        };
        self.check_running()?;
        let (_, begun) = self.transaction.begin(target, Kind::Update, who, Some(ticket))?;
        self.spawn(Arc::clone(&self.transaction).run(begun));
        Ok(true)
    }

    /// Returns an error unless an update can begin: the site has to run, and the home to be tidy.
    fn check_running(&self) -> Result<(), UpdateError> {
        match self.parts.bus.state() {
            bus::State::Running if !self.receiving.is_tidy() => Err(UpdateError::NotRunning { state: "Starting" }),
            bus::State::Running => Ok(()),
            state @ (bus::State::Initial
            | bus::State::Entering
            | bus::State::Idle
            | bus::State::Starting
            | bus::State::Stopping
            | bus::State::Exiting
            | bus::State::Exited) => Err(UpdateError::NotRunning { state: state.name() }),
        }
    }

    /// Asks for the replacement of this image by a new one of the same release, in which every component stays.
    ///
    /// # Errors
    /// The program cannot take over; nothing was asked.
    pub async fn restart_in_place(&self, bus: &Bus, origin: Origin) -> Result<Ticket, UpdateError> {
        restart::restart_in_place(&self.parts, bus, origin).await
    }

    /// Asks as [`Manager::restart_in_place`] does, for somebody who waits for no answer: a refusal goes to the log.
    pub async fn restart_or_log(&self, bus: &Bus, origin: Origin) {
        restart::restart_or_log(&self.parts, bus, origin).await;
    }

    /// Decides what follows a failed start: the way back if this release is on trial. Otherwise an appliance that ran before
    /// runs on without the components that did not start, which are tried again; one that starts for the first time ends, for
    /// whoever starts it must hear of that.
    pub fn start_failed(&self, faults: &[Fault]) -> AfterFailure {
        let is_trial = matches!(self.journal().state, State::Trial { .. });
        if let Some(replacement) = self.trial.start_failed(faults) {
            return AfterFailure::Replace(replacement);
        }
        let parts = &self.parts;
        let is_process =
            |fault: &&Fault| parts.components.iter().any(|process| process.definition().name == fault.component);
        // What listens from outside, of a component or of the operator, is named so as nothing else is. It serves nobody itself.
        let is_peer = |fault: &Fault| fault.component.contains(['/', '@']);
        let ran = parts.is_successor || parts.bus.ran();
        if is_trial || !ran || !faults.iter().all(|fault| is_process(&fault) || is_peer(fault)) {
            return AfterFailure::Exit;
        }
        let failed = faults.iter().filter(is_process).map(|fault| fault.component.clone()).collect();
        self.spawn(revive::revive(parts.bus.clone(), parts.components.clone(), failed));
        AfterFailure::Run
    }

    /// Goes on once the site runs: tells how the last attempts ended, and watches a release on trial.
    pub async fn site_runs(&self) {
        self.spawn(Arc::clone(&self.endings).pay_debts());
        match self.trial.site_runs().await {
            Some(attempt) => self.spawn(Arc::clone(&self.trial).watch(attempt)),
            // What the attempt before left, or what a smaller `keep` does without.
            None => self.spawn(Arc::clone(&self.house).tidy_or_log()),
        }
    }

    /// Returns whether this image ends so that the guard selects the release anew.
    pub fn yields_to_guard(&self) -> bool {
        self.trial.yields_to_guard()
    }

    /// Shows that the last step of this image has come.
    pub fn about_to_exec(&self) {
        self.transaction.about_to_exec();
    }

    /// Returns when this image journaled a trial, on the monotonic clock.
    pub fn trial_ns(&self) -> Option<u64> {
        self.transaction.trial_ns()
    }

    /// Runs `work` as long as this process image lives.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).spawn(work);
    }

    /// Ends every task of the manager: this process image is over.
    pub fn end(&self) {
        lock(&self.tasks).abort_all();
    }
}
