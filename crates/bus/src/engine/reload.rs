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
use crate::log::Level;
use crate::phase::Phase;
use crate::publication::{Answer, Outcome, answer};
use crate::registry::{Entry, RELOAD, Waves};
use crate::request::Progress;
use crate::shared::BusEvent;
use crate::state::Goal;

/// How far a reload came.
struct Reached {
    asked: Vec<Asked>,
    /// Why it is not in force everywhere.
    reason: Option<String>,
    level: Level,
}

impl Engine {
    /// Has everybody prepare a new generation; then all commit, or all that prepared abort. The state stays `Running`.
    pub(super) async fn reload(&mut self) {
        let reloads = self.shared.take_reloads();
        self.generation += 1;
        let generation = self.generation;
        let Reached { asked, reason, level } = self.reach(generation).await;
        let text = match &reason {
            None => format!("reload: generation {generation} is in force"),
            Some(reason) => format!("reload: {reason}"),
        };
        for line in text.lines() {
            self.shared.say(level, line.to_owned());
        }
        let event = BusEvent::Reloaded { generation, reason: reason.clone(), asked: asked.clone() };
        self.shared.tell(event).await;
        reloads.resolve(&reason.map_or(Progress::Done, Progress::Failed), &asked);
    }

    async fn reach(&mut self, generation: u64) -> Reached {
        let info = CallInfo { generation, ..told(&self.shared, RELOAD.into()) };
        let (waves, mut asked) = without_exempt(&self.shared.registry.snapshot(RELOAD).waves);
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
            let reason = refused.map_or_else(
                || "cancelled: the site does not run any more".to_owned(),
                |why| match why.strip_prefix('\n') {
                    Some(lines) => format!("refused by several; nothing has changed:\n{lines}"),
                    None => format!("refused by {why}; nothing has changed"),
                },
            );
            return Reached { asked, reason: Some(reason), level: Level::Error };
        }
        let committed = self.finish(Phase::Commit, &ready, &info, time).await;
        self.record(&committed, "commit a reload");
        take(&mut asked, Phase::Commit, &committed);
        let failed = failures(&asked).map(|why| {
            let space = if why.starts_with('\n') { "" } else { " " };
            format!("generation {generation} is in force except for{space}{why}")
        });
        match (failed, nobody(&asked)) {
            (Some(reason), _) => Reached { asked, reason: Some(reason), level: Level::Error },
            (None, Some(reason)) => Reached { asked, reason: Some(reason), level: Level::Warning },
            (None, None) => Reached { asked, reason: None, level: Level::Info },
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

    fn phase(&self, phase: Phase, info: &CallInfo, time: Time, cancelled: Option<CancellationToken>) -> Transition {
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

/// Returns why a listener has no part in a reload. One that cannot say is asked.
fn exempt(entry: &Entry) -> Option<String> {
    let exempt = std::panic::AssertUnwindSafe(|| entry.listener.exempt());
    std::panic::catch_unwind(exempt).unwrap_or_default()
}

/// Returns what each answered.
fn answers(mut ends: Vec<End>) -> Vec<Answer> {
    ends.sort_by_key(|end| end.place);
    ends.into_iter().map(|end| answer(&end.entry, end.outcome, end.elapsed)).collect()
}

/// Puts the answers of a phase to those who gave them.
fn take(asked: &mut [Asked], phase: Phase, answers: &[Answer]) {
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
                Phase::Commit | Phase::Abort if !failure.lost => Reply::Failed,
                Phase::Prepare | Phase::Commit | Phase::Abort => Reply::Gone,
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
