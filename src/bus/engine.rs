//! The one loop that owns the state.
//!
//! Requests come in through a queue and only change the goal; the loop takes the next step toward the goal and goes on
//! listening while a step is under way. So a stop during a start is never lost, an exit absorbs what is weaker, and no
//! listener is ever nested in another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::participant::{Failure, Participant, StopReason};
use super::request::{Origin, Progress, Replacement, Request, Ticket};
use super::state::{Goal, State};
use super::wave::{Cycle, waves};
use crate::clock;

/// How many requests may wait for the loop: it takes them even while a transition is under way.
const REQUESTS_MAX: usize = 256;
/// How long a participant has after `hurry`, before it is abandoned.
const HURRY_GRACE: Duration = Duration::from_secs(2);
/// How many faults are kept: the first ones say what went wrong.
const FAULTS_MAX: usize = 100;

/// A failure of a participant.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fault {
    /// The participant.
    pub component: String,
    /// What it was to do.
    pub phase: String,
    /// Why it failed.
    pub cause: String,
    /// When, RFC 3339.
    pub at: String,
    /// The last output of what failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<String>,
}

/// What the bus tells whoever watches it.
#[derive(Debug, Clone)]
pub enum BusEvent {
    /// The state changed.
    State(State),
    /// A participant failed.
    Fault(Fault),
    /// A request was taken.
    Request {
        /// Its name.
        name: &'static str,
        /// Who asked.
        origin: Origin,
    },
}

/// What the owner of the bus decides and hears. Called in the engine's task: nothing here may wait.
pub trait Hooks: Send + Sync + 'static {
    /// Hears of everything that happens, in order.
    fn observe(&self, event: &BusEvent);

    /// A start failed: returns how to replace this process image, or `None` to undo the start and end.
    fn start_failed(&self, faults: &[Fault]) -> Option<Arc<Replacement>>;
}

/// The handle with which anybody asks.
#[derive(Debug, Clone)]
pub struct Bus {
    requests: mpsc::Sender<Asked>,
    state: watch::Receiver<State>,
    faults: Arc<Mutex<Vec<Fault>>>,
    hurry: CancellationToken,
    life: Arc<Life>,
}

/// What the state alone does not say.
#[derive(Debug, Default)]
struct Life {
    /// Whether the site was ever running in this process image.
    ran: AtomicBool,
    /// Whether this process image is on its way to be replaced.
    replacing: AtomicBool,
}

#[derive(Debug)]
struct Asked {
    request: Request,
    origin: Origin,
    outcome: watch::Sender<Progress>,
}

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

/// The owner of the state.
pub struct Engine {
    /// Those that are there once per process image: started while `Entering`, stopped while `Exiting`. They come first.
    entering: usize,
    participants: Vec<Arc<dyn Participant>>,
    waves: Vec<Vec<usize>>,
    hooks: Arc<dyn Hooks>,
    requests: mpsc::Receiver<Asked>,
    state: watch::Sender<State>,
    faults: Arc<Mutex<Vec<Fault>>>,
    hurry: CancellationToken,
    life: Arc<Life>,
    goal: Goal,
    replacement: Option<Arc<Replacement>>,
    asked_to_exit: bool,
    /// What started, in waves, in the order in which it did.
    started: Vec<Vec<usize>>,
    waiting: Vec<(Goal, watch::Sender<Progress>)>,
    reloads: Vec<watch::Sender<Progress>>,
}

/// The place of the one task that will own the state, until [`Seat::engine`] fills it.
pub struct Seat {
    requests: mpsc::Receiver<Asked>,
    state: watch::Sender<State>,
    faults: Arc<Mutex<Vec<Fault>>>,
    hurry: CancellationToken,
    life: Arc<Life>,
}

