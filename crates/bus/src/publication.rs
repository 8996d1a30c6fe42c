//! Calling listeners: wave after wave, each with a deadline, none skipped because another failed.
//!
//! A listener whose time is over is a failure: its call is cancelled, and after a short grace abandoned. A panic is a failure,
//! too. What every single one answered is in the [`Report`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::call::{Call, Work};
use crate::context::{self, Purpose};
use crate::failure::{Failure, combined};
use crate::order::waves_of_any;
use crate::panics::task_failure;
use crate::registry::Entry;

/// How many publications may lead to one another, each inside a listener of the one before: a circle ends here.
pub const DEPTH_MAX: u32 = 8;

/// What one listener made of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// It answered.
    Ok {
        /// Its answer.
        value: Value,
    },
    /// It failed, or panicked, or was lost.
    Failed {
        /// Why.
        #[serde(flatten)]
        failure: Failure,
    },
    /// Its time was over.
    Timeout {
        /// How long it was waited for, for people.
        reason: String,
    },
    /// It was not called.
    Skipped {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// Returns why it is not what was wanted; `None` if it is, or was never tried.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Ok { .. } | Self::Skipped { .. } => None,
            Self::Failed { failure } => Some(failure.clone()),
            Self::Timeout { reason } => Some(Failure::new(reason.clone())),
        }
    }

    /// Returns whether it answered.
    pub const fn is_ok(&self) -> bool {
        match self {
            Self::Ok { .. } => true,
            Self::Failed { .. } | Self::Timeout { .. } | Self::Skipped { .. } => false,
        }
    }
}

/// What one listener did in a publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The listener.
    pub listener: String,
    /// Its priority.
    pub priority: i32,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took, in microseconds.
    pub elapsed_us: u64,
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The channel.
    pub channel: String,
    /// Whether anybody ever declared or subscribed to it: a name that nobody knows is likely a mistake.
    pub known: bool,
    /// Why nobody was called, if that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Every listener, in the order of the calls.
    pub answers: Vec<Answer>,
}

impl Report {
    /// Returns what the listeners answered, in the order of the calls.
    pub fn values(&self) -> Vec<&Value> {
        self.answers
            .iter()
            .filter_map(|answer| match &answer.outcome {
                Outcome::Ok { value } => Some(value),
                Outcome::Failed { .. } | Outcome::Timeout { .. } | Outcome::Skipped { .. } => None,
            })
            .collect()
    }

    /// Returns who failed and why, in the order of the calls.
    pub fn failures(&self) -> Vec<(&str, Failure)> {
        self.answers.iter().filter_map(|answer| Some((answer.listener.as_str(), answer.outcome.failure()?))).collect()
    }

    /// Returns all failures, for people: one line, or if there are several one line each with the priority; `None` if there is none.
    pub fn summary(&self) -> Option<String> {
        let failures: Vec<_> = self
            .answers
            .iter()
            .filter_map(|answer| Some((answer.listener.as_str(), answer.priority, answer.outcome.failure()?.reason)))
            .collect();
        combined(failures.iter().map(|(name, priority, reason)| (*name, Some(*priority), reason.as_str())))
    }
}

/// Returns `entries` in waves.
pub(crate) fn in_waves(entries: &[Arc<Entry>]) -> Vec<Vec<Arc<Entry>>> {
    let rows: Vec<_> = entries.iter().map(|entry| entry.row()).collect();
    waves_of_any(&rows)
        .into_iter()
        .map(|wave| wave.into_iter().map(|index| Arc::clone(&entries[index])).collect())
        .collect()
}

/// How much longer than its time a call is waited for from outside: it watches its time itself, unless it holds its thread.
const HELD_MAX: Duration = Duration::from_secs(1);

/// How one call ended.
struct End {
    outcome: Outcome,
    elapsed: Duration,
    /// Whether its time was over and it was done all the same, while it was given the grace.
    late: bool,
}

/// Calls under way, each known by its place in a wave.
pub(crate) struct Round {
    tasks: JoinSet<End>,
    places: HashMap<Id, usize>,
    late: HashSet<usize>,
    grace: Duration,
    begun: Instant,
    /// When whoever has not answered holds its thread.
    held_at: tokio::time::Instant,
}

impl Round {
    /// Returns a round without calls. `grace` is how long a cancelled call may go on.
    pub(crate) fn new(grace: Duration) -> Self {
        let (tasks, places, late) = (JoinSet::new(), HashMap::new(), HashSet::new());
        Self { tasks, places, late, grace, begun: Instant::now(), held_at: tokio::time::Instant::now() }
    }

    /// Begins a call for the one at `place`.
    pub(crate) fn begin(&mut self, place: usize, entry: Arc<Entry>, call: Call, purpose: Purpose) {
        let grace = self.grace;
        let depth = call.depth;
        let patience = call.limit.saturating_add(grace).saturating_add(HELD_MAX);
        // A limit beyond the end of all clocks is none.
        let held_at = tokio::time::Instant::now().checked_add(patience);
        self.held_at = self.held_at.max(held_at.unwrap_or(self.held_at));
        let task = self.tasks.spawn(context::inside(purpose, depth, call_one(entry, call, grace)));
        self.places.insert(task.id(), place);
    }

    /// Returns whether no call is under way.
    pub(crate) fn is_over(&self) -> bool {
        self.places.is_empty()
    }

    /// Returns whether the one at `place` was done, but too late: a failure, and yet what it was to do has happened.
    pub(crate) fn was_late(&self, place: usize) -> bool {
        self.late.contains(&place)
    }

