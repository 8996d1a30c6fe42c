//! `refit install` while nothing runs: a package takes its place in the home, and the next `refit run` starts it.
//!
//! The package of a release that was good here makes that whole again. Any other goes on trial at the next start, as if power had failed at
//! the right moment; where there is nothing to go back to, it is taken as the first release of a home is.

use std::sync::atomic::AtomicBool;

use refit_base::{clock, file_error};
use refit_updater::Digest;
use refit_updater::attempt::{Ending, Kind, Step};
use refit_updater::config::{Existing, merge_config};
use refit_updater::journal::Journal;
use refit_updater::manifest::Manifest;
use refit_updater::receive::{Policy, ReceiveError, Receiver};
use refit_updater::release::Received;
use refit_updater::trust::{Expired, Trust, TrustError};
use semver::Version;
use serde::Serialize;

use super::{Install, PackageReceived};
use crate::cli::at_rest::{AtRest, AtRestError, done, idle, tried_next, who};
use crate::cli::context::Context;
use crate::cli::input::Input;
use crate::cli::said::in_json;
use crate::config::{self, Config, Programs};
use crate::wire::RequestName;

/// A package that was taken.
#[derive(Debug, Serialize)]
struct Taken {
    version: Version,
    digest: Digest,
    appliance: String,
}

/// Installs what `install` names. Returns what is said of it.
///
/// # Errors
/// It is refused, or takes a runtime; the releases that were good here are as they were.
pub(super) fn install(context: &Context, install: &Install, input: &Input) -> Result<(), AtRestError> {
    if install.stage_only {
        return Err(AtRestError::NeedsRuntime { what: "`--stage-only`" });
    }
    let rest = AtRest::take(context)?;
    let journal = rest.files.journal(context)?;
    let Done { said, version, is_trial } = match Version::parse(&install.what).ok().filter(|_| !input.path().exists()) {
        Some(version) => {
            let chosen = rest.go_to(Some(&version), Kind::Update, "chosen by `refit install`")?;
            Done { said: chosen.to_string(), version, is_trial: chosen.is_on_trial() }
        }
        None => install_package(context, install, &rest, journal, input)?,
    };
    context.print_text(&format!("{said}; {}", rest.then()));
    if context.json {
        context.print(&in_json(&done(RequestName::Update, &version, is_trial)));
    }
    Ok(())
}

/// What was done.
struct Done {
    /// That, for people.
    said: String,
    /// The release that runs next.
    version: Version,
    /// Whether it has to prove itself.
    is_trial: bool,
}

fn install_package(
    context: &Context,
    install: &Install,
    rest: &AtRest,
    journal: Journal,
    input: &Input,
) -> Result<Done, AtRestError> {
    let store = &rest.files.store;
    let journal = idle(journal, &Ending::now(Step::Trial, "a package was installed while nothing ran".to_owned()));
    let current = journal.state.wanted().clone();
    let damaged = rest.find_damage(&current)?.is_some();
    let received = receive(context, install, rest, &journal, input, damaged)?;
    let version = received.manifest.version().clone();
    let known = store.release(&version).ok();
    // A release that differs because it is damaged is still the same one.
    let is_damaged = store.release_dir(&version).exists() && rest.find_damage(&version)?.is_some();
    if let Some(approved) = install.digest.filter(|approved| *approved != received.digest) {
        store.drop_received(&received)?;
        return Err(AtRestError::NotApproved { version, found: received.digest, approved });
    }
    let digest = received.digest;
    let replaceable: Vec<Version> = is_damaged.then(|| version.clone()).into_iter().collect();
    if known.is_some_and(|known| known.digest == digest) && version == current {
        store.repair(&received)?;
        store.drop_received(&received)?;
    } else {
        store.admit(received, &replaceable)?;
    }
    let existing = if version == current { Existing::Keep } else { Existing::Replace };
    merge_config(store, Some(&current), &version, existing)?;
    if version == current {
        return Ok(Done { said: format!("release {version} is whole again and runs next"), version, is_trial: false });
    }
    let Some(previous) = rest.way_back(&journal, &version) else {
        let why = format!("release {current} is damaged, and no other good one is whole");
        let next = journal.clone().gone_back(&version, &who(), &Ending::now(Step::Committed, why)).unwrap_or(journal);
        rest.store(&next)?;
        return Ok(Done {
            said: format!("release {version} is complete on disk and runs next"),
            version,
            is_trial: false,
        });
    };
    let said =
        format!("release {version} is complete on disk and is tried next; if it fails, release {previous} runs again");
    rest.store(&tried_next(journal, Kind::Update, previous, &store.release(&version)?))?;
    Ok(Done { said, version, is_trial: true })
}

/// Receives the package into staging, within what this appliance accepts.
fn receive(
    context: &Context,
    install: &Install,
    rest: &AtRest,
    journal: &Journal,
    input: &Input,
    damaged: bool,
) -> Result<Received, AtRestError> {
    let store = &rest.files.store;
    let file = input.open().map_err(file_error("read", input.path())).map_err(AtRestError::Package)?;
    // What lies there is a promise to nobody, and may fill the disk.
    store.empty_staging()?;
    let mut versions = store.versions()?;
    versions.extend(journal.good.iter().cloned());
    let appliance = versions.iter().rev().find_map(|version| store.release(version).ok());
    let appliance = appliance.map(|release| release.manifest.appliance().to_owned());
    let is_nameless = appliance.is_none();
    let policy = Policy {
        appliance,
        arch: std::env::consts::ARCH.to_owned(),
        current: Some(journal.state.wanted().clone()),
        // A release that can run is not refused because of one that cannot.
        allow_downgrade: install.allow_downgrade || damaged,
        expired: Expired::Warn,
        now: clock::now(),
    };
    let trust = Trust::of(context.home.path());
    let receiver = Receiver { store, trust: &trust, policy: &policy, cancel: &AtomicBool::new(false), room: None };
    let received = receiver.receive_file(file, &mut |_| {})?;
    let version = received.manifest.version();
    let checked = if is_nameless && !journal.good.contains(version) {
        Err(AtRestError::Nameless { home: context.home.clone(), version: version.clone() })
    } else {
        check(context, &received, policy.now)
    };
    if let Err(error) = checked {
        store.drop_received(&received)?;
        return Err(error);
    }
    if context.json {
        let appliance = received.manifest.appliance().to_owned();
        let data = Taken { version: version.clone(), digest: received.digest, appliance };
        context.print(&in_json(&PackageReceived::new(data)));
    }
    context.print_text(&describe(&received.manifest));
    Ok(received)
}

/// Refuses a release whose configuration is wrong here, or that refuses packages past their date and is.
fn check(context: &Context, received: &Received, now: jiff::Timestamp) -> Result<(), AtRestError> {
    let programs = Programs::installed(&received.dir);
    let config = Config::load_with_programs(&programs, &context.home.path().join(config::LOCAL_FILE))?;
    if config.update.expired_offline == Expired::Refuse {
        if let Some(seen) = received.clock_behind {
            return Err(ReceiveError::from(TrustError::ClockWentBack { now, seen }).into());
        }
        if let Some((role, at)) = received.expired {
            return Err(ReceiveError::from(TrustError::Expired { role, at }).into());
        }
    }
    Ok(())
}

fn describe(manifest: &Manifest) -> String {
    format!("{:<13} {} {}", "verified", manifest.appliance(), manifest.version())
}
