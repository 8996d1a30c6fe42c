//! Notes that several commands give an admin.

use serde_json::Value;

use super::table::cell;

/// Returns what an admin should know of a configuration file that was not merged.
pub(super) fn unmerged(version: &Value, path: &Value, new_default: &Value, because: &Value) -> String {
    let dir = format!("config/{}", cell(version));
    let (left, changed) = match because.as_str() {
        Some("kind") => ("is as you left it", "which is of another kind (file, directory or link)"),
        Some("removed") => ("is not there, as you left it", "which changed"),
        Some("unread") => ("could not be carried over", "which is not in its place"),
        _lines => ("is as you left it", "which changed the same lines"),
    };
    format!(
        "{dir}/{} {left}; the release's default, {changed}, is {dir}/{}: take from it what you need, then remove it",
        cell(path),
        cell(new_default),
    )
}

/// Returns that a reload waits to be confirmed, as status and ticket show it; `None` if there is none.
pub(super) fn unconfirmed(reload: &Value) -> Option<String> {
    let (until, generation) = (reload["until"].as_str()?, cell(&reload["generation"]));
    Some(format!(
        "generation {generation} of the settings waits to be confirmed until {until}, else it is reverted: refit bus request confirm"
    ))
}

/// Returns what an update has to say of a configuration file, and whether that is a warning; nothing of most.
pub(super) fn merged(from: &Value, to: &Value, file: &Value) -> Option<(bool, String)> {
    let (path, outcome) = (&file["path"], &file["outcome"]);
    let dir = format!("config/{}", cell(to));
    let name = cell(path);
    if let Some(conflict) = outcome.get("conflict") {
        return Some((true, unmerged(to, path, &conflict["new_default"], &conflict["because"])));
    }
    if let Some(lost) = outcome.get("not-carried") {
        let was = format!("config/{}/{name}", cell(from));
        return Some((true, format!("{was} was not carried over to {dir}: {}", cell(&lost["why"]))));
    }
    if let Some(beside) = outcome.get("beside") {
        let earlier = cell(&beside["earlier"]);
        let said = format!(
            "{dir}/{earlier} is what you had made of {name} when this release ran before; it has been changed in another way since: take from it \
             what you need, then remove it"
        );
        return Some((true, said));
    }
    (outcome == "restored").then(|| (false, format!("{dir}/{name} is as you left it when this release ran before")))
}

/// Returns what an admin should know of a part of the configuration that cannot be read.
pub(super) fn unread(version: &Value, path: &Value, why: &Value) -> String {
    let name = match path.as_str() {
        Some("") | None => String::new(),
        Some(path) => format!("/{path}"),
    };
    format!("config/{}{name} cannot be read: {}", cell(version), cell(why))
}

/// Returns what is said of a clock that is before `released`, the date of a signed release.
pub(super) fn clock_behind(released: &str) -> String {
    format!("the clock is before the date of a signed release, so no date can be judged: set it (released {released})")
}
