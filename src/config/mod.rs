//! `appliance.toml`, parsed once: text -> [`Config`], or every mistake with its line and column.
//!
//! `REFIT_HOME/local.toml` overrides per machine, key by key: it has the same shape, and its components are matched by name.

mod check;
mod cycle;
mod expand;
mod kind;
mod operators;
mod programs;
mod raw;
mod read;
mod signal;
mod spawn;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use refit_base::{Exit, FileError, Report, Reported, file_error};
use refit_bus::{self as bus, RequestKind};
use refit_updater::trust::Expired;
use semver::Version;
use serde::{Deserialize, Serialize};

pub use expand::{Reference, VARIABLES, Variable, expand, expand_release, packed_program};
pub use kind::Kind;
pub use operators::OperatorsError;
pub use programs::Programs;
pub use signal::Signal;
pub use spawn::{Limits, NotifyAccess, Spawn};
pub use value::duration;

/// The name of the file in a release.
pub const FILE: &str = "appliance.toml";
/// The name of the file in a home that overrides it.
pub const LOCAL_FILE: &str = "local.toml";
/// A name that no file has: for a release that is on no machine.
pub const NO_LOCAL_FILE: &str = ".no-local-file";
/// The largest file that is read: a thousand components fit.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A whole appliance.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The appliance's name (its model).
    pub name: String,
    /// The release's version.
    pub version: Version,
    /// The runtime's program in the release; the installed `refit` if there is none.
    pub runtime: Option<String>,
    /// What restarts the runtime when it changes.
    pub watch: Watch,
    /// Whether components get control groups where the system lets us have them.
    pub cgroups: bool,
    /// The listeners that the runtime owns.
    pub listeners: BTreeMap<String, SocketAddr>,
    /// How updates are judged.
    pub update: Update,
    /// How much of what the components print is kept.
    pub log: LogLimits,
    /// The group whose members run the appliance, besides root and the runtime's own account.
    pub operators: Option<String>,
    /// The names by which browsers find it, besides its addresses and the name of the machine.
    pub names: Vec<String>,
    /// The appliance's own channels.
    pub channels: Vec<String>,
    /// The components, in the order of the file.
    pub components: Vec<Component>,
}

/// The files that something is asked for when they change.
#[derive(Debug, Clone, PartialEq)]
pub struct Watch {
    /// The files and directories, below the home or absolute.
    pub watched: Vec<Watched>,
    /// How long they must be left alone before they are taken to be whole.
    pub settle: Duration,
}

/// A file, or a directory, that something is asked for when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Where it is, or will be.
    pub path: PathBuf,
    /// What is asked.
    pub request: WatchRequest,
}

/// What is asked when a file changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WatchRequest {
    /// A restart in place.
    #[default]
    Restart,
    /// A reload.
    Reload,
}

impl WatchRequest {
    /// Returns its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Reload => "reload",
        }
    }
}

/// The listener on which the runtime itself serves the page and the API.
pub const ADMIN: &str = "admin";

/// How much of what the components print is kept on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// The largest file of a component.
    pub file_bytes: u64,
    /// How many files each component has at most.
    pub files: usize,
    /// All files of all components together.
    pub total_bytes: u64,
}

/// How updates are judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Healthy so long after the start is good.
    pub probation: Duration,
    /// The time limit of a component's start that has none of its own.
    pub start_timeout: Duration,
    /// How many good releases are kept.
    pub keep: usize,
    /// A runtime that is silent so long is ended.
    pub watchdog: Duration,
    /// How long requests under way may go on when the runtime stops.
    pub drain_grace: Duration,
    /// How long a package that arrives, or a repository that is asked, may bring nothing.
    pub receive_timeout: Duration,
    /// What is done with a package that comes as a file and whose metadata is past its date.
    pub expired_offline: Expired,
    /// Where newer releases are: an address, or a directory.
    pub repository: Option<String>,
}

