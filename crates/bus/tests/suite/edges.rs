//! What happens beside the way: floods, panics, decisions that overtake, names that two share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use refit_bus::{
    Act, AfterFailure, Bus, BusEvent, Call, CancellationToken, Component, Failure, Fault, LOG, Level, Limits, Observer,
    OnEnd, Options, Origin, Phase, Progress, Request, Service, State, StopReason, Subscription, WaitError, listener,
};
use serde_json::Value;

use crate::probe::{Deed, FAST, Journal, OK, OPTIONS, Seen, Site, both, limited, paused, probe, reached};

#[test]
fn an_exit_is_seen_however_many_tasks_come() {
    limited(async {
        type Job = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;
        /// Returns a task that makes the next one.
        fn again(bus: Bus, count: Arc<AtomicU32>) -> Job {
            Box::pin(async move {
                count.fetch_add(1, Ordering::SeqCst);
                drop(bus.clone().own("again", again(bus, count)));
                Ok(())
            })
        }
        let site = Site::idle().await;
        let count = Arc::<AtomicU32>::default();
        for _ in 0..64 {
            site.bus.own("flood", again(site.bus.clone(), Arc::clone(&count))).expect("it is taken");
        }
        reached("it floods", || count.load(Ordering::SeqCst) > 1000).await;
        site.done(Request::Start).await;
        let begun = std::time::Instant::now();
        site.exit().await;
        assert!(begun.elapsed() < FAST, "{:?}", begun.elapsed());
    });
}

#[test]
fn a_task_that_was_taken_is_begun_although_the_site_ends() {
    both(|| async {
        let site = Site::idle().await;
        let done = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&done);
        let exit = site.ask(Request::Exit);
        let task = async move {
            seen.store(true, Ordering::SeqCst);
            Ok(())
        };
        let taken = site.bus.own("late", task).is_ok();
        exit.outcome().await;
        site.ended().await;
        assert_eq!(done.load(Ordering::SeqCst), taken);
    });
}

#[test]
fn a_service_that_panics_before_there_is_a_future_has_ended_like_any_other() {
    both(|| async {
        let site = Site::idle().await;
        fn no_future(_stop: CancellationToken) -> std::future::Ready<Result<(), Failure>> {
            panic!("no socket")
        }
        let server = Service::new(&site.bus, "server", OnEnd::Exit, no_future);
        site.bus.attach(Arc::new(server)).expect("its name is free");
        // Its end may come before the start is done, and then takes its place.
        let started = site.want(Request::Start).await;
        let is_cut_off = |why: &String| why.contains("exit of component server");
        assert!(
            started == Progress::Done || matches!(&started, Progress::Failed(why) if is_cut_off(why)),
            "{started:?}"
        );
        let ended = site.ended().await;
        assert_eq!(ended.faults.len(), 1, "{:?}", ended.faults);
        assert!(ended.faults[0].cause.contains("no socket"), "{:?}", ended.faults);
    });
}

#[test]
fn a_wait_for_what_will_not_be_any_more_ends_with_the_decision_to_leave() {
    both(|| async {
        let site = Site::idle().await;
        let open = CancellationToken::new();
        site.part("slow")
            .on("stop", Deed::Gate(open.clone()))
            .limits(Limits { stop: Some(FAST), ..Limits::default() })
            .attach();
        site.done(Request::Start).await;
        let bus = site.bus.clone();
        let waiting = tokio::spawn(async move { bus.wait(&[State::Starting]).await });
        let bus = site.bus.clone();
        let still = tokio::spawn(async move { bus.wait(&[State::Exited, State::Starting]).await });
        tokio::task::yield_now().await;
        let exit = site.ask(Request::Exit);
        assert_eq!(waiting.await.expect("no panic"), Err(WaitError::Ending));
        assert_eq!(site.bus.wait(&[State::Starting]).await, Err(WaitError::Ending));
        open.cancel();
        assert_eq!(exit.outcome().await, Progress::Done);
        assert_eq!(still.await.expect("no panic"), Ok(State::Exited));
        site.ended().await;
    });
}

