//! `refit repo`: a repository of releases, for any static web server.

use std::path::PathBuf;

use indicatif::HumanBytes;
use refit_updater::keys::KeysError;
use refit_updater::receive::Class;
use refit_updater::repository::author::{Contents, Repository, RepositoryError, Terms};
use serde_json::json;

use super::keys::in_days;
use super::show::table;
use super::{Context, keys};
use crate::clock;
use crate::error::{Exit, Reported};

/// How long targets and snapshot are good when nobody says.
const EXPIRES_DAYS_DEFAULT: i64 = 365;
/// How long a timestamp is good when nobody says: so long can somebody between hide a newer release. It must be signed
/// anew before, by `refit repo refresh` and a clock; a month forgives one that stood still for a while.
pub(super) const TIMESTAMP_DAYS_DEFAULT: i64 = 30;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Repo {
    /// Make an empty repository.
    Init(Common),
    /// Add the releases of packages.
    Add {
        #[command(flatten)]
        common: Common,
        /// The packages.
        #[arg(required = true)]
        packages: Vec<PathBuf>,
    },
    /// Sign the metadata anew, before it expires and after a rotation of keys.
    Refresh(Common),
    /// Show what is in a repository.
    Show(Common),
}

/// What every command on a repository is given.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// The directory of the repository.
    dir: PathBuf,
    /// The directory of the signing keys.
    #[arg(long, value_name = "DIR", env = "REFIT_KEYS")]
    keys: PathBuf,
    /// A further directory with keys; may be repeated.
    #[arg(long, value_name = "DIR")]
    with: Vec<PathBuf>,
    /// How many days the list of releases is good.
    #[arg(long, default_value_t = EXPIRES_DAYS_DEFAULT, value_parser = clap::value_parser!(i64).range(1..36_500))]
    expires_days: i64,
    /// How many days appliances take the repository for current without a refresh.
    #[arg(long, default_value_t = TIMESTAMP_DAYS_DEFAULT, value_parser = clap::value_parser!(i64).range(1..36_500))]
    timestamp_days: i64,
}

/// Why a repository was not changed.
#[derive(Debug, thiserror::Error)]
enum RepoError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl Reported for RepoError {
    fn code(&self) -> &str {
        match self {
            Self::Keys(_) => "keys_unusable",
            Self::Repository(_) => "repository_unusable",
        }
    }

    fn remedy(&self) -> &str {
        match self {
            Self::Keys(error) => error.remedy(),
            Self::Repository(error) => error.remedy(),
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Keys(_) => Exit::Config,
            Self::Repository(error) => exit_of(error),
        }
    }
}

/// Returns the exit status of a command that fails with `error`.
pub(super) fn exit_of(error: &RepositoryError) -> Exit {
    exit_of_class(error.class())
}

/// Returns the exit status for this kind of failure.
pub(super) fn exit_of_class(class: Class) -> Exit {
    match class {
        Class::Refused => Exit::Refused,
        Class::Disk => Exit::Disk,
        Class::Busy => Exit::TryLater,
        Class::Internal => Exit::Failed,
    }
}

pub(super) fn run(context: &Context, repo: &Repo) -> Exit {
    match try_run(context, repo) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

fn try_run(context: &Context, repo: &Repo) -> Result<(), RepoError> {
    let (Repo::Init(common) | Repo::Add { common, .. } | Repo::Refresh(common) | Repo::Show(common)) = repo;
    let dir = context.path(&common.dir);
    let keys = keys::open(context, &common.keys, &common.with)?;
    let terms = Terms {
        now: clock::now(),
        expires: in_days(common.expires_days),
        timestamp_expires: in_days(common.timestamp_days),
    };
    let contents = match repo {
        Repo::Init(_) => Repository::init(&dir, &keys, &terms)?.contents(&keys)?,
        Repo::Add { packages, .. } => {
            let repository = Repository::open(&dir)?;
            for package in packages {
                let offer = repository.add(&context.path(package), &keys, &terms)?;
                context.tell(&format!("added {} {} for {}", offer.appliance, offer.version, offer.arch));
            }
            repository.contents(&keys)?
        }
        Repo::Refresh(_) => Repository::open(&dir)?.refresh(&keys, &terms)?,
        Repo::Show(_) => Repository::open(&dir)?.contents(&keys)?,
    };
    show(context, &contents);
    Ok(())
}

fn show(context: &Context, contents: &Contents) {
    if context.json {
        return context.print(&json!(contents).to_string());
    }
    let rows: Vec<Vec<String>> = contents
        .releases
        .iter()
        .map(|offer| {
            let made = offer.released.map_or_else(|| "-".to_owned(), |released| released.to_string());
            let bytes = HumanBytes(offer.payload_bytes).to_string();
            vec![offer.appliance.clone(), offer.version.to_string(), offer.arch.clone(), bytes, made]
        })
        .collect();
    table(context, &["APPLIANCE", "RELEASE", "MACHINE", "PAYLOAD", "MADE"], &rows);
    let [root, timestamp, snapshot, targets] = contents.versions;
    context.print(&format!("root {root}, timestamp {timestamp}, snapshot {snapshot}, targets {targets}"));
    context.print(&format!("refresh it before {}", contents.timestamp_expires));
}
