//! Probes: listeners and components of this process that write down when they are called, and then do as they were told.
//!
//! [`limited`] runs a test on two threads in real time, [`paused`] on one thread whose time passes only while everybody waits,
//! [`both`] does one after the other. All three have a hard limit: a test that can hang proves nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use refit_bus::{
    Act, AfterFailure, BusEvent, Call, CancellationToken, ConfirmStep, Ended, Engine, Limits, Listener, Observer,
    Options, Order, Phase, Progress, State, StopReason, Subscription, listener,
};
use refit_bus::{Bus, Component, Failure, Fault, Origin, Request, Ticket};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long anything may take on a busy machine of two cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);
/// How long the bus waits for anybody: short, because hanging is what many cases are about.
pub(crate) const LISTENER: Duration = Duration::from_millis(300);
/// How long it waits for whoever was cancelled.
pub(crate) const GRACE: Duration = Duration::from_millis(100);
/// How long it waits for its tasks at the end.
pub(crate) const EXIT: Duration = Duration::from_secs(2);

/// What passes for a deadline that was not met on a busy machine: no limit of the bus in these tests is near it.
pub(crate) const FAST: Duration = Duration::from_secs(15);

pub(crate) const OPTIONS: Options =
    Options { listener: LISTENER, start: LISTENER, stop: LISTENER, transition: FAST, exit: EXIT, grace: GRACE };

/// Runs `body` on two threads in real time, at most as long as anything may take.
pub(crate) fn limited<T>(body: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let result = runtime.block_on(async { tokio::time::timeout(LIMIT, body).await });
    // A thread that a case has blocked is not waited for.
    runtime.shutdown_background();
    result.expect("the test ends within its limit")
}

/// Runs `body` on one thread whose time passes only while everybody waits: what hangs is found at once.
pub(crate) fn paused<T>(body: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(LIMIT, body).await }).expect("the test ends within its limit")
}

/// Runs `body` both ways.
pub(crate) fn both<T, B: Future<Output = T>>(body: impl Fn() -> B) {
    paused(body());
    limited(body());
}

/// Waits until `met` is true: for what nobody tells of.
pub(crate) async fn reached(what: &str, mut met: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !met() {
        assert!(begun.elapsed() < LIMIT, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One call of a probe, or its end.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) at: Instant,
    /// The channel or the phase; with ` done` when the call has ended by itself.
    pub(crate) what: String,
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) argument: Value,
}

impl Line {
    fn words(&self) -> String {
        format!("{} {}", self.what, self.name)
    }
}

/// What happened, in order.
#[derive(Default)]
pub(crate) struct Journal {
    lines: Mutex<Vec<Line>>,
    count: watch::Sender<usize>,
}

impl Journal {
    pub(crate) fn note(&self, what: &str, name: &str, state: State, argument: &Value) {
        let line = Line {
            at: Instant::now(),
            what: what.to_owned(),
            name: name.to_owned(),
            state,
            argument: argument.clone(),
        };
        let mut lines = lock(&self.lines);
        lines.push(line);
        let count = lines.len();
        drop(lines);
        self.count.send_replace(count);
    }

    /// Returns every line, ends of calls included.
    pub(crate) fn lines(&self) -> Vec<Line> {
        lock(&self.lines).clone()
    }

    /// Returns the calls as "what name", in the order in which they began.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.lines().iter().filter(|line| !line.what.ends_with(" done")).map(Line::words).collect()
    }

    /// Returns the names called for `what`, in order.
    pub(crate) fn names(&self, what: &str) -> Vec<String> {
        self.lines().into_iter().filter(|line| line.what == what).map(|line| line.name).collect()
    }

    /// Returns the line of `words`.
    pub(crate) fn find(&self, words: &str) -> Line {
        let lines = self.lines();
        lines.iter().find(|line| line.words() == words).unwrap_or_else(|| panic!("no {words}: {lines:?}")).clone()
    }

    /// Returns how often `words` happened.
    pub(crate) fn count(&self, words: &str) -> usize {
        self.lines().iter().filter(|line| line.words() == words).count()
    }

    pub(crate) fn clear(&self) {
        lock(&self.lines).clear();
    }

    /// Waits until `words` has happened.
    pub(crate) async fn happened(&self, words: &str) {
        let mut count = self.count.subscribe();
        while !self.lines().iter().any(|line| line.words() == words) {
            count.changed().await.expect("the journal lives");
        }
    }
}

