//! A call that is not done with its first poll: it goes on as a task of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use refit_base::lock;
use serde_json::Value;
use tokio::time::Instant;

use super::{Calls, UnderWay, spawn};
use crate::call::{Call, Work};
use crate::context;
use crate::failure::Failure;
use crate::panics::panic_failure;
use crate::publication::Outcome;
use crate::registry::Entry;

/// What one poll of a call came to.
pub(super) enum Polled {
    Done(Outcome),
    NotYet(Work),
}

/// Begins a call inside the gate of its listener, and polls it once. It is not made if the listener was removed, or still holds
/// the thread of a call that was given up.
pub(super) fn begin(entry: &Arc<Entry>, call: Call, context: &mut Context<'_>) -> Polled {
    if entry.hold.is_given_up() {
        let reason = "not called: it still holds the thread of a call that was given up";
        return Polled::Done(Outcome::Failed { failure: Box::new(Failure::new(reason)) });
    }
    if entry.hold.is_taken() {
        return Polled::NotYet(Box::pin(begin_when_free(Arc::clone(entry), call)));
    }
    let polled = catch_unwind(AssertUnwindSafe(|| {
        entry.begin(|listener| {
            let mut work = Arc::clone(listener).call(call);
            let polled = work.as_mut().poll(context);
            match polled {
                Poll::Ready(result) => Polled::Done(outcome_of(result)),
                Poll::Pending => Polled::NotYet(work),
            }
        })
    }));
    match polled {
        Ok(Some(polled)) => polled,
        Ok(None) => Polled::Done(Outcome::Skipped { reason: "unsubscribed meanwhile".to_owned() }),
        Err(panic) => Polled::Done(Outcome::Failed { failure: Box::new(panic_failure(&*panic)) }),
    }
}

/// Begins a call when no earlier one of the listener holds its thread any more.
async fn begin_when_free(entry: Arc<Entry>, call: Call) -> Result<Value, Failure> {
    entry.hold.free().await;
    match entry.begin(|listener| Arc::clone(listener).call(call)) {
        Some(work) => work.await,
        None => Err(Failure::lost("unsubscribed meanwhile")),
    }
}

fn outcome_of(result: Result<Value, Failure>) -> Outcome {
    match result {
        Ok(value) => Outcome::Ok { value },
        Err(failure) => Outcome::Failed { failure: Box::new(failure) },
    }
}

/// The task of a call that goes on.
struct Beside {
    calls: Arc<Calls>,
    place: usize,
    polling: Arc<AtomicBool>,
    work: Option<Work>,
}

impl Future for Beside {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(mut work) = this.work.take() else { return Poll::Ready(()) };
        this.polling.store(true, Ordering::Release);
        // What the work owns is dropped here as well: that may panic, too.
        let polled = catch_unwind(AssertUnwindSafe(|| match work.as_mut().poll(context) {
            Poll::Ready(result) => Polled::Done(outcome_of(result)),
            Poll::Pending => Polled::NotYet(work),
        }));
        this.polling.store(false, Ordering::Release);
        let outcome = match polled {
            Ok(Polled::Done(outcome)) => outcome,
            Err(panic) => Outcome::Failed { failure: Box::new(panic_failure(&*panic)) },
            Ok(Polled::NotYet(work)) => {
                this.work = Some(work);
                this.calls.let_thread_go(this.place);
                return Poll::Pending;
            }
        };
        lock(&this.calls.under_way).end(this.place, outcome);
        this.calls.changed.notify_one();
        Poll::Ready(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let work = self.work.take();
        // It has not ended: it was abandoned, or the async runtime ends.
        if let Some(work) = work {
            drop(catch_unwind(AssertUnwindSafe(|| drop(work))));
            lock(&self.calls.under_way).dropped(self.place);
            self.calls.changed.notify_one();
        }
    }
}

impl Calls {
    /// Has the call at `place` go on as a task of its own, unless it is not among those that are pending any more.
    pub(super) fn go_on_beside(self: &Arc<Self>, place: usize, polling: Arc<AtomicBool>, work: Work) {
        let beside = Beside { calls: Arc::clone(self), place, polling, work: Some(work) };
        let task = spawn(context::inside(self.rules.purpose, self.rules.info.depth, beside));
        let mut way = lock(&self.under_way);
        // It may have ended already, or was given up while nobody knew its task.
        match way.pending.iter_mut().find(|pending| pending.place == place) {
            Some(pending) => {
                if pending.abandoned {
                    task.abort();
                }
                pending.task = Some(task);
            }
            None => task.abort(),
        }
    }

    /// Records that the first poll of the call at `place` is over, which took so long that somebody else is the runner.
    pub(super) fn come_back(self: &Arc<Self>, place: usize, polled: Polled) {
        let (polling, work) = {
            let mut way = lock(&self.under_way);
            let Some(pending) = way.pending.iter_mut().find(|pending| pending.place == place) else { return };
            pending.polling.store(false, Ordering::Release);
            match polled {
                Polled::Done(outcome) => {
                    way.end(place, outcome);
                    drop(way);
                    self.changed.notify_one();
                    return;
                }
                Polled::NotYet(work) => (Arc::clone(&pending.polling), work),
            }
        };
        self.let_thread_go(place);
        self.go_on_beside(place, polling, work);
    }

    /// Records that the call at `place` holds its thread no more.
    fn let_thread_go(&self, place: usize) {
        let mut way = lock(&self.under_way);
        let UnderWay { plan, pending, .. } = &mut *way;
        let Some(index) = pending.iter().position(|pending| pending.place == place && pending.held) else { return };
        pending[index].lets_go(&plan.row(place).entry.hold);
    }

    /// Records that the call at `place` is not done with its first poll.
    pub(super) fn goes_on(self: &Arc<Self>, place: usize, begun: Instant, work: Work) {
        let polling = Arc::new(AtomicBool::new(false));
        lock(&self.under_way).go_on(place, begun, Arc::clone(&polling), self.rules.grace);
        self.go_on_beside(place, polling, work);
    }
}
