//! A model test of the bus: random components, random misbehaviour and random requests from many tasks, and what must be true
//! whatever happens.
//!
//! Time passes only while everybody waits, so that what hangs costs nothing; a case that fails is made as small as it can be. Components that
//! hold their thread are tried apart, in real time on two threads, where nobody hangs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::Config;
use refit_bus::{
    Act, Answer, BusEvent, CancellationToken, ConfirmStep, ConfirmTerms, Observer, Options, Order, Outcome, Phase,
    Replacement, State, StopReason, Subscription, listener,
};
use refit_bus::{Bus, Component, Failure, Origin, Progress, Request};
use serde_json::Value;

/// How many lives of a site are tried.
const CASES: u32 = 3000;
/// How many are tried in real time.
const HELD_CASES: u32 = 24;
const PARTS_MAX: usize = 6;
const TASKS_MAX: usize = 4;
const REQUESTS_MAX: usize = 6;

const OPTIONS: Options = Options {
    listener: Duration::from_millis(300),
    start: Duration::from_millis(300),
    stop: Duration::from_millis(300),
    transition: Duration::from_secs(10),
    exit: Duration::from_secs(2),
    grace: Duration::from_millis(100),
};

/// What a component does when it is called; its turns repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Ok,
    /// Takes this many milliseconds.
    Slow(u64),
    Fail,
    Panic,
    Hang,
    /// Gives up when it is cancelled.
    Polite,
    /// Is done just when it is cancelled.
    Late,
    /// Holds its thread for this many milliseconds.
    Hold(u64),
}

#[derive(Debug, Clone)]
struct PartPlan {
    /// Earlier parts, by number.
    needs: Vec<usize>,
    after: Vec<usize>,
    priority: i32,
    start: Vec<Deed>,
    stop: Vec<Deed>,
    prepare: Vec<Deed>,
    commit: Vec<Deed>,
    revert: Vec<Deed>,
    /// Whether it says that it can revert.
    reverts: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Start,
    Stop,
    Reload,
    /// A reload that has to be confirmed within this many milliseconds.
    Try(u64),
    Confirm,
    /// Leaves the components running whose bits are set.
    Restart(u8),
    Exit,
    /// Has the bus own so many tasks, each of which has it own another one.
    Own(u8),
    /// Puts the next generation in the place of the listener whose name they share.
    Renew,
    /// Publishes to that listener.
    Publish,
    /// Rests for this many milliseconds.
    Rest(u64),
    /// Waits for the ticket of the request before.
    Await,
}

#[derive(Debug, Clone)]
struct Plan {
    parts: Vec<PartPlan>,
    tasks: Vec<Vec<Step>>,
}

fn deed(good: u32) -> impl Strategy<Value = Deed> {
    prop_oneof![
        good => Just(Deed::Ok),
        2 => (1..250_u64).prop_map(Deed::Slow),
        1 => Just(Deed::Fail),
        1 => Just(Deed::Panic),
        1 => Just(Deed::Hang),
        1 => Just(Deed::Polite),
        1 => Just(Deed::Late),
    ]
}

/// Where nobody waits in vain, and some hold their thread.
fn held_deed(good: u32) -> impl Strategy<Value = Deed> {
    prop_oneof![
        good => Just(Deed::Ok),
        2 => (1..10_u64).prop_map(Deed::Slow),
        2 => (22..35_u64).prop_map(Deed::Hold),
        1 => Just(Deed::Fail),
        1 => Just(Deed::Panic),
    ]
}

