//! Why a process that is wanted is ended all the same: it is silent, says that it hangs, or is unhealthy.
//!
//! It is asked first, by SIGABRT if it hangs, so that it leaves a trace, by its `stop_signal` if it is unhealthy, and killed when that does
//! not help; but first it is written down, so that a runtime that starts meanwhile goes on with it. Its end is then noticed like any other, with the reason that is known here, and the restart policy applies.

use std::time::{Duration, Instant};

use super::Actor;
use crate::awake;
use crate::component::health;
use crate::component::instance::RECORD_PAUSE;
use crate::config::HealthAction;

/// How long a process that hangs may take to leave a trace of itself behind, after SIGABRT.
const ABORT_MAX: Duration = Duration::from_secs(5);
/// How long after its time a silent process is looked at again: after a pause of the machine it needs a processor first.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// A look that is late by more than this part of the watchdog time comes after a pause of the machine.
const PAUSE_PART: u32 = 4;

impl Actor {
    pub(super) fn on_health(&mut self, state: health::State) {
        if let health::State::Unhealthy(reason) = &state {
            tracing::warn!(component.name = self.component.name, reason, "component unhealthy");
            let action = self.component.health.as_ref().map(|health| health.action);
            if action == Some(HealthAction::Restart)
                && self.doomed.is_none()
                && let Some(instance) = &mut self.current
            {
                let (why, limit) = (format!("was unhealthy: {reason}"), self.component.stop_timeout);
                instance.condemn(limit, Some(&why), &self.context);
                instance.terminate();
                self.doomed = Some((why, Instant::now() + limit));
            }
        }
        self.view.send_modify(|view| view.health = state);
    }

    pub(super) fn on_said(&mut self) {
        self.suspect = false;
        if self.current.as_ref().is_some_and(|instance| instance.said.borrow().triggered) {
            self.give_up("watchdog: it said itself that it hangs".to_owned());
        }
        self.take_news();
    }

    /// Records and shows what the current process says of itself: what anybody has seen, the next image knows.
    pub(super) fn take_news(&mut self) {
        self.news_at = None;
        if let Some(instance) = &mut self.current
            && instance.has_news()
        {
            let now = Instant::now();
            if let Some(next) = self.recorded_at.map(|at| at + RECORD_PAUSE).filter(|next| *next > now) {
                self.news_at = Some(next);
                return;
            }
            self.recorded_at = Some(now);
            instance.record(&self.context);
        }
        // Read first: the view cannot be changed while it is looked at.
        let state = self.view.borrow().state;
        self.show(state);
    }

    /// Returns when the current process will have been silent for too long.
    pub(super) fn silent_at(&self) -> Option<Instant> {
        let instance = self.current.as_ref().filter(|instance| instance.carried.ready && self.doomed.is_none())?;
        let said = instance.said.borrow();
        let limit = said.watchdog.or(self.component.spawn.watchdog).filter(|limit| !limit.is_zero())?;
        let alive = said.alive.map_or(self.watched_since, |at| at.max(self.watched_since));
        let at = said.extended.map_or(alive + limit, |(_, until)| until.max(alive + limit));
        Some(if self.suspect { at + SECOND_LOOK.min(limit / PAUSE_PART) } else { at })
    }

    pub(super) fn on_silence(&mut self) {
        let limit = self.current.as_ref().and_then(|instance| instance.said.borrow().watchdog);
        let limit = limit.or(self.component.spawn.watchdog).unwrap_or_default();
        // A look that comes far too late: the machine was paused, and the process could not report. It has its time once more.
        if self.silent_at().is_some_and(|at| !awake::paused_since(at, limit / PAUSE_PART).is_zero()) {
            self.watched_since = Instant::now();
            self.suspect = false;
            return;
        }
        // After a shorter pause its message may lie there unread.
        if !self.suspect {
            self.suspect = true;
            return;
        }
        self.give_up(format!("watchdog: it gave no sign of life for {} s", limit.as_secs_f32()));
    }

    /// Ends a process that hangs; the restart policy applies.
    pub(super) fn give_up(&mut self, why: String) {
        if let (Some(instance), None) = (&mut self.current, &self.doomed) {
            tracing::warn!(component.name = self.component.name, process.pid = instance.pid(), why, "component ended");
            instance.condemn(ABORT_MAX, Some(&why), &self.context);
            instance.abort();
            self.doomed = Some((why, Instant::now() + ABORT_MAX));
        }
    }

    /// Kills a process that was to end and has not.
    pub(super) fn on_overdue(&mut self) {
        if let Some(instance) = &self.current {
            instance.kill();
        }
        if let Some((_, at)) = &mut self.doomed {
            *at = Instant::now() + ABORT_MAX; // and once more, should it be needed
        }
    }
}
