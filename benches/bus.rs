//! What the bus costs: publications, waiters, the life of many components, and what it does when nothing happens.
//!
//! Beside it, in the same run and in turns, the Python ancestor does what it can do: `cherrypy` in a virtual environment below the
//! target directory. Without Python or a network it is left out, and the output says so. Figures only: nothing here passes or
//! fails. The last figure in a line of the ancestor is how many times as much as ours it is; in a line of the floor, how many times as much
//! as that ours is.
//!
//! `cargo bench --bench bus`, and `-- --json` behind it for one JSON object instead of the tables; the names of subjects (`publications`,
//! `external`, `waits`, `lives`, `processes`, `idle`) for those alone.

#[allow(dead_code, reason = "the benches share it; each uses a part")]
mod support;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use refit::Request;
use refit_base::Chain;
use serde_json::json;

use support::ancestor::{self, Ancestor, Blocked};
use support::crowd::{Crowd, Program};
use support::embedded::{self, Embedded};
use support::external::{self, External};
use support::table::{Table, Unit, Who};
use support::wakeups::Look;
use support::{BenchError, failed};

/// Everything is measured so many times, in turns: what else the machine does hits all alike.
const ROUNDS: usize = 5;
/// How many listeners, and how many publications to them in a round.
const LISTENERS: [(usize, usize); 3] = [(1, 2000), (10, 1000), (1000, 40)];
/// How many publications to each number of external listeners in a round.
const EXTERNAL_COUNTS: [usize; 3] = [500, 200, 40];
/// How many waits for a state in a round.
const WAITS: usize = 20;
/// How many components.
const COMPONENTS: usize = 200;
/// The chains that they stand in.
const SHAPES: [(usize, usize); 2] = [(10, COMPONENTS / 10), (1, COMPONENTS)];
/// Waiters beside an idle bus.
const WAITERS: usize = 10;
/// Before idling is counted: threads that are kept for further work end after 10 s without any.
const SETTLE: Duration = Duration::from_secs(12);
/// How long idling is counted: three reports to the watchdog at its default.
const IDLE: Duration = Duration::from_secs(31);

