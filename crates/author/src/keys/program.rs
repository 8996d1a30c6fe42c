//! One run of a program that signs: bytes in, bytes out, and a limit for the time it takes.
//!
//! The program stays in the process group of whoever runs it. In one of its own it could not ask for a PIN on the terminal,
//! and Ctrl-C would not reach it. So only the program itself is ended when it is late, not what it has started; that may
//! hold the pipes for as long as it likes, for nobody waits until they are closed.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What has so many bytes is no signature: one of RSA with 8192 bits has 1 KiB.
const SIGNATURE_BYTES_MAX: usize = 2 << 10;
/// How much of what a program says is repeated; the rest is read and dropped.
const COMPLAINT_BYTES_MAX: usize = 1 << 10;
/// What is read at once. More than is kept of either pipe: one read after the end gets all that is still missing.
const READ_BYTES: usize = 4 << 10;

/// What became of a program.
#[derive(Debug)]
pub(super) struct Run {
    /// How it ended; `None` if it was still running at its limit and was killed.
    pub(super) status: Option<ExitStatus>,
    /// The beginning of what it wrote to standard output; `None` if that is still open.
    pub(super) output: Option<Vec<u8>>,
    /// The beginning of what it wrote to standard error.
    pub(super) complaint: Vec<u8>,
}

/// Runs `command` with `input` as its standard input, for no longer than `limit`.
///
/// # Errors
/// The program could not be started or watched; it does not run.
pub(super) fn run(command: &mut Command, input: &[u8], limit: Duration) -> io::Result<Run> {
    let deadline = Instant::now() + limit;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let run = attend(&mut child, input, deadline);
    if !run.as_ref().is_ok_and(|run| run.status.is_some()) {
        // One that ended by itself in this moment needs no kill; one that hangs in a driver does not die of it, and its
        // end is not waited for here.
        drop(child.kill());
        thread::spawn(move || child.wait());
    }
    run
}