fn part(deed: impl Fn(u32) -> BoxedStrategy<Deed>) -> impl Strategy<Value = PartPlan> {
    let others = || prop::collection::vec(0..PARTS_MAX, 0..3);
    let priority = prop_oneof![3 => Just(50), 1 => 0..100_i32];
    let deeds = |good: u32| prop::collection::vec(deed(good), 1..3);
    let reload = (deeds(40), deeds(40), deeds(12), prop::bool::weighted(0.97));
    (others(), others(), priority, deeds(40), deeds(20), reload).prop_map(
        |(needs, after, priority, start, stop, (prepare, commit, revert, reverts))| PartPlan {
            needs,
            after,
            priority,
            start,
            stop,
            prepare,
            commit,
            revert,
            reverts,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Start),
        3 => Just(Step::Stop),
        3 => Just(Step::Reload),
        6 => (1..400_u64).prop_map(Step::Try),
        3 => Just(Step::Confirm),
        3 => any::<u8>().prop_map(Step::Restart),
        1 => Just(Step::Exit),
        1 => (1..20_u8).prop_map(Step::Own),
        1 => Just(Step::Renew),
        1 => Just(Step::Publish),
        4 => (1..500_u64).prop_map(Step::Rest),
        4 => Just(Step::Await),
    ]
}

/// Returns a step with what often follows it: who tries new settings waits for them, and confirms them.
fn followed(step: Step) -> Vec<Step> {
    match step {
        Step::Try(within) if within % 3 == 0 => vec![step, Step::Await, Step::Confirm],
        Step::Try(within) if within % 3 == 1 => vec![step, Step::Await],
        Step::Start
        | Step::Stop
        | Step::Reload
        | Step::Try(_)
        | Step::Confirm
        | Step::Restart(_)
        | Step::Exit
        | Step::Own(_)
        | Step::Renew
        | Step::Publish
        | Step::Rest(_)
        | Step::Await => vec![step],
    }
}

fn plan(part: impl Strategy<Value = PartPlan>) -> impl Strategy<Value = Plan> {
    let parts = prop::collection::vec(part, 1..=PARTS_MAX);
    let tasks = prop::collection::vec(prop::collection::vec(step(), 1..=REQUESTS_MAX), 1..=TASKS_MAX);
    // Many things happen only to a site that runs.
    (parts, tasks, prop::bool::weighted(0.7)).prop_map(|(mut parts, mut tasks, runs)| {
        for task in &mut tasks {
            *task = task.drain(..).flat_map(followed).collect();
            if runs {
                task.splice(0..0, [Step::Start, Step::Await]);
            }
        }
        for (number, part) in parts.iter_mut().enumerate() {
            // Only earlier ones: a circle is refused, and is another test's.
            part.needs.retain(|other| *other < number);
            part.after.retain(|other| *other < number);
        }
        Plan { parts, tasks }
    })
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    State(State),
    Begun(&'static str, usize),
    /// With whether it was good; without, it was dropped.
    Ended(&'static str, usize, Option<bool>),
    /// With whether the generation is in force.
    Reloaded(bool),
    /// Left running for the next image.
    Kept(usize),
    /// A reload that has to be confirmed waits.
    Waits,
    Confirmed,
    Reverting,
    Reverted,
}

#[derive(Default)]
struct Record(Mutex<Vec<Seen>>);

impl Record {
    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, seen: Seen) {
        self.lock().push(seen);
    }
}

impl Observer for Record {
    fn observe(&self, event: &BusEvent) {
        match event {
            BusEvent::State(state) => self.push(Seen::State(*state)),
            BusEvent::Reloaded { reason, .. } => self.push(Seen::Reloaded(reason.is_none())),
            BusEvent::Provisional { step, .. } => self.push(match step {
                ConfirmStep::Waits => Seen::Waits,
                ConfirmStep::Confirmed { .. } => Seen::Confirmed,
                ConfirmStep::Reverting { .. } => Seen::Reverting,
                ConfirmStep::Reverted { .. } => Seen::Reverted,
            }),
            BusEvent::Fault(_) | BusEvent::Request { .. } | BusEvent::Publication(_) => {}
        }
    }
}

struct Part {
    number: usize,
    name: String,
    order: Order,
    deeds: BTreeMap<&'static str, Vec<Deed>>,
    reverts: bool,
    calls: Mutex<BTreeMap<&'static str, usize>>,
    busy: AtomicBool,
    twice: Arc<AtomicBool>,
    record: Arc<Record>,
}

/// Says that a call has ended, however it did.
struct Call<'a> {
    part: &'a Part,
    what: &'static str,
    good: Option<bool>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.part.busy.store(false, Ordering::SeqCst);
        self.part.record.push(Seen::Ended(self.what, self.part.number, self.good));
    }
}

