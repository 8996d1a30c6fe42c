//! Everything that can be known about a release before anything stops.
//!
//! The configuration is merged and read, programs are looked for, addresses are tried, and the release's own runtime makes a dry
//! run. What fails here leaves the running release untouched.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::libc::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
use refit_base::{Cause, Chain, Exit, lock};
use refit_updater::Store;
use refit_updater::config::{Existing, MergeReport, merge_config};
use refit_updater::mount;
use refit_updater::release::Release;
use semver::Version;
use tokio::process::Command;

use super::error::UpdateError;
use crate::awake;
use crate::component::{self, Places};
use crate::config::{self, Config};
use crate::handover::listener::Listeners;
use crate::home::Home;
use crate::process::launch::Begin;
use crate::process::resources::Resources;
use crate::process::{installed, program};

/// How long a dry run may take: it reads a few files.
const DRY_RUN_MAX: Duration = Duration::from_secs(30);
/// How many of its last lines explain a failed dry run.
const OUTPUT_LINES_MAX: usize = 20;

/// A release that may be tried. Only [`examine`] makes one.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) release: Release,
    pub(super) config: Config,
    pub(super) program: PathBuf,
}

/// Merges the configuration of the release `to`, coming from `from`. Blocks.
///
/// # Errors
/// A file cannot be read or written; the running release's configuration is untouched.
pub(super) fn merge(store: &Store, from: &Version, to: &Version, back: bool) -> Result<MergeReport, UpdateError> {
    let existing = if back { Existing::Keep } else { Existing::Replace };
    Ok(merge_config(store, Some(from), to, existing)?)
}

/// Examines `release`, while this appliance has `listeners`, and `search` is the `PATH` that components get.
///
/// # Errors
/// What is wrong with it. Nothing was changed.
pub(super) async fn examine(
    home: &Home,
    release: Release,
    appliance: &str,
    listeners: &Mutex<Listeners>,
    installed: &Path,
    search: Option<&OsStr>,
    found: Resources,
) -> Result<Examined, UpdateError> {
    let version = release.version.clone();
    let wrong = |source| UpdateError::Config { version: version.clone(), source };
    let config = Config::load(&release.dir, &home.path().join(config::LOCAL_FILE)).map_err(wrong)?;
    let misnamed = |said: String| UpdateError::Misnamed { file: config::FILE, version: version.clone(), said };
    if config.name != appliance {
        return Err(misnamed(config.name));
    }
    if config.version != version {
        return Err(misnamed(config.version.to_string()));
    }
    for component in &config.components {
        let program = &component.command[0];
        let path = config::expand_release(program, release.dir.as_os_str());
        let packed = path.filter(|path| path.as_encoded_bytes().contains(&b'/'));
        if packed.is_some_and(|path| !is_executable(&release.dir.join(path))) {
            return Err(UpdateError::NotExecutable { program: program.clone(), version });
        }
    }
    config.operators_group()?;
    lock(listeners).try_all(&config.listeners)?;
    let config = examine_accounts(home, &release, config, search).await?;
    let program = config.runtime.as_ref().map(|program| release.dir.join(program));
    let program = examine_runtime(home, program, installed, &version, found).await?;
    Ok(Examined { release, config, program })
}

/// Lets the accounts of the release's components into its configuration, and finds out whether they reach what they need.
async fn examine_accounts(
    home: &Home,
    release: &Release,
    config: Config,
    search: Option<&OsStr>,
) -> Result<Config, UpdateError> {
    let version = release.version.clone();
    let places = Places {
        home: home.clone(),
        release: release.dir.clone(),
        version: version.clone(),
        search: search.map(OsStr::to_owned),
    };
    let work = move || {
        component::open_config(&places.home.config(&places.version), &config);
        let obstacles = component::find_obstacles(&config, &places);
        (config, obstacles)
    };
    let (config, obstacles) =
        tokio::task::spawn_blocking(work).await.map_err(|source| UpdateError::Worker { source })?;
    match obstacles.first() {
        None => Ok(config),
        Some(first) => Err(UpdateError::NotReached {
            version,
            what: first.to_string(),
            count: obstacles.len(),
            cause: if obstacles.iter().any(|found| found.is_packed) { Cause::Release } else { Cause::Machine },
        }),
    }
}

