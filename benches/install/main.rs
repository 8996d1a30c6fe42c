//! How long it takes to install a release, beside what else unpacks files and beside what cannot be avoided.
//!
//! The payload is some 300 MB of this machine's own libraries and data (`payload.rs` has the rule), as a package of Refit, as two
//! tars, as an update of swupdate and as a bundle of RAUC, where these are installed. Each is unpacked and synced by a
//! process of its own, all in turn, round after round; what is printed are medians, and the medians of the ratios within
//! a round. Nothing is removed in between, only emptied: file systems avoid what was freed a moment ago, which would be
//! measured, too. The floor is decoding, hashing, writing and syncing on all cores with the libraries that Refit uses, and
//! nothing else: no signature, no manifest, no modes, no names that appear only when all is there. Figures only: nothing
//! here passes or fails.
//!
//! `cargo bench --bench install`, and `-- --json` behind it for one JSON object instead of the table.

mod floor;
mod payload;
mod peers;
mod work;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use refit_base::Chain;
use refit_updater::durable::remove_tree;
use serde_json::{Value, json};

use peers::Peer;
use work::Work;

/// How often everything is measured.
const ROUNDS: usize = 7;
/// The program that is measured.
const REFIT: &str = env!("CARGO_BIN_EXE_refit");

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    /// The system refused something.
    #[error("cannot {what}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
    /// A program did not do what it was asked.
    #[error("{program} ended with {status}: {output}")]
    Command { program: String, status: std::process::ExitStatus, output: String },
    /// A release could not be installed.
    #[error("cannot {what}")]
    Refit {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A child of this program printed something else than its figures.
    #[error("a measurement printed {0:?}")]
    Figures(String),
}

/// Returns how an error of the system becomes ours.
fn failed(what: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    move |source| BenchError::Io { what, source }
}

/// Returns how an error of the updater becomes ours.
fn refit_failed<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl FnOnce(E) -> BenchError {
    move |source| BenchError::Refit { what, source: Box::new(source) }
}

/// Runs a program to its end. Returns what it printed.
fn run(command: &mut Command) -> Result<String, BenchError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(failed("start a program"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let output_text = printed + &String::from_utf8_lossy(&output.stderr);
    Err(BenchError::Command { program, status: output.status, output: output_text })
}

/// One run of one process.
#[derive(Debug, Clone, Copy)]
struct Sample {
    wall: Duration,
    /// Of user and system, on all cores.
    cpu: Duration,
    /// Of the largest process in it.
    peak_kib: u64,
}

/// What was measured of one way to install.
struct Row {
    what: String,
    samples: Vec<Sample>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let done = match words.split_first() {
        Some((mode, rest)) if !mode.starts_with("--") => work::child(mode, rest),
        Some(_) | None => measure(words.iter().any(|word| word == "--json")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr().lock(), "install: {}", Chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn measure(json: bool) -> Result<(), BenchError> {
    // Below the build directory: a temporary directory is often in memory, and what is measured is a disk.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(failed("make a directory"))?;
    let work = Work::prepare(dir.path())?;
    let mut rows: Vec<Row> = Vec::new();
    let mut peers = peers::all(&work)?;
    for round in 0..ROUNDS {
        let mut add = |what: &str, sample: Sample| match rows.iter_mut().find(|row| row.what == what) {
            Some(row) => row.samples.push(sample),
            None => rows.push(Row { what: what.to_owned(), samples: vec![sample] }),
        };
        for (what, sample) in work.refit_round(round)? {
            add(what, sample);
        }
        for peer in &mut peers {
            let sample = peer.round(&work, round)?;
            add(peer.name(), sample);
        }
    }
    peers.into_iter().try_for_each(Peer::end)?;
    let text = if json { as_json(&work, &rows).to_string() } else { as_table(&work, &rows) };
    writeln!(io::stdout().lock(), "{text}").map_err(failed("print"))?;
    // Releases are read-only: dropping the directory would leave them to whoever is not root.
    remove_tree(dir.path()).map_err(failed("remove what was measured"))
}

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> Option<T> {
    values.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied()
}

impl Row {
    fn wall(&self) -> Duration {
        median(self.samples.iter().map(|sample| sample.wall).collect()).unwrap_or_default()
    }

    /// Returns minimum and maximum.
    fn spread(&self) -> (Duration, Duration) {
        let walls = self.samples.iter().map(|sample| sample.wall);
        (walls.clone().min().unwrap_or_default(), walls.max().unwrap_or_default())
    }

    fn cpu(&self) -> Duration {
        median(self.samples.iter().map(|sample| sample.cpu).collect()).unwrap_or_default()
    }

    fn peak_kib(&self) -> u64 {
        self.samples.iter().map(|sample| sample.peak_kib).max().unwrap_or_default()
    }

    /// Returns the median of the ratios to `other`, each taken within one round.
    fn ratio(&self, other: &Self) -> f64 {
        let ratios = self.samples.iter().zip(&other.samples).map(|(one, other)| {
            let other = other.wall.as_secs_f64();
            if other > 0.0 { one.wall.as_secs_f64() / other } else { f64::NAN }
        });
        median(ratios.collect()).unwrap_or(f64::NAN)
    }
}

fn as_json(work: &Work, rows: &[Row]) -> Value {
    let refit = rows.iter().find(|row| row.what == work::FIRST);
    let row = |row: &Row| {
        let (min, max) = row.spread();
        json!({
            "what": row.what, "runs": row.samples.len(), "median_ms": millis(row.wall()), "min_ms": millis(min),
            "max_ms": millis(max), "cpu_ms": millis(row.cpu()), "peak_kib": row.peak_kib(), "ratio": refit.map(|refit| row.ratio(refit)),
        })
    };
    json!({ "payload": work.about(), "rows": rows.iter().map(row).collect::<Vec<_>>() })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

fn as_table(work: &Work, rows: &[Row]) -> String {
    let mut text = format!(
        "{}\n\n{:<52} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10}\n",
        work.in_words(),
        "milliseconds",
        "median",
        "min",
        "max",
        "cpu",
        "ratio",
        "peak MiB"
    );
    let refit = rows.iter().find(|row| row.what == work::FIRST);
    for row in rows {
        let (min, max) = row.spread();
        text.push_str(&format!(
            "{:<52} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.2} {:>10.1}\n",
            row.what,
            millis(row.wall()),
            millis(min),
            millis(max),
            millis(row.cpu()),
            refit.map_or(f64::NAN, |refit| row.ratio(refit)),
            row.peak_kib() as f64 / 1024.0,
        ));
    }
    text.push_str(&format!(
        "\nEach in {ROUNDS} rounds, all in turn; the ratio is to \"{}\", the median of those of each round.\n\
         The peak is that of the largest process.",
        work::FIRST
    ));
    text
}

/// Where this program lies.
fn this_program() -> Result<PathBuf, BenchError> {
    std::env::current_exe().map_err(failed("find this program"))
}
