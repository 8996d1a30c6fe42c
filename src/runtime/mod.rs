//! The runtime: everything put together for one release, in one process image after the other.
//!
//! [`main`] takes what the image was given, lives ([`image`]), and either ends or replaces itself. The exec happens here, on the
//! main thread, after the async runtime has been dropped. If it fails, this image goes on with what it had.

mod announce;
mod assemble;
mod deaths;
mod error;
mod explain;
mod forward;
mod guard_link;
mod hand_over;
mod image;
mod missing;
mod observer;
mod settings;
mod signals;
mod sockets;
mod stderr;
mod transition;
mod unconfirmed;
mod watch;
mod wish;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::time::Duration;

use refit_base::{Cause, Chain, Exit, Reported};
use refit_updater::Store;
use refit_updater::attempt::{Ending, Step};
use refit_updater::config::Live;
use refit_updater::decided;
use refit_updater::journal::{self, State};
use semver::Version;

use self::error::say;
use self::image::End;
use crate::component::fingerprint;
use crate::config::{self, Config, Programs};
use crate::handover::channel::DEATHS;
use crate::handover::exec::{self, EXECUTING, Plan};
use crate::handover::inherit::Inheritance;
use crate::handover::{channel, names, notify};
use crate::home::Home;
use crate::process::descendants;
use crate::process::resources::Resources;

pub use assemble::Given;
pub use error::RuntimeError;
pub use stderr::Stderr;
pub use watch::Inhibitor;

/// How long a blocking task may hold up the exec: nothing that waits for a disk is worth a gap.
const SHUTDOWN_MAX: Duration = Duration::from_millis(500);
/// The fewest worker threads: one that is held up must not hold up the others.
const WORKERS_MIN: usize = 2;

/// Runs the appliance. Returns the exit status.
pub fn main(given: &Given) -> Exit {
    let inherited = match given.announcement.take(std::process::id()) {
        Ok(parts) => parts,
        Err(error) => return say(&format!("cannot take the descriptors that were handed over: {error}"), Exit::Failed),
    };
    let mut inherited = Inheritance::new(inherited);
    if given.environment.contains_key(OsStr::new(channel::VARIABLE)) {
        descendants::note_guard();
    }
    loop {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(WORKERS_MIN, |n| n.get().max(WORKERS_MIN)))
            .enable_all()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return say(&format!("cannot start the async runtime: {error}"), Exit::Failed),
        };
        let channel = inherited.duplicate(names::GUARD);
        let end = runtime.block_on(image::live(given, inherited));
        // From here on a signal waits for the next image.
        if let Err(error) = exec::block_signals() {
            return say(&format!("cannot block signals: {error}"), Exit::Failed);
        }
        runtime.shutdown_timeout(SHUTDOWN_MAX);
        let (program, label, descriptors) = match end {
            Ok(End::Exit(exit)) => return exit,
            Ok(End::Replace { program, label, descriptors }) => (program, label, descriptors),
            Err(error) => {
                tell_errno(given, channel.as_ref(), &error);
                return say(&refit_base::message(&error), error.exit());
            }
        };
        drop(channel); // its number is another's soon
        // The guard keeps what follows this line: the output of the next image.
        say(&format!("{EXECUTING}{}", program.display()), Exit::Done);
        let plan = Plan {
            program: program.clone(),
            arguments: vec![given.called.clone(), "runtime".into(), "--home".into(), given.home.path().into()],
            environment: environment(given),
            descriptors,
        };
        let wanted = plan.descriptors.len();
        // The next image may be an older program, which would leave its components what is this one's; a newer one improves itself.
        let (error, back) = exec::replace(plan, || {
            if let Err(error) = given.found.apply() {
                say(&format!("cannot give back the place in the order of the OOM killer: {error}"), Exit::Failed);
            }
        });
        Resources::improve();
        let reason = format!("cannot execute {}, the runtime of release {label}: {error}", program.display());
        say(&reason, Exit::Failed);
        if let Err(error) = abandon(&given.home, reason, Cause::of(&error)) {
            return say(&Chain(&error).to_string(), Exit::Failed);
        }
        if back.len() < wanted {
            // The guard has a copy of them all: the runtime that it starts goes on.
            return say("the descriptors were lost on the way; ending, so that the guard starts again", Exit::TryLater);
        }
        inherited = Inheritance::new(back);
    }
}

/// Tells the guard what the system said to a runtime that could not start, if it was the system: a release on trial is not to blame
/// then.
fn tell_errno(given: &Given, channel: Option<&OwnedFd>, error: &RuntimeError) {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let number = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if let Some(number) = number {
            // A guard that cannot be reached judges by the status.
            if let Ok(Some(guard)) = guard_link::connect(&given.environment, given.notify.as_deref(), channel) {
                drop(notify::send(&guard, &format!("ERRNO={number}"), &[]));
            }
            return;
        }
        cause = error.source();
    }
}

/// Returns the environment of the next image: without what the guard decided, unless the journal still lacks it.
fn environment(given: &Given) -> Vec<(OsString, OsString)> {
    let decided = assemble::decided(&given.environment);
    let journal = journal::load(given.home.path()).ok().flatten();
    let is_missing = decided.zip(journal).is_some_and(|(decided, journal)| decided.applied_to(&journal).is_some());
    let environment = given.environment.clone().into_iter();
    // The deaths are those of the process image that the guard started: with it they are told.
    let goes_on = |name: &OsString| (is_missing || name != decided::VARIABLE) && name != DEATHS;
    environment.filter(|(name, _)| goes_on(name)).collect()
}

/// Ends the trial of a release whose runtime cannot be executed; without a trial nothing is to be done.
fn abandon(home: &Home, reason: String, cause: Cause) -> Result<(), journal::JournalError> {
    let Some(journal) = journal::load(home.path())? else { return Ok(()) };
    if !matches!(journal.state, State::Trial { .. }) {
        return Ok(());
    }
    match journal.failed(&Ending::now(Step::Exec, reason).with_cause(cause).with_code("exec_failed")) {
        Ok(failed) => journal::store(home.path(), &failed),
        Err(_) => Ok(()), // looked at above
    }
}

/// Reads everything that the release `version` needs, its programs on `search` (`PATH`) included, and starts nothing.
pub fn check(home: &Home, version: &Version, search: Option<&OsStr>) -> Exit {
    match try_check(home, version, search) {
        Ok(()) => Exit::Done,
        Err(error) => say(&refit_base::message(&error), error.exit()),
    }
}

fn try_check(home: &Home, version: &Version, search: Option<&OsStr>) -> Result<(), RuntimeError> {
    // A newer journal than this program knows would leave it unable to run: find out before anything stops.
    journal::load(home.path())?;
    let store = Store::open(home.path())?;
    let release = store.release(version)?;
    let programs = Programs::here(&release.dir, search);
    let config = Config::load_with_programs(&programs, &home.path().join(config::LOCAL_FILE))?;
    fingerprint::of_all(&config, &release.manifest, &Live::read(&store.config_dir(version)))
        .map_err(|source| RuntimeError::Io { what: "describe the components", source })?;
    Ok(())
}
