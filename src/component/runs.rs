//! The task that owns the process of a component that runs and ends: once at each start of the site, or again and again.
//!
//! A run never overlaps another. What became of the last one is written down, so that a runtime that starts after a crash neither
//! repeats what was done nor forgets when the next run is due. A run that an earlier image has begun is gone on with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use refit_base::{Cause, clock};
use refit_bus::{self as bus, Failure};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::command::{Action, Command};
use super::context::RunContext;
use super::health;
use super::instance::{Instance, Lost, Stopped, end_of};
use super::reload;
use super::reports;
use super::restarts::{MACHINE_PAUSE_MAX, Next, Restarts};
use super::supervise::HUNG;
use super::view::{State, View};
use crate::carry::CarriedRun;
use crate::config::{Component, Kind, RestartPolicy};
use crate::wire::Run;

/// How a process ends that has done its work.
const ENDED_WELL: &str = "ended with status 0";

/// Who waits for the end of a run, and what says that nobody does any more.
struct Waiting {
    reply: oneshot::Sender<Result<(), Failure>>,
    cancelled: CancellationToken,
}

/// The task that owns the process of one component.
pub(super) struct Runner {
    component: Component,
    fingerprint: String,
    context: Arc<RunContext>,
    /// The run that goes on, and since when it counts.
    current: Option<(Instance, Instant)>,
    /// Whether runs are wanted.
    wanted: bool,
    /// Whether an operator had stopped it under the image before: then the first start of the site leaves it down.
    stays_down: bool,
    /// When the next run is due.
    next_at: Option<Instant>,
    restarts: Restarts,
    waiting: Vec<Waiting>,
    view: watch::Sender<View>,
    newest: u32,
}

enum Event {
    Command(Option<Command>),
    Ended(String),
    Overdue,
    Hung,
    Due,
    Cancelled,
}

impl Runner {
    /// Returns the owner of `current`, a run that an earlier image has begun.
    pub(super) fn new(
        component: Component,
        fingerprint: String,
        context: Arc<RunContext>,
        current: Option<Instance>,
        view: watch::Sender<View>,
        newest: u32,
    ) -> Self {
        Self {
            stays_down: context.registry.is_stopped(&component.name),
            component,
            fingerprint,
            context,
            current: current.map(|instance| (instance, Instant::now())),
            wanted: false,
            next_at: None,
            restarts: Restarts::default(),
            waiting: Vec::new(),
            view,
            newest,
        }
    }

