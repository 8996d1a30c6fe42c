//! The calls of one publication or transition: begun in order, each within its own time, none skipped because another failed.
//!
//! One task, the runner, polls each listener once, where it stands in the order; only a call that is not done then goes on as
//! a task of its own (`beside`). A runner that a poll holds is replaced by another one (`runner`). Whoever drives the calls, a
//! publication or the engine, waits for their ends with [`Calls::next`], which also watches the time of each: it is
//! cancelled at its limit, given up after the grace, and one that holds its thread is not called again until it comes back.

mod beside;
mod runner;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::lock;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::call::{CallInfo, Publication};
use crate::context::Purpose;
use crate::hold::Hold;
use crate::publication::{Answer, Outcome, answer};
use crate::registry::{Entry, Waves};

pub(crate) use runner::{Drive, Monitor};

/// How long whoever is told that its time is over has for a last word, where its grace keeps nobody waiting.
const LAST_WORD: Duration = Duration::from_millis(20);

/// A call that is to be made.
pub(crate) struct Planned {
    pub(crate) entry: Arc<Entry>,
    pub(crate) limit: Duration,
    /// Which wave it belongs to.
    pub(crate) wave: usize,
    pub(crate) terms: Terms,
}

/// On what terms a call is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terms {
    /// It is made, and waited for.
    Usual,
    /// It is made unless all of them were cancelled before its turn.
    Wanted,
    /// It comes after the deadline of them all: cancelled from the start and not waited for.
    Overdue,
}

/// How a call ended.
pub(crate) struct End {
    pub(crate) entry: Arc<Entry>,
    pub(crate) place: usize,
    pub(crate) wave: usize,
    pub(crate) outcome: Outcome,
    pub(crate) elapsed: Duration,
    /// Whether its time was over and it was done all the same, while it was given the grace: a failure, and yet what it was to do
    /// has happened.
    pub(crate) late: bool,
    /// Whether it was called after the deadline of them all.
    pub(crate) overdue: bool,
}

/// What is waited for.
#[derive(Clone, Copy)]
pub(crate) enum Until<'a> {
    /// These may begin: all before them were begun, and whoever has not ended has had its time and is none on which order
    /// makes them wait.
    MayBegin(&'a [Arc<Entry>]),
    /// All have ended.
    All,
}

/// What holds for all calls of one publication or transition.
pub(crate) struct Rules {
    pub(crate) info: CallInfo,
    pub(crate) purpose: Purpose,
    /// How long a cancelled call may go on.
    pub(crate) grace: Duration,
    /// Cancels them all.
    pub(crate) cancelled: Option<CancellationToken>,
    /// When nothing is waited for any more; `None` where whoever has had its time is reported at once.
    pub(crate) until: Option<Instant>,
}

/// Where ends go.
enum Ends {
    /// In the order of the calls.
    Answers(Vec<Answer>),
    /// One by one, as they come.
    Queue(VecDeque<End>),
}

impl Ends {
    /// Records how the call at `place` ended.
    fn finish(&mut self, row: &Row<'_>, place: usize, outcome: Outcome, elapsed: Duration, late: bool) {
        match self {
            Self::Answers(answers) => {
                let answer = answer(row.entry, outcome, elapsed);
                match answers.get_mut(place) {
                    Some(there) => *there = answer,
                    None => answers.push(answer),
                }
            }
            Self::Queue(queue) => {
                let (entry, overdue) = (Arc::clone(row.entry), row.terms == Terms::Overdue);
                queue.push_back(End { entry, place, wave: row.wave, outcome, elapsed, late, overdue });
            }
        }
    }
}

/// A call that did not end with its first poll.
struct Pending {
    place: usize,
    begun: Instant,
    /// When its time is over.
    limit_at: Instant,
    /// Whether its time is over.
    late: bool,
    /// Whether all were cancelled before its time was over.
    unwanted: bool,
    /// When its end is reported, whether it has come or not.
    report_at: Option<Instant>,
    reported: bool,
    /// When it is given up.
    give_up_at: Option<Instant>,
    /// Whether a poll of it is under way.
    polling: Arc<AtomicBool>,
    /// Whether it holds its thread: its listener is not called until it comes back.
    held: bool,
    /// Whether it has had its time and holds its thread.
    given_up: bool,
    /// Whether nobody waits for it any more: its task is about to be dropped.
    abandoned: bool,
    task: Option<AbortHandle>,
}