/// What a probe does when it is called.
#[derive(Clone)]
pub(crate) enum Deed {
    /// Answers.
    Ok(Value),
    /// Fails, and says so.
    Fail(&'static str),
    /// Takes its time, then answers.
    Sleep(Duration),
    /// Never answers, whatever it is told.
    Hang,
    /// Never answers until it is cancelled; fails then, cleanly.
    Polite,
    /// Never answers until it is cancelled; has done it then.
    Late,
    /// Panics.
    Panic,
    /// Holds its thread and never yields, until the end of the process.
    Block,
    /// Waits until somebody opens.
    Gate(CancellationToken),
    /// Holds its thread until somebody opens.
    BlockUntil(Arc<AtomicBool>),
}

/// Returns what a probe answers that has nothing to say.
pub(crate) const OK: Deed = Deed::Ok(Value::Null);

impl Deed {
    pub(crate) async fn done(self, cancelled: CancellationToken) -> Result<Value, Failure> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Fail(reason) => Err(Failure::new(reason)),
            Self::Sleep(time) => {
                tokio::time::sleep(time).await;
                Ok(Value::Null)
            }
            Self::Hang => std::future::pending().await,
            Self::Polite => {
                cancelled.cancelled().await;
                Err(Failure::new("cancelled"))
            }
            Self::Late => {
                cancelled.cancelled().await;
                Ok(Value::Null)
            }
            Self::Panic => panic!("a probe panics"),
            Self::Block => loop {
                std::thread::park();
            },
            Self::BlockUntil(open) => {
                while !open.load(Ordering::SeqCst) {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                Ok(Value::Null)
            }
            Self::Gate(open) => {
                open.cancelled().await;
                Ok(Value::Null)
            }
        }
    }
}

/// Returns a listener that writes itself down as `name` and does `deed`.
pub(crate) fn probe(journal: &Arc<Journal>, name: &str, deed: Deed) -> Arc<dyn Listener> {
    let (journal, name) = (Arc::clone(journal), name.to_owned());
    listener(move |call: Call| {
        let (journal, name, deed) = (Arc::clone(&journal), name.clone(), deed.clone());
        journal.note(&call.channel, &name, call.state, &call.argument);
        async move {
            let result = deed.done(call.cancelled()).await;
            journal.note(&format!("{} done", call.channel), &name, call.state, &json!(result.is_ok()));
            result
        }
    })
}

/// What the owner of the bus hears.
#[derive(Default)]
pub(crate) struct Seen {
    events: Mutex<Vec<BusEvent>>,
    exit_after_failure: AtomicBool,
    run_after_failure: AtomicBool,
}

impl Seen {
    /// Returns the states, in order.
    pub(crate) fn states(&self) -> Vec<State> {
        let state = |event: &BusEvent| match event {
            BusEvent::State(state) => Some(*state),
            BusEvent::Fault(_)
            | BusEvent::Request { .. }
            | BusEvent::Publication(_)
            | BusEvent::Reloaded { .. }
            | BusEvent::Provisional { .. } => None,
        };
        lock(&self.events).iter().filter_map(state).collect()
    }

    /// Returns the numbers of the requests, in the order in which the owner heard of them.
    pub(crate) fn requests(&self) -> Vec<u64> {
        let number = |event: &BusEvent| match event {
            BusEvent::Request { number, .. } => Some(*number),
            BusEvent::State(_)
            | BusEvent::Fault(_)
            | BusEvent::Publication(_)
            | BusEvent::Reloaded { .. }
            | BusEvent::Provisional { .. } => None,
        };
        lock(&self.events).iter().filter_map(number).collect()
    }

