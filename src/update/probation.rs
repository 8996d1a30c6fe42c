//! The judgement on a release that runs: what its components say of themselves, and whether its listeners are really accepted from.
//!
//! What an operator has stopped does not count towards probation: it is waited for.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use refit_base::lock;
use refit_bus as bus;
use refit_updater::attempt::{Attempt, Ending, Step};
use tokio::sync::watch;

use super::parts::Parts;
use super::steps::Steps;
use crate::awake;
use crate::component::{Health, State as ComponentState, View};
use crate::config::ADMIN;
use crate::probe::answer::{self, Answer};

/// How long each listener may take to accept a connection, whatever the load.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often the progress of the probation is shown, unless a hundredth of it is longer.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// The pause before a listener is tried again that could not be tried.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// Judges the release that runs.
pub(super) struct Probation {
    parts: Arc<Parts>,
    steps: Arc<Steps>,
}

impl Probation {
    pub(super) fn new(parts: Arc<Parts>, steps: Arc<Steps>) -> Self {
        Self { parts, steps }
    }

    /// Waits until the release has been healthy for as long as its probation lasts, and is reached on every listener.
    ///
    /// # Errors
    /// What is not healthy.
    pub(super) async fn pass(&self, attempt: &Attempt) -> Result<(), Ending> {
        let limit = self.parts.config.update.probation;
        let mut waited_from = Instant::now();
        loop {
            self.be_healthy(attempt, &mut waited_from, limit).await?;
            let tried = self.try_listeners(attempt).await;
            // Trying the listeners takes time, too: what was well before must still be, and what was stopped says nothing.
            let views = self.views();
            let is_stopped = self.stopped(&views).is_some();
            if !is_stopped && (tried.is_err() || views.iter().all(is_well)) {
                return tried;
            }
        }
    }

