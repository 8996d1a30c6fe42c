//! A reload: everybody prepares, then all commit or all that prepared abort, and the ticket says who was asked.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::transition::{Time, Transition, told};
use crate::asked::{Asked, Reply, failures, nobody};
use crate::call::CallInfo;
use crate::calls::{End, Until};
use crate::confirm::ConfirmTerms;
use crate::log::Level;
use crate::phase::Phase;
use crate::publication::{Answer, Outcome, answer};
use crate::registry::{Entry, RELOAD, Waves};
use crate::request::Progress;
use crate::shared::BusEvent;
use crate::state::Goal;

/// Why a listener refuses a reload that has to be confirmed, and what to do.
const CANNOT_REVERT: &str = "it cannot revert, and the reload has to be confirmed: reload without that, or ask with `restores`, and put \
                             back yourself what it reads when you are told";

/// How far a reload came.
pub(super) struct Reached {
    pub(super) generation: u64,
    /// What the listeners were told.
    pub(super) info: CallInfo,
    pub(super) asked: Vec<Asked>,
    /// Why it is not in force everywhere.
    pub(super) reason: Option<String>,
    pub(super) level: Level,
    /// Where it is in force.
    pub(super) committed: Waves,
}

impl Engine {
    /// Has everybody prepare a new generation; then all commit, or all that prepared abort. The state stays `Running`.
    pub(super) async fn reload(&mut self) {
        let reloads = self.shared.take_reloads();
        let reached = self.reach(None).await;
        self.tell_reached(&reached).await;
        reloads.resolve(&reached.reason.map_or(Progress::Done, Progress::Failed), &reached.asked);
    }

    /// Tells everybody how far a reload came.
    pub(super) async fn tell_reached(&self, reached: &Reached) {
        let Reached { generation, asked, reason, level, .. } = reached;
        let text = match reason {
            None => format!("reload: generation {generation} is in force"),
            Some(reason) => format!("reload: {reason}"),
        };
        self.say_lines(*level, &text);
        let event = BusEvent::Reloaded { generation: *generation, reason: reason.clone(), asked: asked.clone() };
        self.shared.tell(event).await;
    }

    pub(super) fn say_lines(&self, level: Level, text: &str) {
        for line in text.lines() {
            self.shared.say(level, line.to_owned());
        }
    }

    /// Brings the next generation as far as it comes. One that has to be confirmed, on these `terms`, is refused by those who cannot
    /// revert, before anybody is called.
    pub(super) async fn reach(&mut self, terms: Option<ConfirmTerms>) -> Reached {
        self.generation += 1;
        let generation = self.generation;
        let info = CallInfo { generation, ..told(&self.shared, RELOAD.into()) };
        let (waves, mut asked) = without_exempt(&self.shared.registry.snapshot(RELOAD).waves);
        let reached = |asked, reason: Option<String>, level, committed| Reached {
            generation,
            info: info.clone(),
            asked,
            reason,
            level,
            committed,
        };
        if terms.is_some_and(|terms| !terms.restores) && refuse_who_cannot_revert(&waves, &mut asked) {
            let reason = failures(&asked).map(|who| refused_by(&who));
            return reached(asked, reason, Level::Error, Waves::new());
        }
        let time = Time::of(&self.shared);
        let (prepared, late) = self.prepare(&waves, &info, time).await;
        take(&mut asked, Phase::Prepare, &prepared);
        let refused = failures(&asked);
        let overtaken = self.shared.status().goal != Goal::Running;
        // Who prepared too late has refused, but has something to drop.
        let has_prepared = |entry: &&Arc<Entry>| is_ok(&prepared, &entry.name) || late.contains(&entry.name);
        let ready: Vec<Vec<Arc<Entry>>> =
            waves.iter().map(|wave| wave.iter().filter(has_prepared).cloned().collect()).collect();
        if refused.is_some() || overtaken {
            let back: Vec<_> = ready.into_iter().rev().collect();
            let aborted = self.finish(Phase::Abort, &back, &info, time).await;
            self.record(&aborted, "abort a reload");
            // Of one that was late, that is what counts.
            let agreed: Vec<Answer> = aborted.into_iter().filter(|answer| !late.contains(&answer.listener)).collect();
            take(&mut asked, Phase::Abort, &agreed);
            let overtaken = || "cancelled: the site does not run any more".to_owned();
            let reason = refused.map_or_else(overtaken, |who| refused_by(&who));
            return reached(asked, Some(reason), Level::Error, Waves::new());
        }
        let committed = self.finish(Phase::Commit, &ready, &info, time).await;
        self.record(&committed, "commit a reload");
        take(&mut asked, Phase::Commit, &committed);
        let failed = failures(&asked).map(|why| {
            let space = if why.starts_with('\n') { "" } else { " " };
            format!("generation {generation} is in force except for{space}{why}")
        });
        let nobody = nobody(&asked);
        let is_in_force = |entry: &Arc<Entry>| is_ok(&committed, &entry.name);
        let in_force = |wave: Vec<Arc<Entry>>| wave.into_iter().filter(is_in_force).collect();
        match (failed, nobody) {
            (Some(reason), _) => reached(asked, Some(reason), Level::Error, ready.into_iter().map(in_force).collect()),
            (None, Some(reason)) => reached(asked, Some(reason), Level::Warning, Waves::new()),
            (None, None) => reached(asked, None, Level::Info, ready.into_iter().map(in_force).collect()),
        }
    }

