//! How often processes wake up: what the kernel counts as voluntary context switches, thread by thread.
//!
//! A thread that waits and is woken has switched once. One that ended meanwhile is not counted any more: let a process settle
//! before the first look.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::{BenchError, failed};

/// One look at some processes.
pub(crate) struct Look(BTreeMap<String, u64>);

impl Look {
    /// Counts all threads of `processes` whose name begins with `prefix`.
    ///
    /// # Errors
    /// A process is not there, or has no such thread.
    pub(crate) fn at(processes: &[u32], prefix: &str) -> Result<Self, BenchError> {
        let mut counts = BTreeMap::new();
        for process in processes {
            let before = counts.len();
            let tasks = fs::read_dir(format!("/proc/{process}/task")).map_err(failed("look at a process"))?;
            for task in tasks {
                let thread = task.map_err(failed("look at a process"))?.path();
                match switches(&thread, prefix) {
                    Ok(Some(count)) => drop(counts.insert(thread.display().to_string(), count)),
                    Ok(None) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {} // it ended meanwhile
                    Err(error) => return Err(failed("look at a thread")(error)),
                }
            }
            if counts.len() == before {
                return Err(BenchError::Answer { what: "a process", answer: format!("no thread {prefix}...") });
            }
        }
        Ok(Self(counts))
    }

    /// Returns how often they woke up from `before` to this look.
    pub(crate) fn since(&self, before: &Self) -> u64 {
        let woken = |(thread, count): (&String, &u64)| count - before.0.get(thread).copied().unwrap_or(0).min(*count);
        self.0.iter().map(woken).sum()
    }
}

/// Returns the voluntary switches of a thread; `None` if its name does not begin with `prefix`.
fn switches(thread: &Path, prefix: &str) -> io::Result<Option<u64>> {
    let status = fs::read_to_string(thread.join("status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if !field("Name:").is_some_and(|name| name.starts_with(prefix)) {
        return Ok(None);
    }
    let count = field("voluntary_ctxt_switches:").and_then(|text| text.parse().ok());
    count.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel counts no switches"))
}