impl Seat {
    /// Returns the engine over `entering`, which are there once per process image, and `participants`, which start and stop.
    ///
    /// # Errors
    /// Some participants wait for each other.
    pub fn engine(
        self,
        entering: Vec<Arc<dyn Participant>>,
        participants: Vec<Arc<dyn Participant>>,
        hooks: Arc<dyn Hooks>,
    ) -> Result<Engine, Cycle> {
        let rows: Vec<_> = participants.iter().map(|part| (part.name().to_owned(), part.order())).collect();
        let offset = entering.len();
        let waves =
            waves(&rows)?.into_iter().map(|wave| wave.into_iter().map(|index| index + offset).collect()).collect();
        Ok(Engine {
            waves,
            entering: offset,
            participants: entering.into_iter().chain(participants).collect(),
            hooks,
            requests: self.requests,
            state: self.state,
            faults: self.faults,
            hurry: self.hurry,
            life: self.life,
            goal: Goal::Idle,
            replacement: None,
            asked_to_exit: false,
            started: Vec::new(),
            waiting: Vec::new(),
            reloads: Vec::new(),
        })
    }
}

impl Bus {
    /// Returns a bus in the state `Initial`: participants that ask it themselves can be made before its engine.
    pub fn open() -> (Self, Seat) {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let (state, watched) = watch::channel(State::Initial);
        let faults = Arc::new(Mutex::new(Vec::new()));
        let hurry = CancellationToken::new();
        let life = Arc::new(Life::default());
        let bus = Self {
            requests: sender,
            state: watched,
            faults: Arc::clone(&faults),
            hurry: hurry.clone(),
            life: Arc::clone(&life),
        };
        (bus, Seat { requests, state, faults, hurry, life })
    }

    /// Asks. Never blocks; the ticket says what becomes of it.
    pub fn request(&self, request: Request, origin: Origin) -> Ticket {
        let (outcome, ticket) = Ticket::new();
        if let Err(error) = self.requests.try_send(Asked { request, origin, outcome }) {
            let (asked, reason) = match error {
                mpsc::error::TrySendError::Full(asked) => (asked, "too many requests are waiting"),
                mpsc::error::TrySendError::Closed(asked) => (asked, "the bus has ended"),
            };
            asked.outcome.send_replace(Progress::Refused(reason.to_owned()));
        }
        ticket
    }

    /// Returns the state now.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Returns a receiver of the state.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Returns whether the site was ever running in this process image.
    pub fn ran(&self) -> bool {
        self.life.ran.load(Ordering::Relaxed)
    }

    /// Returns whether this process image is on its way to be replaced.
    pub fn is_replacing(&self) -> bool {
        self.life.replacing.load(Ordering::Relaxed)
    }

    /// Returns what failed so far.
    pub fn faults(&self) -> Vec<Fault> {
        lock(&self.faults).clone()
    }

    /// Cuts the time of whatever stops now, or later.
    pub fn hurry(&self) {
        self.hurry.cancel();
    }
}

