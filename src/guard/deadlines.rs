//! By when the runtime has to report, and to end: as data, without a clock.
//!
//! The guard sleeps between two looks. One that was not woken when it wanted to be says nothing of the runtime: the whole machine
//! was paused, or had no processor to give, and the runtime had no chance to report. Every deadline then moves by what it takes
//! to report. So that a pause is seen at all, no sleep is longer than half of the time after which the runtime is ended.

use std::time::{Duration, Instant};

/// A runtime that says nothing for so long after its start, before it named a time of its own, hangs.
const FIRST_WORD_MAX: Duration = Duration::from_secs(60);
/// After the first request to end, the runtime has so long, or longer if it says that its components may take longer.
const END_MIN: Duration = Duration::from_secs(120);
/// However long that is: what is added to a moment must be one.
const END_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// While the runtime is asked to end, a pause that is longer than half of this is seen.
const END_INTERVAL: Duration = Duration::from_secs(10);
/// How often a runtime that was killed is looked at: one that waits for a device takes its time to be gone.
const KILLED_INTERVAL: Duration = Duration::from_secs(5);
/// The part of the interval by which a look may come too late on a busy machine. With a report every third and a look every half
/// of it, a pause that is not seen still leaves some time.
const SLACK_PART: u32 = 8;

/// Why a runtime is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// It has not said anything since its start.
    Mute,
    /// It has not reported for so long.
    Silent(Duration),
    /// It was asked to end, and has not for so long.
    NotEnded(Duration),
}

impl Overdue {
    /// Returns what happened to the runtime, for people: what follows "the runtime".
    pub(super) fn describe(self) -> String {
        match self {
            Self::Mute => format!("did not report within {} s of its start, and was killed", FIRST_WORD_MAX.as_secs()),
            Self::Silent(limit) => {
                format!("did not report within its watchdog time of {} s, and was killed", limit.as_secs_f32())
            }
            Self::NotEnded(limit) => format!("did not end within {} s, and was killed", limit.as_secs()),
        }
    }
}

/// The deadlines of one runtime.
#[derive(Debug)]
pub(super) struct Deadlines {
    /// Within what it has to report; `None` is never.
    limit: Option<Duration>,
    /// Whether it named that time itself.
    named: bool,
    alive_until: Option<Instant>,
    /// How long it may take to end.
    end: Duration,
    end_by: Option<Instant>,
    /// When the guard wanted to look.
    look_at: Option<Instant>,
    killed: Option<Overdue>,
}

