//! What all transitions share: their time, and how they call a wave after the one before it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::call::CallInfo;
use crate::calls::{Calls, End, Planned, Rules, Terms, Until, after};
use crate::context::Purpose;
use crate::failure::Failure;
use crate::publication::Outcome;
use crate::registry::Entry;
use crate::shared::Shared;

/// The time of one transition: the deadline of each listener lies inside it.
#[derive(Clone, Copy)]
pub(super) struct Time {
    until: Instant,
}

impl Time {
    /// Returns the time of a transition that begins now.
    pub(super) fn of(shared: &Shared) -> Self {
        Self { until: after(Instant::now(), shared.options.transition) }
    }

    /// Returns how long a listener may take that would have `wanted`.
    fn limit(&self, wanted: Duration) -> Duration {
        wanted.min(self.until.saturating_duration_since(Instant::now()))
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// The calls of one transition.
pub(super) struct Transition {
    shared: Arc<Shared>,
    calls: Arc<Calls>,
    time: Time,
    default: Duration,
    terms: Terms,
    waves: usize,
}

impl Transition {
    /// Returns a transition that calls nobody yet. `default` is how long a listener has that says nothing itself.
    pub(super) fn new(
        shared: &Arc<Shared>,
        info: CallInfo,
        time: Time,
        default: Duration,
        cancelled: Option<CancellationToken>,
    ) -> Self {
        let grace = shared.options.grace;
        let rules = Rules { info, purpose: Purpose::Transition, grace, cancelled, until: Some(time.until) };
        let (shared, calls) = (Arc::clone(shared), Calls::new(rules));
        Self { shared, calls, time, default, terms: Terms::Usual, waves: 0 }
    }

    /// Calls nobody any more from when it is cancelled.
    pub(super) fn while_wanted(mut self) -> Self {
        self.terms = Terms::Wanted;
        self
    }

    /// Waits for the next call to end; `None` as soon as what is waited for is so. Cancel-safe.
    pub(super) async fn next(&self, until: Until<'_>) -> Option<End> {
        self.calls.next(until).await
    }

    /// Begins the next wave. After the deadline of the whole each of it is called all the same, but not waited for.
    pub(super) fn begin<'a>(&mut self, wave: impl IntoIterator<Item = &'a Arc<Entry>>) {
        let (number, terms) = (self.waves, if self.time.is_over() { Terms::Overdue } else { self.terms });
        self.waves += 1;
        let planned = wave.into_iter().map(|entry| Planned {
            entry: Arc::clone(entry),
            limit: self.time.limit(entry.limit.unwrap_or(self.default)),
            wave: number,
            terms,
        });
        self.calls.begin(planned, &self.shared.monitor);
    }

    /// Calls `waves`, one after the other. Returns how each call ended, in the order of the calls.
    pub(super) async fn run(mut self, waves: &[Vec<Arc<Entry>>], mut ended: impl FnMut(&End)) -> Vec<End> {
        let mut ends = Vec::new();
        for wave in waves {
            while let Some(end) = self.next(Until::MayBegin(wave)).await {
                ended(&end);
                ends.push(end);
            }
            self.begin(wave);
        }
        while let Some(end) = self.next(Until::All).await {
            ended(&end);
            ends.push(end);
        }
        self.let_go();
        ends.sort_by_key(|end| end.place);
        ends
    }

    /// Leaves those who are not waited for to their grace.
    pub(super) fn let_go(&self) {
        self.calls.let_go();
    }
}

/// Returns why a call of a transition that has to call everybody is a fault.
pub(super) fn fault_of(end: &End) -> Option<Failure> {
    match &end.outcome {
        Outcome::Skipped { reason } if end.overdue => Some(Failure::new(format!("skipped: {reason}"))),
        Outcome::Ok { .. } | Outcome::Failed { .. } | Outcome::Timeout { .. } | Outcome::Skipped { .. } => {
            end.outcome.failure()
        }
    }
}

/// Returns what the site itself tells listeners of `channel`.
pub(super) fn told(shared: &Shared, channel: Arc<str>) -> CallInfo {
    let number = shared.publications.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
    CallInfo { by_the_site: true, ..CallInfo::plain(channel, number, shared.status().state, Value::Null, 1) }
}
