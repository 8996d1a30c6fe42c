//! How long what the appliance trusts is good.

use jiff::Timestamp;
use refit_updater::trust::TrustStatus;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long what the appliance trusts is good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trust {
    /// The trusted root and the newest metadata that was accepted.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// The latest date of a signed release that was accepted, RFC 3339.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-01T12:00:00Z")]
    pub released: Option<Timestamp>,
    /// Whether the clock is before that: then no date can be judged.
    #[serde(default)]
    #[schema(example = false)]
    pub clock_behind: bool,
    /// What the admin should see to, the worst first.
    #[serde(default)]
    #[schema(example = json!(["the trusted root metadata expires at 2026-03-01T00:00:00Z: install a package with the vendor's newer root"]))]
    pub warnings: Vec<String>,
    /// The first of them.
    #[schema(
        example = "the trusted root metadata expires at 2026-03-01T00:00:00Z: install a package with the vendor's newer root"
    )]
    pub warning: Option<String>,
}

/// One role's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Role {
    /// The role: `root`, `timestamp`, `snapshot` or `targets`.
    #[schema(example = "root")]
    pub role: String,
    /// Where it came from: `root`, `package` (the last one accepted) or `repository`.
    #[schema(example = "root")]
    pub source: String,
    /// Its version.
    #[schema(example = 1)]
    pub version: u64,
    /// When it expires, RFC 3339.
    #[schema(value_type = String, format = DateTime, example = "2027-01-01T12:00:00Z")]
    pub expires: Timestamp,
    /// Whole days until then; negative when it is past.
    #[schema(example = 365)]
    pub expires_in_days: i64,
}

impl Trust {
    /// Returns a trust of which nothing is known, for the reason that the `warning` says.
    pub fn unknown(warning: String) -> Self {
        Self { warnings: vec![warning.clone()], warning: Some(warning), ..Self::default() }
    }
}

impl From<TrustStatus> for Trust {
    fn from(status: TrustStatus) -> Self {
        let role = |role: refit_updater::trust::RoleStatus| Role {
            role: role.role.to_owned(),
            source: role.source.to_owned(),
            version: role.version,
            expires: role.expires,
            expires_in_days: role.expires_in_days,
        };
        Self {
            roles: status.roles.into_iter().map(role).collect(),
            released: status.released,
            clock_behind: status.clock_behind,
            warnings: status.warnings,
            warning: status.warning,
        }
    }
}
