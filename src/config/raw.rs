//! `appliance.toml` and `local.toml` as they are written: every key optional, nothing checked but the keys' names and types.
//!
//! Both files have this one shape, so that what the machine's own file says can be laid over what the release says, key by key.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// A whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) appliance: RawAppliance,
    pub(super) runtime: RawRuntime,
    pub(super) listeners: BTreeMap<Spanned<String>, Spanned<String>>,
    pub(super) update: RawUpdate,
    pub(super) bus: RawBus,
    pub(super) api: RawApi,
    pub(super) log: RawLog,
    pub(super) component: Vec<Spanned<RawComponent>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAppliance {
    pub(super) name: Option<Spanned<String>>,
    pub(super) version: Option<Spanned<String>>,
    /// The oldest release that this one can update; read when the release is packed.
    pub(super) requires: Option<Spanned<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRuntime {
    pub(super) binary: Option<Spanned<String>>,
    pub(super) watch: Option<Vec<Spanned<RawWatch>>>,
    pub(super) settle: Option<Spanned<String>>,
    pub(super) cgroups: Option<bool>,
}

/// A path, or a table with the path and what is asked when it changes.
#[derive(Debug, Clone)]
pub(super) struct RawWatch {
    pub(super) path: String,
    pub(super) request: Option<Spanned<String>>,
}

impl<'de> Deserialize<'de> for RawWatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            path: String,
            request: Option<Spanned<String>>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RawWatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a table { path = \"...\", request = \"reload\" }")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<RawWatch, E> {
                Ok(RawWatch { path: path.to_owned(), request: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawWatch, A::Error> {
                let Table { path, request } = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(RawWatch { path, request })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawUpdate {
    pub(super) probation: Option<Spanned<String>>,
    pub(super) start_timeout: Option<Spanned<String>>,
    pub(super) keep: Option<Spanned<u32>>,
    pub(super) watchdog: Option<Spanned<String>>,
    pub(super) drain_grace: Option<Spanned<String>>,
    pub(super) receive_timeout: Option<Spanned<String>>,
    pub(super) expired_offline: Option<Spanned<String>>,
    pub(super) repository: Option<Spanned<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) file_bytes: Option<Spanned<String>>,
    pub(super) files: Option<Spanned<u32>>,
    pub(super) total_bytes: Option<Spanned<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBus {
    pub(super) channels: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawApi {
    pub(super) operators: Option<Spanned<String>>,
    pub(super) names: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawComponent {
    pub(super) name: Option<Spanned<String>>,
    pub(super) kind: Option<Spanned<String>>,
    pub(super) every: Option<Spanned<String>>,
    pub(super) data: Option<Vec<Spanned<String>>>,
    pub(super) command: Option<Spanned<Vec<String>>>,
    pub(super) listeners: Option<Vec<Spanned<String>>>,
    pub(super) needs: Option<Vec<Spanned<String>>>,
    pub(super) after: Option<Vec<Spanned<String>>>,
    pub(super) priority: Option<i32>,
    pub(super) handover: Option<Spanned<String>>,
    pub(super) ready: Option<Spanned<String>>,
    pub(super) health: Option<RawHealth>,
    pub(super) restart: Option<RawRestart>,
    pub(super) start_timeout: Option<Spanned<String>>,
    pub(super) stop_timeout: Option<Spanned<String>>,
    pub(super) reload_timeout: Option<Spanned<String>>,
    pub(super) user: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
    pub(super) supplementary_groups: Option<Vec<Spanned<String>>>,
    pub(super) env: Option<BTreeMap<Spanned<String>, String>>,
    #[serde(alias = "directory")]
    pub(super) working_directory: Option<Spanned<String>>,
    pub(super) umask: Option<Spanned<String>>,
    pub(super) no_new_privs: Option<bool>,
    pub(super) limits: Option<RawLimits>,
    pub(super) watchdog: Option<Spanned<String>>,
    pub(super) notify_access: Option<Spanned<String>>,
    pub(super) reload_signal: Option<Spanned<String>>,
    pub(super) reload_check: Option<Spanned<Vec<String>>>,
    pub(super) stop_signal: Option<Spanned<String>>,
    pub(super) pass: Option<Spanned<String>>,
    pub(super) files: Option<Vec<Spanned<String>>>,
    pub(super) allow: Option<Vec<Spanned<String>>>,
    pub(super) listen: Option<Vec<Spanned<String>>>,
    pub(super) migrates: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHealth {
    pub(super) http: Option<Spanned<String>>,
    pub(super) tcp: Option<Spanned<String>>,
    pub(super) command: Option<Spanned<Vec<String>>>,
    pub(super) interval: Option<Spanned<String>>,
    pub(super) timeout: Option<Spanned<String>>,
    pub(super) threshold: Option<Spanned<u32>>,
    pub(super) action: Option<Spanned<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    pub(super) memory: Option<Spanned<String>>,
    pub(super) cpu: Option<Spanned<String>>,
    pub(super) files: Option<Spanned<u64>>,
    pub(super) processes: Option<Spanned<u64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRestart {
    pub(super) policy: Option<Spanned<String>>,
    pub(super) backoff: Option<Spanned<String>>,
    pub(super) limit: Option<Spanned<String>>,
}