/// Finds out what can be the runtime of the release `version`: the `program` that it brings, or the one at `installed` for one that brings
/// none. Where that ends like something that is not `refit` at all, it is what the guard was started from.
///
/// # Errors
/// It is not there, cannot be executed, or does not understand what it will need.
pub(super) async fn examine_runtime(
    home: &Home,
    program: Option<PathBuf>,
    installed: &Path,
    version: &Version,
    found: Resources,
) -> Result<PathBuf, UpdateError> {
    if let Some(program) = program {
        if let Err(unfit) = program::look(&program) {
            let (program, version) = (program.display().to_string(), version.clone());
            return Err(UpdateError::NotAProgram { program, version, unfit });
        }
        return match dry_run(home, &program, found, version).await {
            Ok(()) => Ok(program),
            Err(failed) => Err(failed.error),
        };
    }
    let guard = std::os::unix::process::parent_id();
    let held = installed::held(guard);
    let program = installed::program(installed, guard);
    let failed = match dry_run(home, &program, found, version).await {
        Ok(()) => return Ok(program),
        Err(failed) if failed.is_answer || program == held => return Err(failed.error),
        Err(failed) => failed,
    };
    // If the other does no better, the release may be to blame.
    dry_run(home, &held, found, version).await.map_err(|failed| failed.error)?;
    tracing::warn!(
        program = %program.display(),
        error = %Chain(&failed.error),
        "the installed refit cannot be used; the one that the guard was started from is"
    );
    Ok(held)
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A dry run that failed.
struct Failed {
    error: UpdateError,
    /// Whether `refit` itself said so, or the system.
    is_answer: bool,
}

/// Has the program read everything that it will need as the runtime of `version`.
async fn dry_run(home: &Home, program: &Path, found: Resources, version: &Version) -> Result<(), Failed> {
    let failed = |how: String, cause, output, is_answer| Failed {
        error: UpdateError::DryRun { version: version.clone(), how, cause, output },
        is_answer,
    };
    let run = Command::new("/proc/self/exe")
        .args(["launch", "--no-shell"])
        .args(Begin::with(found).arguments())
        .arg("--")
        .arg(program)
        .args(["runtime", "--home"])
        .arg(home.path())
        .arg("--check")
        .arg(version.to_string())
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match awake::timeout(DRY_RUN_MAX, run).await {
        Some(Ok(output)) => output,
        Some(Err(error)) => {
            return Err(failed(format!("it cannot be executed: {error}"), Cause::of(&error), Vec::new(), true));
        }
        None => {
            let how = format!("it did not end within {} s", DRY_RUN_MAX.as_secs());
            return Err(failed(how, Cause::Release, Vec::new(), false));
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let last = lines[lines.len().saturating_sub(OUTPUT_LINES_MAX)..].to_vec();
    let how = match last.last() {
        Some(line) => format!("{}: {line}", output.status),
        None => output.status.to_string(),
    };
    // Elsewhere its programs could be executed.
    let cause = if mount::is_noexec(&home.release(version)) { Cause::Machine } else { cause_of(output.status) };
    let is_answer =
        cause == Cause::Machine || output.status.code().map(Exit::from_code).is_some_and(installed::is_answer);
    Err(failed(how, cause, last, is_answer))
}

/// Returns whose trouble it was that a dry run ended so: it says itself if a disk failed it, or passing trouble, and a kill came from
/// outside.
fn cause_of(status: ExitStatus) -> Cause {
    match (status.code().map(Exit::from_code), status.signal()) {
        (Some(Exit::Disk | Exit::TryLater), _) => Cause::Machine,
        (None, Some(SIGKILL | SIGTERM | SIGINT | SIGHUP)) => Cause::Machine,
        (Some(_) | None, _) => Cause::Release,
    }
}
