//! The runner: the task that begins the calls, one after the other, and what replaces it while a call holds its thread.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use refit_base::lock;
use tokio::time::Instant;

use super::beside::{Polled, begin};
use super::{Calls, Ends, First, Plan, Planned, Row, Rules, Terms, UnderWay, Until, spawn};
use crate::call::Call;
use crate::context;
use crate::publication::{Answer, Outcome};
use crate::registry::{Entry, Waves};

/// How long a first poll may hold its thread before somebody else begins what comes after it.
const HAND_OVER: Duration = Duration::from_millis(20);

/// Who looks after runners that are held by a first poll. Sleeps while there is none.
#[derive(Default)]
pub(crate) struct Monitor {
    watched: Mutex<Vec<Arc<Calls>>>,
    awake: AtomicBool,
}

impl Monitor {
    fn watch(self: &Arc<Self>, calls: &Arc<Calls>) {
        lock(&self.watched).push(Arc::clone(calls));
        if !self.awake.swap(true, Ordering::AcqRel) {
            drop(spawn(Arc::clone(self).look()));
        }
    }

    fn leave(&self, calls: &Arc<Calls>) {
        let mut watched = lock(&self.watched);
        if let Some(place) = watched.iter().rposition(|other| Arc::ptr_eq(other, calls)) {
            watched.swap_remove(place);
        }
    }

    async fn look(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HAND_OVER).await;
            let watched = {
                let watched = lock(&self.watched);
                if watched.is_empty() {
                    // Under the lock: who comes now sees it, and wakes somebody.
                    self.awake.store(false, Ordering::Release);
                    return;
                }
                watched.clone()
            };
            for calls in &watched {
                if let Some(runner) = calls.take_over() {
                    self.spawn_runner(calls, runner);
                }
            }
        }
    }

    fn spawn_runner(self: &Arc<Self>, calls: &Arc<Calls>, runner: u64) {
        let run = Arc::clone(calls).run(Arc::clone(self), runner);
        drop(spawn(context::inside(calls.rules.purpose, calls.rules.info.depth, run)));
    }
}

/// What goes on with a publication, wave after wave, and says what came of it.
pub(crate) struct Drive {
    waves: Arc<Waves>,
    done: Mutex<Option<Done>>,
}

/// Takes the answers of a publication.
type Done = Box<dyn FnOnce(Vec<Answer>) + Send>;

impl Calls {
    /// Publishes to `waves`, in a task of its own: nobody who gives up waiting for it ends it. `done` gets the answers.
    pub(crate) fn publish(
        rules: Rules,
        waves: Arc<Waves>,
        default_limit: Duration,
        monitor: &Arc<Monitor>,
        done: impl FnOnce(Vec<Answer>) + Send + 'static,
    ) {
        let count = waves.iter().map(Vec::len).sum();
        let drive = Drive { waves: Arc::clone(&waves), done: Mutex::new(Some(Box::new(done))) };
        let plan = Plan::Waves { waves, default_limit, wave: 0, base: 0 };
        let calls = Self::with(rules, Some(drive), plan, Ends::Answers(Vec::with_capacity(count)));
        monitor.watch(&calls);
        monitor.spawn_runner(&calls, 0);
    }

    /// Has `planned` begun, in order.
    pub(crate) fn begin(self: &Arc<Self>, planned: impl IntoIterator<Item = Planned>, monitor: &Arc<Monitor>) {
        let runner = {
            let mut way = lock(&self.under_way);
            if let Plan::Calls(calls) = &mut way.plan {
                calls.extend(planned);
            }
            if way.running || way.next == way.plan.len() {
                return;
            }
            way.running = true;
            way.runner += 1;
            way.runner
        };
        monitor.watch(self);
        monitor.spawn_runner(self, runner);
    }

