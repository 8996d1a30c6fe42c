//! [`Process`]: a component that is a program of its own, on the bus.
//!
//! One task, the actor, owns the component's processes: the current one, and those on their way out. The bus and the API ask it
//! through a queue. It notices when a process ends by itself and starts it again as the restart policy says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::estate::Descriptors;
use super::health;
use super::instance::{Instance, Surroundings, wait_ready};
use super::view::{State, View};
use crate::bus::{self, Act, Failure, Limits, Order, StopReason};
use crate::config::{Component, Handover, RestartPolicy};
use crate::handover::carry::{CarriedInstance, Role};

/// How many orders may wait: the bus sends one at a time, the API few.
const ORDERS_MAX: usize = 16;
/// How long the kernel may take to remove a killed process, on top of the stop's own limit.
const KILL_ALLOWANCE: Duration = Duration::from_secs(5);

enum Asked {
    Start { cancelled: CancellationToken },
    Stop { leave: bool, hurry: CancellationToken },
}

struct Ask {
    asked: Asked,
    reply: oneshot::Sender<Result<(), Failure>>,
}

/// A component on the bus.
#[derive(Debug)]
pub struct Process {
    component: Component,
    asks: mpsc::Sender<Ask>,
    view: watch::Receiver<View>,
}

impl Process {
    /// Returns the component and starts its actor in `tasks`. `carried` are its processes from the image before.
    pub fn new(
        component: Component,
        fingerprint: String,
        around: Arc<Surroundings>,
        carried: Vec<(CarriedInstance, CarriedParts)>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let mut current: Option<Instance> = None;
        let mut outgoing = Vec::new();
        let newest = around.estate.newest_generation(&component.name);
        for (instance, CarriedParts(descriptors)) in carried {
            let role = instance.role;
            let Some(instance) = Instance::adopt(instance, descriptors, &around) else { continue };
            match (role, &current) {
                (Role::Current, Some(other)) if other.carried.generation >= instance.carried.generation => {
                    outgoing.push(instance);
                }
                (Role::Current, _) => outgoing.extend(current.replace(instance)),
                (Role::Outgoing, _) => outgoing.push(instance),
            }
        }
        let health = if component.health.is_some() { health::State::Unknown } else { health::State::None };
        let (view_sender, view) = watch::channel(View {
            name: component.name.clone(),
            state: State::Stopped,
            pid: None,
            generation: newest,
            health,
            handover: component.handover,
            release: None,
            started_at: None,
            restarts: current.as_ref().map_or(0, |instance| instance.carried.restarts),
            status: None,
            reason: None,
            output: Vec::new(),
            downs: 0,
        });
        let (asks, receiver) = mpsc::channel(ORDERS_MAX);
        let actor = Actor {
            component: component.clone(),
            fingerprint,
            around,
            current,
            outgoing: Outgoing::default(),
            wanted: false,
            restart_at: None,
            ends: VecDeque::new(),
            view: view_sender,
            health: None,
            newest,
        };
        tasks.spawn(actor.run(receiver, outgoing));
        Self { component, asks, view }
    }

    /// Returns what can be seen of it.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Returns its definition.
    pub fn definition(&self) -> &Component {
        &self.component
    }

    fn ask(&self, asked: Asked) -> Act {
        let asks = self.asks.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let gone = || Failure::new("nobody looks after the component any more");
            asks.send(Ask { asked, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        })
    }

    /// Starts it because somebody asked for this component alone.
    ///
    /// # Errors
    /// It did not become ready.
    pub async fn start_alone(&self) -> Result<(), Failure> {
        self.ask(Asked::Start { cancelled: CancellationToken::new() }).await
    }

    /// Stops it because somebody asked for this component alone.
    ///
    /// # Errors
    /// It could not be stopped.
    pub async fn stop_alone(&self) -> Result<(), Failure> {
        self.ask(Asked::Stop { leave: false, hurry: CancellationToken::new() }).await
    }
}

/// The descriptors that belong to a carried process.
#[derive(Debug)]
pub struct CarriedParts(Descriptors);

impl CarriedParts {
    /// Returns those among `parts` that belong to the process `id`.
    pub fn find(id: &str, parts: &mut Vec<crate::handover::Named>) -> Option<Self> {
        Descriptors::find(id, parts).map(Self)
    }
}

