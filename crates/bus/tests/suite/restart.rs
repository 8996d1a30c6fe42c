//! Section G: restart and update. Those of b080 and b082 are in `tests/suite/watch.rs` of the root package.

use std::collections::BTreeSet;
use std::sync::Arc;

use refit_bus::{CancellationToken, EXIT, Options, Progress, Replacement, STOP, State};
use refit_bus::{Origin, Request};

use crate::probe::{Deed, FAST, OK, OPTIONS, Site, both, paused};

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

#[test]
fn an_exit_that_takes_the_place_of_a_restart_stops_what_was_to_run_on_before_the_end() {
    both(|| async {
        for asked_in in ["stop other", "exit last"] {
            let options = Options { listener: FAST, stop: FAST, ..OPTIONS };
            let site = Site::idle_of(options).await;
            let (stop, last) = (CancellationToken::new(), CancellationToken::new());
            site.part("base").attach();
            site.part("kept").needs(&["base"]).on("stop", Deed::Fail("it would not")).attach();
            site.part("other").on("stop", Deed::Gate(stop.clone())).attach();
            site.probe(EXIT, "last", 50, Deed::Gate(last.clone()));
            site.done(Request::Start).await;
            let keep_running = ["base".to_owned(), "kept".to_owned()].into();
            let replacement = Replacement { label: "next".to_owned(), program: "/next".into(), keep_running };
            let restart = site.ask(Request::Restart(Arc::new(replacement)));
            if asked_in == "exit last" {
                stop.cancel();
            }
            site.journal.happened(asked_in).await;
            let exit = site.ask(Request::Exit);
            stop.cancel();
            last.cancel();
            assert_eq!(exit.outcome().await, Progress::Done);
            assert!(matches!(restart.outcome().await, Progress::Failed(_)));
            let ended = site.ended().await;
            let reasons = |name: &str| {
                let lines = site.journal.lines();
                let of = lines.iter().filter(|line| line.what == "stop" && line.name == name);
                of.map(|line| line.argument.as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!(reasons("kept").last().map(String::as_str), Some("exit"), "{asked_in}");
            assert_eq!(reasons("base").last().map(String::as_str), Some("exit"), "{asked_in}");
            assert_eq!(reasons("other"), ["replace"], "{asked_in}");
            let calls = site.journal.calls();
            let latest = |words: &str| calls.iter().rposition(|call| call == words);
            assert!(latest("stop kept") < latest("stop base"), "{calls:?}");
            assert!(
                ended.replacement.is_none() && ended.faults.iter().any(|fault| fault.component == "kept"),
                "{ended:?}"
            );
        }
    });
}

#[test]
fn what_runs_since_the_image_before_is_stopped_although_nothing_was_started() {
    both(|| async {
        let site = Site::at_rest();
        for name in ["base", "top", "down"] {
            let needs: &[&str] = if name == "top" { &["base"] } else { &[] };
            site.part(name).needs(needs).attach();
        }
        site.run_with_running(&["base", "top"]);
        site.bus.wait(&[State::Idle]).await.expect("it gets there");
        site.exit().await;
        assert_eq!(site.journal.calls(), ["stop top", "stop base"]);
    });
}
