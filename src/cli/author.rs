//! `refit pack` and `refit inspect`: packages.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use jiff::{SignedDuration, Timestamp};
use refit_base::clock;
use refit_base::{Exit, Reported};
use refit_updater::inspect::{Change, Comparison, InspectError, compare, inspect_open as look_into};
use refit_updater::keys::{Keys, KeysError};
use refit_updater::manifest::{ARCH_ANY, Body, Codec, Kind, Totals};
use refit_updater::pack::{METADATA_VERSION, PackError, PackOptions, PackStep, file_name, pack as make_package};
use refit_updater::repository::author::{Repository, RepositoryError, Terms};
use serde_json::json;

use super::arguments::number_in;
use super::context::Context;
use super::input::Input;
use super::keys::{DAYS_MAX, in_days};
use crate::config::{self, Config, ConfigError, Programs};

/// The machines that Linux runs on, as `std::env::consts::ARCH` names them: an appliance compares a package's with that.
const MACHINES: [&str; 20] = [
    "x86_64",
    "aarch64",
    "arm",
    "x86",
    "riscv64",
    "riscv32",
    "loongarch64",
    "loongarch32",
    "powerpc64",
    "powerpc",
    "s390x",
    "mips64",
    "mips64r6",
    "mips",
    "mips32r6",
    "sparc64",
    "sparc",
    "m68k",
    "csky",
    "hexagon",
];
/// What else they are called.
const OTHER_NAMES: [(&[&str], &str); 5] = [
    (&["amd64", "x64", "x86-64"], "x86_64"),
    (&["arm64"], "aarch64"),
    (&["armhf", "armel", "armv6l", "armv7", "armv7l"], "arm"),
    (&["i386", "i486", "i586", "i686"], "x86"),
    (&["ppc64", "ppc64le", "ppc64el"], "powerpc64"),
];
/// How long a package's signatures are good when nobody says.
const EXPIRES_DAYS_DEFAULT: i64 = 365;
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
    /// The machine it is for; `any` for releases without machine code.
    #[arg(long, default_value = std::env::consts::ARCH, value_parser = machine)]
    arch: String,
    /// How many days its signatures are good.
    #[arg(long, default_value_t = EXPIRES_DAYS_DEFAULT, value_parser = number_in(1..=DAYS_MAX))]
    expires_days: i64,
    /// The version of the package's metadata. An appliance that has installed it refuses packages with a lower one for good,
    /// even with --allow-downgrade. Of no meaning in a repository.
    #[arg(long, value_name = "N", default_value_t = METADATA_VERSION)]
    #[arg(value_parser = number_in(1..=METADATA_VERSION_MAX))]
    metadata_version: u64,
}

#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// The package, a file, a pipe, or `-` for standard input; of two, the one that is installed.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The package that comes: what it changes is shown, and what of it must be transferred.
    #[arg(value_name = "NEW")]
    new: Option<PathBuf>,
    /// Verify it against this root of trust.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Decode and check every byte.
    #[arg(long)]
    check: bool,
}

/// Returns the machine that is called `name`, if it is one that Refit's own name for it may be: see `std::env::consts::ARCH`.
fn machine(name: &str) -> Result<String, String> {
    if name == ARCH_ANY || MACHINES.contains(&name) {
        return Ok(name.to_owned());
    }
    let other = OTHER_NAMES.iter().find(|(others, _)| others.contains(&name)).map(|(_, machine)| machine);
    Err(match other {
        Some(machine) => format!("it is called {machine} here"),
        None => format!("use one of {ARCH_ANY}, {}", MACHINES.join(", ")),
    })
}

/// Why nothing was made or shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("there is no directory {}", path.display())]
    NoDirectory { path: PathBuf },
    #[error("{SOURCE_DATE_EPOCH} is {said:?}, which is no time")]
    NoTime { said: std::ffi::OsString },
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Reported for AuthorError {
    fn code(&self) -> &str {
        match self {
            Self::Keys(_) => "keys_unusable",
            Self::Pack(_) => "not_packed",
            Self::Repository(_) => "repository_unusable",
            Self::NoDirectory { .. } | Self::NoTime { .. } => "not_packed",
            Self::Inspect(_) => "package_refused",
            Self::Config(error) => error.code(),
            Self::Read { .. } => "file_unreadable",
        }
    }

    fn remedy(&self) -> &str {
        match self {
            Self::Keys(error) => error.remedy(),
            Self::Pack(error) => error.remedy(),
            Self::Repository(error) => error.remedy(),
            Self::NoDirectory { .. } => "name the directory of a release: one with an appliance.toml",
            Self::NoTime { .. } => "give it in seconds since 1970, or leave it out to pack with the time it is",
            Self::Inspect(error) => error.remedy(),
            Self::Config(error) => error.remedy(),
            Self::Read { .. } => "check the name and the permissions",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Keys(error) => super::keys::exit_of(error),
            Self::Config(_) => Exit::Config,
            Self::Pack(PackError::Io { .. }) => Exit::Disk,
            Self::Pack(_) => Exit::Refused,
            Self::Repository(error) => error.class().into(),
            Self::Inspect(InspectError::Directory { .. }) => Exit::Usage,
            Self::Inspect(error) => error.class().into(),
            Self::NoDirectory { .. } | Self::NoTime { .. } | Self::Read { .. } => Exit::Usage,
        }
    }
}

