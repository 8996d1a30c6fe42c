//! What components print: kept within limits, found again after anything, followed across everything, and in the journal.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::appliance::{Appliance, refit};
use crate::http::Request;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// A component that prints: see its own text.
const TALKER: &str = include_str!("release/talker.py");

/// Returns a release with a component that prints in this way, and with these further keys.
fn talker(version: &str, mode: &str, keys: &str) -> Release {
    let words: String = mode.split(' ').map(|word| format!(", \"{word}\"")).collect();
    let command = format!("command = [\"python3\", \"lib/talker.py\", \"talker\"{words}]\nready = \"exec\"\n{keys}");
    Release::bare(version).component("talker", &command).file("lib/talker.py", TALKER)
}

/// Returns what the command shows, as objects.
fn logs(appliance: &Appliance, count: usize) -> Vec<Value> {
    appliance.refit(&["component", "logs", "talker", "--json", "-n", &count.to_string()]).ends_with(0).objects()
}

/// Waits until the component has made its mark.
fn wait_done(appliance: &Appliance) {
    eventually(LIMIT, "the component has printed all", || appliance.home().join("data/done").exists());
}

/// Waits until the last line is as `wanted`; returns the last `count`.
fn wait_line(appliance: &Appliance, count: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    until(LIMIT, "the line is there", || {
        let lines = logs(appliance, count);
        lines.last().is_some_and(&wanted).then_some(lines)
    })
}

/// Returns the files below the home's log directory, with their sizes.
fn files(home: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut files = Vec::new();
    let Ok(dirs) = fs::read_dir(home.join("log")) else { return files };
    for dir in dirs.flatten() {
        for file in fs::read_dir(dir.path()).expect("a component's directory").flatten() {
            // One that was removed since is none.
            let Ok(metadata) = file.metadata() else { continue };
            files.push((file.path(), metadata.len()));
        }
    }
    files.sort();
    files
}

