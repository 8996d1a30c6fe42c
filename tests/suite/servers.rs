//! Servers that are not ours, each as the page about it in `docs/servers/` sets it up: updated, rolled back, and sent releases that
//! exit, never serve, or serve late, under load.
//!
//! What each of them lost is the table of `docs/servers/index.md`. A line of it is written to `target/tmp/servers/` by every run.

mod pages;
mod store;
mod web;

use std::fs;
use std::path::Path;

use refit_fixtures::tools::{cannot_try, missing};

use crate::appliance::Appliance;
use crate::release::Release;

/// Where `.ci/run` installs what `requirements.txt` of an appliance names.
const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/..");

/// Returns whether a program, or the libraries of these appliances, are missing, which is then said.
fn lacks(programs: &[&str], libraries: &[&str]) -> bool {
    if missing(programs) {
        return true;
    }
    let there = |name: &&&str| Path::new(TARGET).join(name).is_dir();
    let Some(name) = libraries.iter().find(|name| !there(name)) else { return false };
    cannot_try(&format!("{name} is not in target/{name}; .ci/run installs it"));
    true
}

/// Has the program of a release begin `seconds` late.
fn late(release: Release, program: &str, seconds: f64) -> Release {
    release.rewritten(|text| {
        let begun = format!("command = [\"{program}\"");
        text.replace(
            &begun,
            &format!("command = [\"sh\", \"-c\", \"sleep {seconds}; exec \\\"$@\\\"\", \"sh\", \"{program}\""),
        )
    })
}

/// Has a program of a release run and do nothing, and gives it two seconds to become ready.
fn idle(release: Release, program: &str) -> Release {
    release.rewritten(|text| {
        let begun = format!("command = [\"{program}\"");
        text.replace("start_timeout = \"60s\"\n", "").replace(
            &begun,
            &format!("start_timeout = \"2s\"\ncommand = [\"sh\", \"-c\", \"exec sleep 600\", \"{program}\""),
        )
    })
}

/// Installs a release that fails its trial, and asserts that this is said, with the component's name, and that `running` runs.
fn fails(appliance: &Appliance, release: &Release, running: &str) {
    let ran = appliance.install(release, &[]).ends_with(70);
    assert!(ran.stderr.contains(&format!("rolled back to {running}")), "{}", ran.stderr);
    let status = appliance.settled(running);
    assert_eq!(appliance.history()[0]["outcome"], "rolled-back", "{status}");
}

/// Keeps a line of the table.
fn record(name: &str, line: &str) {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers");
    fs::create_dir_all(&dir).expect("make the directory of the table");
    fs::write(dir.join(name), format!("{line}\n")).expect("write a line of the table");
}