/// Returns when a release that is packed now was made: what `SOURCE_DATE_EPOCH` says, as other build tools do, so that the
/// same input gives the same package; or now.
fn released(context: &Context) -> Result<Timestamp, AuthorError> {
    let said = context.process.environment.get(&std::ffi::OsString::from(SOURCE_DATE_EPOCH));
    let Some(said) = said.filter(|text| !text.is_empty()) else { return Ok(clock::now()) };
    let seconds = said.to_str().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.ok_or_else(|| AuthorError::NoTime { said: said.clone() })
}

pub(super) fn pack(context: &Context, pack: &Pack) -> Exit {
    match try_pack(context, pack) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

fn try_pack(context: &Context, pack: &Pack) -> Result<(), AuthorError> {
    let begun = Instant::now();
    let dir = context.path(&pack.dir);
    if !dir.is_dir() {
        return Err(AuthorError::NoDirectory { path: dir });
    }
    if !dir.join(config::FILE).exists() {
        return Err(PackError::NoDescription { dir }.into());
    }
    // The whole configuration is checked here, where it can still be mended, and not first on the appliance.
    let config = Config::load_with_programs(&Programs::anywhere(&dir), &dir.join(config::NO_LOCAL_FILE))?;
    let keys = super::keys::open(context, &pack.keys, &pack.with)?;
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
    let released = released(context)?;
    let options = PackOptions {
        codec: if pack.codec == "gzip" { Codec::Gzip } else { Codec::Zstd },
        level: pack.level,
        arch: pack.arch.clone(),
        expires: released.checked_add(SignedDuration::from_hours(24 * pack.expires_days)).unwrap_or(Timestamp::MAX),
        released,
        metadata_version: pack.metadata_version,
    };
    let bar = context.bytes_bar("reading");
    bar.enable_steady_tick(Duration::from_millis(100));
    let report = make_package(&dir, &out, &keys, &options, &mut |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(match progress.step {
            PackStep::Hashing => "reading",
            PackStep::Compressing => "compressing",
        });
    });
    bar.finish_and_clear();
    let report = report?;
    let mut outcome = None;
    if let Some(repository) = &mut repository {
        let expires = options.expires;
        let terms =
            Terms { now: clock::now(), expires, timestamp_expires: in_days(super::repo::TIMESTAMP_DAYS_DEFAULT) };
        outcome = Some(repository.add(&out, &keys, &terms)?.outcome);
        super::repo::warn(repository, &repository.contents(&keys)?);
    }
    let place = if scratch.is_some() { pack.repo.clone().unwrap_or_default() } else { out.clone() };
    if context.json {
        let mut object = json!({ "package": place, "report": report });
        if let Some(outcome) = outcome {
            object["outcome"] = json!(outcome);
        }
        context.print(&object.to_string());
        return Ok(());
    }
    context.print(&format!("{} {} for {}", report.appliance, report.version, report.arch));
    context.print("");
    print_totals(context, &report.totals);
    context.print("");
    context.print(&format!("digest    {}", report.digest));
    context.print(&format!(
        "package   {}, {} in {:.1} s",
        place.display(),
        HumanBytes(report.package_bytes),
        begun.elapsed().as_secs_f32()
    ));
    Ok(())
}

/// Says on standard error that what is signed is past its date the moment it is made.
fn warn_of_root(keys: &Keys, dir: &Path) {
    let (version, expires) = keys.root_version();
    if expires <= clock::now() {
        let text =
            format!("root {version} of these keys expired at {expires}, and with it every package that is signed");
        drop(writeln!(io::stderr().lock(), "refit: {text}; `refit keys renew {}` makes the next one", dir.display()));
    }
}

/// Prints what a release holds: a line for each kind, and what the lines do not say.
fn print_totals(context: &Context, totals: &Totals) {
    let row = |what: String, files: u64, links: u64, installed: u64, stored: u64| {
        let share = (100 * stored).checked_div(installed).map_or_else(String::new, |share| format!("{share} %"));
        let (installed, stored) = (HumanBytes(installed).to_string(), HumanBytes(stored).to_string());
        vec![what, files.to_string(), links.to_string(), installed, stored, share]
    };
    let mut rows = Vec::new();
    let (mut files, mut links, mut installed, mut stored) = (0, 0, 0, 0);
    for sums in &totals.kinds {
        files += sums.files;
        links += sums.links;
        installed += sums.installed_bytes;
        stored += sums.stored_bytes;
        rows.push(row(kind_name(sums.kind), sums.files, sums.links, sums.installed_bytes, sums.stored_bytes));
    }
    rows.push(row("all".to_owned(), files, links, installed, stored));
    super::table::print_table(context, &["KIND", "FILES", "LINKS", "INSTALLED", "PACKED", "OF IT"], &rows);
    let mut notes = vec![format!("{} directories", totals.directories)];
    if totals.repeated_bytes > 0 {
        notes.push(format!("{} are there more than once and packed once", HumanBytes(totals.repeated_bytes)));
    }
    if totals.hole_bytes > 0 {
        notes.push(format!("{} are zeros and take no space", HumanBytes(totals.hole_bytes)));
    }
    context.print(&notes.join("; "));
}