    /// Does what is asked and notices what happens, until nobody can ask any more. `outgoing` go as they were told to by the image
    /// before, and of `lost` nothing stays but what became of them.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, outgoing: Vec<Instance>, lost: Vec<Lost>) {
        for mut instance in outgoing {
            self.show(State::Stopping);
            self.end(&mut instance, &CancellationToken::new()).await;
        }
        for lost in lost {
            if lost.fingerprint() == self.fingerprint && self.current.is_none() {
                self.note_lost(&lost).await;
            }
            lost.forget(&self.context).await;
        }
        self.show(State::Stopped);
        loop {
            match self.next(&mut commands).await {
                Event::Command(None) => return,
                Event::Command(Some(command)) => self.execute(command).await,
                Event::Ended(how) => self.on_end(how).await,
                Event::Overdue => {
                    let limit = self.component.start_timeout.as_secs_f32();
                    let why =
                        format!("did not end within {limit} s, and was ended; start_timeout is what a run may take");
                    self.end_run(why).await;
                }
                Event::Hung => self.end_run(format!("{HUNG}, and was ended")).await,
                Event::Due => self.begin_or_fail().await,
                Event::Cancelled => self.on_cancelled().await,
            }
        }
    }

    /// Waits for the next thing to happen. Cancel-safe: every branch only waits, or takes from a queue.
    async fn next(&mut self, commands: &mut mpsc::Receiver<Command>) -> Event {
        let (view, limit, next_at) = (&self.view, self.component.start_timeout, self.next_at);
        let context = &self.context;
        let current = self.current.as_ref();
        let watched = async {
            let Some((instance, begun)) = current else { return std::future::pending().await };
            let mut said = instance.said.clone();
            let overdue = reports::deadline(&instance.said, instance.since, *begun, limit);
            // What it asks for outlives this runtime.
            let recorded = instance.record_news(context);
            let hung = context.registry.until_hung(&instance.carried.component, instance.carried.generation);
            tokio::pin!(overdue, recorded, hung);
            loop {
                tokio::select! {
                    biased;
                    how = end_of(&instance.ended) => return Event::Ended(how),
                    () = &mut overdue => return Event::Overdue,
                    () = &mut hung => return Event::Hung,
                    never = &mut recorded => match never {},
                    Ok(()) = said.changed() => {
                        let (status, announced) = {
                            let said = said.borrow_and_update();
                            (said.status.clone(), said.announced)
                        };
                        view.send_modify(|view| (view.status, view.announced) = (status, announced));
                    }
                }
            }
        };
        let mut site = self.context.site.clone();
        let due = async {
            match next_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
            // Nothing begins while the site starts, stops or is replaced.
            if site.wait_for(|state| *state == bus::State::Running).await.is_err() {
                std::future::pending().await
            }
        };
        let cancelled = async {
            let all = self.waiting.iter().map(|waiting| Box::pin(waiting.cancelled.cancelled()));
            if all.len() == 0 {
                std::future::pending::<()>().await;
            }
            select_all(all).await;
        };
        tokio::select! {
            biased;
            event = watched => event,
            command = commands.recv() => Event::Command(command),
            () = cancelled => Event::Cancelled,
            () = due => Event::Due,
        }
    }

    async fn execute(&mut self, Command { action, reply }: Command) {
        let result = match action {
            Action::Start { alone: false, .. } if std::mem::take(&mut self.stays_down) => {
                tracing::info!(component.name = self.component.name, "component left down, as an operator wanted it");
                self.stop(&CancellationToken::new()).await
            }
            Action::Start { alone, cancelled } => return self.start(alone, Waiting { reply, cancelled }).await,
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
            Action::LeaveDown => self.stop(&CancellationToken::new()).await,
            Action::Reload => Err(reload::gone()),
            Action::Retry => {
                self.retry();
                Ok(())
            }
        };
        drop(reply.send(result)); // whoever asked may have given up
    }

    async fn start(&mut self, alone: bool, waiting: Waiting) {
        self.stays_down = false;
        self.context.registry.set_stopped(&self.component.name, false);
        self.wanted = true;
        // A run of another release, after the way back from it.
        if let Some((mut instance, _)) =
            self.current.take_if(|(instance, _)| instance.carried.fingerprint != self.fingerprint)
        {
            self.end(&mut instance, &waiting.cancelled).await;
        }
        match self.component.kind {
            Kind::Every(period) => {
                self.plan_first(alone, period);
                drop(waiting.reply.send(Ok(())));
            }
            Kind::Once | Kind::Service => self.start_once(waiting).await,
        }
    }

    /// Begins the run of this start of the site, unless it goes on or is over.
    async fn start_once(&mut self, waiting: Waiting) {
        if self.current.is_none() && self.is_done() {
            self.show(State::Done);
            drop(waiting.reply.send(Ok(())));
            return;
        }
        self.next_at = None;
        self.waiting.push(waiting);
        if self.current.is_some() {
            self.show(State::Starting);
        } else {
            self.begin_or_fail().await;
        }
    }

    /// Returns whether the run of this start of the site has ended well, maybe under a runtime that crashed since.
    fn is_done(&self) -> bool {
        self.own_run().is_some_and(|run| run.ended_at.is_some() && run.failure.is_none())
    }

    /// Returns the last run of this component as this release defines it.
    fn own_run(&self) -> Option<CarriedRun> {
        let run = self.context.registry.run(&self.component.name)?;
        (run.fingerprint == self.fingerprint && run.release == self.context.version).then_some(run)
    }

    /// Plans the first run after a start: at once, unless the last one of the same process was less than a period ago.
    fn plan_first(&mut self, alone: bool, period: Duration) {
        if self.current.is_some() || self.next_at.is_some() {
            return self.show_kind();
        }
        let last = self.context.registry.run(&self.component.name).filter(|run| run.fingerprint == self.fingerprint);
        let since = |run: &CarriedRun| Duration::from_nanos(clock::monotonic_ns().saturating_sub(run.begun_ns));
        let pause = last.as_ref().map_or(Duration::ZERO, |run| period.saturating_sub(since(run)));
        self.next_at = Some(Instant::now() + if alone { Duration::ZERO } else { pause });
        // What a run of another release found says nothing of this one.
        if let Some(run) = self.own_run().filter(|run| run.ended_at.is_some()) {
            self.judge(run.failure.map(Failure::new).map_or(Ok(()), Err));
        }
        self.show_kind();
    }

    /// Begins a run, or goes on as after one that failed.
    async fn begin_or_fail(&mut self) {
        self.next_at = None;
        if let Err(failure) = self.begin().await {
            let now = (clock::monotonic_ns(), clock::stamp());
            self.note(now, Some(failure.reason.clone()));
            self.finish(Err(failure), Instant::now());
        }
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        self.newest += 1;
        let restarts = self.view.borrow().restarts;
        let begun_ns = clock::monotonic_ns();
        let begun = Instant::now();
        let mut instance =
            Instance::start(&self.component, self.newest, &self.fingerprint, restarts, false, &self.context).await?;
        tracing::info!(component.name = self.component.name, process.pid = instance.pid(), "run begun");
        self.context.registry.set_run(
            &self.component.name,
            Some(CarriedRun {
                release: self.context.version.clone(),
                fingerprint: self.fingerprint.clone(),
                begun_ns,
                started_at: instance.carried.started_at.clone(),
                ended_at: None,
                failure: None,
            }),
        );
        instance.carried.ready = true; // it is the one that is asked what is asked of the component
        instance.record(&self.context);
        self.current = Some((instance, begun));
        self.show_kind();
        Ok(())
    }

    async fn on_end(&mut self, how: String) {
        let Some((mut instance, begun)) = self.current.take() else { return };
        let left = instance.end_rest().await;
        if left > 0 {
            tracing::warn!(component.name = self.component.name, left, "what a run had started was ended with it");
        }
        let result = if how == ENDED_WELL { Ok(()) } else { Err(instance.failure(how, &self.context).await) };
        self.conclude(&mut instance, begun, result);
    }

    /// Ends a run that takes too long, or hangs.
    async fn end_run(&mut self, text: String) {
        let Some((mut instance, begun)) = self.current.take() else { return };
        let at_once = CancellationToken::new();
        at_once.cancel();
        instance.stop(Duration::ZERO, &at_once, &self.context).await;
        let failure = instance.failure(text, &self.context).await;
        self.conclude(&mut instance, begun, Err(failure));
    }

    /// Ends the run that nobody waits for any more.
    async fn on_cancelled(&mut self) {
        if let Some((mut instance, _)) = self.current.take() {
            self.end(&mut instance, &CancellationToken::new()).await;
        }
        self.wanted = false;
        let failure = Failure::new("the start was cancelled");
        self.fail(&failure);
        self.answer(&Err(failure));
    }

    /// Writes down how a run ended, before what is kept of its process goes, and says what follows.
    fn conclude(&mut self, instance: &mut Instance, begun: Instant, result: Result<(), Failure>) {
        let started = (clock::monotonic_ns(), instance.carried.started_at.clone());
        self.note(started, result.as_ref().err().map(|failure| failure.reason.clone()));
        instance.forget(&self.context);
        self.finish(result, begun);
    }

    /// Writes down the end of the run that was `started`, in nanoseconds of the monotonic clock and as a time stamp, unless it is
    /// known better when.
    fn note(&self, started: (u64, String), failure: Option<String>) {
        let (begun_ns, started_at) = started;
        let known = self.context.registry.run(&self.component.name).filter(|run| run.started_at == started_at);
        self.context.registry.set_run(
            &self.component.name,
            Some(CarriedRun {
                release: self.context.version.clone(),
                fingerprint: self.fingerprint.clone(),
                begun_ns: known.map_or(begun_ns, |run| run.begun_ns),
                started_at,
                ended_at: Some(clock::stamp()),
                failure,
            }),
        );
    }

    /// Writes down how a run ended that an earlier image had begun, if the guard has seen it.
    async fn note_lost(&self, lost: &Lost) {
        let Some(how) = lost.how(&self.context).await else { return };
        tracing::info!(component.name = self.component.name, how, "a run ended while no runtime was there");
        let failure = (how != ENDED_WELL).then_some(how);
        self.note((clock::monotonic_ns(), lost.started_at().to_owned()), failure);
    }

    /// Goes on after a run that `begun` then and ended so.
    fn finish(&mut self, result: Result<(), Failure>, begun: Instant) {
        if let Err(failure) = &result {
            tracing::warn!(component.name = self.component.name, reason = failure.reason, "run failed");
        }
        let cause = result.as_ref().map_or_else(|failure| failure.cause, |()| Cause::Release);
        match self.component.kind {
            Kind::Every(period) => {
                self.next_at = self.wanted.then(|| {
                    let now = Instant::now();
                    let next = next_after(begun, period, now);
                    // What the machine did not allow is tried again soon.
                    if cause == Cause::Machine { next.min(now + MACHINE_PAUSE_MAX) } else { next }
                });
                self.judge(result);
                self.show_kind();
            }
            Kind::Once | Kind::Service => {
                match &result {
                    Ok(()) => {
                        tracing::info!(component.name = self.component.name, "component done");
                        self.view.send_modify(|view| {
                            view.reason = None;
                            view.cause = Cause::Release;
                            view.output.clear();
                        });
                        self.show_kind();
                    }
                    Err(failure) => {
                        self.fail(failure);
                        if self.waiting.is_empty() && self.wanted {
                            self.pause();
                        }
                    }
                }
                self.answer(&result);
            }
        }
    }

    /// Shows what the last run says of the health of the component.
    fn judge(&self, result: Result<(), Failure>) {
        self.view.send_modify(|view| {
            (view.health, view.output, view.cause) = match result {
                Ok(()) => (health::State::Healthy, Vec::new(), Cause::Release),
                Err(Failure { reason, output, cause: Cause::Machine, .. }) => {
                    (health::State::Doubtful(reason), output, Cause::Machine)
                }
                Err(Failure { reason, output, cause, .. }) => (health::State::Unhealthy(reason), output, cause),
            };
        });
    }

    fn answer(&mut self, result: &Result<(), Failure>) {
        for Waiting { reply, .. } in self.waiting.drain(..) {
            drop(reply.send(result.clone())); // whoever asked may have given up
        }
    }

    /// Plans another try of a start that failed, unless somebody has asked for something else meanwhile.
    fn retry(&mut self) {
        if self.view.borrow().state == State::Failed && self.component.restart.policy != RestartPolicy::No {
            self.wanted = true;
            self.pause();
        }
    }

    /// Plans another try, or gives up, as the restart policy says.
    fn pause(&mut self) {
        if self.component.restart.policy == RestartPolicy::No {
            return;
        }
        let cause = self.view.borrow().cause;
        match self.restarts.next(&self.component.restart, cause, Instant::now()) {
            Next::At(at) => {
                self.next_at = Some(at);
                self.view.send_modify(|view| view.restarts += 1);
                self.show(State::Backoff);
            }
            Next::GiveUp(count) => self.view.send_modify(|view| {
                let reason = view.reason.take().unwrap_or_default();
                view.reason = Some(format!("{reason}; failed {count} times, not started again"));
            }),
        }
    }

    async fn stop(&mut self, hurry: &CancellationToken) -> Result<(), Failure> {
        self.wanted = false;
        self.next_at = None;
        self.answer(&Err(Failure::new("was stopped")));
        let mut result = Ok(());
        if let Some((mut instance, _)) = self.current.take() {
            self.show(State::Stopping);
            let asked_in_hurry = hurry.is_cancelled();
            let signal = instance.carried.stop_signal.name();
            let Stopped { how, killed, after, .. } = self.end(&mut instance, hurry).await;
            tracing::info!(component.name = self.component.name, how, "run stopped");
            if killed && !asked_in_hurry {
                let seconds = after.as_secs_f32();
                let text = format!("did not end within {seconds:.1} s of being asked to by {signal}, and was killed");
                result = Err(Failure::new(text));
            }
        }
        self.forget_once();
        self.view.send_modify(|view| {
            view.reason = result.as_ref().err().map(ToString::to_string);
            view.health = health::State::None;
        });
        self.show(State::Stopped);
        result
    }

    /// Leaves a run that goes on to the next image.
    fn hand_on(&mut self) {
        self.wanted = false;
        self.next_at = None;
        self.forget_once();
        if let Some((instance, _)) = &mut self.current {
            instance.record(&self.context);
        }
    }

    /// Forgets that the run of this start of the site is over: the next start has one of its own.
    fn forget_once(&self) {
        if self.component.kind == Kind::Once {
            self.context.registry.set_run(&self.component.name, None);
        }
    }

    /// Ends a process and all that it started, and forgets it.
    async fn end(&self, instance: &mut Instance, hurry: &CancellationToken) -> Stopped {
        let limit = instance.time_left(self.component.stop_timeout);
        let stopped = instance.stop(limit, hurry, &self.context).await;
        instance.forget(&self.context);
        stopped
    }

    fn fail(&self, failure: &Failure) {
        self.view.send_modify(|view| view.note_failure(failure));
        self.show(State::Failed);
    }

    /// Shows what a component of this kind does that is wanted, or not.
    fn show_kind(&self) {
        self.show(match (self.wanted, self.component.kind, &self.current) {
            (false, _, None) => State::Stopped,
            (_, Kind::Every(_), Some(_)) => State::Running,
            (true, Kind::Every(_), None) => State::Waiting,
            (_, Kind::Once | Kind::Service, Some(_)) => State::Starting,
            (true, Kind::Once | Kind::Service, None) => State::Done,
        });
    }

    /// Shows the state with what is known of the process.
    fn show(&self, state: State) {
        let instance = self.current.as_ref().map(|(instance, _)| instance);
        let run = self.context.registry.run(&self.component.name);
        let next_at = self.next_at.map(|at| at.saturating_duration_since(Instant::now()));
        self.view.send_modify(|view| {
            view.state = state;
            view.wanted = self.wanted;
            Instance::show(instance, view);
            view.last_run =
                run.map(|CarriedRun { started_at, ended_at, failure, .. }| Run { started_at, ended_at, failure });
            view.next_run_at = next_at.map(clock::stamp_in);
        });
    }
}

/// Returns when the run after one that `begun` then is due: at a multiple of the period that has not passed, so that one which takes
/// longer than its period leaves a pause.
fn next_after(begun: Instant, period: Duration, now: Instant) -> Instant {
    let passed = now.saturating_duration_since(begun).as_nanos() / period.as_nanos().max(1);
    let periods = u32::try_from(passed).unwrap_or(u32::MAX).saturating_add(1);
    begun + period.saturating_mul(periods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_is_at_a_multiple_of_the_period() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        for (tenths, expected) in [(0, 1), (9, 1), (10, 2), (11, 2), (35, 4)] {
            let now = begun + second * tenths / 10;
            assert_eq!(next_after(begun, second, now), begun + second * expected, "{tenths}");
        }
    }
}
