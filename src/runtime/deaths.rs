//! The runtimes before this one that died one after the other: a fault as long as this image lives, and a line of the history.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use refit_bus::Fault;
use refit_updater::attempt::{Outcome, Step};
use refit_updater::history::{self, Entry, EntryKind};

use crate::handover::channel::{DEATHS, Deaths};

/// Who tells of them, where a request has the account that asked.
const GUARD: &str = "guard";

/// Returns those that the guard tells of in `environment`.
pub(super) fn told(environment: &BTreeMap<OsString, OsString>) -> Option<Deaths> {
    serde_json::from_str(environment.get(OsStr::new(DEATHS))?.to_str()?).ok()
}

/// Returns them as a fault. It is none of this image, so its exit status does not know it.
pub(super) fn fault(deaths: &Deaths) -> Fault {
    Fault {
        component: "runtime".to_owned(),
        priority: None,
        phase: "run".to_owned(),
        cause: deaths.describe(),
        at: deaths.at.clone(),
        output: deaths.output.clone(),
        trouble: deaths.cause,
    }
}

/// Records the last of them in the history of `home`. Blocks.
pub(super) fn record(deaths: &Deaths, home: &Path) {
    if !deaths.is_recorded() {
        return;
    }
    let entry = Entry {
        id: format!("crash-{}-{}", deaths.since, deaths.count),
        at: deaths.at.clone(),
        who: GUARD.to_owned(),
        kind: EntryKind::Crash,
        from: deaths.release.clone(),
        to: deaths.release.clone(),
        outcome: Outcome::Failed,
        step: Step::Running,
        reason: Some(deaths.describe()),
        reason_code: Some("runtime_died".to_owned()),
        component: None,
        output: deaths.output.clone(),
        duration_ms: 0,
        durations: BTreeMap::new(),
        cause: Some(deaths.cause),
        exit: None,
    };
    if let Err(error) = history::append(home, &entry) {
        tracing::warn!(%error, "cannot record in the history that the runtime died; the next death is recorded with its number");
    }
}

#[cfg(test)]
mod tests {
    use refit_base::Cause;
    use semver::Version;

    use super::*;

    #[test]
    fn what_the_guard_tells_is_read_and_one_that_dies_for_ever_leaves_room() {
        let deaths = |count: u32| Deaths {
            count,
            release: Version::new(1, 0, 0),
            how: "was ended by signal 11 (SIGSEGV)".to_owned(),
            cause: Cause::Release,
            since: "2026-01-01T00:00:00Z".to_owned(),
            at: "2026-01-01T00:01:00Z".to_owned(),
            output: vec!["\u{e4}".to_owned()],
        };
        let text = serde_json::to_string(&deaths(2)).expect("text");
        let environment = BTreeMap::from([(OsString::from(DEATHS), OsString::from(text))]);
        assert_eq!(told(&environment), Some(deaths(2)));
        assert_eq!(told(&BTreeMap::from([(OsString::from(DEATHS), OsString::from("{}"))])), None);
        let home = tempfile::tempdir().expect("a directory");
        for count in 2..=3000 {
            record(&deaths(count), home.path());
            record(&deaths(count), home.path());
        }
        let entries = history::read(home.path()).expect("read");
        assert_eq!(entries.len(), 7 + 8, "2 to 8, then 16, 32, 64 and so on to 2048");
    }
}
