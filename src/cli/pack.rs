//! `refit pack`: a package of a directory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use jiff::{SignedDuration, Timestamp};
use refit_author::keys::{Keys, KeysError};
use refit_author::pack::{
    Closed, Examined, METADATA_VERSION, PackError, PackOptions, PackReport, PackStep, examine, file_name,
    pack as make_package,
};
use refit_author::publish::{Outcome, Repository, RepositoryError, Terms};
use refit_base::{Exit, Report, Reported, clock};
use refit_updater::manifest::Codec;
use serde::Serialize;

use super::arguments::{DAYS_MAX, in_days, number_in};
use super::context::{Context, say};
use super::machine::parse_machine;
use super::said::in_json;
use super::totals::print_totals;
use super::{publish, signing_keys};
use crate::component::find_obstacles_in_tree;
use crate::config::{self, Config, ConfigError, Programs};

/// How long a package's signatures are good when nobody says.
const EXPIRES_DAYS_DEFAULT: i64 = 365;
/// So many closed files and directories are named.
const CLOSED_MAX: usize = 10;
/// The variable with the time that reproducible builds take for now, in seconds since 1970.
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";
/// Metadata versions of packages: one for each time that older ones are shut out. More is a slip, and there is no way back.
const METADATA_VERSION_MAX: u64 = 1_000_000;

#[derive(Debug, clap::Args)]
pub(super) struct Pack {
    /// The release: a directory with an appliance.toml.
    dir: PathBuf,
    /// The package; NAME-VERSION.refit if it is not named.
    #[arg(short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Add the release to this repository; without -o no package is left besides.
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,
    /// The directory of the signing keys.
    #[arg(long, value_name = "DIR", env = "REFIT_KEYS")]
    keys: PathBuf,
    /// A further directory with keys; may be repeated.
    #[arg(long, value_name = "DIR")]
    with: Vec<PathBuf>,
    /// How it is compressed.
    #[arg(long, default_value = "zstd", value_parser = ["zstd", "gzip"])]
    codec: String,
    /// How hard it is compressed.
    #[arg(long)]
    level: Option<i32>,
    /// The machine it is for, `any` for releases without machine code; told by the files if it is not named.
    #[arg(long, value_parser = parse_machine)]
    arch: Option<String>,
    /// How many days its signatures are good.
    #[arg(long, default_value_t = EXPIRES_DAYS_DEFAULT, value_parser = number_in(1..=DAYS_MAX))]
    expires_days: i64,
    /// The version of the package's metadata. An appliance that has installed it refuses packages with a lower one for good,
    /// even with --allow-downgrade. Of no meaning in a repository.
    #[arg(long, value_name = "N", default_value_t = METADATA_VERSION)]
    #[arg(value_parser = number_in(1..=METADATA_VERSION_MAX))]
    metadata_version: u64,
}

/// Why no package was made.
#[derive(Debug, thiserror::Error)]
enum PackCommandError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("there is no directory {}", path.display())]
    NoDirectory { path: PathBuf },
    #[error("{SOURCE_DATE_EPOCH} is {text:?}, which is no time")]
    NoTime { text: OsString },
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Reported for PackCommandError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Keys(error) => error.report(),
            Self::Pack(error) => error.report(),
            Self::Repository(error) => error.report(),
            Self::NoDirectory { .. } => {
                Report::new("not_packed", Exit::Usage, "name the directory of a release: one with an appliance.toml")
            }
            Self::NoTime { .. } => Report::new(
                "not_packed",
                Exit::Usage,
                "give it in seconds since 1970, or leave it out to pack with the time it is",
            ),
            Self::Config(error) => error.report(),
        }
    }
}

pub(super) fn run(context: &Context, pack: &Pack) -> Exit {
    match try_run(context, pack) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

fn try_run(context: &Context, pack: &Pack) -> Result<(), PackCommandError> {
    let begun = Instant::now();
    let (dir, config) = load_release(context, pack)?;
    let keys = signing_keys::open(context, &pack.keys, &pack.with)?;
    let mut repository = pack.repo.as_ref().map(|dir| Repository::open(&context.path(dir))).transpose()?;
    // What the repository would refuse for its keys is refused before minutes of compressing.
    repository.as_ref().map_or(Ok(()), |repository| repository.check_keys(&keys))?;
    warn_of_root(&keys, &pack.keys);
    let name = file_name(&config.name, &config.version);
    // What only goes into the repository lies in it until then: it has the space.
    let scratch = match (&repository, &pack.out) {
        (Some(repository), None) => Some(repository.scratch()?),
        (Some(_) | None, Some(_)) | (None, None) => None,
    };
    let out = match &scratch {
        Some(scratch) => scratch.path().join(&name),
        None => context.path(&pack.out.clone().unwrap_or(name)),
    };
    let examined = examine(&dir)?;
    let arch = match &pack.arch {
        Some(arch) => arch.clone(),
        None => examined.machine(std::env::consts::ARCH)?,
    };
    let warnings = warnings(&dir, &config, &examined, &arch);
    for warning in &warnings {
        say(&format!("warning: {warning}"));
    }
    let options = options(context, pack, arch)?;
    let report = make_with_bar(context, &dir, &out, &keys, &options)?;
    let mut outcome = None;
    if let Some(repository) = &mut repository {
        let expires = options.expires;
        let terms = Terms { now: clock::now(), expires, timestamp_expires: in_days(publish::TIMESTAMP_DAYS_DEFAULT) };
        outcome = Some(repository.add(&out, &keys, &terms)?.outcome);
        publish::warn(repository, &repository.contents(&keys)?);
    }
    let place = if scratch.is_some() { pack.repo.clone().unwrap_or_default() } else { out.clone() };
    if context.json {
        context.print(&in_json(&Packed { package: &place, report: &report, warnings: &warnings, outcome }));
    } else {
        print_report(context, &report, &place, begun.elapsed());
    }
    Ok(())
}

/// What was packed, in JSON.
#[derive(Serialize)]
struct Packed<'a> {
    /// The package, or the repository that has its release.
    package: &'a Path,
    report: &'a PackReport,
    warnings: &'a [String],
    /// What became of it in the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
}

