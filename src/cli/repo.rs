//! `refit repo`: a repository of releases, for any static web server.

use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use refit_author::keys::{Keys, KeysError};
use refit_author::publish::{Addition, Contents, Outcome, Repository, RepositoryError, Terms, check, contents};
use refit_base::{Exit, FileError, Report, Reported, clock, file_error};
use refit_updater::durable;
use refit_updater::package::METADATA_BYTES_MAX;
use refit_updater::repository::{Listed, Offer};
use serde::Serialize;

use super::arguments::{DAYS_MAX, in_days, number_in};
use super::context::Context;
use super::publish::{TIMESTAMP_DAYS_DEFAULT, warn};
use super::said::in_json;
use super::signing_keys;
use super::table::{print_table, short};

/// How long targets and snapshot are good when nobody says.
const EXPIRES_DAYS_DEFAULT: i64 = 365;
#[derive(Debug, clap::Subcommand)]
pub(super) enum Repo {
    /// Make an empty repository.
    Init(Writing),
    /// Add the releases of packages.
    Add {
        #[command(flatten)]
        writing: Writing,
        #[command(flatten)]
        retired: RetiredKeys,
        /// The packages.
        #[arg(required = true)]
        packages: Vec<PathBuf>,
    },
    /// Sign the metadata anew, before it expires and after a rotation of keys.
    Refresh {
        #[command(flatten)]
        writing: Writing,
        #[command(flatten)]
        retired: RetiredKeys,
    },
    /// Show what is in a repository.
    Show {
        #[command(flatten)]
        reading: Reading,
        /// Show metadata that retired keys signed, too, with the digests of its releases: as it would be vouched for.
        #[arg(long, conflicts_with = "root")]
        accept_retired: bool,
    },
    /// Check that a repository is whole: signatures, dates, and every byte of every release.
    Check(Reading),
}

/// What is done about metadata of retired keys.
#[derive(Debug, clap::Args)]
pub(super) struct RetiredKeys {
    /// Vouch for metadata that retired keys signed and that is not known to be what was published last with this directory
    /// of keys; the releases in it are listed with their digests.
    #[arg(long)]
    accept_retired: bool,
}

/// What a command is given that writes a repository.
#[derive(Debug, clap::Args)]
pub(super) struct Writing {
    /// The directory of the repository.
    dir: PathBuf,
    /// The directory of the signing keys.
    #[arg(long, value_name = "DIR", env = "REFIT_KEYS")]
    keys: PathBuf,
    /// A further directory with keys; may be repeated.
    #[arg(long, value_name = "DIR")]
    with: Vec<PathBuf>,
    /// How many days the list of releases is good.
    #[arg(long, default_value_t = EXPIRES_DAYS_DEFAULT, value_parser = number_in(1..=DAYS_MAX))]
    expires_days: i64,
    /// How many days appliances take the repository for current without a refresh.
    #[arg(long, default_value_t = TIMESTAMP_DAYS_DEFAULT, value_parser = number_in(1..=DAYS_MAX))]
    timestamp_days: i64,
}

/// What a command is given that only reads a repository.
#[derive(Debug, clap::Args)]
pub(super) struct Reading {
    /// The directory of the repository.
    dir: PathBuf,
    /// The directory of the signing keys: their newest root is what is trusted.
    #[arg(long, value_name = "DIR", env = "REFIT_KEYS", required_unless_present = "root")]
    keys: Option<PathBuf>,
    /// A further directory with keys; may be repeated.
    #[arg(long, value_name = "DIR")]
    with: Vec<PathBuf>,
    /// The root of trust, instead of keys.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
}

/// Why a repository was not changed, or not found to be whole.
#[derive(Debug, thiserror::Error)]
enum RepoError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the repository in {} is not in order: {first} (problem 1 of {problems})", dir.display())]
    Damaged { dir: PathBuf, problems: usize, first: String },
}

impl Reported for RepoError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Keys(error) => error.report(),
            Self::Repository(error) => error.report(),
            Self::File(_) => Report::new("file_unreadable", Exit::Usage, "check the name and the permissions"),
            Self::Damaged { .. } => Report::new(
                "repository_damaged",
                Exit::Refused,
                "put files of releases back with `refit repo add` and their packages, roots and later dates with \
                 `refit repo refresh`",
            ),
        }
    }
}

