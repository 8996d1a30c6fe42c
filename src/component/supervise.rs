//! The task that owns a component's processes: the current one, and those on their way out.
//!
//! It starts and stops when it is asked to. Between that it notices when the process ends by itself, falls silent, says that it
//! hangs, or becomes unhealthy, and starts it again as the restart policy says, or gives up and says so.

mod watchdog;

use std::sync::Arc;
use std::time::Instant;

use refit_base::{Cause, Chain, lock};
use refit_bus::Failure;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::command::{Action, Command};
use super::context::RunContext;
use super::health;
use super::instance::{Instance, Lost, Stopped, end_of};
use super::ready::wait_ready;
use super::reload;
use super::restarts::{Next, Restarts};
use super::view::{Announced, State, View};
use crate::config::{Component, Handover, RestartPolicy};

/// What is said of a process that hangs although nothing watches it.
pub(super) const HUNG: &str = "did not read what it was asked on the bus";

/// Processes on their way out, each with the task that sees to it that it goes.
#[derive(Default)]
struct Outgoing {
    tasks: JoinSet<Instance>,
    /// Ends their time at once.
    hurry: CancellationToken,
}

/// The task that owns the processes of one component.
pub(super) struct Actor {
    component: Component,
    fingerprint: String,
    context: Arc<RunContext>,
    current: Option<Instance>,
    /// The process before the current one, which serves beside it until overlaps may end.
    predecessor: Option<Instance>,
    overlap_ends: watch::Receiver<bool>,
    outgoing: Outgoing,
    /// Whether the component is to run.
    wanted: bool,
    /// Whether an operator had stopped it under the image before: then the first start of the site leaves it down.
    stays_down: bool,
    restart_at: Option<Instant>,
    restarts: Restarts,
    view: watch::Sender<View>,
    health: Option<(watch::Receiver<health::State>, JoinSet<()>)>,
    newest: u32,
    /// Since when the current process has to give signs of life.
    watched_since: Instant,
    /// Whether its time was over at the last look: it is looked at twice.
    suspect: bool,
    /// When what the current process says was last recorded.
    recorded_at: Option<Instant>,
    /// When more of it is recorded.
    news_at: Option<Instant>,
    /// Why the current process is being ended although it is wanted, and until when it may end by itself.
    doomed: Option<(String, Instant)>,
}

enum Event {
    Command(Option<Command>),
    Ended(String),
    Gone(Option<Box<Instance>>),
    PredecessorEnded(String),
    OverlapEnds,
    Restart,
    Health(health::State),
    Said,
    News,
    Silent,
    Hung,
    Overdue,
}

impl Actor {
    /// Returns the owner of `current`, which was started from `component` or its predecessor.
    pub(super) fn new(
        component: Component,
        fingerprint: String,
        context: Arc<RunContext>,
        current: Option<Instance>,
        view: watch::Sender<View>,
        newest: u32,
    ) -> Self {
        let overlap_ends = context.overlap_ends.subscribe();
        Self {
            stays_down: context.registry.is_stopped(&component.name),
            overlap_ends,
            component,
            fingerprint,
            context,
            current,
            predecessor: None,
            outgoing: Outgoing::default(),
            wanted: false,
            restart_at: None,
            restarts: Restarts::default(),
            view,
            health: None,
            newest,
            watched_since: Instant::now(),
            suspect: false,
            recorded_at: None,
            news_at: None,
            doomed: None,
        }
    }

