//! A reload that has to be confirmed: it waits in force, and is reverted unless somebody confirms it in time.
//!
//! Those who committed are told to revert in the reverse order, within their limits, before anything else happens to the site: before a
//! stop, an exit and a replacement of the process image, too. What fails then is a fault.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Engine;
use super::reload::{Reached, take};
use super::transition::{Time, fault_of};
use crate::asked::{Asked, Reply, failures};
use crate::call::CallInfo;
use crate::calls::after;
use crate::confirm::{ConfirmStep, ConfirmTerms, Confirmation, Unconfirmed};
use crate::failure::Failure;
use crate::log::Level;
use crate::machine::{ConfirmState, SiteStatus};
use crate::phase::Phase;
use crate::registry::{Entry, RELOAD, Waves};
use crate::request::Progress;
use crate::shared::BusEvent;
use crate::state::{Goal, State};

/// A reload that is in force and may be taken back.
pub(super) struct Waiting {
    reload: Unconfirmed,
    /// Those who committed and can revert, in the order in which they committed.
    committed: Waves,
    asked: Vec<Asked>,
    info: CallInfo,
    within: Duration,
    /// When it is reverted.
    pub(super) until: Instant,
    /// Where whoever asked is told how far it is.
    told: Option<watch::Sender<Option<Confirmation>>>,
}

impl Engine {
    /// Reloads, and has what is in force wait to be confirmed. What fails to commit ends that at once.
    pub(super) async fn reload_provisionally(&mut self) {
        let Some(provisional) = self.shared.take_provisional() else { return };
        let ConfirmTerms { within, restores } = provisional.terms;
        let Reached { generation, info, asked, reason, level, committed } = self.reach(Some(provisional.terms)).await;
        let can_revert = |wave: Vec<Arc<Entry>>| wave.into_iter().filter(|entry| entry.reverts).collect();
        let is_nowhere = committed.iter().all(Vec::is_empty);
        let committed: Waves = committed.into_iter().map(can_revert).collect();
        let reload = Unconfirmed {
            request: provisional.number(),
            generation,
            origin: provisional.origin().clone(),
            since: refit_base::clock::stamp(),
            until: refit_base::clock::stamp_in(within),
            restores,
            listeners: committed.iter().flatten().map(|entry| (*entry.name).to_owned()).collect(),
        };
        let until = after(Instant::now(), within);
        let event = BusEvent::Reloaded { generation, reason: reason.clone(), asked: asked.clone() };
        let waiting =
            Waiting { reload: reload.clone(), committed, asked: asked.clone(), info, within, until, told: None };
        let Some(reason) = reason else {
            self.shared.begin_wait(reload.clone());
            let text = format!(
                "reload: generation {generation} is in force, and waits to be confirmed until {}",
                reload.until
            );
            self.shared.say(level, text);
            self.shared.tell(event).await;
            self.shared.tell(BusEvent::Provisional { reload: reload.clone(), step: ConfirmStep::Waits }).await;
            let told = provisional.resolve(&Progress::Done, &asked, Some(reload));
            self.waiting = Some(Waiting { told: Some(told), ..waiting });
            return;
        };
        self.say_lines(level, &format!("reload: {reason}"));
        self.shared.tell(event).await;
        let mut outcome = reason;
        if is_nowhere {
            self.shared.end_wait(|| {});
        } else {
            self.waiting = Some(waiting);
            let failed = self.revert("not everybody could commit it".to_owned()).await;
            let everywhere = failed.map_or_else(String::new, |failed| format!(", but for {}", failed.trim_start()));
            outcome.push_str(&format!("; where it was in force it is reverted{everywhere}"));
        }
        drop(provisional.resolve(&Progress::Failed(outcome), &asked, None));
    }

    /// Ends the wait if it is over: it was confirmed, its time has passed, or the site leaves `Running`, where `next` is its next state.
    /// Returns whether it has.
    pub(super) async fn end_wait(&mut self, status: SiteStatus, next: Option<State>) -> bool {
        let Some(waiting) = &self.waiting else { return false };
        if status.confirm == ConfirmState::Confirmed {
            self.confirmed().await;
            return true;
        }
        let why = match next {
            Some(_) => {
                let to = status.leaving.map_or("stop", crate::machine::RequestKind::name);
                format!("it was not confirmed before the {to} of the site")
            }
            None if Instant::now() >= waiting.until => {
                format!("it was not confirmed within {} s", waiting.within.as_secs_f32())
            }
            None => return false,
        };
        drop(self.revert(why).await); // it is on the log, among the faults and in the event
        true
    }

