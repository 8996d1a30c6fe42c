//! Processes as the kernel shows them: what they execute, which descriptors they hold, whose they are.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Sends a signal to a process of ours.
pub(crate) fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|error| panic!("cannot send {signal} to process {pid}: {error}"));
}

/// Sends a signal to a process, unless it has ended.
pub(crate) fn try_send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).ok(); // gone already is as good
}

/// Returns the words of the command that a process was executed with, if it is there.
pub(crate) fn arguments(pid: i32) -> Option<Vec<String>> {
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    Some(words.split_terminator('\0').map(str::to_owned).collect())
}

/// Returns whether the process runs; one that has ended and was not collected yet does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
}

/// Returns the signals that the process has blocked, as the kernel's mask.
pub(crate) fn blocked_signals(pid: i32) -> u64 {
    signals(pid, "SigBlk:")
}

/// Returns the signals that the process ignores, as the kernel's mask.
pub(crate) fn ignored_signals(pid: i32) -> u64 {
    signals(pid, "SigIgn:")
}

fn signals(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_else(|error| panic!("{pid}: {error}"));
    let mask = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel says it");
    u64::from_str_radix(mask.trim(), 16).expect("a mask")
}

/// Returns the soft and the hard limit of open files of the process.
pub(crate) fn file_limits(pid: i32) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_else(|error| panic!("{pid}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the kernel says it");
    let mut words = line.split_whitespace();
    [(); 2].map(|()| words.next().and_then(|word| word.parse().ok()).unwrap_or(u64::MAX))
}

/// Returns where the process is in the order of the kernel's OOM killer: the higher, the sooner.
pub(crate) fn oom_score(pid: i32) -> i32 {
    let text =
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_else(|error| panic!("{pid}: {error}"));
    text.trim().parse().expect("a number")
}

/// Returns the file that the process executes.
pub(crate) fn program(pid: i32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_else(|error| panic!("process {pid} is gone: {error}"))
}

/// Returns the living processes that name `home` on their command line or in their environment.
pub(crate) fn of_home(home: &Path) -> Vec<i32> {
    let wanted = home.as_os_str().as_bytes();
    let names_it =
        |path: String| fs::read(path).is_ok_and(|bytes| bytes.windows(wanted.len()).any(|window| window == wanted));
    fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != std::process::id() as i32)
        .filter(|pid| names_it(format!("/proc/{pid}/cmdline")) || names_it(format!("/proc/{pid}/environ")))
        .filter(|pid| is_alive(*pid))
        .collect()
}

/// Returns how many descriptors of each kind a process holds: `socket`, `pipe`, or what else the kernel calls it.
pub(crate) fn descriptors(pid: i32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap_or_else(|error| panic!("process {pid}: {error}"));
    for entry in entries.flatten() {
        // One that was closed since is none.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let kind = match target.split_once(":[") {
            Some((kind @ ("socket" | "pipe" | "pidfd"), _)) => kind.to_owned(),
            _ if target.starts_with("/memfd:") => "memfd".to_owned(),
            _ => target,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// Returns the inodes of the sockets that a process holds.
pub(crate) fn socket_inodes(pid: i32) -> Vec<u64> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap_or_else(|error| panic!("process {pid}: {error}"))
        .filter_map(|entry| {
            let target = fs::read_link(entry.ok()?.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

/// The kernel's number of the state `LISTEN`.
const LISTEN: &str = "0A";

/// Returns the rows of one of the kernel's tables of sockets.
fn sockets(table: &str) -> Vec<Vec<String>> {
    let table = fs::read_to_string(format!("/proc/net/{table}")).expect("the kernel lists its sockets");
    table.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// Returns the inodes of a process's sockets that are connections: over TCP, or accepted from a Unix socket with a name.
pub(crate) fn connections(pid: i32) -> Vec<u64> {
    let own = socket_inodes(pid);
    let inode = |row: &Vec<String>, column: usize| row.get(column)?.parse().ok();
    let tcp = sockets("tcp").into_iter().filter(|row| row[3] != LISTEN).filter_map(|row| inode(&row, 9));
    // Of what has a path, a stream that does not listen was accepted.
    let accepted = |row: &Vec<String>| row.len() == 8 && row[4] == "0001" && row[3] == "00000000";
    let unix = sockets("unix").into_iter().filter(accepted).filter_map(|row| inode(&row, 6));
    tcp.chain(unix).filter(|inode| own.contains(inode)).collect()
}

/// Returns the rows of the kernel's table for the sockets that listen on this port of 127.0.0.1.
fn listening(port: u16) -> Vec<Vec<String>> {
    let wanted = format!("0100007F:{port:04X}");
    sockets("tcp")
        .into_iter()
        .filter(|row| row.get(1) == Some(&wanted) && row.get(3).is_some_and(|state| state == LISTEN))
        .collect()
}

/// Returns the inodes of all sockets that listen on this port of 127.0.0.1.
pub(crate) fn listening_inodes(port: u16) -> Vec<u64> {
    listening(port).iter().filter_map(|row| row.get(9)?.parse().ok()).collect()
}

/// Returns how many connections to this port of 127.0.0.1 nobody has accepted yet.
pub(crate) fn backlog(port: u16) -> u64 {
    let waiting = |row: &Vec<String>| u64::from_str_radix(row.get(4)?.split(':').nth(1)?, 16).ok();
    listening(port).iter().filter_map(waiting).sum()
}
