//! What the handles and the engine share: where the site stands, who asked, what failed, who waits.

mod confirm;
mod pending;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use refit_base::{Cause, clock, lock};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::asked::Asked;
use crate::calls::Monitor;
use crate::confirm::{ConfirmStep, ConfirmTerms, Unconfirmed};
use crate::failure::{Failure, combined};
use crate::log::{self, Level, Log, LogEntry};
use crate::machine::{ConfirmState, Decision, RequestKind, SiteStatus, decide, decide_provisional};
use crate::origin::Origin;
use crate::outbox::Outbox;
use crate::panics::panic_failure;
use crate::publication::Report;
use crate::registry::{Entry, Registry};
use crate::request::{Progress, Replacement, Request, Ticket};
use crate::state::{Goal, State};
use crate::tasks::TaskSet;
use pending::{Pending, Reloads};

/// How many faults are kept: the first ones say what went wrong.
const FAULTS_MAX: usize = 100;

/// How long the bus waits, where nobody says it for himself.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// For a listener of a publication, of `enter` and `exit`, and for each phase of a reload.
    pub listener: Duration,
    /// For a component to start.
    pub start: Duration,
    /// For a component to stop, before it is told to hurry.
    pub stop: Duration,
    /// For a transition, or a reload, as a whole: the deadline of each listener lies inside it.
    pub transition: Duration,
    /// For the tasks that the bus owns, once the exit listeners are done.
    pub exit: Duration,
    /// For whoever was cancelled, before it is abandoned.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listener: Duration::from_secs(10),
            start: Duration::from_secs(60),
            stop: Duration::from_secs(10),
            transition: Duration::from_secs(15 * 60),
            exit: Duration::from_secs(10),
            grace: Duration::from_secs(2),
        }
    }
}

/// A failure that lies beside the state and decides the exit status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The component.
    pub component: String,
    /// Its priority, if it is a listener that failed when it was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// What it was to do.
    pub phase: String,
    /// Why it failed.
    pub cause: String,
    /// When, RFC 3339.
    pub at: String,
    /// The last output of what failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<String>,
    /// Whose trouble it is.
    #[serde(skip)]
    pub trouble: Cause,
}

/// Returns what failed, for people: one line, or if there are several one line each with the priority.
pub fn causes(faults: &[Fault]) -> String {
    let all = faults.iter().map(|fault| (fault.component.as_str(), fault.priority, fault.cause.as_str()));
    combined(all).unwrap_or_default()
}

/// What the bus tells whoever owns it.
#[derive(Debug, Clone)]
pub enum BusEvent {
    /// The state changed.
    State(State),
    /// Something failed.
    Fault(Fault),
    /// A request was made.
    Request {
        /// Its number.
        number: u64,
        /// What is asked.
        kind: RequestKind,
        /// Who asked.
        origin: Origin,
        /// What becomes of it.
        decision: Decision,
    },
    /// Something was published by somebody.
    Publication(Report),
    /// A reload is over.
    Reloaded {
        /// The generation that it was about.
        generation: u64,
        /// Why it is not in force everywhere; `None` if it is.
        reason: Option<String>,
        /// Who was asked, and what each answered.
        asked: Vec<Asked>,
    },
    /// A reload that has to be confirmed has come a step further.
    Provisional {
        /// The reload.
        reload: Unconfirmed,
        /// How far it is.
        step: ConfirmStep,
    },
}

/// What follows a start that failed; unless the site runs on, everything that started is stopped again first.
#[derive(Debug, Clone)]
pub enum AfterFailure {
    /// The site stays idle.
    Idle,
    /// The site runs without what did not start, which its owner may still bring up; the request to start has failed.
    Run,
    /// The site ends.
    Exit,
    /// The process image is replaced.
    Replace(Arc<Replacement>),
}

/// What the owner of the bus decides and hears. Called while the bus waits: nothing here may.
pub trait Observer: Send + Sync + 'static {
    /// Hears of everything that happens, in order.
    fn observe(&self, _event: &BusEvent) {}

    /// A start failed: decides what follows. If it panics the site ends, and the panic is a fault: nobody has decided.
    fn start_failed(&self, _faults: &[Fault]) -> AfterFailure {
        AfterFailure::Idle
    }
}

