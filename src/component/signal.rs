//! Signals to a process that is known by a descriptor, so that a PID that was used again is never hit.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

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
            && self::start_ticks(pid.as_raw_pid())? != expected
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

    /// Ends the process and its whole group.
    pub(super) fn kill(&self) {
        self.send(Signal::KILL);
        self.kill_group();
    }

    /// Ends what is left of the process's group.
    pub(super) fn kill_group(&self) {
        match kill_process_group(self.pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(process.pid = self.pid(), %error, "cannot end a process group"),
        }
    }

    fn send(&self, signal: Signal) {
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(process.pid = self.pid(), %error, "cannot signal a process"),
        }
    }
}

/// Returns when the process `pid` began, in the kernel's clock ticks: field 22 of proc_pid_stat(5).
///
/// # Errors
/// There is no such process.
pub(super) fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything; what follows its last one is numbers.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_another_beginning_is_another_process() {
        let pid = i32::try_from(std::process::id()).expect("fits");
        let ticks = start_ticks(pid).expect("this process");
        assert_eq!(Handle::open(pid, Some(ticks)).expect("opened").pid(), pid);
        assert!(Handle::open(pid, Some(ticks + 1)).is_err());
    }
}
