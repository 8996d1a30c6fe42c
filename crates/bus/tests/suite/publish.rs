//! Section A: publish and subscribe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use refit_bus::{BUILT_IN, Call, LOG, Outcome, Subscription, listener};
use refit_bus::{Failure, Request};
use serde_json::{Value, json};

use crate::probe::LIMIT;
use crate::probe::{Deed, OK, Site, both, limited, reached};

#[test]
fn b001_listeners_of_every_built_in_channel_are_called_by_priority_with_the_argument() {
    both(|| async {
        let site = Site::at_rest();
        for channel in BUILT_IN {
            for priority in [100, 50, 0, 51] {
                site.probe(channel, &priority.to_string(), priority, OK);
            }
            for argument in [Value::Null, json!({ "given": channel })] {
                site.journal.clear();
                let report = site.bus.publish(channel, argument.clone()).await;
                assert_eq!(site.journal.names(channel), ["0", "50", "51", "100"]);
                assert!(
                    site.journal
                        .lines()
                        .iter()
                        .filter(|line| line.what == channel)
                        .all(|line| line.argument == argument)
                );
                let called: Vec<&str> = report.answers.iter().map(|answer| &*answer.listener).collect();
                assert_eq!((called.as_slice(), report.summary()), (["0", "50", "51", "100"].as_slice(), None));
            }
        }
    });
}

#[test]
fn b002_channels_of_any_name_behave_like_built_in_ones_and_50_is_the_default() {
    both(|| async {
        let site = Site::at_rest();
        for channel in ["h", "l", "d"] {
            let default = super::probe::probe(&site.journal, "default", OK);
            site.bus.subscribe(Subscription::new(channel, "default", default));
            for priority in [10, 60, 40] {
                site.probe(channel, &priority.to_string(), priority, OK);
            }
            for argument in [Value::Null, json!(7)] {
                site.journal.clear();
                assert!(site.bus.publish(channel, argument.clone()).await.known);
                assert_eq!(site.journal.names(channel), ["10", "40", "default", "60"]);
                assert!(
                    site.journal
                        .lines()
                        .iter()
                        .filter(|line| line.what == channel)
                        .all(|line| line.argument == argument)
                );
            }
        }
    });
}

#[test]
fn b003_all_listeners_are_called_although_one_fails() {
    both(|| async {
        let site = Site::at_rest();
        for channel in BUILT_IN.into_iter().filter(|channel| *channel != LOG).chain(["custom"]) {
            let picky = |call: Call| async move {
                if call.argument.is_null() { Ok(Value::Null) } else { Err(Failure::new("takes no argument")) }
            };
            site.bus.subscribe(Subscription::new(channel, "picky", listener(picky)).priority(20));
            site.probe(channel, "good", 50, OK);
            site.journal.clear();
            let report = site.bus.publish(channel, json!(123)).await;
            assert_eq!(site.journal.find(&format!("{channel} good")).argument, json!(123));
            assert_eq!(report.summary().as_deref(), Some("picky: takes no argument"), "{channel}");
            assert_eq!(report.failures().len(), 1);
        }
    });
}

#[test]
fn b003_a_listener_that_panics_or_holds_its_thread_skips_nobody() {
    limited(async {
        let site = Site::at_rest();
        site.probe("x", "panics", 10, Deed::Panic);
        site.probe("x", "blocks", 20, Deed::Block);
        site.probe("x", "good", 30, OK);
        let report = site.bus.publish("x", Value::Null).await;
        assert_eq!(site.journal.names("x"), ["panics", "blocks", "good"]);
        let failures = report.failures();
        assert_eq!(failures.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["panics", "blocks"]);
        assert!(failures[0].1.reason.contains("a probe panics, at "), "{failures:?}");
        assert!(failures[0].1.reason.contains("suite/probe.rs:"), "it says where: {failures:?}");
        let summary = report.summary().expect("two have failed");
        let lines: Vec<&str> = summary.trim_start().lines().map(str::trim).collect();
        assert!(lines[0].starts_with("panics: ") && lines[0].ends_with("(priority 10)"), "{summary}");
        assert!(lines[1].starts_with("blocks: ") && lines[1].ends_with("(priority 20)"), "{summary}");
        assert!(matches!(report.answers[1].outcome, Outcome::Timeout { .. }), "{report:?}");
    });
}

