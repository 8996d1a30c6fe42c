//! Events as lines for people: when, how long after the line before, what about, and a sentence.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::cli::table::cell;

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
    pub(super) fn begin(&self, state: &str) -> String {
        format!("the site is {state}; what happens from now on:")
    }

    /// Returns the line of an event; `None` for one that says nothing new to people.
    pub(super) fn line(&mut self, event: &Value) -> Option<String> {
        let Line { about, text, tone } = sentence(event)?;
        let at = event["at"].as_str().unwrap_or_default();
        let clock = at.split('T').nth(1).unwrap_or(at).trim_end_matches('Z');
        let now = Moment { ms: event["monotonic_ms"].as_u64(), at: at.parse().ok() };
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
fn prefixed(before: &str, value: &Value) -> String {
    if value.is_null() { String::new() } else { format!("{before}{}", cell(value)) }
}

/// Returns the priority of a listener that failed, where it is known.
fn with_priority(data: &Value) -> String {
    data["priority"].as_i64().map_or_else(String::new, |priority| format!(" (priority {priority})"))
}

fn sentence(event: &Value) -> Option<Line> {
    let data = &event["data"];
    let text = |key: &str| cell(&data[key]);
    match event["event"].as_str().unwrap_or_default() {
        "bus.state" => {
            let tone = if data["state"] == "Running" { Tone::Good } else { Tone::Plain };
            line("state", text("state"), tone)
        }
        "bus.request" => {
            let outcome = match data["outcome"].as_str() {
                Some("merged") => "merged with one under way".to_owned(),
                Some("already") => "it is so already".to_owned(),
                Some("refused") => format!("refused: {}", text("reason")),
                Some(other) => other.to_owned(),
                None => String::new(),
            };
            let tone = if data["outcome"] == "refused" { Tone::Warning } else { Tone::Plain };
            line("request", format!("{} asks for {}: {outcome}", text("origin"), text("request")), tone)
        }
        name if name.starts_with("bus.reload") => reload(name, data),
        "bus.publication" => publication(data),
        "fault" => {
            let priority = with_priority(data);
            let said = format!("{} failed to {}: {}{priority}", text("component"), text("phase"), text("cause"));
            line("fault", said, Tone::Bad)
        }
        "component" => component(data),
        "component.up" => line("peer", format!("{} is on the bus", text("peer")), Tone::Plain),
        "component.down" => line("peer", format!("{} is off the bus: {}", text("peer"), text("reason")), Tone::Warning),
        "handover" => {
            let gap = data["gap_us"].as_f64().unwrap_or(0.0) / 1000.0;
            line("handover", format!("the next image took over; nobody accepted for {gap:.1} ms"), Tone::Good)
        }
        "update.step" => {
            let step = text("step");
            let tone = match step.as_str() {
                "committed" => Tone::Good,
                "rolled-back" | "rolling-back" | "failed" => Tone::Bad,
                _ => Tone::Plain,
            };
            line("update", format!("{step}{}", prefixed(": ", &data["text"])), tone)
        }
        "update.progress" | "package.progress" => {
            let percent = data["progress"].as_f64().map(|part| format!("{:.0} % ", part * 100.0)).unwrap_or_default();
            let detail = [&data["text"], &data["step"]].into_iter().find(|value| !value.is_null());
            line(
                "update",
                format!("{percent}{}", detail.map(cell).unwrap_or_default()).trim_end().to_owned(),
                Tone::Plain,
            )
        }
        "release" => line("release", format!("{} is {}", text("version"), text("state")), Tone::Good),
        other => line("event", format!("{other}{}", other_data(data)), Tone::Plain),
    }
}

/// Returns the line of a reload, and of what becomes of one that has to be confirmed.
fn reload(name: &str, data: &Value) -> Option<Line> {
    let (generation, reason) = (cell(&data["generation"]), cell(&data["reason"]));
    let (text, tone) = match name {
        "bus.reload.waiting" => {
            let until = cell(&data["until"]);
            (format!("generation {generation} waits to be confirmed until {until}"), Tone::Warning)
        }
        "bus.reload.confirmed" => (format!("{} has confirmed generation {generation}", cell(&data["by"])), Tone::Good),
        "bus.reload.reverting" => (format!("generation {generation} is being reverted: {reason}"), Tone::Warning),
        "bus.reload.reverted" => match data["failed"].as_str() {
            None => (format!("generation {generation} is reverted"), Tone::Warning),
            Some(failed) => {
                (format!("generation {generation} is reverted except for {}", failed.trim_start()), Tone::Bad)
            }
        },
        _ if data["reason"].is_null() => (format!("generation {generation} is in force"), Tone::Good),
        _ => (reason, Tone::Bad),
    };
    line("reload", text, tone)
}

fn publication(data: &Value) -> Option<Line> {
    let channel = data["channel"].as_str().unwrap_or_default();
    let answers = data["answers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(reason) = data["refused"].as_str() {
        return line("publish", format!("on {channel}, refused: {reason}"), Tone::Bad);
    }
    let failed: Vec<String> = answers
        .iter()
        .filter(|answer| answer["outcome"] == "failed" || answer["outcome"] == "timeout")
        .map(|answer| format!("{}: {}{}", cell(&answer["listener"]), cell(&answer["reason"]), with_priority(answer)))
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

fn component(data: &Value) -> Option<Line> {
    let state = data["state"].as_str().unwrap_or_default();
    let mut text = format!("{} is {state}", cell(&data["name"]));
    if state == "running" {
        text.push_str(&prefixed(", process ", &data["pid"]));
    }
    let health = data["health"].as_str().unwrap_or("none");
    if !matches!(health, "none" | "unknown") {
        text.push_str(&format!(", {health}"));
    }
    text.push_str(&prefixed(": ", if data["reason"].is_null() { &data["status"] } else { &data["reason"] }));
    let tone = match (state, health) {
        ("failed", _) | (_, "unhealthy") => Tone::Bad,
        ("backoff", _) | (_, "doubtful") => Tone::Warning,
        ("running" | "done" | "waiting", _) => Tone::Good,
        (_, _) => Tone::Plain,
    };
    line("component", text, tone)
}

/// Returns the data of an event that this program does not know: a newer runtime's.
fn other_data(data: &Value) -> String {
    let field = |(key, value): (&String, &Value)| format!(" {key} {}", cell(value));
    data.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()).map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_sentences_in_columns() {
        let rows = [
            ("00:00:00.000", "bus.state", json!({ "state": "Running" }), "00:00:00.000            state      Running"),
            (
                "00:00:00.012",
                "bus.request",
                json!({ "origin": "component web", "request": "exit", "outcome": "refused", "reason": "no" }),
                "00:00:00.012    +12 ms  request    component web asks for exit: refused: no",
            ),
            (
                "00:00:02.512",
                "bus.publication",
                json!({ "channel": "prices", "answers": [
                    { "listener": "a", "outcome": "ok" }, { "listener": "b", "outcome": "failed", "reason": "broken" }
                ] }),
                "00:00:02.512     +2.5 s  publish    on prices: 2 listeners, 1 failed: b: broken",
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
            let event = json!({ "at": format!("2026-01-01T{time}Z"), "event": event, "data": data });
            let line = timeline.line(&event).expect("a line");
            assert_eq!(line.split_whitespace().collect::<Vec<_>>(), expected.split_whitespace().collect::<Vec<_>>());
            assert_eq!(line.find(char::is_alphabetic).map(|_| line.len() > 24), Some(true), "{line}");
        }
        let up = json!({ "at": "2026-01-01T01:00:03.000Z", "event": "bus.publication",
            "data": { "channel": "component.up", "answers": [] } });
        assert_eq!(timeline.line(&up), None);
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let event = json!({ "at": "2026-01-01T00:00:00.000Z", "event": "bus.state", "data": { "state": "Running" } });
        assert!(Timeline::new(true).line(&event).is_some_and(|line| line.contains("\x1b[32mRunning")));
        assert!(Timeline::new(false).line(&event).is_some_and(|line| !line.contains('\x1b')));
    }
}
