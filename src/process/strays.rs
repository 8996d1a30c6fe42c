//! Processes that a runtime had started when it was killed, and had not written down yet.
//!
//! They are known by their environment, and have this process's parent, the guard, above them. A health command of the runtime
//! that was killed is one of them: nobody waits for its answer. So is a child of it that has not executed its program yet, and then has
//! the environment of a runtime.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::getppid;

use super::caller::PARENTS_MAX;
use super::cgroup::LOOK_AGAIN;
use super::environ::{Environment, HEALTH, TOKEN};
use super::handle::Handle;
use super::stat::{Stat, all_pids};
use crate::handover::channel;

/// How long the kernel may take to remove what was killed.
const END_MAX: Duration = Duration::from_secs(5);

/// Ends every process that was started for a component of `home` with a launch token that is not among `tokens`. Returns how many
/// there were.
pub(crate) fn end_all(home: &Path, tokens: &BTreeSet<String>) -> usize {
    let deadline = Instant::now() + END_MAX;
    let mut ended: BTreeSet<i32> = BTreeSet::new();
    loop {
        let found = find(home, tokens);
        if found.is_empty() || Instant::now() >= deadline {
            return ended.len();
        }
        for (pid, began) in found {
            // One that has ended meanwhile is as good.
            if let Ok(handle) = Handle::open(pid, Some(began)) {
                handle.kill();
                ended.insert(pid);
            }
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn find(home: &Path, tokens: &BTreeSet<String>) -> Vec<(i32, u64)> {
    let mut of_home = b"REFIT_HOME=".to_vec();
    of_home.extend_from_slice(home.as_os_str().as_bytes());
    let of_runtime = format!("{}=1", channel::VARIABLE).into_bytes();
    let is_stray = |environment: &Environment| match environment.value(TOKEN).map(String::from_utf8_lossy) {
        Some(token) => {
            environment.contains(&of_home) && (!tokens.contains(&*token) || environment.value(HEALTH).is_some())
        }
        // The guard gives that to its runtime alone, and this process is not looked at.
        None => environment.contains(&of_runtime),
    };
    let strays = all_pids().filter(|pid| Environment::of(*pid).is_ok_and(|environment| is_stray(&environment)));
    strays.filter_map(|pid| Some((pid, Stat::of(pid).ok()?.began))).filter(|(pid, _)| is_below_guard(*pid)).collect()
}

fn is_below_guard(pid: i32) -> bool {
    let Some(guard) = getppid() else { return false };
    let mut next = pid;
    for _ in 0..PARENTS_MAX {
        match Stat::of(next) {
            Ok(stat) if stat.parent == guard.as_raw_pid() => return true,
            Ok(stat) => next = stat.parent,
            Err(_) => return false,
        }
    }
    false
}
