//! [`Bus`]: the handle with which anybody asks, listens, publishes and waits, from any task or thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::call::CallInfo;
use crate::calls::{Calls, Rules};
use crate::component::{Component, Life};
use crate::confirm::Unconfirmed;
use crate::context::{self, Purpose};
use crate::failure::Failure;
use crate::log::{Level, LogCounts, Means};
use crate::origin::Origin;
use crate::publication::{DEPTH_MAX, Report};
use crate::registry::{self, AttachError, Subscription};
use crate::request::{Request, Ticket};
use crate::shared::{Fault, Shared};
use crate::state::State;
use crate::tasks::NotTaken;

/// The handle. Clones are the same bus. When the last one is gone nobody could ever ask again, and the site ends.
#[derive(Clone)]
pub struct Bus {
    pub(crate) shared: Arc<Shared>,
    /// Never sent on: its end is the end of all handles.
    pub(crate) alive: Option<mpsc::Sender<std::convert::Infallible>>,
}

/// Why a wait ended without what it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The limit has passed.
    #[error("timeout: the site is still {}", .0.name())]
    Timeout(State),
    /// The site has ended, and will never be there again.
    #[error("the site has ended")]
    Ended,
    /// The site is about to end, and will not be there before.
    #[error("the site is ending")]
    Ending,
    /// The caller is a listener of a transition.
    #[error("{}", context::INSIDE)]
    Inside,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = self.alive.is_some();
        f.debug_struct("Bus").field("state", &self.state()).field("counts", &counts).finish_non_exhaustive()
    }
}

impl Bus {
    /// Asks. Never blocks and never does it inline; the ticket says what becomes of it.
    pub fn request(&self, request: Request, origin: Origin) -> Ticket {
        self.shared.request(request, origin)
    }

