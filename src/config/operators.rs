//! The group whose members run the appliance, besides root and the runtime's own account.
//!
//! It is the one that `[api] operators` names. Without it, it is the runtime's own group, unless the account of a component is a member:
//! that would become the operator by sharing it.

use nix::unistd::{Gid, Group, User, getegid, getgrouplist};
use refit_base::{Exit, Report, Reported};

use super::{Component, Config};

/// Why the group that `[api] operators` names cannot be it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorsError {
    /// There is no such group here.
    #[error("[api] operators names the group {group:?}, which is not on this machine")]
    Missing {
        /// The group.
        group: String,
    },
    /// A component would be an operator.
    #[error("[api] operators names the group {group:?}, of which the account of the component {component} is a member")]
    Shared {
        /// The group.
        group: String,
        /// The component.
        component: String,
    },
}

impl Reported for OperatorsError {
    fn report(&self) -> Report<'_> {
        let remedy = match self {
            Self::Missing { .. } => "make the group, or name another one in local.toml",
            Self::Shared { .. } => "name a group of which no component's account is a member in local.toml",
        };
        Report::new("configuration_refused", Exit::Config, remedy)
    }
}

impl Config {
    /// Returns the group whose members run the appliance; `None` if there is none.
    ///
    /// # Errors
    /// The one that is named is not on this machine, or the account of a component is a member.
    pub fn operators_group(&self) -> Result<Option<Gid>, OperatorsError> {
        let Some(name) = &self.operators else {
            let own = getegid();
            return Ok(self.components.iter().all(|component| !is_member(component, own)).then_some(own));
        };
        let found = Group::from_name(name).ok().flatten();
        let gid = found.ok_or_else(|| OperatorsError::Missing { group: name.clone() })?.gid;
        match self.components.iter().find(|component| is_member(component, gid)) {
            None => Ok(Some(gid)),
            Some(component) => Err(OperatorsError::Shared { group: name.clone(), component: component.name.clone() }),
        }
    }
}

/// Returns whether a process of `component` is a member of `group`. One that runs as the runtime's own account is known by where it comes
/// from, and by nothing else.
fn is_member(component: &Component, group: Gid) -> bool {
    let Some(name) = &component.user else { return false };
    let number = |name: &String| Group::from_name(name).ok().flatten().map(|group| group.gid);
    let user = User::from_name(name).ok().flatten();
    let own = match &component.spawn.group {
        Some(name) => number(name),
        None => user.as_ref().map(|user| user.gid),
    };
    let further = || match (&component.spawn.supplementary_groups, &user) {
        (Some(names), _) => names.iter().filter_map(number).collect(),
        (None, Some(user)) => std::ffi::CString::new(name.as_str())
            .ok()
            .and_then(|name| getgrouplist(&name, user.gid).ok())
            .unwrap_or_default(),
        (None, None) => Vec::new(),
    };
    own == Some(group) || further().contains(&group)
}
