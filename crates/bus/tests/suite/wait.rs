//! Section E: waiting and transitions.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use refit_bus::Request;
use refit_bus::{Goal, Progress, RequestKind, START, State, Subscription, WaitError, listener};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::probe::{OK, Site, both, paused};

#[test]
fn b059_a_wait_returns_the_state_that_was_reached() {
    both(|| async {
        let site = Site::idle().await;
        let steps = [
            (Request::Start, vec![State::Running]),
            (Request::Stop, vec![State::Idle]),
            (Request::Start, vec![State::Starting, State::Running]),
            (Request::Exit, vec![State::Exited]),
        ];
        for (request, states) in steps {
            let (got, ()) = tokio::join!(biased; site.bus.wait(&states), site.done(request));
            let got = got.expect("it gets there");
            assert!(states.contains(&got), "{got:?} of {states:?}");
        }
        assert_eq!(site.bus.wait(&[State::Running]).await, Err(WaitError::Ended));
    });
}

#[test]
fn b060_a_wait_for_what_is_so_already_returns_at_once() {
    paused(async {
        let site = Site::idle().await;
        site.done(Request::Start).await;
        let begun = Instant::now();
        assert_eq!(site.bus.wait(&[State::Running]).await, Ok(State::Running));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        site.exit().await;
    });
}

#[test]
fn b061_states_that_last_no_time_are_not_missed() {
    both(|| async {
        let site = Site::idle().await;
        for _ in 0..100 {
            let change = async {
                site.done(Request::Start).await;
                site.done(Request::Stop).await;
            };
            // Polled in this order: all three wait before anything is asked.
            let [starting, running, stopping] = [State::Starting, State::Running, State::Stopping].map(|state| [state]);
            let waited = tokio::join!(
                biased;
                site.bus.wait(&starting), site.bus.wait(&running), site.bus.wait(&stopping), change
            );
            let reached = (Ok(State::Starting), Ok(State::Running), Ok(State::Stopping), ());
            assert_eq!(waited, reached);
        }
        site.exit().await;
    });
}

/// Counts how often a future is polled.
struct Counted<F> {
    inner: Pin<Box<F>>,
    polls: Arc<AtomicUsize>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.fetch_add(1, Ordering::SeqCst);
        self.inner.as_mut().poll(context)
    }
}

#[test]
fn b062_waiting_costs_nothing() {
    paused(async {
        let (bus, engine) = refit_bus::Bus::new(super::probe::OPTIONS);
        let polls = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        let running = Counted { inner: Box::pin(engine.run()), polls: Arc::clone(&polls) };
        tasks.spawn(async { drop(running.await) });
        bus.request(Request::Start, refit_bus::Origin("test".to_owned())).outcome().await;
        for _ in 0..100 {
            let bus = bus.clone();
            let waiting = async move { bus.wait(&[State::Exited]).await };
            let waiting = Counted { inner: Box::pin(waiting), polls: Arc::clone(&polls) };
            tasks.spawn(async { assert_eq!(waiting.await, Ok(State::Exited)) });
        }
        while polls.load(Ordering::SeqCst) < 100 {
            tokio::task::yield_now().await;
        }
        let before = polls.load(Ordering::SeqCst);
        let alone = Instant::now();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(alone.elapsed().as_secs(), 10);
        assert_eq!(polls.load(Ordering::SeqCst), before, "nobody woke up in ten seconds");
        bus.request(Request::Exit, refit_bus::Origin("test".to_owned())).outcome().await;
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no panic");
        }
    });
}

#[test]
fn b063_a_wait_with_a_limit_ends_at_it() {
    paused(async {
        let site = Site::idle().await;
        let begun = Instant::now();
        let limit = Duration::from_millis(100);
        assert_eq!(site.bus.wait_within(&[State::Running], limit).await, Err(WaitError::Timeout(State::Idle)));
        let waited = begun.elapsed();
        assert!(waited >= limit && waited < limit * 3 / 2, "{waited:?}");
        site.exit().await;
    });
}

