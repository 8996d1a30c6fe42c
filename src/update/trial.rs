//! The trial: the new release runs and has to prove healthy before it stays.
//!
//! Judged are the components' own health, that none of them ends, and from outside that every listener is really accepted from.
//! What somebody has stopped proves nothing: the trial waits for it. The verdict is journaled before anything follows from it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use refit_base::Chain;
use refit_base::clock;
use refit_bus::{self as bus, Origin, Request};
use refit_updater::attempt::{Attempt, Ending};
use serde_json::json;

use super::{Manager, lock, millis};
use crate::component::{State, View};
use crate::handover::listener;

/// How long each listener may take to accept a connection, whatever the load.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often the progress of the probation is shown, unless a hundredth of it is longer.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

impl Manager {
    /// Watches the release on trial until there is a verdict.
    pub(super) async fn watch_trial(self: Arc<Self>, mut attempt: Attempt) {
        let begun = Instant::now();
        let limit = self.parts.config.update.probation;
        let text = format!("watching release {} for {} s", attempt.to, limit.as_secs_f32());
        self.step(&attempt, "probation", &text);
        let mut waited_from = begun;
        let verdict = loop {
            if let Err(ending) = self.probation(&attempt, &mut waited_from, limit).await {
                break Err(ending);
            }
            let tried = self.try_listeners().await;
            // Trying the listeners takes time, too: what was well before must still be, and what was stopped says nothing.
            let views = self.views();
            let is_stopped = self.stopped(&views).is_some();
            if !is_stopped && (tried.is_err() || views.iter().all(is_well)) {
                break tried;
            }
        };
        attempt.durations.insert("probation".to_owned(), millis(begun));
        match verdict {
            Ok(()) => self.commit(attempt).await,
            Err(ending) => {
                let bus = &self.parts.bus;
                match self.abandon_trial(&ending) {
                    Some(replacement) => {
                        drop(bus.request(Request::Rollback(replacement), Origin("trial".to_owned())));
                    }
                    // The guard decides: the journal says which release is next.
                    None => {
                        self.yields_to_guard.store(true, Ordering::Relaxed);
                        drop(bus.request(Request::Exit, Origin("trial".to_owned())));
                    }
                }
            }
        }
    }

    fn views(&self) -> Vec<View> {
        self.parts.components.iter().map(|component| component.view().borrow().clone()).collect()
    }

    /// Returns what somebody has stopped, if anything.
    fn stopped(&self, views: &[View]) -> Option<String> {
        if self.parts.bus.state() != bus::State::Running {
            return Some("the site is stopped".to_owned());
        }
        let stopped = views.iter().find(|view| view.state == State::Stopped && !view.wanted)?;
        Some(format!("component {} is stopped", stopped.name))
    }

    /// Waits until everything has been healthy for `limit`. Patience counts from `waited_from`, which what is stopped moves.
    ///
    /// # Errors
    /// What is not healthy.
    async fn probation(&self, attempt: &Attempt, waited_from: &mut Instant, limit: Duration) -> Result<(), Ending> {
        let patience = limit + self.parts.config.update.start_timeout;
        let every = PROGRESS_EVERY.max(limit / 100);
        let mut watched: Vec<_> = self.parts.components.iter().map(|component| component.view()).collect();
        let (mut healthy_since, mut told) = (None, None);
        loop {
            let views: Vec<View> = watched.iter_mut().map(|view| view.borrow_and_update().clone()).collect();
            if let Some(ending) = views.iter().find_map(|view| self.trouble(view)) {
                return Err(ending);
            }
            let waiting: Vec<&str> =
                views.iter().filter(|view| !is_well(view)).map(|view| view.name.as_str()).collect();
            let stopped = self.stopped(&views);
            if let Some(what) = &stopped {
                (healthy_since, *waited_from) = (None, Instant::now());
                if stopped != told {
                    self.show_progress(attempt, 0.0, None, format!("waiting: {what}"));
                }
            } else if waiting.is_empty() {
                let since = *healthy_since.get_or_insert_with(Instant::now);
                let done = since.elapsed();
                if done >= limit {
                    return Ok(());
                }
                let text = format!("healthy for {:.1} of {:.1} s", done.as_secs_f64(), limit.as_secs_f64());
                self.show_progress(attempt, done.div_duration_f64(limit), Some(limit - done), text);
            } else {
                healthy_since = None;
                if waited_from.elapsed() >= patience {
                    let text = format!("{} did not become healthy in time", waiting.join(", "));
                    let mut ending = Ending::now("probation", text);
                    ending.component = waiting.first().map(|name| (*name).to_owned());
                    return Err(ending);
                }
            }
            told = stopped;
            let left = healthy_since.map_or(every, |since: Instant| limit.saturating_sub(since.elapsed()).min(every));
            let changes = watched.iter_mut().map(|view| Box::pin(view.changed()));
            // Cancel-safe: both only wait; what has changed is read above. Without components there is nothing to hear of.
            if self.parts.components.is_empty() {
                tokio::time::sleep(left).await;
            } else {
                tokio::select! {
                    _ = futures_util::future::select_all(changes) => {}
                    () = tokio::time::sleep(left) => {}
                }
            }
        }
    }