    /// Has `waves` prepare the new generation. A request that ends the running cancels what is not done. Returns what each
    /// answered, and who was done too late.
    async fn prepare(&mut self, waves: &Waves, info: &CallInfo, time: Time) -> (Vec<Answer>, HashSet<Arc<str>>) {
        let cancelled = CancellationToken::new();
        let mut transition = self.phase(Phase::Prepare, info, time, Some(cancelled.clone()));
        let mut ends: Vec<End> = Vec::new();
        let untils = waves.iter().map(|wave| Until::MayBegin(wave)).chain([Until::All]);
        for (number, until) in untils.enumerate() {
            while let Some(end) = self.next_while_wanted(&transition, until, &cancelled).await {
                ends.push(end);
            }
            if let Some(wave) = waves.get(number) {
                transition.begin(wave);
            }
        }
        transition.let_go();
        let late = ends.iter().filter(|end| end.late).map(|end| Arc::clone(&end.entry.name)).collect();
        (answers(ends), late)
    }

    /// Calls `waves` for the phase that ends a reload. Returns what each answered.
    async fn finish(&self, phase: Phase, waves: &Waves, info: &CallInfo, time: Time) -> Vec<Answer> {
        answers(self.phase(phase, info, time, None).run(waves, |_| {}).await)
    }

    pub(super) fn phase(
        &self,
        phase: Phase,
        info: &CallInfo,
        time: Time,
        cancelled: Option<CancellationToken>,
    ) -> Transition {
        let info = CallInfo { phase: Some(phase), ..info.clone() };
        Transition::new(&self.shared, info, time, self.shared.options.listener, cancelled)
    }

    /// Records what failed in a phase that has to succeed.
    fn record(&self, answers: &[Answer], phase: &str) {
        for answer in answers {
            if let Some(failure) = answer.outcome.failure() {
                self.shared.record(&answer.listener, Some(answer.priority), phase, failure);
            }
        }
    }
}

/// Returns `waves` without those who have no part in it, and what is known of everybody before anybody was asked.
fn without_exempt(waves: &Waves) -> (Waves, Vec<Asked>) {
    let mut asked = Vec::new();
    let mut part = |entry: &Arc<Entry>| {
        let exempt = exempt(entry);
        asked.push(Asked {
            listener: (*entry.name).to_owned(),
            component: entry.group.as_ref().map(|group| (**group).to_owned()),
            priority: entry.priority,
            only_checks: entry.only_checks,
            phase: Phase::Prepare,
            answer: Reply::Skipped,
            value: Value::Null,
            reason: exempt.clone(),
        });
        exempt.is_none()
    };
    let waves = waves.iter().map(|wave| wave.iter().filter(|entry| part(entry)).cloned().collect()).collect();
    (waves, asked)
}

/// Has those of `waves` refuse who take new settings and cannot revert. Returns whether there are any.
fn refuse_who_cannot_revert(waves: &Waves, asked: &mut [Asked]) -> bool {
    let is_unable = |entry: &&Arc<Entry>| !entry.reverts && !entry.only_checks;
    let unable: HashSet<&str> = waves.iter().flatten().filter(is_unable).map(|entry| &*entry.name).collect();
    for one in asked.iter_mut().filter(|one| !unable.is_empty() && one.reason.is_none()) {
        let refuses = unable.contains(&*one.listener);
        one.answer = if refuses { Reply::Refused } else { Reply::Skipped };
        one.reason = Some(if refuses { CANNOT_REVERT } else { "not asked: others cannot revert" }.to_owned());
    }
    !unable.is_empty()
}

/// Returns that a reload was refused, by whom and why.
fn refused_by(who: &str) -> String {
    match who.strip_prefix('\n') {
        Some(lines) => format!("refused by several; nothing has changed:\n{lines}"),
        None => format!("refused by {who}; nothing has changed"),
    }
}

/// Returns why a listener has no part in a reload. One that cannot say is asked.
fn exempt(entry: &Entry) -> Option<String> {
    let exempt = std::panic::AssertUnwindSafe(|| entry.listener.exempt());
    std::panic::catch_unwind(exempt).unwrap_or_default()
}

/// Returns what each answered.
pub(super) fn answers(mut ends: Vec<End>) -> Vec<Answer> {
    ends.sort_by_key(|end| end.place);
    ends.into_iter().map(|end| answer(&end.entry, end.outcome, end.elapsed)).collect()
}

/// Puts the answers of a phase to those who gave them.
pub(super) fn take(asked: &mut [Asked], phase: Phase, answers: &[Answer]) {
    for answer in answers {
        if let Some(one) = asked.iter_mut().find(|one| *one.listener == *answer.listener) {
            one.phase = phase;
            (one.answer, one.reason) = reply(phase, &answer.outcome);
            if let Outcome::Ok { value } = &answer.outcome {
                one.value.clone_from(value);
            }
        }
    }
}

/// Returns what an outcome of `phase` is as an answer, and why.
fn reply(phase: Phase, outcome: &Outcome) -> (Reply, Option<String>) {
    match outcome {
        Outcome::Ok { .. } => (Reply::Ok, None),
        Outcome::Failed { failure } if failure.late => (Reply::Timeout, Some(failure.reason.clone())),
        Outcome::Failed { failure } => {
            let reply = match phase {
                Phase::Prepare if !failure.lost => Reply::Refused,
                Phase::Commit | Phase::Abort | Phase::Revert if !failure.lost => Reply::Failed,
                Phase::Prepare | Phase::Commit | Phase::Abort | Phase::Revert => Reply::Gone,
            };
            (reply, Some(failure.reason.clone()))
        }
        Outcome::Timeout { reason } => (Reply::Timeout, Some(reason.clone())),
        Outcome::Skipped { .. } => {
            let reply = if phase == Phase::Prepare { Reply::Skipped } else { Reply::Gone };
            (reply, Some(format!("it was gone before it could {}", phase.name())))
        }
    }
}

fn is_ok(answers: &[Answer], name: &str) -> bool {
    answers.iter().any(|answer| *answer.listener == *name && answer.outcome.is_ok())
}
