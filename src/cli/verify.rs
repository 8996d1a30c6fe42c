//! `refit verify`: compares an installed release with its signed manifest.

use std::path::PathBuf;

use refit_base::{Exit, Reported};
use refit_updater::Store;
use refit_updater::journal;
use refit_updater::release::StoreError;
use semver::Version;
use serde_json::json;

use super::context::Context;

#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// The release; the current one if none is named.
    version: Option<Version>,
}

/// Why a release cannot be verified.
#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
    #[error("no appliance is installed in {}", home.display())]
    Empty { home: PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("release {version} is damaged: {} of its files: {first}", problems)]
    Damaged { version: Version, problems: usize, first: String },
}

impl Reported for VerifyError {
    fn code(&self) -> &'static str {
        match self {
            Self::Journal(_) => "journal_unusable",
            Self::Empty { .. } => "home_empty",
            Self::Store(_) => "release_unusable",
            Self::Damaged { .. } => "release_damaged",
        }
    }

    fn remedy(&self) -> &str {
        match self {
            Self::Journal(error) => error.remedy(),
            Self::Empty { .. } => "name the right directory with --home",
            Self::Store(error) => error.remedy(),
            Self::Damaged { .. } => "install the release again from its package",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Journal(_) => Exit::Disk,
            Self::Empty { .. } => Exit::Config,
            Self::Store(StoreError::Unknown { .. }) => Exit::Usage,
            Self::Store(_) | Self::Damaged { .. } => Exit::Failed,
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
            let journal = journal::load(home)?.ok_or_else(|| VerifyError::Empty { home: home.to_owned() })?;
            journal.state.wanted().clone()
        }
    };
    let report = store.verify(&version, &mut |_| {})?;
    if context.json {
        context.print(&json!({ "version": version, "report": report }).to_string());
    }
    for problem in &report.problems {
        context.print_text(&problem.to_string());
    }
    match report.problems.first() {
        Some(first) => Err(VerifyError::Damaged { version, problems: report.problems.len(), first: first.to_string() }),
        None => {
            context
                .print_text(&format!("release {version} is as signed: {} files, {} bytes", report.files, report.bytes));
            Ok(())
        }
    }
}