/// What an update does to a component's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handover {
    /// The new process starts beside the old one, which is stopped when the new one is ready.
    Overlap,
    /// The old process is stopped before the new one starts.
    Restart,
    /// The process is not touched.
    Keep,
}

impl Handover {
    /// Returns the name that API and page show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::Restart => "restart",
            Self::Keep => "keep",
        }
    }
}

/// How a component says that it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// By `READY=1` over `NOTIFY_SOCKET`.
    Notify,
    /// By accepting on each of its listeners.
    Listen,
    /// By the first success of its health check.
    Health,
    /// By having executed its program.
    Exec,
    /// By having been started.
    Started,
}

/// How a component's health is judged from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// What is tried.
    pub probe: Probe,
    /// The pause between two probes.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// So many failures in a row are unhealthy.
    pub threshold: u32,
    /// What follows when it is unhealthy.
    #[serde(skip_serializing_if = "HealthAction::is_default")]
    pub action: HealthAction,
}

/// What follows when a component is unhealthy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthAction {
    /// It is said, and nothing is done.
    #[default]
    Report,
    /// Its process is ended, and the restart policy applies.
    Restart,
}

impl HealthAction {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Health {
    /// Returns the `host:port` that the probe connects to; `None` for a command.
    pub fn address(&self) -> Option<String> {
        match &self.probe {
            Probe::Http(url) => {
                let host = url.strip_prefix("http://")?.split(['/', '?', '#']).next()?;
                let host = host.rsplit('@').next()?;
                Some(if host.rsplit(']').next()?.contains(':') { host.to_owned() } else { format!("{host}:80") })
            }
            Probe::Tcp(address) => Some(address.to_string()),
            Probe::Command(_) => None,
        }
    }
}

/// One way to try a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// A GET that has to answer 2xx or 3xx.
    Http(String),
    /// A connection that has to be accepted.
    Tcp(SocketAddr),
    /// A command that has to end with 0.
    Command(Vec<String>),
}

/// When a component that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    No,
    /// When it ended with a failure.
    OnFailure,
    /// Whenever it ended without having been asked to.
    Always,
}

/// How a component is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restart {
    /// When.
    pub policy: RestartPolicy,
    /// The first and the longest pause.
    pub backoff: (Duration, Duration),
    /// At most so often in so long.
    pub limit: (u32, Duration),
}

/// One component.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// For how long its process is to live.
    #[serde(skip_serializing_if = "Kind::is_default")]
    pub kind: Kind,
    /// Program and arguments; a program with a slash is below the release.
    pub command: Vec<String>,
    /// The listeners that it is given, in order.
    pub listeners: Vec<String>,
    /// It starts after these, and not without them.
    pub needs: Vec<String>,
    /// It starts after these.
    pub after: Vec<String>,
    /// Lower is earlier among those that may start.
    pub priority: i32,
    /// What an update does to it.
    pub handover: Handover,
    /// How it says that it serves.
    pub ready: Ready,
    /// How its health is judged.
    pub health: Option<Health>,
    /// How it is started again.
    pub restart: Restart,
    /// How long its start may take.
    pub start_timeout: Duration,
    /// How long its stop may take before it is killed.
    pub stop_timeout: Duration,
    /// How long all that listens of it may take together for each phase of a reload.
    #[serde(skip_serializing_if = "is_reload_timeout_default")]
    pub reload_timeout: Duration,
    /// The directories below `data/` that it is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// The account it runs as.
    pub user: Option<String>,
    /// More environment.
    pub env: BTreeMap<String, String>,
    /// The files of the release that are its own, as patterns; all that are nobody else's if absent.
    pub files: Option<Vec<String>>,
    /// In which state its process begins, and how it is watched and limited.
    #[serde(flatten)]
    pub spawn: Spawn,
    /// What it may request, and look at.
    #[serde(flatten)]
    pub allow: Allowed,
    /// On which channels of the site's own life its processes may listen, beyond those that harm nobody; what it may request if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<String>>,
    /// Whether it must be stopped for a migration of the data.
    pub migrates: bool,
}

