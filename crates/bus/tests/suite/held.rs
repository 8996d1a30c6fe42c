//! Listeners that hold their thread: each costs one thread until it comes back, and nobody else anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use refit_bus::{LOG, Level, Limits, Outcome, Request, State, Subscription};
use serde_json::Value;

use crate::probe::{Deed, FAST, LISTENER, OK, Site, limited, probe, reached};

/// Opens what holds a thread, also when a test fails: the async runtime waits for its threads.
struct Opens(Arc<AtomicBool>);

impl Opens {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn deed(&self) -> Deed {
        Deed::BlockUntil(Arc::clone(&self.0))
    }

    fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Drop for Opens {
    fn drop(&mut self) {
        self.open();
    }
}

#[test]
fn a_log_listener_that_holds_its_thread_takes_one_thread_and_is_called_again_when_it_is_back() {
    limited(async {
        let site = Site::idle().await;
        let held = Opens::new();
        site.probe(LOG, "held", 50, held.deed());
        site.probe(LOG, "good", 50, OK);
        for number in 0..20 {
            let before = site.bus.log_counts().failed;
            site.bus.log(Level::Info, format!("line {number}"));
            reached("it has failed", || site.bus.log_counts().failed > before).await;
        }
        let called = |name: &str| site.journal.count(&format!("{LOG} {name}"));
        assert_eq!(called("held"), 1, "each call would take one more thread");
        reached("the other one heard everything", || called("good") == 20).await;
        held.open();
        reached("it is back", || site.journal.count(&format!("{LOG} done held")) == 1).await;
        reached("it is called again", || {
            site.bus.log(Level::Info, "again");
            called("held") > 1
        })
        .await;
        site.exit().await;
    });
}

#[test]
fn a_listener_that_holds_its_thread_is_not_called_again_until_it_is_back() {
    limited(async {
        let site = Site::idle().await;
        let held = Opens::new();
        site.probe("x", "held", 10, held.deed());
        site.probe("x", "good", 20, OK);
        let first = site.bus.publish("x", Value::Null).await;
        assert!(matches!(&first.answers[0].outcome, Outcome::Timeout { .. }), "{first:?}");
        for _ in 0..5 {
            let report = site.bus.publish("x", Value::Null).await;
            let failures = report.failures();
            assert_eq!(failures.len(), 1, "{report:?}");
            assert!(failures[0].1.reason.contains("still holds the thread"), "{report:?}");
        }
        assert_eq!((site.journal.count("x held"), site.journal.count("x good")), (1, 6));
        held.open();
        reached("it answers", || site.journal.count("x done held") == 1).await;
        let mut good = false;
        while !good {
            good = site.bus.publish("x", Value::Null).await.failures().is_empty();
        }
        site.exit().await;
    });
}

#[test]
fn one_that_replaces_a_listener_that_holds_its_thread_is_called() {
    limited(async {
        let site = Site::idle().await;
        let held = Opens::new();
        site.probe("x", "it", 10, held.deed());
        site.bus.publish("x", Value::Null).await;
        site.probe("x", "it", 10, OK);
        assert_eq!(site.bus.publish("x", Value::Null).await.failures().len(), 0);
        site.exit().await;
    });
}

#[test]
fn a_component_whose_start_holds_its_thread_is_not_stopped_on_another_one() {
    limited(async {
        let site = Site::idle().await;
        let held = Opens::new();
        site.part("held").on("start", held.deed()).attach();
        assert!(site.want(Request::Start).await.is_final());
        site.done(Request::Exit).await;
        let ended = site.ended().await;
        assert_eq!(site.journal.calls(), ["start held"]);
        assert!(!ended.faults.is_empty());
    });
}

#[test]
fn removing_listeners_that_hold_their_thread_keeps_nobody_waiting() {
    limited(async {
        let site = Site::idle().await;
        let held = Opens::new();
        site.probe("x", "held", 10, held.deed());
        site.bus.publish("x", Value::Null).await;
        let begun = Instant::now();
        for _ in 0..50 {
            site.bus.unsubscribe("x", "held");
            site.probe("x", "held", 10, OK);
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        site.exit().await;
    });
}

#[test]
fn a_listener_beside_one_that_holds_its_thread_has_its_own_limit() {
    limited(async {
        let site = Site::idle().await;
        let held = Opens::new();
        site.probe("x", "held", 50, held.deed());
        let slow = probe(&site.journal, "slow", Deed::Sleep(LISTENER * 6));
        site.bus.subscribe(Subscription::new("x", "slow", slow).limit(FAST));
        let report = site.bus.publish("x", Value::Null).await;
        assert!(matches!(&report.answers[0].outcome, Outcome::Timeout { .. }), "{report:?}");
        assert!(Duration::from_micros(report.answers[0].elapsed_us) < LISTENER * 5, "{report:?}");
        assert!(report.answers[1].outcome.is_ok(), "{report:?}");
        site.exit().await;
    });
}

#[test]
fn a_site_stops_although_a_component_holds_its_thread_in_a_reload() {
    limited(async {
        let site = Site::idle().await;
        let held = Opens::new();
        site.part("held").on("prepare", held.deed()).limits(Limits { stop: Some(FAST), ..Limits::default() }).attach();
        site.part("good").attach();
        site.done(Request::Start).await;
        assert!(site.want(Request::Reload).await.is_final());
        site.done(Request::Exit).await;
        assert_eq!((site.bus.state(), site.journal.names("stop")), (State::Exited, vec!["good".to_owned()]));
    });
}
