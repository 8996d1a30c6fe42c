//! What the kernel's table says of a process: the only place that reads `/proc/PID/stat`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::Duration;

/// The kernel's mark of a process that is being taken apart.
const EXITING: u64 = 4;

/// What the kernel says of a process: proc_pid_stat(5).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    /// Whether it runs; one that has ended and was not collected yet does not.
    pub(crate) lives: bool,
    /// Whether it has ended, or is about to.
    pub(crate) is_ending: bool,
    /// The process that started it, or inherited it.
    pub(crate) parent: i32,
    /// Its process group.
    pub(crate) group: i32,
    /// The process that began its session.
    pub(crate) session: i32,
    /// When it began, in the kernel's clock ticks.
    pub(crate) began: u64,
}

impl Stat {
    /// Returns what the kernel says of the process `pid`.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may contain anything; what follows its last one is the third field and on.
        let read = || {
            let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let lives = !matches!(*words.first()?, "Z" | "X");
            let flags: u64 = words.get(6)?.parse().ok()?;
            Some(Self {
                lives,
                is_ending: !lives || flags & EXITING != 0,
                parent: words.get(1)?.parse().ok()?,
                group: words.get(2)?.parse().ok()?,
                session: words.get(3)?.parse().ok()?,
                began: words.get(19)?.parse().ok()?,
            })
        };
        read().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// Returns the account of the process `pid`: the real one, which the kernel names with a message, too.
///
/// # Errors
/// There is no such process.
pub(crate) fn account_of(pid: i32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let real = numbers.and_then(|numbers| numbers.split_whitespace().next()?.parse().ok());
    real.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Returns the groups of the process `pid`, by number: its own and the further ones; none if it is gone.
pub(crate) fn groups_of(pid: i32) -> BTreeSet<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let lines = status.lines().filter_map(|line| line.strip_prefix("Gid:").or_else(|| line.strip_prefix("Groups:")));
    lines.flat_map(str::split_whitespace).filter_map(|number| number.parse().ok()).collect()
}

/// Returns how long ago a process began whose beginning the kernel's table gives as `began`.
pub(crate) fn age(began: u64) -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
    let ticks = rustix::param::clock_ticks_per_second();
    now.saturating_sub(Duration::from_millis(began.saturating_mul(1000) / ticks.max(1)))
}

/// Returns whether the process has ended, or is about to.
pub(crate) fn is_ending(pid: i32) -> bool {
    Stat::of(pid).ok().is_none_or(|stat| stat.is_ending)
}

/// Returns every process but this one, whether it lives or waits to be collected.
pub(crate) fn all_pids() -> impl Iterator<Item = i32> {
    let own = rustix::process::getpid().as_raw_pid();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(move |pid| *pid != own)
}

/// Returns what lives, without this process: what has ended and waits for its parent does not.
pub(crate) fn all_processes() -> BTreeMap<i32, Stat> {
    let known = all_pids().filter_map(|pid| Some((pid, Stat::of(pid).ok()?)));
    known.filter(|(_, stat)| stat.lives).collect()
}