    /// Returns how far the reloads came that have to be confirmed, in order.
    pub(crate) fn steps(&self) -> Vec<(u64, ConfirmStep)> {
        let step = |event: &BusEvent| match event {
            BusEvent::Provisional { reload, step } => Some((reload.generation, step.clone())),
            BusEvent::State(_)
            | BusEvent::Fault(_)
            | BusEvent::Request { .. }
            | BusEvent::Publication(_)
            | BusEvent::Reloaded { .. } => None,
        };
        lock(&self.events).iter().filter_map(step).collect()
    }

    /// Forgets what was seen.
    pub(crate) fn clear(&self) {
        lock(&self.events).clear();
    }
}

impl Observer for Seen {
    fn observe(&self, event: &BusEvent) {
        lock(&self.events).push(event.clone());
    }

    fn start_failed(&self, _faults: &[Fault]) -> AfterFailure {
        if self.exit_after_failure.load(Ordering::Relaxed) {
            AfterFailure::Exit
        } else if self.run_after_failure.load(Ordering::Relaxed) {
            AfterFailure::Run
        } else {
            AfterFailure::Idle
        }
    }
}

/// A bus that runs, with its journal.
pub(crate) struct Site {
    pub(crate) bus: Bus,
    pub(crate) journal: Arc<Journal>,
    pub(crate) seen: Arc<Seen>,
    engine: Mutex<Option<Engine>>,
    running: Mutex<Option<JoinHandle<Ended>>>,
}

impl Site {
    /// Returns a site whose engine does not run yet.
    pub(crate) fn at_rest() -> Self {
        Self::of(OPTIONS)
    }

    /// Returns a site of these limits whose engine does not run yet.
    pub(crate) fn of(options: Options) -> Self {
        let (bus, engine) = Bus::new(options);
        let seen = Arc::new(Seen::default());
        let engine = engine.with_observer(Arc::clone(&seen) as _);
        Self { bus, journal: Arc::default(), seen, engine: Mutex::new(Some(engine)), running: Mutex::new(None) }
    }

    /// Returns a site that is idle.
    pub(crate) async fn idle() -> Self {
        Self::idle_of(OPTIONS).await
    }

    /// Returns a site of these limits that is idle.
    pub(crate) async fn idle_of(options: Options) -> Self {
        let site = Self::of(options);
        site.run();
        site.bus.wait(&[State::Idle]).await.expect("it gets there");
        // Who waits for a state is told before the owner of the bus.
        reached("the owner heard of it", || site.seen.states().last() == Some(&State::Idle)).await;
        site
    }

    /// Has a failed start end the site, as the runtime does.
    pub(crate) fn exiting_after_failure(self) -> Self {
        self.seen.exit_after_failure.store(true, Ordering::Relaxed);
        self
    }

    /// Has the site run although something did not start.
    pub(crate) fn running_after_failure(self) -> Self {
        self.seen.run_after_failure.store(true, Ordering::Relaxed);
        self
    }

    /// Runs the engine.
    pub(crate) fn run(&self) {
        self.run_with_running(&[]);
    }

    /// Runs the engine of a site where these components run already.
    pub(crate) fn run_with_running(&self, names: &[&str]) {
        let engine = lock(&self.engine).take().expect("it runs once");
        let engine = engine.with_running(names.iter().map(|name| (*name).to_owned()));
        *lock(&self.running) = Some(tokio::spawn(engine.run()));
    }

    /// Adds a probe to a channel.
    pub(crate) fn probe(&self, channel: &str, name: &str, priority: i32, deed: Deed) {
        self.bus.subscribe(Subscription::new(channel, name, probe(&self.journal, name, deed)).priority(priority));
    }