/// Something to be said, or to be done in that order.
enum Item {
    Log(LogEntry),
    Event(BusEvent),
    /// What was promised for a state is kept once everybody has heard of it.
    Settle(State, Vec<Fault>),
    /// All before it was said.
    Said(oneshot::Sender<()>),
}

struct Waiter {
    states: Vec<State>,
    reached: oneshot::Sender<State>,
}

struct Core {
    status: SiteStatus,
    pending: Vec<Pending>,
    replacement: Option<Arc<Replacement>>,
    waiters: Vec<Waiter>,
    faults: Vec<Fault>,
    asked_to_exit: bool,
    /// The reload that waits to be confirmed, or is being reverted.
    unconfirmed: Option<Unconfirmed>,
    requests: u64,
    /// Whether the site was ever running in this process image.
    ran: bool,
}

/// What is shared.
pub(crate) struct Shared {
    core: Mutex<Core>,
    pub(crate) options: Options,
    pub(crate) state: watch::Sender<State>,
    /// Counts the requests that changed something, for the engine.
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) log: Log,
    pub(crate) tasks: TaskSet,
    pub(crate) observer: OnceLock<Arc<dyn Observer>>,
    pub(crate) hurry: CancellationToken,
    pub(crate) publications: AtomicU64,
    /// Who looks after calls that hold the thread of whoever begins them.
    pub(crate) monitor: Arc<Monitor>,
    outbox: Outbox<Item>,
}

