//! Who is at the other end of a Unix socket, and what that one may.
//!
//! The kernel says the account and the process of a connection; a component's process also has the token of its launch. A
//! process that descends from a component is that component also when it keeps the token to itself: an account that is the
//! runtime's own does not make it the operator. That is a boundary between honest programs; what protects against a hostile one
//! is an account of its own.

use std::fs;

use nix::unistd::{Uid, User, geteuid};
use refit_bus::Ask;
use sha2::{Digest, Sha256};

use super::limits::PARENTS_MAX;
use super::protocol::Refusal;
use crate::component::Estate;
use crate::config::Config;
use crate::handover::carry::CarriedInstance;

/// The variable with the token of a launch.
const TOKEN: &str = "REFIT_TOKEN=";

/// One process on the way from a caller to the first of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ancestor {
    pid: i32,
    group: i32,
    session: i32,
    start_ticks: u64,
}

/// Who is at the other end, as the kernel says it when the connection is made: later the process may be another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The account.
    pub(crate) uid: u32,
    /// The process; none if it is outside of what this process can see.
    pub(crate) pid: Option<i32>,
    /// The process and its parents, nearest first; none if it is gone.
    line: Vec<Ancestor>,
    /// The token in its environment, if that can be read.
    token: Option<String>,
}

/// What the kernel's table says of a process: proc_pid_stat(5).
struct Stat {
    state: char,
    parent: i32,
    flags: u64,
    ancestor: Ancestor,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; what follows its last one is numbers.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: number(1)?,
        flags: fields.get(6)?.parse().ok()?,
        ancestor: Ancestor { pid, group: number(2)?, session: number(3)?, start_ticks: fields.get(19)?.parse().ok()? },
    })
}

/// Returns whether the process has ended, or is about to.
pub(super) fn is_ending(pid: i32) -> bool {
    /// The kernel's mark of a process that is being taken apart.
    const EXITING: u64 = 4;
    stat(pid).is_none_or(|stat| stat.flags & EXITING != 0 || matches!(stat.state, 'Z' | 'X'))
}

impl Caller {
    /// Returns who the kernel says made a connection.
    pub(crate) fn new(uid: u32, pid: Option<i32>) -> Self {
        let mut line = Vec::new();
        let mut next = pid.unwrap_or(0);
        while next > 0 && line.len() < PARENTS_MAX {
            let Some(stat) = stat(next) else { break };
            line.push(stat.ancestor);
            next = stat.parent;
        }
        let environment = pid.and_then(|pid| fs::read(format!("/proc/{pid}/environ")).ok()).unwrap_or_default();
        let token = environment
            .split(|byte| *byte == 0)
            .find_map(|variable| Some(std::str::from_utf8(variable).ok()?.strip_prefix(TOKEN)?.to_owned()));
        Self { uid, pid, line, token }
    }

    /// Returns the name of its account, or the number if it has none.
    pub(crate) fn account(&self) -> String {
        let user = User::from_uid(Uid::from_raw(self.uid)).ok().flatten();
        user.map_or_else(|| format!("uid {}", self.uid), |user| user.name)
    }

    /// Returns whether it was gone when it was looked at. One that cannot be seen from here is not.
    fn is_gone(&self) -> bool {
        self.pid.is_some_and(|pid| pid > 0) && self.line.is_empty()
    }

    /// Returns the component's process that it is, or comes from.
    fn comes_from<'a>(&self, instances: &'a [CarriedInstance]) -> Option<&'a CarriedInstance> {
        let is_of = |instance: &CarriedInstance, process: &Ancestor| {
            let itself = process.pid == instance.pid && process.start_ticks == instance.start_ticks;
            itself || process.group == instance.pid || process.session == instance.pid
        };
        instances.iter().find(|instance| {
            self.line.iter().any(|process| is_of(instance, process))
                || self.token.as_deref().is_some_and(|token| is_same(token, &instance.token))
        })
    }
}