fn lock(faults: &Mutex<Vec<Fault>>) -> std::sync::MutexGuard<'_, Vec<Fault>> {
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Lives until `Exited`, and says why.
    pub async fn run(mut self) -> Ended {
        loop {
            let state = *self.state.borrow();
            match state.toward(self.goal) {
                Some(next) => self.step(state, next).await,
                None if state == State::Exited => break,
                None => {
                    self.settle(state);
                    if !self.reloads.is_empty() {
                        self.reload().await;
                        continue;
                    }
                    match self.requests.recv().await {
                        Some(asked) => self.take(asked),
                        None => self.goal = Goal::Exited, // every handle is gone: nobody could ever ask again
                    }
                }
            }
        }
        self.requests.close();
        while let Ok(asked) = self.requests.try_recv() {
            asked.outcome.send_replace(Progress::Refused("the bus has ended".to_owned()));
        }
        self.settle(State::Exited);
        let faults = lock(&self.faults).clone();
        Ended { replacement: self.replacement, faults, asked: self.asked_to_exit }
    }

    /// Takes one request: decides what it means for the goal.
    fn take(&mut self, asked: Asked) {
        let Asked { request, origin, outcome } = asked;
        self.hooks.observe(&BusEvent::Request { name: request.name(), origin });
        let state = *self.state.borrow();
        let ending = self.goal == Goal::Exited;
        match request {
            Request::Start | Request::Stop if ending => {
                outcome.send_replace(Progress::Refused("the site is ending".to_owned()));
            }
            Request::Start => self.aim(Goal::Running, state == State::Running, outcome),
            Request::Stop => self.aim(Goal::Idle, matches!(state, State::Idle | State::Initial), outcome),
            Request::Reload => match state {
                State::Running if !ending => self.reloads.push(outcome),
                State::Initial
                | State::Entering
                | State::Idle
                | State::Starting
                | State::Running
                | State::Stopping
                | State::Exiting
                | State::Exited => {
                    let reason = format!("nothing to reload: the site is {}", state.name());
                    outcome.send_replace(Progress::Refused(reason));
                }
            },
            Request::Restart(replacement) | Request::Update(replacement) | Request::Rollback(replacement) => {
                if ending {
                    outcome.send_replace(Progress::Refused("the site is ending".to_owned()));
                } else {
                    self.life.replacing.store(true, Ordering::Relaxed);
                    self.replacement = Some(replacement);
                    self.goal = Goal::Exited;
                    self.waiting.push((Goal::Exited, outcome));
                }
            }
            Request::Exit => {
                // The strongest request absorbs the others, a replacement that has not happened yet included.
                self.life.replacing.store(false, Ordering::Relaxed);
                self.replacement = None;
                self.asked_to_exit = true;
                self.goal = Goal::Exited;
                self.waiting.push((Goal::Exited, outcome));
            }
        }
    }

    fn aim(&mut self, goal: Goal, already: bool, outcome: watch::Sender<Progress>) {
        if already && self.goal == goal {
            outcome.send_replace(Progress::Already);
            return;
        }
        for (_, overtaken) in self.waiting.extract_if(.., |(other, _)| *other != goal) {
            overtaken.send_replace(Progress::Failed("a later request was made".to_owned()));
        }
        self.goal = goal;
        self.waiting.push((goal, outcome));
    }

    /// Resolves the tickets of what has been reached.
    fn settle(&mut self, state: State) {
        let faults = lock(&self.faults).clone();
        for (goal, outcome) in self.waiting.drain(..) {
            let reached = match goal {
                Goal::Idle => state == State::Idle,
                Goal::Running => state == State::Running,
                Goal::Exited => state == State::Exited,
            };
            let progress = if reached {
                Progress::Done
            } else {
                let cause = faults.last().map_or_else(
                    || format!("the site is {}", state.name()),
                    |fault| format!("{}: {}", fault.component, fault.cause),
                );
                Progress::Failed(cause)
            };
            outcome.send_replace(progress);
        }
    }

    fn enter(&self, state: State) {
        self.state.send_replace(state);
        self.hooks.observe(&BusEvent::State(state));
    }

    fn fault(&self, index: usize, phase: &str, failure: Failure) -> Fault {
        let fault = Fault {
            component: self.participants[index].name().to_owned(),
            phase: phase.to_owned(),
            cause: failure.reason,
            at: clock::stamp(),
            output: failure.output,
        };
        {
            let mut faults = lock(&self.faults);
            if faults.len() < FAULTS_MAX {
                faults.push(fault.clone());
            }
        }
        self.hooks.observe(&BusEvent::Fault(fault.clone()));
        fault
    }

    /// Takes one step. A state that announces something is entered before its listeners, one that promises something after.
    async fn step(&mut self, state: State, next: State) {
        match next {
            State::Starting => {
                self.enter(State::Starting);
                self.start().await;
            }
            State::Stopping => {
                let reason = match (&self.replacement, self.goal) {
                    (Some(replacement), _) => StopReason::Replace(Arc::clone(replacement)),
                    (None, Goal::Exited) => StopReason::Exit,
                    (None, Goal::Idle | Goal::Running) => {
                        if state == State::Starting {
                            StopReason::Undo
                        } else {
                            StopReason::Stop
                        }
                    }
                };
                self.enter(State::Stopping);
                let started = std::mem::take(&mut self.started);
                self.stop(started, &reason).await;
                self.enter(State::Idle);
            }
            State::Entering => {
                self.enter(State::Entering);
                self.enter_process().await;
                self.enter(State::Idle);
            }
            State::Exiting => {
                self.enter(State::Exiting);
                let entered = vec![(0..self.entering).collect()];
                let reason = self.replacement.clone().map_or(StopReason::Exit, StopReason::Replace);
                self.stop(entered, &reason).await;
                self.enter(State::Exited);
            }
            State::Initial | State::Idle | State::Running | State::Exited => self.enter(next),
        }
    }

    /// Starts what is there once per process image. A failure ends the process.
    async fn enter_process(&mut self) {
        for index in 0..self.entering {
            let participant = Arc::clone(&self.participants[index]);
            let limit = participant.start_limit();
            let result = tokio::time::timeout(limit, participant.start(CancellationToken::new())).await;
            let result = result.unwrap_or_else(|_| Err(Failure::new("not started within its time")));
            if let Err(failure) = result {
                self.fault(index, "enter", failure);
                self.goal = Goal::Exited;
            }
        }
    }

    /// Starts wave after wave, while requests are taken. Ends in `Running`, or leaves a goal that is below.
    async fn start(&mut self) {
        let cancelled = CancellationToken::new();
        let mut failed: BTreeSet<String> = BTreeSet::new();
        let mut faults = Vec::new();
        for wave in self.waves.clone() {
            if self.goal != Goal::Running || !faults.is_empty() {
                break; // what would start now would only have to stop again
            }
            let mut tasks = JoinSet::new();
            let mut running = BTreeMap::new();
            for index in wave {
                let participant = Arc::clone(&self.participants[index]);
                if let Some(missing) = participant.order().needs.iter().find(|name| failed.contains(*name)) {
                    failed.insert(participant.name().to_owned());
                    tracing::info!(component.name = participant.name(), missing, "not started: what it needs failed");
                    continue;
                }
                let limit = participant.start_limit();
                let token = cancelled.clone();
                let handle = tasks.spawn(async move {
                    let work = participant.start(token.clone());
                    match tokio::time::timeout(limit, work).await {
                        Ok(result) => result,
                        Err(_) => {
                            token.cancel();
                            Err(Failure::new(format!("not started within {} s", limit.as_secs_f32())))
                        }
                    }
                });
                running.insert(handle.id(), index);
            }
            let mut up = Vec::new();
            while !running.is_empty() {
                // Cancel-safe: both are queue-like, nothing is taken from either unless it is handled.
                tokio::select! {
                    Some(joined) = tasks.join_next_with_id() => {
                        let (id, result) = flatten(joined);
                        let Some(index) = running.remove(&id) else { continue };
                        match result {
                            Ok(()) => up.push(index),
                            Err(failure) => {
                                failed.insert(self.participants[index].name().to_owned());
                                // A start that nobody wants any more has not failed.
                                if self.goal == Goal::Running {
                                    faults.push(self.fault(index, "start", failure));
                                }
                            }
                        }
                    }
                    Some(asked) = self.requests.recv() => {
                        self.take(asked);
                        if self.goal != Goal::Running {
                            cancelled.cancel();
                        }
                    }
                }
            }
            self.started.push(up);
        }
        if self.goal != Goal::Running {
            return;
        }
        if faults.is_empty() {
            self.life.ran.store(true, Ordering::Relaxed);
            self.enter(State::Running);
            return;
        }
        self.replacement = self.hooks.start_failed(&faults);
        self.life.replacing.store(self.replacement.is_some(), Ordering::Relaxed);
        self.goal = Goal::Exited;
    }

    /// Stops what started, in reverse, while requests are taken. Nothing is skipped because something fails.
    async fn stop(&mut self, started: Vec<Vec<usize>>, reason: &StopReason) {
        for mut wave in started.into_iter().rev() {
            wave.reverse();
            let mut tasks = JoinSet::new();
            let mut running = BTreeMap::new();
            for index in wave {
                let participant = Arc::clone(&self.participants[index]);
                let reason = reason.clone();
                let hurry = self.hurry.child_token();
                let handle = tasks.spawn(stop_one(participant, reason, hurry));
                running.insert(handle.id(), index);
            }
            while !running.is_empty() {
                // Cancel-safe: as in `start`.
                tokio::select! {
                    Some(joined) = tasks.join_next_with_id() => {
                        let (id, result) = flatten(joined);
                        let Some(index) = running.remove(&id) else { continue };
                        if let Err(failure) = result {
                            self.fault(index, "stop", failure);
                        }
                    }
                    Some(asked) = self.requests.recv() => self.take(asked),
                }
            }
        }
    }

    /// Has everybody take new settings; requests that came meanwhile are part of it.
    async fn reload(&mut self) {
        let tickets = std::mem::take(&mut self.reloads);
        let mut tasks = JoinSet::new();
        let mut running = BTreeMap::new();
        for (index, participant) in self.participants.iter().enumerate() {
            let limit = participant.start_limit();
            let work = Arc::clone(participant).reload();
            let handle = tasks.spawn(async move {
                tokio::time::timeout(limit, work)
                    .await
                    .unwrap_or_else(|_| Err(Failure::new("not reloaded within its time")))
            });
            running.insert(handle.id(), index);
        }
        let mut failures = Vec::new();
        while let Some(joined) = tasks.join_next_with_id().await {
            let (id, result) = flatten(joined);
            if let (Some(index), Err(failure)) = (running.remove(&id), result) {
                failures.push(self.fault(index, "reload", failure));
            }
        }
        let progress = failures
            .first()
            .map_or(Progress::Done, |fault| Progress::Failed(format!("{}: {}", fault.component, fault.cause)));
        for ticket in tickets {
            ticket.send_replace(progress.clone());
        }
    }
}

