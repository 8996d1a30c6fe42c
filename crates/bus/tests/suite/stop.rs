//! Section D: stop, exit, block.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use refit_bus::{Bus, Failure, Origin, Request};
use refit_bus::{CancellationToken, EXIT, Ended, LOG, OnEnd, Options, Progress, START, STOP, Service, State};
use tokio::time::Instant;

use crate::probe::{self, Deed, FAST, GRACE, LISTENER, OK, Site, both, limited, paused, reached};

/// Asserts the exit status of a bus.
fn assert_status(ended: &Ended, status: u8) {
    let expected = std::process::ExitCode::from(status);
    assert_eq!(format!("{:?}", ended.exit_code()), format!("{expected:?}"), "{:?}", ended.faults);
}

/// Subscribes three probes to each of `channels`.
fn three(site: &Site, channels: &[&str]) {
    for channel in channels {
        for name in ["1", "2", "3"] {
            site.probe(channel, name, 50, OK);
        }
    }
}

#[test]
fn b039_stop_calls_every_listener_and_ends_idle() {
    both(|| async {
        let site = Site::idle().await;
        three(&site, &[STOP]);
        site.done(Request::Start).await;
        site.seen.clear();
        site.done(Request::Stop).await;
        assert_eq!(site.journal.names(STOP).len(), 3);
        assert_eq!(site.seen.states(), [State::Stopping, State::Idle]);
        assert!(site.journal.lines().iter().all(|line| line.state == State::Stopping));
        site.exit().await;
    });
}

#[test]
fn b040_exit_stops_first_then_ends_with_0() {
    both(|| async {
        let site = Site::idle().await;
        three(&site, &[STOP, EXIT]);
        site.done(Request::Start).await;
        site.seen.clear();
        let ended = site.exit().await;
        let calls: Vec<String> = site.journal.calls().iter().map(|call| call[..4].to_owned()).collect();
        assert_eq!(calls, ["stop", "stop", "stop", "exit", "exit", "exit"]);
        assert_eq!(site.seen.states(), [State::Stopping, State::Idle, State::Exiting, State::Exited]);
        assert_status(&ended, 0);
    });
}

#[test]
fn b041_exit_of_an_idle_site_calls_only_the_exit_listeners() {
    both(|| async {
        let site = Site::idle().await;
        three(&site, &[STOP, EXIT]);
        assert_status(&site.exit().await, 0);
        assert_eq!((site.journal.names(STOP).len(), site.journal.names(EXIT).len()), (0, 3));
    });
}

#[test]
fn b042_exited_means_that_the_exit_listeners_are_done() {
    both(|| async {
        let site = Arc::new(Site::idle().await);
        site.bus.subscribe(
            refit_bus::Subscription::new(
                EXIT,
                "slow",
                probe::probe(&site.journal, "slow", Deed::Sleep(Duration::from_millis(500))),
            )
            .limit(FAST),
        );
        let own = site.bus.clone();
        drop(tokio::spawn(async move { own.request(Request::Exit, Origin("background".to_owned())) }));
        assert_status(&site.ended().await, 0);
        assert_eq!((site.bus.state(), site.journal.count("exit done slow")), (State::Exited, 1));
    });
}

#[test]
fn b043_a_failing_stop_listener_skips_neither_the_others_nor_the_exit() {
    both(|| async {
        let site = Site::idle().await;
        site.probe(STOP, "10", 10, OK);
        site.probe(STOP, "20", 20, Deed::Fail("stuck"));
        site.probe(STOP, "25", 25, Deed::Panic);
        site.probe(STOP, "30", 30, OK);
        site.probe(EXIT, "last", 50, OK);
        site.done(Request::Start).await;
        site.done(Request::Exit).await;
        let ended = site.ended().await;
        assert_eq!(site.journal.calls(), ["stop 30", "stop 25", "stop 20", "stop 10", "exit last"]);
        assert_eq!(ended.faults.iter().map(|fault| fault.component.as_str()).collect::<Vec<_>>(), ["25", "20"]);
        assert_status(&ended, 70);
    });
}

#[test]
fn b044_a_failing_exit_listener_stops_nobody_and_gives_70() {
    both(|| async {
        let site = Site::idle().await;
        site.probe(EXIT, "20", 20, Deed::Fail("no"));
        site.probe(EXIT, "30", 30, OK);
        site.done(Request::Exit).await;
        let ended = site.ended().await;
        assert_eq!(
            (site.journal.calls(), site.bus.state()),
            (vec!["exit 20".to_owned(), "exit 30".to_owned()], State::Exited)
        );
        assert_status(&ended, 70);
    });
}

