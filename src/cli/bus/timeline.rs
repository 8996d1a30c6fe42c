//! Events as lines for people: when, how long after the line before, what about, and a sentence.

use std::fmt::Display;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::cli::table::{any_cell, cell};
use crate::wire::event::{
    ComponentChanged, PackageProgress, PeerChanged, ReleaseChanged, ReloadConfirmed, ReloadEnded, ReloadReverted,
    Reloaded, RequestOutcome, Requested, SiteChanged, TookOver, UpdateProgress, UpdateStep,
};
use crate::wire::step::Step;
use crate::wire::{AnswerOutcome, BusState, ComponentState, Event, EventRecord, Fault, Health, Report, Unconfirmed};

/// The width of the column that says what an event is about.
const ABOUT_WIDTH: usize = 9;

/// How good the news is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
}

impl Tone {
    const fn colour(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// What one event says.
struct Line {
    about: &'static str,
    text: String,
    tone: Tone,
}

/// Writes one line after the other.
pub(super) struct Timeline {
    colours: bool,
    last: Option<Moment>,
}

impl Timeline {
    pub(super) const fn new(colours: bool) -> Self {
        Self { colours, last: None }
    }

    /// Returns the first line: where the site stands.
    pub(super) fn begin(&self, state: &BusState) -> String {
        format!("the site is {state}; what happens from now on:")
    }

    /// Returns the line of an event; `None` for one that says nothing new to people.
    pub(super) fn line(&mut self, record: &EventRecord) -> Option<String> {
        let Line { about, text, tone } = sentence(&record.event)?;
        let at = record.at.as_str();
        let clock = at.split('T').nth(1).unwrap_or(at).trim_end_matches('Z');
        let now = Moment { ms: record.monotonic_ms, at: at.parse().ok() };
        let since = self.last.and_then(|last| now.since(last)).map(since_last).unwrap_or_default();
        self.last = Some(now);
        if self.colours {
            let (dim, end) = ("\x1b[2m", "\x1b[0m");
            let colour = tone.colour();
            return Some(format!("{dim}{clock:<12} {since:>9}{end}  {about:<ABOUT_WIDTH$}  {colour}{text}{end}"));
        }
        Some(format!("{clock:<12} {since:>9}  {about:<ABOUT_WIDTH$}  {text}"))
    }
}

/// When something happened.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// Milliseconds of the appliance's monotonic clock, which nobody sets; an older release does not say them.
    ms: Option<u64>,
    at: Option<Timestamp>,
}

impl Moment {
    /// Returns how long it came after `last`.
    fn since(self, last: Self) -> Option<Duration> {
        if let (Some(now), Some(last)) = (self.ms, last.ms) {
            return Some(Duration::from_millis(now.saturating_sub(last)));
        }
        Some(Duration::try_from(self.at?.duration_since(last.at?)).unwrap_or_default())
    }
}

/// Returns `elapsed`, how long after the line before, in the unit that suits it.
fn since_last(elapsed: Duration) -> String {
    let millis = elapsed.as_millis();
    match millis {
        0..1_000 => format!("+{millis} ms"),
        1_000..60_000 => format!("+{:.1} s", elapsed.as_secs_f32()),
        60_000..3_600_000 => format!("+{} min", millis / 60_000),
        _ => format!("+{} h", millis / 3_600_000),
    }
}

fn line(about: &'static str, text: String, tone: Tone) -> Option<Line> {
    Some(Line { about, text, tone })
}

/// Returns `value` after `before`, or nothing if there is none.
fn prefixed(before: &str, value: Option<impl Display>) -> String {
    value.map(|value| format!("{before}{value}")).unwrap_or_default()
}

/// Returns the priority of a listener that failed, where it is known.
fn with_priority(priority: Option<i32>) -> String {
    priority.map_or_else(String::new, |priority| format!(" (priority {priority})"))
}

fn sentence(event: &Event) -> Option<Line> {
    match event {
        Event::BusState(SiteChanged { state }) => {
            let tone = if *state == BusState::Running { Tone::Good } else { Tone::Plain };
            line("state", state.to_string(), tone)
        }
        Event::BusRequest(requested) => request(requested),
        Event::BusReload(Reloaded { generation, reason, .. }) => reload_over(*generation, reason.as_ref()),
        Event::ReloadWaiting(Unconfirmed { generation, until, .. }) => {
            line("reload", format!("generation {generation} waits to be confirmed until {until}"), Tone::Warning)
        }
        Event::ReloadConfirmed(ReloadConfirmed { reload, by }) => {
            line("reload", format!("{by} has confirmed generation {}", reload.generation), Tone::Good)
        }
        Event::ReloadReverting(ReloadEnded { reload, reason }) => {
            line("reload", format!("generation {} is being reverted: {reason}", reload.generation), Tone::Warning)
        }
        Event::ReloadReverted(ReloadReverted { reload, failed, .. }) => {
            let said = format!("generation {} is reverted", reload.generation);
            match failed {
                None => line("reload", said, Tone::Warning),
                Some(failed) => line("reload", format!("{said} except for {}", failed.trim_start()), Tone::Bad),
            }
        }
        Event::ReloadLost(ReloadEnded { reason, .. }) => line("reload", reason.clone(), Tone::Bad),
        Event::BusPublication(report) => publication(report),
        Event::Fault(Fault { component, phase, cause, priority, .. }) => {
            let said = format!("{component} failed to {phase}: {cause}{}", with_priority(*priority));
            line("fault", said, Tone::Bad)
        }
        Event::Component(changed) => component(changed),
        Event::PeerUp(PeerChanged { peer, .. }) => line("peer", format!("{peer} is on the bus"), Tone::Plain),
        Event::PeerDown(PeerChanged { peer, reason, .. }) => {
            line("peer", format!("{peer} is off the bus{}", prefixed(": ", reason.as_ref())), Tone::Warning)
        }
        Event::Handover(TookOver { gap_us, .. }) => {
            #[expect(clippy::cast_precision_loss, reason = "a gap of days need not be exact to the microsecond")]
            let gap = gap_us.unwrap_or(0) as f64 / 1000.0;
            line("handover", format!("the next image took over; nobody accepted for {gap:.1} ms"), Tone::Good)
        }
        Event::UpdateStep(UpdateStep { step, text, .. }) => {
            let is_bad = matches!(step, Step::RolledBack | Step::RollingBack | Step::Failed);
            let tone = if is_bad {
                Tone::Bad
            } else if *step == Step::Committed {
                Tone::Good
            } else {
                Tone::Plain
            };
            let text = Some(text).filter(|text| !text.is_empty());
            line("update", format!("{step}{}", prefixed(": ", text)), tone)
        }
        Event::UpdateProgress(UpdateProgress { progress, text, .. }) => {
            line("update", format!("{:.0} % {text}", progress * 100.0).trim_end().to_owned(), Tone::Plain)
        }
        Event::PackageProgress(PackageProgress { step, .. }) => line("update", step.to_string(), Tone::Plain),
        Event::Release(ReleaseChanged { version, state }) => {
            line("release", format!("{version} is {state}"), Tone::Good)
        }
        Event::UpdateConfig(_) | Event::Other { .. } => {
            let data = event.data().unwrap_or_default();
            line("event", format!("{}{}", event.name(), other_data(&data)), Tone::Plain)
        }
    }
}

/// Returns the line of a reload that is over, for this reason if it is not in force.
fn reload_over(generation: u64, reason: Option<&String>) -> Option<Line> {
    match reason {
        None => line("reload", format!("generation {generation} is in force"), Tone::Good),
        Some(reason) => line("reload", reason.clone(), Tone::Bad),
    }
}

fn request(Requested { request, origin, outcome, reason, .. }: &Requested) -> Option<Line> {
    let (said, tone) = match outcome {
        RequestOutcome::Merged => ("merged with one under way".to_owned(), Tone::Plain),
        RequestOutcome::Already => ("it is so already".to_owned(), Tone::Plain),
        RequestOutcome::Refused => (format!("refused{}", prefixed(": ", reason.as_ref())), Tone::Warning),
        RequestOutcome::Accepted | RequestOutcome::Other(_) => (outcome.to_string(), Tone::Plain),
    };
    line("request", format!("{origin} asks for {request}: {said}"), tone)
}

fn publication(Report { channel, refused, answers, .. }: &Report) -> Option<Line> {
    if let Some(reason) = refused {
        return line("publish", format!("on {channel}, refused: {reason}"), Tone::Bad);
    }
    let failed: Vec<String> = answers
        .iter()
        .filter(|answer| matches!(answer.outcome, AnswerOutcome::Failed | AnswerOutcome::Timeout))
        .map(|answer| {
            let (why, priority) = (cell(answer.reason.as_ref()), with_priority(Some(answer.priority)));
            format!("{}: {why}{priority}", answer.listener)
        })
        .collect();
    let count = match answers.len() {
        0 => "nobody listens".to_owned(),
        1 => "1 listener".to_owned(),
        more => format!("{more} listeners"),
    };
    if failed.is_empty() {
        // Comings and goings have lines of their own.
        if channel.starts_with("component.") {
            return None;
        }
        return line("publish", format!("on {channel}: {count}"), Tone::Plain);
    }
    // One line each if there are several.
    let (first, between) = if failed.len() > 1 { ("\n    ", "\n    ") } else { (" ", "") };
    let text = format!("on {channel}: {count}, {} failed:{first}{}", failed.len(), failed.join(between));
    line("publish", text, Tone::Bad)
}

fn component(ComponentChanged { name, state, pid, health, reason, status }: &ComponentChanged) -> Option<Line> {
    let mut text = format!("{name} is {state}");
    if *state == ComponentState::Running {
        text.push_str(&prefixed(", process ", *pid));
    }
    if !matches!(health, Health::None | Health::Unknown) {
        text.push_str(&format!(", {health}"));
    }
    text.push_str(&prefixed(": ", reason.as_ref().or(status.as_ref())));
    let tone = match (state, health) {
        (ComponentState::Failed, _) | (_, Health::Unhealthy) => Tone::Bad,
        (ComponentState::Backoff, _) => Tone::Warning,
        (ComponentState::Running | ComponentState::Done | ComponentState::Waiting, _) => Tone::Good,
        (_, _) => Tone::Plain,
    };
    line("component", text, tone)
}

/// Returns the data of an event that this program does not know: a newer runtime's.
fn other_data(data: &Value) -> String {
    let field = |(key, value): (&String, &Value)| format!(" {key} {}", any_cell(value));
    data.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()).map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(json: Value) -> EventRecord {
        serde_json::from_value(json).expect("an event")
    }
    use serde_json::json;

