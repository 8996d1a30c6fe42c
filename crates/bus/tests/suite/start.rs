//! Section C: start.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use refit_bus::Request;
use refit_bus::{CancellationToken, ENTER, EXIT, Limits, OnEnd, Progress, START, Service, State, Subscription};

use crate::probe::{Deed, FAST, GRACE, LISTENER, OK, Site, both, limited, paused, probe};

#[test]
fn b023_start_calls_every_listener_and_ends_running() {
    both(|| async {
        let site = Site::idle().await;
        for name in ["one", "two", "three"] {
            site.probe(START, name, 50, OK);
        }
        site.seen.clear();
        site.done(Request::Start).await;
        let mut called = site.journal.names(START);
        called.sort();
        assert_eq!(called, ["one", "three", "two"]);
        assert_eq!(
            (site.bus.state(), site.seen.states().as_slice()),
            (State::Running, [State::Starting, State::Running].as_slice())
        );
        assert!(site.journal.lines().iter().all(|line| line.state == State::Starting));
        site.exit().await;
    });
}

#[test]
fn b024_running_is_visible_only_after_the_last_start_listener() {
    both(|| async {
        let site = Site::idle().await;
        let slow = probe(&site.journal, "slow", Deed::Sleep(Duration::from_millis(200)));
        site.bus.subscribe(Subscription::new(START, "slow", slow).limit(FAST));
        let waiting = {
            let bus = site.bus.clone();
            tokio::spawn(async move { bus.wait(&[State::Running]).await })
        };
        site.ask(Request::Start);
        assert_eq!(waiting.await.expect("no panic"), Ok(State::Running));
        assert_eq!(site.journal.count("start done slow"), 1);
        site.exit().await;
    });
}

#[test]
fn b025_what_waits_for_the_ticket_of_a_start_runs_after_it() {
    both(|| async {
        let site = Arc::new(Site::idle().await);
        site.probe(START, "probe", 50, OK);
        let own = Arc::clone(&site);
        let callback = move |one: u32, two: &'static str| {
            own.journal.note("callback", &format!("{one} {two}"), own.bus.state(), &serde_json::Value::Null);
        };
        let ticket = site.ask(Request::Start);
        tokio::spawn(async move {
            ticket.outcome().await;
            callback(1, "two");
        })
        .await
        .expect("no panic");
        assert_eq!(site.journal.calls(), ["start probe", "callback 1 two"]);
        assert_eq!(site.journal.find("callback 1 two").state, State::Running);
        site.exit().await;
    });
}

/// Attaches the components of the cases of a failing start: b fails, d depends on it.
fn a_fails_b_c_d(site: &Site, b: Deed) {
    site.part("a").priority(10).attach();
    site.part("b").priority(20).on("start", b).attach();
    site.part("c").priority(30).attach();
    site.part("d").needs(&["b"]).attach();
    site.probe(EXIT, "last", 50, OK);
}

#[test]
fn b027_a_failing_start_is_undone_in_reverse_and_the_site_ends_with_70() {
    both(|| async {
        let site = Site::idle().await.exiting_after_failure();
        a_fails_b_c_d(&site, Deed::Fail("no licence"));
        site.seen.clear();
        let outcome = site.want(Request::Start).await;
        let ended = site.ended().await;
        assert_eq!(site.journal.calls(), ["start a", "start b", "start c", "stop c", "stop a", "exit last"]);
        let passed = [State::Starting, State::Stopping, State::Idle, State::Exiting, State::Exited];
        assert_eq!(site.seen.states(), passed);
        assert_eq!(format!("{:?}", ended.exit_code()), format!("{:?}", std::process::ExitCode::from(70)));
        assert_eq!(ended.faults.len(), 1, "{:?}", ended.faults);
        let fault = &ended.faults[0];
        assert_eq!((fault.component.as_str(), fault.phase.as_str(), fault.cause.as_str()), ("b", START, "no licence"));
        assert!(matches!(&outcome, Progress::Failed(why) if why.contains("b: no licence")), "{outcome:?}");
        assert_eq!(site.journal.find("stop a").argument, "undo");
    });
}

#[test]
fn b028_a_component_that_never_started_is_not_stopped() {
    both(|| async {
        let site = Site::idle().await;
        a_fails_b_c_d(&site, Deed::Fail("no licence"));
        site.part("e").needs(&["d"]).attach();
        site.want(Request::Start).await;
        let calls = site.journal.calls();
        assert!(
            !calls.iter().any(|call| call.ends_with(" d") || call.ends_with(" e") || call == "stop b"),
            "{calls:?}"
        );
        assert_eq!(site.bus.state(), State::Idle);
        site.done(Request::Exit).await;
        assert_eq!(site.journal.names("stop"), ["c", "a"], "nor at the end");
    });
}

