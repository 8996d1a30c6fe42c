//! How the appliance is.

use semver::Version;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::bus::{BusState, Fault};
use super::component::Component;
use super::config::Config;
use super::confirm::Unconfirmed;
use super::health::Overall;
use super::package::{Reception, Staged};
use super::release::ReleaseState;
use super::trust::Trust;
use super::update::Update;

/// How the appliance is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Its name.
    #[schema(example = "shop")]
    pub appliance: String,
    /// How it is as a whole; `null` where an older release does not say it.
    #[serde(default)]
    pub health: Option<Overall>,
    /// The release that runs.
    pub release: CurrentRelease,
    /// The release that a rollback goes back to, if there is one.
    #[schema(value_type = Option<String>, example = "1.0.0")]
    pub previous: Option<Version>,
    /// The parent process.
    pub guard: Guard,
    /// The process image that answers.
    pub runtime: Runtime,
    /// The bus.
    pub bus: SiteState,
    /// The components, by name.
    pub components: Vec<Component>,
    /// The sockets that the appliance listens on, and those that it cannot have yet.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// The package that is arriving, if one is.
    pub receiving: Option<Reception>,
    /// The packages that were received and wait.
    #[serde(default)]
    pub staged: Vec<Staged>,
    /// What the update under way is doing, if one is.
    pub update: Option<Update>,
    /// The repository: a URL, or a directory; `null` if none is configured.
    #[schema(example = "https://updates.example.com/shop/")]
    pub repository: Option<String>,
    /// How long what is trusted is good.
    #[serde(default)]
    pub trust: Trust,
    /// What of the live configuration needs the admin.
    #[serde(default)]
    pub config: Config,
    /// Whether the disk of the home cannot be written to.
    #[serde(default)]
    #[schema(example = false)]
    pub read_only: bool,
    /// Everything that has failed since this process image began, the oldest first.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// The appliance's time, RFC 3339.
    #[serde(default)]
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub time: String,
}

/// The release that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CurrentRelease {
    /// Its version.
    #[schema(value_type = String, example = "1.1.0")]
    pub version: Version,
    /// `good`, or `trial` while it has to prove healthy.
    pub state: ReleaseState,
    /// When the probation ends if all stays well, RFC 3339; `null` when it is not known, or none is under way.
    #[schema(format = DateTime, example = "2026-01-01T12:00:05.000Z")]
    pub probation_ends_at: Option<String>,
}

/// The parent process, which starts the runtime and keeps its descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Guard {
    /// Its process.
    #[schema(example = 4700)]
    pub pid: u32,
}

/// A process image of the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Runtime {
    /// Its process.
    #[schema(example = 4701)]
    pub pid: u32,
    /// Counts the process images.
    #[schema(example = 3)]
    pub generation: u32,
    /// When it began, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub started_at: String,
    /// The version of Refit.
    #[serde(default)]
    #[schema(example = "0.1.0")]
    pub version: String,
}

/// The bus, as far as the status tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteState {
    /// Where the site stands.
    pub state: BusState,
    /// The reload that waits to be confirmed, if one does.
    #[serde(default)]
    pub unconfirmed: Option<Unconfirmed>,
}

/// A socket that the appliance listens on, or cannot have yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listener {
    /// Its name.
    #[schema(example = "http")]
    pub name: String,
    /// Its address and port.
    #[schema(example = "127.0.0.1:8080")]
    pub address: String,
    /// Why the appliance cannot have it yet; `null` if it has.
    #[schema(example = "Address already in use (os error 98)")]
    pub failure: Option<String>,
}