/// Ends a process of a component that this release does not have.
pub fn end_stray(
    carried: CarriedInstance,
    CarriedParts(descriptors): CarriedParts,
    around: Arc<Surroundings>,
    tasks: &mut JoinSet<()>,
) {
    /// As for a component that says nothing about it.
    const STOP_MAX: Duration = Duration::from_secs(10);
    tracing::info!(component.name = carried.component, process.pid = carried.pid, "ending a component that is no more");
    let Some(mut instance) = Instance::adopt(carried, descriptors, &around) else { return };
    tasks.spawn(async move {
        instance.stop(STOP_MAX, &CancellationToken::new()).await;
        instance.forget(&around);
    });
}

impl bus::Component for Process {
    fn name(&self) -> &str {
        &self.component.name
    }

    fn order(&self) -> Order {
        super::order(&self.component)
    }

    fn limits(&self) -> Limits {
        // The actor keeps the start's own limit and says what went wrong; stopping a predecessor comes on top.
        let start = self.component.start_timeout + self.component.stop_timeout + KILL_ALLOWANCE;
        Limits { start: Some(start), stop: Some(self.component.stop_timeout + KILL_ALLOWANCE), reload: None }
    }

    fn start(self: Arc<Self>, cancelled: CancellationToken) -> Act {
        self.ask(Asked::Start { cancelled })
    }

    fn stop(self: Arc<Self>, reason: StopReason, hurry: CancellationToken) -> Act {
        let leave = reason.leaves(&self.component.name);
        self.ask(Asked::Stop { leave, hurry })
    }
}

/// Processes on their way out, each with the task that sees to it that it goes.
#[derive(Default)]
struct Outgoing {
    tasks: JoinSet<Instance>,
    /// Ends their time at once.
    hurry: CancellationToken,
}

struct Actor {
    component: Component,
    fingerprint: String,
    around: Arc<Surroundings>,
    current: Option<Instance>,
    outgoing: Outgoing,
    /// Whether the component is to run.
    wanted: bool,
    restart_at: Option<Instant>,
    /// When it ended by itself, newest last: for the limit of the restart policy.
    ends: VecDeque<Instant>,
    view: watch::Sender<View>,
    health: Option<(watch::Receiver<health::State>, JoinSet<()>)>,
    newest: u32,
}

enum Event {
    Asked(Option<Ask>),
    Ended(String),
    Gone(Option<Box<Instance>>),
    Restart,
    Health(health::State),
    Said,
}

impl Actor {
    async fn run(mut self, mut asks: mpsc::Receiver<Ask>, outgoing: Vec<Instance>) {
        for instance in outgoing {
            self.see_out(instance);
        }
        self.show(State::Stopped);
        loop {
            let event = self.next(&mut asks).await;
            match event {
                Event::Asked(None) => return,
                Event::Asked(Some(Ask { asked, reply })) => {
                    let result = match asked {
                        Asked::Start { cancelled } => self.start(&cancelled).await,
                        Asked::Stop { leave: true, .. } => {
                            self.leave();
                            Ok(())
                        }
                        Asked::Stop { leave: false, hurry } => self.stop(&hurry).await,
                    };
                    drop(reply.send(result)); // whoever asked may have given up
                }
                Event::Ended(how) => self.on_end(how).await,
                Event::Gone(instance) => {
                    if let Some(mut instance) = instance {
                        instance.forget(&self.around);
                    }
                }
                Event::Restart => self.restart().await,
                Event::Health(state) => self.on_health(state),
                Event::Said => self.show(self.view.borrow().state),
            }
        }
    }

