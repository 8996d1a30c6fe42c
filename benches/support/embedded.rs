//! The bus by itself, in this process: publications, waiters, and the life of many components.

use std::sync::Arc;
use std::time::{Duration, Instant};

use refit::bus::{
    Act, CancellationToken, Ended, Options, Order, PRIORITY_DEFAULT, Progress, State, StopReason, Subscription,
    listener,
};
use refit::{Bus, Component, Origin, Request};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::{BenchError, failed};

/// The channel on which is published.
const CHANNEL: &str = "bench";
/// How many publish at once where throughput is measured: more than there are processors in a small box.
const PUBLISHERS: usize = 4;
/// What the names of its threads begin with.
pub(crate) const THREADS: &str = "bench-bus";

/// A bus whose engine runs, on an async runtime of its own.
pub(crate) struct Embedded {
    runtime: Runtime,
    bus: Bus,
    tasks: JoinSet<()>,
    engine: tokio::task::JoinHandle<Ended>,
}

/// What publications took.
pub(crate) struct Published {
    /// Each publication, one after the other.
    pub(crate) one_by_one: Vec<Duration>,
    /// How many listeners were called in a second, by several publishers at once.
    pub(crate) calls_per_second: f64,
}

impl Embedded {
    /// Starts a bus without listeners.
    ///
    /// # Errors
    /// There are no threads to be had.
    pub(crate) fn start() -> Result<Self, BenchError> {
        let runtime = Builder::new_multi_thread()
            .thread_name(THREADS)
            .enable_all()
            .build()
            .map_err(failed("start an async runtime"))?;
        let (bus, engine) = Bus::new(Options::default());
        let engine = runtime.handle().spawn(engine.run());
        Ok(Self { runtime, bus, tasks: JoinSet::new(), engine })
    }

    /// Runs `work` as a task, so that it is woken as any other, and returns what comes out.
    fn inside<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T, BenchError> {
        let task = self.runtime.handle().spawn(work);
        self.runtime.block_on(task).map_err(|error| BenchError::Answer { what: "a task", answer: error.to_string() })
    }

    /// Publishes `count` times one after the other, and as often by several at once, to `listeners` that answer at once. With
    /// `distinct` priorities each is called after the one before it.
    ///
    /// # Errors
    /// A listener was not called.
    pub(crate) fn publish(&self, listeners: usize, distinct: bool, count: usize) -> Result<Published, BenchError> {
        let name = |index: usize| format!("listener {index}");
        for index in 0..listeners {
            let priority = if distinct { i32::try_from(index).unwrap_or(i32::MAX) } else { PRIORITY_DEFAULT };
            let answers = listener(|_call| async { Ok(Value::Null) });
            self.bus.subscribe(Subscription::new(CHANNEL, name(index), answers).priority(priority));
        }
        let bus = self.bus.clone();
        let one_by_one = self.inside(async move {
            let mut durations = Vec::with_capacity(count);
            for _ in 0..count {
                let begun = Instant::now();
                let report = bus.publish(CHANNEL, Value::Null).await;
                durations.push(begun.elapsed());
                check(report.values().len(), listeners)?;
            }
            Ok(durations)
        })??;
        let bus = self.bus.clone();
        let begun = Instant::now();
        self.inside(async move {
            let mut publishers = JoinSet::new();
            for _ in 0..PUBLISHERS {
                let bus = bus.clone();
                publishers.spawn(async move {
                    for _ in 0..count.div_ceil(PUBLISHERS) {
                        check(bus.publish(CHANNEL, Value::Null).await.values().len(), listeners)?;
                    }
                    Ok(())
                });
            }
            publishers.join_all().await.into_iter().collect::<Result<(), BenchError>>()
        })??;
        let calls = count.div_ceil(PUBLISHERS) * PUBLISHERS * listeners;
        let calls_per_second = calls as f64 / begun.elapsed().as_secs_f64();
        for index in 0..listeners {
            self.bus.unsubscribe(CHANNEL, &name(index));
        }
        Ok(Published { one_by_one, calls_per_second })
    }

