//! What somebody may: operators everything, a component what `appliance.toml` allows it, a stranger what is public.

use refit_bus::{self as bus, RequestKind};

use super::principal::Principal;
use crate::config::Config;

/// What something that can be asked for takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permission {
    /// Nothing: who asks need not be known.
    Public,
    /// To see how the appliance is: everybody who is known.
    Status,
    /// To look at everything else.
    Read,
    /// To look at a ticket: at one's own, everybody who is known.
    Ticket,
    /// To make a request of the kind that is named in it.
    AnyRequest,
    /// To make a request of this kind.
    Request(RequestKind),
    /// To publish on the appliance's own channels: everybody who is known.
    Publish,
    /// To start and stop single components.
    Operate,
    /// To end one's session.
    Session,
}

impl Permission {
    /// Returns its name, as the documentation has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Status => "status",
            Self::Read => "read",
            Self::Ticket => "ticket",
            Self::AnyRequest => "the request",
            Self::Request(kind) => kind.name(),
            Self::Publish => "publish",
            Self::Operate => "operate",
            Self::Session => "session",
        }
    }
}

/// Why somebody may not do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Forbidden {
    /// Nobody knows who it is.
    Unknown,
    /// It may not look at this.
    Look(String),
    /// It may not change this.
    Change(String),
}

impl Principal {
    /// Returns whether it may do what takes `permission`.
    ///
    /// # Errors
    /// It may not: why.
    pub(crate) fn may(&self, permission: Permission) -> Result<(), Forbidden> {
        let (name, allow) = match self {
            Self::Operator { .. } => return Ok(()),
            Self::Anonymous if permission == Permission::Public => return Ok(()),
            Self::Anonymous => return Err(Forbidden::Unknown),
            Self::Component { name, allow, .. } => (name, allow),
        };
        let is_allowed = match permission {
            Permission::Public
            | Permission::Status
            | Permission::Ticket
            | Permission::AnyRequest
            | Permission::Publish => true,
            Permission::Read => allow.read,
            Permission::Request(kind) => allow.requests.contains(&right(kind)),
            Permission::Operate | Permission::Session => false,
        };
        if is_allowed {
            return Ok(());
        }
        let what = match permission {
            Permission::Request(kind) => right(kind).name(),
            Permission::Public
            | Permission::Status
            | Permission::Read
            | Permission::Ticket
            | Permission::AnyRequest
            | Permission::Publish
            | Permission::Operate
            | Permission::Session => permission.name(),
        };
        let reason = format!("{what} is not among what appliance.toml allows the component {name}");
        if permission == Permission::Read { Err(Forbidden::Look(reason)) } else { Err(Forbidden::Change(reason)) }
    }

    /// Returns why it may not make requests of this `kind`; `None` if it may.
    pub(crate) fn forbids(&self, kind: RequestKind) -> Option<String> {
        match self.may(Permission::Request(kind)) {
            Ok(()) => None,
            Err(Forbidden::Unknown) => Some(format!("{} takes an account", kind.name())),
            Err(Forbidden::Look(reason) | Forbidden::Change(reason)) => Some(reason),
        }
    }

    /// Returns whether it may see the ticket of a request that `origin` made.
    pub(crate) fn sees_ticket_of(&self, origin: &str) -> bool {
        self.may(Permission::Read).is_ok() || (self.may(Permission::Ticket).is_ok() && self.origin() == origin)
    }
}

/// Returns the right that a request of this `kind` takes: who may reload may confirm it.
fn right(kind: RequestKind) -> RequestKind {
    if kind == RequestKind::Confirm { RequestKind::Reload } else { kind }
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
