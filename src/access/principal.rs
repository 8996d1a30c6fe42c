//! Who is at the other end of a Unix socket.
//!
//! The kernel says the account and the process of a connection; a component's process also has the token of its launch. A
//! process that descends from a component is that component also when it keeps the token to itself: an account that is the
//! runtime's own does not make it the operator. That is a boundary between honest programs; what protects against a hostile one
//! is an account of its own.

use nix::unistd::{User, geteuid};
use refit_base::{Exit, Report, Reported};
use refit_bus::RequestKind;
use sha2::{Digest, Sha256};

use crate::carry::CarriedInstance;
use crate::carry::Registry;
use crate::config::Config;
use crate::process::caller::{Ancestor, Caller};

/// Who asks, and what they may request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
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
        allow: Vec<RequestKind>,
        /// Which of its processes, counted from 1.
        generation: u32,
        /// Whether this process of it has said that it serves.
        serves: bool,
    },
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
        Ok(Self::component(instance, config))
    }

    /// Returns who has shown no token.
    ///
    /// # Errors
    /// It is neither the operator nor a component, or is gone.
    pub(crate) fn without_token(caller: &Caller, config: &Config, registry: &Registry) -> Result<Self, IdentityError> {
        if let Some(instance) = comes_from(caller, &registry.instances()) {
            return Ok(Self::component(instance, config));
        }
        if !is_ours(caller.uid) {
            return Err(IdentityError::Stranger { uid: caller.uid });
        }
        if caller.is_gone() {
            return Err(IdentityError::Gone);
        }
        Ok(Self::Operator { account: caller.account() })
    }

    fn component(instance: &CarriedInstance, config: &Config) -> Self {
        let name = instance.component.clone();
        let allow = config.component(&name).map(|component| component.allow.clone()).unwrap_or_default();
        Self::Component { name, allow, generation: instance.generation, serves: instance.ready }
    }

    /// Returns whether it is a process that serves.
    pub(crate) fn serves(&self) -> bool {
        match self {
            Self::Operator { .. } => false,
            Self::Component { serves, .. } => *serves,
        }
    }

    /// Returns which of the component's processes it is, counted from 1; 0 for the operator.
    pub(crate) fn generation(&self) -> u32 {
        match self {
            Self::Operator { .. } => 0,
            Self::Component { generation, .. } => *generation,
        }
    }

    /// Returns the name that tickets, log and history show.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Operator { account } => format!("{account} (local)"),
            Self::Component { name, .. } => format!("component {name}"),
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

/// Why it is not known who asks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("the token belongs to no running process")]
    Token,
    #[error("uid {uid} is not the account of the component {component}")]
    Account { uid: u32, component: String },
    #[error("uid {uid} is neither root nor the runtime's account, and has shown no token")]
    Stranger { uid: u32 },
    #[error("the process at the other end is gone")]
    Gone,
}

impl Reported for IdentityError {
    fn report(&self) -> Report<'_> {
        let remedy = match self {
            Self::Token => "send the REFIT_TOKEN of the process's own environment",
            Self::Account { .. } => "connect as the account that appliance.toml names for the component",
            Self::Stranger { .. } => "connect as root, as the runtime's account, or as a component with its token",
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
    instances.iter().find(|instance| {
        caller.line.iter().any(|process| is_of(instance, process))
            || caller.token.as_deref().is_some_and(|token| is_same(token, &instance.token))
    })
}

/// Whether an account is root's or the runtime's own.
pub(crate) fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}