#[test]
fn a_log_listener_that_is_subscribed_again_goes_on_with_what_waits_and_there_is_one_of_it() {
    both(|| async {
        let site = Site::idle().await;
        let (inside, most, heard) =
            (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let subscribe = || {
            let (inside, most, heard) = (Arc::clone(&inside), Arc::clone(&most), Arc::clone(&heard));
            let counts = listener(move |_: Call| {
                let (inside, most, heard) = (Arc::clone(&inside), Arc::clone(&most), Arc::clone(&heard));
                async move {
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    heard.fetch_add(1, Ordering::SeqCst);
                    Ok(Value::Null)
                }
            });
            site.bus.subscribe(Subscription::new(LOG, "one", counts));
        };
        subscribe();
        for number in 0..20 {
            site.bus.log(Level::Info, format!("line {number}"));
            if number % 5 == 0 {
                subscribe();
            }
        }
        reached("all were heard", || heard.load(Ordering::SeqCst) == 20).await;
        assert_eq!(most.load(Ordering::SeqCst), 1);
        site.exit().await;
    });
}

#[test]
fn a_publication_goes_on_although_nobody_waits_for_it() {
    both(|| async {
        let site = Site::idle().await;
        let open = CancellationToken::new();
        site.probe("x", "first", 10, Deed::Gate(open.clone()));
        site.probe("x", "second", 20, Deed::Fail("and it is said"));
        site.probe(LOG, "log", 50, OK);
        {
            let publication = site.bus.publish("x", Value::Null);
            let mut publication = std::pin::pin!(publication);
            // Cancel-safe: giving up is what this is about.
            tokio::select! {
                _ = &mut publication => unreachable!("the gate is shut"),
                () = site.journal.happened("x first") => {}
            }
        }
        open.cancel();
        site.journal.happened("x done first").await;
        site.journal.happened("x second").await;
        let said = || {
            site.journal
                .lines()
                .iter()
                .any(|line| line.argument["text"].as_str().is_some_and(|text| text.contains("and it is said")))
        };
        reached("its failure is logged", said).await;
        assert!(site.journal.find("x done first").argument.as_bool() == Some(true), "it was not cancelled");
        site.exit().await;
    });
}

#[test]
fn who_takes_the_name_of_a_component_that_left_is_not_stopped_for_it() {
    both(|| async {
        let site = Site::idle().await;
        site.part("web").attach();
        site.done(Request::Start).await;
        site.bus.detach("web");
        site.part("web").attach();
        site.done(Request::Stop).await;
        assert_eq!(site.journal.names("stop").len(), 0, "the second never started");
        site.done(Request::Start).await;
        site.exit().await;
        assert_eq!(site.journal.calls(), ["start web", "start web", "stop web"]);
    });
}

#[test]
fn there_are_never_two_of_a_service_whose_stop_was_given_up() {
    paused(async {
        let site = Site::idle().await;
        let (alive, most) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let open = CancellationToken::new();
        let (count, highest, gate) = (Arc::clone(&alive), Arc::clone(&most), open.clone());
        let stubborn = Service::new(&site.bus, "stubborn", OnEnd::Report, move |_stop| {
            let (count, highest, gate) = (Arc::clone(&count), Arc::clone(&highest), gate.clone());
            async move {
                highest.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                gate.cancelled().await;
                count.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        });
        site.bus.attach(Arc::new(stubborn)).expect("its name is free");
        site.done(Request::Start).await;
        reached("it runs", || alive.load(Ordering::SeqCst) == 1).await;
        site.done(Request::Stop).await;
        assert!(!site.bus.faults().is_empty(), "its stop was given up");
        let again = site.want(Request::Start).await;
        assert!(matches!(&again, Progress::Failed(why) if why.contains("there must not be two of it")), "{again:?}");
        assert_eq!(most.load(Ordering::SeqCst), 1);
        open.cancel();
        reached("it has ended", || alive.load(Ordering::SeqCst) == 0).await;
        site.done(Request::Start).await;
        assert_eq!(most.load(Ordering::SeqCst), 1);
        site.done(Request::Exit).await;
    });
}

#[test]
fn the_observer_and_the_log_hear_of_requests_in_the_order_in_which_they_were_decided() {
    limited(async {
        let site = Site::idle().await;
        site.probe(LOG, "log", 50, OK);
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..8 {
            let bus = site.bus.clone();
            asking.spawn_blocking(move || {
                for turn in 0..100 {
                    let request = if (number + turn) % 2 == 0 { Request::Start } else { Request::Stop };
                    drop(bus.request(request, Origin(format!("{number}"))));
                }
            });
        }
        asking.join_all().await;
        reached("all were heard of", || site.seen.requests().len() == 800).await;
        let numbers = site.seen.requests();
        assert!(numbers.is_sorted(), "{numbers:?}");
        site.done(Request::Exit).await;
        site.ended().await;
    });
}

/// An observer that panics at every event.
struct Panics;

impl Observer for Panics {
    fn observe(&self, _event: &BusEvent) {
        panic!("observed");
    }
}

/// An observer that panics when it is to decide.
struct Undecided(Arc<Seen>);

impl Observer for Undecided {
    fn observe(&self, event: &BusEvent) {
        self.0.observe(event);
    }

    fn start_failed(&self, _faults: &[Fault]) -> AfterFailure {
        panic!("nobody knows")
    }
}

/// A component that cannot say whether it is exempt.
struct Unsure;

impl Component for Unsure {
    fn name(&self) -> &str {
        "unsure"
    }

    fn start(self: Arc<Self>, _cancelled: CancellationToken) -> Act {
        Box::pin(async { Ok(()) })
    }

    fn stop(self: Arc<Self>, _reason: StopReason, _hurry: CancellationToken) -> Act {
        Box::pin(async { Ok(()) })
    }

    fn reload(self: Arc<Self>, _phase: Phase, _generation: u64) -> Act {
        Box::pin(async { Ok(()) })
    }

    fn exempt(&self) -> Option<String> {
        panic!("who knows")
    }
}

#[test]
fn neither_an_observer_nor_a_component_that_panics_ends_the_engine() {
    both(|| async {
        let (bus, engine) = Bus::new(Options { ..OPTIONS });
        let running = tokio::spawn(engine.with_observer(Arc::new(Panics)).run());
        bus.attach(Arc::new(Unsure)).expect("its name is free");
        for request in [Request::Start, Request::Reload, Request::Exit] {
            let outcome = bus.request(request, Origin("test".to_owned())).outcome().await;
            assert_eq!(outcome, Progress::Done);
        }
        assert!(running.await.expect("no panic").faults.is_empty());
    });
}

#[test]
fn an_observer_that_panics_instead_of_deciding_ends_the_site_in_good_order() {
    both(|| async {
        let (bus, engine) = Bus::new(OPTIONS);
        let (journal, seen) = (Arc::new(Journal::default()), Arc::new(Seen::default()));
        let running = tokio::spawn(engine.with_observer(Arc::new(Undecided(Arc::clone(&seen)))).run());
        for (channel, name, deed) in
            [("start", "a", OK), ("stop", "a", OK), ("start", "b", Deed::Fail("no socket")), ("exit", "c", OK)]
        {
            bus.subscribe(Subscription::new(channel, name, probe(&journal, name, deed)));
        }
        let started = bus.request(Request::Start, Origin("test".to_owned())).outcome().await;
        assert!(matches!(&started, Progress::Failed(why) if why.contains("b: no socket")), "{started:?}");
        let ended = running.await.expect("the engine does not panic");
        assert_eq!(journal.calls(), ["start a", "start b", "stop a", "exit c"], "what started is stopped");
        let faults: Vec<_> = ended.faults.iter().map(|fault| fault.component.as_str()).collect();
        assert_eq!(faults, ["b", "the observer"]);
        let cause = &ended.faults[1].cause;
        assert!(cause.starts_with("panicked: nobody knows, at ") && cause.contains("edges.rs:"), "{cause}");
        assert!(!ended.asked && ended.replacement.is_none());
        assert_eq!(seen.states().last(), Some(&State::Exited));
    });
}
