//! Named crash points: where a test may abort the process to see what a power cut leaves behind.
//!
//! Without the cargo feature `fault` a point compiles to nothing. With it, the environment variable `REFIT_FAULT` names the
//! point at which the process aborts, each time; and `REFIT_FAULT_FILE` names a file that a test may write while the process
//! runs: it holds a point and a number, and the process aborts when it passes that point for that many-th time since, once.

/// Every point there is, in the order in which an update passes them.
pub const POINTS: &[&str] = &[
    "unpacked",      // a tree is whole and synced, without its name in staging
    "renamed",       // any rename of a file or tree, its directories not synced yet
    "staged",        // a package was received
    "temp_synced",   // any file that is replaced: the new content is there, without the name
    "switched",      // any file or link that is replaced: the name is given, its directory not synced yet
    "trust_saved",   // what later packages are measured by is remembered
    "admitted",      // a release has its name
    "config_merged", // a configuration has its name
    "pruned",        // a release is gone
];

/// Passes the point `name`: aborts here when a test asked for it, and does nothing otherwise.
#[cfg(feature = "fault")]
pub fn point(name: &'static str) {
    debug_assert!(POINTS.contains(&name), "{name} is not in POINTS");
    if std::env::var_os("REFIT_FAULT").is_some_and(|wanted| wanted == name) {
        std::process::abort();
    }
    if let Some(file) = std::env::var_os("REFIT_FAULT_FILE") {
        count_down(std::path::Path::new(&file), name);
    }
}

/// Counts one passage in the file that asks for `name`. At the last one the file is removed and the process aborts.
#[cfg(feature = "fault")]
fn count_down(file: &std::path::Path, name: &str) {
    use std::io::Write;
    let Ok(text) = std::fs::read_to_string(file) else { return };
    let Some((wanted, left)) = text.trim().split_once(' ') else { return };
    let Ok(left) = left.parse::<u32>() else { return };
    if wanted != name {
        return;
    }
    if left > 1 {
        // Not through `durable`, which passes points itself.
        let written = std::fs::File::create(file).and_then(|mut file| write!(file, "{wanted} {}", left - 1));
        drop(written); // a test that cannot count notices that nothing was aborted
    } else if std::fs::remove_file(file).is_ok() {
        std::process::abort();
    }
}

/// Passes the point `name`: aborts here when a test asked for it, and does nothing otherwise.
#[cfg(not(feature = "fault"))]
#[inline(always)]
pub fn point(_name: &'static str) {}
