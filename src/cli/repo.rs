//! `refit repo`: a repository of releases, for any static web server.

use std::io::{self, Write};
use std::path::PathBuf;

use indicatif::HumanBytes;
use refit_updater::keys::KeysError;
use refit_updater::receive::Class;
use refit_updater::repository::author::{Contents, LIST_BYTES_MAX, Repository, RepositoryError, RetiredRelease, Terms};
use serde_json::json;

use super::keys::in_days;
use super::show::table;
use super::{Context, keys};
use crate::clock;
use crate::error::{Chain, Exit, Reported};

/// How long targets and snapshot are good when nobody says.
const EXPIRES_DAYS_DEFAULT: i64 = 365;
/// How long a timestamp is good when nobody says: so long can somebody between hide a newer release. It must be signed
/// anew before, by `refit repo refresh` and a clock; a month forgives one that stood still for a while.
pub(super) const TIMESTAMP_DAYS_DEFAULT: i64 = 30;
/// A list of releases that is as full as this is said to be: there is room for a release that names another repository.
const LIST_FULL_PERCENT: u64 = 90;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Repo {
    /// Make an empty repository.
    Init(Common),
    /// Add the releases of packages.
    Add {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        retired: Retired,
        /// The packages.
        #[arg(required = true)]
        packages: Vec<PathBuf>,
    },
    /// Sign the metadata anew, before it expires and after a rotation of keys.
    Refresh {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        retired: Retired,
    },
    /// Show what is in a repository.
    Show {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        retired: Retired,
    },
}

/// What is done about metadata of retired keys.
#[derive(Debug, clap::Args)]
pub(super) struct Retired {
    /// Vouch for metadata that retired keys signed and that is not known to be what was published last with this directory
    /// of keys; the releases in it are listed with their digests.
    #[arg(long)]
    accept_retired: bool,
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
    let (Repo::Init(common) | Repo::Add { common, .. } | Repo::Refresh { common, .. } | Repo::Show { common, .. }) =
        repo;
    let dir = context.path(&common.dir);
    let keys = keys::open(context, &common.keys, &common.with)?;
    let terms = Terms {
        now: clock::now(),
        expires: in_days(common.expires_days),
        timestamp_expires: in_days(common.timestamp_days),
    };
    let open = |retired: &Retired| -> Result<_, RepositoryError> {
        let mut repository = Repository::open(&dir)?;
        let accepted = if retired.accept_retired { Some(repository.accept_retired(&keys)?) } else { None };
        for RetiredRelease { offer, digest } in accepted.iter().flatten() {
            let release = format!("{} {} for {}", offer.appliance, offer.version, offer.arch);
            context.tell(&format!("accepted {release}, which retired keys signed: digest {digest}"));
        }
        Ok((repository, accepted))
    };
    let (repository, contents, accepted) = match repo {
        Repo::Init(_) => {
            let repository = Repository::init(&dir, &keys, &terms)?;
            let contents = repository.contents(&keys)?;
            (repository, contents, None)
        }
        Repo::Add { packages, retired, .. } => {
            let (mut repository, accepted) = open(retired)?;
            for package in packages {
                let offer = repository.add(&context.path(package), &keys, &terms)?;
                context.tell(&format!("added {} {} for {}", offer.appliance, offer.version, offer.arch));
            }
            let contents = repository.contents(&keys)?;
            (repository, contents, accepted)
        }
        Repo::Refresh { retired, .. } => {
            let (mut repository, accepted) = open(retired)?;
            let contents = repository.refresh(&keys, &terms)?;
            (repository, contents, accepted)
        }
        Repo::Show { retired, .. } => {
            let (repository, accepted) = open(retired)?;
            let contents = repository.contents(&keys)?;
            (repository, contents, accepted)
        }
    };
    warn(&repository, &contents);
    show(context, &contents, accepted.as_deref());
    Ok(())
}

/// Says on standard error what is no failure now and will be one.
pub(super) fn warn(repository: &Repository, contents: &Contents) {
    let say = |text: String| drop(writeln!(io::stderr().lock(), "refit: {text}")); // as in `Context::print`
    if let Some(error) = repository.not_remembered() {
        let why = Chain(error);
        say(format!(
            "published, but not remembered beside the keys: {why}; after their next rotation say --accept-retired"
        ));
    }
    if contents.list_bytes > LIST_BYTES_MAX / 100 * LIST_FULL_PERCENT {
        let (found, max) = (HumanBytes(contents.list_bytes), HumanBytes(LIST_BYTES_MAX));
        say(format!(
            "the list of releases has {found} of {max}; make a new repository, and name it in a release while this one \
             takes one"
        ));
    }
}

fn show(context: &Context, contents: &Contents, accepted: Option<&[RetiredRelease]>) {
    if context.json {
        let mut object = json!(contents);
        if let Some(accepted) = accepted {
            object["accepted_retired"] = json!(accepted);
        }
        return context.print(&object.to_string());
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
