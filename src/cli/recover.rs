//! `refit recover`: which releases are whole, and having one of them run, where nothing starts by itself.

use refit_base::{Chain, Exit};
use refit_updater::attempt::Kind;
use semver::Version;
use serde::Serialize;

use super::at_rest::{AtRest, AtRestError, Chosen, Files};
use super::client::ClientError;
use super::context::Context;
use super::said::in_json;
use super::table::print_table;

#[derive(Debug, clap::Args)]
pub(super) struct Recover {
    /// Have this release run from the next `refit run` on; without it, list the releases and whether each is whole.
    version: Option<Version>,
}

pub(super) fn run(context: &Context, recover: &Recover) -> Exit {
    let done = match &recover.version {
        None => list(context),
        Some(version) => pick(context, version),
    };
    match done {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

/// Lists every release on the disk and in the journal, the newest first. Nothing is changed.
fn list(context: &Context) -> Result<(), AtRestError> {
    let files = Files::look(context)?;
    let good = files.good()?;
    let journal = files.as_seen();
    let current = journal.as_ref().map(|journal| journal.state.wanted());
    let mut versions = files.store.versions()?;
    versions.extend(good.iter().chain(current).cloned());
    versions.sort();
    versions.dedup();
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    for version in versions.into_iter().rev() {
        let is_good = good.contains(&version);
        let state = if Some(&version) == current {
            if is_good { "current, good" } else { "current, not tried" }
        } else if good.contains(&version) {
            "good"
        } else {
            "not tried, or failed"
        };
        let (is_whole, why) = match files.store.find_damage(&version, &mut || {}) {
            Ok(None) => (Some(true), None),
            Ok(Some(damage)) => (Some(false), Some(Chain(&damage).to_string())),
            Err(error) => (None, Some(Chain(&error).to_string())),
        };
        let whole = match is_whole {
            Some(true) => "whole",
            Some(false) => "damaged",
            None => "unknown",
        };
        rows.push(vec![version.to_string(), state.to_owned(), whole.to_owned(), why.clone().unwrap_or("-".to_owned())]);
        let (is_current, is_good) = (Some(&version) == current, good.contains(&version));
        objects.push(Found { version, current: is_current, good: is_good, whole: is_whole, reason: why });
    }
    if context.json {
        context.print(&in_json(&Findings { journal: files.journal.is_some(), releases: objects }));
        return Ok(());
    }
    print_table(context, &["RELEASE", "STATE", "FILES", "WHY"], &rows);
    if !objects.iter().any(|release| release.whole == Some(true)) {
        context.print("");
        context.print(
            "no release is whole: `refit install PACKAGE --allow-downgrade` with the very package makes one whole",
        );
    }
    if files.journal.is_none() {
        context.print("");
        context.print("the update journal and its copy are lost: `refit recover VERSION` says which release runs");
    }
    Ok(())
}

/// What is in the home, in JSON.
#[derive(Serialize)]
struct Findings {
    /// Whether the journal or its copy is there.
    journal: bool,
    releases: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    version: Version,
    current: bool,
    good: bool,
    /// Whether its files are what was signed; `null` if that cannot be seen.
    whole: Option<bool>,
    reason: Option<String>,
}

/// A release that runs from the next start on.
#[derive(Serialize)]
struct Picked<'a> {
    from: Option<&'a Version>,
    version: &'a Version,
    trial: bool,
}

/// Has release `version` run from the next start on.
fn pick(context: &Context, version: &Version) -> Result<(), AtRestError> {
    let rest = AtRest::take(context).map_err(|error| {
        let AtRestError::Client(ClientError::NoRuntime { home, pid, .. }) = &error else { return error };
        let remedy = format!(
            "`refit rollback {version}` goes there while it runs; if no runtime answers, end `refit run` first (`kill {pid}`; the components \
             end, too)"
        );
        AtRestError::Running { home: home.clone(), pid: *pid, remedy }
    })?;
    let chosen = rest.go_to(Some(version), Kind::Rollback, "chosen by `refit recover`")?;
    if context.json {
        let Chosen { before, to, .. } = &chosen;
        context.print(&in_json(&Picked { from: before.as_ref(), version: to, trial: chosen.is_on_trial() }));
    }
    context.print_text(&format!("{chosen}; {}", rest.then()));
    Ok(())
}