/// Returns the directory of the release and its configuration.
fn load_release(context: &Context, pack: &Pack) -> Result<(PathBuf, Config), PackCommandError> {
    let dir = context.path(&pack.dir);
    if !dir.is_dir() {
        return Err(PackCommandError::NoDirectory { path: dir });
    }
    if !dir.join(config::FILE).exists() {
        return Err(PackError::NoDescription { dir }.into());
    }
    // The whole configuration is checked here, where it can still be mended, and not first on the appliance.
    let config = Config::load_with_programs(&Programs::anywhere(&dir), &dir.join(config::NO_LOCAL_FILE))?;
    Ok((dir, config))
}

/// Returns what may not work where the release is installed.
fn warnings(dir: &Path, config: &Config, examined: &Examined, arch: &str) -> Vec<String> {
    let of_files = examined.warnings.iter().map(ToString::to_string);
    let obstacles: Vec<String> =
        find_obstacles_in_tree(config, dir).into_iter().map(|obstacle| obstacle.to_string()).collect();
    let closed = closed_to_accounts(config, examined, &obstacles, dir);
    of_files.chain(examined.contradiction(arch)).chain(obstacles.iter().cloned()).chain(closed).collect()
}

/// Returns warnings of what no component's account can read, besides what `obstacles` say. Nobody but the program knows whether it has to.
fn closed_to_accounts(config: &Config, examined: &Examined, obstacles: &[String], dir: &Path) -> Vec<String> {
    let is_root = |name: &str| matches!(name, "root" | "0");
    let accounts: BTreeSet<&str> = config.components.iter().filter_map(|component| component.user.as_deref()).collect();
    let accounts: Vec<&str> = accounts.into_iter().filter(|name| !is_root(name)).collect();
    if accounts.is_empty() {
        return Vec::new();
    }
    let is_said = |path: &str| {
        let path = format!("{} has the mode", dir.join(path).display());
        obstacles.iter().any(|obstacle| obstacle.contains(&path))
    };
    let unsaid: Vec<&Closed> = examined.closed.iter().filter(|closed| !is_said(&closed.path)).collect();
    let warnings = unsaid.iter().take(CLOSED_MAX).map(|Closed { path, mode }| {
        let accounts = accounts.join(", ");
        format!(
            "{path} is closed to {accounts}: it has the mode {mode:04o}; `chmod o+rX` it, unless only root reads it"
        )
    });
    let more = unsaid.len().saturating_sub(CLOSED_MAX);
    let rest = (more > 0).then(|| format!("{more} more files and directories are closed to {}", accounts.join(", ")));
    warnings.chain(rest).collect()
}

/// Returns how the package is made.
fn options(context: &Context, pack: &Pack, arch: String) -> Result<PackOptions, PackCommandError> {
    let released = release_date(context)?;
    Ok(PackOptions {
        codec: if pack.codec == "gzip" { Codec::Gzip } else { Codec::Zstd },
        level: pack.level,
        arch,
        expires: released.checked_add(SignedDuration::from_hours(24 * pack.expires_days)).unwrap_or(Timestamp::MAX),
        released,
        metadata_version: pack.metadata_version,
    })
}

/// Returns when a release that is packed now was made: what `SOURCE_DATE_EPOCH` says, as other build tools do, so that the
/// same input gives the same package; or now.
fn release_date(context: &Context) -> Result<Timestamp, PackCommandError> {
    let text = context.process.environment.get(&OsString::from(SOURCE_DATE_EPOCH));
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(clock::now()) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.ok_or_else(|| PackCommandError::NoTime { text: text.clone() })
}

/// Makes the package and shows how far it is.
fn make_with_bar(
    context: &Context,
    dir: &Path,
    out: &Path,
    keys: &Keys,
    options: &PackOptions,
) -> Result<PackReport, PackError> {
    let bar = context.bytes_bar("reading");
    bar.enable_steady_tick(Duration::from_millis(100));
    let report = make_package(dir, out, keys, options, &mut |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(match progress.step {
            PackStep::Hashing => "reading",
            PackStep::Compressing => "compressing",
        });
    });
    bar.finish_and_clear();
    report
}

fn print_report(context: &Context, report: &PackReport, place: &Path, elapsed: Duration) {
    context.print(&format!("{} {} for {}", report.appliance, report.version, report.arch));
    context.print("");
    print_totals(context, &report.totals);
    context.print("");
    context.print(&format!("digest    {}", report.digest));
    context.print(&format!(
        "package   {}, {} in {:.1} s",
        place.display(),
        HumanBytes(report.package_bytes),
        elapsed.as_secs_f32()
    ));
}

/// Says on standard error that what is signed is past its date the moment it is made.
fn warn_of_root(keys: &Keys, dir: &Path) {
    let (version, expires) = keys.root_version();
    if expires <= clock::now() {
        let text =
            format!("root {version} of these keys expired at {expires}, and with it every package that is signed");
        say(&format!("{text}; `refit keys renew {}` makes the next one", dir.display()));
    }
}