fn main() -> ExitCode {
    let json = std::env::args().any(|word| word == "--json");
    match run(json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr().lock(), "bus: {}", Chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(json: bool) -> Result<(), BenchError> {
    let (python, without) = match ancestor::install() {
        Ok(python) => (Some(python), None),
        Err(error) => (None, Some(Chain(&error).to_string())),
    };
    type Measure = fn(Option<&Path>) -> Result<Table, BenchError>;
    let subjects: [(&str, Measure); 6] = [
        ("publications", publications),
        ("external", external_publications),
        ("waits", waits),
        ("lives", lives),
        ("processes", processes),
        ("idle", idle),
    ];
    let named: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut tables = Vec::new();
    for (name, measure) in subjects {
        if !named.is_empty() && !named.iter().any(|word| word == name) {
            continue;
        }
        let table = measure(python.as_deref())?;
        if !json {
            // Each as soon as it is there: all of them take minutes.
            writeln!(io::stdout().lock(), "{table}").map_err(failed("print"))?;
        }
        tables.push(table.as_json());
    }
    let text = match without {
        _ if json => json!({ "tables": tables, "without_ancestor": without }).to_string(),
        Some(reason) => format!("without the ancestor: {reason}"),
        None => return Ok(()),
    };
    writeln!(io::stdout().lock(), "{text}").map_err(failed("print"))
}

/// Starts an ancestor, if there is one.
fn start(python: Option<&Path>) -> Result<Option<Ancestor>, BenchError> {
    python.map(Ancestor::start).transpose()
}

fn publications(python: Option<&Path>) -> Result<Table, BenchError> {
    let mut table = Table::new("publication to listeners in the process", Unit::Micros, Some("calls/s"));
    let bus = Embedded::start()?;
    let mut ancestor = start(python)?;
    for _ in 0..ROUNDS {
        for (listeners, count) in LISTENERS {
            for distinct in [false, true] {
                let what = format!("{listeners}, {} priorities", if distinct { "distinct" } else { "equal" });
                let published = bus.publish(listeners, distinct, count)?;
                table.add(&what, Who::Refit, published.one_by_one);
                table.add_rate(&what, Who::Refit, published.calls_per_second);
                if let Some(ancestor) = &mut ancestor {
                    let durations = ancestor.publish(listeners, distinct, count)?;
                    // Its interpreter runs one thread at a time: more publishers would not be faster.
                    let elapsed: Duration = durations.iter().sum();
                    table.add_rate(&what, Who::Ancestor, (count * listeners) as f64 / elapsed.as_secs_f64());
                    table.add(&what, Who::Ancestor, durations);
                }
            }
        }
    }
    bus.finish()?;
    Ok(table)
}

fn external_publications(_python: Option<&Path>) -> Result<Table, BenchError> {
    let mut table = Table::new("publication to other processes, by another process", Unit::Micros, Some("calls/s"));
    let program = Program::compile()?;
    let crowd = Crowd::start(&program, 0, 0)?;
    let mut clients = External::connect(&crowd.home())?;
    for _ in 0..ROUNDS {
        for ((channel, listeners), count) in external::CHANNELS.into_iter().zip(EXTERNAL_COUNTS) {
            let what = format!("{listeners}, over run/bus.sock");
            table.add(&what, Who::Refit, clients.one_by_one(channel, listeners, count)?);
            table.add_rate(&what, Who::Refit, clients.at_once(channel, listeners, count)?);
        }
    }
    Ok(table)
}

fn waits(python: Option<&Path>) -> Result<Table, BenchError> {
    let mut table = Table::new("from the request to a waiter that hears of the state", Unit::Micros, None);
    let what = "start of an empty site";
    let bus = Embedded::start()?;
    let mut ancestor = start(python)?;
    for _ in 0..ROUNDS {
        for _ in 0..WAITS {
            table.add(what, Who::Refit, [bus.hear()?]);
        }
        if let Some(ancestor) = &mut ancestor {
            table.add(what, Who::Ancestor, ancestor.hear(WAITS)?);
        }
    }
    bus.finish()?;
    Ok(table)
}

fn lives(python: Option<&Path>) -> Result<Table, BenchError> {
    let mut table = Table::new("200 components in the process, one after the other", Unit::Micros, None);
    let mut ancestor = start(python)?;
    for _ in 0..ROUNDS {
        let bus = Embedded::start()?;
        bus.attach_chain(COMPONENTS)?;
        table.add("start", Who::Refit, [bus.request(Request::Start)?]);
        table.add("stop", Who::Refit, [bus.request(Request::Stop)?]);
        bus.finish()?;
        if let Some(ancestor) = &mut ancestor {
            let [start, stop] = ancestor.life(COMPONENTS, None)?;
            table.add("start", Who::Ancestor, [start]);
            table.add("stop", Who::Ancestor, [stop]);
        }
    }
    Ok(table)
}

fn processes(python: Option<&Path>) -> Result<Table, BenchError> {
    let mut table = Table::new("200 components, each a process", Unit::Millis, None);
    let program = Program::compile()?;
    let mut ancestor = start(python)?;
    let mut crowds = Vec::new();
    for (chains, length) in SHAPES {
        let shape = if chains == 1 { "in one chain".to_owned() } else { format!("in {chains} chains of {length}") };
        crowds.push((shape, Crowd::start(&program, chains, length)?));
    }
    for _ in 0..ROUNDS {
        let [start, stop] = program.alone(COMPONENTS)?;
        table.add("start in one chain", Who::Floor, [start]);
        table.add("stop in one chain", Who::Floor, [stop]);
        for (shape, crowd) in &crowds {
            table.add(&format!("stop {shape}"), Who::Refit, [crowd.request("stop")?]);
            table.add(&format!("start {shape}"), Who::Refit, [crowd.request("start")?]);
        }
        if let Some(ancestor) = &mut ancestor {
            let [start, stop] = ancestor.life(COMPONENTS, Some(&program.path))?;
            table.add("start in one chain", Who::Ancestor, [start]);
            table.add("stop in one chain", Who::Ancestor, [stop]);
        }
    }
    Ok(table)
}

fn idle(python: Option<&Path>) -> Result<Table, BenchError> {
    let mut table = Table::new("nothing happens", Unit::Micros, Some("wakeups/s"));
    let program = Program::compile()?;
    let mut bus = Embedded::start()?;
    bus.request(Request::Start)?;
    bus.add_waiters(WAITERS);
    let appliances = [("guard and runtime, no component", 0), ("guard and runtime, 10 components", 10)];
    let mut subjects = Vec::new();
    let mut alive = Vec::new();
    for (what, components) in appliances {
        let crowd = Crowd::start(&program, components, 1)?;
        subjects.push((what, Who::Refit, crowd.own_processes()?.to_vec(), ""));
        alive.push(crowd);
    }
    subjects.push(("a bus with 10 waiters", Who::Refit, vec![std::process::id()], embedded::THREADS));
    let mut blocked = Vec::new();
    for (what, waiters) in [("a bus that blocks", 0), ("a bus with 10 waiters", WAITERS)] {
        if let Some(python) = python {
            let ancestor = Blocked::start(python, waiters)?;
            subjects.push((what, Who::Ancestor, vec![ancestor.pid()], ""));
            blocked.push(ancestor);
        }
    }
    thread::sleep(SETTLE);
    let look = |(_, _, processes, prefix): &(&str, Who, Vec<u32>, &str)| Look::at(processes, prefix);
    let before = subjects.iter().map(look).collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    thread::sleep(IDLE);
    let after = subjects.iter().map(look).collect::<Result<Vec<_>, _>>()?;
    let seconds = begun.elapsed().as_secs_f64();
    for (((what, who, _, _), before), after) in subjects.iter().zip(&before).zip(&after) {
        table.add_rate(what, *who, after.since(before) as f64 / seconds);
    }
    bus.finish()?;
    Ok(table)
}
