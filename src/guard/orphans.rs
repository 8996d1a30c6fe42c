//! Processes that nobody supervises any more.
//!
//! Two kinds: components of an earlier life whose guard and runtime were both killed, found by their environment before
//! anything is started; and whatever is still the guard's child when everything else has ended.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::say::say;
use crate::home::Home;
use crate::process::environ::{Environment, STOP_SIGNAL, TOKEN};
use crate::process::stat::{all_pids, all_processes};

/// How long leftover processes may take to end before they are killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long components may take to end that no runtime is there to stop: longer than most say, for the guard does not know what
/// they say.
const COMPONENT_GRACE: Duration = Duration::from_secs(30);
/// How long to wait for the kernel to remove a killed process.
const KILL_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often to look: these processes are not our children, and few starts have any.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Ends the components of an earlier life of the appliance in `home`.
pub(super) fn end_all(home: &Home) {
    let found = of_home(home);
    if found.is_empty() {
        return;
    }
    say(&format!("ending {} process(es) that an earlier guard left behind", found.len()));
    for pid in &found {
        ask(*pid);
    }
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && !of_home(home).is_empty() {
        std::thread::sleep(LOOK_AGAIN);
    }
    let deadline = Instant::now() + KILL_WAIT_MAX;
    while Instant::now() < deadline {
        let left = of_home(home);
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Returns the processes whose environment says that they are, or come from, a component of `home`.
fn of_home(home: &Home) -> Vec<Pid> {
    let mut wanted = b"REFIT_HOME=".to_vec();
    wanted.extend_from_slice(home.path().as_os_str().as_bytes());
    let is_component = |pid: &i32| {
        Environment::of(*pid)
            .is_ok_and(|environment| environment.contains(&wanted) && environment.value(TOKEN).is_some())
    };
    all_pids().filter(is_component).map(Pid::from_raw).collect()
}

/// Asks every child of this process to end, and waits until all have, or a time that is enough for most is over, or `hurry` says
/// so, which is asked again and again.
pub(super) fn ask_children(mut hurry: impl FnMut() -> bool) {
    let deadline = Instant::now() + COMPONENT_GRACE;
    let mut asked = BTreeSet::new();
    while Instant::now() < deadline && !hurry() {
        let children = collect_children();
        if children.is_empty() {
            return;
        }
        // What they have started becomes this process's child when they end, and is asked then.
        for child in children.into_iter().filter(|child| asked.insert(*child)) {
            ask(child);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Asks a process to end, by the signal that its component names.
fn ask(pid: Pid) {
    let environment = Environment::of(pid.as_raw()).unwrap_or_default();
    let named = environment.value(STOP_SIGNAL).and_then(|name| std::str::from_utf8(name).ok()?.parse().ok());
    let _ = kill(pid, named.unwrap_or(Signal::SIGTERM));
}

/// Kills what is still a child of this process, until nothing is.
pub(super) fn end_children() {
    let deadline = Instant::now() + KILL_WAIT_MAX;
    while Instant::now() < deadline {
        let children = collect_children();
        if children.is_empty() {
            return;
        }
        for child in children {
            let _ = kill(child, Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_AGAIN); // killed, but not gone yet
    }
}

/// Collects the children that have ended. Returns those that live.
fn collect_children() -> Vec<Pid> {
    while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        if status.pid().is_none() {
            break;
        }
    }
    let own = Pid::this().as_raw();
    all_processes().into_iter().filter(|(_, stat)| stat.parent == own).map(|(pid, _)| Pid::from_raw(pid)).collect()
}