/// Returns whether two tokens are the same, in a time that says nothing about where they differ.
fn is_same(one: &str, other: &str) -> bool {
    Sha256::digest(one) == Sha256::digest(other)
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Whoever runs the appliance: root, or the runtime's own account.
    Operator {
        /// The account.
        account: String,
    },
    /// A component's process.
    Component {
        /// The component.
        name: String,
        /// What it may request.
        allow: Vec<Ask>,
        /// Whether this process of it has said that it serves.
        serves: bool,
    },
}

impl Owner {
    /// Returns who the component's process with this `token` is.
    ///
    /// # Errors
    /// No running process has it, or the account is not the component's.
    pub(crate) fn by_token(token: &str, caller: &Caller, config: &Config, estate: &Estate) -> Result<Self, Refusal> {
        let instances = estate.instances();
        let instance = instances.iter().find(|instance| is_same(&instance.token, token)).ok_or(Refusal::Token)?;
        let component = config.component(&instance.component);
        let account = component.and_then(|component| component.user.as_deref());
        let uid = match account {
            Some(account) => User::from_name(account).ok().flatten().map(|user| user.uid.as_raw()),
            None => Some(geteuid().as_raw()),
        };
        if Some(caller.uid) != uid && !is_ours(caller.uid) {
            return Err(Refusal::Account { uid: caller.uid, component: instance.component.clone() });
        }
        Ok(Self::component(instance, config))
    }

    /// Returns who has shown no token.
    ///
    /// # Errors
    /// It is neither the operator nor a component, or is gone.
    pub(crate) fn without_token(caller: &Caller, config: &Config, estate: &Estate) -> Result<Self, Refusal> {
        if let Some(instance) = caller.comes_from(&estate.instances()) {
            return Ok(Self::component(instance, config));
        }
        if !is_ours(caller.uid) {
            return Err(Refusal::Stranger { uid: caller.uid });
        }
        if caller.is_gone() {
            return Err(Refusal::Gone);
        }
        Ok(Self::Operator { account: caller.account() })
    }

    fn component(instance: &CarriedInstance, config: &Config) -> Self {
        let name = instance.component.clone();
        let allow = config.component(&name).map(|component| component.allow.clone()).unwrap_or_default();
        Self::Component { name, allow, serves: instance.ready }
    }

    /// Returns whether it is a process that serves.
    pub(super) fn serves(&self) -> bool {
        match self {
            Self::Operator { .. } => false,
            Self::Component { serves, .. } => *serves,
        }
    }

    /// Returns the name that tickets, log and history show.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Operator { account } => format!("{account} (local)"),
            Self::Component { name, .. } => format!("component {name}"),
        }
    }

    /// Returns why it may not request `ask`; `None` if it may.
    pub(crate) fn forbids(&self, ask: Ask) -> Option<String> {
        match self {
            Self::Operator { .. } => None,
            Self::Component { allow, .. } if allow.contains(&ask) => None,
            Self::Component { name, .. } => {
                let ask = ask.name();
                Some(format!("{ask} is not among what appliance.toml allows the component {name}"))
            }
        }
    }

    /// Returns the component that it is.
    pub(crate) fn component_name(&self) -> Option<&str> {
        match self {
            Self::Operator { .. } => None,
            Self::Component { name, .. } => Some(name),
        }
    }
}

/// Whether an account is root's or the runtime's own.
pub(crate) fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_with_its_parents() {
        let pid = i32::try_from(std::process::id()).expect("fits");
        let caller = Caller::new(geteuid().as_raw(), Some(pid));
        assert_eq!(caller.line.first().map(|process| process.pid), Some(pid));
        assert!(caller.line.len() > 1 && !caller.is_gone() && !is_ending(pid));
        assert!(Caller::new(0, Some(i32::MAX)).is_gone() && is_ending(i32::MAX));
        assert!(!Caller::new(0, None).is_gone());
    }
}
