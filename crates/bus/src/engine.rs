//! The one task that owns the transitions.
//!
//! Requests only change the goal; the engine takes the next step toward it, and goes on noticing requests while a step is under
//! way. So a stop during a start is never lost, an exit absorbs what is weaker, and no listener is ever nested in another.

mod confirm;
mod reload;
mod start;
mod stop;
mod transition;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use refit_base::Exit;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::call::CallInfo;
use crate::calls::{End, Until};
use crate::failure::Failure;
use crate::handle::Bus;
use crate::log::Level;
use crate::machine::ConfirmState;
use crate::origin::Origin;
use crate::panics;
use crate::registry::{ComponentId, ENTER, EXIT, Entry};
use crate::request::StopReason;
use crate::request::{Replacement, Request};
use crate::shared::{Fault, Observer, Options, Shared};
use crate::state::{Goal, State};
use crate::tasks::{TaskRunner, TaskSet};
use confirm::Waiting;
use transition::{Time, Transition, fault_of, told};

/// How long the log's listeners have for what still waits when everything else is done.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// How the life of the bus ended.
#[derive(Debug)]
pub struct Ended {
    /// The replacement to execute; `None` if the process is to end.
    pub replacement: Option<Arc<Replacement>>,
    /// What failed on the way.
    pub faults: Vec<Fault>,
    /// Whether somebody asked for the end.
    pub asked: bool,
}

impl Ended {
    /// Returns the exit status: 0 as asked, 70 if something failed or had to be abandoned.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.faults.is_empty() { Exit::Done } else { Exit::Failed }.code())
    }
}

/// Somebody who started: a listener of that name, or that component and no other that bears its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Started {
    name: Arc<str>,
    component: Option<ComponentId>,
}

impl Started {
    fn of(entry: &Entry) -> Self {
        Self { name: Arc::clone(&entry.name), component: entry.component }
    }
}

/// The owner of the transitions. Nothing happens until it [runs](Engine::run).
#[must_use = "a bus does nothing until its engine runs"]
pub struct Engine {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    handles: mpsc::Receiver<std::convert::Infallible>,
    tasks: Option<TaskRunner>,
    log_tasks: Option<TaskRunner>,
    /// Who started, in waves, in the order in which it did.
    started: Vec<Vec<Started>>,
    /// The components that no stop of this image has ended: left running for the next one, or begun by the one before.
    left_running: BTreeSet<String>,
    /// The time of the whole way to the end, once it has begun.
    descent: Option<Time>,
    generation: u64,
    /// The reload that may be taken back.
    waiting: Option<Waiting>,
}

impl Bus {
    /// Returns a bus in the state `Initial`, and what drives it.
    pub fn new(options: Options) -> (Self, Engine) {
        panics::note_places();
        let (task_set, tasks) = TaskSet::new();
        let (log_task_set, log_tasks) = TaskSet::new();
        let shared = Arc::new(Shared::new(options, task_set, log_task_set));
        let (alive, handles) = mpsc::channel(1);
        let engine = Engine {
            changes: shared.changes.subscribe(),
            shared: Arc::clone(&shared),
            handles,
            tasks: Some(tasks),
            log_tasks: Some(log_tasks),
            started: Vec::new(),
            left_running: BTreeSet::new(),
            descent: None,
            generation: 0,
            waiting: None,
        };
        (Self { shared, alive: Some(alive) }, engine)
    }
}

impl Engine {
    /// Has `observer` decide and hear. The first one stays.
    #[must_use = "a bus does nothing until its engine runs"]
    pub fn with_observer(self, observer: Arc<dyn Observer>) -> Self {
        drop(self.shared.observer.set(observer));
        self
    }

    /// Says that the components `names` run already. If the site ends before a start has taken them over, they are stopped all the
    /// same.
    #[must_use = "a bus does nothing until its engine runs"]
    pub fn with_running(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.left_running.extend(names);
        self
    }

