//! Which limit of a component is kept by what: a control group, a limit of the process, or nothing, said as it is.

use std::collections::BTreeMap;

use crate::carry::{CarriedLimit, LimitBy};
use crate::config::Limits;
use crate::process::cgroup::{Cgroups, Controller, Group};
use crate::process::launch::Begin;

const MEMORY: &str = "memory";
const CPU: &str = "cpu";
const FILES: &str = "files";
const PROCESSES: &str = "processes";

/// Has `limits` kept for a process of an account that `is_root` (nothing counts the processes of that): those that `group` can
/// keep are written to it. Returns what keeps each.
pub(super) fn apply(
    limits: &Limits,
    cgroups: &Cgroups,
    group: Option<&Group>,
    is_root: bool,
) -> BTreeMap<String, CarriedLimit> {
    let in_group = |controller: Controller, value: u64| {
        let Some(group) = group.filter(|_| cgroups.has(controller)) else { return false };
        match group.limit(controller, value) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(path = %group.path().display(), %error, "cannot set a limit of a control group");
                false
            }
        }
    };
    let by = |controller: Controller, value: u64, otherwise: LimitBy| {
        if in_group(controller, value) { LimitBy::Cgroup } else { otherwise }
    };
    let processes_otherwise = if is_root { LimitBy::None } else { LimitBy::Rlimit };
    [
        (MEMORY, limits.memory.map(|value| (value, by(Controller::Memory, value, LimitBy::Rlimit)))),
        (CPU, limits.cpu.map(|value| (value, by(Controller::Cpu, value, LimitBy::None)))),
        (FILES, limits.files.map(|value| (value, LimitBy::Rlimit))),
        (PROCESSES, limits.processes.map(|value| (value, by(Controller::Pids, value, processes_otherwise)))),
    ]
    .into_iter()
    .filter_map(|(name, kept)| kept.map(|(value, by)| (name.to_owned(), CarriedLimit { value, by })))
    .collect()
}

/// Puts into `begin` what the process itself has to be limited by.
pub(super) fn begin_with(kept: &BTreeMap<String, CarriedLimit>, begin: &mut Begin) {
    let own = |name: &str| kept.get(name).filter(|limit| limit.by == LimitBy::Rlimit).map(|limit| limit.value);
    begin.limit_memory = own(MEMORY);
    begin.limit_files = own(FILES);
    begin.limit_processes = own(PROCESSES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_groups_a_process_keeps_what_it_can() {
        let limits = Limits { memory: Some(1 << 28), cpu: Some(50), files: Some(64), processes: Some(8) };
        let by = |is_root: bool| {
            let kept = apply(&limits, &Cgroups::none("a test"), None, is_root);
            let mut begin = Begin::default();
            begin_with(&kept, &mut begin);
            let by = [MEMORY, CPU, FILES, PROCESSES].map(|name| kept[name].by);
            (by, [begin.limit_memory, begin.limit_files, begin.limit_processes])
        };
        let (rlimit, none) = (LimitBy::Rlimit, LimitBy::None);
        assert_eq!(by(false), ([rlimit, none, rlimit, rlimit], [Some(1 << 28), Some(64), Some(8)]));
        assert_eq!(by(true), ([rlimit, none, rlimit, none], [Some(1 << 28), Some(64), None]));
        assert!(apply(&Limits::default(), &Cgroups::none("a test"), None, false).is_empty());
    }
}