    /// Tells the owner of the bus, and then whoever asked, how far a reload is that has to be confirmed. An end is told when it is over
    /// for the bus, too.
    async fn tell_step(
        &self,
        reload: &Unconfirmed,
        step: ConfirmStep,
        told: Option<&watch::Sender<Option<Confirmation>>>,
    ) {
        self.shared.tell(BusEvent::Provisional { reload: reload.clone(), step: step.clone() }).await;
        let is_end = step.is_end();
        let tell = || {
            if let Some(told) = told {
                told.send_replace(Some(Confirmation { reload: reload.clone(), step }));
            }
        };
        if is_end { self.shared.end_wait(tell) } else { tell() }
    }

    async fn confirmed(&mut self) {
        let Some(Waiting { reload, told, .. }) = self.waiting.take() else { return };
        // Only who asked can have brought it here.
        let by = self.shared.confirmed_by().unwrap_or_else(|| reload.origin.clone());
        self.shared.say(Level::Info, format!("reload: {by} has confirmed generation {}", reload.generation));
        self.tell_step(&reload, ConfirmStep::Confirmed { by }, told.as_ref()).await;
    }

    /// Tells those who committed to revert, because of `why`. Returns who did not. Does nothing if somebody has confirmed just now.
    async fn revert(&mut self, why: String) -> Option<String> {
        if !self.shared.begin_revert() {
            return None;
        }
        let Waiting { reload, committed, mut asked, info, told, .. } = self.waiting.take()?;
        let number = reload.generation;
        self.shared.say(Level::Warning, format!("reload: generation {number} is being reverted: {why}"));
        self.tell_step(&reload, ConfirmStep::Reverting { why: why.clone() }, told.as_ref()).await;
        asked.retain(|one| reload.listeners.contains(&one.listener));
        self.call_back(&committed, &info, &mut asked).await;
        let failed = failures(&asked);
        let (level, text) = match &failed {
            None => (Level::Warning, format!("reload: generation {number} is reverted: {why}")),
            Some(who) => {
                let space = if who.starts_with('\n') { "" } else { " " };
                (Level::Error, format!("reload: generation {number} is reverted ({why}) except for{space}{who}"))
            }
        };
        self.say_lines(level, &text);
        if reload.restores && self.shared.status().goal == Goal::Running {
            self.reload_what_was_restored().await;
        }
        let step = ConfirmStep::Reverted { why, failed: failed.clone(), asked };
        self.tell_step(&reload, step, told.as_ref()).await;
        failed
    }

    /// Calls `committed` for the phase `Revert`, last first; puts what each answered to `asked`. Who has come in the place of one that
    /// committed is told, too: what it began with is not confirmed.
    async fn call_back(&mut self, committed: &Waves, info: &CallInfo, asked: &mut [Asked]) {
        let time = match self.shared.status().goal {
            Goal::Exited => self.time_of_descent(),
            Goal::Idle | Goal::Running => Time::of(&self.shared),
        };
        let mut waves = Waves::new();
        for wave in committed.iter().rev() {
            let now = wave
                .iter()
                .rev()
                .map(|entry| self.shared.registry.find(RELOAD, &entry.name).unwrap_or_else(|| Arc::clone(entry)));
            let (able, unable): (Vec<_>, Vec<_>) = now.partition(|entry| entry.reverts);
            for entry in unable {
                let failure = Failure::new("another listener has its name, and cannot revert");
                if let Some(one) = asked.iter_mut().find(|one| *one.listener == *entry.name) {
                    (one.phase, one.answer, one.reason) = (Phase::Revert, Reply::Gone, Some(failure.reason.clone()));
                }
                self.shared.fault_of(&entry, "revert a reload", failure);
            }
            waves.push(able);
        }
        // Whoever wants the site to end in a hurry wants this to.
        let transition = self.phase(Phase::Revert, info, time, Some(self.shared.hurry.clone()));
        let ends = transition.run(&waves, |end| {
            if let Some(failure) = fault_of(end) {
                self.shared.fault_of(&end.entry, "revert a reload", failure);
            }
        });
        let answers = super::reload::answers(ends.await);
        take(asked, Phase::Revert, &answers);
    }

    /// Has everybody read what the asker has restored.
    async fn reload_what_was_restored(&mut self) {
        let reached = self.reach(None).await;
        self.tell_reached(&reached).await;
        if let Some(reason) = reached.reason {
            self.shared.fault("the bus", "reload what was restored", Failure::new(reason));
        }
    }
}