    /// Asks and waits until it is done. Returns how long that took.
    ///
    /// # Errors
    /// It was not done.
    pub(crate) fn request(&self, request: Request) -> Result<Duration, BenchError> {
        let bus = self.bus.clone();
        let begun = Instant::now();
        let progress = self.inside(async move { bus.request(request, Origin("bench".to_owned())).outcome().await })?;
        match progress {
            Progress::Done | Progress::Already => Ok(begun.elapsed()),
            Progress::Accepted | Progress::Failed(_) | Progress::Refused(_) => {
                Err(BenchError::Answer { what: "a request", answer: format!("{progress:?}") })
            }
        }
    }

    /// Has somebody wait for `Running`, and starts. Returns how long after the request he heard of it.
    ///
    /// # Errors
    /// He did not hear of it.
    pub(crate) fn hear(&self) -> Result<Duration, BenchError> {
        let bus = self.bus.clone();
        let waiter = self.runtime.handle().spawn(async move {
            let waited = bus.wait(&[State::Running]).await;
            (waited, Instant::now())
        });
        let asked = Instant::now();
        self.request(Request::Start)?;
        let (waited, heard) = self
            .runtime
            .block_on(waiter)
            .map_err(|error| BenchError::Answer { what: "a waiter", answer: error.to_string() })?;
        waited.map_err(|error| BenchError::Answer { what: "a waiter", answer: error.to_string() })?;
        self.request(Request::Stop)?;
        Ok(heard.saturating_duration_since(asked))
    }

    /// Attaches `count` components that do nothing, each needing the one before it.
    ///
    /// # Errors
    /// They do not fit together.
    pub(crate) fn attach_chain(&self, count: usize) -> Result<(), BenchError> {
        for index in 0..count {
            let needs = index.checked_sub(1).map(member).into_iter().collect();
            let component = Arc::new(Member { name: member(index), order: Order { needs, ..Order::default() } });
            let attached = self.bus.attach(component);
            attached.map_err(|error| BenchError::Answer { what: "the bus", answer: error.to_string() })?;
        }
        Ok(())
    }

    /// Adds `count` waiters for a state that does not come.
    pub(crate) fn add_waiters(&mut self, count: usize) {
        for _ in 0..count {
            let bus = self.bus.clone();
            let wait = async move {
                let _ = bus.wait(&[State::Exited]).await; // it ends with the bus
            };
            self.tasks.spawn_on(wait, self.runtime.handle());
        }
    }

    /// Ends the site.
    ///
    /// # Errors
    /// It did not end well.
    pub(crate) fn finish(mut self) -> Result<(), BenchError> {
        self.request(Request::Exit)?;
        let ended = self.runtime.block_on(self.engine);
        let ended = ended.map_err(|error| BenchError::Answer { what: "the engine", answer: error.to_string() })?;
        self.runtime.block_on(async { while self.tasks.join_next().await.is_some() {} });
        match ended.faults.first() {
            Some(fault) => Err(BenchError::Answer { what: "the bus", answer: fault.cause.clone() }),
            None => Ok(()),
        }
    }
}

fn check(called: usize, listeners: usize) -> Result<(), BenchError> {
    if called == listeners {
        return Ok(());
    }
    Err(BenchError::Answer { what: "a publication", answer: format!("{called} of {listeners}") })
}

fn member(index: usize) -> String {
    format!("member-{index:03}")
}

/// A component that does nothing.
struct Member {
    name: String,
    order: Order,
}

impl Component for Member {
    fn name(&self) -> &str {
        &self.name
    }

    fn order(&self) -> Order {
        self.order.clone()
    }

    fn start(self: Arc<Self>, _cancelled: CancellationToken) -> Act {
        Box::pin(async { Ok(()) })
    }

    fn stop(self: Arc<Self>, _reason: StopReason, _hurry: CancellationToken) -> Act {
        Box::pin(async { Ok(()) })
    }
}