    #[test]
    fn events_are_sentences_in_columns() {
        let rows = [
            ("00:00:00.000", "bus.state", json!({ "state": "Running" }), "00:00:00.000            state      Running"),
            (
                "00:00:00.012",
                "bus.request",
                json!({ "number": 1, "origin": "component web", "request": "exit", "outcome": "refused", "reason": "no" }),
                "00:00:00.012    +12 ms  request    component web asks for exit: refused: no",
            ),
            (
                "00:00:02.512",
                "bus.publication",
                json!({ "channel": "prices", "known": true, "answers": [
                    { "listener": "a", "outcome": "ok", "value": null }, { "listener": "b", "outcome": "failed", "reason": "broken", "priority": 7 }
                ] }),
                "00:00:02.512     +2.5 s  publish    on prices: 2 listeners, 1 failed: b: broken (priority 7)",
            ),
            (
                "01:00:02.512",
                "component",
                json!({ "name": "web", "state": "backoff", "health": "unknown", "reason": "ended with status 3" }),
                "01:00:02.512       +1 h  component  web is backoff: ended with status 3",
            ),
        ];
        let mut timeline = Timeline::new(false);
        for (time, event, data, expected) in rows {
            let event = record(json!({ "id": 1, "at": format!("2026-01-01T{time}Z"), "event": event, "data": data }));
            let line = timeline.line(&event).expect("a line");
            assert_eq!(line.split_whitespace().collect::<Vec<_>>(), expected.split_whitespace().collect::<Vec<_>>());
            assert_eq!(line.find(char::is_alphabetic).map(|_| line.len() > 24), Some(true), "{line}");
        }
        let up = record(json!({ "id": 1, "at": "2026-01-01T01:00:03.000Z", "event": "bus.publication",
            "data": { "channel": "component.up", "known": true, "answers": [] } }));
        assert_eq!(timeline.line(&up), None);
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let event = record(
            json!({ "id": 1, "at": "2026-01-01T00:00:00.000Z", "event": "bus.state", "data": { "state": "Running" } }),
        );
        assert!(Timeline::new(true).line(&event).is_some_and(|line| line.contains("\x1b[32mRunning")));
        assert!(Timeline::new(false).line(&event).is_some_and(|line| !line.contains('\x1b')));
    }
}