    /// Waits for the next thing to happen. Cancel-safe: every branch only waits, or takes from a queue.
    async fn next(&mut self, asks: &mut mpsc::Receiver<Ask>) -> Event {
        let restart_at = self.restart_at;
        let current = self.current.as_mut();
        let watched = async {
            match current {
                Some(instance) => {
                    let mut status = instance.status.clone();
                    status.mark_unchanged();
                    tokio::select! {
                        how = instance.wait() => Event::Ended(how),
                        Ok(()) = status.changed() => Event::Said,
                    }
                }
                None => std::future::pending().await,
            }
        };
        let health = async {
            match &mut self.health {
                Some((state, _)) => match state.changed().await {
                    Ok(()) => state.borrow_and_update().clone(),
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = watched => event,
            ask = asks.recv() => Event::Asked(ask),
            Some(gone) = self.outgoing.tasks.join_next() => Event::Gone(gone.ok().map(Box::new)),
            () = until(restart_at) => Event::Restart,
            state = health => Event::Health(state),
        }
    }

    async fn start(&mut self, cancelled: &CancellationToken) -> Result<(), Failure> {
        self.wanted = true;
        self.restart_at = None;
        if let Some(instance) = &self.current
            && instance.ended.borrow().is_none()
            && (instance.carried.fingerprint == self.fingerprint || self.component.handover == Handover::Keep)
        {
            if instance.carried.ready {
                tracing::info!(component.name = self.component.name, process.pid = instance.pid(), "component kept");
                self.serve();
                return Ok(());
            }
            // It was started by an image that ended before it was ready.
            self.show(State::Starting);
            let waited = wait_ready(instance, &self.component, &self.around).await;
            return self.settle(waited).await;
        }
        self.show(State::Starting);
        if self.component.handover != Handover::Overlap
            && let Some(old) = self.current.take()
        {
            self.end(old, &CancellationToken::new()).await;
        }
        let result = self.bring_up(cancelled).await;
        if let Err(failure) = &result {
            self.wanted = false;
            self.fail(failure);
        }
        result
    }

    /// Ends a process that did not become ready, or serves.
    async fn settle(&mut self, waited: Result<(), Failure>) -> Result<(), Failure> {
        match waited {
            Ok(()) => {
                self.serve();
                Ok(())
            }
            Err(failure) => {
                if let Some(instance) = self.current.take() {
                    self.end(instance, &cancelled()).await;
                }
                self.fail(&failure);
                Err(failure)
            }
        }
    }

    /// Starts a process and waits until it is ready; then the one before is seen out.
    async fn bring_up(&mut self, cancelled: &CancellationToken) -> Result<(), Failure> {
        self.newest += 1;
        let restarts = self.view.borrow().restarts;
        let instance = Instance::start(
            &self.component,
            self.newest,
            &self.fingerprint,
            restarts,
            self.current.is_some(),
            &self.around,
        )
        .await?;
        tracing::info!(
            component.name = self.component.name,
            process.pid = instance.pid(),
            release.version = %self.around.version,
            "component started"
        );
        // Cancel-safe: both only wait.
        let waited = tokio::select! {
            waited = wait_ready(&instance, &self.component, &self.around) => waited,
            () = cancelled.cancelled() => Err(Failure::new("the start was cancelled")),
        };
        if let Err(failure) = waited {
            self.end(instance, &self::cancelled()).await;
            return Err(failure);
        }
        if let Some(old) = self.current.replace(instance) {
            self.see_out(old);
        }
        self.serve();
        Ok(())
    }

    /// Records that the current process serves, and begins to judge its health.
    fn serve(&mut self) {
        let Some(instance) = &mut self.current else { return };
        instance.carried.ready = true;
        instance.record(&self.around, Role::Current);
        self.health = self.component.health.clone().map(|health| {
            let (sender, state) = watch::channel(health::State::Unknown);
            let mut tasks = JoinSet::new();
            tasks.spawn(health::watch(health, sender, Arc::clone(&self.around)));
            (state, tasks)
        });
        let health = if self.health.is_some() { health::State::Unknown } else { health::State::None };
        self.view.send_modify(|view| {
            view.health = health;
            view.reason = None;
            view.output.clear();
        });
        self.show(State::Running);
    }

    /// Asks a process to end and has a task see to it, while the component goes on with another.
    fn see_out(&mut self, mut instance: Instance) {
        instance.record(&self.around, Role::Outgoing);
        instance.terminate();
        let limit = self.component.stop_timeout;
        let hurry = self.outgoing.hurry.clone();
        let name = self.component.name.clone();
        self.outgoing.tasks.spawn(async move {
            let (how, killed) = instance.stop(limit, &hurry).await;
            if killed {
                tracing::warn!(component.name = name, instance.id = instance.id(), how, "an old process was killed");
            }
            instance
        });
    }

    /// Ends a process now and forgets it. Returns how it ended and whether it had to be killed.
    async fn end(&self, mut instance: Instance, hurry: &CancellationToken) -> (String, bool) {
        let ended = instance.stop(self.component.stop_timeout, hurry).await;
        instance.forget(&self.around);
        ended
    }

    async fn stop(&mut self, hurry: &CancellationToken) -> Result<(), Failure> {
        self.wanted = false;
        self.restart_at = None;
        self.health = None;
        self.show(State::Stopping);
        let mut result = Ok(());
        if let Some(instance) = self.current.take() {
            let asked_in_hurry = hurry.is_cancelled();
            let (how, killed) = self.end(instance, hurry).await;
            tracing::info!(component.name = self.component.name, how, "component stopped");
            if killed && !asked_in_hurry {
                let limit = self.component.stop_timeout.as_secs_f32();
                result = Err(Failure::new(format!("did not end within {limit} s of being asked to, and was killed")));
            }
        }
        if !self.outgoing.tasks.is_empty() {
            self.outgoing.hurry.cancel();
            while let Some(gone) = self.outgoing.tasks.join_next().await {
                if let Ok(mut instance) = gone {
                    instance.forget(&self.around);
                }
            }
            self.outgoing.hurry = CancellationToken::new();
        }
        self.view.send_modify(|view| {
            view.reason = result.as_ref().err().map(ToString::to_string);
            view.health = if self.component.health.is_some() { health::State::Unknown } else { health::State::None };
        });
        self.show(State::Stopped);
        result
    }

    /// Leaves the processes to the next image.
    fn leave(&mut self) {
        self.wanted = false;
        self.restart_at = None;
        self.health = None;
        if let Some(instance) = &mut self.current {
            instance.record(&self.around, Role::Current);
        }
    }

    async fn on_end(&mut self, how: String) {
        let Some(mut instance) = self.current.take() else { return };
        let failure = instance.failure(format!("{how}, without having been asked to"), &self.around).await;
        instance.forget(&self.around);
        self.health = None;
        if !self.wanted {
            self.show(State::Stopped);
            return;
        }
        tracing::warn!(component.name = self.component.name, how, "component ended by itself");
        let clean = how == "ended with status 0";
        // One that is never started again and ends well has done its work.
        let done = clean && self.component.restart.policy == RestartPolicy::No;
        self.view.send_modify(|view| {
            view.downs += u32::from(!done);
            view.reason = Some(failure.reason.clone());
            view.output.clone_from(&failure.output);
        });
        let again = match self.component.restart.policy {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure => !clean,
            RestartPolicy::Always => true,
        };
        if again {
            self.pause();
        } else if clean {
            self.show(State::Stopped);
        } else {
            self.fail(&failure);
        }
    }

    /// Plans the next start, or gives up, as the restart policy says.
    fn pause(&mut self) {
        let (count, within) = self.component.restart.limit;
        let (first, longest) = self.component.restart.backoff;
        let now = Instant::now();
        self.ends.push_back(now);
        while self.ends.front().is_some_and(|end| now.duration_since(*end) > within) {
            self.ends.pop_front();
        }
        let ends = u32::try_from(self.ends.len()).unwrap_or(u32::MAX);
        if ends > count {
            let reason = self.view.borrow().reason.clone().unwrap_or_default();
            let text = format!("{reason}; ended {ends} times within {} s, not started again", within.as_secs());
            let output = self.view.borrow().output.clone();
            self.fail(&Failure { reason: text, output });
            return;
        }
        let pause = first.saturating_mul(1 << (ends - 1).min(16)).min(longest);
        self.restart_at = Some(now + pause);
        self.show(State::Backoff);
    }

    async fn restart(&mut self) {
        self.restart_at = None;
        self.view.send_modify(|view| view.restarts += 1);
        self.show(State::Starting);
        if let Err(failure) = self.bring_up(&CancellationToken::new()).await {
            self.view.send_modify(|view| {
                view.downs += 1;
                view.reason = Some(failure.reason.clone());
                view.output.clone_from(&failure.output);
            });
            self.pause();
        }
    }

    fn on_health(&self, state: health::State) {
        if let health::State::Unhealthy(reason) = &state {
            tracing::warn!(component.name = self.component.name, reason, "component unhealthy");
        }
        self.view.send_modify(|view| view.health = state);
    }

    fn fail(&mut self, failure: &Failure) {
        self.view.send_modify(|view| {
            view.reason = Some(failure.reason.clone());
            view.output.clone_from(&failure.output);
        });
        self.show(State::Failed);
    }

    /// Shows the state with what is known of the process.
    fn show(&self, state: State) {
        let instance = self.current.as_ref();
        self.view.send_modify(|view| {
            view.state = state;
            view.pid = instance.map(Instance::pid);
            view.release = instance.map(|instance| instance.carried.release.clone());
            view.started_at = instance.map(|instance| instance.carried.started_at.clone());
            view.status = instance.and_then(|instance| instance.status.borrow().clone());
            if let Some(instance) = instance {
                view.generation = instance.carried.generation;
            }
        });
    }
}

/// Returns a token that is cancelled already: no time is left.
fn cancelled() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
