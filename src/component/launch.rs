//! `refit launch`: the last step before a component's or runtime's program, in its own process.
//!
//! Some things only the child can do: put its own PID into `LISTEN_PID`, become another user. Doing them in a small program
//! between fork and the real exec needs no `unsafe` code between fork and exec.

use std::ffi::{CString, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::unistd::{User, setgid, setgroups, setuid};

use crate::error::Exit;
use crate::handover::inherit::VARIABLES;
use crate::handover::{exec, fd};

/// What the child is to become.
#[derive(Debug, clap::Args)]
pub struct Launch {
    /// How many descriptors from 3 on are its sockets.
    #[arg(long, default_value_t = 0)]
    pub listen_fds: usize,
    /// It is a component: the next descriptor after them is a pipe on which a failure is reported; its end means success.
    #[arg(long)]
    pub report: bool,
    /// Leave signals as they are: the program keeps them blocked until it has handlers.
    #[arg(long)]
    pub keep_blocked: bool,
    /// The account to run as.
    #[arg(long)]
    pub user: Option<String>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// Becomes the program. Returns only if that failed.
pub fn main(launch: Launch) -> Exit {
    let count = launch.listen_fds + usize::from(launch.report);
    let mut inherited = match fd::take(count) {
        Ok(inherited) => inherited,
        Err(error) => return failed(None, &format!("cannot take the descriptors: {error}")),
    };
    let report = if launch.report { inherited.pop() } else { None };
    match become_program(&launch, inherited) {
        Ok(never) => match never {},
        Err(error) => failed(report, &error.to_string()),
    }
}

fn failed(report: Option<OwnedFd>, text: &str) -> Exit {
    let written = match report {
        Some(report) => std::fs::File::from(report).write_all(text.as_bytes()),
        None => writeln!(io::stderr().lock(), "refit: {text}"),
    };
    drop(written); // nobody is left to hear of it
    Exit::Failed
}

fn become_program(launch: &Launch, sockets: Vec<OwnedFd>) -> io::Result<std::convert::Infallible> {
    let Some(program) = launch.command.first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    let mut command = Command::new(program);
    command.args(&launch.command[1..]);
    for variable in VARIABLES {
        if launch.listen_fds == 0 || variable != "LISTEN_FDNAMES" {
            command.env_remove(variable);
        }
    }
    if launch.listen_fds > 0 {
        command.env("LISTEN_PID", std::process::id().to_string()).env("LISTEN_FDS", launch.listen_fds.to_string());
    }
    if let Some(user) = &launch.user {
        change_user(user)?;
    }
    for socket in sockets {
        fd::keep_over_exec(socket)?;
    }
    if !launch.keep_blocked {
        exec::unblock_signals()?;
    }
    // Also gives SIGPIPE its default action back, which this program, like all in Rust, ignores.
    let error = command.exec();
    Err(io::Error::other(format!("cannot execute {}: {error}", program.display())))
}

/// Groups first, then group, then user: after the last there is no way to do the others.
fn change_user(name: &str) -> io::Result<()> {
    let user = User::from_name(name)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no account {name}")))?;
    if nix::unistd::geteuid() == user.uid {
        return Ok(());
    }
    let refused = |error: nix::errno::Errno| {
        io::Error::other(format!("cannot become the account {name}: {}", io::Error::from(error)))
    };
    let account = CString::new(name)?;
    let groups = nix::unistd::getgrouplist(&account, user.gid).map_err(refused)?;
    setgroups(&groups).map_err(refused)?;
    setgid(user.gid).map_err(refused)?;
    setuid(user.uid).map_err(refused)
}

/// Returns the pipe on which [`main`] reports: reading end, and writing end for the child.
///
/// # Errors
/// No descriptor is left.
pub(super) fn report_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(reader.as_fd(), true)?;
    Ok((reader, writer))
}
