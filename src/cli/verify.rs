//! `refit verify`: compares an installed release with its signed manifest.

use refit_base::{Exit, Report, Reported};
use refit_updater::Store;
use refit_updater::journal;
use refit_updater::release::StoreError;
use semver::Version;
use serde_json::json;

use super::context::Context;
use crate::home::HomeError;

#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// The release; if none is named, the one that runs, or that runs next.
    version: Option<Version>,
}

/// Why a release cannot be verified.
#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("release {version} is damaged: {} of its files: {first}", problems)]
    Damaged { version: Version, problems: usize, first: String },
}

impl Reported for VerifyError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Journal(error) => Report { exit: Exit::Disk, ..error.report() },
            Self::Home(error) => error.report(),
            Self::Store(error @ StoreError::Unknown { .. }) => Report { exit: Exit::Usage, ..error.report() },
            Self::Store(error) => error.report(),
            Self::Damaged { .. } => Report::new(
                "release_damaged",
                Exit::Failed,
                "its very package makes it whole: `refit install PACKAGE --allow-downgrade`",
            ),
        }
    }
}

pub(super) fn run(context: &Context, verify: &Verify) -> Exit {
    match try_verify(context, verify) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

fn try_verify(context: &Context, verify: &Verify) -> Result<(), VerifyError> {
    let home = context.home.path();
    let store = Store::open(home)?;
    let version = match &verify.version {
        Some(version) => version.clone(),
        None => {
            let journal = journal::recall(home)?.ok_or_else(|| context.home.without_journal())?;
            if context.home.guard().is_some() { journal.state.wanted().clone() } else { journal.at_rest().0 }
        }
    };
    let report = store.verify(&version, &mut |_| {})?;
    if context.json {
        context.print(&json!({ "version": version, "report": report }).to_string());
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
