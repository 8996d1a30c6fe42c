//! Section B: the log channel.

use std::time::Duration;

use refit_bus::Request;
use refit_bus::{LOG, Level, State};
use serde_json::Value;
use tokio::time::Instant;

use crate::probe::{Deed, OK, Site, both, paused, reached};

/// Returns what the log probe `name` was given, in order.
fn heard(site: &Site, name: &str) -> Vec<Value> {
    let lines = site.journal.lines();
    lines.into_iter().filter(|line| line.what == LOG && line.name == name).map(|line| line.argument).collect()
}

fn texts(site: &Site, name: &str) -> Vec<String> {
    heard(site, name).iter().map(|entry| entry["text"].as_str().expect("a text").to_owned()).collect()
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read the settings")]
struct Outer(#[source] std::io::Error);

#[test]
fn b015_messages_arrive_in_order() {
    both(|| async {
        let site = Site::idle().await;
        site.probe(LOG, "log", 50, OK);
        for text in ["one", "two", "three", "four"] {
            site.bus.log(Level::Info, text);
        }
        reached("all arrived", || heard(&site, "log").len() >= 4).await;
        assert_eq!(texts(&site, "log"), ["one", "two", "three", "four"]);
        assert!(heard(&site, "log").iter().all(|entry| entry["level"] == "info"));
        site.exit().await;
    });
}

#[test]
fn b016_an_error_is_logged_with_all_its_causes() {
    both(|| async {
        let site = Site::idle().await;
        site.probe(LOG, "log", 50, OK);
        site.bus.log_error("reload", &Outer(std::io::Error::other("the disk is gone")));
        reached("it arrived", || !heard(&site, "log").is_empty()).await;
        assert_eq!(texts(&site, "log"), ["reload: cannot read the settings: the disk is gone"]);
        assert_eq!(heard(&site, "log")[0]["level"], "error");
        site.exit().await;
    });
}

#[test]
fn b017_a_failing_listener_is_reported_once() {
    both(|| async {
        let site = Site::idle().await;
        site.probe(LOG, "log", 50, OK);
        site.probe("x", "frail", 50, Deed::Fail("out of paper"));
        site.bus.publish("x", Value::Null).await;
        site.exit().await;
        let errors: Vec<Value> = heard(&site, "log").into_iter().filter(|entry| entry["level"] == "error").collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
        let text = errors[0]["text"].as_str().expect("a text");
        assert!(["x", "frail", "out of paper"].iter().all(|word| text.contains(word)), "{text}");
    });
}

#[test]
fn b018_a_failing_log_listener_is_counted_and_leads_to_no_loop() {
    both(|| async {
        let site = Site::idle().await;
        site.probe(LOG, "broken", 10, Deed::Fail("no disk"));
        site.probe(LOG, "panics", 10, Deed::Panic);
        site.probe(LOG, "good", 50, OK);
        site.bus.log(Level::Info, "one");
        reached("all three had it", || site.bus.log_counts().failed == 2 && site.bus.log_counts().delivered == 1).await;
        assert_eq!(texts(&site, "good"), ["one"], "nothing was logged about the log");
        assert_eq!((heard(&site, "broken").len(), heard(&site, "panics").len()), (1, 1));
        site.exit().await;
    });
}

#[test]
fn b019_a_broken_logger_does_not_cancel_a_publication() {
    both(|| async {
        let site = Site::idle().await;
        site.probe(LOG, "broken", 50, Deed::Fail("no disk"));
        site.probe("x", "10", 10, Deed::Fail("first"));
        site.probe("x", "20", 20, OK);
        let report = site.bus.publish("x", Value::Null).await;
        assert_eq!(site.journal.names("x"), ["10", "20"]);
        assert_eq!(report.summary().as_deref(), Some("10: first"));
        site.exit().await;
    });
}

#[test]
fn b021_a_log_listener_hears_of_the_first_and_the_last_transition() {
    both(|| async {
        let site = Site::at_rest();
        site.probe(LOG, "log", 50, OK);
        site.run();
        site.done(Request::Start).await;
        site.exit().await;
        let states: Vec<String> =
            texts(&site, "log").iter().filter_map(|text| text.strip_prefix("bus: ").map(str::to_owned)).collect();
        let expected = ["Entering", "Idle", "Starting", "Running", "Stopping", "Idle", "Exiting", "Exited"];
        assert_eq!(states, expected);
    });
}

#[test]
fn b022_a_slow_log_listener_delays_no_transition_and_what_it_misses_is_counted() {
    paused(async {
        let site = Site::at_rest();
        site.probe(LOG, "slow", 50, Deed::Sleep(Duration::from_millis(200)));
        site.probe(LOG, "fast", 50, OK);
        site.run();
        for number in 0..50 {
            site.bus.log(Level::Info, format!("entry {number}"));
        }
        let begun = Instant::now();
        site.done(Request::Start).await;
        site.ask(Request::Exit);
        site.bus.wait(&[State::Exited]).await.expect("it gets there");
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
        site.ended().await;
        let (fast, slow) = (heard(&site, "fast").len(), heard(&site, "slow").len());
        assert!(fast > 50 && slow < fast, "{fast} {slow}");
        let counts = site.bus.log_counts();
        let entries = u64::try_from(2 * fast).expect("few");
        assert_eq!(counts.delivered + counts.dropped + counts.failed, entries, "each was counted once: {counts:?}");
    });
}