#[test]
fn b005_results_come_in_the_order_of_the_calls() {
    both(|| async {
        let site = Site::at_rest();
        site.probe("x", "one", 20, Deed::Ok(json!(1)));
        site.probe("x", "two", 10, Deed::Ok(json!(2)));
        assert_eq!(site.bus.publish("x", Value::Null).await.values(), [&json!(2), &json!(1)]);
    });
}

#[test]
fn b006_good_results_survive_a_failing_listener() {
    both(|| async {
        let site = Site::at_rest();
        site.probe("x", "10", 10, Deed::Ok(json!(1)));
        site.probe("x", "20", 20, Deed::Fail("broken"));
        site.probe("x", "30", 30, Deed::Ok(json!(3)));
        let report = site.bus.publish("x", Value::Null).await;
        let outcomes: Vec<_> = report.answers.iter().map(|answer| (&*answer.listener, &answer.outcome)).collect();
        let expected = [
            ("10", &Outcome::Ok { value: json!(1) }),
            ("20", &Outcome::Failed { failure: Box::new(Failure::new("broken")) }),
            ("30", &Outcome::Ok { value: json!(3) }),
        ];
        assert_eq!(outcomes, expected);
    });
}

#[test]
fn b007_publishing_to_a_channel_without_listeners_does_nothing() {
    both(|| async {
        let site = Site::at_rest();
        site.bus.declare("quiet");
        let report = site.bus.publish("quiet", json!(1)).await;
        assert_eq!((report.known, report.answers.len(), report.summary()), (true, 0, None));
    });
}

#[test]
fn b008_publishing_to_an_unknown_channel_is_reported_once_for_each_name() {
    both(|| async {
        let site = Site::idle().await;
        site.probe(LOG, "log", 50, OK);
        for name in ["nosuch", "other", "nosuch"] {
            let report = site.bus.publish(name, Value::Null).await;
            assert_eq!((report.known, report.answers.len()), (false, 0));
        }
        site.exit().await;
        let warnings = |name: &str| {
            let lines = site.journal.lines();
            let about = |line: &&super::probe::Line| {
                let text = line.argument["text"].as_str().unwrap_or_default();
                line.what == LOG && text.contains("unknown channel") && text.contains(name)
            };
            lines.iter().filter(about).count()
        };
        assert_eq!((warnings("nosuch"), warnings("other")), (1, 1));
    });
}

#[test]
fn b009_subscribing_twice_moves_a_listener_and_unsubscribing_twice_is_no_error() {
    both(|| async {
        let site = Site::at_rest();
        site.probe("x", "twice", 10, OK);
        site.probe("x", "second", 50, OK);
        site.probe("x", "twice", 90, OK);
        site.bus.publish("x", Value::Null).await;
        assert_eq!(site.journal.names("x"), ["second", "twice"]);
        assert!(site.bus.unsubscribe("x", "twice"));
        assert!(!site.bus.unsubscribe("x", "twice"));
        assert!(!site.bus.unsubscribe("x", "never"));
        assert!(!site.bus.unsubscribe("nowhere", "never"));
        site.journal.clear();
        site.bus.publish("x", Value::Null).await;
        assert_eq!(site.journal.names("x"), ["second"]);
    });
}

#[test]
fn b010_a_listener_added_during_a_publication_is_called_from_the_next_on() {
    both(|| async {
        let site = Arc::new(Site::at_rest());
        let own = Arc::clone(&site);
        let adds = listener(move |call: Call| {
            own.journal.note(&call.channel, "adds", call.state, &call.argument);
            own.probe("x", "added", 90, OK);
            async { Ok(Value::Null) }
        });
        site.bus.subscribe(Subscription::new("x", "adds", adds).priority(10));
        site.bus.publish("x", Value::Null).await;
        assert_eq!(site.journal.names("x"), ["adds"]);
        site.journal.clear();
        site.bus.publish("x", Value::Null).await;
        assert_eq!(site.journal.names("x"), ["adds", "added"]);
    });
}

#[test]
fn b010_a_listener_removed_during_a_publication_is_not_called() {
    both(|| async {
        let site = Arc::new(Site::at_rest());
        let own = Arc::clone(&site);
        let removes = listener(move |_| {
            own.bus.unsubscribe("x", "removed");
            async { Ok(Value::Null) }
        });
        site.bus.subscribe(Subscription::new("x", "removes", removes).priority(10));
        site.probe("x", "removed", 90, OK);
        let report = site.bus.publish("x", Value::Null).await;
        assert_eq!(site.journal.names("x").len(), 0);
        assert!(matches!(report.answers[1].outcome, Outcome::Skipped { .. }), "{report:?}");
    });
}