    /// Runs `body` beside the bus. When it returns while the site is not ending, the site ends in good order, with a warning.
    pub async fn run_with(self, bus: Bus, body: impl Future<Output = ()>) -> Ended {
        let run = self.run();
        let mut run = std::pin::pin!(run);
        let body = async move {
            body.await;
            if bus.shared.status().goal != Goal::Exited {
                bus.log(Level::Warning, format!("main ended while the site was {}: exiting", bus.state().name()));
                drop(bus.request(Request::Exit, Origin("end of main".to_owned())));
            }
        };
        // Cancel-safe: the run is polled on; a body that outlives the bus has nothing more to do.
        tokio::select! {
            ended = &mut run => return ended,
            () = body => {}
        }
        run.await
    }

    /// Lives until `Exited`, and says why.
    pub async fn run(mut self) -> Ended {
        let mut runners = tokio::task::JoinSet::new();
        let (closing_tasks, closing_log) = self.start_task_runners(&mut runners);
        loop {
            self.shared.settle_here();
            let status = self.shared.status();
            let next = status.state.next_step(status.goal);
            if self.end_wait(status, next).await {
                continue;
            }
            match next {
                Some(State::Exited) => {
                    self.stop_what_was_left().await;
                    self.exit_tasks(&mut runners, &closing_tasks).await;
                    // Until here an exit may still take the place of a replacement.
                    while !self.shared.end(self.left_running.is_empty()).await {
                        self.stop_what_was_left().await;
                    }
                }
                Some(next) => self.step(status.state, next).await,
                None if status.state == State::Exited => break,
                None if status.reload_waits => self.reload().await,
                None if status.confirm == ConfirmState::Asked => self.reload_provisionally().await,
                None => self.wait_for_request().await,
            }
        }
        self.shared.log.close();
        closing_log.cancel();
        while runners.join_next().await.is_some() {}
        // Only now: the last entries of the log were still to be delivered. Listeners may hold the bus that holds them.
        self.shared.registry.clear();
        Ended {
            replacement: self.shared.replacement(),
            faults: self.shared.faults(),
            asked: self.shared.asked_to_exit(),
        }
    }

    /// Starts the runners of the tasks and of the log's tasks. Each returns the names of those that it had to leave behind.
    fn start_task_runners(
        &mut self,
        runners: &mut tokio::task::JoinSet<Vec<String>>,
    ) -> (CancellationToken, CancellationToken) {
        let mut start = |runner: Option<TaskRunner>, limit: Duration, is_log: bool| {
            let Some(runner) = runner else { return CancellationToken::new() };
            let closing = runner.closing();
            let shared = Arc::clone(&self.shared);
            runners.spawn(async move {
                let failed = |name: &str, failure: Failure| {
                    if !is_log {
                        shared.fault(name, "run", failure);
                    }
                };
                let left = runner.work(limit, failed).await;
                if is_log { Vec::new() } else { left }
            });
            closing
        };
        let exit = self.shared.options.exit;
        (start(self.tasks.take(), exit, false), start(self.log_tasks.take(), LAST_WORDS_MAX, true))
    }

    /// Waits for the tasks that the bus owns, and names those that do not end.
    async fn exit_tasks(&self, runners: &mut tokio::task::JoinSet<Vec<String>>, closing: &CancellationToken) {
        closing.cancel();
        // The log's runner ends only after this one.
        if let Some(Ok(left)) = runners.join_next().await {
            for name in left {
                let limit = self.shared.options.exit.as_secs_f32();
                self.shared.fault(
                    &name,
                    "exit",
                    Failure::new(format!("a task did not end within {limit} s, abandoned")),
                );
            }
        }
    }

    async fn wait_for_request(&mut self) {
        let until = self.waiting.as_ref().map(|waiting| waiting.until);
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        // Cancel-safe: a level is waited for, a time, and a channel that never carries anything.
        tokio::select! {
            () = over => {} // seen before the next step
            changed = self.changes.changed() => drop(changed), // its sender is ours, too
            None = self.handles.recv() => self.shared.give_up(),
        }
    }

