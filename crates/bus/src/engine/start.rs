//! The start: wave after wave, until everybody is up, or the site is wanted elsewhere.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::transition::{Time, Transition, told};
use super::{Engine, Started};
use crate::calls::{End, Until};
use crate::failure::Failure;
use crate::log::Level;
use crate::publication::Outcome;
use crate::registry::{Entry, START};
use crate::shared::Fault;
use crate::state::{Goal, State};

/// What became of a start so far.
#[derive(Default)]
struct Tally {
    /// The names, of listeners and components, on which nobody can count.
    failed: HashSet<String>,
    /// By wave and place.
    faults: Vec<(usize, usize, Fault)>,
    /// Who is up, by wave and place.
    up: Vec<(usize, usize, Started)>,
}

impl Engine {
    /// Starts wave after wave. Ends in `Running`, or leaves a goal that is elsewhere. Returns whether it was cancelled: then it
    /// has to be undone even if the site is to run again by now, for not all that belongs to it was started.
    pub(super) async fn start(&mut self) -> bool {
        let snapshot = self.shared.registry.snapshot(START);
        let cancelled = CancellationToken::new();
        let time = Time::of(&self.shared);
        let (info, default) = (told(&self.shared, snapshot.channel), self.shared.options.start);
        let mut transition = Transition::new(&self.shared, info, time, default, Some(cancelled.clone())).while_wanted();
        let mut tally = Tally::default();
        for (number, wave) in snapshot.waves.iter().enumerate() {
            self.follow(&transition, Until::MayBegin(wave), &cancelled, &mut tally).await;
            let mut wanted = Vec::new();
            for entry in wave {
                entry.is_to_start();
                self.cancel_unless_wanted(&cancelled);
                if cancelled.is_cancelled() {
                    break; // nothing more starts
                }
                if self.can_start(entry, number, time, &mut tally) {
                    wanted.push(entry);
                }
            }
            transition.begin(wanted);
        }
        self.follow(&transition, Until::All, &cancelled, &mut tally).await;
        transition.let_go();
        let Tally { mut up, mut faults, .. } = tally;
        faults.sort_by_key(|(wave, place, _)| (*wave, *place)); // stable: those that were not called keep their order
        let faults: Vec<Fault> = faults.into_iter().map(|(.., fault)| fault).collect();
        up.sort_by_key(|(wave, place, _)| (*wave, *place));
        self.started = up
            .chunk_by(|(one, ..), (other, ..)| one == other)
            .map(|wave| wave.iter().map(|(_, _, started)| started.clone()).collect())
            .collect();
        if cancelled.is_cancelled() {
            return true;
        }
        if self.shared.status().goal == Goal::Running {
            if faults.is_empty() {
                self.shared.enter(State::Running).await;
            } else if self.shared.start_failed(&faults) {
                // What is missing may come up later: whoever stops the site stops that, too.
                let started = |wave: &Vec<Arc<Entry>>| wave.iter().map(|entry| Started::of(entry)).collect();
                self.started = snapshot.waves.iter().map(started).collect();
                self.shared.enter(State::Running).await;
            }
        }
        false
    }

    /// Takes the ends of calls until what is waited for is so.
    async fn follow(
        &mut self,
        transition: &Transition,
        until: Until<'_>,
        cancelled: &CancellationToken,
        tally: &mut Tally,
    ) {
        while let Some(end) = self.next_while_wanted(transition, until, cancelled).await {
            self.take_end(&end, cancelled, tally);
        }
    }

    fn take_end(
        &mut self,
        End { entry, place, wave, outcome, late, .. }: &End,
        cancelled: &CancellationToken,
        tally: &mut Tally,
    ) {
        let failure = outcome.failure();
        if !matches!(outcome, Outcome::Skipped { .. }) {
            self.left_running.remove(&*entry.name);
        }
        // One that was too late is up, although nobody counts on it any more: it has to be stopped.
        if outcome.is_ok() || *late {
            tally.up.push((*wave, *place, Started::of(entry)));
        }
        if let Some(failure) = failure {
            tally.failed.extend(names_of(entry));
            // A start that nobody wants any more has not failed.
            let wanted = self.shared.status().goal == Goal::Running;
            if wanted && !cancelled.is_cancelled() {
                tally.faults.push((*wave, *place, self.shared.fault_of(entry, START, failure)));
            }
        }
    }

    /// Returns whether a listener is to be called; otherwise it has failed, or somebody that it needs has.
    fn can_start(&self, entry: &Entry, wave: usize, time: Time, tally: &mut Tally) -> bool {
        if let Some(missing) = entry.order.needs.iter().find(|name| tally.failed.contains(*name)) {
            self.shared.say(Level::Warning, format!("{} not started: {missing} failed", entry.name));
            tally.failed.extend(names_of(entry));
            return false;
        }
        if time.is_over() {
            let limit = self.shared.options.transition.as_secs_f32();
            let failure = Failure::new(format!("not called: the start as a whole took longer than {limit} s"));
            tally.failed.extend(names_of(entry));
            tally.faults.push((wave, usize::MAX, self.shared.fault_of(entry, START, failure)));
            return false;
        }
        true
    }
}

/// Returns the names under which others may need the one that `entry` belongs to.
fn names_of(entry: &Entry) -> impl Iterator<Item = String> {
    [Some(&entry.name), entry.group.as_ref()].into_iter().flatten().map(|name| (**name).to_owned())
}