#[test]
fn b045_exits_at_the_same_time_are_one() {
    both(|| async {
        let site = Site::idle().await;
        let open = CancellationToken::new();
        site.probe(STOP, "stops", 50, Deed::Gate(open.clone()));
        site.probe(EXIT, "exits", 50, OK);
        site.done(Request::Start).await;
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..2 {
            let bus = site.bus.clone();
            asking.spawn(async move { bus.request(Request::Exit, Origin("one of them".to_owned())).outcome().await });
        }
        site.journal.happened("stop stops").await;
        let third = site.ask(Request::Exit);
        assert_eq!(third.merged_with(), Some(2), "the first is the start");
        assert_eq!(third.progress(), Progress::Accepted);
        open.cancel();
        assert_eq!(third.outcome().await, Progress::Done);
        let outcomes = asking.join_all().await;
        // One of the two may ask only now.
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Progress::Done | Progress::Already)), "{outcomes:?}");
        assert_status(&site.ended().await, 0);
        assert_eq!(site.journal.calls(), ["stop stops", "exit exits"]);
    });
}

#[test]
fn b046_a_stop_during_the_start_is_not_lost() {
    both(|| async {
        let site = Site::idle().await;
        let open = CancellationToken::new();
        site.part("slow").on("start", Deed::Gate(open.clone())).attach();
        let start = site.ask(Request::Start);
        site.journal.happened("start slow").await;
        let stop = site.ask(Request::Stop);
        open.cancel();
        assert_eq!(stop.outcome().await, Progress::Done);
        assert!(matches!(start.outcome().await, Progress::Failed(_)));
        assert_eq!(site.journal.calls(), ["start slow", "stop slow"]);
        assert!(!site.seen.states().contains(&State::Running), "{:?}", site.seen.states());
        assert_eq!(site.bus.state(), State::Idle);
        site.exit().await;
    });
}

