//! Commands that wait for an appliance that does not answer, ends, or forgets: each ends within a bound, with the truth.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::appliance::{Appliance, Ran, refit, text};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// How long a command may take that gets no answer, on a busy machine.
const BOUND: Duration = Duration::from_secs(45);
/// How long a command may take that follows what it asked for over a crash.
const FOLLOW_BOUND: Duration = Duration::from_secs(60);

/// A command that runs beside the test.
struct Beside {
    child: Child,
    dir: tempfile::TempDir,
}

impl Beside {
    fn begin(appliance: &Appliance, words: &[&str], stdin: Stdio) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str| File::create(dir.path().join(name)).expect("make a file");
        let mut command = refit();
        command.args(words).arg("--home").arg(appliance.home());
        let child = command.stdin(stdin).stdout(file("out")).stderr(file("err")).spawn().expect("start refit");
        Self { child, dir }
    }

    fn install(appliance: &Appliance, release: &Release) -> Self {
        let package = release.package();
        Self::begin(appliance, &["install", package.to_str().expect("text"), "--json"], Stdio::null())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).expect("read a file")
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().expect("look at it").is_none()
    }

    fn end(mut self, bound: Duration) -> Ran {
        let status = until(bound, "the command ends", || self.child.try_wait().expect("wait for it"));
        Ran { code: status.code().unwrap_or(-1), stdout: self.read("out"), stderr: self.read("err") }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.child.kill().ok(); // ended already is as good
        self.child.wait().ok();
    }
}

/// Returns what the last line of `--json` says of the end: the state of the ticket, or the code of an error.
fn last_word(ran: &Ran) -> String {
    let last = ran.objects().pop().expect("a last line");
    let word = if last["ticket"].is_object() { &last["ticket"]["state"] } else { &last["error"]["code"] };
    text(word)
}

#[test]
fn a_command_ends_when_somebody_has_the_socket_and_never_accepts() {
    let appliance = Appliance::new(&Release::bare("1.0.0"));
    fs::create_dir_all(appliance.home().join("run")).expect("make run/");
    let _held = UnixListener::bind(appliance.home().join("run/refit.sock")).expect("bind");
    let package = Release::bare("1.1.0").package();
    let package = package.to_str().expect("text");
    let commands: &[&[&str]] = &[
        &["status"],
        &["history"],
        &["check"],
        &["rollback"],
        &["bus", "state"],
        &["bus", "watch"],
        &["bus", "request", "exit"],
        &["bus", "publish", "prices"],
        &["component", "restart", "shop"],
        &["component", "logs", "-f", "shop"],
        &["install", package],
    ];
    let begun: Vec<_> = commands.iter().map(|words| (words, Beside::begin(&appliance, words, Stdio::null()))).collect();
    for (words, command) in begun {
        let line = command.end(BOUND).complains_with(69);
        assert!(line.contains("nothing came from"), "{words:?}: {line}");
    }
}

#[test]
fn a_runtime_that_is_stopped_is_noticed_and_heard_again() {
    let appliance = Appliance::new(&Release::bare("1.0.0"));
    let appliance = appliance.local(|text| text.replace("[update]", "[update]\nwatchdog = \"10m\"")).start();
    let runtime = appliance.runtime_pid();
    let mut watch = Beside::begin(&appliance, &["bus", "watch", "--json"], Stdio::null());
    let mut logs = Beside::begin(&appliance, &["bus", "watch"], Stdio::null());
    // Nobody takes part in it, so that it fails; it is heard of all the same.
    let reload = || appliance.refit(&["bus", "request", "reload"]).ends_with(70);
    eventually(LIMIT, "both hear it", || {
        reload();
        watch.read("out").contains("reload") && logs.read("out").contains("reload")
    });
    process::send(runtime, Signal::SIGSTOP);
    let line = appliance.refit(&["status"]).complains_with(69);
    assert!(line.contains("nothing came from"), "{line}");
    for command in [&watch, &logs] {
        eventually(LIMIT, "it says so", || command.read("err").contains("the appliance does not answer"));
    }
    process::send(runtime, Signal::SIGCONT);
    let heard = watch.read("out").len();
    reload();
    eventually(LIMIT, "it hears again", || watch.read("out")[heard..].contains("reload"));
    assert!(watch.runs() && logs.runs());
}

/// Waits until the update has come to `phase`, or further.
fn wait_phase(install: &mut Beside, phase: &str) {
    until(LIMIT, &format!("the update is at {phase}"), || {
        let said = install.read("out");
        (said.contains(&format!("\"step\":\"{phase}\"")) || !install.runs()).then_some(())
    });
}

