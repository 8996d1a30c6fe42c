//! A process that is known by a descriptor, and signals to it, so that a PID that was used again is never hit.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::stat::Stat;

/// A process, unmistakable.
#[derive(Debug)]
pub(crate) struct Handle {
    pid: Pid,
    descriptor: OwnedFd,
}

impl Handle {
    /// Returns a handle on the process `pid`, if it still is the one that began at `start_ticks`.
    ///
    /// # Errors
    /// There is no such process, or it is another one.
    pub(crate) fn open(pid: i32, start_ticks: Option<u64>) -> io::Result<Self> {
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
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Returns the descriptor: readable once the process has ended.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Ends the process.
    pub(crate) fn kill(&self) {
        self.send(Signal::KILL);
    }

    /// Ends the process and has the system keep what was in it, where it does that.
    pub(crate) fn abort(&self) {
        self.send(Signal::ABORT);
    }

    /// Sends `signal`. A process that has ended is no error.
    pub(crate) fn send(&self, signal: Signal) {
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(process.pid = self.pid(), %error, "cannot signal a process"),
        }
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