impl Part {
    fn act(self: Arc<Self>, what: &'static str, cancelled: CancellationToken) -> Act {
        Box::pin(async move {
            if self.busy.swap(true, Ordering::SeqCst) {
                self.twice.store(true, Ordering::SeqCst);
            }
            self.record.push(Seen::Begun(what, self.number));
            let mut call = Call { part: &self, what, good: None };
            let turn = {
                let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
                let turn = calls.entry(what).or_default();
                *turn += 1;
                *turn - 1
            };
            let deed = self.deeds.get(what).map_or(Deed::Ok, |deeds| deeds[turn % deeds.len()]);
            let good = match deed {
                Deed::Ok => true,
                Deed::Slow(millis) => {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    true
                }
                Deed::Hold(millis) => {
                    std::thread::sleep(Duration::from_millis(millis));
                    true
                }
                Deed::Fail => false,
                Deed::Panic => std::panic::resume_unwind(Box::new("as planned")),
                Deed::Hang => std::future::pending().await,
                Deed::Polite => {
                    cancelled.cancelled().await;
                    false
                }
                Deed::Late => {
                    cancelled.cancelled().await;
                    true
                }
            };
            call.good = Some(good);
            drop(call);
            if good { Ok(()) } else { Err(Failure::new("as planned")) }
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

    fn start(self: Arc<Self>, cancelled: CancellationToken) -> Act {
        self.act("start", cancelled)
    }

    fn stop(self: Arc<Self>, reason: StopReason, hurry: CancellationToken) -> Act {
        if reason.keeps_running(&self.name) {
            return Box::pin(async move {
                self.record.push(Seen::Kept(self.number));
                Ok(())
            });
        }
        self.act("stop", hurry)
    }

    fn reverts(&self) -> bool {
        self.reverts
    }

    fn reload(self: Arc<Self>, phase: Phase, _generation: u64) -> Act {
        self.act(phase.name(), CancellationToken::new())
    }
}

fn name(number: usize) -> String {
    format!("part-{number}")
}

fn names(numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(|number| name(*number)).collect()
}

/// Everything that one life of a site left.
struct Life {
    seen: Vec<Seen>,
    tickets: Vec<Progress>,
    faults: usize,
    twice: bool,
    /// Whether the next image was to take over.
    replaced: bool,
    /// How the waits ended of the reloads that were in force and had to be confirmed; `None` if a ticket does not say.
    waits: Vec<Option<ConfirmStep>>,
    /// How many tasks the bus has taken, and how many of them have ended.
    owned: (u64, u64),
    /// What is wrong with a publication to the listener whose name is shared.
    missed: Option<String>,
}

/// A listener whose name its generations share.
struct Shared {
    bus: Bus,
    newest: Mutex<u64>,
    missed: Mutex<Option<String>>,
    owned: AtomicU64,
    ended: AtomicU64,
}

impl Shared {
    fn renew(&self) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest += 1;
        let own = *newest;
        let answers = listener(move |_| async move { Ok(Value::from(own)) });
        self.bus.subscribe(Subscription::new("work", "shared", answers));
    }

    /// Publishes: exactly one generation answers, and none that another had replaced before.
    async fn publish(&self) {
        let newest = *self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let report = self.bus.publish("work", Value::Null).await;
        let is_newest = |answer: &Answer| match &answer.outcome {
            Outcome::Ok { value } => value.as_u64() >= Some(newest),
            Outcome::Failed { .. } | Outcome::Timeout { .. } | Outcome::Skipped { .. } => false,
        };
        let has_ended = self.bus.state() == State::Exited;
        if !has_ended && (report.answers.len() != 1 || !report.answers.iter().all(is_newest)) {
            *self.missed.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("after {newest}: {report:?}"));
        }
    }

    /// Has the bus own a task that has it own another one, if it takes any more.
    fn own(self: &Arc<Self>, more: bool) {
        let own = Arc::clone(self);
        let task = async move {
            tokio::task::yield_now().await;
            if more {
                own.own(false);
            }
            own.ended.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        if self.bus.own("flood", task).is_ok() {
            self.owned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Lives through a plan, and ends.
async fn live(plan: &Plan) -> Life {
    let (bus, engine) = Bus::new(OPTIONS);
    let (record, twice) = (Arc::new(Record::default()), Arc::new(AtomicBool::new(false)));
    for (number, part) in plan.parts.iter().enumerate() {
        let deeds = [
            ("start", &part.start),
            ("stop", &part.stop),
            ("prepare", &part.prepare),
            ("commit", &part.commit),
            ("revert", &part.revert),
        ];
        bus.attach(Arc::new(Part {
            number,
            name: name(number),
            order: Order { needs: names(&part.needs), after: names(&part.after), priority: part.priority },
            deeds: deeds.into_iter().map(|(what, deeds)| (what, deeds.clone())).collect(),
            reverts: part.reverts,
            calls: Mutex::default(),
            busy: AtomicBool::new(false),
            twice: Arc::clone(&twice),
            record: Arc::clone(&record),
        }))
        .expect("no circle");
    }
    // Only listens to the end: it has to be called, whatever happened before.
    let own = Arc::clone(&record);
    let last = listener(move |_| {
        own.push(Seen::Begun("exit", usize::MAX));
        async { Ok(Value::Null) }
    });
    bus.subscribe(Subscription::new("exit", "last", last));

    let running = tokio::spawn(engine.with_observer(Arc::clone(&record) as _).run());
    let mut tasks = tokio::task::JoinSet::new();
    let shared = Arc::new(Shared {
        bus: bus.clone(),
        newest: Mutex::default(),
        missed: Mutex::default(),
        owned: AtomicU64::new(0),
        ended: AtomicU64::new(0),
    });
    shared.renew();
    for (number, steps) in plan.tasks.iter().cloned().enumerate() {
        let (bus, shared) = (bus.clone(), Arc::clone(&shared));
        tasks.spawn(async move { ask(&bus, &shared, number, steps).await });
    }
    let mut tickets: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    tickets.push(bus.request(Request::Exit, Origin("the end".to_owned())));
    let (mut outcomes, mut waits) = (Vec::new(), Vec::new());
    for ticket in tickets {
        outcomes.push(ticket.clone().outcome().await);
        if ticket.confirmation().is_some() {
            waits.push(ticket.confirmation_ended().await);
        }
    }
    let ended = running.await.expect("the engine does not panic");
    let seen = record.lock().clone();
    let missed = shared.missed.lock().unwrap_or_else(PoisonError::into_inner).take();
    Life {
        seen,
        tickets: outcomes,
        faults: ended.faults.len(),
        twice: twice.load(Ordering::SeqCst),
        replaced: ended.replacement.is_some(),
        waits,
        owned: (shared.owned.load(Ordering::SeqCst), shared.ended.load(Ordering::SeqCst)),
        missed,
    }
}

async fn ask(bus: &Bus, shared: &Arc<Shared>, number: usize, steps: Vec<Step>) -> Vec<refit_bus::Ticket> {
    let mut tickets: Vec<refit_bus::Ticket> = Vec::new();
    for step in steps {
        let request = match step {
            Step::Start => Request::Start,
            Step::Stop => Request::Stop,
            Step::Reload => Request::Reload,
            Step::Exit => Request::Exit,
            Step::Try(within) => {
                let within = Duration::from_millis(within);
                Request::ReloadProvisionally(ConfirmTerms { within, restores: false })
            }
            Step::Confirm => Request::Confirm,
            Step::Restart(kept) => Request::Restart(Arc::new(Replacement {
                label: "next".to_owned(),
                program: "/nowhere".into(),
                keep_running: (0..PARTS_MAX).filter(|part| kept & (1 << part) != 0).map(name).collect(),
            })),
            Step::Own(count) => {
                (0..count).for_each(|_| shared.own(true));
                continue;
            }
            Step::Renew => {
                shared.renew();
                continue;
            }
            Step::Publish => {
                shared.publish().await;
                continue;
            }
            Step::Rest(millis) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                continue;
            }
            Step::Await => {
                if let Some(ticket) = tickets.last() {
                    let outcome = ticket.clone().outcome().await;
                    assert!(outcome.is_final());
                }
                continue;
            }
        };
        tickets.push(bus.request(request, Origin(format!("task {number}"))));
    }
    tickets
}

/// The reload that is under way.
#[derive(Default)]
struct Reload {
    /// Who prepared and has neither committed nor dropped it.
    prepared: BTreeSet<usize>,
    refused: bool,
    /// Who did commit, in the order in which they began.
    committed: Vec<usize>,
    aborted: bool,
}

/// How far a reload is that has to be confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    None,
    Waits,
    Reverting,
}

/// What was seen so far of the life of a site.
struct Follower<'a> {
    plan: &'a Plan,
    state: State,
    /// When each that is up began to start.
    up: BTreeMap<usize, usize>,
    /// When each began to start, this time.
    starting: BTreeMap<usize, usize>,
    stop_begun: BTreeSet<usize>,
    stop_over: BTreeSet<usize>,
    reload: Reload,
    /// Who committed the last generation, in the order in which they began.
    in_force: Vec<usize>,
    /// Who was told to revert it.
    reverted: Vec<usize>,
    wait: Wait,
    /// Left running for the next image.
    kept: BTreeSet<usize>,
    /// Whether a listener that has to succeed did not.
    failed: bool,
    stop_failed: bool,
    ends: usize,
}

impl Follower<'_> {
    fn state(&mut self, next: State) -> Result<(), TestCaseError> {
        prop_assert!(self.state.steps().contains(&next), "{:?} -> {next:?}", self.state);
        match next {
            State::Starting => {
                prop_assert!(self.up.is_empty(), "left running: {:?}", self.up);
                self.starting.clear();
            }
            State::Running => {
                prop_assert_eq!(self.up.len(), self.plan.parts.len(), "Running too early");
            }
            State::Stopping => {
                prop_assert_eq!(self.wait, Wait::None, "it goes down before what was not confirmed is reverted");
                self.stop_begun.clear();
                self.stop_over.clear();
            }
            State::Idle => {
                let started: BTreeSet<usize> = std::mem::take(&mut self.up).into_keys().collect();
                prop_assert_eq!(&self.stop_begun, &started, "stopped is not what had started");
                self.stop_begun.clear();
            }
            State::Initial | State::Entering | State::Exiting | State::Exited => {}
        }
        self.state = next;
        Ok(())
    }

    fn begun(&mut self, place: usize, what: &str, number: usize) -> Result<(), TestCaseError> {
        match what {
            "start" => {
                prop_assert_eq!(self.state, State::Starting);
                prop_assert!(self.starting.insert(number, place).is_none(), "{number} is started twice");
                for other in &self.plan.parts[number].needs {
                    prop_assert!(self.up.contains_key(other), "{number} before {other}, which it needs");
                }
            }
            "stop" if self.state == State::Exiting => {
                prop_assert!(self.kept.remove(&number), "{number} is stopped at the end and was not left running");
            }
            "stop" => {
                prop_assert_eq!(self.state, State::Stopping);
                prop_assert!(self.stop_begun.insert(number), "{number} is stopped twice");
                let Some(begun) = self.up.get(&number) else {
                    return Err(TestCaseError::fail(format!("{number} never started and is stopped")));
                };
                // Those of one wave go down together, begun in reverse; who depends on it is down before.
                for (later, _) in self.up.iter().filter(|(_, later)| *later > begun) {
                    prop_assert!(
                        self.stop_begun.contains(later),
                        "{number} is stopped before {later}, started after it"
                    );
                    let part = &self.plan.parts[*later];
                    let depends = part.needs.contains(&number) || part.after.contains(&number);
                    let is_down = self.stop_over.contains(later);
                    prop_assert!(!depends || is_down, "{number} is stopped while {later} depends on it");
                }
            }
            "prepare" => {
                prop_assert_eq!((self.state, self.wait), (State::Running, Wait::None), "{} prepares", number);
            }
            "commit" => {
                prop_assert!(!self.reload.refused, "{number} commits although somebody refused");
                prop_assert!(self.reload.prepared.remove(&number), "{number} commits what it did not prepare");
                self.reload.committed.push(number);
            }
            "revert" => {
                prop_assert_eq!(self.wait, Wait::Reverting, "{} reverts", number);
                self.reverted.push(number);
            }
            "abort" => {
                prop_assert!(self.reload.prepared.remove(&number), "{number} drops what it did not prepare");
                self.reload.aborted = true;
            }
            _ => {
                prop_assert_eq!(self.state, State::Exiting);
                self.ends += 1;
            }
        }
        Ok(())
    }

    fn ended(&mut self, what: &str, number: usize, good: bool) {
        match what {
            "start" if good => drop(self.up.insert(number, self.starting[&number])),
            "stop" => {
                self.stop_over.insert(number);
                self.stop_failed |= !good;
            }
            "prepare" if good => drop(self.reload.prepared.insert(number)),
            "prepare" => self.reload.refused = true,
            "commit" => {
                self.stop_failed |= !good;
                if !good {
                    self.reload.committed.retain(|other| *other != number);
                }
            }
            "revert" => self.stop_failed |= !good,
            _ => {}
        }
        self.failed |= !good && what != "prepare";
    }

    fn reloaded(&mut self, good: bool) -> Result<(), TestCaseError> {
        let reload = std::mem::take(&mut self.reload);
        prop_assert!(reload.prepared.is_empty(), "prepared, and neither committed nor dropped: {:?}", reload.prepared);
        prop_assert!(reload.committed.is_empty() || !reload.aborted, "some committed, some dropped it");
        prop_assert!(!good || !reload.refused, "good although somebody refused");
        self.in_force = reload.committed;
        Ok(())
    }

    fn kept(&mut self, number: usize) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.state, State::Stopping);
        prop_assert!(self.up.contains_key(&number) && self.stop_begun.insert(number), "{number} is left running twice");
        self.stop_over.insert(number);
        self.kept.insert(number);
        Ok(())
    }

    /// Takes a step of a reload that has to be confirmed.
    fn wait(&mut self, next: &Seen) -> Result<(), TestCaseError> {
        let is_able = self.plan.parts.iter().all(|part| part.reverts);
        let expected = match next {
            Seen::Waits => &[Wait::None][..],
            Seen::Confirmed => &[Wait::Waits],
            Seen::Reverting => &[Wait::None, Wait::Waits], // at once, where a commit failed
            Seen::Reverted => &[Wait::Reverting],
            Seen::State(_) | Seen::Begun(..) | Seen::Ended(..) | Seen::Reloaded(_) | Seen::Kept(_) => &[],
        };
        prop_assert!(expected.contains(&self.wait), "{next:?} of {:?}", self.wait);
        prop_assert!(is_able, "one waits that somebody cannot revert");
        prop_assert_eq!(self.state, State::Running);
        match next {
            Seen::Waits => self.wait = Wait::Waits,
            Seen::Reverting => {
                self.wait = Wait::Reverting;
                self.reverted.clear();
            }
            Seen::Reverted => {
                let back: Vec<usize> = self.in_force.iter().rev().copied().collect();
                prop_assert_eq!(&self.reverted, &back, "reverted is not what was committed, last first");
                self.wait = Wait::None;
            }
            Seen::Confirmed => self.wait = Wait::None,
            Seen::State(_) | Seen::Begun(..) | Seen::Ended(..) | Seen::Reloaded(_) | Seen::Kept(_) => {}
        }
        Ok(())
    }
}

