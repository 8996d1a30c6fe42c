//! How long an update keeps clients waiting, measured on a real appliance under load.
//!
//! An appliance is made and run with `refit` itself and goes back and forth between two releases, each with its own shop and its
//! own `refit`. Meanwhile the shop is asked all the time, and one client for each listener connects anew every millisecond and
//! notes the longest silence. The same looking without an update is the noise. Figures only: nothing here passes or fails.
//!
//! `cargo bench --bench handover`, and `-- --json` behind it for one JSON object instead of the table.

#[allow(dead_code, reason = "the benches share it; each uses a part")]
mod support;

use std::io::{self, Write};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use refit_base::Chain;
use serde_json::{Value, json};

use support::appliance::{Appliance, Handover, VERSIONS};
use support::load::{KEPT, LOOK_PERIOD, Load, NEW_PER_SECOND, Report, SLOW, Watch};
use support::site::REFIT;
use support::{BenchError, Figures, failed};

/// How many updates and rollbacks are measured, and how many windows without one.
const UPDATES: usize = 20;
/// How long the load runs before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// No further update is begun after this: a slow machine gets fewer of them, and the table says how many.
const RUN_MAX: Duration = Duration::from_secs(60);
/// How many failures are printed word for word.
const REASONS_MAX: usize = 10;

/// One line of the table.
struct Row {
    what: String,
    figures: Figures,
}

/// What was measured on one appliance.
struct Measured {
    handover: Handover,
    rows: Vec<Row>,
    load: Report,
    watched: Vec<Report>,
}

fn main() -> ExitCode {
    let json = std::env::args().any(|word| word == "--json");
    match run(json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr().lock(), "handover: {}", Chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(json: bool) -> Result<(), BenchError> {
    let floor = Row { what: "floor: refit --version, start to end".to_owned(), figures: start_floor()? };
    let measured = [measure(Handover::Overlap)?, measure(Handover::Restart)?];
    let text = if json { as_json(&floor, &measured).to_string() } else { as_table(&floor, &measured) };
    writeln!(io::stdout().lock(), "{text}").map_err(failed("print"))
}

/// Returns how long the system takes to start this program and to let it say one word: no exec can be shorter.
fn start_floor() -> Result<Figures, BenchError> {
    let mut durations = Vec::new();
    for _ in 0..UPDATES {
        let begun = Instant::now();
        let status = Command::new(REFIT).arg("--version").stdout(Stdio::null()).status();
        let status = status.map_err(failed("start refit"))?;
        durations.push(begun.elapsed());
        if !status.success() {
            return Err(BenchError::Command { command: "refit --version".to_owned(), status, output: String::new() });
        }
    }
    Ok(Figures::of(durations))
}

fn measure(handover: Handover) -> Result<Measured, BenchError> {
    let begun = Instant::now();
    let mut appliance = Appliance::start(handover)?;
    let load = Load::start(appliance.shop);
    thread::sleep(WARM_UP);
    let mut watched = Vec::new();
    let (mut gaps, mut execs, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    let (mut admin, mut shop) = (Vec::new(), Vec::new());
    // The appliance starts in the second release: the first move is back.
    for to in VERSIONS.into_iter().cycle().take(UPDATES) {
        if begun.elapsed() > RUN_MAX {
            break;
        }
        let looks = [Watch::start("admin", appliance.admin), Watch::start("http", appliance.shop)];
        let asked = Instant::now();
        let told = appliance.update(to);
        lengths.push(asked.elapsed());
        let [at_admin, at_shop] = looks.map(Watch::finish);
        let told = told?;
        gaps.push(told.gap);
        execs.push(told.exec_to_accept);
        admin.push(at_admin.0);
        shop.push(at_shop.0);
        watched.extend([at_admin.1, at_shop.1]);
    }
    let lengths = Figures::of(lengths);
    let (mut quiet_admin, mut quiet_shop) = (Vec::new(), Vec::new());
    for _ in 0..gaps.len() {
        let looks = [Watch::start("admin", appliance.admin), Watch::start("http", appliance.shop)];
        thread::sleep(lengths.median);
        let [at_admin, at_shop] = looks.map(Watch::finish);
        quiet_admin.push(at_admin.0);
        quiet_shop.push(at_shop.0);
        watched.extend([at_admin.1, at_shop.1]);
    }
    let load = load.finish();
    let row = |what: &str, figures: Figures| Row { what: what.to_owned(), figures };
    let rows = vec![
        row("admin: stop accepting to first accept, by the runtime", Figures::of(gaps)),
        row("admin: of that, exec to first accept", Figures::of(execs)),
        row("admin: longest silence, seen by a client", Figures::of(admin)),
        row("admin: the same without an update (noise)", Figures::of(quiet_admin)),
        row("shop: longest silence, seen by a client", Figures::of(shop)),
        row("shop: the same without an update (noise)", Figures::of(quiet_shop)),
        row("request to commit, probation of 300 ms included", lengths),
    ];
    Ok(Measured { handover, rows, load, watched })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}

fn as_json(floor: &Row, measured: &[Measured]) -> Value {
    let row = |row: &Row| {
        json!({
            "what": row.what, "count": row.figures.count,
            "median_ms": millis(row.figures.median), "max_ms": millis(row.figures.max),
        })
    };
    let run = |run: &Measured| {
        json!({
            "handover": run.handover.name(),
            "rows": run.rows.iter().map(row).collect::<Vec<_>>(),
            "answered": run.answered(), "failed": run.failed(), "failures": run.reasons(),
        })
    };
    json!({ "floor": row(floor), "runs": measured.iter().map(run).collect::<Vec<_>>() })
}

fn as_table(floor: &Row, measured: &[Measured]) -> String {
    let line = |row: &Row| {
        let Figures { count, median, max, .. } = row.figures;
        format!("  {:<56} {:>9.2} {:>9.2} {:>4}\n", row.what, millis(median), millis(max), count)
    };
    let mut text = format!("{:<58} {:>9} {:>9} {:>4}\n", "milliseconds", "median", "max", "of");
    text.push_str(&line(floor));
    for run in measured {
        text.push_str(&format!("\nthe shop has handover = \"{}\"\n", run.handover.name()));
        run.rows.iter().for_each(|row| text.push_str(&line(row)));
        text.push_str(&format!("  requests: {} answered, {} failed\n", run.answered(), run.failed()));
        for reason in run.reasons() {
            text.push_str(&format!("    {reason}\n"));
        }
    }
    text.push_str(&format!(
        "\nload on the shop: {NEW_PER_SECOND} new connections a second, {KEPT} kept ones with 20 requests a second each, \
         {SLOW} requests of 300 ms;\na client that connects every {} ms to each listener",
        LOOK_PERIOD.as_millis()
    ));
    text
}

impl Measured {
    fn reports(&self) -> impl Iterator<Item = &Report> {
        self.watched.iter().chain([&self.load])
    }

    fn answered(&self) -> u64 {
        self.reports().map(|report| report.answered).sum()
    }

    fn failed(&self) -> u64 {
        self.reports().map(|report| report.failed).sum()
    }

    fn reasons(&self) -> Vec<&str> {
        self.reports().flat_map(|report| &report.reasons).map(String::as_str).take(REASONS_MAX).collect()
    }
}
