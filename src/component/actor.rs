//! [`Process`]: a component that is a program of its own, on the bus.
//!
//! One task, the [`Actor`], owns the component's processes. The bus and the API send it commands through a queue.

use std::sync::Arc;
use std::time::Duration;

use refit_base::Cause;
use refit_bus::{self as bus, Act, Failure, Limits, Order, Phase, StopReason};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::command::{Action, Command};
use super::context::RunContext;
use super::health;
use super::instance::{Instance, Lost};
use super::recover;
use super::reload;
use super::runs::Runner;
use super::supervise::Actor;
use super::view::{State, View};
use crate::carry::{CarriedInstance, Descriptors, Registry, Role};
use crate::config::{Component, Kind, NotifyAccess};
use crate::handover::Named;
use crate::home::Home;

/// How many commands may wait: the bus sends one at a time, the API few.
const COMMANDS_MAX: usize = 16;
/// How long the bus waits for the actor, which keeps the limits of a start and a stop itself: a process may move them, and
/// nobody else knows by how much. This one only ends an actor that hangs.
const ACTOR_MAX: Duration = Duration::from_secs(24 * 3600);

/// A component on the bus.
#[derive(Debug)]
pub struct Process {
    component: Component,
    context: Arc<RunContext>,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
}

impl Process {
    /// Returns the component and starts its actor in `tasks`. `carried` are its processes from the image before.
    pub fn new(
        component: Component,
        fingerprint: String,
        context: Arc<RunContext>,
        carried: Vec<(CarriedInstance, CarriedParts)>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let mut current: Option<Instance> = None;
        let (mut outgoing, mut lost) = (Vec::new(), Vec::new());
        let newest = context.registry.newest_generation(&component.name);
        for (instance, CarriedParts(descriptors)) in carried {
            let role = instance.role;
            let instance = match Instance::adopt(instance, descriptors, component.spawn.notify_access, &context) {
                Ok(instance) => instance,
                Err(gone) => {
                    lost.push(gone);
                    continue;
                }
            };
            match (role, &current) {
                (Role::Current, Some(other)) if rank(other, &fingerprint) >= rank(&instance, &fingerprint) => {
                    outgoing.push(instance);
                }
                (Role::Current, _) => outgoing.extend(current.replace(instance)),
                (Role::Outgoing, _) => outgoing.push(instance),
            }
        }
        let health = if component.health.is_some() { health::State::Unknown } else { health::State::None };
        let (view_sender, view) = watch::channel(View {
            name: component.name.clone(),
            kind: component.kind,
            state: State::Stopped,
            wanted: false,
            pid: None,
            generation: newest,
            health,
            handover: component.handover,
            release: None,
            started_at: None,
            restarts: current.as_ref().map_or(0, |instance| instance.carried.restarts),
            status: None,
            announced: None,
            limits: std::collections::BTreeMap::new(),
            reason: None,
            output: Vec::new(),
            cause: Cause::Release,
            unexpected_exits: 0,
            last_run: None,
            next_run_at: None,
        });
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let shared = Arc::clone(&context);
        match component.kind {
            Kind::Service => {
                let actor = Actor::new(component.clone(), fingerprint, context, current, view_sender, newest);
                tasks.spawn(actor.run(receiver, outgoing, lost));
            }
            Kind::Once | Kind::Every(_) => {
                let runner = Runner::new(component.clone(), fingerprint, context, current, view_sender, newest);
                tasks.spawn(runner.run(receiver, outgoing, lost));
            }
        }
        Self { component, context: shared, commands, view }
    }

    /// Returns what can be seen of it.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Returns its definition.
    pub fn definition(&self) -> &Component {
        &self.component
    }

    fn tell(&self, action: Action) -> Act {
        let commands = self.commands.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let gone = || Failure::new("nobody looks after the component any more");
            commands.send(Command { action, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        })
    }

    /// Starts it because somebody asked for this component alone.
    ///
    /// # Errors
    /// It did not become ready.
    pub async fn start_alone(&self) -> Result<(), Failure> {
        self.tell(Action::Start { alone: true, cancelled: CancellationToken::new() }).await
    }

    /// Starts it after the site, which runs without it; one that an operator wants to be down is left down.
    ///
    /// # Errors
    /// It did not become ready.
    pub async fn start_again(&self) -> Result<(), Failure> {
        self.tell(Action::Start { alone: false, cancelled: CancellationToken::new() }).await
    }

    /// Has a start that failed be tried again, as its restart policy says.
    ///
    /// # Errors
    /// Nobody looks after the component any more.
    pub async fn retry(&self) -> Result<(), Failure> {
        self.tell(Action::Retry).await
    }

    /// Leaves it down: what runs of it ends in the time that an image before has left it, or else in its own.
    ///
    /// # Errors
    /// Nobody looks after the component any more.
    pub async fn leave_down(&self) -> Result<(), Failure> {
        self.tell(Action::LeaveDown).await
    }