/// Follows what was seen, and says what is wrong with it.
fn judge(plan: &Plan, life: &Life) -> Result<(), TestCaseError> {
    prop_assert!(!life.twice, "a component was called twice at once");
    prop_assert_eq!(&life.missed, &None, "a publication found another than the generation that listens");
    prop_assert_eq!(life.owned.0, life.owned.1, "the end left tasks of its own");
    prop_assert!(life.waits.iter().all(Option::is_some), "a wait without an end: {:?}", life.waits);
    prop_assert!(life.tickets.iter().all(Progress::is_final), "a ticket without an outcome");
    let mut follower = Follower {
        plan,
        state: State::Initial,
        up: BTreeMap::new(),
        starting: BTreeMap::new(),
        stop_begun: BTreeSet::new(),
        stop_over: BTreeSet::new(),
        reload: Reload::default(),
        in_force: Vec::new(),
        reverted: Vec::new(),
        wait: Wait::None,
        kept: BTreeSet::new(),
        failed: false,
        stop_failed: false,
        ends: 0,
    };
    for (place, seen) in life.seen.iter().enumerate() {
        let judged = match *seen {
            Seen::State(next) => follower.state(next),
            Seen::Begun(what, number) => follower.begun(place, what, number),
            Seen::Ended(what, number, good) => {
                follower.ended(what, number, good == Some(true));
                Ok(())
            }
            Seen::Reloaded(good) => follower.reloaded(good),
            Seen::Kept(number) => follower.kept(number),
            ref step @ (Seen::Waits | Seen::Confirmed | Seen::Reverting | Seen::Reverted) => follower.wait(step),
        };
        judged.map_err(|error| TestCaseError::fail(format!("{error}, at {place} of {:?}", life.seen)))?;
    }
    prop_assert_eq!((follower.state, follower.ends), (State::Exited, 1), "it ends, and says so once: {:?}", &life.seen);
    prop_assert_eq!(follower.wait, Wait::None, "it ends while something waits to be confirmed: {:?}", &life.seen);
    let left = life.replaced || follower.kept.is_empty();
    prop_assert!(left, "{:?} run on, and there is no next image: {:?}", follower.kept, &life.seen);
    if follower.stop_failed {
        prop_assert!(life.faults > 0, "something failed and nothing says so: {:?}", &life.seen);
    }
    // Who is done when it is cancelled failed to be in time, if nobody wanted it to stop.
    let late = |part: &PartPlan| part.start.contains(&Deed::Late) || part.stop.contains(&Deed::Late);
    if !follower.failed && !plan.parts.iter().any(late) {
        prop_assert_eq!(life.faults, 0, "nothing failed, and yet there are faults: {:?}", &life.seen);
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config {
        cases: CASES,
        failure_persistence: None, // a case that failed is in the message
        ..Config::default()
    })]

    #[test]
    fn whatever_is_asked_and_whoever_fails_the_bus_keeps_its_word(plan in plan(part(|good| deed(good).boxed()))) {
        let life = crate::probe::paused(live(&plan));
        judge(&plan, &life)?;
    }
}

proptest! {
    #![proptest_config(Config {
        cases: HELD_CASES,
        failure_persistence: None,
        max_shrink_iters: 64, // each takes real time
        ..Config::default()
    })]

    #[test]
    fn so_it_does_where_components_hold_their_threads(plan in plan(part(|good| held_deed(good).boxed()))) {
        let life = crate::probe::limited(live(&plan));
        judge(&plan, &life)?;
    }
}