#[test]
fn b029_the_caller_learns_that_the_start_failed_and_lives_on() {
    both(|| async {
        let site = Site::idle().await;
        site.part("a").on("start", Deed::Fail("first cause")).attach();
        site.part("b").on("start", Deed::Panic).attach();
        let outcome = site.want(Request::Start).await;
        let Progress::Failed(why) = outcome else { panic!("{outcome:?}") };
        let lines: Vec<&str> = why.trim_start().lines().map(str::trim).collect();
        assert_eq!(lines[0], "a: first cause (priority 50)", "a line for each: {why}");
        assert!(lines[1].starts_with("b: panicked: a probe panics, at "), "{why}");
        assert!(lines[1].contains("suite/probe.rs:") && lines[1].ends_with(" (priority 50)"), "{why}");
        assert_eq!(site.bus.state(), State::Idle);
        site.bus.detach("a");
        site.bus.detach("b");
        site.done(Request::Start).await;
        site.done(Request::Exit).await;
        assert_eq!(site.ended().await.faults.len(), 2);
    });
}

#[test]
fn a_site_may_run_without_what_did_not_start_and_stops_what_comes_up_later() {
    both(|| async {
        let site = Site::idle().await.running_after_failure();
        site.part("a").attach();
        site.part("b").on("start", Deed::Fail("no licence")).attach();
        site.part("c").needs(&["b"]).attach();
        site.part("d").after(&["b"]).attach();
        let Progress::Failed(why) = site.want(Request::Start).await else { panic!("the ticket says what is missing") };
        assert!(why.contains("b: no licence"), "{why}");
        assert_eq!(site.bus.state(), State::Running);
        assert_eq!(site.want(Request::Start).await, Progress::Already);
        assert_eq!(site.journal.names("stop"), [""; 0], "nothing was undone");
        site.done(Request::Stop).await;
        let stopped = site.journal.names("stop");
        assert_eq!(stopped.len(), 4, "{stopped:?}");
        site.done(Request::Exit).await;
        assert_eq!(site.ended().await.faults.len(), 1);
    });
}

#[test]
fn b030_what_is_so_already_calls_nobody_again() {
    both(|| async {
        let site = Site::idle().await;
        site.part("a").attach();
        assert_eq!(site.want(Request::Stop).await, Progress::Already);
        site.done(Request::Start).await;
        assert_eq!(site.want(Request::Start).await, Progress::Already);
        assert_eq!(site.journal.calls(), ["start a"]);
        site.done(Request::Stop).await;
        assert_eq!(site.want(Request::Stop).await, Progress::Already);
        assert_eq!(site.journal.calls(), ["start a", "stop a"]);
        site.exit().await;
    });
}

#[test]
fn b031_nothing_is_started_after_the_end() {
    both(|| async {
        let site = Site::idle().await;
        site.part("a").attach();
        site.exit().await;
        for request in [Request::Start, Request::Stop, Request::Reload] {
            let outcome = site.want(request).await;
            assert!(matches!(&outcome, Progress::Refused(why) if why.contains("has ended")), "{outcome:?}");
        }
        assert_eq!(site.want(Request::Exit).await, Progress::Already);
        assert_eq!((site.bus.state(), site.journal.calls().len()), (State::Exited, 0));
    });
}

#[test]
fn b032_after_a_stop_everything_starts_again_but_what_is_once_per_process() {
    both(|| async {
        let site = Site::at_rest();
        site.probe(ENTER, "once", 50, OK);
        site.part("a").attach();
        site.part("b").needs(&["a"]).attach();
        site.run();
        for request in [Request::Start, Request::Stop, Request::Start] {
            site.done(request).await;
        }
        let calls = ["enter once", "start a", "start b", "stop b", "stop a", "start a", "start b"];
        assert_eq!(site.journal.calls(), calls);
        site.exit().await;
    });
}

#[test]
fn b032_requests_that_undo_each_other_before_anything_happened_get_an_outcome() {
    // On one thread: the engine has not moved when the second one asks.
    paused(async {
        let site = Site::idle().await;
        site.part("a").attach();
        let (start, stop) = (site.ask(Request::Start), site.ask(Request::Stop));
        let outcome = start.outcome().await;
        assert!(matches!(&outcome, Progress::Failed(why) if why.contains("cancelled by stop of test")), "{outcome:?}");
        assert_eq!(stop.outcome().await, Progress::Done);
        assert_eq!(site.bus.state(), State::Idle);
        site.done(Request::Start).await;
        let (stop, start) = (site.ask(Request::Stop), site.ask(Request::Start));
        let outcome = stop.outcome().await;
        assert!(matches!(&outcome, Progress::Failed(why) if why.contains("cancelled by start of test")), "{outcome:?}");
        assert_eq!(start.outcome().await, Progress::Done);
        assert_eq!(site.bus.state(), State::Running);
        site.exit().await;
    });
}

