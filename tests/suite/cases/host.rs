//! Section H: signals, privileges, files.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use refit::Request;
use refit::bus::{ENTER, State};

use super::probe::{OK, Site, both, limited};
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
    eventually(LIMIT, "the reload is in the log", || appliance.log().contains("generation 1 is in force"));
    assert_eq!(seen(), before);
    assert_eq!(appliance.status()["bus"]["state"], "Running");
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

#[test]
fn b098_who_listened_before_the_bus_is_heard_again_when_the_bus_has_let_go() {
    limited(async {
        // Nobody else in this process listens for this signal, and whoever does is not ended by it.
        let mut own = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler");
        let site = Site::idle().await;
        drop(site.bus.signals().expect("handlers"));
        raise(Signal::SIGTERM).expect("raised");
        own.recv().await.expect("the old handler runs");
        assert_eq!(site.bus.state(), State::Idle, "the bus does not hear of it");
        site.exit().await;
    });
}

#[test]
fn b103_what_is_once_per_process_is_called_once() {
    both(|| async {
        let site = Arc::new(Site::at_rest());
        site.probe(ENTER, "once", 50, OK);
        site.run();
        for request in [Request::Start, Request::Stop, Request::Start, Request::Reload] {
            site.done(request).await;
        }
        site.exit().await;
        assert_eq!(site.journal.calls(), ["enter once"]);
    });
}
