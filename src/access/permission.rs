//! What somebody may: operators everything, a component what `appliance.toml` allows it.

use refit_bus::{self as bus, RequestKind};

use super::principal::Principal;
use crate::config::Config;

impl Principal {
    /// Returns why it may not make requests of this `kind`; `None` if it may.
    pub(crate) fn forbids(&self, kind: RequestKind) -> Option<String> {
        match self {
            Self::Operator { .. } => None,
            Self::Component { allow, .. } if allow.contains(&kind) => None,
            Self::Component { name, .. } => {
                let kind = kind.name();
                Some(format!("{kind} is not among what appliance.toml allows the component {name}"))
            }
        }
    }
}

/// Returns why `principal` may not listen on `channel`; `None` if it may. Who listens where the whole site goes somewhere is waited for,
/// and may refuse.
pub(crate) fn forbids_listening(principal: &Principal, channel: &str, config: &Config) -> Option<String> {
    let name = principal.component_name()?;
    let may = config.component(name).is_none_or(|component| component.may_listen(channel));
    (!may).then(|| format!("{channel} is not among what appliance.toml lets the component {name} listen to"))
}

/// Returns whether `channel` is the runtime's own: nobody publishes there from outside.
pub(crate) fn is_reserved(channel: &str) -> bool {
    bus::BUILT_IN.contains(&channel) || channel.starts_with("component.") || channel.starts_with("refit.")
}