    /// Shows how much of the probation is over, from 0 to 1, and how long it is `left`, where that is known.
    fn show_progress(&self, attempt: &Attempt, progress: f64, left: Option<Duration>, text: String) {
        if let Some(view) = lock(&self.view).as_mut() {
            let left = left.and_then(|left| jiff::SignedDuration::try_from(left).ok());
            view.progress = progress;
            view.step.clone_from(&text);
            view.probation_ends_at = left.map(|left| clock::rfc3339(clock::now() + left));
        }
        let data = json!({ "id": attempt.id, "progress": progress, "text": text });
        self.parts.context.registry.events.publish("update.progress", data);
    }

    /// Returns why the trial is lost, if what `view` shows means that.
    fn trouble(&self, view: &View) -> Option<Ending> {
        let reason = match (&view.health, view.state) {
            _ if view.unexpected_exits > 0 => view.reason.clone().unwrap_or_else(|| "ended by itself".to_owned()),
            (_, State::Failed | State::Backoff) => view.reason.clone().unwrap_or_else(|| "failed".to_owned()),
            (health, _) => match health {
                crate::component::Health::Unhealthy(reason) => format!("is unhealthy: {reason}"),
                crate::component::Health::None
                | crate::component::Health::Unknown
                | crate::component::Health::Doubtful(_)
                | crate::component::Health::Healthy => return None,
            },
        };
        let mut ending = Ending::now("probation", format!("component {} {reason}", view.name));
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
    async fn try_listeners(&self) -> Result<(), Ending> {
        let config = &self.parts.config;
        let addresses = lock(&self.parts.context.listeners).addresses();
        for (name, address) in addresses {
            let owner = config.components.iter().find(|component| component.listeners.contains(&name));
            if owner.is_none() && name != crate::config::ADMIN {
                continue; // declared, but nobody's yet
            }
            let socket = lock(&self.parts.context.listeners).get(&name).map(std::net::TcpListener::try_clone);
            let answered = match socket {
                Some(Ok(socket)) => listener::answers(&socket, ANSWER_MAX).await,
                Some(Err(error)) => Err(error),
                None => continue,
            };
            let why = match answered {
                Ok(true) => continue,
                Ok(false) => format!("nobody accepted a connection within {} s", ANSWER_MAX.as_secs()),
                Err(error) => error.to_string(),
            };
            let mut ending = Ending::now("probation", format!("the listener {name} at {address} is dead: {why}"));
            ending.component = owner.map(|component| component.name.clone());
            return Err(ending);
        }
        Ok(())
    }

    /// Makes the release on trial the good one.
    async fn commit(self: Arc<Self>, attempt: Attempt) {
        let manager = Arc::clone(&self);
        let committed = attempt.clone();
        let work = move || {
            let mut journal = manager.journal();
            journal.attempt = Some(committed.clone());
            let healthy = journal.healthy(&Ending::now("committed", String::new()));
            match healthy {
                Ok(journal) => manager.write(journal).and_then(|()| manager.record_finished()),
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "cannot commit the release");
                    Ok(())
                }
            }
        };
        let result = tokio::task::spawn_blocking(work).await;
        if let Ok(Err(error)) = &result {
            // Without a journal entry the release stays on trial: the next start goes back, which is safe.
            tracing::error!(error = %Chain(error), "cannot journal the commit");
            return;
        }
        for name in lock(&self.parts.context.listeners).close_aside() {
            self.parts.context.registry.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
        }
        let manager = Arc::clone(&self);
        let pruned = tokio::task::spawn_blocking(move || manager.prune()).await;
        if let Err(error) = pruned {
            tracing::warn!(%error, "cannot remove old releases");
        }
        *lock(&self.view) = None;
        let text = format!("release {} is good", attempt.to);
        tracing::info!(update.id = attempt.id, "{text}");
        self.publish_step(&attempt, "committed", &text, None);
        let registry = &self.parts.context.registry;
        registry.events.publish("release", json!({ "version": attempt.to, "state": "good" }));
        registry.tickets.resolve(&attempt.id, "done", None);
        registry.save();
    }
}

/// Returns whether a component is as it should be in the end.
fn is_well(view: &View) -> bool {
    match view.state {
        State::Stopped => view.wanted, // it has done its work
        State::Starting | State::Stopping | State::Backoff | State::Failed => false,
        State::Running => match &view.health {
            crate::component::Health::None | crate::component::Health::Healthy => true,
            crate::component::Health::Unknown
            | crate::component::Health::Doubtful(_)
            | crate::component::Health::Unhealthy(_) => false,
        },
    }
}
