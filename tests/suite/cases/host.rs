//! Section H: signals, privileges, files.

use std::fs;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use refit_fixtures::tools::cannot_try;

use crate::appliance::Appliance;
use crate::bus::generation;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// An end within this time is no deadline of 30 s that has passed.
const FAST: Duration = Duration::from_secs(15);

fn end(appliance: &mut Appliance, signal: Signal) -> ExitStatus {
    process::send(appliance.guard_pid(), signal);
    appliance.wait_guard(LIMIT)
}

#[test]
fn b093_terminate_ends_everything_in_good_order_with_0() {
    let release = Release::bare("1.0.0").part("database", &[], "").part("web", &[], "needs = [\"database\"]");
    let mut appliance = Appliance::new(&release).start();
    assert_eq!(end(&mut appliance, Signal::SIGTERM).code(), Some(0), "{}", appliance.log());
    assert!(appliance.processes().is_empty(), "no process is left");
    assert_eq!(appliance.order(), ["start database", "start web", "stop web", "stop database"]);
}

#[test]
fn b093_interrupt_ends_everything_as_well_and_the_next_start_works() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    assert_eq!(end(&mut appliance, Signal::SIGINT).code(), Some(0));
    assert!(appliance.processes().is_empty());
    appliance.run_guard();
    appliance.wait_running();
}

#[test]
fn b095_hang_up_reloads_and_keeps_everything_as_it_was() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let seen =
        || (appliance.guard_pid(), appliance.runtime_pid(), appliance.component_pid("shop"), generation(&appliance));
    let before = seen();
    process::send(appliance.guard_pid(), Signal::SIGHUP);
    eventually(LIMIT, "the reload is in the log", || appliance.log().contains("reload: nobody was asked"));
    assert_eq!(seen(), before);
    assert_eq!(appliance.status()["bus"]["state"], "Running");
}

#[test]
fn b094_hang_up_means_the_same_on_a_terminal() {
    // The contract defines it and never guesses from a terminal: where the case says exit, it stands.
    let appliance = Appliance::new(&Release::shop("1.0.0"));
    let script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let output = appliance.scratch().join("terminal");
    let mut terminal = Command::new("python3")
        .args(["-c", script, crate::release::REFIT, "run", "--home"])
        .arg(appliance.home())
        .stdin(Stdio::null())
        .stdout(fs::File::create(&output).expect("made"))
        .spawn()
        .expect("started");
    let state = || appliance.try_status().map(|status| status["bus"]["state"].clone());
    eventually(LIMIT, "the site runs", || state().is_some_and(|state| state == "Running"));
    let guard = crate::appliance::pid_of(&appliance.status()["guard"]);
    process::send(guard, Signal::SIGHUP);
    eventually(LIMIT, "the reload is told on the terminal", || {
        fs::read_to_string(&output).is_ok_and(|text| text.contains("reload: nobody was asked"))
    });
    assert_eq!(state(), Some("Running".into()));
    process::send(guard, Signal::SIGINT);
    assert_eq!(terminal.wait().expect("waited for").code(), Some(0));
    assert!(appliance.processes().is_empty(), "no process is left");
}

#[test]
fn b099_as_the_first_process_it_ends_in_good_order_and_collects_every_orphan() {
    let orphan = "(sh -c 'exit 0' &); touch $REFIT_DATA/done; exec sleep 1000";
    let command = format!("command = [\"sh\", \"-c\", \"{orphan}\"]\nready = \"exec\"");
    let appliance = Appliance::new(&Release::bare("1.0.0").component("mother", &command));
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let tried = Command::new(unshare.get_program()).args(unshare.get_args()).arg("true").output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        return cannot_try("this machine gives nobody a PID namespace");
    }
    unshare.arg(crate::release::REFIT).args(["run", "--home"]).arg(appliance.home());
    let log = fs::File::create(appliance.scratch().join("first.log")).expect("made");
    let mut outside = unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("started");
    let running = || appliance.try_status().is_some_and(|status| status["bus"]["state"] == "Running");
    eventually(LIMIT, "the site runs", || running() && appliance.home().join("data/done").exists());
    assert_eq!(appliance.status()["guard"]["pid"], 1);
    let children = |pid: i32| -> Vec<i32> {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    let first = children(i32::try_from(outside.id()).expect("a PID"))[0];
    let has_ended = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    eventually(LIMIT, "no orphan is left uncollected", || !children(first).iter().any(has_ended));
    process::send(first, Signal::SIGTERM);
    assert_eq!(outside.wait().expect("waited for").code(), Some(0));
}

fn deaf() -> Appliance {
    Appliance::new(&Release::bare("1.0.0").part("deaf", &["--deaf"], "stop_timeout = \"30s\"")).start()
}

#[test]
fn b097_a_second_terminate_ends_the_patience_with_a_component_that_does_not_listen() {
    let mut appliance = deaf();
    process::send(appliance.guard_pid(), Signal::SIGTERM);
    wait_stopping(&appliance);
    process::send(appliance.guard_pid(), Signal::SIGTERM);
    appliance.wait_guard(FAST);
    assert!(appliance.processes().is_empty(), "no process is left");
}

#[test]
fn b097_a_third_terminate_ends_everything_at_once() {
    let mut appliance = deaf();
    for _ in 0..3 {
        process::send(appliance.guard_pid(), Signal::SIGTERM);
        // A signal that is pending already is not sent again: each has to arrive first.
        wait_stopping(&appliance);
    }
    assert_eq!(appliance.wait_guard(FAST).code(), Some(70), "{}", appliance.log());
    assert!(appliance.processes().is_empty(), "no process is left");
}

/// Waits until the stop has begun, or is over.
fn wait_stopping(appliance: &Appliance) {
    eventually(LIMIT, "the stop has begun", || {
        appliance.log().contains("stopping") || appliance.processes().is_empty()
    });
}
