//! A reload: everybody prepares, then all commit or all that prepared abort, and the ticket says who was asked.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Engine, Time};
use crate::asked::{Asked, Reply, failures, nobody};
use crate::call::Call;
use crate::context::Purpose;
use crate::log::Level;
use crate::phase::Phase;
use crate::publication::{Answer, Outcome, Round, answer, call_for, in_waves};
use crate::registry::{Entry, RELOAD};
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
            self.shared.log.write(level, line.to_owned());
        }
        self.shared.observe(&BusEvent::Reloaded { generation, reason: reason.clone(), asked: asked.clone() });
        reloads.resolve(&reason.map_or(Progress::Done, Progress::Failed), &asked);
    }

    async fn reach(&mut self, generation: u64) -> Reached {
        let mut template = self.template(RELOAD);
        template.generation = generation;
        template.phase = Some(Phase::Prepare);
        let waves = in_waves(&self.shared.registry.snapshot(RELOAD).entries);
        let (waves, mut asked) = without_exempt(waves);
        let time = self.time();
        let (prepared, late) = self.reload_phase(&waves, &template, time, true).await;
        take(&mut asked, Phase::Prepare, &prepared);
        let refused = failures(&asked);
        let overtaken = self.shared.status().goal != Goal::Running;
        // Who prepared too late has refused, but has something to drop.
        let has_prepared = |entry: &&Arc<Entry>| is_ok(&prepared, &entry.name) || late.contains(&entry.name);
        let ready: Vec<Vec<Arc<Entry>>> =
            waves.iter().map(|wave| wave.iter().filter(has_prepared).cloned().collect()).collect();
        template.cancelled = CancellationToken::new();
        if refused.is_some() || overtaken {
            template.phase = Some(Phase::Abort);
            let back: Vec<_> = ready.into_iter().rev().collect();
            let (aborted, _) = self.reload_phase(&back, &template, time, false).await;
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
        template.phase = Some(Phase::Commit);
        let (committed, _) = self.reload_phase(&ready, &template, time, false).await;
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

    /// Calls `waves` for one phase. With `may_end`, a request that ends the running cancels what is not done. Returns what each
    /// answered, and who was done too late.
    async fn reload_phase(
        &mut self,
        waves: &[Vec<Arc<Entry>>],
        template: &Call,
        time: Time,
        may_end: bool,
    ) -> (Vec<Answer>, HashSet<String>) {
        let (mut answers, mut late) = (Vec::new(), HashSet::new());
        for wave in waves {
            let mut round = Round::new(self.shared.options.grace);
            for (place, entry) in wave.iter().enumerate() {
                let limit = time.limit(entry.limit.unwrap_or(self.shared.options.listener));
                round.begin(place, Arc::clone(entry), call_for(template, limit), Purpose::Transition);
            }
            while !round.is_over() {
                // Cancel-safe: as in `start`.
                tokio::select! {
                    Some((place, outcome, elapsed)) = round.next() => {
                        if round.was_late(place) {
                            late.insert(wave[place].name.clone());
                        }
                        answers.push(answer(&wave[place], outcome, elapsed));
                    }
                    _ = self.changes.changed(), if may_end => {
                        if self.shared.status().goal != Goal::Running {
                            template.cancelled.cancel();
                        }
                    }
                }
            }
        }
        (answers, late)
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
fn without_exempt(waves: Vec<Vec<Arc<Entry>>>) -> (Vec<Vec<Arc<Entry>>>, Vec<Asked>) {
    let mut asked = Vec::new();
    let mut part = |entry: &Arc<Entry>| {
        let exempt = entry.listener.exempt();
        asked.push(Asked {
            listener: entry.name.clone(),
            component: entry.group.clone(),
            priority: entry.priority,
            only_checks: entry.only_checks,
            phase: Phase::Prepare,
            answer: Reply::Skipped,
            value: Value::Null,
            reason: exempt.clone(),
        });
        exempt.is_none()
    };
    let waves = waves.into_iter().map(|wave| wave.into_iter().filter(&mut part).collect()).collect();
    (waves, asked)
}

/// Puts the answers of a phase to those who gave them.
fn take(asked: &mut [Asked], phase: Phase, answers: &[Answer]) {
    for answer in answers {
        if let Some(one) = asked.iter_mut().find(|one| one.listener == answer.listener) {
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
    answers.iter().any(|answer| answer.listener == name && answer.outcome.is_ok())
}