impl Deadlines {
    /// Returns those of a runtime that starts `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            limit: Some(FIRST_WORD_MAX),
            named: false,
            alive_until: Some(now + FIRST_WORD_MAX),
            end: END_MIN,
            end_by: None,
            look_at: None,
            killed: None,
        }
    }

    /// Takes the time within which the runtime says that it reports; zero is never.
    pub(super) fn set_limit(&mut self, limit: Duration) {
        self.limit = (!limit.is_zero()).then_some(limit);
        self.named = true;
    }

    /// Takes a report.
    pub(super) fn reported(&mut self, now: Instant) {
        self.alive_until = self.limit.map(|limit| now + limit);
    }

    /// Takes how long the runtime says that it may take to end.
    pub(super) fn set_end(&mut self, end: Duration) {
        self.end = end.clamp(END_MIN, END_MAX);
    }

    /// Takes a request to end; only the first one counts.
    pub(super) fn asked_to_end(&mut self, now: Instant) {
        self.end_by.get_or_insert(now + self.end);
    }

    /// Returns why the runtime was killed, if the guard did that.
    pub(super) fn killed(&self) -> Option<Overdue> {
        self.killed
    }

    /// Returns how long the guard may sleep from `now` on; `None` until something happens.
    pub(super) fn sleep(&mut self, now: Instant) -> Option<Duration> {
        let next = if self.killed.is_some() {
            Some(now + KILLED_INTERVAL)
        } else {
            let look = self.interval().map(|interval| now + interval / 2);
            [look, self.alive_until, self.end_by].into_iter().flatten().min()
        };
        self.look_at = next;
        next.map(|at| at.saturating_duration_since(now))
    }

    /// Looks. Returns why the runtime is to be killed: at most once.
    pub(super) fn look(&mut self, now: Instant) -> Option<Overdue> {
        let late = self.look_at.take().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if self.killed.is_some() {
            return None;
        }
        if self.interval().is_some_and(|interval| late > interval / SLACK_PART) {
            let again = self.limit.map(|limit| now + limit);
            self.alive_until = self.alive_until.and(again.max(self.alive_until));
            self.end_by = self.end_by.map(|at| at + late);
            return None;
        }
        let overdue = if self.alive_until.is_some_and(|at| now >= at) {
            match self.limit {
                Some(limit) if self.named => Overdue::Silent(limit),
                Some(_) | None => Overdue::Mute,
            }
        } else if self.end_by.is_some_and(|at| now >= at) {
            Overdue::NotEnded(self.end)
        } else {
            return None;
        };
        self.killed = Some(overdue);
        Some(overdue)
    }

    /// Returns the shortest time that something is waited for.
    fn interval(&self) -> Option<Duration> {
        let end = self.end_by.map(|_| END_INTERVAL);
        let limit = self.alive_until.and(self.limit);
        [limit, end].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn reporting(now: Instant) -> Deadlines {
        let mut deadlines = Deadlines::new(now);
        deadlines.set_limit(LIMIT);
        deadlines.reported(now);
        deadlines
    }

    /// Lets the guard sleep and wake as it wants, from `now` on. Returns when the runtime is killed, and why.
    fn until_killed(deadlines: &mut Deadlines, mut now: Instant) -> (Instant, Overdue) {
        loop {
            now += deadlines.sleep(now).expect("something is waited for");
            if let Some(overdue) = deadlines.look(now) {
                return (now, overdue);
            }
        }
    }

    #[test]
    fn one_that_is_silent_is_killed_in_time_and_once() {
        let begun = Instant::now();
        let mut deadlines = reporting(begun);
        assert_eq!(until_killed(&mut deadlines, begun), (begun + LIMIT, Overdue::Silent(LIMIT)));
        assert_eq!(deadlines.killed(), Some(Overdue::Silent(LIMIT)));
        // No spinning: what was killed is looked at now and then.
        assert_eq!(deadlines.sleep(begun + LIMIT), Some(KILLED_INTERVAL));
        assert_eq!(deadlines.look(begun + 2 * LIMIT), None);
        let mut mute = Deadlines::new(begun);
        assert_eq!(until_killed(&mut mute, begun), (begun + FIRST_WORD_MAX, Overdue::Mute));
    }

    #[test]
    fn a_pause_of_any_length_at_any_time_is_not_the_runtimes() {
        let begun = Instant::now();
        let step = LIMIT / 60;
        // The runtime reports every third; both are paused, and go on together. The guard looks before the report is there.
        for at in 0..90 {
            for length in 0..300 {
                let (pause_begin, pause_end) = (begun + step * at, begun + step * (at + length));
                let mut deadlines = reporting(begun);
                let (mut now, mut report) = (begun, begun + LIMIT / 3);
                while now < pause_end + LIMIT {
                    let mut wake = now + deadlines.sleep(now).expect("something is waited for");
                    wake = wake.min(report);
                    if wake >= pause_begin && wake < pause_end {
                        wake = pause_end;
                    }
                    now = wake;
                    assert_eq!(deadlines.look(now), None, "paused from {at} for {length}");
                    if now >= report {
                        deadlines.reported(now);
                        report = now + LIMIT / 3;
                    }
                }
            }
        }
    }

    #[test]
    fn after_a_pause_one_that_is_silent_is_killed_an_interval_later() {
        let begun = Instant::now();
        let mut deadlines = reporting(begun);
        deadlines.sleep(begun);
        let resumed = begun + Duration::from_secs(3600);
        assert_eq!(deadlines.look(resumed), None);
        assert_eq!(until_killed(&mut deadlines, resumed), (resumed + LIMIT, Overdue::Silent(LIMIT)));
    }

    #[test]
    fn one_that_does_not_end_is_killed_and_a_pause_does_not_count() {
        let begun = Instant::now();
        let mut deadlines = Deadlines::new(begun);
        deadlines.set_limit(Duration::ZERO);
        deadlines.reported(begun);
        assert_eq!(deadlines.sleep(begun), None, "no watchdog, nothing to look for");
        deadlines.asked_to_end(begun);
        deadlines.sleep(begun);
        let resumed = begun + Duration::from_secs(1000);
        assert_eq!(deadlines.look(resumed), None);
        deadlines.asked_to_end(resumed);
        let (at, overdue) = until_killed(&mut deadlines, resumed);
        assert_eq!(overdue, Overdue::NotEnded(END_MIN));
        assert!(at - resumed <= END_MIN && at - resumed >= END_MIN - END_INTERVAL, "{:?}", at - resumed);

        // Its components may take longer, one after the other.
        let mut deadlines = Deadlines::new(begun);
        deadlines.set_limit(Duration::ZERO);
        deadlines.reported(begun);
        deadlines.set_end(Duration::from_secs(1000));
        deadlines.asked_to_end(begun);
        let ended = (begun + Duration::from_secs(1000), Overdue::NotEnded(Duration::from_secs(1000)));
        assert_eq!(until_killed(&mut deadlines, begun), ended);
        deadlines.set_end(Duration::MAX);
    }
}
