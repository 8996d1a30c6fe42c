//! The process at the other end of a Unix socket, as the kernel says it when the connection is made.

use std::collections::BTreeSet;
use std::path::PathBuf;

use nix::unistd::{Uid, User};

use super::cgroup;
use super::environ::{Environment, TOKEN};
use super::stat::{Stat, groups_of};

/// How many parents of a process are looked at: deeper than any shell is nested.
pub(super) const PARENTS_MAX: usize = 64;

/// How many parents of a caller are looked at: who has more of them has made them to be taken for somebody else.
const LINE_MAX: usize = 256;
/// How often a line is read again of which a process ended meanwhile.
const LINE_TRIES: usize = 5;

/// One process on the way from a caller to the first of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ancestor {
    /// The process.
    pub(crate) pid: i32,
    /// Its process group.
    pub(crate) group: i32,
    /// The process that began its session.
    pub(crate) session: i32,
    /// When it began, in the kernel's clock ticks.
    pub(crate) start_ticks: u64,
}

/// Who is at the other end, as the kernel says it when the connection is made: later the process may be another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The account.
    pub(crate) uid: u32,
    /// The process; none if it is outside of what this process can see.
    pub(crate) pid: Option<i32>,
    /// The process and its parents, nearest first; none if it is gone.
    pub(crate) line: Vec<Ancestor>,
    /// Whether the line leads to the first process of all: else it is not known what is above.
    is_whole: bool,
    /// The token in its environment, if that can be read.
    pub(crate) token: Option<String>,
    /// The directory of its control group, where there is one.
    pub(crate) control_group: Option<PathBuf>,
    /// The groups that it is a member of, by number.
    pub(crate) groups: BTreeSet<u32>,
}

impl Caller {
    /// Returns who the kernel says made a connection.
    pub(crate) fn new(uid: u32, pid: Option<i32>) -> Self {
        let (mut line, mut is_whole) = (Vec::new(), pid.is_none_or(|pid| pid <= 0));
        for _ in 0..LINE_TRIES {
            if is_whole {
                break;
            }
            (line, is_whole) = line_of(pid.unwrap_or(0));
        }
        let environment = pid.and_then(|pid| Environment::of(pid).ok()).unwrap_or_default();
        let token = environment.values(TOKEN).find_map(|token| std::str::from_utf8(token).ok()).map(str::to_owned);
        let control_group = pid.and_then(cgroup::dir_of);
        let groups = pid.map(groups_of).unwrap_or_default();
        Self { uid, pid, line, is_whole, token, control_group, groups }
    }

    /// Returns the name of its account, or the number if it has none.
    pub(crate) fn account(&self) -> String {
        let user = User::from_uid(Uid::from_raw(self.uid)).ok().flatten();
        user.map_or_else(|| format!("uid {}", self.uid), |user| user.name)
    }

    /// Returns whether one of the processes `above` is above it, or may be: it is not known what is.
    pub(crate) fn may_be_below(&self, above: &[i32]) -> bool {
        !self.is_whole || self.line.iter().skip(1).any(|process| above.contains(&process.pid))
    }

    /// Returns whether it was gone when it was looked at. One that cannot be seen from here is not.
    pub(crate) fn is_gone(&self) -> bool {
        self.pid.is_some_and(|pid| pid > 0) && self.line.is_empty()
    }
}

/// Returns the process `pid` and its parents, and whether that is all of them. Parents that end meanwhile leave their children to others.
fn line_of(pid: i32) -> (Vec<Ancestor>, bool) {
    let mut line = Vec::new();
    let mut next = pid;
    while next > 0 && line.len() < LINE_MAX {
        let Ok(Stat { group, session, began, parent, .. }) = Stat::of(next) else { return (line, false) };
        line.push(Ancestor { pid: next, group, session, start_ticks: began });
        next = parent;
    }
    (line, next <= 0)
}

#[cfg(test)]
mod tests {
    use nix::unistd::geteuid;

    use super::super::stat::is_ending;
    use super::*;

    #[test]
    fn a_process_is_found_with_its_parents() {
        let pid = i32::try_from(std::process::id()).expect("fits");
        let caller = Caller::new(geteuid().as_raw(), Some(pid));
        assert_eq!(caller.line.first().map(|process| process.pid), Some(pid));
        assert!(caller.line.len() > 1 && !caller.is_gone() && !is_ending(pid));
        assert!(Caller::new(0, Some(i32::MAX)).is_gone() && is_ending(i32::MAX));
        assert!(!Caller::new(0, None).is_gone());
        let parent = i32::try_from(std::os::unix::process::parent_id()).expect("fits");
        assert!(caller.may_be_below(&[parent]) && !caller.may_be_below(&[pid]));
        assert!(Caller::new(0, Some(i32::MAX)).may_be_below(&[]), "nothing is known of it");
        assert!(caller.groups.contains(&nix::unistd::getegid().as_raw()));
    }
}