/// The calls that are to be made, by their places.
enum Plan {
    /// One by one.
    Calls(Vec<Planned>),
    /// Wave after wave, each listener on the same terms.
    Waves {
        waves: Arc<Waves>,
        default_limit: Duration,
        /// The present wave, and the place of its first call.
        wave: usize,
        base: usize,
    },
}

/// One call of a plan.
struct Row<'a> {
    entry: &'a Arc<Entry>,
    limit: Duration,
    wave: usize,
    terms: Terms,
}

impl Plan {
    /// Returns how many calls are to be made so far.
    fn len(&self) -> usize {
        match self {
            Self::Calls(planned) => planned.len(),
            Self::Waves { waves, wave, base, .. } => base + waves.get(*wave).map_or(0, Vec::len),
        }
    }

    /// Returns the call at `place`, which is among them.
    fn row(&self, place: usize) -> Row<'_> {
        match self {
            Self::Calls(planned) => {
                let Planned { entry, limit, wave, terms } = &planned[place];
                Row { entry, limit: *limit, wave: *wave, terms: *terms }
            }
            Self::Waves { waves, default_limit, wave, base } => {
                let (mut number, mut first) = (*wave, *base);
                while place < first {
                    number -= 1;
                    first -= waves[number].len();
                }
                let entry = &waves[number][place - first];
                let limit = entry.limit.unwrap_or(*default_limit);
                Row { entry, limit, wave: number, terms: Terms::Usual }
            }
        }
    }
}

/// The first poll that is under way.
struct First {
    place: usize,
    begun: Instant,
}

struct UnderWay {
    plan: Plan,
    /// The first that was not begun.
    next: usize,
    first: Option<First>,
    pending: Vec<Pending>,
    ends: Ends,
    /// Which runner is the present one.
    runner: u64,
    /// Whether there is one.
    running: bool,
    all_cancelled: bool,
}

/// Calls under way.
pub(crate) struct Calls {
    rules: Rules,
    tokens: Mutex<HashMap<usize, CancellationToken>>,
    under_way: Mutex<UnderWay>,
    changed: Notify,
    /// What goes on with the publication; `None` where somebody else drives.
    drive: Option<Drive>,
}

impl Calls {
    /// Returns no calls yet, for somebody who drives them himself.
    pub(crate) fn new(rules: Rules) -> Arc<Self> {
        Self::with(rules, None, Plan::Calls(Vec::new()), Ends::Queue(VecDeque::new()))
    }

    fn with(rules: Rules, drive: Option<Drive>, plan: Plan, ends: Ends) -> Arc<Self> {
        let under_way = UnderWay {
            running: drive.is_some(),
            plan,
            next: 0,
            first: None,
            pending: Vec::new(),
            ends,
            runner: 0,
            all_cancelled: false,
        };
        Arc::new(Self {
            rules,
            tokens: Mutex::default(),
            under_way: Mutex::new(under_way),
            changed: Notify::new(),
            drive,
        })
    }