    /// Watches a release that has proved healthy for `pause` more.
    ///
    /// # Errors
    /// What is not healthy any more.
    pub(super) async fn stay_healthy(&self, pause: Duration) -> Result<(), Ending> {
        let end = Instant::now() + pause;
        let mut watched = self.watched();
        loop {
            if let Some(ending) = watched.iter_mut().find_map(|view| self.problem(&view.borrow_and_update())) {
                return Err(ending);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            wait_change(&mut watched, left).await;
        }
    }

    fn watched(&self) -> Vec<watch::Receiver<View>> {
        self.parts.components.iter().map(|component| component.view()).collect()
    }

    fn views(&self) -> Vec<View> {
        self.parts.components.iter().map(|component| component.view().borrow().clone()).collect()
    }

    /// Returns what somebody has stopped, if anything.
    fn stopped(&self, views: &[View]) -> Option<String> {
        if self.parts.bus.state() != bus::State::Running {
            return Some("the site is stopped".to_owned());
        }
        let stopped = views.iter().find(|view| view.state == ComponentState::Stopped && !view.wanted)?;
        Some(format!("component {} is stopped", stopped.name))
    }

    /// Waits until everything has been healthy for `limit`. Patience counts from `waited_from`, which what is stopped moves.
    ///
    /// # Errors
    /// What is not healthy.
    async fn be_healthy(&self, attempt: &Attempt, waited_from: &mut Instant, limit: Duration) -> Result<(), Ending> {
        let patience = limit + self.parts.config.update.start_timeout;
        let every = PROGRESS_EVERY.max(limit / 100);
        let mut watched = self.watched();
        let (mut healthy_since, mut told) = (None, None);
        loop {
            let views: Vec<View> = watched.iter_mut().map(|view| view.borrow_and_update().clone()).collect();
            if let Some(ending) = views.iter().find_map(|view| self.problem(view)) {
                return Err(ending);
            }
            let waiting: Vec<&View> = views.iter().filter(|view| !is_well(view)).collect();
            let stopped = self.stopped(&views);
            if let Some(what) = &stopped {
                (healthy_since, *waited_from) = (None, Instant::now());
                if stopped != told {
                    self.steps.show_progress(attempt, 0.0, None, format!("waiting: {what}"));
                }
            } else if waiting.is_empty() {
                let since = *healthy_since.get_or_insert_with(Instant::now);
                let done = since.elapsed();
                if done >= limit {
                    return Ok(());
                }
                let text = format!("healthy for {:.1} of {:.1} s", done.as_secs_f64(), limit.as_secs_f64());
                self.steps.show_progress(attempt, done.div_duration_f64(limit), Some(limit - done), text);
            } else {
                healthy_since = None;
                if waited_from.elapsed() >= patience {
                    return Err(took_too_long(&waiting));
                }
            }
            told = stopped;
            let left = healthy_since.map_or(every, |since: Instant| limit.saturating_sub(since.elapsed()).min(every));
            let asleep = Instant::now();
            wait_change(&mut watched, left).await;
            // A pause of the machine is neither healthy nor an impatient time.
            let paused = awake::paused_since(asleep + left, every);
            *waited_from += paused;
            healthy_since = healthy_since.map(|since| since + paused);
        }
    }

    /// Returns why the trial is lost, if what `view` shows means that.
    fn problem(&self, view: &View) -> Option<Ending> {
        let reason = match (&view.health, view.state) {
            _ if view.unexpected_exits > 0 => view.reason.clone().unwrap_or_else(|| "ended by itself".to_owned()),
            (_, ComponentState::Failed | ComponentState::Backoff) => {
                view.reason.clone().unwrap_or_else(|| "failed".to_owned())
            }
            (health, _) => match health {
                Health::Unhealthy(reason) => format!("is unhealthy: {reason}"),
                Health::None | Health::Unknown | Health::Doubtful(_) | Health::Healthy => return None,
            },
        };
        let mut ending = Ending::now(Step::Probation, format!("component {} {reason}", view.name))
            .with_cause(view.cause)
            .with_code("component_failed");
        ending.component = Some(view.name.clone());
        ending.output = if view.output.is_empty() {
            let logs = &self.parts.context.registry.logs;
            let instance = format!("{}-{}", view.name, view.generation);
            logs.last_of(&view.name, &instance, refit_updater::history::OUTPUT_LINES_MAX)
        } else {
            view.output.clone()
        };
        Some(ending)
    }

    /// Makes a real connection to every listener: one that nobody accepts from is a dead port.
    ///
    /// # Errors
    /// A listener does not answer.
    async fn try_listeners(&self, attempt: &Attempt) -> Result<(), Ending> {
        let config = &self.parts.config;
        let addresses = lock(&self.parts.context.listeners).addresses();
        for (name, address) in addresses {
            let owner = config.components.iter().find(|component| component.listeners.contains(&name));
            if owner.is_none() && name != ADMIN {
                continue; // declared, but nobody's yet
            }
            if let Some(why) = self.try_listener(attempt, &name).await? {
                let mut ending =
                    Ending::now(Step::Probation, format!("the listener {name} at {address} is dead: {why}"))
                        .with_code("listener_dead");
                ending.component = owner.map(|component| component.name.clone());
                return Err(ending);
            }
        }
        Ok(())
    }

    /// Tries the listener `name`, again and again while the machine does not let it be tried. Returns why it is dead.
    ///
    /// # Errors
    /// Meanwhile something is not healthy any more.
    async fn try_listener(&self, attempt: &Attempt, name: &str) -> Result<Option<String>, Ending> {
        let mut shown = None;
        loop {
            let Some(socket) = lock(&self.parts.context.listeners).get(name).map(TcpListener::try_clone) else {
                return Ok(None);
            };
            let answered = match socket {
                Ok(socket) => answer::answers(&socket, ANSWER_MAX).await,
                Err(error) => Err(error),
            };
            let error = match answered {
                Ok(Answer::Accepts | Answer::Untried) => return Ok(None),
                Ok(Answer::Full) => {
                    tracing::warn!(
                        listener.name = name,
                        "its queue is full; whether a connection is accepted cannot be seen"
                    );
                    return Ok(None);
                }
                Ok(Answer::Silent) => {
                    return Ok(Some(format!("no process accepted a connection within {} s", ANSWER_MAX.as_secs())));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Some(error.to_string())),
                // Nothing was learned about the listener.
                Err(error) => error.to_string(),
            };
            if shown.as_ref() != Some(&error) {
                let text = format!("healthy; cannot try the listener {name}: {error}; trying again");
                self.steps.show_waiting(attempt, Step::Probation, &text);
                shown = Some(error);
            }
            self.stay_healthy(TRY_AGAIN).await?;
        }
    }
}

/// Returns how the trial ends in which these components did not become healthy for as long as it is patient.
fn took_too_long(waiting: &[&View]) -> Ending {
    let names: Vec<&str> = waiting.iter().map(|view| view.name.as_str()).collect();
    let mut text = format!("{} did not become healthy in time", names.join(", "));
    let reason = waiting.iter().find_map(|view| match &view.health {
        Health::Doubtful(reason) => Some((&view.name, reason)),
        Health::None | Health::Unknown | Health::Healthy | Health::Unhealthy(_) => None,
    });
    if let Some((name, reason)) = reason {
        text.push_str(&format!("; component {name} is unhealthy: {reason}"));
    }
    let mut ending = Ending::now(Step::Probation, text).with_code("not_healthy");
    ending.component = names.first().map(|name| (*name).to_owned());
    ending
}

/// Waits until a component changes after what was last read of it, at most for `limit`.
async fn wait_change(watched: &mut [watch::Receiver<View>], limit: Duration) {
    // Without components there is nothing to hear of.
    if watched.is_empty() {
        return tokio::time::sleep(limit).await;
    }
    let changes = watched.iter_mut().map(|view| Box::pin(view.changed()));
    // Cancel-safe: both only wait.
    tokio::select! {
        _ = futures_util::future::select_all(changes) => {}
        () = tokio::time::sleep(limit) => {}
    }
}

/// Returns whether a component is as it should be in the end.
fn is_well(view: &View) -> bool {
    match view.state {
        ComponentState::Stopped => view.wanted, // it has done its work
        ComponentState::Starting | ComponentState::Stopping | ComponentState::Backoff | ComponentState::Failed => false,
        ComponentState::Done => true,
        ComponentState::Running | ComponentState::Waiting => match &view.health {
            Health::None | Health::Healthy => true,
            Health::Unknown | Health::Doubtful(_) | Health::Unhealthy(_) => false,
        },
    }
}
