//! Signals to a process that is known by a descriptor, so that a PID that was used again is never hit.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::config::ReloadSignal;

/// A process, unmistakable.
#[derive(Debug)]
pub(super) struct Handle {
    pid: Pid,
    descriptor: OwnedFd,
}

impl Handle {
    /// Returns a handle on the process `pid`, if it still is the one that began at `start_ticks`.
    ///
    /// # Errors
    /// There is no such process, or it is another one.
    pub(super) fn open(pid: i32, start_ticks: Option<u64>) -> io::Result<Self> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let pid = Pid::from_raw(pid).ok_or_else(gone)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
        // Compared after the descriptor was opened: from then on the number cannot change its meaning.
        if let Some(expected) = start_ticks
            && Stat::of(pid.as_raw_pid())?.began != expected
        {
            return Err(gone());
        }
        Ok(Self { pid, descriptor })
    }

    /// Returns the PID.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Returns the descriptor: readable once the process has ended.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Asks the process to end. One that has ended is no error.
    pub(super) fn terminate(&self) {
        self.send(Signal::TERM);
    }

    /// Ends the process.
    pub(super) fn kill(&self) {
        self.send(Signal::KILL);
    }

    /// Ends the process and has the system keep what was in it, where it does that.
    pub(super) fn abort(&self) {
        self.send(Signal::ABORT);
    }

    /// Tells the process to read its settings again. One that has ended is no error.
    pub(super) fn reload(&self, signal: ReloadSignal) {
        self.send(match signal {
            ReloadSignal::Hup => Signal::HUP,
            ReloadSignal::Usr1 => Signal::USR1,
            ReloadSignal::Usr2 => Signal::USR2,
            ReloadSignal::Winch => Signal::WINCH,
        });
    }

    fn send(&self, signal: Signal) {
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(process.pid = self.pid(), %error, "cannot signal a process"),
        }
    }
}

/// What the kernel says of a process: proc_pid_stat(5).
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    /// Whether it runs; one that has ended and was not collected yet does not.
    pub(super) lives: bool,
    /// The process that started it, or inherited it.
    pub(super) parent: i32,
    /// The process that began its session.
    pub(super) session: i32,
    /// When it began, in the kernel's clock ticks.
    pub(super) began: u64,
}

impl Stat {
    /// Returns what the kernel says of the process `pid`.
    ///
    /// # Errors
    /// There is no such process.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may contain anything; what follows its last one is the third field and on.
        let read = || {
            let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            Some(Self {
                lives: !matches!(*words.first()?, "Z" | "X"),
                parent: words.get(1)?.parse().ok()?,
                session: words.get(3)?.parse().ok()?,
                began: words.get(19)?.parse().ok()?,
            })
        };
        read().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_another_beginning_is_another_process() {
        let pid = i32::try_from(std::process::id()).expect("fits");
        let ticks = Stat::of(pid).expect("this process").began;
        assert_eq!(Handle::open(pid, Some(ticks)).expect("opened").pid(), pid);
        assert!(Handle::open(pid, Some(ticks + 1)).is_err());
    }
}