    fn are_cancelled(&self) -> bool {
        self.rules.cancelled.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// Waits for the next end; `None` when what is waited for is so. Cancel-safe: an end is taken only when it is returned.
    pub(crate) async fn next(&self, until: Until<'_>) -> Option<End> {
        loop {
            let (deadline, all_cancelled) = {
                let mut way = lock(&self.under_way);
                let deadline = self.watch_time(&mut way);
                if let Ends::Queue(queue) = &mut way.ends
                    && let Some(end) = queue.pop_front()
                {
                    return Some(end);
                }
                if way.is_reached(until) {
                    return None;
                }
                (deadline, way.all_cancelled)
            };
            self.wait(deadline, all_cancelled).await;
        }
    }

    /// Waits for a change, or until `deadline`.
    async fn wait(&self, deadline: Option<Instant>, all_cancelled: bool) {
        let time = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let cancelled = async {
            match &self.rules.cancelled {
                Some(cancelled) if !all_cancelled => cancelled.cancelled().await,
                Some(_) | None => std::future::pending().await,
            }
        };
        // Cancel-safe: all of them only wait; a change that was told of is looked for by the caller.
        tokio::select! {
            biased;
            () = self.changed.notified() => {}
            () = cancelled => {}
            () = time => {}
        }
    }

    /// Has whoever was reported and still goes on end within its grace, without anybody who waits for it.
    pub(crate) fn let_go(self: &Arc<Self>) {
        if lock(&self.under_way).has_strays() {
            drop(spawn(Arc::clone(self).end_strays()));
        }
    }

    async fn end_strays(self: Arc<Self>) {
        loop {
            let deadline = {
                let mut way = lock(&self.under_way);
                let deadline = self.watch_time(&mut way);
                if !way.has_strays() {
                    return;
                }
                deadline
            };
            self.wait(deadline, true).await;
        }
    }

    /// Cancels, reports and gives up those whose time has come. Returns when the next one's comes.
    fn watch_time(&self, way: &mut UnderWay) -> Option<Instant> {
        way.all_cancelled = self.are_cancelled();
        if way.pending.is_empty() {
            return None;
        }
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut index = 0;
        while let Some(pending) = way.pending.get_mut(index) {
            self.cancel_in_time(pending, way.all_cancelled, now);
            let Row { entry, limit, .. } = way.plan.row(pending.place);
            if pending.give_up_at.is_some() && pending.polling.load(Ordering::Acquire) {
                pending.is_held(&entry.hold);
            }
            let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            let given_up = is_due(pending.give_up_at);
            if given_up && !pending.abandoned {
                pending.abandoned = true;
                if let Some(task) = &pending.task {
                    task.abort();
                }
            }
            // What is abandoned ends when it is dropped: until then nobody may take it for gone, unless it holds its thread.
            let report = !pending.reported && if given_up { pending.held } else { is_due(pending.report_at) };
            let outcome = report.then(|| pending.outcome_without_end(limit));
            pending.reported |= report;
            if let Some(at) = pending.next_deadline() {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            let (place, begun) = (pending.place, pending.begun);
            index += 1;
            if let Some(outcome) = outcome {
                way.finish(place, outcome, now - begun, false);
            }
        }
        next
    }

    /// Cancels a call whose time is over, or that nobody wants any more.
    fn cancel_in_time(&self, pending: &mut Pending, all_cancelled: bool, now: Instant) {
        let late = pending.limit_at <= now;
        if pending.give_up_at.is_some() || !(late || all_cancelled) {
            return;
        }
        let (give_up_at, last_word) = (after(now, self.rules.grace), after(now, LAST_WORD));
        let whole = self.rules.until.map(|until| until.max(last_word));
        let report_at = if late { whole.or(Some(last_word)) } else { whole };
        pending.report_at = report_at.map(|at| at.min(give_up_at));
        pending.give_up_at = Some(give_up_at);
        if late {
            pending.late = true;
            self.token(pending.place).cancel();
        } else {
            pending.unwanted = true;
        }
    }
}

impl Publication for Calls {
    fn info(&self) -> &CallInfo {
        &self.rules.info
    }

    fn token(&self, place: usize) -> CancellationToken {
        let new = || self.rules.cancelled.as_ref().map_or_else(CancellationToken::new, CancellationToken::child_token);
        lock(&self.tokens).entry(place).or_insert_with(new).clone()
    }
}

/// Has a task run by itself.
#[allow(
    clippy::disallowed_methods,
    reason = "each says its end itself, and a listener that panics is caught inside of it"
)]
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    tokio::spawn(task).abort_handle()
}

/// Returns what is said of a call that took longer than `limit`.
fn waited(limit: Duration) -> String {
    format!("not done within {} s", limit.as_secs_f32())
}

/// Returns `limit` after `now`; a limit beyond the end of all clocks is a century.
pub(crate) fn after(now: Instant, limit: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    now.checked_add(limit).unwrap_or_else(|| now + CENTURY)
}

impl Pending {
    /// Returns what it becomes without having ended.
    fn outcome_without_end(&self, limit: Duration) -> Outcome {
        let waited = waited(limit);
        let reason = match (self.abandoned, self.held) {
            (_, true) => format!("{waited}, and it holds its thread"),
            (true, false) if self.unwanted => "did not end when it was cancelled, abandoned".to_owned(),
            (true, false) => format!("{waited}, abandoned"),
            (false, false) => waited,
        };
        Outcome::Timeout { reason }
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.abandoned || (self.held && self.reported) {
            return None; // it is dropped, or comes back, or not
        }
        let report_at = self.report_at.filter(|_| !self.reported);
        match (report_at, self.give_up_at) {
            (Some(report), Some(give_up)) => Some(report.min(give_up)),
            (Some(at), None) | (None, Some(at)) => Some(at),
            (None, None) => Some(self.limit_at),
        }
    }