#[test]
fn b064_the_next_step_toward_each_goal_is_the_one_of_the_table() {
    use State::{Entering, Exited, Exiting, Idle, Initial, Running, Starting, Stopping};
    // From: toward idle, running, the end.
    let table = [
        (Initial, [Some(Entering), Some(Entering), Some(Entering)]),
        (Entering, [Some(Idle), Some(Idle), Some(Idle)]),
        (Idle, [None, Some(Starting), Some(Exiting)]),
        (Starting, [Some(Stopping), Some(Running), Some(Stopping)]),
        (Running, [Some(Stopping), None, Some(Stopping)]),
        (Stopping, [Some(Idle), Some(Idle), Some(Idle)]),
        (Exiting, [Some(Exited), Some(Exited), Some(Exited)]),
        (Exited, [None, None, None]),
    ];
    for (from, steps) in table {
        let found = [Goal::Idle, Goal::Running, Goal::Exited].map(|goal| from.next_step(goal));
        assert_eq!(found, steps, "from {from:?}");
    }
    assert_eq!(table.map(|(from, _)| from), State::ALL, "every state has its line");
}

#[test]
fn b065_the_states_and_the_ways_between_them_are_the_documented_ones() {
    let names = ["Initial", "Entering", "Idle", "Starting", "Running", "Stopping", "Exiting", "Exited"];
    assert_eq!(State::ALL.map(State::name), names);
    let mut ways: Vec<String> = Vec::new();
    for from in State::ALL {
        ways.extend(from.steps().iter().map(|to| format!("{} {}", from.name(), to.name())));
    }
    let expected = [
        "Initial Entering",
        "Entering Idle",
        "Idle Starting",
        "Idle Exiting",
        "Starting Running",
        "Starting Stopping",
        "Running Stopping",
        "Stopping Idle",
        "Exiting Exited",
    ];
    assert_eq!(ways, expected);
}

#[test]
fn b066_what_cannot_be_reached_is_refused_and_nothing_changes() {
    both(|| async {
        let site = Site::idle().await;
        assert_eq!(RequestKind::from_name("nosuch"), None);
        let outcome = site.want(Request::Reload).await;
        assert!(matches!(&outcome, Progress::Refused(why) if why.contains("Idle")), "{outcome:?}");
        assert_eq!(site.bus.state(), State::Idle);
        site.exit().await;
        assert!(matches!(site.want(Request::Start).await, Progress::Refused(_)));
        assert_eq!(site.bus.state(), State::Exited);
    });
}

#[test]
fn b067_a_listener_may_request_but_not_wait_for_the_transition_that_waits_for_it() {
    both(|| async {
        let site = Site::idle().await;
        let bus = site.bus.clone();
        let asks = listener(move |_| {
            let bus = bus.clone();
            async move {
                let ticket = bus.request(Request::Stop, refit_bus::Origin("listener".to_owned()));
                let waited = bus.wait(&[State::Idle]).await;
                Ok(json!([format!("{:?}", ticket.outcome().await), format!("{waited:?}")]))
            }
        });
        site.bus.subscribe(Subscription::new(START, "asks", asks));
        site.part("part").attach();
        let start = site.ask(Request::Start);
        assert!(matches!(start.outcome().await, Progress::Failed(why) if why.contains("stop of listener")));
        site.bus.wait(&[State::Idle]).await.expect("the stop is done");
        assert!(site.bus.faults().is_empty(), "{:?}", site.bus.faults());
        let stopped = site.journal.calls();
        assert!(stopped == ["start part", "stop part"] || stopped.is_empty(), "{stopped:?}");
        site.bus.unsubscribe(START, "asks");
        site.exit().await;
    });
}

#[test]
fn b067_a_listener_of_a_publication_inside_a_transition_cannot_wait_for_it_either() {
    both(|| async {
        let site = Site::idle().await;
        let bus = site.bus.clone();
        let waits = listener(move |_| {
            let bus = bus.clone();
            async move { Ok(json!(format!("{:?}", bus.wait(&[State::Running]).await))) }
        });
        site.bus.subscribe(Subscription::new("x", "waits", waits));
        let (bus, journal) = (site.bus.clone(), Arc::clone(&site.journal));
        let publishes = listener(move |_| {
            let (bus, journal) = (bus.clone(), Arc::clone(&journal));
            async move {
                let report = bus.publish("x", Value::Null).await;
                journal.note("answered", "x", bus.state(), &json!(report.values()));
                Ok(Value::Null)
            }
        });
        site.bus.subscribe(Subscription::new(START, "publishes", publishes));
        site.probe(START, "after", 90, OK);
        site.done(Request::Start).await;
        assert_eq!(site.journal.find("answered x").argument, json!(["Err(Inside)"]));
        for (channel, name) in [("x", "waits"), (START, "publishes")] {
            site.bus.unsubscribe(channel, name);
        }
        site.exit().await;
    });
}