    /// Stops it, whatever is to become of it.
    ///
    /// # Errors
    /// It could not be stopped.
    pub async fn stop_alone(&self) -> Result<(), Failure> {
        self.stop_now(false).await
    }

    /// Stops it because somebody wants it to be down: the next image of the same release does not start it.
    ///
    /// # Errors
    /// It could not be stopped.
    pub async fn stop_and_stay(&self) -> Result<(), Failure> {
        self.stop_now(true).await
    }

    async fn stop_now(&self, stays_down: bool) -> Result<(), Failure> {
        self.tell(Action::Stop { keep_running: false, stays_down, hurry: CancellationToken::new() }).await
    }
}

/// Returns how long the bus waits for a component.
pub(super) fn limits(component: &Component) -> Limits {
    /// Collecting what has run too long takes time, too.
    const GRACE: Duration = Duration::from_secs(5);
    // A process that may report may ask for more time, again and again; another one ends within its own.
    let by_itself = component.spawn.notify_access != NotifyAccess::None;
    let own = |limit: Duration| if by_itself { ACTOR_MAX } else { limit + GRACE };
    let checks = component.spawn.reload_check.is_some();
    let reload = component.reload_timeout.max(if checks { reload::CHECK_MAX + GRACE } else { Duration::ZERO });
    Limits {
        // What did not become ready is ended.
        start: Some(own(component.start_timeout + component.stop_timeout)),
        stop: Some(own(component.stop_timeout)),
        reload: Some(reload),
    }
}

/// Returns how well a process stands for its component, which this image starts from `fingerprint`, if an image that crashed in the
/// middle of an overlap has left several: one that serves does before one that does not yet, then the one that need not be replaced.
fn rank(instance: &Instance, fingerprint: &str) -> (bool, bool, u32) {
    let carried = &instance.carried;
    (carried.ready, carried.fingerprint == fingerprint, carried.generation)
}

/// The descriptors that belong to a carried process.
#[derive(Debug)]
pub struct CarriedParts(Descriptors);

impl CarriedParts {
    /// Takes those of the process `carried` from `parts`; what is not there is made anew. `None` if it is not, and the process has ended.
    pub fn find(carried: &CarriedInstance, parts: &mut Vec<Named>, home: &Home, registry: &Registry) -> Option<Self> {
        recover::find(carried, parts, home, registry).map(Self)
    }
}

/// Ends a process of a component that this release does not have.
pub fn end_stray(
    carried: CarriedInstance,
    CarriedParts(descriptors): CarriedParts,
    context: Arc<RunContext>,
    tasks: &mut JoinSet<()>,
) {
    /// As for a component that says nothing about it.
    const STOP_MAX: Duration = Duration::from_secs(10);
    tracing::info!(component.name = carried.component, process.pid = carried.pid, "ending a component that is no more");
    let adopted = Instance::adopt(carried, descriptors, NotifyAccess::All, &context);
    tasks.spawn(async move {
        match adopted {
            Ok(mut instance) => {
                let limit = instance.time_left(STOP_MAX);
                instance.stop(limit, &CancellationToken::new(), &context).await;
                instance.forget(&context);
            }
            Err(lost) => lost.forget(&context).await,
        }
    });
}

/// Removes what is left of a process that has ended.
pub fn forget_ended(carried: CarriedInstance, context: Arc<RunContext>, tasks: &mut JoinSet<()>) {
    tasks.spawn(async move { Lost::of(carried).forget(&context).await });
}

impl bus::Component for Process {
    fn name(&self) -> &str {
        &self.component.name
    }

    fn order(&self) -> Order {
        super::order(&self.component)
    }

    fn limits(&self) -> Limits {
        limits(&self.component)
    }

    fn start(self: Arc<Self>, cancelled: CancellationToken) -> Act {
        self.tell(Action::Start { alone: false, cancelled })
    }

    fn stop(self: Arc<Self>, reason: StopReason, hurry: CancellationToken) -> Act {
        let keep_running = reason.keeps_running(&self.component.name);
        self.tell(Action::Stop { keep_running, stays_down: false, hurry })
    }

    /// A process that is told by a signal is told when everybody has agreed: it cannot be told to go back.
    fn reload(self: Arc<Self>, phase: Phase, _generation: u64) -> Act {
        Box::pin(async move {
            let signal = self.component.spawn.reload_signal;
            match phase {
                Phase::Prepare => {
                    reload::prepare(signal, &self.view.borrow())?;
                    let pid = self.view.borrow().pid;
                    reload::check(&self.component, pid, &self.context).await
                }
                Phase::Commit => {
                    let (Some(signal), Some(pid)) = (signal, self.view.borrow().pid) else {
                        return Err(reload::gone());
                    };
                    self.tell(Action::Reload).await?;
                    reload::settle(signal, pid, self.view.clone()).await
                }
                Phase::Abort | Phase::Revert => Ok(()), // it is not asked to revert: it has not said that it can
            }
        })
    }

    fn exempt(&self) -> Option<String> {
        reload::exempt(self.component.spawn.reload_signal, &self.view.borrow())
    }
}
