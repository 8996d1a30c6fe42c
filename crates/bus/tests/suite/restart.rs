//! Section G: restart and update. Those of b080 and b082 are in `tests/suite/watch.rs` of the root package.

use std::collections::BTreeSet;
use std::sync::Arc;

use refit_bus::{EXIT, Progress, Replacement, STOP, State};
use refit_bus::{Origin, Request};

use crate::probe::{OK, Site, both, paused};

fn replacement() -> Arc<Replacement> {
    Arc::new(Replacement { label: "next".to_owned(), program: "/bin/next".into(), keep_running: BTreeSet::new() })
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