    /// Takes one step. A state that announces something is entered before its listeners, one that promises something after.
    async fn step(&mut self, state: State, next: State) {
        match next {
            State::Starting => {
                self.descent = None;
                self.shared.enter(State::Starting).await;
                if self.start().await {
                    // What started of a start that was cancelled is stopped, whatever is wanted by now.
                    let reason = self.shared.replacement().map_or(StopReason::Undo, StopReason::Replace);
                    self.go_down(&reason).await;
                }
            }
            State::Stopping => {
                let reason = match (self.shared.replacement(), self.shared.status().goal) {
                    (Some(replacement), _) => StopReason::Replace(replacement),
                    (None, Goal::Exited) if state == State::Running => StopReason::Exit,
                    (None, Goal::Idle) if state == State::Running => StopReason::Stop,
                    (None, Goal::Idle | Goal::Running | Goal::Exited) => StopReason::Undo,
                };
                self.go_down(&reason).await;
            }
            State::Entering => {
                self.shared.enter(State::Entering).await;
                if !self.all(ENTER, None, Time::of(&self.shared)).await {
                    self.shared.give_up();
                }
                self.shared.enter(State::Idle).await;
            }
            State::Exiting => {
                self.shared.enter(State::Exiting).await;
                let reason = self.shared.replacement().map_or(StopReason::Exit, StopReason::Replace);
                let time = self.time_of_descent();
                self.stop_what_was_left().await;
                self.all(EXIT, Some(reason), time).await;
            }
            State::Initial | State::Idle | State::Running | State::Exited => self.shared.enter(next).await,
        }
    }

    /// Stops what runs, and is idle.
    async fn go_down(&mut self, reason: &StopReason) {
        self.shared.enter(State::Stopping).await;
        let time = self.time_of_descent();
        self.stop(reason, time).await;
        self.shared.enter(State::Idle).await;
    }

    /// Returns the time of a stop. On the way to the end the exit listeners have what it left.
    fn time_of_descent(&mut self) -> Time {
        match (self.descent, self.shared.status().goal) {
            (Some(time), _) => time,
            (None, Goal::Exited) => *self.descent.insert(Time::of(&self.shared)),
            (None, Goal::Idle | Goal::Running) => Time::of(&self.shared),
        }
    }

    fn cancel_unless_wanted(&self, cancelled: &CancellationToken) {
        if self.shared.status().goal != Goal::Running {
            cancelled.cancel();
        }
    }

    /// Waits for the next end of `transition`, and cancels all of it when the site is wanted elsewhere.
    async fn next_while_wanted(
        &mut self,
        transition: &Transition,
        until: Until<'_>,
        cancelled: &CancellationToken,
    ) -> Option<End> {
        loop {
            // Cancel-safe: an end is taken only when it is returned; the other waits for a level.
            tokio::select! {
                end = transition.next(until) => return end,
                _ = self.changes.changed() => self.cancel_unless_wanted(cancelled),
            }
        }
    }

    /// Calls every listener of `channel` in order, within `time`. Returns whether none failed; failures are faults.
    async fn all(&self, channel: &str, reason: Option<StopReason>, time: Time) -> bool {
        let snapshot = self.shared.registry.snapshot(channel);
        let cancelled = reason.is_some().then(|| self.shared.hurry.clone());
        let info = CallInfo { reason, ..told(&self.shared, snapshot.channel) };
        let transition = Transition::new(&self.shared, info, time, self.shared.options.listener, cancelled);
        let mut good = true;
        transition
            .run(&snapshot.waves, |end| {
                if let Some(failure) = fault_of(end) {
                    self.shared.fault_of(&end.entry, channel, failure);
                    good = false;
                }
            })
            .await;
        good
    }
}