#[test]
fn b012_subscribing_unsubscribing_and_publishing_at_the_same_time_loses_no_call_and_calls_nobody_who_left() {
    const ROUNDS: u32 = 10_000;
    limited(async {
        let site = Site::at_rest();
        let steady = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&steady);
        let count = listener(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(Value::Null) }
        });
        site.bus.subscribe(Subscription::new("x", "steady", count));
        let over = Arc::new(AtomicBool::new(false));
        let late = Arc::new(AtomicU32::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..16_u64 {
            let (bus, over, late) = (site.bus.clone(), Arc::clone(&over), Arc::clone(&late));
            tasks.spawn(async move {
                let name = format!("guest {number}");
                let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut turns = 0_u32;
                while !over.load(Ordering::SeqCst) {
                    let here = Arc::new(AtomicBool::new(true));
                    let (is_here, late) = (Arc::clone(&here), Arc::clone(&late));
                    let guest = listener(move |_| {
                        if !is_here.load(Ordering::SeqCst) {
                            late.fetch_add(1, Ordering::SeqCst);
                        }
                        async { Ok(Value::Null) }
                    });
                    bus.subscribe(Subscription::new("x", name.clone(), guest));
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    for _ in 0..random % 8 {
                        tokio::task::yield_now().await;
                    }
                    bus.unsubscribe("x", &name);
                    here.store(false, Ordering::SeqCst);
                    turns += 1;
                    tokio::task::yield_now().await;
                }
                turns
            });
        }
        // A machine that has little time for this does less of it.
        let (begun, mut rounds) = (std::time::Instant::now(), 0);
        while rounds < ROUNDS && begun.elapsed() < LIMIT / 4 {
            let report = site.bus.publish("x", Value::Null).await;
            assert_eq!(report.summary(), None);
            rounds += 1;
        }
        assert!(rounds > 100, "{rounds}");
        over.store(true, Ordering::SeqCst);
        while let Some(turns) = tasks.join_next().await {
            assert!(turns.expect("no panic") > 0);
        }
        assert_eq!((steady.load(Ordering::SeqCst), late.load(Ordering::SeqCst)), (rounds, 0));
    });
}

#[test]
fn b014_who_subscribed_before_a_channel_was_declared_is_called() {
    both(|| async {
        let site = Site::at_rest();
        site.probe("c", "early", 50, OK);
        site.bus.declare("c");
        let report = site.bus.publish("c", json!(1)).await;
        assert_eq!((report.known, site.journal.names("c").as_slice()), (true, ["early".to_owned()].as_slice()));
    });
}

#[test]
fn b115_publications_that_lead_to_one_another_in_a_circle_end() {
    both(|| async {
        let site = Site::at_rest();
        let depth = Arc::new(AtomicU32::new(0));
        let (bus, counted) = (site.bus.clone(), Arc::clone(&depth));
        let again = listener(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            let bus = bus.clone();
            async move { Ok(json!(bus.publish("x", Value::Null).await.refused)) }
        });
        site.bus.subscribe(Subscription::new("x", "again", again));
        site.bus.publish("x", Value::Null).await;
        assert_eq!(depth.load(Ordering::SeqCst), refit_bus::DEPTH_MAX);
        site.bus.unsubscribe("x", "again");
    });
}

#[test]
fn only_the_bus_starts_stops_and_reloads_components_not_a_publication() {
    both(|| async {
        let site = Site::idle().await;
        site.part("a").attach();
        for channel in ["start", "stop", "reload"] {
            let report = site.bus.publish(channel, Value::Null).await;
            assert_eq!(report.failures().len(), 1, "{channel}: {report:?}");
        }
        assert!(site.journal.calls().is_empty(), "{:?}", site.journal.calls());
        site.done(Request::Start).await;
        site.bus.publish("stop", Value::Null).await;
        assert_eq!(site.journal.calls(), ["start a"]);
        reached("it still runs", || site.bus.state() == refit_bus::State::Running).await;
        site.exit().await;
        assert_eq!(site.journal.calls(), ["start a", "stop a"]);
    });
}
