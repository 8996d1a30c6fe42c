//! The runtime as the guard's child: how it is started, and what it last printed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use refit_base::{Cause, Exit};
use semver::Version;

use crate::handover::Named;
use crate::handover::exec::EXECUTING;
use crate::handover::fd::FIRST;
use crate::handover::inherit::VARIABLES;
use crate::home::Home;
use crate::logs::journal::VARIABLE as JOURNAL;

/// How many of the runtime's last lines are kept for the history.
const TAIL_LINES_MAX: usize = 40;
/// The longest line that is kept whole.
const LINE_BYTES_MAX: usize = 2048;
/// How much is copied at once: a pipe or terminal that can take anything can take this much without blocking.
const COPY_BYTES: usize = 4096;

/// Returns the program that is the runtime of `version`: what its `[runtime] binary` names, or else `installed`.
///
/// An unreadable `appliance.toml` also means the installed program: it says what is wrong better than the guard could.
pub(super) fn program(home: &Home, version: &Version, installed: &Path) -> PathBuf {
    let release = home.release(version);
    let named = std::fs::read_to_string(release.join("appliance.toml"))
        .ok()
        .and_then(|text| text.parse::<toml::Table>().ok())
        .and_then(|table| Some(table.get("runtime")?.get("binary")?.as_str()?.to_owned()));
    match named {
        Some(name) if release.join(&name).is_file() => release.join(name),
        Some(_) | None => installed.to_owned(),
    }
}

/// Starts `program` as the runtime with `descriptors`, its output going to `output` and its components' to `journal`, if there is
/// one. Returns its PID.
///
/// # Errors
/// No process or descriptor is left.
pub(super) fn start(
    program: &Path,
    home: &Home,
    installed: &Path,
    descriptors: Vec<Named>,
    output: &OwnedFd,
    journal: Option<&Path>,
) -> io::Result<u32> {
    let names: Vec<String> = descriptors.iter().map(|part| part.name.clone()).collect();
    let mappings = descriptors
        .into_iter()
        .zip(FIRST..)
        .map(|(part, child_fd)| FdMapping { parent_fd: part.descriptor, child_fd })
        .collect();
    // The launcher is this very program, even when its file was replaced: it puts the child's own PID into LISTEN_PID.
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["launch", "--keep-blocked", "--listen-fds"])
        .arg(names.len().to_string())
        .arg("--")
        .arg(program)
        .args(["runtime", "--home"])
        .arg(home.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command
        .env("LISTEN_FDNAMES", names.join(":"))
        .env("NOTIFY_SOCKET", home.guard_socket())
        .env("REFIT_INSTALLED", installed);
    match journal {
        Some(socket) => command.env(JOURNAL, socket),
        None => command.env_remove(JOURNAL),
    };
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
            Exit::Done | Exit::Usage | Exit::Refused | Exit::Unavailable | Exit::Failed | Exit::Config => told,
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

/// The runtime's output: copied to the guard's own standard error, the last lines kept.
#[derive(Debug)]
pub(super) struct Output {
    reader: File,
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl Output {
    /// Returns the reading end for a pipe.
    pub(super) fn new(reader: OwnedFd) -> Self {
        Self { reader: File::from(reader), lines: VecDeque::new(), partial: Vec::new() }
    }

    /// Returns the descriptor to poll.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Copies what is there. What standard error cannot take at once is dropped: the guard never waits for a reader.
    pub(super) fn copy(&mut self) {
        let mut bytes = [0; COPY_BYTES];
        while let Ok(count @ 1..) = self.reader.read(&mut bytes) {
            self.remember(&bytes[..count]);
            let stderr = io::stderr();
            let mut writable = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut writable, PollTimeout::ZERO) == Ok(1)
                && writable[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT))
            {
                // A reader that is gone is no reason to do anything else.
                drop(stderr.lock().write_all(&bytes[..count]));
            }
        }
    }

    fn remember(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' || self.partial.len() >= LINE_BYTES_MAX {
                if self.lines.len() == TAIL_LINES_MAX {
                    self.lines.pop_front();
                }
                let line = String::from_utf8_lossy(&self.partial).into_owned();
                self.partial.clear();
                if line.strip_prefix("refit: ").is_some_and(|text| text.starts_with(EXECUTING)) {
                    self.lines.clear(); // what comes now is another program's
                } else {
                    self.lines.push_back(line);
                }
            }
            if *byte != b'\n' {
                self.partial.push(*byte);
            }
        }
    }

    /// Returns the last lines, and begins anew for the next runtime.
    pub(super) fn take_lines(&mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.remember(b"\n");
        }
        self.lines.drain(..).collect()
    }
}