    async fn run(self: Arc<Self>, monitor: Arc<Monitor>, runner: u64) {
        loop {
            // It is not the budget of one task that says whether a listener can go on.
            let begin = poll_fn(|context| Poll::Ready(self.begin_all(context, runner)));
            if !tokio::task::unconstrained(begin).await {
                return; // somebody else goes on
            }
            let Some(drive) = &self.drive else {
                monitor.leave(&self);
                self.changed.notify_one();
                return;
            };
            let (next, is_pending) = {
                let way = lock(&self.under_way);
                (way.plan.next_wave(), !way.pending.is_empty())
            };
            let next_wave = drive.waves.get(next);
            if is_pending {
                monitor.leave(&self);
                let until = next_wave.map_or(Until::All, |wave| Until::MayBegin(wave));
                while self.next(until).await.is_some() {}
                monitor.watch(&self);
            }
            if next_wave.is_none() {
                break;
            }
            lock(&self.under_way).plan.go_on();
        }
        monitor.leave(&self);
        let answers = match &mut lock(&self.under_way).ends {
            Ends::Answers(answers) => std::mem::take(answers),
            Ends::Queue(_) => Vec::new(),
        };
        if let Some(done) = self.drive.as_ref().and_then(|drive| lock(&drive.done).take()) {
            done(answers);
        }
        self.let_go();
    }

    /// Polls everybody that is planned once, in order. Returns whether it is still the runner.
    fn begin_all(self: &Arc<Self>, context: &mut Context<'_>, runner: u64) -> bool {
        let mut begun = Instant::now();
        let mut way = lock(&self.under_way);
        loop {
            if way.runner != runner {
                return false;
            }
            let place = way.next;
            if place >= way.plan.len() {
                way.running = self.drive.is_some();
                return true;
            }
            way.next += 1;
            way.first = Some(First { place, begun });
            let held;
            let row = match (&way.plan, &self.drive) {
                // Most calls of all: no count of references is touched for the listener.
                (Plan::Waves { wave, base, default_limit, .. }, Some(drive)) => {
                    let entry = &drive.waves[*wave][place - *base];
                    let limit = entry.limit.unwrap_or(*default_limit);
                    Row { entry, limit, wave: *wave, terms: Terms::Usual }
                }
                (plan, _) => {
                    let row = plan.row(place);
                    held = Arc::clone(row.entry);
                    Row { entry: &held, ..row }
                }
            };
            drop(way);
            let polled = self.begin_on(
                row.terms,
                row.entry,
                Call { calls: Arc::clone(self) as _, place, limit: row.limit },
                context,
            );
            let now = Instant::now();
            way = lock(&self.under_way);
            if way.runner != runner {
                drop(way);
                self.come_back(place, polled);
                return false;
            }
            way.first = None;
            match polled {
                Polled::Done(outcome) => way.ends.finish(&row, place, outcome, now - begun, false),
                Polled::NotYet(work) => {
                    drop(way);
                    self.goes_on(place, begun, work);
                    way = lock(&self.under_way);
                }
            }
            begun = now;
        }
    }

    /// Begins a call on its terms.
    fn begin_on(&self, terms: Terms, entry: &Arc<Entry>, call: Call, context: &mut Context<'_>) -> Polled {
        match terms {
            Terms::Wanted if self.are_cancelled() => {
                return Polled::Done(Outcome::Skipped { reason: "cancelled before its turn".to_owned() });
            }
            Terms::Overdue => call.cancelled().cancel(),
            Terms::Usual | Terms::Wanted => {}
        }
        begin(entry, call, context)
    }

    /// Relieves the runner if a poll has held it for long: what it polls goes on beside. Returns the number of the next runner.
    fn take_over(&self) -> Option<u64> {
        let mut way = lock(&self.under_way);
        let First { place, begun } = way.first.take_if(|first| first.begun.elapsed() >= HAND_OVER)?;
        way.go_on(place, begun, Arc::new(AtomicBool::new(true)), self.rules.grace);
        let UnderWay { plan, pending, .. } = &mut *way;
        if let Some(pending) = pending.last_mut() {
            // Until it comes back nobody calls it: that would take one more thread.
            pending.held = true;
            plan.row(place).entry.hold.take();
        }
        way.runner += 1;
        let runner = way.runner;
        drop(way);
        self.changed.notify_one();
        Some(runner)
    }
}

impl Plan {
    /// Returns the number of the wave after the present one.
    const fn next_wave(&self) -> usize {
        match self {
            Self::Calls(_) => 0,
            Self::Waves { wave, .. } => *wave + 1,
        }
    }

    /// Goes on to the next wave.
    fn go_on(&mut self) {
        if let Self::Waves { waves, wave, base, .. } = self {
            *base += waves[*wave].len();
            *wave += 1;
        }
    }
}