/// `refit component logs -f`, its lines as they come.
struct Follower {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Follower {
    fn start(appliance: &Appliance, count: usize) -> Self {
        let mut command = refit();
        command.args(["component", "logs", "talker", "-f", "--json", "-n", &count.to_string(), "--home"]);
        let mut child =
            command.arg(appliance.home()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        let stdout = child.stdout.take().expect("a pipe");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                let object = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if sender.send(object).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Returns the next line.
    fn next(&self) -> Value {
        self.lines.recv_timeout(LIMIT).expect("a line comes")
    }

    /// Waits until it ends; returns its exit status and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let status = until(LIMIT, "following ends", || self.child.try_wait().expect("wait for it"));
        let mut said = String::new();
        let stderr = self.child.stderr.take().expect("a pipe");
        std::io::Read::read_to_string(&mut BufReader::new(stderr), &mut said).expect("read");
        (status.code(), said)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.child.kill().ok(); // gone already is as good
        self.child.wait().ok();
    }
}

/// Asserts that `line` is the tick after `last`, and sets that.
fn is_next(last: &mut Option<u64>, line: &Value) {
    let number = line["line"].as_str().and_then(|text| text.strip_prefix("tick ")?.parse().ok());
    let number: u64 = number.unwrap_or_else(|| panic!("no tick: {line}"));
    if let Some(last) = *last {
        assert_eq!(number, last + 1, "a line is missing, or there twice: {line}");
    }
    *last = Some(number);
}

#[test]
fn every_line_has_its_time_stream_and_text() {
    let appliance = Appliance::new(&talker("1.0.0", "mixed", "")).start();
    let lines = until(LIMIT, "all lines are there", || {
        let lines = logs(&appliance, 100);
        (lines.len() == 6).then_some(lines)
    });
    let seen: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| (line["stream"].as_str().expect("a stream"), line["line"].as_str().expect("a text")))
        .filter(|(_, text)| !text.starts_with('z'))
        .collect();
    // Two pipes: the order between them is not known.
    for expected in [("stdout", "out"), ("stderr", "err"), ("stdout", "\\xFF\\xFE café"), ("stdout", "\u{1b}[2Jno end")]
    {
        assert!(seen.contains(&expected), "{expected:?} is not in {seen:?}");
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
    let cut: Vec<(usize, bool)> = lines
        .iter()
        .filter_map(|line| {
            Some((line["line"].as_str().filter(|text| text.starts_with('z'))?.len(), line["cut"] == true))
        })
        .collect();
    assert_eq!(cut, [(4096, true), (904, false)]);
    let err = lines.iter().find(|line| line["line"] == "err").expect("it is there");
    assert_eq!((&err["priority"], &err["instance"]), (&3.into(), &"talker-1".into()));
    assert!(lines.windows(2).all(|pair| pair[0]["seq"].as_u64() < pair[1]["seq"].as_u64()), "the numbers grow");

    let text = appliance.refit(&["component", "logs", "talker"]).ends_with(0).stdout;
    let last = text.lines().find(|line| line.contains("no end")).expect("the line");
    assert!(last.ends_with(" stdout \\u{1b}[2Jno end"), "{last}");
    assert!(last.starts_with("20") && last.split(' ').next().is_some_and(|at| at.ends_with('Z')), "{last}");
    let page = Request::new(&appliance.socket(), "GET", "/api/v1/components/talker/logs?n=1").send().json();
    assert_eq!(page["lines"].as_array().map(Vec::len), Some(1), "{page}");
    for (path, _) in files(appliance.home()) {
        let mode = path.metadata().expect("its mode").permissions().mode();
        assert_eq!(mode & 0o007, 0, "{}: {mode:o}", path.display());
    }
}

#[test]
fn a_flood_blocks_nobody_and_fills_no_disk_and_its_end_is_there() {
    const BYTES: u64 = 64 << 20;
    let release = talker("1.0.0", &format!("flood {BYTES}"), "");
    let appliance =
        Appliance::new(&release).local(|text| format!("{text}\n[log]\nfile_bytes = \"256KiB\"\nfiles = 3\n")).start();
    wait_done(&appliance);
    let lines = wait_line(&appliance, 1, |line| line["line"] == "the last words");
    assert_eq!(lines.len(), 1);
    let kept = files(appliance.home());
    assert!(kept.len() <= 3 && kept.iter().all(|(_, bytes)| *bytes <= 256 << 10), "{kept:?}");
    let log = appliance.log();
    assert!((log.len() as u64) < BYTES / 4, "the flood is not passed on: {} bytes", log.len());
    // What was left out is said where it was.
    let all = until(LIMIT, "it is said what was dropped", || {
        let text: String =
            files(appliance.home()).iter().filter_map(|(path, _)| fs::read_to_string(path).ok()).collect();
        text.contains("lines were dropped").then_some(text)
    });
    assert!(all.contains("\"stream\":\"refit\""), "{}", &all[all.len() - 200..]);
    assert_eq!(appliance.status()["components"][0]["state"], "running");
}

#[test]
fn output_without_ends_of_lines_is_cut_and_said() {
    let appliance = Appliance::new(&talker("1.0.0", "endless 4194304", "")).start();
    wait_done(&appliance);
    until(LIMIT, "it is said", || appliance.log().contains("a component prints without ends of lines").then_some(()));
    let lines = logs(&appliance, 10);
    assert_eq!(lines.len(), 10);
    assert!(lines.iter().all(|line| line["cut"] == true && line["line"].as_str().is_some_and(|l| l.len() == 4096)));
    let all = logs(&appliance, 100_000);
    let said: Vec<&Value> = all.iter().filter(|line| line["stream"] == "refit").collect();
    assert!(said.iter().any(|line| line["line"].to_string().contains("without the end of a line")), "{said:?}");
}

#[test]
fn older_lines_come_from_the_disk_also_after_a_new_start() {
    let mut appliance = Appliance::new(&talker("1.0.0", "ticks", "")).start();
    until(LIMIT, "more lines than are in memory", || (logs(&appliance, 3000).len() >= 1500).then_some(()));
    let before = logs(&appliance, 1500);
    let mut last = None;
    before.iter().for_each(|line| is_next(&mut last, line));
    let newest = before.last().expect("a line")["seq"].clone();

    appliance.stop();
    let appliance = appliance.start();
    let after = until(LIMIT, "it prints again", || {
        let lines = logs(&appliance, 10_000);
        lines
            .iter()
            .any(|line| line["instance"] != before[0]["instance"] || line["seq"].as_u64() > newest.as_u64())
            .then_some(lines)
    });
    let begin = after.iter().position(|line| line["seq"] == newest).expect("the old lines are there");
    assert!(begin >= 1499, "all of them: {begin}");
    let mut last = None;
    after.iter().for_each(|line| is_next(&mut last, line));
    let path = format!("/api/v1/components/talker/logs?n=5&after={newest}");
    let page = Request::new(&appliance.socket(), "GET", &path).send().json();
    let page = page["lines"].as_array().expect("a list");
    assert_eq!(page[..], after[begin + 1..][..page.len()], "from a number on");
}

#[test]
fn following_goes_on_across_everything_and_ends_with_the_appliance() {
    let mut appliance = Appliance::new(&talker("1.0.0", "ticks", "")).start();
    let follower = Follower::start(&appliance, 5);
    let mut last = None;
    let mut go_on = |until: &dyn Fn(&Value) -> bool| loop {
        let line = follower.next();
        is_next(&mut last, &line);
        if until(&line) {
            return line;
        }
    };
    go_on(&|_| true);
    appliance.refit(&["component", "restart", "talker"]).ends_with(0);
    go_on(&|line| line["instance"] == "talker-2");
    // The same process: what it prints while nobody reads it waits in the pipe.
    let generation = appliance.status()["runtime"]["generation"].clone();
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    eventually(LIMIT, "the runtime has replaced itself", || appliance.status()["runtime"]["generation"] != generation);
    let now = logs(&appliance, 1)[0]["seq"].clone();
    go_on(&|line| line["seq"].as_u64() > now.as_u64());
    appliance.install(&talker("1.1.0", "ticks", "env = { NEW = \"1\" }"), &[]).ends_with(0);
    go_on(&|line| line["instance"] != "talker-2");
    appliance.stop();
    let (status, said) = {
        while follower.lines.recv_timeout(LIMIT).is_ok_and(|line| {
            is_next(&mut last, &line);
            true
        }) {}
        follower.end()
    };
    assert_eq!((status, said.as_str()), (Some(0), "refit: the appliance has ended\n"));
}

#[test]
fn following_goes_on_after_a_crash_of_the_runtime_and_ends_when_interrupted() {
    let appliance = Appliance::new(&talker("1.0.0", "ticks", "")).start();
    let follower = Follower::start(&appliance, 0);
    let first = follower.next();
    appliance.kill_runtime();
    let now = logs(&appliance, 1)[0]["seq"].as_u64();
    let mut newest = first["seq"].as_u64();
    until(LIMIT, "a line from after the crash", || {
        let line = follower.next();
        assert!(line["seq"].as_u64() > newest, "no line comes twice: {line}");
        newest = line["seq"].as_u64();
        (newest > now).then_some(())
    });
    process::send(i32::try_from(follower.child.id()).expect("a PID"), Signal::SIGINT);
    assert_eq!(follower.end(), (Some(0), String::new()));
}

#[test]
fn files_that_were_moved_away_are_begun_anew_when_the_guard_is_told() {
    let appliance = Appliance::new(&talker("1.0.0", "ticks", "")).start();
    let first = until(LIMIT, "there is a file", || files(appliance.home()).into_iter().find(|(_, bytes)| *bytes > 0)).0;
    let moved = appliance.home().join("moved.jsonl");
    fs::rename(&first, &moved).expect("moved");
    process::send(appliance.guard_pid(), Signal::SIGUSR1);
    eventually(LIMIT, "another file is begun", || files(appliance.home()).iter().any(|(_, bytes)| *bytes > 0));
    let size = moved.metadata().expect("there").len();
    let before = logs(&appliance, 1);
    until(LIMIT, "more is printed", || (logs(&appliance, 1) != before).then_some(()));
    assert_eq!(moved.metadata().expect("there").len(), size, "the moved file is left alone");
}

#[test]
fn a_line_that_is_printed_in_two_halves_is_one_line_over_an_exec() {
    let appliance = Appliance::new(&talker("1.0.0", "halves", "")).start();
    let (generation, pid) = (appliance.status()["runtime"]["generation"].clone(), appliance.component_pid("talker"));
    // That the first half was read: nothing is in the pipe any more, and it is in no line yet.
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    eventually(LIMIT, "the runtime has replaced itself", || appliance.status()["runtime"]["generation"] != generation);
    assert_eq!(appliance.component_pid("talker"), pid, "the same process");
    File::create(appliance.home().join("data/go")).expect("say so");
    let lines = wait_line(&appliance, 10, |line| line["line"].as_str().is_some_and(|text| text.ends_with('f')));
    assert_eq!(lines.iter().map(|line| line["line"].as_str()).collect::<Vec<_>>(), [Some("half")]);
}

#[test]
fn followers_over_http_get_what_they_accept_and_go_on_from_what_they_saw() {
    let appliance = Appliance::new(&talker("1.0.0", "ticks", "")).start();
    let get =
        |query: &str| Request::new(&appliance.socket(), "GET", &format!("/api/v1/components/talker/logs?{query}"));
    let mut stream = get("follow=true&n=2").header("Accept", "text/event-stream").stream().expect("a stream");
    assert_eq!((stream.status, stream.header("content-type")), (200, "text/event-stream"));
    let mut field = |name: &str| {
        let prefix = format!("{name}: ");
        stream.by_ref().find_map(|line| line.strip_prefix(&prefix).map(str::to_owned)).expect("it goes on")
    };
    assert!(field("id").parse::<u64>().is_ok(), "the number to go on from comes first");
    let id = field("id");
    let data: Value = serde_json::from_str(&field("data")).expect("an object");
    assert_eq!(data["seq"].to_string(), id);
    let mut last = None;
    is_next(&mut last, &data);
    let again = get("follow=true&n=2").header("Accept", "application/x-ndjson").header("Last-Event-ID", &id);
    let stream = again.stream().expect("a stream");
    assert_eq!((stream.header("content-type"), stream.header("refit-cursor")), ("application/x-ndjson", id.as_str()));
    for line in stream.filter(|line| !line.is_empty()).take(20) {
        is_next(&mut last, &serde_json::from_str(&line).expect("an object"));
    }
    assert_eq!(get("follow=sometimes").send().status, 400);
    let missing = Request::new(&appliance.socket(), "GET", "/api/v1/components/nobody/logs?follow=true").send();
    assert_eq!(missing.status, 404);
}

#[test]
fn a_log_directory_that_cannot_be_written_stops_nothing_and_is_said_once() {
    let appliance = Appliance::new(&talker("1.0.0", "ticks", ""));
    fs::write(appliance.home().join("log"), "in the way").expect("written");
    let appliance = appliance.start();
    until(LIMIT, "the lines are in memory", || (logs(&appliance, 600).len() >= 600).then_some(()));
    assert_eq!(appliance.log().matches("cannot write a component's output").count(), 1, "{}", appliance.log());
    fs::remove_file(appliance.home().join("log")).expect("out of the way");
    until(LIMIT, "it is written again", || (!files(appliance.home()).is_empty()).then_some(()));
    let kept = until(LIMIT, "it is said what is missing", || {
        let text: String =
            files(appliance.home()).iter().filter_map(|(path, _)| fs::read_to_string(path).ok()).collect();
        text.contains("lines were dropped").then_some(text)
    });
    assert!(kept.contains("\"stream\":\"refit\""));
}

#[test]
fn under_the_journal_lines_go_there_with_the_components_name() {
    let appliance = Appliance::new(&talker("1.0.0", "mixed", ""));
    let address = appliance.scratch().join("journal");
    let journal = UnixDatagram::bind(&address).expect("bound");
    journal.set_read_timeout(Some(LIMIT)).expect("a limit");
    // The journal's stream is standard error: here a file is, which is known by the same two numbers.
    let output = appliance.scratch().join("stderr");
    let file = File::create(&output).expect("a file");
    let stat = file.metadata().expect("its numbers");
    let mut command = refit();
    command.args(["run", "--with-parent", "--journal-socket"]).arg(&address).arg("--home").arg(appliance.home());
    command.env("JOURNAL_STREAM", format!("{}:{}", stat.dev(), stat.ino())).stdout(Stdio::null()).stderr(file);
    let mut guard = Guard(command.spawn().expect("start the guard"));
    let mut seen: Vec<String> = Vec::new();
    let mut bytes = [0; 8192];
    while !seen.iter().any(|text| text.contains("no end")) || !seen.iter().any(|text| text.contains("MESSAGE=err")) {
        let count = journal.recv(&mut bytes).expect("a datagram");
        seen.push(String::from_utf8(bytes[..count].to_vec()).expect("text"));
    }
    let err = seen.iter().find(|text| text.starts_with("MESSAGE=err\n")).expect("the priority is taken off");
    for field in ["PRIORITY=3", "SYSLOG_IDENTIFIER=talker", "REFIT_COMPONENT=talker", "REFIT_STREAM=stderr"] {
        assert!(err.lines().any(|line| line == field), "{field} is not in {err}");
    }
    assert!(seen.iter().any(|text| text.contains("MESSAGE=out\nPRIORITY=6\n")), "{seen:?}");
    let text = fs::read_to_string(&output).expect("read");
    assert!(!text.contains("café"), "not a second time: {text}");
    guard.0.kill().expect("kill it");
    let lines = fs::read_dir(appliance.home().join("log/talker")).expect("a directory").count();
    assert_eq!(lines, 1, "and in the file");
}

/// A guard that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.kill().ok(); // gone already is as good
        self.0.wait().ok();
    }
}