/// Asserts that what a command said of the end is what has become of the appliance.
fn assert_truth(appliance: &Appliance, ran: &Ran, when: &str) {
    let status = until(LIMIT, "nothing is under way", || {
        let status = appliance.try_status()?;
        (status["update"].is_null() && status["bus"]["state"] == "Running").then_some(status)
    });
    let runs = text(&status["release"]["version"]);
    let word = last_word(ran);
    assert!([0, 70, 74, 75].contains(&ran.code), "{when}: {ran:?}");
    assert_eq!(ran.code == 0, runs == "1.1.0", "{when}: {runs} runs, {ran:?}");
    assert_eq!(ran.code == 0, word == "done", "{when}: {ran:?}");
    let newest = appliance.history().first().cloned().unwrap_or(Value::Null);
    if word == "failed" {
        assert_ne!(newest["outcome"], "done", "{when}: {newest}");
    }
}

#[test]
fn an_installation_tells_the_truth_whenever_the_runtime_is_killed() {
    for phase in ["staged", "preflight", "trial", "exec", "starting", "probation", "committed"] {
        let appliance = Appliance::new(&Release::shop("1.0.0")).start();
        let mut install = Beside::install(&appliance, &Release::shop("1.1.0"));
        wait_phase(&mut install, phase);
        let runtime = appliance.runtime_pid();
        process::send(runtime, Signal::SIGKILL);
        let ran = install.end(FOLLOW_BOUND);
        assert_truth(&appliance, &ran, phase);
    }
}

#[test]
fn an_installation_tells_the_truth_when_guard_and_runtime_are_killed() {
    for phase in ["staged", "probation"] {
        let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
        let mut install = Beside::install(&appliance, &Release::shop("1.1.0"));
        wait_phase(&mut install, phase);
        let runtime = appliance.runtime_pid();
        process::send(appliance.guard_pid(), Signal::SIGSTOP);
        process::send(runtime, Signal::SIGKILL);
        appliance.kill_guard();
        eventually(LIMIT, "the runtime is gone", || !process::is_alive(runtime));
        appliance.run_guard();
        appliance.wait_running();
        let ran = install.end(FOLLOW_BOUND);
        assert_truth(&appliance, &ran, phase);
    }
}

#[test]
fn an_installation_whose_package_is_on_the_way_ends_when_the_runtime_is_killed() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let package = fs::read(Release::shop("1.1.0").package()).expect("read the package");
    let mut install = Beside::begin(&appliance, &["install", "-", "--json"], Stdio::piped());
    let mut pipe = install.child.stdin.take().expect("a pipe");
    pipe.write_all(&package[..package.len() / 2]).expect("it reads");
    eventually(LIMIT, "the package arrives", || appliance.status()["receiving"].is_object());
    process::send(appliance.runtime_pid(), Signal::SIGKILL);
    let ran = install.end(FOLLOW_BOUND);
    assert_eq!((ran.code, last_word(&ran).as_str()), (75, "package_interrupted"), "{ran:?}");
    appliance.settled("1.0.0");
}

#[test]
fn an_exit_that_a_crash_overtakes_is_gone_on_with_and_waited_for() {
    // A component that takes its time to stop, so that the runtime can be killed meanwhile.
    let slow = Release::bare("1.0.0").part("slow", &["--deaf"], "stop_timeout = \"10s\"");
    let mut appliance = Appliance::new(&slow).start();
    let exit = Beside::begin(&appliance, &["bus", "request", "exit", "--json"], Stdio::null());
    eventually(LIMIT, "it is ending", || {
        appliance.try_status().is_some_and(|status| status["bus"]["state"] == "Stopping")
    });
    process::send(appliance.runtime_pid(), Signal::SIGKILL);
    let ran = exit.end(FOLLOW_BOUND);
    assert_eq!((ran.code, last_word(&ran).as_str()), (0, "done"), "{ran:?}");
    appliance.wait_guard(LIMIT);
    assert!(appliance.processes().is_empty(), "all of it has ended: {:?}", appliance.processes());
}

#[test]
fn the_outcome_of_an_update_outlives_its_ticket() {
    let mut appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let ran = appliance.install(&Release::bare("1.1.0"), &["--json"]).ends_with(0);
    let ticket = ran.objects().pop().expect("a last line")["ticket"].clone();
    // Of the tickets of a guard that ended nothing is left.
    appliance.stop();
    appliance.run_guard();
    appliance.wait_running();
    let path = format!("/api/v1/bus/requests/{}", text(&ticket["id"]));
    let answer = crate::http::Request::new(&appliance.socket(), "GET", &path).send().json();
    assert_eq!(answer["ticket"], ticket);
    let missing = crate::http::Request::new(&appliance.socket(), "GET", "/api/v1/bus/requests/nothing-0").send();
    assert_eq!(missing.status, 404);
}