    /// Waits for the next call to end. Cancel-safe: a result is taken only when it is returned.
    pub(crate) async fn next(&mut self) -> Option<(usize, Outcome, Duration)> {
        while !self.is_over() {
            // Cancel-safe: as said; the other only waits.
            let joined = tokio::select! {
                biased;
                joined = self.tasks.join_next_with_id() => joined?,
                () = tokio::time::sleep_until(self.held_at) => return self.abandon(),
            };
            let (id, end) = match joined {
                Ok(ended) => ended,
                Err(error) => {
                    let id = error.id();
                    let outcome = Outcome::Failed { failure: task_failure(error) };
                    (id, End { outcome, elapsed: Duration::ZERO, late: false })
                }
            };
            if let Some(place) = self.places.remove(&id) {
                if end.late {
                    self.late.insert(place);
                }
                return Some((place, end.outcome, end.elapsed));
            }
        }
        None
    }

    /// Gives up somebody who holds the thread that it runs on: it could not even be cancelled.
    fn abandon(&mut self) -> Option<(usize, Outcome, Duration)> {
        let (id, place) = self.places.iter().map(|(id, place)| (*id, *place)).min_by_key(|(_, place)| *place)?;
        self.places.remove(&id);
        let reason = "its time is over and it holds its thread, abandoned".to_owned();
        Some((place, Outcome::Timeout { reason }, self.begun.elapsed()))
    }
}

/// Makes one call, within its time.
async fn call_one(entry: Arc<Entry>, call: Call, grace: Duration) -> End {
    let begun = Instant::now();
    let limit = call.limit;
    let cancelled = call.cancelled.clone();
    let mut work = Begun { entry, call: Some(call), work: None };
    // Cancel-safe: `work` is polled on below, the others only wait.
    let in_time = tokio::select! {
        biased;
        ended = &mut work => Some(ended),
        () = tokio::time::sleep(limit) => None,
        () = async { cancelled.cancelled().await; tokio::time::sleep(grace).await } => None,
    };
    let mut done_late = false;
    let outcome = match in_time {
        Some(Some(Ok(value))) => Outcome::Ok { value },
        Some(Some(Err(failure))) => Outcome::Failed { failure },
        Some(None) => Outcome::Skipped { reason: "unsubscribed meanwhile".to_owned() },
        None => {
            let unwanted = cancelled.is_cancelled();
            cancelled.cancel();
            let waited = format!("not done within {} s", limit.as_secs_f32());
            let late = if unwanted { None } else { Some(tokio::time::timeout(grace, work).await) };
            match late {
                // It ended as it was told to; what it says of itself is more than that its time was over.
                Some(Ok(Some(Err(failure)))) => {
                    Outcome::Failed { failure: Failure { reason: format!("{waited}: {failure}"), ..failure } }
                }
                Some(Ok(done)) => {
                    done_late = done.is_some();
                    Outcome::Timeout { reason: waited }
                }
                Some(Err(_)) => Outcome::Timeout { reason: format!("{waited}, abandoned") },
                None => Outcome::Timeout { reason: "did not end when it was cancelled, abandoned".to_owned() },
            }
        }
    };
    End { outcome, elapsed: begun.elapsed(), late: done_late }
}

/// A call that begins with its first poll, inside the gate of its listener; `None` if that was closed before.
struct Begun {
    entry: Arc<Entry>,
    call: Option<Call>,
    work: Option<Work>,
}

impl Future for Begun {
    type Output = Option<Result<Value, Failure>>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        use std::task::Poll;
        let this = &mut *self;
        if let Some(call) = this.call.take() {
            let work = &mut this.work;
            let begun = this
                .entry
                .begin(|listener| work.insert(Arc::clone(listener).call(call)).as_mut().poll(context).map(Some));
            return begun.unwrap_or(Poll::Ready(None));
        }
        match &mut this.work {
            Some(work) => work.as_mut().poll(context).map(Some),
            None => Poll::Ready(None),
        }
    }
}

/// Publishes to `entries`, wave after wave.
pub(crate) async fn publish(
    entries: Vec<Arc<Entry>>,
    template: &Call,
    default_limit: Duration,
    grace: Duration,
) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(entries.len());
    let purpose = context::purpose();
    for wave in in_waves(&entries) {
        let mut round = Round::new(grace);
        for (place, entry) in wave.iter().enumerate() {
            let call = call_for(template, entry.limit.unwrap_or(default_limit));
            round.begin(place, Arc::clone(entry), call, purpose);
        }
        let mut ended: Vec<Option<Answer>> = wave.iter().map(|_| None).collect();
        while let Some((place, outcome, elapsed)) = round.next().await {
            ended[place] = Some(answer(&wave[place], outcome, elapsed));
        }
        answers.extend(ended.into_iter().flatten());
    }
    answers
}

/// Returns the call that `template` is for one listener.
pub(crate) fn call_for(template: &Call, limit: Duration) -> Call {
    Call { limit, cancelled: template.cancelled.child_token(), ..template.clone() }
}

/// Returns the line of a report.
pub(crate) fn answer(entry: &Entry, outcome: Outcome, elapsed: Duration) -> Answer {
    let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    Answer { listener: entry.name.clone(), priority: entry.priority, outcome, elapsed_us }
}

/// Returns the call of a publication that is no transition.
pub(crate) fn plain_call(channel: &str, publication: u64, state: crate::State, argument: Value, depth: u32) -> Call {
    Call {
        channel: channel.to_owned(),
        publication,
        state,
        argument,
        phase: None,
        generation: 0,
        reason: None,
        limit: Duration::ZERO,
        cancelled: CancellationToken::new(),
        depth,
        by_the_site: false,
    }
}