    /// Does what is asked and notices what happens, until nobody can ask any more. `outgoing` go as they were told to by the image
    /// before, and of `lost` nothing stays.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, outgoing: Vec<Instance>, lost: Vec<Lost>) {
        for instance in outgoing {
            if let Some(reason) = instance.carried.ending.as_ref().and_then(|ending| ending.reason.as_ref()) {
                let name = &self.component.name;
                tracing::warn!(component.name = name, process.pid = instance.pid(), reason, "still to be ended");
            }
            self.see_out(instance);
        }
        for lost in lost {
            lost.forget(&self.context).await;
        }
        let is_going = self.current.is_none() && !self.outgoing.tasks.is_empty();
        self.show(if is_going { State::Stopping } else { State::Stopped });
        loop {
            let event = self.next(&mut commands).await;
            match event {
                Event::Command(None) => return,
                Event::Command(Some(command)) => self.execute(command).await,
                Event::Ended(how) => self.on_end(how).await,
                Event::Gone(instance) => {
                    if let Some(mut instance) = instance {
                        self.forget(&mut instance);
                    }
                    let state = self.view.borrow().state;
                    if state == State::Stopping && self.outgoing.tasks.is_empty() {
                        self.show(State::Stopped); // nobody has wanted it meanwhile
                    }
                }
                Event::PredecessorEnded(how) => self.on_predecessors_end(&how).await,
                Event::OverlapEnds => self.end_overlap(),
                Event::Restart => {
                    if let Some(command) = self.restart(&mut commands).await {
                        self.execute(command).await;
                    }
                }
                Event::Health(state) => self.on_health(state),
                Event::Said => self.on_said(),
                Event::News => self.take_news(),
                Event::Silent => self.on_silence(),
                Event::Hung => self.give_up(HUNG.to_owned()),
                Event::Overdue => self.on_overdue(),
            }
        }
    }

    async fn execute(&mut self, Command { action, reply }: Command) {
        let result = match action {
            Action::Start { alone: false, cancelled } if std::mem::take(&mut self.stays_down) => {
                tracing::info!(component.name = self.component.name, "component left down, as an operator wanted it");
                self.leave_down(&cancelled).await;
                Ok(())
            }
            Action::Start { cancelled, .. } => self.start(&cancelled).await,
            Action::Stop { keep_running: true, .. } => {
                self.hand_on();
                Ok(())
            }
            Action::Stop { keep_running: false, stays_down, hurry } => {
                if stays_down {
                    self.context.registry.set_stopped(&self.component.name, true);
                }
                self.stop(&hurry).await
            }
            Action::LeaveDown => {
                self.want_no_more();
                self.leave_down(&CancellationToken::new()).await;
                Ok(())
            }
            Action::Reload => self.reload(),
            Action::Retry => {
                self.retry();
                Ok(())
            }
        };
        drop(reply.send(result)); // whoever asked may have given up
    }

    /// Waits for the next thing to happen. Cancel-safe: every branch only waits, or takes from a queue.
    async fn next(&mut self, commands: &mut mpsc::Receiver<Command>) -> Event {
        let (restart_at, silent_at, news_at) = (self.restart_at, self.silent_at(), self.news_at);
        let overdue_at = self.doomed.as_ref().map(|(_, at)| *at);
        let (name, context) = (&self.component.name, &self.context);
        let current = self.current.as_mut();
        let watched = async {
            match current {
                Some(Instance { ended, said, carried, .. }) => {
                    tokio::select! {
                        how = end_of(ended) => Event::Ended(how),
                        Ok(()) = said.changed() => Event::Said,
                        () = context.registry.until_hung(name, carried.generation), if overdue_at.is_none() => Event::Hung,
                    }
                }
                None => std::future::pending().await,
            }
        };
        let health = async {
            match &mut self.health {
                Some((state, _)) => match state.changed().await {
                    Ok(()) => state.borrow_and_update().clone(),
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        let predecessor = async {
            match &self.predecessor {
                Some(predecessor) => tokio::select! {
                    how = predecessor.wait() => Event::PredecessorEnded(how),
                    Ok(_) = self.overlap_ends.wait_for(|ends| *ends) => Event::OverlapEnds,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = watched => event,
            command = commands.recv() => Event::Command(command),
            event = predecessor => event,
            Some(gone) = self.outgoing.tasks.join_next() => Event::Gone(gone.ok().map(Box::new)),
            () = until(restart_at) => Event::Restart,
            () = until(news_at) => Event::News,
            () = until(silent_at) => Event::Silent,
            () = until(overdue_at) => Event::Overdue,
            state = health => Event::Health(state),
        }
    }

    /// Leaves the component down that is not wanted, and sees to it that what runs of it ends.
    async fn leave_down(&mut self, cancelled: &CancellationToken) {
        self.show(State::Stopping);
        self.end_overlap();
        if let Some(instance) = self.current.take() {
            self.see_out(instance); // written down, but not told yet
        }
        self.await_outgoing(cancelled).await;
        self.show(State::Stopped);
    }

    async fn start(&mut self, cancelled: &CancellationToken) -> Result<(), Failure> {
        self.stays_down = false;
        self.context.registry.set_stopped(&self.component.name, false);
        self.wanted = true;
        self.restart_at = None;
        if let Some(instance) = &self.current
            && instance.ended.borrow().is_none()
            && (instance.carried.fingerprint == self.fingerprint || self.component.handover == Handover::Keep)
        {
            if instance.carried.ready {
                tracing::info!(component.name = self.component.name, process.pid = instance.pid(), "component kept");
                self.serve();
                return Ok(());
            }
            // It was started by an image that ended before it was ready.
            self.show(State::Starting);
            // Cancel-safe: both only wait.
            let waited = tokio::select! {
                waited = wait_ready(instance, &self.component, &self.context) => waited,
                () = cancelled.cancelled() => Err(Failure::new("the start was cancelled")),
            };
            return self.settle(waited).await;
        }
        if self.waits_for_a_listener() {
            return Ok(());
        }
        self.show(State::Starting);
        if self.component.handover != Handover::Overlap
            && let Some(old) = self.current.take()
        {
            self.doomed = None;
            self.end(old, cancelled).await;
        }
        let result = self.bring_up(cancelled).await;
        if let Err(failure) = &result {
            self.wanted = false;
            self.fail(failure);
        }
        result
    }

    /// Ends a process that did not become ready, or serves.
    async fn settle(&mut self, waited: Result<(), Failure>) -> Result<(), Failure> {
        match waited {
            Ok(()) => {
                self.serve();
                Ok(())
            }
            Err(mut failure) => {
                if let Some(instance) = self.current.take() {
                    let stopped = self.end(instance, &cancelled()).await;
                    failure.reason.push_str(&left_behind(stopped.left));
                }
                self.fail(&failure);
                Err(failure)
            }
        }
    }

    /// Starts a process and waits until it is ready; then the one before is seen out, as soon as overlaps may end.
    async fn bring_up(&mut self, cancelled: &CancellationToken) -> Result<(), Failure> {
        if self.component.handover != Handover::Overlap {
            self.await_outgoing(cancelled).await; // two of them at once may be one too many
        }
        self.newest += 1;
        let restarts = self.view.borrow().restarts;
        let instance = Instance::start(
            &self.component,
            self.newest,
            &self.fingerprint,
            restarts,
            self.current.is_some() || self.predecessor.is_some() || !self.outgoing.tasks.is_empty(),
            &self.context,
        )
        .await?;
        tracing::info!(
            component.name = self.component.name,
            process.pid = instance.pid(),
            release.version = %self.context.version,
            "component started"
        );
        // Cancel-safe: both only wait.
        let waited = tokio::select! {
            waited = wait_ready(&instance, &self.component, &self.context) => waited,
            () = cancelled.cancelled() => Err(Failure::new("the start was cancelled")),
        };
        if let Err(mut failure) = waited {
            let ended_itself = instance.ended.borrow().is_some();
            if !ended_itself && self.current.is_some() {
                self.see_out(instance); // beside one that serves it may have clients by now
                return Err(failure);
            }
            let stopped = self.end(instance, &self::cancelled()).await;
            if ended_itself {
                failure.reason.push_str(&left_behind(stopped.left));
            }
            return Err(failure);
        }
        self.doomed = None;
        if let Some(old) = self.current.replace(instance) {
            if self.predecessor.is_none() {
                self.predecessor = Some(old);
            } else {
                self.see_out(old); // the first one is the one that has proved good
            }
            if *self.overlap_ends.borrow() {
                self.end_overlap();
            }
        }
        self.serve();
        Ok(())
    }

    /// Records that the current process serves, and begins to judge its health.
    fn serve(&mut self) {
        let Some(instance) = &mut self.current else { return };
        instance.carried.ready = true;
        self.context.restore_queues(&self.component);
        instance.record(&self.context);
        self.watched_since = Instant::now();
        self.suspect = false;
        let probed = health::Probed::new(&self.component, &instance.carried, &self.context);
        self.health = self.component.health.clone().map(|health| {
            let (sender, state) = watch::channel(health::State::Unknown);
            let mut tasks = JoinSet::new();
            tasks.spawn(health::watch(health, sender, probed));
            (state, tasks)
        });
        let health = if self.health.is_some() { health::State::Unknown } else { health::State::None };
        self.view.send_modify(|view| {
            view.health = health;
            view.reason = None;
            view.cause = Cause::Release;
            view.output.clear();
        });
        self.show(State::Running);
    }

    /// Asks a process to end and has a task see to it, while the component goes on with another.
    fn see_out(&mut self, mut instance: Instance) {
        self.context.restore_queues(&self.component);
        let limit = instance.time_left(self.component.stop_timeout);
        instance.tell_to_end(limit, &self.context);
        let hurry = self.outgoing.hurry.clone();
        let name = self.component.name.clone();
        let context = Arc::clone(&self.context);
        self.outgoing.tasks.spawn(async move {
            let Stopped { how, killed, .. } = instance.see_end(limit, &hurry, &context).await;
            if killed {
                tracing::warn!(component.name = name, instance.id = instance.id(), how, "an old process was killed");
            }
            instance
        });
    }

    /// Asks the process before the current one to end.
    fn end_overlap(&mut self) {
        if let Some(old) = self.predecessor.take() {
            self.see_out(old);
        }
    }

    /// Removes what is kept of the process before the current one, which has ended before it was told to.
    async fn on_predecessors_end(&mut self, how: &str) {
        let Some(mut old) = self.predecessor.take() else { return };
        tracing::warn!(
            component.name = self.component.name,
            instance.id = old.id(),
            how,
            "an old process ended by itself"
        );
        old.end_rest().await;
        self.forget(&mut old);
    }

    /// Waits until all processes on their way out are gone; `hurry` ends their time.
    async fn await_outgoing(&mut self, hurry: &CancellationToken) {
        while !self.outgoing.tasks.is_empty() {
            // Cancel-safe: a join that is not finished has taken nothing.
            let gone = tokio::select! {
                gone = self.outgoing.tasks.join_next() => gone,
                () = hurry.cancelled(), if !self.outgoing.hurry.is_cancelled() => {
                    self.outgoing.hurry.cancel();
                    continue;
                }
            };
            if let Some(Ok(mut instance)) = gone {
                self.forget(&mut instance);
            }
        }
        self.outgoing.hurry = CancellationToken::new();
    }

    /// Ends a process and all that it started, and forgets it.
    async fn end(&self, mut instance: Instance, hurry: &CancellationToken) -> Stopped {
        // From now on connections wait for the next process.
        self.context.restore_queues(&self.component);
        let over = hurry.child_token();
        let generation = instance.carried.generation;
        let stopped = {
            let stop = instance.stop(self.component.stop_timeout, &over, &self.context);
            tokio::pin!(stop);
            // Cancel-safe: the stop is polled on; the other only waits.
            tokio::select! {
                stopped = &mut stop => stopped,
                () = self.context.registry.until_hung(&self.component.name, generation) => {
                    over.cancel(); // it has had its time
                    stop.await
                }
            }
        };
        self.forget(&mut instance);
        if stopped.left > 0 {
            tracing::info!(component.name = self.component.name, left = stopped.left, "what it had started was ended");
        }
        stopped
    }

    /// Removes what is kept of a process that has ended. What it has done to its listeners ends with it.
    fn forget(&self, instance: &mut Instance) {
        instance.forget(&self.context);
        self.context.restore_queues(&self.component);
    }

    /// Wants it no more.
    fn want_no_more(&mut self) {
        self.wanted = false;
        self.restart_at = None;
        self.health = None;
        self.doomed = None;
    }

    async fn stop(&mut self, hurry: &CancellationToken) -> Result<(), Failure> {
        self.want_no_more();
        self.show(State::Stopping);
        let mut result = Ok(());
        let (overlaps, over) = (self.predecessor.is_some(), cancelled());
        self.end_overlap();
        if let Some(instance) = self.current.take() {
            let asked_in_hurry = hurry.is_cancelled();
            let (signal, generation) = (instance.carried.stop_signal.name(), instance.carried.generation);
            let Stopped { how, killed, after, .. } = self.end(instance, hurry).await;
            tracing::info!(component.name = self.component.name, how, "component stopped");
            if killed && !asked_in_hurry {
                let seconds = after.as_secs_f32();
                let text = if self.context.registry.is_hung(&self.component.name, generation) {
                    format!("{HUNG}, and was killed")
                } else {
                    format!("did not end within {seconds:.1} s of being asked to by {signal}, and was killed")
                };
                result = Err(Failure::new(text));
            }
        }
        // One that was told before has had its time.
        self.await_outgoing(if overlaps { hurry } else { &over }).await;
        self.view.send_modify(|view| {
            view.reason = result.as_ref().err().map(ToString::to_string);
            view.health = if self.component.health.is_some() { health::State::Unknown } else { health::State::None };
        });
        self.show(State::Stopped);
        result
    }

    /// Tells the process to read its settings again.
    fn reload(&self) -> Result<(), Failure> {
        let (Some(instance), Some(signal)) = (&self.current, self.component.spawn.reload_signal) else {
            return Err(reload::gone());
        };
        if !instance.carried.ready || instance.ended.borrow().is_some() {
            return Err(reload::gone());
        }
        tracing::info!(component.name = self.component.name, ?signal, "component told to reload");
        instance.reload(signal);
        Ok(())
    }

    /// Leaves the processes to the next image.
    fn hand_on(&mut self) {
        self.want_no_more();
        // Where overlaps may not end yet, the release has not proved good: the next image goes on with the one that has.
        if let Some(old) = self.predecessor.take()
            && let Some(new) = self.current.replace(old)
        {
            self.see_out(new);
        }
        if let Some(instance) = &mut self.current {
            instance.record(&self.context);
        }
    }

    async fn on_end(&mut self, how: String) {
        let Some(mut instance) = self.current.take() else { return };
        let doomed = self.doomed.take().map(|(why, _)| why);
        let left = instance.end_rest().await;
        let text = match (&doomed, instance.said.borrow().announced) {
            (Some(why), _) => format!("{why}, and {how}"),
            (None, Some(Announced::Stopping)) => format!("{how}, as it had announced, without having been asked to"),
            (None, Some(Announced::Reloading) | None) => format!("{how}, without having been asked to"),
        };
        let mut failure = instance.failure(text, &self.context).await;
        failure.reason.push_str(&left_behind(left));
        self.forget(&mut instance);
        self.health = None;
        if !self.wanted {
            self.show(State::Stopped);
            return;
        }
        tracing::warn!(component.name = self.component.name, reason = failure.reason, "component ended by itself");
        // One that goes on in the background has not done its work: it got away, and was ended.
        let clean = how == "ended with status 0" && left == 0 && doomed.is_none();
        // One that is never started again and ends well has done its work.
        let done = clean && self.component.restart.policy == RestartPolicy::No;
        self.view.send_modify(|view| {
            view.unexpected_exits += u32::from(!done);
            view.note_failure(&failure);
        });
        let starts_again = match self.component.restart.policy {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure => !clean,
            RestartPolicy::Always => true,
        };
        if starts_again {
            self.pause();
        } else if clean {
            self.show(State::Stopped);
        } else {
            self.fail(&failure);
        }
    }

    /// Plans the next start after one that failed, unless somebody has asked for something else meanwhile.
    fn retry(&mut self) {
        if self.view.borrow().state != State::Failed || self.component.restart.policy == RestartPolicy::No {
            return;
        }
        self.wanted = true;
        self.pause();
    }

    /// Plans the next start, or gives up, as the restart policy says.
    fn pause(&mut self) {
        let (output, cause) = (self.view.borrow().output.clone(), self.view.borrow().cause);
        match self.restarts.next(&self.component.restart, cause, Instant::now()) {
            Next::At(at) => {
                self.restart_at = Some(at);
                self.show(State::Backoff);
            }
            Next::GiveUp(ends) => {
                let reason = self.view.borrow().reason.clone().unwrap_or_default();
                let (_, within) = self.component.restart.limit;
                let text = format!("{reason}; ended {ends} times within {} s, not started again", within.as_secs());
                self.fail(&Failure { output, cause, ..Failure::new(text) });
            }
        }
    }

    /// Starts it again. Returns what it was told meanwhile: a stop does not wait until the start has failed.
    async fn restart(&mut self, commands: &mut mpsc::Receiver<Command>) -> Option<Command> {
        self.restart_at = None;
        self.view.send_modify(|view| view.restarts += 1);
        self.show(State::Starting);
        let cancelled = CancellationToken::new();
        let (mut next, mut open) = (None, true);
        let result = {
            let mut work = Box::pin(self.bring_up(&cancelled));
            loop {
                // Cancel-safe: the work is polled on, a command is taken and kept.
                tokio::select! {
                    result = &mut work => break result,
                    command = commands.recv(), if open && next.is_none() => {
                        open = command.is_some();
                        if command.as_ref().is_none_or(|command| matches!(command.action, Action::Stop { .. } | Action::LeaveDown)) {
                            cancelled.cancel();
                        }
                        next = command;
                    }
                }
            }
        };
        if let Err(failure) = result
            && !cancelled.is_cancelled()
        {
            self.view.send_modify(|view| {
                view.unexpected_exits += 1;
                view.note_failure(&failure);
            });
            self.pause();
        }
        next
    }

    /// Returns whether a listener of the component cannot be had, which it then shows: the image that gets it starts the component.
    fn waits_for_a_listener(&self) -> bool {
        let why =
            lock(&self.context.listeners).why_missing(&self.component.listeners).map(|why| Chain(why).to_string());
        let Some(why) = why else { return false };
        let failure = Failure::new(format!("{why}; it is tried again")).with_cause(Cause::Machine);
        self.view.send_modify(|view| view.note_failure(&failure));
        self.show(State::Backoff);
        true
    }

    fn fail(&mut self, failure: &Failure) {
        self.view.send_modify(|view| view.note_failure(failure));
        self.show(State::Failed);
    }

    /// Shows the state with what is known of the process.
    fn show(&self, state: State) {
        let instance = self.current.as_ref();
        self.view.send_modify(|view| {
            view.state = state;
            view.wanted = self.wanted;
            Instance::show(instance, view);
        });
    }
}

/// Returns what there is to say when a process ended and left others behind.
fn left_behind(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => "; it left 1 process behind, which was ended: a component stays in the foreground".to_owned(),
        _ => format!("; it left {count} processes behind, which were ended: a component stays in the foreground"),
    }
}

/// Returns a token that is cancelled already: no time is left.
fn cancelled() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
