//! Who asks: known by the page's session, or by what the kernel says of the other end of a Unix socket.
//!
//! The kernel says the account and the process of a connection; a component's process also has the token of its launch. A
//! process that descends from a component is that component also when it keeps the token to itself, and one in the component's
//! control group is, too, whatever it descends from. What else comes from below the guard was left behind by a component, nobody
//! knows by which: an account that is the runtime's own does not make it the operator. That is a boundary between honest
//! programs; what protects against a hostile one is an account of its own.

use nix::unistd::{User, geteuid};
use refit_base::{Exit, Report, Reported};
use sha2::{Digest, Sha256};

use super::operators::{Operators, is_ours};
use crate::carry::CarriedInstance;
use crate::carry::Registry;
use crate::config::{Allowed, Config};
use crate::process::caller::{Ancestor, Caller};

/// Who asks, and what `appliance.toml` allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
    /// Somebody on the admin listener who has not logged in.
    Anonymous,
    /// An account that runs the appliance.
    Operator {
        /// The account: of the page, or of the machine.
        account: String,
        /// Where it came in.
        door: Door,
    },
    /// A component's process.
    Component {
        /// The component.
        name: String,
        /// What it may do.
        allow: Allowed,
        /// Which of its processes, counted from 1.
        generation: u32,
        /// Whether this process of it has said that it serves.
        serves: bool,
    },
}

/// Where an operator came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// The admin listener.
    Web,
    /// A Unix socket.
    Local,
}

impl Principal {
    /// Returns who the component's process with this `token` is.
    ///
    /// # Errors
    /// No running process has it, or the account is not the component's.
    pub(crate) fn by_token(
        token: &str,
        caller: &Caller,
        config: &Config,
        registry: &Registry,
    ) -> Result<Self, IdentityError> {
        let instances = registry.instances();
        let instance = instances.iter().find(|instance| is_same(&instance.token, token)).ok_or(IdentityError::Token)?;
        let component = config.component(&instance.component);
        let account = component.and_then(|component| component.user.as_deref());
        let uid = match account {
            Some(account) => User::from_name(account).ok().flatten().map(|user| user.uid.as_raw()),
            None => Some(geteuid().as_raw()),
        };
        if Some(caller.uid) != uid && !is_ours(caller.uid) {
            return Err(IdentityError::Account { uid: caller.uid, component: instance.component.clone() });
        }
        if let Some(own) = comes_from(caller, &instances)
            && own.component != instance.component
        {
            return Err(IdentityError::Other { own: own.component.clone(), component: instance.component.clone() });
        }
        Ok(Self::component(instance, config))
    }

    /// Returns who has shown no token.
    ///
    /// # Errors
    /// It is neither one of the `operators` nor a component, or is gone.
    pub(crate) fn without_token(
        caller: &Caller,
        config: &Config,
        registry: &Registry,
        operators: &Operators,
    ) -> Result<Self, IdentityError> {
        if let Some(instance) = comes_from(caller, &registry.instances()) {
            return Ok(Self::component(instance, config));
        }
        if !operators.include(caller) {
            return Err(IdentityError::Stranger { uid: caller.uid });
        }
        if caller.is_gone() {
            return Err(IdentityError::Gone);
        }
        if operators.may_have_started(caller) {
            return Err(IdentityError::LeftBehind { pid: caller.pid.unwrap_or(0) });
        }
        Ok(Self::Operator { account: caller.account(), door: Door::Local })
    }

    fn component(instance: &CarriedInstance, config: &Config) -> Self {
        let name = instance.component.clone();
        let allow = config.component(&name).map(|component| component.allow.clone()).unwrap_or_default();
        Self::Component { name, allow, generation: instance.generation, serves: instance.ready }
    }

    /// Returns whether it is a process that serves.
    pub(crate) fn serves(&self) -> bool {
        match self {
            Self::Anonymous | Self::Operator { .. } => false,
            Self::Component { serves, .. } => *serves,
        }
    }

    /// Returns which of the component's processes it is, counted from 1; 0 for others.
    pub(crate) fn generation(&self) -> u32 {
        match self {
            Self::Anonymous | Self::Operator { .. } => 0,
            Self::Component { generation, .. } => *generation,
        }
    }

    /// Returns the name that tickets, log and history show.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Anonymous => "nobody (web)".to_owned(),
            Self::Operator { account, door: Door::Web } => format!("{account} (web)"),
            Self::Operator { account, door: Door::Local } => format!("{account} (local)"),
            Self::Component { name, .. } => format!("component {name}"),
        }
    }

    /// Returns the component that it is.
    pub(crate) fn component_name(&self) -> Option<&str> {
        match self {
            Self::Anonymous | Self::Operator { .. } => None,
            Self::Component { name, .. } => Some(name),
        }
    }
}

/// Why it is not known who asks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("the token belongs to no running process")]
    Token,
    #[error("uid {uid} is not the account of the component {component}")]
    Account { uid: u32, component: String },
    #[error("uid {uid} is neither root nor the runtime's account nor in the operators' group, and has shown no token")]
    Stranger { uid: u32 },
    #[error("process {pid} was started by a component that does not run any more, or has got away from it")]
    LeftBehind { pid: i32 },
    #[error("the token is that of the component {component}, and the process belongs to {own}")]
    Other { own: String, component: String },
    #[error("the process at the other end is gone")]
    Gone,
}

impl Reported for IdentityError {
    fn report(&self) -> Report<'_> {
        let remedy = match self {
            Self::Token | Self::Other { .. } => "send the REFIT_TOKEN of the process's own environment",
            Self::Account { .. } => "connect as the account that appliance.toml names for the component",
            Self::Stranger { .. } => {
                "connect as root, as the runtime's account, as a member of the group that [api] operators names, or as a component with its token"
            }
            Self::LeftBehind { .. } => "send the REFIT_TOKEN of the component, or ask from a shell of the operator's",
            Self::Gone => "connect from a process that goes on living",
        };
        Report::new("not_known", Exit::Usage, remedy)
    }
}

/// Returns whether two tokens are the same, in a time that says nothing about where they differ.
fn is_same(one: &str, other: &str) -> bool {
    Sha256::digest(one) == Sha256::digest(other)
}

/// Returns the component's process that `caller` is, or comes from.
fn comes_from<'a>(caller: &Caller, instances: &'a [CarriedInstance]) -> Option<&'a CarriedInstance> {
    let is_of = |instance: &CarriedInstance, process: &Ancestor| {
        let itself = process.pid == instance.pid && process.start_ticks == instance.start_ticks;
        itself || process.group == instance.pid || process.session == instance.pid
    };
    let is_grouped_with = |instance: &CarriedInstance| match (&caller.control_group, &instance.cgroup) {
        (Some(of_caller), Some(of_instance)) => of_caller.starts_with(of_instance),
        (Some(_) | None, Some(_) | None) => false,
    };
    instances.iter().find(|instance| {
        caller.line.iter().any(|process| is_of(instance, process))
            || is_grouped_with(instance)
            || caller.token.as_deref().is_some_and(|token| is_same(token, &instance.token))
    })
}
