//! Whether a process ignores a signal, as the kernel says it: proc_pid_status(5).
//!
//! Whether a signal would end a process cannot be told from outside: a thread that waits for it with `sigwait` looks like one that
//! knows nothing of it.

use std::fs;
use std::io;

use rustix::process::Signal;

/// Returns whether the process `pid` ignores `signal` because its program, or what started it, said so.
///
/// # Errors
/// There is no such process.
pub(crate) fn ignores(pid: i32, signal: Signal) -> io::Result<bool> {
    Ok(has(&fs::read_to_string(format!("/proc/{pid}/status"))?, "SigIgn", signal))
}

/// Returns whether `signal` is in the set `mask` of a status.
fn has(status: &str, mask: &str, signal: Signal) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix(mask)?.strip_prefix(':'));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    bits & (1 << (signal.as_raw() - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_found_in_the_set_of_those_that_are_ignored() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000801\nSigCgt:\t0000000000000200\n";
        let rows = [(Signal::HUP, true), (Signal::USR1, false), (Signal::USR2, true), (Signal::WINCH, false)];
        for (signal, expected) in rows {
            assert_eq!(has(status, "SigIgn", signal), expected, "{signal:?}");
        }
        assert!(!has("", "SigIgn", Signal::HUP));
    }
}