pub(super) fn run(context: &Context, repo: &Repo) -> Exit {
    match try_run(context, repo) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

fn try_run(context: &Context, repo: &Repo) -> Result<(), RepoError> {
    match repo {
        Repo::Init(writing) => {
            let (dir, keys, terms) = writing.open(context)?;
            let repository = Repository::init(&dir, &keys, &terms)?;
            let contents = repository.contents(&keys)?;
            warn(&repository, &contents);
            print_contents(context, &contents, None, None);
        }
        Repo::Add { writing, packages, retired } => {
            let (dir, keys, terms) = writing.open(context)?;
            let (mut repository, accepted) = open_repository(context, &dir, &keys, retired.accept_retired)?;
            let packages: Vec<PathBuf> = packages.iter().map(|package| context.path(package)).collect();
            // One that is not there is known before the first of them changes anything.
            for path in &packages {
                path.metadata().map_err(file_error("read", path))?;
            }
            let mut added = Vec::new();
            for package in &packages {
                let addition = repository.add(package, &keys, &terms)?;
                let release = release_name(&addition.offer);
                context.print_text(&match addition.outcome {
                    Outcome::Added => format!("added {release}"),
                    Outcome::Restored => format!("restored {release}: files of it were missing or damaged"),
                    Outcome::Present => format!("{release} is there already"),
                });
                added.push(addition);
            }
            let contents = repository.contents(&keys)?;
            warn(&repository, &contents);
            print_contents(context, &contents, accepted.as_deref(), Some(&added));
        }
        Repo::Refresh { writing, retired } => {
            let (dir, keys, terms) = writing.open(context)?;
            let (mut repository, accepted) = open_repository(context, &dir, &keys, retired.accept_retired)?;
            let contents = repository.refresh(&keys, &terms)?;
            warn(&repository, &contents);
            print_contents(context, &contents, accepted.as_deref(), None);
        }
        Repo::Show { reading, accept_retired } => {
            let dir = context.path(&reading.dir);
            match reading.trust(context)? {
                TrustAnchor::Keys(keys) => {
                    let (repository, accepted) = open_repository(context, &dir, &keys, *accept_retired)?;
                    let contents = repository.contents(&keys)?;
                    warn(&repository, &contents);
                    print_contents(context, &contents, accepted.as_deref(), None);
                }
                TrustAnchor::Root(root) => print_contents(context, &contents(&dir, &root)?, None, None),
            }
        }
        Repo::Check(reading) => check_all(context, reading)?,
    }
    Ok(())
}

impl Writing {
    fn open(&self, context: &Context) -> Result<(PathBuf, Keys, Terms), RepoError> {
        let terms = Terms {
            now: clock::now(),
            expires: in_days(self.expires_days),
            timestamp_expires: in_days(self.timestamp_days),
        };
        Ok((context.path(&self.dir), signing_keys::open(context, &self.keys, &self.with)?, terms))
    }
}

/// By what a repository is verified.
enum TrustAnchor {
    Keys(Box<Keys>),
    Root(Vec<u8>),
}

impl Reading {
    fn trust(&self, context: &Context) -> Result<TrustAnchor, RepoError> {
        match (&self.root, &self.keys) {
            (None, Some(dir)) => Ok(TrustAnchor::Keys(Box::new(signing_keys::open(context, dir, &self.with)?))),
            (root, _) => {
                let path = context.path(&root.clone().unwrap_or_default());
                let root = durable::read_limited(&path, METADATA_BYTES_MAX);
                Ok(TrustAnchor::Root(root.map_err(file_error("read", &path))?))
            }
        }
    }
}

/// Opens a repository, and vouches for it if that is wanted. Returns the releases that somebody vouches for.
fn open_repository(
    context: &Context,
    dir: &Path,
    keys: &Keys,
    accept_retired: bool,
) -> Result<(Repository, Option<Vec<Listed>>), RepoError> {
    let mut repository = Repository::open(dir)?;
    let accepted = if accept_retired { Some(repository.accept_retired(keys)?) } else { None };
    for Listed { offer, digest } in accepted.iter().flatten() {
        let (release, digest) =
            (release_name(offer), digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string()));
        context.print_text(&format!("accepted {release}, which retired keys signed: digest {digest}"));
    }
    Ok((repository, accepted))
}

fn release_name(offer: &Offer) -> String {
    format!("{} {} for {}", offer.appliance, offer.version, offer.arch)
}

fn check_all(context: &Context, reading: &Reading) -> Result<(), RepoError> {
    let dir = context.path(&reading.dir);
    let root = match reading.trust(context)? {
        TrustAnchor::Keys(keys) => keys.root().to_vec(),
        TrustAnchor::Root(root) => root,
    };
    let bar = context.bytes_bar("checking");
    let found = check(&dir, &root, clock::now(), &mut |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
    });
    bar.finish_and_clear();
    let found = found?;
    if context.json {
        context.print(&in_json(&found));
    }
    for problem in &found.problems {
        context.print_text(&problem.to_string());
    }
    match found.problems.first() {
        Some(first) => Err(RepoError::Damaged { dir, problems: found.problems.len(), first: first.to_string() }),
        None => {
            let releases = &found.contents.releases;
            let bytes = releases.iter().map(|release| release.offer.payload_bytes).sum();
            let (count, until) = (releases.len(), found.contents.timestamp_expires);
            context
                .print_text(&format!("in order: {count} releases, {}; refresh it before {until}", HumanBytes(bytes)));
            Ok(())
        }
    }
}

/// What is in a repository, in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    contents: &'a Contents,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_retired: Option<&'a [Listed]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<&'a [Addition]>,
}

fn print_contents(context: &Context, contents: &Contents, accepted: Option<&[Listed]>, added: Option<&[Addition]>) {
    if context.json {
        return context.print(&in_json(&Shown { contents, accepted_retired: accepted, added }));
    }
    let rows: Vec<Vec<String>> = contents
        .releases
        .iter()
        .map(|Listed { offer, digest }| {
            let made = offer.released.map_or_else(|| "-".to_owned(), |released| released.to_string());
            let bytes = HumanBytes(offer.payload_bytes).to_string();
            let digest = short(&digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string()));
            vec![offer.appliance.clone(), offer.version.to_string(), offer.arch.clone(), bytes, digest, made]
        })
        .collect();
    print_table(context, &["APPLIANCE", "RELEASE", "MACHINE", "PAYLOAD", "DIGEST", "MADE"], &rows);
    let [root, timestamp, snapshot, targets] = contents.versions;
    context.print(&format!("root {root}, timestamp {timestamp}, snapshot {snapshot}, targets {targets}"));
    context.print(&format!("refresh it before {}", contents.timestamp_expires));
}
