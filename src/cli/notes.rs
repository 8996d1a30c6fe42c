//! Notes that several commands give an admin.

use serde_json::Value;

use super::table::cell;

/// Returns what an admin should know of a configuration file that was not merged.
pub(super) fn unmerged(version: &Value, path: &Value, new_default: &Value) -> String {
    let dir = format!("config/{}", cell(version));
    format!(
        "{dir}/{} is as you left it; the release's default, which changed the same lines, is {dir}/{}: take from it what you need, then \
         remove it",
        cell(path),
        cell(new_default),
    )
}

/// Returns what is said of a clock that is before `released`, the date of a signed release.
pub(super) fn clock_behind(released: &str) -> String {
    format!("the clock is before the date of a signed release, so no date can be judged: set it (released {released})")
}