fn kind_name(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

pub(super) fn inspect(context: &Context, inspect: &Inspect) -> Exit {
    match try_inspect(context, inspect) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

fn try_inspect(context: &Context, inspect: &Inspect) -> Result<(), AuthorError> {
    let root = match &inspect.root {
        Some(path) => {
            let path = context.path(path);
            Some(std::fs::read(&path).map_err(|source| AuthorError::Read { path, source })?)
        }
        None => None,
    };
    let look = |path| {
        let input = Input::new(context, path);
        let opened = input.open().map_err(|source| {
            let path = input.path().to_owned();
            let is_dir = source.kind() == std::io::ErrorKind::IsADirectory;
            if is_dir { InspectError::Directory { path }.into() } else { AuthorError::Read { path, source } }
        })?;
        Ok::<_, AuthorError>(look_into(opened, input.path(), root.as_deref(), inspect.check, clock::now())?)
    };
    let found = look(&inspect.file)?;
    if let Some(new) = &inspect.new {
        print_comparison(context, &compare(&found, &look(new)?));
        return Ok(());
    }
    if context.json {
        context.print(&json!(found).to_string());
        return Ok(());
    }
    let manifest = &found.manifest;
    context.print(&format!("{} {} for {}", manifest.appliance(), manifest.version(), manifest.arch()));
    context.print(&format!("digest    {}", found.digest));
    let trusted = if found.trusted { "verified against the given root" } else { "not verified: no --root was given" };
    context.print(&format!("signed    by {}, {trusted}", found.key_ids.join(", ")));
    context.print(&format!("expires   {}{}", found.expires, if found.expired { ", which is past" } else { "" }));
    if let Some(requires) = manifest.requires() {
        context.print(&format!("requires  {requires} or newer"));
    }
    let installed = manifest.installed_bytes();
    context.print(&format!(
        "size      {} packed, {} installed",
        HumanBytes(found.package_bytes),
        HumanBytes(installed)
    ));
    context.print(&format!(
        "content   {}",
        if found.checked { "every byte is as signed" } else { "not checked: no --check" }
    ));
    context.print("");
    print_totals(context, &found.totals);
    context.print("");
    let rows: Vec<Vec<String>> = manifest
        .files()
        .iter()
        .map(|file| {
            let (mode, size, packed) = match &file.body {
                Body::Regular { mode, size, frames, .. } => {
                    let repeated = frames.is_empty() && *size > 0;
                    let packed =
                        if repeated { "as above".to_owned() } else { HumanBytes(file.stored_bytes()).to_string() };
                    (mode.to_string(), HumanBytes(*size).to_string(), packed)
                }
                Body::Link { target } => ("link".to_owned(), format!("-> {target}"), String::new()),
            };
            vec![file.path.clone(), kind_name(file.kind), mode, size, packed]
        })
        .collect();
    super::table::print_table(context, &["FILE", "KIND", "MODE", "SIZE", "PACKED"], &rows);
    Ok(())
}

/// Prints what an update changes, file by file.
fn print_comparison(context: &Context, found: &Comparison) {
    if context.json {
        context.print(&json!(found).to_string());
        return;
    }
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| HumanBytes(bytes).to_string());
    let rows: Vec<Vec<String>> = found
        .changes
        .iter()
        .map(|change| {
            let what = match change.change {
                Change::Added => "added",
                Change::Removed => "removed",
                Change::Changed => "changed",
                Change::Mode => "mode",
            };
            let transfer = match (&change.from, change.transfer_bytes) {
                (Some(from), _) => format!("as {from}"),
                (None, 0) => String::new(),
                (None, bytes) => HumanBytes(bytes).to_string(),
            };
            vec![what.to_owned(), change.path.clone(), size(change.old_bytes), size(change.new_bytes), transfer]
        })
        .collect();
    context.print(&format!("{} -> {}", found.old.version, found.new.version));
    context.print(&format!(
        "transfer  {} of {}; {} of {} files unchanged",
        HumanBytes(found.transfer_bytes),
        HumanBytes(found.new.package_bytes),
        found.unchanged,
        found.new.files
    ));
    context.print(&format!(
        "installed {}, before {}",
        HumanBytes(found.new.installed_bytes),
        HumanBytes(found.old.installed_bytes)
    ));
    context.print("");
    super::table::print_table(context, &["CHANGE", "FILE", "BEFORE", "AFTER", "TRANSFER"], &rows);
}
