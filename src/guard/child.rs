//! The runtime as the guard's child: which program it is, and how it is started.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use refit_base::{Cause, Exit};
use refit_updater::decided::{self, Decided};
use semver::Version;

use crate::handover::Named;
use crate::handover::channel::{self, Deaths};
use crate::handover::fd::FIRST;
use crate::handover::inherit::VARIABLES;
use crate::home::Home;
use crate::logs::journal::VARIABLE as JOURNAL;
use crate::process::launch::Begin;
use crate::process::program::{self, Unfit};
use crate::process::resources::Resources;

/// The program that is the runtime of a release.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Its file.
    pub(super) path: PathBuf,
    /// The file that the release names, and why it is not executed, if it is not.
    pub(super) unusable: Option<(PathBuf, String)>,
}

/// Returns the program that is the runtime of `version`: what its `[runtime] binary` names, or else `installed`.
///
/// An unreadable `appliance.toml` also means the installed program: it says what is wrong better than the guard could. So does a file
/// that is missing or not a program, or lies where nothing may be executed.
///
/// # Errors
/// The system cannot say now, and may be able to later.
pub(super) fn program(home: &Home, version: &Version, installed: &Path) -> io::Result<Program> {
    let release = home.release(version);
    let text = match fs::read_to_string(release.join("appliance.toml")) {
        Err(error) if passes(&error) => return Err(error),
        text => text.ok(),
    };
    let named = text
        .and_then(|text| text.parse::<toml::Table>().ok())
        .and_then(|table| Some(table.get("runtime")?.get("binary")?.as_str()?.to_owned()));
    let Some(named) = named else { return Ok(Program { path: installed.to_owned(), unusable: None }) };
    let path = release.join(named);
    match program::look(&path) {
        Ok(()) => Ok(Program { path, unusable: None }),
        Err(Unfit::Unknown(error)) if passes(&error) => Err(error),
        Err(unfit) => Ok(Program { path: installed.to_owned(), unusable: Some((path, unfit.to_string())) }),
    }
}

/// Returns whether what the system refuses now may be granted later, so that it is worth waiting for. That is another question than
/// [whose trouble](Cause::of) it is: a file that is a socket is the machine's, and stays one, and the installed program runs instead.
fn passes(error: &io::Error) -> bool {
    const PASSING: [i32; 7] =
        [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::EINTR, libc::EIO, libc::ESTALE];
    error.raw_os_error().is_some_and(|number| PASSING.contains(&number))
}

/// What a runtime is started with.
pub(super) struct Start<'a> {
    pub(super) program: &'a Path,
    pub(super) home: &'a Home,
    /// The program of a release that brings none.
    pub(super) installed: &'a Path,
    /// What the guard itself was started with.
    pub(super) found: Resources,
    pub(super) descriptors: Vec<Named>,
    /// Where its output goes.
    pub(super) output: &'a OwnedFd,
    /// Where its components' output goes, too.
    pub(super) journal: Option<&'a Path>,
    /// What the journal does not say.
    pub(super) decided: Option<Decided>,
    /// The runtimes before it that died.
    pub(super) deaths: Option<&'a Deaths>,
}

/// Starts a runtime. Returns its PID.
///
/// # Errors
/// No process, memory or descriptor is left, or this program cannot be executed. Nothing was started.
pub(super) fn start(start: Start<'_>) -> io::Result<u32> {
    let names: Vec<String> = start.descriptors.iter().map(|part| part.name.clone()).collect();
    let mappings = start
        .descriptors
        .into_iter()
        .zip(FIRST..)
        .map(|(part, child_fd)| FdMapping { parent_fd: part.descriptor, child_fd })
        .collect();
    // The launcher is this very program, even when its file was replaced: it puts the child's own PID into LISTEN_PID.
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["launch", "--keep-blocked", "--no-shell", "--listen-fds"])
        .arg(names.len().to_string())
        // The runtime may be an older program, whose components would keep what is the guard's.
        .args(Begin::with(start.found).arguments())
        .arg("--")
        .arg(start.program)
        .args(["runtime", "--home"])
        .arg(start.home.path())
        .stdin(Stdio::null())
        .stdout(start.output.try_clone()?)
        .stderr(start.output.try_clone()?);
    for variable in VARIABLES.into_iter().chain([JOURNAL, decided::VARIABLE, channel::DEATHS]) {
        command.env_remove(variable);
    }
    command
        .env("LISTEN_FDNAMES", names.join(":"))
        .env("NOTIFY_SOCKET", start.home.guard_socket())
        .env(channel::VARIABLE, "1")
        .env(channel::KEEPS_PROCESSES, "1")
        .env("REFIT_INSTALLED", start.installed);
    if let Some(socket) = start.journal {
        command.env(JOURNAL, socket);
    }
    if let Some(decided) = start.decided {
        command.env(decided::VARIABLE, decided.to_text());
    }
    if let Some(deaths) = start.deaths.and_then(|deaths| serde_json::to_string(deaths).ok()) {
        command.env(channel::DEATHS, deaths);
    }
    // Its own group: Ctrl-C on the terminal is for the guard, which passes it on once.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.fd_mappings(mappings).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(command.spawn()?.id())
}

/// Returns how a child ended, for people.
pub(super) fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("ended with status {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("was ended by signal {} ({signal})", signal as i32),
        WaitStatus::Stopped(..)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_) => "changed its state".to_owned(),
    }
}

/// Returns whose trouble it was that a runtime ended so. `errno` is what the system said to it, if it has told that.
pub(super) fn cause(status: WaitStatus, errno: Option<i32>, hung: bool) -> Cause {
    let told = errno.map_or(Cause::Release, Cause::of_errno);
    match status {
        WaitStatus::Exited(_, code) => match Exit::from_code(code) {
            Exit::Disk | Exit::TryLater => Cause::Machine,
            Exit::Done
            | Exit::Degraded
            | Exit::Down
            | Exit::Usage
            | Exit::Refused
            | Exit::Unavailable
            | Exit::Failed
            | Exit::Config => told,
        },
        // Somebody outside ended it: the kernel, for want of memory, or a person. The guard ends it only if it hangs.
        WaitStatus::Signaled(_, Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP, _) if !hung => {
            Cause::Machine
        }
        WaitStatus::Signaled(..)
        | WaitStatus::Stopped(..)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_) => Cause::Release,
    }
}