#[test]
fn b048_the_end_comes_after_the_tasks_that_the_bus_owns() {
    both(|| async {
        let site = Site::idle().await;
        let done = Arc::new(AtomicUsize::new(0));
        let stopped = CancellationToken::new();
        let (count, heard) = (Arc::clone(&done), stopped.clone());
        let task = async move {
            heard.cancelled().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        site.bus.own("worker", task).expect("it is taken");
        let stops = refit_bus::listener(move |_| {
            stopped.cancel();
            async { Ok(serde_json::Value::Null) }
        });
        site.bus.subscribe(refit_bus::Subscription::new(STOP, "worker", stops));
        site.done(Request::Start).await;
        let bus = site.bus.clone();
        drop(tokio::spawn(async move { bus.request(Request::Exit, Origin("other".to_owned())) }));
        assert_status(&site.ended().await, 0);
        assert_eq!((site.bus.state(), done.load(Ordering::SeqCst)), (State::Exited, 1));
    });
}

#[test]
fn b049_a_stuck_task_is_named_and_a_foreign_thread_holds_up_nothing() {
    limited(async {
        let site = Site::idle().await;
        // A thread that nobody on the bus knows of: it ends with the process.
        std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
        let stuck = async {
            tokio::task::spawn_blocking(|| {
                loop {
                    std::thread::park();
                }
            })
            .await
            .map_err(|error| Failure::from_error(&error))
        };
        site.bus.own("stuck", stuck).expect("it is taken");
        site.done(Request::Start).await;
        let begun = Instant::now();
        site.done(Request::Exit).await;
        let ended = site.ended().await;
        assert!(begun.elapsed() < FAST, "{:?}", begun.elapsed());
        assert_eq!(ended.faults.len(), 1, "{:?}", ended.faults);
        assert_eq!(ended.faults[0].component, "stuck");
        assert!(ended.faults[0].cause.contains("did not end within 2 s"), "{:?}", ended.faults);
        assert_status(&ended, 70);
    });
}

#[test]
fn b050_who_waits_for_the_end_does_not_hold_it_up() {
    both(|| async {
        let site = Site::idle().await;
        let (bus, told) = (site.bus.clone(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&told);
        let waits = async move {
            bus.wait(&[State::Exited]).await.map_err(|error| Failure::from_error(&error))?;
            count.fetch_add(1, Ordering::SeqCst);
            Ok::<(), Failure>(())
        };
        let waiting = tokio::spawn(waits);
        tokio::task::yield_now().await;
        site.exit().await;
        waiting.await.expect("no panic").expect("it is told");
        assert_eq!(told.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn b051_a_stop_listener_that_hangs_is_given_up_and_the_others_are_called() {
    paused(async {
        let site = Site::idle().await;
        site.probe(STOP, "10", 10, OK);
        site.probe(STOP, "20", 20, Deed::Hang);
        site.probe(STOP, "30", 30, OK);
        site.done(Request::Start).await;
        let begun = Instant::now();
        site.bus.request(Request::Stop, Origin("test".to_owned())).outcome().await;
        // The default of a plain listener is the one of a component's stop.
        assert!(begun.elapsed() < (LISTENER + GRACE) * 3 / 2, "{:?}", begun.elapsed());
        assert_eq!(site.journal.calls(), ["stop 30", "stop 20", "stop 10"]);
        assert_eq!(site.bus.state(), State::Idle);
        let faults = site.bus.faults();
        assert_eq!((faults.len(), faults[0].component.as_str()), (1, "20"), "{faults:?}");
        site.done(Request::Exit).await;
        assert_status(&site.ended().await, 70);
    });
}

#[test]
fn b051_a_stop_listener_that_holds_its_thread_is_given_up_as_well() {
    limited(async {
        let site = Site::idle().await;
        site.part("10").priority(10).attach();
        site.part("20").priority(20).on("stop", Deed::Block).attach();
        site.done(Request::Start).await;
        site.done(Request::Exit).await;
        assert_eq!(site.journal.names(STOP), ["20", "10"]);
        assert_status(&site.ended().await, 70);
    });
}

#[test]
fn b054_when_main_returns_the_site_ends_once_in_good_order_with_a_warning() {
    both(|| async {
        let (bus, engine) = Bus::new(Options { ..probe::OPTIONS });
        let journal = Arc::new(probe::Journal::default());
        for channel in [START, STOP, EXIT, LOG] {
            let listener = probe::probe(&journal, channel, OK);
            bus.subscribe(refit_bus::Subscription::new(channel, channel, listener));
        }
        let handle = bus.clone();
        let main = async move {
            let started = handle.request(Request::Start, Origin("main".to_owned()));
            assert_eq!(started.outcome().await, Progress::Done);
        };
        let ended = engine.run_with(bus.clone(), main).await;
        assert_status(&ended, 0);
        assert!(!ended.asked || bus.state() == State::Exited);
        let calls: Vec<String> = journal.calls().into_iter().filter(|call| !call.starts_with(LOG)).collect();
        assert_eq!(calls, ["start start", "stop stop", "exit exit"]);
        let warned = |line: &&probe::Line| line.argument["level"] == "warning";
        assert_eq!(journal.lines().iter().filter(warned).count(), 1, "{:?}", journal.lines());
    });
}

#[test]
fn b055_a_task_of_an_interval_runs_again_and_again() {
    paused(async {
        let site = Site::idle().await;
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let tick = Service::every(&site.bus, "tick", Duration::from_millis(10), move || {
            count.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        });
        site.bus.attach(Arc::new(tick)).expect("its name is free");
        site.done(Request::Start).await;
        tokio::time::advance(Duration::ZERO).await;
        let begun = Instant::now();
        reached("it ran four times", || runs.load(Ordering::SeqCst) > 3).await;
        assert!(begun.elapsed() < Duration::from_millis(75), "{:?}", begun.elapsed());
        site.exit().await;
    });
}

#[test]
fn b057_the_crash_of_a_service_that_the_site_cannot_do_without_is_no_clean_end() {
    both(|| async {
        let site = Site::idle().await;
        site.part("database").attach();
        let crash = CancellationToken::new();
        let heard = crash.clone();
        let server = Service::new(&site.bus, "server", OnEnd::Exit, move |_| {
            let heard = heard.clone();
            async move {
                heard.cancelled().await;
                Err(Failure::new("the socket is gone"))
            }
        });
        site.bus.attach(Arc::new(server)).expect("its name is free");
        site.done(Request::Start).await;
        crash.cancel();
        let ended = site.ended().await;
        assert_eq!(ended.faults.len(), 1, "{:?}", ended.faults);
        let fault = &ended.faults[0];
        assert_eq!((fault.component.as_str(), fault.cause.as_str()), ("server", "the socket is gone"));
        assert_eq!(site.journal.calls(), ["start database", "stop database"], "the end is in good order");
        assert_status(&ended, 70);
    });
}

#[test]
fn b058_a_panic_in_a_task_of_the_bus_is_a_fault_that_says_where() {
    both(|| async {
        let site = Site::idle().await;
        site.bus.own("counter", async { panic!("out of {}", "numbers") }).expect("it is taken");
        site.done(Request::Exit).await;
        let ended = site.ended().await;
        let causes: Vec<&str> = ended.faults.iter().map(|fault| fault.cause.as_str()).collect();
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert!(
            causes[0].starts_with("panicked: out of numbers, at ") && causes[0].contains("suite/stop.rs:"),
            "{causes:?}"
        );
    });
}

#[test]
fn b058_a_panic_in_a_worker_is_reported_and_the_site_goes_on() {
    both(|| async {
        let site = Site::idle().await;
        let worker = Service::new(&site.bus, "worker", OnEnd::Report, |_| async { panic!("interrupted") });
        let mut state = worker.watch();
        site.bus.attach(Arc::new(worker)).expect("its name is free");
        site.probe(LOG, "log", 50, OK);
        site.done(Request::Start).await;
        let degraded = |state: &refit_bus::ServiceState| matches!(state, refit_bus::ServiceState::Degraded(why) if why.contains("interrupted"));
        state.wait_for(degraded).await.expect("the worker is watched");
        assert_eq!(site.bus.state(), State::Running);
        site.exit().await;
        let about = |line: &&probe::Line| {
            line.argument["text"].as_str().is_some_and(|text| {
                text.contains("worker ended: panicked: interrupted, at ") && text.contains("suite/stop.rs:")
            })
        };
        assert_eq!(site.journal.lines().iter().filter(about).filter(|line| line.what == LOG).count(), 1);
    });
}