#[test]
fn b033_an_exit_cancels_a_start() {
    both(|| async {
        let site = Site::idle().await;
        site.part("a").priority(10).attach();
        site.part("b")
            .priority(20)
            .on("start", Deed::Polite)
            .limits(Limits { start: Some(FAST), ..Limits::default() })
            .attach();
        site.part("c").priority(30).attach();
        site.probe(EXIT, "last", 50, OK);
        let start = site.ask(Request::Start);
        site.journal.happened("start b").await;
        site.done(Request::Exit).await;
        let outcome = start.outcome().await;
        assert!(
            matches!(&outcome, Progress::Failed(why) if why.contains("start cancelled by exit of test")),
            "{outcome:?}"
        );
        assert_eq!(site.journal.calls(), ["start a", "start b", "stop a", "exit last"]);
        let ended = site.ended().await;
        assert!(ended.faults.is_empty() && ended.asked, "{ended:?}");
    });
}

#[test]
fn b033_a_start_that_was_cancelled_is_undone_although_it_is_wanted_again() {
    both(|| async {
        let site = Site::idle().await;
        site.part("a").priority(10).attach();
        let again = CancellationToken::new();
        site.part("b").priority(20).on("start", Deed::Gate(again.clone())).attach();
        site.part("c").priority(30).attach();
        let first = site.ask(Request::Start);
        site.journal.happened("start b").await;
        let stop = site.ask(Request::Stop);
        // The engine has heard of the stop, and waits for b.
        let (bus, journal) = (site.bus.clone(), Arc::clone(&site.journal));
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        let second = bus.request(Request::Start, refit_bus::Origin("test".to_owned()));
        again.cancel();
        assert!(matches!(first.outcome().await, Progress::Failed(_)));
        assert!(stop.outcome().await.is_final());
        assert_eq!(second.outcome().await, Progress::Done, "{:?}", site.bus.faults());
        assert_eq!(journal.names("start done").len() - journal.names("stop").len(), 3, "{:?}", journal.calls());
        let ended = site.exit().await;
        assert!(ended.faults.is_empty());
    });
}

#[test]
fn b035_a_start_listener_that_hangs_is_given_up_at_its_deadline_and_the_start_undone() {
    paused(async {
        let site = Site::idle().await.exiting_after_failure();
        a_fails_b_c_d(&site, Deed::Hang);
        let begun = tokio::time::Instant::now();
        let outcome = site.want(Request::Start).await;
        assert!(matches!(&outcome, Progress::Failed(why) if why.contains("b: not done within 0.3 s")), "{outcome:?}");
        let ended = site.ended().await;
        assert_eq!(ended.faults.len(), 1);
        assert!(begun.elapsed() < (LISTENER + GRACE) * 3 / 2, "{:?}", begun.elapsed());
        assert_eq!(site.journal.calls(), ["start a", "start b", "start c", "stop c", "stop a", "exit last"]);
    });
}

#[test]
fn b035_a_start_listener_that_holds_its_thread_is_given_up_as_well() {
    limited(async {
        let site = Site::idle().await.exiting_after_failure();
        a_fails_b_c_d(&site, Deed::Block);
        let outcome = site.want(Request::Start).await;
        assert!(matches!(&outcome, Progress::Failed(why) if why.contains("b: ")), "{outcome:?}");
        site.ended().await;
        assert_eq!(site.journal.calls(), ["start a", "start b", "start c", "stop c", "stop a", "exit last"]);
    });
}

#[test]
fn b035_a_component_that_came_up_too_late_is_stopped() {
    both(|| async {
        let site = Site::idle().await;
        site.part("a").on("start", Deed::Late).attach();
        assert!(matches!(site.want(Request::Start).await, Progress::Failed(_)));
        assert_eq!(site.journal.calls(), ["start a", "stop a"], "it is up, and was told to stop");
        site.done(Request::Exit).await;
    });
}

#[test]
fn b036_a_server_that_serves_opens_no_second_socket() {
    limited(async {
        let site = Site::idle().await;
        let opened = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&opened);
        let server = Service::new(&site.bus, "server", OnEnd::Exit, move |stop| {
            let counted = Arc::clone(&counted);
            async move {
                let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                    .map_err(|error| refit_bus::Failure::from_error(&error))?;
                counted.fetch_add(1, Ordering::SeqCst);
                stop.cancelled().await;
                drop(socket);
                Ok(())
            }
        });
        site.bus.attach(Arc::new(server)).expect("its name is free");
        site.done(Request::Start).await;
        super::probe::reached("it serves", || opened.load(Ordering::SeqCst) == 1).await;
        assert_eq!(site.want(Request::Start).await, Progress::Already);
        site.exit().await;
        assert_eq!(opened.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn b037_the_site_runs_only_after_the_server_has_said_that_it_is_ready() {
    both(|| async {
        let site = Site::idle().await;
        let ready = CancellationToken::new();
        site.part("server").on("start", Deed::Gate(ready.clone())).attach();
        let start = site.ask(Request::Start);
        site.journal.happened("start server").await;
        assert_eq!((site.bus.state(), start.progress()), (State::Starting, Progress::Accepted));
        ready.cancel();
        assert_eq!(start.outcome().await, Progress::Done);
        site.exit().await;
    });
}
