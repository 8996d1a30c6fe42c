//! Section G: restart and update. The watched files of b080 and b082 have a file of their own.

use std::collections::BTreeSet;
use std::sync::Arc;

use nix::sys::signal::Signal;
use refit::bus::{EXIT, Progress, Replacement, STOP, State};
use refit::{Origin, Request};

use super::probe::{OK, Site, both, paused};
use crate::appliance::Appliance;
use crate::bus::generation;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

fn replacement() -> Arc<Replacement> {
    Arc::new(Replacement { label: "next".to_owned(), program: "/bin/next".into(), leave: BTreeSet::new() })
}

#[test]
fn b079_a_restart_stops_then_exits_and_leaves_the_new_image_to_the_owner_of_the_bus() {
    both(|| async {
        let site = Site::idle().await;
        for channel in [STOP, EXIT] {
            site.probe(channel, "probe", 50, OK);
        }
        site.part("part").attach();
        site.done(Request::Start).await;
        let bus = site.bus.clone();
        let worker = tokio::spawn(async move {
            let ticket = bus.request(Request::Restart(replacement()), Origin("worker".to_owned()));
            ticket.outcome().await
        });
        let ended = site.ended().await;
        assert_eq!(worker.await.expect("no panic"), Progress::Done);
        assert_eq!(ended.replacement, Some(replacement()));
        let mut calls = site.journal.calls();
        calls[1..3].sort();
        assert_eq!(calls, ["start part", "stop part", "stop probe", "exit probe"]);
        assert_eq!(site.journal.find("stop part").argument, "replace");
        assert!(ended.faults.is_empty() && site.bus.state() == State::Exited);
    });
}

#[test]
fn b079_an_exit_is_stronger_than_a_restart_under_way() {
    // On one thread: the engine has not moved when the second one asks.
    paused(async {
        let site = Site::idle().await;
        let restart = site.ask(Request::Restart(replacement()));
        let exit = site.ask(Request::Exit);
        let outcome = restart.outcome().await;
        assert!(matches!(&outcome, Progress::Failed(why) if why.contains("cancelled by exit of test")), "{outcome:?}");
        assert_eq!(exit.outcome().await, Progress::Done);
        assert_eq!(site.ended().await.replacement, None);
    });
}

#[test]
fn b083_a_restart_in_place_keeps_pid_sockets_and_components_and_no_client_notices() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let pids = || (appliance.runtime_pid(), appliance.component_pid("shop"), appliance.component_pid("stock"));
    let (before, first) = (pids(), generation(&appliance));
    let inodes = process::listening_inodes(appliance.address("http").port());
    let load = appliance.load(crate::load::LoadOptions::default());
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    assert_eq!((pids(), generation(&appliance)), (before, first + 1));
    process::send(appliance.guard_pid(), Signal::SIGUSR2);
    eventually(LIMIT, "the next image runs", || {
        appliance
            .try_status()
            .is_some_and(|status| status["bus"]["state"] == "Running" && status["runtime"]["generation"] == first + 2)
    });
    assert_eq!(pids(), before);
    assert_eq!(process::listening_inodes(appliance.address("http").port()), inodes);
    load.finish().assert_clean();
    assert!(appliance.history().is_empty(), "a restart is no update");
}
