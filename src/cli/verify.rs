//! `refit verify`: compares an installed release with its signed manifest.

use std::path::PathBuf;

use refit_base::{Exit, Report, Reported};
use refit_updater::journal::Journal;
use refit_updater::release::{StoreError, VerifyReport};
use semver::Version;
use serde::Serialize;

use super::at_rest::{AtRestError, Files};
use super::context::Context;
use super::said::in_json;

#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// The release; if none is named, the one that runs, or that runs next.
    version: Option<Version>,
}

/// Why a release cannot be verified.
#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error(transparent)]
    AtRest(#[from] AtRestError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("release {version} is damaged: {} of its files: {first}", problems)]
    Damaged { version: Version, problems: usize, first: String },
    #[error("release {version} is damaged: {} is missing", dir.display())]
    Gone { version: Version, dir: PathBuf },
}

impl Reported for VerifyError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::AtRest(error) => error.report(),
            Self::Store(error @ StoreError::Unknown { .. }) => Report { exit: Exit::Usage, ..error.report() },
            Self::Store(error) => error.report(),
            Self::Damaged { .. } | Self::Gone { .. } => {
                Report::new("release_damaged", Exit::Failed, StoreError::MADE_WHOLE)
            }
        }
    }
}

pub(super) fn run(context: &Context, verify: &Verify) -> Exit {
    match try_verify(context, verify) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

/// What was found, in JSON.
#[derive(Serialize)]
struct Verified<'a> {
    version: &'a Version,
    report: &'a VerifyReport,
}

fn try_verify(context: &Context, verify: &Verify) -> Result<(), VerifyError> {
    let files = Files::look(context)?;
    let (store, journal) = (&files.store, files.as_seen());
    let version = match (&verify.version, &journal) {
        (Some(version), _) => version.clone(),
        (None, Some(journal)) => journal.state.wanted().clone(),
        (None, None) => return Err(AtRestError::from(context.home.without_journal()).into()),
    };
    let is_known = |journal: &Journal| journal.good.contains(&version) || *journal.state.wanted() == version;
    let dir = store.release_dir(&version);
    if !dir.exists() && journal.as_ref().is_some_and(is_known) {
        // One that was here and is not any more is damaged.
        return Err(VerifyError::Gone { dir, version });
    }
    let report = store.verify(&version, &mut |_| {})?;
    if context.json {
        context.print(&in_json(&Verified { version: &version, report: &report }));
    }
    for problem in &report.problems {
        context.print_text(&problem.to_string());
    }
    let (own, beside): (Vec<_>, Vec<_>) = report.problems.iter().partition(|problem| problem.is_of_the_release());
    if let Some(first) = own.first() {
        return Err(VerifyError::Damaged { version, problems: own.len(), first: first.to_string() });
    }
    let more = match beside.len() {
        0 => String::new(),
        count => format!("; {count} more in its directory, not part of it, are left alone"),
    };
    context
        .print_text(&format!("release {version} is as signed: {} files, {} bytes{more}", report.files, report.bytes));
    Ok(())
}
