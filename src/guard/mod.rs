//! The guard: the parent that outlives every runtime. One thread, no async runtime.
//!
//! It owns the home's lock, a store of descriptors, and the decision which release runs: it asks
//! [`select_release`](refit_updater::journal::select_release) before each start. It binds no network address, opens no
//! package and knows no component; being the subreaper it only collects what dies, tells the runtime, and at the very end leaves no
//! process behind. To the runtime it is a service manager (readiness, status, watchdog, descriptor store); to systemd it is a
//! `Type=notify` service.
//!
//! It is the last resort: once anything serves, it ends only when it is asked to. Whatever keeps a runtime from starting is
//! taken for passing trouble, and tried again ([`supervise`]).

mod backoff;
mod child;
mod damage;
mod deadlines;
mod decisions;
mod inbox;
mod installed;
mod manager;
mod orphans;
mod output;
mod say;
mod store;
mod supervise;

use std::io;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use refit_base::{Chain, Exit, Report, Reported};
use refit_updater::journal::{self, JournalError};
use refit_updater::{Store, durable, spare};

use self::decisions::Decisions;
use self::say::say;
use self::supervise::Guard;
use crate::handover::{Named, names};
use crate::home::{Home, HomeError, HomeLock, PidFile};
use crate::process::cgroup;
use crate::process::resources::Resources;

/// What the guard cannot start with.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The home cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The system refused something that every start needs.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
}

impl Reported for GuardError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Home(error) => error.report(),
            Self::Journal(error) => error.report(),
            Self::System { .. } => {
                Report::new("system_refused", Exit::Failed, "check the limits of the system; nothing was changed")
            }
        }
    }
}

/// Returns the error of a system call that was to do `what`.
fn system(what: &'static str) -> impl FnOnce(io::Error) -> GuardError {
    move |source| GuardError::System { what, source }
}

/// What the guard is given by whoever starts it.
#[derive(Debug)]
pub struct Given {
    /// The home.
    pub home: Home,
    /// This program's file: the runtime of a release that brings none.
    pub installed: PathBuf,
    /// Descriptors from a service manager.
    pub descriptors: Vec<Named>,
    /// The service manager's `NOTIFY_SOCKET`.
    pub manager: Option<PathBuf>,
    /// Whether to end when the process that started this one ends.
    pub with_parent: bool,
    /// The journal's socket, if standard error goes to the journal.
    pub journal: Option<PathBuf>,
    /// What this process had before it was given more: what the runtime begins with.
    pub found: Resources,
}

/// Runs the appliance until it is asked to end. Returns the exit status.
///
/// # Errors
/// Nothing could be started; nothing is left running.
pub fn run(given: Given) -> Result<Exit, GuardError> {
    let home = &given.home;
    home.make_passable();
    home.require_own()?;
    home.repair(say);
    home.check_owner()?;
    journal::recall(home.path())?.ok_or_else(|| home.without_journal())?;
    let lock = HomeLock::acquire(home, std::process::id(), || say("waiting for the previous runtime to end"))?;
    for name in Store::make_missing(home.path()).map_err(HomeError::File)? {
        say(&format!("the directory {name} of the home was missing; it was made again"));
    }
    // Read again: a runtime that just ended may have written it.
    let (decisions, trouble) = Decisions::recalled(home.path())?;
    if let Some(trouble) = trouble {
        say(&trouble);
    }
    if given.with_parent {
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)
            .map_err(io::Error::from)
            .map_err(system("watch the parent process"))?;
    }
    if let Err(error) = spare::keep(home.path()) {
        say(&format!("no blocks can be put aside for a full disk: {error}"));
    }
    let _pid_file = PidFile::write(home, std::process::id(), &lock)?;
    let mut guard = Guard::new(given, &lock, decisions)?;
    if !guard.keeps(names::STATE) {
        orphans::end_all(guard.home());
    }
    let exit = guard.supervise();
    guard.trouble_is_over();
    guard.manager.say_last();
    guard.leave_journal();
    guard.give_up_reserve();
    if guard.keeps(names::INSTANCE) && !guard.is_in_a_hurry() {
        // The runtime that would have stopped them is gone.
        say("no runtime is there to stop the components; asking them to end");
        orphans::ask_children(|| guard.is_in_a_hurry());
    }
    orphans::end_children();
    cgroup::remove_all(guard.home().path());
    for name in ["guard.sock", "refit.sock", "bus.sock"] {
        if let Err(error) = std::fs::remove_file(guard.home().run().join(name))
            && error.kind() != io::ErrorKind::NotFound
        {
            say(&format!("cannot remove run/{name}: {error}"));
        }
    }
    if let Err(error) = durable::remove_tree(&guard.home().socket_names()) {
        say(&format!("cannot remove the second names of the sockets: {error}"));
    }
    exit
}

/// Runs the guard and prints why it could not run. Returns the exit status.
pub fn main(given: Given) -> Exit {
    match run(given) {
        Ok(exit) => exit,
        Err(error) => {
            say(&format!("{}; {}", Chain(&error), error.remedy()));
            error.exit()
        }
    }
}
