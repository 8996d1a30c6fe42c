//! A reload that has to be confirmed, outside of the bus: what everybody is told of it, its line of the history, and what is left of
//! one when the runtime ends in the middle.
//!
//! The wait is the bus's, which reverts before it stops anything: so it never crosses an exec. A runtime that dies cannot; the document
//! that it leaves names what waited, and the next image says that the wait ended without a confirmation.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use refit_base::{Cause, clock};
use refit_bus::{Asked, ConfirmStep, Unconfirmed};
use refit_updater::attempt::{Outcome, Step};
use refit_updater::history::{self, Entry, EntryKind};
use semver::Version;

use crate::wire::Event;
use crate::wire::event::{ReloadAnswer, ReloadConfirmed, ReloadEnded, ReloadReverted};

/// Why one was lost.
const LOST: &str = "the runtime ended before it was confirmed or reverted: what is on the disk is in force";

/// Returns the event that tells of `step`.
pub(super) fn event(reload: &Unconfirmed, step: &ConfirmStep) -> Event {
    let reload = reload.clone().into();
    match step {
        ConfirmStep::Waits => Event::ReloadWaiting(reload),
        ConfirmStep::Confirmed { by } => Event::ReloadConfirmed(ReloadConfirmed { reload, by: by.0.clone() }),
        ConfirmStep::Reverting { why } => Event::ReloadReverting(ReloadEnded { reload, reason: why.clone() }),
        ConfirmStep::Reverted { why, failed, asked } => {
            let answer = |one: &Asked| ReloadAnswer { name: one.listener.clone(), answer: one.answer.into() };
            let (reason, failed) = (why.clone(), failed.clone());
            Event::ReloadReverted(ReloadReverted { reload, reason, failed, asked: asked.iter().map(answer).collect() })
        }
    }
}

/// Returns the event that tells of a reload that was lost with the runtime before.
pub(super) fn lost_event(reload: &Unconfirmed) -> Event {
    Event::ReloadLost(ReloadEnded { reload: reload.clone().into(), reason: LOST.to_owned() })
}

/// Returns the line of the history of `reload`, which the release `version` has taken; `None` while it waits.
pub(super) fn ended(reload: &Unconfirmed, step: &ConfirmStep, version: &Version) -> Option<Entry> {
    match step {
        ConfirmStep::Waits | ConfirmStep::Reverting { .. } => None,
        ConfirmStep::Confirmed { by } => Some(entry(
            reload,
            version,
            (Outcome::Done, Step::Confirmed),
            (by.0 != reload.origin.0).then(|| format!("confirmed by {by}")),
        )),
        ConfirmStep::Reverted { why, failed: None, .. } => {
            Some(entry(reload, version, (Outcome::RolledBack, Step::Reverted), Some(why.clone())))
        }
        ConfirmStep::Reverted { why, failed: Some(failed), .. } => {
            let reason = format!("{why}; not reverted: {}", failed.trim_start());
            Some(entry(reload, version, (Outcome::Failed, Step::Reverted), Some(reason)))
        }
    }
}

/// Returns the line of the history of one that was lost with the runtime before.
pub(super) fn lost(reload: &Unconfirmed, version: &Version) -> Entry {
    entry(reload, version, (Outcome::Failed, Step::Lost), Some(LOST.to_owned()))
}

fn entry(reload: &Unconfirmed, version: &Version, (outcome, step): (Outcome, Step), reason: Option<String>) -> Entry {
    let now = clock::now();
    let since: Timestamp = reload.since.parse().unwrap_or(now);
    let waited = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(0); // the clock may have been set
    Entry {
        // One reload ends once, whoever says so.
        id: format!("reload-{}-{}", reload.since, reload.generation),
        at: clock::rfc3339(now),
        who: reload.origin.0.clone(),
        kind: EntryKind::Reload,
        from: version.clone(),
        to: version.clone(),
        outcome,
        step,
        reason_code: reason.as_ref().map(|_| "not_confirmed".to_owned()),
        reason,
        component: None,
        output: Vec::new(),
        duration_ms: waited,
        durations: BTreeMap::new(),
        cause: (outcome != Outcome::Done).then_some(Cause::Machine),
        exit: None,
    }
}

/// Puts a line into the history of `home`. Blocks.
pub(super) fn record(home: &Path, entry: &Entry) {
    if let Err(error) = history::append(home, entry) {
        let (who, step) = (&entry.who, entry.step.name());
        tracing::warn!(%error, who, step, "cannot record in the history how a reload ended that had to be confirmed");
    }
}

#[cfg(test)]
mod tests {
    use refit_bus::Origin;

    use super::*;

    #[test]
    fn each_end_has_its_line_and_one_reload_has_one() {
        let reload = Unconfirmed {
            request: 3,
            generation: 2,
            origin: Origin("root (local)".to_owned()),
            since: clock::stamp(),
            until: clock::stamp(),
            restores: false,
            listeners: vec!["web/site".to_owned()],
        };
        let version = Version::new(1, 0, 0);
        let line = |step: &ConfirmStep| ended(&reload, step, &version);
        assert_eq!(line(&ConfirmStep::Waits), None);
        assert_eq!(line(&ConfirmStep::Reverting { why: "w".to_owned() }), None);
        let confirmed = line(&ConfirmStep::Confirmed { by: Origin("admin".to_owned()) }).expect("an end");
        assert_eq!((confirmed.outcome, confirmed.reason.as_deref()), (Outcome::Done, Some("confirmed by admin")));
        let step =
            ConfirmStep::Reverted { why: "late".to_owned(), failed: Some("\n    a: no".to_owned()), asked: Vec::new() };
        let failed = line(&step).expect("an end");
        assert_eq!((failed.outcome, failed.reason.as_deref()), (Outcome::Failed, Some("late; not reverted: a: no")));
        let home = tempfile::tempdir().expect("a directory");
        record(home.path(), &confirmed);
        record(home.path(), &lost(&reload, &version)); // the image that had confirmed it died before it had told the guard
        let entries = history::read(home.path()).expect("read");
        assert_eq!(entries.len(), 1, "{entries:?}");
        assert_eq!((entries[0].kind, entries[0].step.clone()), (EntryKind::Reload, Step::Confirmed));
    }
}
