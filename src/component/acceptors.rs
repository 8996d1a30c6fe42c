//! Whether a process of one instance accepts from a listener, where processes of others may do so, too: the instance before it,
//! which serves until it has been told to stop, a component that another release gave the listener, or one that shares it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use refit_base::{Exit, lock};
use tokio::process::Command;

use super::context::RunContext;
use super::spawn;
use super::variables::Variables;
use crate::carry::CarriedInstance;
use crate::config::Component;
use crate::probe::acceptor::{self, Candidates, Hidden, Taken};
use crate::process::cgroup::Group;
use crate::process::descendants::Descendants;

/// How long the process may take that looks with the component's own account.
const LOOK_MAX: Duration = Duration::from_secs(1); // as long the connection keeps a server that serves one after the other

/// Who has accepted a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A process of the instance, or one that cannot be of another.
    Ours,
    /// Another one: that says nothing about the instance.
    Others,
    /// No process, for so long.
    Nobody,
    /// A process, and this time it was not found: why not.
    Unseen(String),
    /// A process, and none that could be looked into: why not.
    Hidden(String),
}

/// The processes of one instance, as those that may accept.
pub(super) struct Acceptors<'a> {
    component: &'a Component,
    context: &'a RunContext,
    id: String,
    descendants: Descendants,
}

impl<'a> Acceptors<'a> {
    /// Returns the processes of the instance `carried` of `component`.
    pub(super) fn of(carried: &CarriedInstance, component: &'a Component, context: &'a RunContext) -> Self {
        Self { component, context, id: carried.id.clone(), descendants: descendants_of(carried) }
    }

    /// Returns whether processes of another instance may accept from the component's listeners.
    pub(super) fn have_rivals(&self) -> bool {
        self.rivals().next().is_some()
    }

    /// Returns whether one of those has not been told to stop.
    pub(super) fn have_serving_rivals(&self) -> bool {
        self.rivals().any(|rival| rival.ending.is_none())
    }

    /// Returns whether one has not been told to stop that this instance comes in place of.
    pub(super) fn have_serving_predecessors(&self) -> bool {
        self.rivals().any(|rival| rival.ending.is_none() && !self.shares_a_listener(&rival))
    }

    /// Returns whether a component of this release is given one of the listeners, too: such a one may be there for good.
    pub(super) fn have_sharers(&self) -> bool {
        self.rivals().any(|rival| self.shares_a_listener(&rival))
    }

    /// Returns the instance before this one, which may be on its way out, and those of other components that were given one of its
    /// listeners.
    fn rivals(&self) -> impl Iterator<Item = CarriedInstance> {
        let others = self.context.registry.instances().into_iter().filter(|other| other.id != self.id);
        others.filter(|other| {
            other.component == self.component.name
                || self.component.listeners.iter().any(|name| {
                    let was_given = other.release != self.context.version && other.may_have(name);
                    was_given || self.is_given(&other.component, name)
                })
        })
    }

    fn shares_a_listener(&self, rival: &CarriedInstance) -> bool {
        rival.component != self.component.name
            && self.component.listeners.iter().any(|name| self.is_given(&rival.component, name))
    }

    /// Returns whether this release gives the listener `name` to `component`.
    fn is_given(&self, component: &str, name: &String) -> bool {
        self.context.shares.get(component).is_some_and(|names| names.contains(name))
    }

    /// Returns the listener of the component at the port of `address`, if there is one.
    pub(super) fn listener_at(&self, address: SocketAddr) -> Option<TcpListener> {
        let listeners = lock(&self.context.listeners);
        let all = self.component.listeners.iter().filter_map(|name| listeners.get(name));
        let mut here = all.filter(|listener| {
            let local = listener.local_addr();
            local.is_ok_and(|local| {
                local.port() == address.port() && (local.ip() == address.ip() || local.ip().is_unspecified())
            })
        });
        here.next().and_then(|listener| listener.try_clone().ok())
    }

