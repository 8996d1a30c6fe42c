//! What a process started and leaves behind: found and ended, however it got away.
//!
//! Where there is a control group it knows them all. Elsewhere they are known by the session that each component begins, by a
//! mark in the environment that every child inherits, and by their parents. One that empties its environment, begins a
//! session and outlives its parent at once is not found so; it ends with the appliance, whose guard inherits every orphan.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{getpid, getppid};

use super::caller::PARENTS_MAX;
use super::cgroup::{Group, LOOK_AGAIN};
use super::environ::{Environment, TOKEN};
use super::handle::Handle;
use super::stat::{Stat, all_processes};

/// How long the kernel may take to remove what was killed, and what goes on forking may go on.
const END_MAX: Duration = Duration::from_secs(5);

/// Whether this process's parent is the guard, which inherits every orphan.
static PARENT_IS_GUARD: AtomicBool = AtomicBool::new(false);

/// Remembers that the guard is this process's parent. What a process leaves behind is among its children then, or below one.
pub(crate) fn note_guard() {
    PARENT_IS_GUARD.store(true, Ordering::Relaxed);
}

/// Returns the guard, if it is this process's parent.
pub(crate) fn guard() -> Option<u32> {
    PARENT_IS_GUARD.load(Ordering::Relaxed).then(std::os::unix::process::parent_id)
}

/// Returns whether this process is the only child of its parent. A kernel that does not say it is taken to have others.
fn is_only_child() -> bool {
    let Some(parent) = getppid() else { return false };
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children", parent = parent.as_raw_pid()));
    children.is_ok_and(|children| children.trim() == getpid().as_raw_pid().to_string())
}

/// What one process started.
#[derive(Debug, Clone)]
pub(crate) struct Descendants {
    group: Option<Group>,
    /// A whole variable of the environment.
    mark: String,
    /// The process that began the session, and when.
    leader: i32,
    began: u64,
}

impl Descendants {
    /// Returns what the process `leader`, which began at `began`, started: all in `group`, or with `mark` in the environment.
    pub(crate) fn of(group: Option<Group>, mark: String, leader: i32, began: u64) -> Self {
        Self { group, mark, leader, began }
    }

    /// Returns the mark of the component's process that has this launch token.
    pub(crate) fn mark(token: &str) -> String {
        format!("{TOKEN}={token}")
    }

    /// Returns whether the process `pid` is one of them, or the leader itself; `None` if it has ended and cannot be placed any more.
    pub(crate) fn contains(&self, pid: i32) -> Option<bool> {
        let found = Stat::of(pid).ok()?;
        if self.group.as_ref().is_some_and(|group| group.processes().contains(&pid)) {
            return Some(true);
        }
        let (mut next, mut stat) = (pid, found);
        for _ in 0..PARENTS_MAX {
            let is_leader = next == self.leader && stat.began == self.began;
            // Nothing that it started is older than it.
            if is_leader || (stat.began >= self.began && self.is_marked(next, &stat)) {
                return Some(true);
            }
            next = stat.parent;
            match Stat::of(next) {
                Ok(parent) => stat = parent,
                Err(_) => break,
            }
        }
        // Of one that ends, the environment is gone first.
        Stat::of(pid).is_ok_and(|now| !now.is_ending && now.began == found.began).then_some(false)
    }

    /// Returns the PIDs of all of it, the process itself included.
    pub(crate) fn processes(&self) -> Vec<i32> {
        match &self.group {
            Some(group) => group.processes(),
            None => self.find().into_keys().collect(),
        }
    }

    /// Ends all of it, the process itself included. Returns how many others there were.
    pub(crate) async fn end(&self) -> usize {
        if self.are_gone() {
            return 0;
        }
        let descendants = self.clone();
        // Files of the kernel, and pauses: not for an async worker.
        match tokio::task::spawn_blocking(move || descendants.end_now()).await {
            Ok(count) => count,
            Err(error) => {
                tracing::warn!(process.pid = self.leader, %error, "cannot end what a process left behind");
                0
            }
        }
    }

    /// Returns whether nothing is left for sure: usually so of one that has ended, and known without a look at each process.
    fn are_gone(&self) -> bool {
        let has_ended = || Stat::of(self.leader).map_or(true, |stat| !stat.lives || stat.began != self.began);
        match &self.group {
            Some(group) => group.is_empty(),
            None => PARENT_IS_GUARD.load(Ordering::Relaxed) && has_ended() && is_only_child(),
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
        let Ok(environment) = Environment::of(pid) else { return in_session };
        if environment.contains(self.mark.as_bytes()) {
            return true;
        }
        // A number that was used again: another component's session.
        in_session && (!self.has_token() || environment.value(TOKEN).is_none())
    }

    /// Returns whether the mark is a launch token.
    fn has_token(&self) -> bool {
        self.mark.strip_prefix(TOKEN).is_some_and(|rest| rest.starts_with('='))
    }
}