    /// Returns a component that can be given more to do before it is attached.
    pub(crate) fn part(&self, name: &str) -> Part {
        Part {
            name: name.to_owned(),
            order: Order::default(),
            limits: Limits::default(),
            deeds: BTreeMap::new(),
            reverts: false,
            bus: self.bus.clone(),
            journal: Arc::clone(&self.journal),
            busy: AtomicBool::new(false),
        }
    }

    /// Asks as the test.
    pub(crate) fn ask(&self, request: Request) -> Ticket {
        self.bus.request(request, Origin("test".to_owned()))
    }

    /// Asks, and waits for the outcome.
    pub(crate) async fn want(&self, request: Request) -> Progress {
        self.ask(request).outcome().await
    }

    /// Asks, and asserts that it is done.
    pub(crate) async fn done(&self, request: Request) {
        let name = request.name();
        assert_eq!(self.want(request).await, Progress::Done, "{name}: {:?}", self.bus.faults());
    }

    /// Waits for the end of the engine.
    pub(crate) async fn ended(&self) -> Ended {
        let running = lock(&self.running).take().expect("it runs");
        running.await.expect("the engine does not panic")
    }

    /// Exits; asserts that nothing failed.
    pub(crate) async fn exit(&self) -> Ended {
        self.done(Request::Exit).await;
        let ended = self.ended().await;
        assert!(ended.faults.is_empty(), "{:?}", ended.faults);
        ended
    }
}

/// A component that does as it is told.
pub(crate) struct Part {
    name: String,
    order: Order,
    limits: Limits,
    deeds: BTreeMap<&'static str, Deed>,
    reverts: bool,
    bus: Bus,
    journal: Arc<Journal>,
    busy: AtomicBool,
}

impl Part {
    pub(crate) fn needs(mut self, names: &[&str]) -> Self {
        self.order.needs = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    pub(crate) fn after(mut self, names: &[&str]) -> Self {
        self.order.after = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    pub(crate) const fn priority(mut self, priority: i32) -> Self {
        self.order.priority = priority;
        self
    }

    pub(crate) const fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Says that it can revert.
    pub(crate) const fn reverts(mut self) -> Self {
        self.reverts = true;
        self
    }

    /// Does `deed` when it is asked to `what`: start, stop, prepare, commit, abort or revert.
    pub(crate) fn on(mut self, what: &'static str, deed: Deed) -> Self {
        self.deeds.insert(what, deed);
        self
    }

    pub(crate) fn attach(self) {
        let bus = self.bus.clone();
        bus.attach(Arc::new(self)).expect("its name is free");
    }

    fn act(self: Arc<Self>, what: &'static str, argument: Value, cancelled: CancellationToken) -> Act {
        /// Free again, also when the call is dropped.
        struct Free<'a>(&'a AtomicBool);
        impl Drop for Free<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        Box::pin(async move {
            assert!(!self.busy.swap(true, Ordering::SeqCst), "{} is called twice at once", self.name);
            let _free = Free(&self.busy);
            self.journal.note(what, &self.name, self.bus.state(), &argument);
            let result = self.deeds.get(what).cloned().unwrap_or(OK).done(cancelled).await;
            self.journal.note(&format!("{what} done"), &self.name, self.bus.state(), &json!(result.is_ok()));
            result.map(drop)
        })
    }
}

impl Component for Part {
    fn name(&self) -> &str {
        &self.name
    }

    fn order(&self) -> Order {
        self.order.clone()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn start(self: Arc<Self>, cancelled: CancellationToken) -> Act {
        self.act("start", Value::Null, cancelled)
    }

    fn stop(self: Arc<Self>, reason: StopReason, hurry: CancellationToken) -> Act {
        self.act("stop", json!(reason.name()), hurry)
    }

    fn reload(self: Arc<Self>, phase: Phase, generation: u64) -> Act {
        self.act(phase.name(), json!(generation), CancellationToken::new())
    }

    fn reverts(&self) -> bool {
        self.reverts
    }
}