    /// Returns a handle that does not keep the site from ending when all others are gone: for what the bus itself keeps.
    pub(crate) fn quiet(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), alive: None }
    }

    /// Returns the state now.
    pub fn state(&self) -> State {
        *self.shared.state.borrow()
    }

    /// Returns a receiver of the state: of its level, not of every change.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Waits until the site is in one of `states`, however short it is there. Returns which.
    ///
    /// # Errors
    /// The site has ended without getting there, or will, or the caller is a listener that a transition waits for.
    pub async fn wait(&self, states: &[State]) -> Result<State, WaitError> {
        if let Some(state) = self.shared.is_in(states) {
            return Ok(state);
        }
        if context::is_inside(Purpose::Transition) {
            return Err(WaitError::Inside);
        }
        self.shared.waiter(states).await.map_err(|_: oneshot::error::RecvError| match self.state() {
            State::Exited => WaitError::Ended,
            State::Initial
            | State::Entering
            | State::Idle
            | State::Starting
            | State::Running
            | State::Stopping
            | State::Exiting => WaitError::Ending,
        })
    }

    /// Waits as [`Bus::wait`] does, at most for `limit`.
    ///
    /// # Errors
    /// Those of [`Bus::wait`], or the limit has passed.
    pub async fn wait_within(&self, states: &[State], limit: Duration) -> Result<State, WaitError> {
        match tokio::time::timeout(limit, self.wait(states)).await {
            Ok(waited) => waited,
            Err(_) => Err(WaitError::Timeout(self.state())),
        }
    }

    /// Makes `channel` known, so that publishing to it without a listener is no mistake.
    pub fn declare(&self, channel: &str) {
        self.shared.registry.declare(channel);
    }

    /// Adds a listener. One of the same name on the same channel is replaced, and takes its new place in the order.
    pub fn subscribe(&self, subscription: Subscription) {
        let log = (subscription.channel == registry::LOG).then(|| subscription.name.clone());
        self.shared.registry.add(subscription);
        if let Some(name) = log {
            let options = &self.shared.options;
            let (limit, grace) = (options.listener, options.grace);
            let (registry, monitor) = (Arc::clone(&self.shared.registry), Arc::clone(&self.shared.monitor));
            self.shared.log.add(name, Means { registry, monitor, limit, grace });
        }
    }

    /// Removes a listener; one that is not there is no error. No call of it begins after the return.
    pub fn unsubscribe(&self, channel: &str, name: &str) -> bool {
        if channel == registry::LOG {
            self.shared.log.remove(name);
        }
        self.shared.registry.remove(channel, name)
    }

    /// Makes `component` start, stop and reload with the site; it starts with the next start.
    ///
    /// # Errors
    /// Its name is taken, or it would wait for itself; nothing has changed.
    pub fn attach(&self, component: Arc<dyn Component>) -> Result<(), AttachError> {
        let (name, order, limits) = (component.name().to_owned(), component.order(), component.limits());
        let (options, reverts) = (&self.shared.options, component.reverts());
        let life: Arc<Life> = Arc::new(Life(component));
        let channels = [
            (registry::START, limits.start.unwrap_or(options.start)),
            (registry::STOP, limits.stop.unwrap_or(options.stop)),
            (registry::RELOAD, limits.reload.unwrap_or(options.listener)),
        ];
        let subscriptions = channels
            .into_iter()
            .map(|(channel, limit)| {
                let life = Arc::clone(&life) as _;
                Subscription::new(channel, name.clone(), life).order(order.clone()).limit(limit).reverts(reverts)
            })
            .collect();
        self.shared.registry.attach(&name, subscriptions)
    }

    /// Removes a component; it is not stopped.
    pub fn detach(&self, name: &str) {
        self.shared.registry.detach(name);
    }

    /// Returns every known channel with the names of its listeners.
    pub fn channels(&self) -> BTreeMap<String, Vec<String>> {
        self.shared.registry.channels()
    }

    /// Returns whether anybody ever declared `channel` or subscribed to it.
    pub fn knows(&self, channel: &str) -> bool {
        self.shared.registry.knows(channel)
    }

    /// Calls every listener of `channel` and returns what each answered. A name that nobody knows is reported, once.
    pub async fn publish(&self, channel: &str, argument: Value) -> Report {
        self.publish_at(channel, argument, context::depth()).await
    }

    /// Publishes for somebody who is `depth` listeners deep already.
    pub async fn publish_at(&self, channel: &str, argument: Value, depth: u32) -> Report {
        let shared = &self.shared;
        let snapshot = shared.registry.snapshot(channel);
        if snapshot.first {
            self.log(Level::Warning, format!("unknown channel {channel:?}: nobody ever declared or subscribed to it"));
        }
        let mut report = Report {
            channel: Arc::clone(&snapshot.channel),
            known: snapshot.known,
            refused: None,
            answers: Vec::new(),
        };
        if depth >= DEPTH_MAX {
            let reason =
                format!("{DEPTH_MAX} publications lead to one another, each inside a listener of the one before");
            self.log(Level::Error, format!("not published on {channel}: {reason}"));
            report.refused = Some(reason);
            return report;
        }
        if snapshot.waves.is_empty() {
            shared.is_published(&report);
            return report;
        }
        let publication = shared.publications.fetch_add(1, Ordering::Relaxed) + 1;
        let rules = Rules {
            info: CallInfo::plain(snapshot.channel, publication, self.state(), argument, depth + 1),
            purpose: context::purpose(),
            grace: shared.options.grace,
            cancelled: None,
            until: None,
        };
        let (done, published) = oneshot::channel();
        let own = Arc::clone(shared);
        let done = move |answers| {
            report.answers = answers;
            own.is_published(&report);
            drop(done.send(report)); // who published may have given up waiting
        };
        Calls::publish(rules, snapshot.waves, shared.options.listener, &shared.monitor, done);
        match published.await {
            Ok(report) => report,
            // The async runtime ends, and every task with it.
            Err(_) => Report::refused(channel, "the process ends"),
        }
    }

    /// Says what happens. Never waits.
    pub fn log(&self, level: Level, text: impl Into<String>) {
        self.shared.say(level, text.into());
    }

    /// Says that something failed, with all its causes.
    pub fn log_error(&self, text: &str, error: &dyn std::error::Error) {
        self.log(Level::Error, format!("{text}: {}", refit_base::Chain(error)));
    }

    /// Returns what became of the log's entries.
    pub fn log_counts(&self) -> LogCounts {
        self.shared.log.counts()
    }

    /// Has the bus own a task: its failure is a fault, and the end waits for it up to the exit's limit.
    ///
    /// # Errors
    /// The bus has ended.
    pub fn own(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) -> Result<(), NotTaken> {
        self.shared.tasks.take(name.into(), Box::pin(task))
    }

    /// Records a fault of a component; it decides the exit status.
    pub fn fault(&self, component: &str, phase: &str, failure: Failure) {
        self.shared.fault(component, phase, failure);
    }

    /// Returns what failed so far.
    pub fn faults(&self) -> Vec<Fault> {
        self.shared.faults()
    }

    /// Returns whether the site was ever running in this process image.
    pub fn ran(&self) -> bool {
        self.shared.ran()
    }

    /// Returns whether this process image is on its way to be replaced.
    pub fn is_replacing(&self) -> bool {
        self.shared.is_replacing()
    }

    /// Returns the reload that waits to be confirmed, or is just being reverted.
    pub fn unconfirmed(&self) -> Option<Unconfirmed> {
        self.shared.unconfirmed()
    }

    /// Cuts the time of whatever stops now, or later.
    pub fn hurry(&self) {
        self.shared.hurry.cancel();
    }

    /// Ends the site when the process is asked to end, and reloads it on a hang-up, until the returned future is dropped.
    /// TERM and INT: exit, the second time in a hurry. HUP: reload.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn signals(&self) -> std::io::Result<impl Future<Output = ()> + Send + use<>> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let bus = self.clone();
        Ok(async move {
            let mut asked = false;
            let mut end = |name: &str| {
                if std::mem::replace(&mut asked, true) {
                    bus.hurry();
                } else {
                    drop(bus.request(Request::Exit, Origin(format!("signal {name}"))));
                }
            };
            loop {
                // Cancel-safe: each only waits for its signal.
                tokio::select! {
                    _ = terminate.recv() => end("TERM"),
                    _ = interrupt.recv() => end("INT"),
                    _ = hang_up.recv() => drop(bus.request(Request::Reload, Origin("signal HUP".to_owned()))),
                }
            }
        })
    }
}