/// What a component may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// What it may request.
    #[serde(rename = "allow")]
    pub requests: Vec<RequestKind>,
    /// Whether it may look at more than the status.
    #[serde(rename = "allow_read", skip_serializing_if = "std::ops::Not::not")]
    pub read: bool,
}

/// The word in `allow` for [`Allowed::read`].
pub const ALLOW_READ: &str = "read";

/// How long a component may take for each phase of a reload that says nothing about it.
pub const RELOAD_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

fn is_reload_timeout_default(timeout: &Duration) -> bool {
    *timeout == RELOAD_TIMEOUT_DEFAULT
}

/// The channels on which who listens takes part in what the whole site does: it is waited for, and may refuse or fail.
pub const TRANSITIONS: [&str; 4] = [bus::START, bus::STOP, bus::EXIT, bus::RELOAD];

impl Component {
    /// Returns whether its processes may listen on `channel`. Where `listen` says nothing they may hear of what happens to them, within
    /// the component's own time; only who may ask for a reload may refuse one.
    pub fn may_listen(&self, channel: &str) -> bool {
        !TRANSITIONS.contains(&channel)
            || match &self.listen {
                Some(channels) => channels.iter().any(|name| name == channel),
                None => channel != bus::RELOAD || self.allow.requests.iter().any(|request| request.name() == channel),
            }
    }

    /// Returns how long all that listens of it on `channel`, one of [`TRANSITIONS`], may take together.
    pub fn time_on(&self, channel: &str) -> Duration {
        match channel {
            bus::START => self.start_timeout,
            bus::RELOAD => self.reload_timeout,
            _ => self.stop_timeout,
        }
    }
}

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// The file.
    pub file: PathBuf,
    /// What is wrong, for people.
    pub what: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.what)
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The files say something that cannot be.
    #[error("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Mistakes {
        /// All of them.
        mistakes: Vec<Mistake>,
    },
}

impl Reported for ConfigError {
    fn report(&self) -> Report<'_> {
        let remedy = match self {
            Self::File(_) => "restore the file, then try again",
            Self::Mistakes { .. } => "correct the file, then try again; nothing was started",
        };
        Report::new("configuration_refused", Exit::Config, remedy)
    }
}

impl Config {
    /// Reads the configuration of the release in `release`, overridden by the file `local` if there is one.
    ///
    /// # Errors
    /// A file cannot be read, or everything that is wrong in both.
    pub fn load(release: &Path, local: &Path) -> Result<Self, ConfigError> {
        Self::read(release, local, None)
    }

    /// As [`load`](Self::load); a program that is not there, or cannot be executed, is a mistake, too.
    ///
    /// Not for a release whose processes run already: they need no program any more.
    ///
    /// # Errors
    /// A file cannot be read, or everything that is wrong in both.
    pub fn load_with_programs(programs: &Programs, local: &Path) -> Result<Self, ConfigError> {
        Self::read(&programs.release, local, Some(programs))
    }

    fn read(release: &Path, local: &Path, programs: Option<&Programs>) -> Result<Self, ConfigError> {
        let path = release.join(FILE);
        let text = read_text(&path)?.ok_or_else(|| file_error("read", &path)(std::io::ErrorKind::NotFound.into()))?;
        let local_text = read_text(local)?;
        let local = local_text.as_deref().map(|text| (local, text));
        check::parse(&path, &text, local, programs).map_err(|mistakes| ConfigError::Mistakes { mistakes })
    }

    /// Returns the component `name`.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|component| component.name == name)
    }
}

fn read_text(path: &Path) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::from(file_error("read", path)(source));
    match refit_updater::durable::read_limited(path, CONFIG_BYTES_MAX) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error))),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(source)),
    }
}
