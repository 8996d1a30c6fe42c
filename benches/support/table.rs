//! What was measured, by subject and by whom, and how it is shown.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::Figures;

/// Whose figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Ours.
    Refit,
    /// The Python bus.
    Ancestor,
    /// Nobody's: what the system itself takes for it.
    Floor,
}

impl Who {
    const fn name(self) -> &'static str {
        match self {
            Self::Refit => "refit",
            Self::Ancestor => "ancestor",
            Self::Floor => "floor",
        }
    }
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Micros => "us",
            Self::Millis => "ms",
        }
    }

    fn of(self, duration: Duration) -> f64 {
        let factor = match self {
            Self::Micros => 1e6,
            Self::Millis => 1e3,
        };
        (duration.as_secs_f64() * factor * 100.0).round() / 100.0
    }
}

/// One subject, measured with one of those who do it.
struct Line {
    what: String,
    who: Who,
    durations: Vec<Duration>,
    rates: Vec<f64>,
}

/// Lines about one thing, in one unit.
pub(crate) struct Table {
    title: &'static str,
    unit: Unit,
    /// What a rate counts.
    rate: Option<&'static str>,
    lines: Vec<Line>,
}

impl Table {
    /// Returns an empty table. `rate` says what its lines count a second, if they do.
    pub(crate) const fn new(title: &'static str, unit: Unit, rate: Option<&'static str>) -> Self {
        Self { title, unit, rate, lines: Vec::new() }
    }

    fn line(&mut self, what: &str, who: Who) -> &mut Line {
        let place = match self.lines.iter().position(|line| line.what == what && line.who == who) {
            Some(place) => place,
            None => {
                self.lines.push(Line { what: what.to_owned(), who, durations: Vec::new(), rates: Vec::new() });
                self.lines.len() - 1
            }
        };
        &mut self.lines[place]
    }

    /// Adds durations of one round.
    pub(crate) fn add(&mut self, what: &str, who: Who, durations: impl IntoIterator<Item = Duration>) {
        self.line(what, who).durations.extend(durations);
    }

    /// Adds the rate of one round.
    pub(crate) fn add_rate(&mut self, what: &str, who: Who, rate: f64) {
        self.line(what, who).rates.push(rate);
    }

    /// Returns it as one document.
    pub(crate) fn as_json(&self) -> Value {
        let lines: Vec<Value> = self
            .lines
            .iter()
            .map(|line| {
                let figures = line.figures();
                let in_unit = |duration| (figures.count > 0).then(|| self.unit.of(duration));
                json!({
                    "what": line.what, "who": line.who.name(), "count": figures.count,
                    "median": in_unit(figures.median), "p99": in_unit(figures.p99), "max": in_unit(figures.max),
                    "per_second": line.rate(),
                })
            })
            .collect();
        json!({ "title": self.title, "unit": self.unit.name(), "rate": self.rate, "lines": lines })
    }

    /// Returns how many times as long as ours a line of the ancestor's is, for rates how many times as high; and how many times as long as
    /// the floor ours is.
    fn ratio(&self, line: &Line) -> Option<f64> {
        let ours = self.lines.iter().find(|other| other.what == line.what && other.who == Who::Refit)?;
        let ratio = if line.durations.is_empty() {
            line.rate()? / ours.rate()?
        } else {
            line.figures().median.as_secs_f64() / ours.figures().median.as_secs_f64()
        };
        let ratio = match line.who {
            Who::Refit => return None,
            Who::Ancestor => ratio,
            Who::Floor => ratio.recip(),
        };
        ratio.is_finite().then_some(ratio)
    }
}

impl Line {
    fn figures(&self) -> Figures {
        Figures::of(self.durations.clone())
    }

    /// Returns the median of its rates.
    fn rate(&self) -> Option<f64> {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.rate.unwrap_or_default();
        let (title, unit) = (self.title, self.unit.name());
        if self.lines.iter().any(|line| !line.durations.is_empty()) {
            writeln!(
                f,
                "{title}, {unit:<width$} {:>10} {:>10} {:>6}",
                "median",
                "p99",
                "of",
                width = 58 - title.len()
            )?;
        } else {
            writeln!(f, "{title}")?;
        }
        for line in &self.lines {
            let figures = line.figures();
            write!(f, "  {:<9} {:<48}", line.who.name(), line.what)?;
            if figures.count > 0 {
                let [median, p99] = [figures.median, figures.p99].map(|duration| self.unit.of(duration));
                write!(f, " {median:>10.2} {p99:>10.2} {:>6}", figures.count)?;
            }
            if let Some(value) = line.rate() {
                let digits = if value < 100.0 { 2 } else { 0 };
                write!(f, " {value:>12.digits$} {rate}")?;
            }
            if let Some(ratio) = self.ratio(line) {
                write!(f, " {ratio:>8.2} x")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
