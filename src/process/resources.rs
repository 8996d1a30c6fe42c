//! What the kernel lets a process have: its place in the order of the OOM killer, and how many files it may open.
//!
//! Guard and runtime are the last that the OOM killer takes, and open as many files as they may: without them everything else is
//! an outage, too. What they start is an ordinary process, and gets back what refit itself was started with. None of this
//! ever fails a start: a system that refuses it runs the appliance without.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Where the kernel keeps a process's place in the order of the OOM killer.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// The place of a process that is never taken.
const OOM_SCORE_MIN: i32 = -1000;
/// More open files than guard and runtime ever need: listeners, processes, parked connections.
const FILES_MAX: u64 = 1 << 20;

/// What a process was started with, and what its children get. `None` is left as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// The place in the order of the OOM killer, from -1000, never, to 1000, first.
    pub oom_score: Option<i32>,
    /// The soft limit of open files.
    pub files: Option<u64>,
}

impl Resources {
    /// Gives this process the best that it may have. Returns what it had.
    pub fn improve() -> Self {
        let found = Self { oom_score: read_oom_score().ok(), files: soft_files() };
        if let Some(score) = found.oom_score {
            lower_oom_score(score);
        }
        set_soft_files(FILES_MAX);
        found
    }

    /// Gives this process what another one had: before it executes an ordinary program, or one that improves itself.
    ///
    /// # Errors
    /// The first that the system refuses; the others are tried all the same.
    pub fn apply(self) -> io::Result<()> {
        let scored = self.oom_score.map_or(Ok(()), |score| {
            // Not written where nothing changes: a system may let nobody write it.
            if read_oom_score().is_ok_and(|now| now == score) { Ok(()) } else { write_oom_score(score) }
        });
        if let Some(files) = self.files {
            set_soft_files(files);
        }
        scored
    }
}

fn read_oom_score() -> io::Result<i32> {
    let mut text = String::new();
    File::open(OOM_SCORE)?.read_to_string(&mut text)?;
    text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

fn write_oom_score(score: i32) -> io::Result<()> {
    OpenOptions::new().write(true).open(OOM_SCORE)?.write_all(score.to_string().as_bytes())
}

/// Goes from `score` as low as this process may: without `CAP_SYS_RESOURCE` that is where somebody who had it once put it.
fn lower_oom_score(score: i32) {
    if write_oom_score(OOM_SCORE_MIN).is_ok() {
        return;
    }
    // All below some bound is refused, all from it on is not.
    let (mut refused, mut taken) = (OOM_SCORE_MIN, score);
    while taken - refused > 1 {
        let middle = refused + (taken - refused) / 2;
        if write_oom_score(middle).is_ok() { taken = middle } else { refused = middle }
    }
}

fn soft_files() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

/// Sets the soft limit, as far as the hard one allows.
fn set_soft_files(wanted: u64) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = wanted.min(hard);
    if wanted != soft {
        // Below the hard limit everybody may set it; a system that refuses it leaves what was there.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_comes_back() {
        let found = Resources::improve();
        let improved = (read_oom_score().ok(), soft_files());
        assert!(improved.0 <= found.oom_score && improved.1 >= found.files.map(|files| files.min(FILES_MAX)));
        found.apply().expect("raising it is allowed");
        assert_eq!((read_oom_score().ok(), soft_files()), (found.oom_score, found.files));
    }
}
