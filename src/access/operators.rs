//! Which accounts of this machine run the appliance: root, the runtime's own, and the members of one group.
//!
//! Which group that is the configuration says ([`Config::operators_group`]).

use nix::unistd::{Gid, User, geteuid};

use crate::config::{Component, Config, OperatorsError};
use crate::process::caller::Caller;

/// The accounts that run the appliance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Operators {
    /// Members of it are among them.
    group: Option<u32>,
    /// The accounts of the components: none of them is, whatever group it is in.
    components: Vec<u32>,
    /// The guard and the runtime: what is below them, they or a component have started.
    above: Vec<i32>,
}

impl Operators {
    /// Returns those of an appliance with this `config`. `above` are the processes that start its components. Where the group cannot be
    /// the one that is named, which is said, they are root and the runtime's own account.
    pub(crate) fn of(config: &Config, above: Vec<i32>) -> (Self, Option<OperatorsError>) {
        let account = |component: &Component| User::from_name(component.user.as_deref()?).ok().flatten();
        let components = config.components.iter().filter_map(account).map(|user| user.uid.as_raw()).collect();
        let (group, error) = match config.operators_group() {
            Ok(group) => (group.map(Gid::as_raw), None),
            Err(error) => (None, Some(error)),
        };
        (Self { group, components, above }, error)
    }

    /// Returns the group whose members are among them.
    pub(crate) fn group(&self) -> Option<u32> {
        self.group
    }

    /// Returns whether the account of `caller` is one of them.
    pub(super) fn include(&self, caller: &Caller) -> bool {
        let is_member = || self.group.is_some_and(|group| caller.groups.contains(&group));
        is_ours(caller.uid) || (!self.components.contains(&caller.uid) && is_member())
    }

    /// Returns whether the appliance itself has started `caller`, or may have.
    pub(super) fn may_have_started(&self, caller: &Caller) -> bool {
        caller.may_be_below(&self.above)
    }
}

/// Whether an account is root's or the runtime's own.
pub(crate) fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}