/// Stops one participant: first in its own time, then in a hurry, then it is abandoned.
async fn stop_one(
    participant: Arc<dyn Participant>,
    reason: StopReason,
    hurry: CancellationToken,
) -> Result<(), Failure> {
    let limit = participant.stop_limit();
    let mut work = Arc::clone(&participant).stop(reason, hurry.clone());
    let mut late = false;
    // Cancel-safe: `work` is polled on below, the other two only say that time is over.
    let first = tokio::select! {
        result = &mut work => Some(result),
        () = tokio::time::sleep(limit) => { late = true; None }
        () = hurry.cancelled() => None,
    };
    if let Some(result) = first {
        return result;
    }
    hurry.cancel();
    match tokio::time::timeout(HURRY_GRACE, work).await {
        Ok(Ok(())) if late => Err(Failure::new(format!("not stopped within {} s", limit.as_secs_f32()))),
        Ok(result) => result,
        Err(_) => Err(Failure::new("not stopped in time, abandoned")),
    }
}

/// Returns the task and its result; a panic is a failure like any other.
fn flatten(joined: Result<(Id, Result<(), Failure>), tokio::task::JoinError>) -> (Id, Result<(), Failure>) {
    match joined {
        Ok(pair) => pair,
        Err(error) => {
            let id = error.id();
            let reason = match error.try_into_panic() {
                Ok(panic) => {
                    let text = panic
                        .downcast_ref::<&str>()
                        .map(|text| (*text).to_owned())
                        .or_else(|| panic.downcast_ref::<String>().cloned());
                    format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
                }
                Err(_) => "was cancelled".to_owned(),
            };
            (id, Err(Failure::new(reason)))
        }
    }
}