    /// Records that it holds its thread although it has had its time.
    fn is_held(&mut self, hold: &Hold) {
        if !std::mem::replace(&mut self.held, true) {
            hold.take();
        }
        if !std::mem::replace(&mut self.given_up, true) {
            hold.give_up();
        }
    }

    /// Records that it holds its thread no more.
    fn lets_go(&mut self, hold: &Hold) {
        if std::mem::take(&mut self.held) {
            hold.release(std::mem::take(&mut self.given_up));
        }
    }

    /// Returns whether nobody has to wait for it any more, except for order.
    const fn has_had_its_time(&self) -> bool {
        self.late || self.unwanted
    }
}

impl UnderWay {
    /// Returns whether what is waited for is so.
    fn is_reached(&self, until: Until<'_>) -> bool {
        let all_begun = self.first.is_none() && self.next == self.plan.len();
        let ended = |pending: &Pending| match until {
            Until::All => pending.reported,
            Until::MayBegin(next) => {
                let entry = self.plan.row(pending.place).entry;
                let is_needed = || next.iter().any(|next| next.depends_on(entry) || entry.depends_on(next));
                pending.reported || (pending.has_had_its_time() && !is_needed())
            }
        };
        all_begun && self.pending.iter().all(ended)
    }

    /// Returns whether somebody is still given the grace.
    fn has_strays(&self) -> bool {
        self.pending.iter().any(|pending| !(pending.held && pending.reported))
    }

    /// Records that what was left of the call at `place` is dropped.
    fn dropped(&mut self, place: usize) {
        let Some(index) = self.pending.iter().position(|pending| pending.place == place) else { return };
        let mut pending = self.pending.swap_remove(index);
        let Row { entry, limit, .. } = self.plan.row(place);
        pending.lets_go(&entry.hold);
        if !pending.reported {
            self.finish(place, pending.outcome_without_end(limit), pending.begun.elapsed(), false);
        }
    }

    /// Records how the call at `place` ended.
    fn finish(&mut self, place: usize, outcome: Outcome, elapsed: Duration, late: bool) {
        self.ends.finish(&self.plan.row(place), place, outcome, elapsed, late);
    }

    /// Records that the call at `place` goes on after its first poll.
    fn go_on(&mut self, place: usize, begun: Instant, polling: Arc<AtomicBool>, grace: Duration) {
        let Row { entry, limit, terms, .. } = self.plan.row(place);
        let overdue = terms == Terms::Overdue;
        let mut pending = Pending {
            place,
            begun,
            limit_at: after(begun, limit),
            late: overdue,
            unwanted: false,
            report_at: None,
            reported: overdue,
            give_up_at: None,
            polling,
            held: false,
            given_up: false,
            abandoned: false,
            task: None,
        };
        if let Ends::Answers(answers) = &mut self.ends {
            let nothing_yet = Outcome::Skipped { reason: String::new() };
            answers.push(answer(entry, nothing_yet, Duration::ZERO)); // its place, until it has ended
        }
        if overdue {
            pending.give_up_at = Some(after(Instant::now(), grace));
            let reason = "called after the deadline of all: cancelled from the start, and not waited for".to_owned();
            self.finish(place, Outcome::Skipped { reason }, Duration::ZERO, false);
        }
        self.pending.push(pending);
    }

    /// Records that the call at `place`, which went on after its first poll, has ended.
    fn end(&mut self, place: usize, outcome: Outcome) {
        let Some(index) = self.pending.iter().position(|pending| pending.place == place) else { return };
        let mut pending = self.pending.swap_remove(index);
        let Row { entry, limit, .. } = self.plan.row(place);
        pending.lets_go(&entry.hold);
        if pending.reported {
            return;
        }
        let (outcome, late) = match outcome {
            outcome if !pending.late => (outcome, false),
            // It ended as it was told to; what it says of itself is more than that its time was over.
            Outcome::Failed { mut failure } => {
                failure.reason = format!("{}: {}", waited(limit), failure.reason);
                (Outcome::Failed { failure }, false)
            }
            Outcome::Ok { .. } => (Outcome::Timeout { reason: waited(limit) }, true),
            Outcome::Timeout { .. } | Outcome::Skipped { .. } => (Outcome::Timeout { reason: waited(limit) }, false),
        };
        self.finish(place, outcome, pending.begun.elapsed(), late);
    }
}
