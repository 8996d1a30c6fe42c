//! [`Service`]: a component that is one task of this process: it runs from start to stop, and what happens when it ends by
//! itself is decided beforehand.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use refit_base::lock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::component::{Act, Component, Limits};
use crate::failure::Failure;
use crate::handle::Bus;
use crate::log::Level;
use crate::order::Order;
use crate::origin::Origin;
use crate::panics::panic_failure;
use crate::request::Request;
use crate::request::StopReason;

/// What is done when a service ends without having been told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEnd {
    /// The site ends: it is nothing without this service.
    Exit,
    /// It is reported, and stays down until the next start.
    Report,
    /// It is reported and run again after a pause, which doubles from the first to the longest.
    Retry {
        /// The first pause.
        first: Duration,
        /// The longest.
        longest: Duration,
    },
}

/// How a service does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceState {
    /// It is not wanted.
    Stopped,
    /// It runs.
    Running,
    /// It failed, for this reason; it is run again, or stays down.
    Degraded(String),
}

type Run = dyn Fn(CancellationToken) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> + Send + Sync;

struct Alive {
    stop: CancellationToken,
    ended: CancellationToken,
}

/// A component that is a task.
pub struct Service {
    bus: Bus,
    name: String,
    order: Order,
    limits: Limits,
    on_end: OnEnd,
    run: Arc<Run>,
    state: watch::Sender<ServiceState>,
    alive: Mutex<Option<Alive>>,
}

impl Service {
    /// Returns a service that does `run` until the token that it gets is cancelled.
    pub fn new<F, T>(bus: &Bus, name: impl Into<String>, on_end: OnEnd, run: F) -> Self
    where
        F: Fn(CancellationToken) -> T + Send + Sync + 'static,
        T: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        Self {
            bus: bus.quiet(),
            name: name.into(),
            order: Order::default(),
            limits: Limits::default(),
            on_end,
            // Called inside the future: a panic before there is one is a panic of the service as well.
            run: {
                let run = Arc::new(run);
                Arc::new(move |stop| {
                    let run = Arc::clone(&run);
                    Box::pin(async move { run(stop).await })
                })
            },
            state: watch::channel(ServiceState::Stopped).0,
            alive: Mutex::new(None),
        }
    }

    /// Returns a service that does `task` now and every `interval` while the site runs. A failure is reported, and the next try
    /// waits longer and longer, up to a minute or the interval.
    pub fn every<F, T>(bus: &Bus, name: impl Into<String>, interval: Duration, task: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        /// A task that fails is tried at least so often, if its interval is not longer.
        const LONGEST: Duration = Duration::from_secs(60);
        let task = Arc::new(task);
        let on_end = OnEnd::Retry { first: interval, longest: interval.max(LONGEST) };
        Self::new(bus, name, on_end, move |stop| {
            let task = Arc::clone(&task);
            async move {
                loop {
                    task().await?;
                    // Cancel-safe: both only wait.
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(interval) => {}
                    }
                }
            }
        })
    }

    /// Sets its place in the order.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Sets how long the bus waits for it.
    #[must_use]
    pub const fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Returns a receiver of how it does.
    pub fn watch(&self) -> watch::Receiver<ServiceState> {
        self.state.subscribe()
    }

    /// Waits until the task of an earlier start has ended: a stop may have been given up.
    async fn wait_for_the_last(&self, cancelled: &CancellationToken) -> Result<(), Failure> {
        let last = lock(&self.alive).as_ref().map(|alive| alive.ended.clone());
        let Some(ended) = last else { return Ok(()) };
        // Cancel-safe: both only wait.
        tokio::select! {
            () = ended.cancelled() => Ok(()),
            () = cancelled.cancelled() => {
                Err(Failure::new("it still runs: its last stop was given up, and there must not be two of it"))
            }
        }
    }

    /// Runs it until it is stopped, as often as `on_end` says.
    async fn supervise(self: Arc<Self>, stop: CancellationToken) {
        let mut failures: u32 = 0;
        loop {
            self.state.send_replace(ServiceState::Running);
            let begun = tokio::time::Instant::now();
            let result = std::panic::AssertUnwindSafe((self.run)(stop.clone())).catch_unwind().await;
            if stop.is_cancelled() {
                break;
            }
            let failure = match result {
                Ok(Ok(())) => Failure::new("ended without having been asked to"),
                Ok(Err(failure)) => failure,
                Err(panic) => panic_failure(&*panic),
            };
            self.state.send_replace(ServiceState::Degraded(failure.reason.clone()));
            match self.on_end {
                OnEnd::Exit => {
                    self.bus.fault(&self.name, "run", failure);
                    drop(self.bus.request(Request::Exit, Origin(format!("component {}", self.name))));
                    stop.cancelled().await;
                }
                OnEnd::Report => {
                    self.bus.log(Level::Error, format!("{} ended: {failure}", self.name));
                    stop.cancelled().await;
                }
                OnEnd::Retry { first, longest } => {
                    failures = if begun.elapsed() > longest { 1 } else { failures.saturating_add(1) };
                    let pause = first.saturating_mul(1 << (failures - 1).min(16)).min(longest);
                    let text = format!("{} failed: {failure}; tried again in {} s", self.name, pause.as_secs_f32());
                    self.bus.log(Level::Error, text);
                    // Cancel-safe: both only wait.
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
            if stop.is_cancelled() {
                break;
            }
        }
        self.state.send_replace(ServiceState::Stopped);
    }
}

impl Component for Service {
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
        Box::pin(async move {
            self.wait_for_the_last(&cancelled).await?;
            let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
            let task = {
                let (own, stop, ended) = (Arc::clone(&self), stop.clone(), ended.clone().drop_guard());
                async move {
                    let _ended = ended; // also if it is aborted
                    own.supervise(stop).await;
                    Ok(())
                }
            };
            self.bus.own(self.name.clone(), task).map_err(|error| Failure::from_error(&error))?;
            *lock(&self.alive) = Some(Alive { stop, ended });
            Ok(())
        })
    }

    fn exempt(&self) -> Option<String> {
        Some("it is a task without settings".to_owned())
    }

    fn stop(self: Arc<Self>, _reason: StopReason, _hurry: CancellationToken) -> Act {
        let ended = lock(&self.alive).as_ref().map(|alive| {
            alive.stop.cancel();
            alive.ended.clone()
        });
        Box::pin(async move {
            if let Some(ended) = ended {
                ended.cancelled().await;
                // Whoever gives up waiting leaves it there: until it has ended there is no second one.
                drop(lock(&self.alive).take());
            }
            Ok(())
        })
    }
}