    /// Makes `count` connections to `listener` and returns who accepts them within `limit`.
    ///
    /// # Errors
    /// The connection is refused, or the kernel cannot be asked.
    pub(super) async fn of_new_connections(
        &self,
        listener: &TcpListener,
        count: u32,
        limit: Duration,
    ) -> std::io::Result<Verdict> {
        let (taken, _held) = acceptor::taken_by(listener, self.candidates(true), count, limit).await?;
        Ok(self.judge(taken).await)
    }

    /// Makes `count` connections to `server`, a listener of the component, and returns one with who accepts it within `limit`.
    ///
    /// # Errors
    /// The connection is refused, or the kernel cannot be asked.
    pub(super) async fn connect(
        &self,
        server: SocketAddr,
        count: u32,
        limit: Duration,
    ) -> std::io::Result<(Verdict, Option<std::net::TcpStream>)> {
        let (taken, connection) = acceptor::connect(server, self.candidates(true), count, limit).await?;
        Ok((self.judge(taken).await, connection))
    }

    /// Returns who has accepted the connection from `client` to `server`, which is still open here. Of a `server` that is not a
    /// listener of the component, other components are no others: they may answer for it.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(super) async fn of_connection(&self, server: SocketAddr, client: SocketAddr) -> std::io::Result<Verdict> {
        let is_own = self.listener_at(server).is_some();
        Ok(self.judge(acceptor::owner_of(server, client, self.candidates(is_own)).await?).await)
    }

    /// Returns what finds the processes of the instance, and those of `all` other ones or of the component's other ones.
    fn candidates(&self, all: bool) -> impl Fn() -> Candidates + Clone + Send + 'static {
        let theirs = self.descendants.clone();
        let registry = Arc::clone(&self.context.registry);
        let (id, name) = (self.id.clone(), self.component.name.clone());
        move || {
            let instances = registry.instances().into_iter().filter(|other| other.id != id);
            let others = instances.filter(|other| all || other.component == name);
            let others = others.flat_map(|other| descendants_of(&other).processes()).collect();
            Candidates { theirs: theirs.processes(), others }
        }
    }

    async fn judge(&self, taken: Taken) -> Verdict {
        match taken {
            Taken::Theirs => Verdict::Ours,
            Taken::Others => Verdict::Others,
            Taken::Nobody => Verdict::Nobody,
            // Where there is nobody else, it does not matter that this one could not be seen.
            Taken::Closed | Taken::Hidden(_) | Taken::Stranger if !self.have_rivals() => Verdict::Ours,
            Taken::Stranger => Verdict::Others,
            Taken::Closed => Verdict::Unseen("closed before it was seen by whom".to_owned()),
            Taken::Hidden(hidden) => self.look(&hidden).await,
        }
    }

    /// Looks with the component's own account, which may look into its processes.
    async fn look(&self, hidden: &Hidden) -> Verdict {
        let mut words: Vec<OsString> = vec!["/proc/self/exe".into(), "holds".into(), hidden.inode.to_string().into()];
        words.extend(hidden.processes.iter().map(|pid| pid.to_string().into()));
        let variables = Variables::new(self.component, "", self.context);
        let begin = spawn::begin(self.component, &variables, self.context, None, &BTreeMap::new());
        let mut command = Command::from(spawn::launcher(&words, self.context, &begin, 0));
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let exit = |status: &std::process::ExitStatus| status.code().map(Exit::from_code);
        let status = tokio::time::timeout(LOOK_MAX, command.status()).await;
        match status {
            Ok(Ok(status)) if exit(&status) == Some(Exit::Done) => Verdict::Ours,
            Ok(Ok(status)) if exit(&status) == Some(Exit::Unavailable) => Verdict::Others,
            Ok(Ok(_)) => Verdict::Hidden("their descriptors cannot be read, by their own account either".to_owned()),
            // That says nothing about the next time.
            Ok(Err(error)) => Verdict::Unseen(format!("accepted, but by whom cannot be looked at: {error}")),
            Err(_) => Verdict::Unseen(format!("accepted, but by whom was not seen within {} s", LOOK_MAX.as_secs())),
        }
    }
}

fn descendants_of(carried: &CarriedInstance) -> Descendants {
    let group = carried.cgroup.as_deref().and_then(Group::found);
    Descendants::of(group, Descendants::mark(&carried.token), carried.pid, carried.start_ticks)
}
