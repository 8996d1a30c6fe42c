//! The one task that owns the transitions.
//!
//! Requests only change the goal; the engine takes the next step toward it, and goes on noticing requests while a step is under
//! way. So a stop during a start is never lost, an exit absorbs what is weaker, and no listener is ever nested in another.

mod reload;

use std::collections::{BTreeSet, HashSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use refit_base::Exit;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::call::Call;
use crate::context::Purpose;
use crate::failure::Failure;
use crate::handle::Bus;
use crate::log::Level;
use crate::order::{Order, Row, waves_of_any};
use crate::panics;
use crate::publication::{Round, call_for, in_waves, plain_call};
use crate::registry::{ENTER, EXIT, Entry, START, STOP};
use crate::request::StopReason;
use crate::request::{Origin, Replacement, Request};
use crate::shared::{Fault, Observer, Options, Shared};
use crate::state::{Goal, State};
use crate::tasks::{TaskRunner, TaskSet};

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

/// The time of one transition: the deadline of each listener lies inside it.
#[derive(Clone, Copy)]
struct Time {
    until: Instant,
    grace: Duration,
}

impl Time {
    /// Returns how long a listener may take that would have `wanted`. Who stops gets at least the grace, however late it is.
    fn limit(&self, wanted: Duration) -> Duration {
        wanted.min(self.until.saturating_duration_since(Instant::now()).max(self.grace))
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
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
    /// The names of what started, in waves, in the order in which it did.
    started: Vec<Vec<String>>,
    generation: u64,
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
            generation: 0,
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
            match status.state.next_step(status.goal) {
                Some(State::Exited) => {
                    self.exit_tasks(&mut runners, &closing_tasks).await;
                    self.shared.enter(State::Exited);
                }
                Some(next) => self.step(status.state, next).await,
                None if status.state == State::Exited => break,
                None if status.reload_waits => self.reload().await,
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
        // Cancel-safe: a level is waited for, and a channel that never carries anything.
        tokio::select! {
            changed = self.changes.changed() => drop(changed), // its sender is ours, too
            None = self.handles.recv() => self.shared.give_up(),
        }
    }

    /// Takes one step. A state that announces something is entered before its listeners, one that promises something after.
    async fn step(&mut self, state: State, next: State) {
        match next {
            State::Starting => {
                self.shared.enter(State::Starting);
                if self.start().await {
                    self.undo().await;
                }
            }
            State::Stopping => {
                let reason = match (self.shared.replacement(), self.shared.status().goal) {
                    (Some(replacement), _) => StopReason::Replace(replacement),
                    (None, Goal::Exited) if state == State::Running => StopReason::Exit,
                    (None, Goal::Idle) if state == State::Running => StopReason::Stop,
                    (None, Goal::Idle | Goal::Running | Goal::Exited) => StopReason::Undo,
                };
                self.shared.enter(State::Stopping);
                self.stop(&reason).await;
                self.shared.enter(State::Idle);
            }
            State::Entering => {
                self.shared.enter(State::Entering);
                if !self.all(ENTER, None).await {
                    self.shared.give_up();
                }
                self.shared.enter(State::Idle);
            }
            State::Exiting => {
                self.shared.enter(State::Exiting);
                let reason = self.shared.replacement().map_or(StopReason::Exit, StopReason::Replace);
                self.all(EXIT, Some(reason)).await;
            }
            State::Initial | State::Idle | State::Running | State::Exited => self.shared.enter(next),
        }
    }

    fn time(&self) -> Time {
        let options = &self.shared.options;
        Time { until: Instant::now() + options.transition, grace: options.grace }
    }

    /// Stops what started of a start that was cancelled, whatever is wanted by now.
    async fn undo(&mut self) {
        let reason = self.shared.replacement().map_or(StopReason::Undo, StopReason::Replace);
        self.shared.enter(State::Stopping);
        self.stop(&reason).await;
        self.shared.enter(State::Idle);
    }

    fn template(&self, channel: &str) -> Call {
        let number = self.shared.publications.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        Call { by_the_site: true, ..plain_call(channel, number, self.shared.status().state, Value::Null, 1) }
    }

    /// Calls every listener of `channel` in order. Returns whether none failed; failures are faults.
    async fn all(&self, channel: &str, reason: Option<StopReason>) -> bool {
        let mut template = self.template(channel);
        if reason.is_some() {
            template.cancelled = self.shared.hurry.child_token();
        }
        template.reason = reason;
        let time = self.time();
        let mut good = true;
        for wave in in_waves(&self.shared.registry.snapshot(channel).entries) {
            let mut round = Round::new(self.shared.options.grace);
            for (place, entry) in wave.iter().enumerate() {
                let limit = time.limit(entry.limit.unwrap_or(self.shared.options.listener));
                round.begin(place, Arc::clone(entry), call_for(&template, limit), Purpose::Transition);
            }
            while let Some((place, outcome, _)) = round.next().await {
                if let Some(failure) = outcome.failure() {
                    self.shared.fault_of(&wave[place], channel, failure);
                    good = false;
                }
            }
        }
        good
    }

    /// Starts wave after wave. Ends in `Running`, or leaves a goal that is elsewhere. Returns whether it was cancelled: then it
    /// has to be undone even if the site is to run again by now, for not all that belongs to it was started.
    async fn start(&mut self) -> bool {
        let template = self.template(START);
        let time = self.time();
        let mut failed: HashSet<String> = HashSet::new();
        let (mut faults, mut wanted) = (Vec::new(), Vec::new());
        for wave in in_waves(&self.shared.registry.snapshot(START).entries) {
            wanted.push(wave.iter().map(|entry| entry.name.clone()).collect());
            let mut round = Round::new(self.shared.options.grace);
            for (place, entry) in wave.iter().enumerate() {
                entry.is_to_start();
                if self.shared.status().goal != Goal::Running {
                    template.cancelled.cancel();
                }
                if template.cancelled.is_cancelled() {
                    break; // nothing more starts
                }
                if let Some(missing) = entry.order.needs.iter().find(|name| failed.contains(*name)) {
                    failed.extend(names_of(entry));
                    self.shared.log.write(Level::Warning, format!("{} not started: {missing} failed", entry.name));
                    continue;
                }
                if time.is_over() {
                    let limit = self.shared.options.transition.as_secs_f32();
                    let failure = Failure::new(format!("not called: the start as a whole took longer than {limit} s"));
                    failed.extend(names_of(entry));
                    faults.push(self.shared.fault_of(entry, START, failure));
                    continue;
                }
                let limit = time.limit(entry.limit.unwrap_or(self.shared.options.start));
                round.begin(place, Arc::clone(entry), call_for(&template, limit), Purpose::Transition);
            }
            let (mut up, mut down) = (Vec::new(), Vec::new());
            while !round.is_over() {
                // Cancel-safe: a result is taken only when it is returned; the other waits for a level.
                let ended = tokio::select! {
                    ended = round.next() => ended,
                    _ = self.changes.changed() => {
                        if self.shared.status().goal != Goal::Running {
                            template.cancelled.cancel();
                        }
                        continue;
                    }
                };
                let Some((place, outcome, _)) = ended else { break };
                let entry = &wave[place];
                match outcome.failure() {
                    None if outcome.is_ok() => up.push((place, entry.name.clone())),
                    None => {}
                    Some(failure) => {
                        failed.extend(names_of(entry));
                        // It is up, although nobody counts on it any more: it has to be stopped.
                        if round.was_late(place) {
                            up.push((place, entry.name.clone()));
                        }
                        // A start that nobody wants any more has not failed.
                        let wanted = self.shared.status().goal == Goal::Running;
                        if wanted && !template.cancelled.is_cancelled() {
                            down.push((place, self.shared.fault_of(entry, START, failure)));
                        }
                    }
                }
            }
            up.sort();
            down.sort_by_key(|(place, _)| *place);
            faults.extend(down.into_iter().map(|(_, fault)| fault));
            self.started.push(up.into_iter().map(|(_, name)| name).collect());
        }
        if template.cancelled.is_cancelled() {
            return true;
        }
        if self.shared.status().goal == Goal::Running {
            if faults.is_empty() {
                self.shared.enter(State::Running);
            } else if self.shared.start_failed(&faults) {
                // What is missing may come up later: whoever stops the site stops that, too.
                self.started = wanted;
                self.shared.enter(State::Running);
            }
        }
        false
    }

    /// Stops what started, in exact reverse. Nothing is skipped because something fails.
    async fn stop(&mut self, reason: &StopReason) {
        let mut template = self.template(STOP);
        template.cancelled = self.shared.hurry.child_token();
        template.reason = Some(reason.clone());
        let time = self.time();
        for wave in self.stop_waves(reason) {
            let mut round = Round::new(self.shared.options.grace);
            for (place, entry) in wave.iter().enumerate() {
                let limit = time.limit(entry.limit.unwrap_or(self.shared.options.stop));
                round.begin(place, Arc::clone(entry), call_for(&template, limit), Purpose::Transition);
            }
            while let Some((place, outcome, _)) = round.next().await {
                if let Some(failure) = outcome.failure() {
                    self.shared.fault_of(&wave[place], STOP, failure);
                }
            }
        }
    }

    /// Returns who is to be stopped, in waves: the reverse of how they started. Who only listens to the stop stands where it
    /// would have started; who was to start and did not is left out.
    fn stop_waves(&mut self, reason: &StopReason) -> Vec<Vec<Arc<Entry>>> {
        let started = std::mem::take(&mut self.started);
        let starters = self.shared.registry.snapshot(START).entries;
        let starts: BTreeSet<String> =
            starters.iter().filter(|entry| !entry.has_joined()).map(|entry| entry.name.clone()).collect();
        let stops = self.shared.registry.snapshot(STOP).entries;
        // A wave of which nobody hears of the stop orders nothing: those after it come after the one before it.
        let is_told = |wave: &&Vec<String>| wave.iter().any(|name| stops.iter().any(|entry| entry.name == *name));
        let mut rows: Vec<(Arc<Entry>, Order)> = Vec::new();
        for entry in stops.iter().map(Arc::clone) {
            let order = match started.iter().position(|wave| wave.contains(&entry.name)) {
                Some(place) => {
                    let before = started[..place].iter().rev().find(is_told);
                    let after = before.cloned().unwrap_or_default();
                    Order { needs: Vec::new(), after, priority: entry.order.priority }
                }
                None if starts.contains(&entry.name) => continue,
                None if entry.group.as_ref().is_some_and(|group| reason.keeps_running(group)) => continue,
                None => entry.order.clone(),
            };
            rows.push((entry, order));
        }
        let waves = {
            let borrowed: Vec<Row<'_>> = rows
                .iter()
                .map(|(entry, order)| Row { name: &entry.name, group: entry.group.as_deref(), order })
                .collect();
            waves_of_any(&borrowed)
        };
        let stopping = |index: &usize| Arc::clone(&rows[*index].0);
        waves.iter().rev().map(|wave| wave.iter().rev().map(stopping).collect()).collect()
    }
}

/// Returns the names under which others may need the one that `entry` belongs to.
fn names_of(entry: &Entry) -> impl Iterator<Item = String> {
    [Some(entry.name.clone()), entry.group.clone()].into_iter().flatten()
}