/// Feeds and hears a program until it has ended and has closed its standard output, or failed, or is late.
fn attend(child: &mut Child, input: &[u8], deadline: Instant) -> io::Result<Run> {
    let mut stdin = child.stdin.take();
    let mut output = Heard { pipe: child.stdout.take(), bytes: Vec::new() };
    let mut complaint = Heard { pipe: child.stderr.take(), bytes: Vec::new() };
    let end = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    unblock(stdin.as_ref())?;
    unblock(output.pipe.as_ref())?;
    unblock(complaint.pipe.as_ref())?;
    let (mut rest, mut status) = (input, None::<ExitStatus>);
    while status.is_none_or(|status| status.success() && output.pipe.is_some()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let mut waiting = Vec::with_capacity(4);
        waiting.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        waiting.extend(output.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        waiting.extend(complaint.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        if status.is_none() {
            waiting.push(PollFd::new(end.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut waiting, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // None of these waits. Asked for its end first: what it said before that is in the pipes then.
        if status.is_none() {
            status = child.try_wait()?;
        }
        feed(&mut stdin, &mut rest);
        output.hear(SIGNATURE_BYTES_MAX);
        complaint.hear(COMPLAINT_BYTES_MAX);
        if output.bytes.len() == SIGNATURE_BYTES_MAX {
            output.pipe = None; // no signature: the rest of it is not wanted
        }
    }
    Ok(Run { status, output: output.pipe.is_none().then_some(output.bytes), complaint: complaint.bytes })
}

/// A pipe, until it is closed, and what is kept of what came.
struct Heard<P> {
    pipe: Option<P>,
    bytes: Vec<u8>,
}

impl<P: Read> Heard<P> {
    /// Reads what is there, and keeps `kept_max` bytes in all.
    fn hear(&mut self, kept_max: usize) {
        let mut chunk = [0; READ_BYTES];
        match self.pipe.as_mut().map(|pipe| pipe.read(&mut chunk)) {
            None => {}
            Some(Ok(length @ 1..)) => {
                let kept = length.min(kept_max - self.bytes.len());
                self.bytes.extend_from_slice(&chunk[..kept]);
            }
            Some(Err(error)) if later(&error) => {}
            // What cannot be read is missing, and a signature that is missing is refused.
            Some(Ok(0) | Err(_)) => self.pipe = None,
        }
    }
}

/// Writes what fits into the pipe, and closes it after the last byte.
fn feed(pipe: &mut Option<ChildStdin>, rest: &mut &[u8]) {
    match pipe.as_mut().map(|pipe| pipe.write(rest)) {
        None => {}
        Some(Ok(written)) => *rest = &rest[written..],
        Some(Err(error)) if later(&error) => return,
        // A program that does not read to the end cannot sign: what it writes is refused.
        Some(Err(_)) => *rest = &[],
    }
    if rest.is_empty() {
        *pipe = None;
    }
}

fn later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Makes this end of a pipe one that nobody waits at; the program's end is another.
fn unblock(pipe: Option<&impl AsFd>) -> io::Result<()> {
    if let Some(pipe) = pipe {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, getpgrp};
    use tempfile::TempDir;

    use super::*;

    /// Much longer than a test takes, and than a program that is ended at its limit.
    const LONG: Duration = Duration::from_secs(100);
    /// Long enough for a shell to begin.
    const SHORT: Duration = Duration::from_secs(3);
    /// What outlives both, and is ended by the test.
    const SLEEPER: &str = "sleep 120 & echo $! >sleeper";

    /// Runs a shell in `dir`, and asserts that it took less than [`LONG`].
    fn shell(dir: &Path, script: &str, input: &[u8], limit: Duration) -> Run {
        let began = Instant::now();
        let run = run(Command::new("sh").args(["-c", script]).current_dir(dir), input, limit).unwrap();
        assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
        run
    }

    fn code(run: &Run) -> Option<i32> {
        run.status.and_then(|status| status.code())
    }

    fn end_sleeper(dir: &Path) {
        let pid = std::fs::read_to_string(dir.join("sleeper")).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn bytes_go_in_and_out_however_many_there_are() {
        let dir = TempDir::new().unwrap();
        let input = vec![b'x'; 1_000_000]; // more than a pipe holds, and more than anybody reads in one go
        let got = shell(dir.path(), "wc -c; cat >&2", &input, LONG);
        assert_eq!((code(&got), got.output.unwrap().trim_ascii()), (Some(0), b"1000000".as_slice()));
        let got = shell(dir.path(), "printf signature", &input, LONG);
        assert_eq!((code(&got), got.output.unwrap()), (Some(0), b"signature".to_vec()), "it need not read");
    }

    #[test]
    fn whoever_says_much_is_heard_to_the_end_and_repeated_from_the_beginning() {
        let dir = TempDir::new().unwrap();
        let script = "echo token is locked >&2; head -c 1000000 /dev/zero >&2 || exit 9; printf signature; exit 3";
        let got = shell(dir.path(), script, b"", LONG);
        assert_eq!((code(&got), got.complaint.len()), (Some(3), COMPLAINT_BYTES_MAX));
        assert!(got.complaint.starts_with(b"token is locked\n"));
        let got = shell(dir.path(), "exec head -c 1000000 /dev/zero", b"", LONG);
        assert_eq!((code(&got), got.output.unwrap().len()), (None, SIGNATURE_BYTES_MAX), "no signature");
    }

    #[test]
    fn nobody_waits_for_what_the_program_has_started() {
        let dir = TempDir::new().unwrap();
        // Late, and its child holds all pipes.
        let got = shell(dir.path(), &format!("echo touch the token >&2; {SLEEPER}; wait"), b"", SHORT);
        assert!(got.status.is_none() && got.output.is_none(), "{got:?}");
        assert_eq!(got.complaint, b"touch the token\n");
        end_sleeper(dir.path());
        // Done: only its standard error is held open.
        let got = shell(dir.path(), &format!("({SLEEPER}) >/dev/null; printf signature"), b"", LONG);
        assert_eq!((code(&got), got.output.unwrap()), (Some(0), b"signature".to_vec()));
        end_sleeper(dir.path());
        // Done, but whoever holds its standard output may still write.
        let got = shell(dir.path(), &format!("{SLEEPER}; printf signature"), b"", SHORT);
        assert_eq!((code(&got), got.output), (Some(0), None));
        end_sleeper(dir.path());
        // Failed: nothing that comes could change that.
        let got = shell(dir.path(), &format!("{SLEEPER}; exit 3"), b"", LONG);
        assert_eq!((code(&got), got.output), (Some(3), None));
        end_sleeper(dir.path());
    }

    #[test]
    fn a_program_that_closes_its_output_has_the_same_limit_and_is_ended() {
        let dir = TempDir::new().unwrap();
        let got = shell(dir.path(), "echo $$ >sleeper; printf signature; exec >&- 2>&-; exec sleep 120", b"", SHORT);
        assert_eq!((got.status, got.output), (None, Some(b"signature".to_vec())));
        let pid: i32 = std::fs::read_to_string(dir.path().join("sleeper")).unwrap().trim().parse().unwrap();
        // Killed, and reaped in time: its number names nobody any more.
        let began = Instant::now();
        while kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH) {
            assert!(began.elapsed() < LONG);
            thread::yield_now();
        }
    }

    #[test]
    fn a_program_stays_where_the_terminal_reaches_it() {
        let dir = TempDir::new().unwrap();
        let got = shell(dir.path(), "exec cut -d ' ' -f 5 /proc/self/stat", b"", LONG);
        assert_eq!(got.output.unwrap().trim_ascii(), getpgrp().to_string().as_bytes());
    }
}
