//! Notes that several commands give an admin.

use semver::Version;

use crate::wire::{Clash, MergeOutcome, MergedFile};

/// Returns what an admin should know of a configuration file that was not merged.
pub(super) fn unmerged(version: &Version, path: &str, new_default: &str, because: &Clash) -> String {
    let dir = format!("config/{version}");
    let (left, changed) = match because {
        Clash::Kind => ("is as you left it", "which is of another kind (file, directory or link)"),
        Clash::Removed => ("is not there, as you left it", "which changed"),
        Clash::Unread => ("could not be carried over", "which is not in its place"),
        Clash::Lines | Clash::Other(_) => ("is as you left it", "which changed the same lines"),
    };
    format!(
        "{dir}/{path} {left}; the release's default, {changed}, is {dir}/{new_default}: take from it what you need, then remove it"
    )
}

/// Returns that `generation` of the settings waits to be confirmed until `until`.
pub(super) fn unconfirmed(until: &str, generation: u64) -> String {
    format!(
        "generation {generation} of the settings waits to be confirmed until {until}, else it is reverted: refit bus request confirm"
    )
}

/// Returns what an update has to say of a configuration file, and whether that is a warning; nothing of most.
pub(super) fn merged(from: &Version, to: &Version, file: &MergedFile) -> Option<(bool, String)> {
    let (dir, name) = (format!("config/{to}"), &file.path);
    match &file.outcome {
        MergeOutcome::Conflict { new_default, because } => Some((true, unmerged(to, name, new_default, because))),
        MergeOutcome::NotCarried { why } => {
            Some((true, format!("config/{from}/{name} was not carried over to {dir}: {why}")))
        }
        MergeOutcome::Beside { earlier } => {
            let said = format!(
                "{dir}/{earlier} is what you had made of {name} when this release ran before; it has been changed in another way since: take from it \
                 what you need, then remove it"
            );
            Some((true, said))
        }
        MergeOutcome::Restored => Some((false, format!("{dir}/{name} is as you left it when this release ran before"))),
        MergeOutcome::Unchanged
        | MergeOutcome::Updated
        | MergeOutcome::KeptAdmin
        | MergeOutcome::Merged
        | MergeOutcome::Added
        | MergeOutcome::Removed => None,
    }
}

/// Returns what an admin should know of a part of the configuration that cannot be read.
pub(super) fn unread(version: &Version, path: &str, why: &str) -> String {
    let name = if path.is_empty() { String::new() } else { format!("/{path}") };
    format!("config/{version}{name} cannot be read: {why}")
}

/// Returns what is said of a clock that is before `released`, the date of a signed release.
pub(super) fn clock_behind(released: &str) -> String {
    format!("the clock is before the date of a signed release, so no date can be judged: set it (released {released})")
}