impl Shared {
    pub(crate) fn new(options: Options, tasks: TaskSet, log_tasks: TaskSet) -> Self {
        Self {
            core: Mutex::new(Core {
                status: SiteStatus {
                    state: State::Initial,
                    goal: Goal::Idle,
                    leaving: None,
                    reload_waits: false,
                    confirm: ConfirmState::None,
                },
                pending: Vec::new(),
                replacement: None,
                waiters: Vec::new(),
                faults: Vec::new(),
                asked_to_exit: false,
                unconfirmed: None,
                requests: 0,
                ran: false,
            }),
            options,
            state: watch::channel(State::Initial).0,
            changes: watch::channel(0).0,
            registry: Arc::new(Registry::new()),
            log: Log::new(log_tasks),
            tasks,
            observer: OnceLock::new(),
            hurry: CancellationToken::new(),
            publications: AtomicU64::new(0),
            monitor: Arc::default(),
            outbox: Outbox::default(),
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    /// Says what happens, to people.
    pub(crate) fn say(&self, level: Level, text: String) {
        if let Some(entry) = log::entry(level, text) {
            self.outbox.push([Item::Log(entry)]);
            self.deliver();
        }
    }

    /// Says what happens, to the observer. Returns when it has heard.
    pub(crate) async fn tell(&self, event: BusEvent) {
        self.outbox.push([Item::Event(event)]);
        self.all_said().await;
    }

    /// Says what a publication came to.
    pub(crate) fn is_published(&self, report: &Report) {
        let failed = report.failures().into_iter().filter_map(|(name, failure)| {
            let text = format!("the listener {name} on {} failed: {failure}", report.channel);
            log::entry(Level::Error, text).map(Item::Log)
        });
        let event = self.observer.get().is_some().then(|| Item::Event(BusEvent::Publication(report.clone())));
        self.outbox.push(failed.chain(event));
        self.deliver();
    }

    /// Waits until everything that waits to be said is said.
    async fn all_said(&self) {
        let (said, all) = oneshot::channel();
        self.outbox.push([Item::Said(said)]);
        self.deliver();
        drop(all.await); // whoever delivers says it, or panics
    }

    fn deliver(&self) {
        self.outbox.deliver(|item| match item {
            Item::Log(entry) => self.log.hand(&entry),
            Item::Event(event) => self.observe(&event),
            Item::Settle(state, faults) => self.core().settle(state, &faults),
            Item::Said(said) => drop(said.send(())), // it may be waited for no more
        });
    }

    /// An observer that panics has missed something, and nobody else.
    fn observe(&self, event: &BusEvent) {
        let Some(observer) = self.observer.get() else { return };
        let observe = std::panic::AssertUnwindSafe(|| observer.observe(event));
        if let Err(panic) = std::panic::catch_unwind(observe)
            && let Some(entry) = log::entry(Level::Error, format!("the observer failed: {}", panic_failure(&*panic)))
        {
            self.outbox.push([Item::Log(entry)]);
        }
    }

    pub(crate) fn status(&self) -> SiteStatus {
        self.core().status
    }

    pub(crate) fn replacement(&self) -> Option<Arc<Replacement>> {
        self.core().replacement.clone()
    }

    pub(crate) fn is_replacing(&self) -> bool {
        self.core().replacement.is_some()
    }

    /// Returns whether the site was ever running; whoever hears that it was finds a state that came then or later.
    pub(crate) fn ran(&self) -> bool {
        self.core().ran
    }

    pub(crate) fn asked_to_exit(&self) -> bool {
        self.core().asked_to_exit
    }

    /// Takes a request: decides what it means, and lets the engine know.
    pub(crate) fn request(&self, request: Request, origin: Origin) -> Ticket {
        let (kind, terms) = (request.kind(), request.terms());
        let ticket = {
            let mut core = self.core();
            core.requests += 1;
            let number = core.requests;
            let decision = match terms {
                Some(_) => decide_provisional(core.status),
                None => decide(core.status, kind),
            };
            let ticket = match decision {
                Decision::Already => Ticket::settled(number, Progress::Already),
                Decision::Refuse(refusal) => Ticket::settled(number, Progress::Refused(refusal.to_string())),
                Decision::Merge => {
                    let is_same = |pending: &&Pending| {
                        pending.kind == kind && pending.terms.is_none() && pending.failed.is_none()
                    };
                    match core.pending.iter().find(is_same) {
                        Some(pending) => pending.ticket(number),
                        // Under way without a ticket of its own, such as an exit that a failure decided.
                        None => core.open(number, kind, None, origin.clone()),
                    }
                }
                Decision::Accept => core.accept(number, request, &origin),
            };
            let outcome = match decision {
                Decision::Accept => "accepted".to_owned(),
                Decision::Merge => format!("merged with {}", ticket.merged_with().unwrap_or_default()),
                Decision::Already => "already so".to_owned(),
                Decision::Refuse(refusal) => format!("refused: {refusal}"),
            };
            let entry = log::entry(Level::Info, format!("request {} of {origin}: {outcome}", kind.name()));
            let event = Item::Event(BusEvent::Request { number, kind, origin, decision });
            self.outbox.push(entry.map(Item::Log).into_iter().chain([event]));
            ticket
        };
        self.deliver();
        self.changes.send_modify(|count| *count += 1);
        ticket
    }

    /// Returns the state if it is one of `states`.
    pub(crate) fn is_in(&self, states: &[State]) -> Option<State> {
        let state = self.core().status.state;
        states.contains(&state).then_some(state)
    }

    /// Returns what says when the site is in one of `states`; it is told of every state, however short.
    pub(crate) fn waiter(&self, states: &[State]) -> oneshot::Receiver<State> {
        let (reached, receiver) = oneshot::channel();
        let mut core = self.core();
        let state = core.status.state;
        if states.contains(&state) {
            reached.send(state).ok(); // it has just got there
        } else if core.status.leaving.is_none() || states.iter().any(|wanted| state.leads_to(*wanted)) {
            core.waiters.retain(|waiter| !waiter.reached.is_closed());
            core.waiters.push(Waiter { states: states.to_vec(), reached });
        }
        receiver
    }

    /// Makes `state` visible, and resolves what was promised for it. Returns when everybody has heard of it.
    pub(crate) async fn enter(&self, state: State) {
        self.enter_if(state, |_| true).await;
    }

    /// Ends, unless an exit has taken the place of a replacement and `nothing_left` is not so. Returns whether it has ended.
    pub(crate) async fn end(&self, nothing_left: bool) -> bool {
        self.enter_if(State::Exited, |core| nothing_left || core.replacement.is_some()).await
    }

    async fn enter_if(&self, state: State, may_enter: impl FnOnce(&Core) -> bool) -> bool {
        {
            let mut core = self.core();
            if !may_enter(&core) {
                return false;
            }
            core.status.state = state;
            core.ran |= state == State::Running;
            self.state.send_replace(state);
            let (there, elsewhere) = core.waiters.drain(..).partition(|waiter| waiter.states.contains(&state));
            core.waiters = if state == State::Exited { Vec::new() } else { elsewhere };
            let there: Vec<Waiter> = there;
            for waiter in there {
                waiter.reached.send(state).ok(); // whoever waited may have given up
            }
            let entry = log::entry(Level::Info, format!("bus: {}", state.name())).map(Item::Log);
            // The tickets come last: whoever waits for one finds everything that belongs to it done.
            let rest = [Item::Event(BusEvent::State(state)), Item::Settle(state, core.faults.clone())];
            self.outbox.push(entry.into_iter().chain(rest));
        }
        self.all_said().await;
        true
    }

    /// Resolves the tickets that ask for what is so, because another request took the site back there before it left.
    pub(crate) fn settle_here(&self) {
        let mut core = self.core();
        let state = core.status.state;
        if matches!(state, State::Idle | State::Running) {
            core.settle(state, &[]);
        }
    }

    /// Records a failure beside the state.
    pub(crate) fn fault(&self, component: &str, phase: &str, failure: Failure) -> Fault {
        self.record(component, None, phase, failure)
    }

    /// Records the failure of a listener that was called.
    pub(crate) fn fault_of(&self, entry: &Entry, phase: &str, failure: Failure) -> Fault {
        self.record(&entry.name, Some(entry.priority), phase, failure)
    }

    /// Records a failure of somebody, who has a priority if it is a listener.
    pub(crate) fn record(&self, component: &str, priority: Option<i32>, phase: &str, failure: Failure) -> Fault {
        let fault = Fault {
            component: component.to_owned(),
            priority,
            phase: phase.to_owned(),
            cause: failure.reason,
            at: clock::stamp(),
            output: failure.output,
            trouble: failure.cause,
        };
        {
            let mut core = self.core();
            if core.faults.len() < FAULTS_MAX {
                core.faults.push(fault.clone());
            }
            let place = priority.map_or_else(String::new, |priority| format!(" (priority {priority})"));
            let text = format!("{component} failed to {phase}: {}{place}", fault.cause);
            let entry = log::entry(Level::Error, text);
            self.outbox.push(entry.map(Item::Log).into_iter().chain([Item::Event(BusEvent::Fault(fault.clone()))]));
        }
        self.deliver();
        fault
    }

    pub(crate) fn faults(&self) -> Vec<Fault> {
        self.core().faults.clone()
    }

    /// Takes the reloads that wait; those that come from now on are the next round's.
    pub(crate) fn take_reloads(&self) -> Reloads {
        let mut core = self.core();
        core.status.reload_waits = false;
        let is_plain = |pending: &mut Pending| pending.kind == RequestKind::Reload && pending.terms.is_none();
        Reloads(core.pending.extract_if(.., is_plain).collect())
    }

    /// Ends the attempt to run, unless somebody has asked for something else meanwhile. Returns whether the site runs all the same.
    pub(crate) fn start_failed(&self, faults: &[Fault]) -> bool {
        let after =
            self.observer.get().map_or(AfterFailure::Idle, |observer| self.ask_what_follows(&**observer, faults));
        let cause = causes(faults);
        let mut core = self.core();
        if core.status.goal != Goal::Running {
            return false;
        }
        let runs = matches!(after, AfterFailure::Run);
        let has_failed = |kind| kind == RequestKind::Start || (kind == RequestKind::Reload && !runs);
        for pending in core.pending.iter_mut().filter(|pending| has_failed(pending.kind)) {
            pending.failed = Some(cause.clone());
        }
        if !runs {
            core.forget_reloads();
        }
        match after {
            AfterFailure::Run => {}
            AfterFailure::Idle => core.status.goal = Goal::Idle,
            AfterFailure::Exit => core.leave(RequestKind::Exit, None),
            AfterFailure::Replace(replacement) => core.leave(RequestKind::Rollback, Some(replacement)),
        }
        runs
    }

    /// An observer that panics has decided nothing: the site ends, and its owner can start it again.
    fn ask_what_follows(&self, observer: &dyn Observer, faults: &[Fault]) -> AfterFailure {
        let decide = std::panic::AssertUnwindSafe(|| observer.start_failed(faults));
        std::panic::catch_unwind(decide).unwrap_or_else(|panic| {
            self.fault("the observer", "decide what follows a start that failed", panic_failure(&*panic));
            AfterFailure::Exit
        })
    }

    /// Ends the site because of a failure, or because nobody could ever ask again.
    pub(crate) fn give_up(&self) {
        let mut core = self.core();
        if core.status.leaving.is_none() {
            core.leave(RequestKind::Exit, None);
        }
    }
}

impl Core {
    fn open(&mut self, number: u64, kind: RequestKind, terms: Option<ConfirmTerms>, origin: Origin) -> Ticket {
        let pending = Pending::new(number, kind, terms, origin);
        let ticket = pending.ticket(number);
        self.pending.push(pending);
        ticket
    }

    fn leave(&mut self, kind: RequestKind, replacement: Option<Arc<Replacement>>) {
        self.status.goal = Goal::Exited;
        self.status.leaving = Some(kind);
        self.forget_reloads();
        self.replacement = replacement;
        // Whoever waits for what will not be any more is told now.
        let state = self.status.state;
        self.waiters.retain(|waiter| waiter.states.iter().any(|wanted| state.leads_to(*wanted)));
    }

    fn accept(&mut self, number: u64, request: Request, origin: &Origin) -> Ticket {
        use RequestKind::{Confirm, Exit, Reload, Restart, Rollback, Start, Stop, Update};
        let (kind, terms) = (request.kind(), request.terms());
        // What is weaker, or wants the site elsewhere, will not happen any more. A stop on the way to the end still does.
        let overtaken = |pending: &mut Pending| match kind {
            Start => pending.kind == Stop,
            Stop => matches!(pending.kind, Start | Reload),
            Reload | Confirm => false,
            Restart | Update | Rollback => matches!(pending.kind, Start | Reload),
            // What is confirmed stays so.
            Exit => !matches!(pending.kind, Stop | Exit | Confirm),
        };
        for pending in self.pending.extract_if(.., overtaken) {
            let reason = format!("{} cancelled by {} of {origin}", pending.kind.name(), kind.name());
            pending.resolve(Progress::Failed(reason));
        }
        match kind {
            Start => self.status.goal = Goal::Running,
            Stop => {
                self.status.goal = Goal::Idle;
                self.forget_reloads();
            }
            Reload if terms.is_some() => self.status.confirm = ConfirmState::Asked,
            Reload => self.status.reload_waits = true,
            Confirm => self.status.confirm = ConfirmState::Confirmed,
            Restart | Update | Rollback => self.leave(kind, request.into_replacement()),
            Exit => {
                self.asked_to_exit = true;
                self.leave(kind, None);
            }
        }
        self.open(number, kind, terms, origin.clone())
    }

    /// Resolves the tickets of what is reached with `state`.
    fn settle(&mut self, state: State, faults: &[Fault]) {
        use RequestKind::{Confirm, Exit, Reload, Restart, Rollback, Start, Stop, Update};
        let reached = |pending: &mut Pending| match pending.kind {
            Start => state == State::Running || (pending.failed.is_some() && state == State::Idle),
            Stop => state == State::Idle,
            Reload => pending.failed.is_some() && state == State::Idle,
            Confirm => false,
            Restart | Exit | Update | Rollback => state == State::Exited,
        };
        for pending in self.pending.extract_if(.., reached) {
            pending.resolve(Progress::Done);
        }
        if state == State::Exited {
            let cause = faults.last().map_or_else(
                || "the site has ended".to_owned(),
                |fault| format!("{}: {}", fault.component, fault.cause),
            );
            for pending in self.pending.drain(..) {
                pending.resolve(Progress::Failed(cause.clone()));
            }
        }
    }
}
