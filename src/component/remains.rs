//! What a process started and leaves behind: found and ended, however it got away.
//!
//! Where there is a control group it knows them all. Elsewhere they are known by the session that each component begins, by a
//! mark in the environment that every child inherits, and by their parents. One that empties its environment, begins a
//! session and outlives its parent at once is not found so; it ends with the appliance, whose guard inherits every orphan.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use super::cgroup::Group;
use super::signal::{Handle, Stat};

/// How often to look whether something is left: these processes are not our children, nobody tells us.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long the kernel may take to remove what was killed, and what goes on forking may go on.
const END_MAX: Duration = Duration::from_secs(5);
/// The variable that a component and all that it starts have.
const TOKEN: &str = "REFIT_TOKEN=";

/// What one process started.
#[derive(Debug, Clone)]
pub(super) struct Remains {
    group: Option<Group>,
    /// A whole variable of the environment.
    mark: String,
    /// The process that began the session, and when.
    leader: i32,
    began: u64,
}

impl Remains {
    /// Returns what the process `leader`, which began at `began`, started: all in `group`, or with `mark` in the environment.
    pub(super) fn of(group: Option<Group>, mark: String, leader: i32, began: u64) -> Self {
        Self { group, mark, leader, began }
    }

    /// Returns the mark of the component's process that has this launch token.
    pub(super) fn mark(token: &str) -> String {
        format!("{TOKEN}{token}")
    }

    /// Ends all of it, the process itself included. Returns how many others there were.
    pub(super) async fn end(&self) -> usize {
        let remains = self.clone();
        // Files of the kernel, and pauses: not for an async worker.
        match tokio::task::spawn_blocking(move || remains.end_now()).await {
            Ok(count) => count,
            Err(error) => {
                tracing::warn!(process.pid = self.leader, %error, "cannot end what a process left behind");
                0
            }
        }
    }

    fn end_now(&self) -> usize {
        if let Some(group) = &self.group {
            let count = group.processes().iter().filter(|pid| **pid != self.leader).count();
            match group.end() {
                Ok(()) => return count,
                Err(error) => tracing::warn!(%error, "cannot end a control group"),
            }
        }
        let deadline = Instant::now() + END_MAX;
        let mut seen: BTreeMap<i32, u64> = BTreeMap::new();
        loop {
            let mut found = self.find();
            // One that is just ending has no environment any more, and is there all the same.
            let lives = |pid: i32, began: u64| Stat::of(pid).is_ok_and(|stat| stat.lives && stat.began == began);
            found.extend(seen.iter().filter(|(pid, began)| lives(**pid, **began)));
            seen.extend(&found);
            let others = seen.keys().filter(|pid| **pid != self.leader).count();
            if found.is_empty() {
                return others;
            }
            if Instant::now() >= deadline {
                tracing::warn!(process.pid = self.leader, left = ?found, "processes that a component started go on");
                return others;
            }
            for (pid, began) in found {
                // One that ended meanwhile is as good.
                if let Ok(handle) = Handle::open(pid, Some(began)) {
                    handle.kill();
                }
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Returns those that live, with their beginnings.
    fn find(&self) -> BTreeMap<i32, u64> {
        let all = all_processes();
        let mut found: BTreeMap<i32, u64> = BTreeMap::new();
        for (pid, stat) in &all {
            // Nothing that it started is older than it.
            if stat.began >= self.began && self.is_marked(*pid, stat) {
                found.insert(*pid, stat.began);
            }
        }
        loop {
            let more: Vec<(i32, u64)> = all
                .iter()
                .filter(|(pid, stat)| !found.contains_key(pid) && found.contains_key(&stat.parent))
                .map(|(pid, stat)| (*pid, stat.began))
                .collect();
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }

    fn is_marked(&self, pid: i32, stat: &Stat) -> bool {
        let in_session = stat.session == self.leader;
        // Another account's cannot be read; the session and the parents tell those.
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return in_session };
        let mut variables = environment.split(|byte| *byte == 0);
        if variables.clone().any(|variable| variable == self.mark.as_bytes()) {
            return true;
        }
        // A number that was used again: another component's session.
        in_session
            && (!self.mark.starts_with(TOKEN) || !variables.any(|variable| variable.starts_with(TOKEN.as_bytes())))
    }
}

/// Returns what lives, without this process: what has ended and waits for its parent does not.
fn all_processes() -> BTreeMap<i32, Stat> {
    let own = rustix::process::getpid().as_raw_pid();
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| Some((pid, Stat::of(pid).ok()?)))
        .filter(|(_, stat)| stat.lives)
        .collect()
}
