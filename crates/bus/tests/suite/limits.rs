//! A limit is a limit: what one listener takes is nobody else's time, and the deadline of the whole is kept.

use std::sync::Arc;
use std::time::Duration;

use refit_bus::{EXIT, Limits, Options, Outcome, Request, STOP, Subscription, listener};
use serde_json::Value;
use tokio::time::Instant;

use crate::probe::{Deed, FAST, LISTENER, OK, OPTIONS, Site, limited, paused, probe};

/// A grace that is far longer than anybody's time.
const LONG: Duration = Duration::from_secs(5);

fn since(site: &Site, begun: Instant, words: &str) -> Duration {
    site.journal.find(words).at - begun
}

#[test]
fn the_grace_of_one_that_is_silent_keeps_neither_the_next_nor_the_publisher_waiting() {
    paused(async {
        let site = Site::idle_of(Options { grace: LONG, ..OPTIONS }).await;
        site.probe("x", "silent", 10, Deed::Hang);
        site.probe("x", "next", 20, OK);
        let begun = Instant::now();
        let report = site.bus.publish("x", Value::Null).await;
        assert!(since(&site, begun, "x next") < LISTENER * 3 / 2);
        assert!(begun.elapsed() < LISTENER * 3 / 2, "{:?}", begun.elapsed());
        assert!(matches!(&report.answers[0].outcome, Outcome::Timeout { .. }), "{report:?}");
        assert!(report.answers[1].outcome.is_ok(), "{report:?}");
        site.exit().await;
    });
}

#[test]
fn one_that_ends_when_it_is_told_says_why() {
    paused(async {
        let site = Site::idle_of(Options { grace: LONG, ..OPTIONS }).await;
        site.probe("x", "polite", 10, Deed::Polite);
        let report = site.bus.publish("x", Value::Null).await;
        assert_eq!(report.summary().as_deref(), Some("polite: not done within 0.3 s: cancelled"));
        site.exit().await;
    });
}

#[test]
fn a_stop_goes_on_beside_the_grace_where_order_allows_it() {
    paused(async {
        let site = Site::idle_of(Options { grace: LONG, ..OPTIONS }).await;
        site.part("base").priority(10).attach();
        site.part("other").priority(20).attach();
        site.part("silent").priority(30).needs(&["base"]).on("stop", Deed::Hang).attach();
        site.done(Request::Start).await;
        let begun = Instant::now();
        site.done(Request::Stop).await;
        assert!(since(&site, begun, "stop other") < LISTENER * 3 / 2, "it has nothing to do with the silent one");
        assert!(since(&site, begun, "stop base") > LONG, "the silent one may still need it");
        site.done(Request::Exit).await;
    });
}

#[test]
fn an_exit_keeps_its_deadline_and_calls_everybody_in_order() {
    let limit = Duration::from_secs(2);
    paused(async {
        let site = Site::idle_of(Options { grace: LONG, transition: limit, ..OPTIONS }).await;
        let slow = Limits { stop: Some(Duration::from_secs(1)), ..Limits::default() };
        for (name, priority) in [("a", 10), ("b", 20), ("c", 30), ("d", 40)] {
            site.part(name).priority(priority).limits(slow).on("stop", Deed::Hang).attach();
        }
        site.probe(STOP, "quick", 5, OK);
        site.probe(EXIT, "quick", 10, OK);
        site.probe(EXIT, "hangs", 20, Deed::Hang);
        site.done(Request::Start).await;
        let begun = Instant::now();
        site.done(Request::Exit).await;
        assert!(begun.elapsed() < limit + LISTENER, "{:?}", begun.elapsed());
        let ended = site.ended().await;
        let calls = site.journal.calls();
        assert_eq!(calls[4..], ["stop d", "stop c", "stop b", "stop a", "stop quick", "exit quick", "exit hangs"]);
        let mut faults: Vec<(&str, &str)> =
            ended.faults.iter().map(|fault| (fault.component.as_str(), &fault.cause[..7])).collect();
        faults.sort_unstable();
        // What ends at once has ended, however late it was called.
        let (skipped, not_done) = ("skipped", "not don");
        assert_eq!(faults, [("a", skipped), ("b", skipped), ("c", not_done), ("d", not_done), ("hangs", skipped)]);
        assert_eq!(format!("{:?}", ended.exit_code()), format!("{:?}", std::process::ExitCode::from(70)));
    });
}

#[test]
fn whoever_is_called_after_the_deadline_is_cancelled_from_the_start() {
    paused(async {
        let site = Site::idle_of(Options { transition: Duration::from_secs(1), ..OPTIONS }).await;
        let journal = Arc::clone(&site.journal);
        let late = listener(move |call: refit_bus::Call| {
            journal.note("late", &call.cancelled().is_cancelled().to_string(), call.state, &Value::Null);
            async { Ok(Value::Null) }
        });
        site.bus.subscribe(Subscription::new(STOP, "late", late).priority(10));
        let hangs = probe(&site.journal, "hangs", Deed::Hang);
        site.bus.subscribe(Subscription::new(STOP, "hangs", hangs).priority(20).limit(FAST));
        site.done(Request::Start).await;
        site.done(Request::Exit).await;
        assert_eq!(site.journal.names("late"), ["true"]);
        site.ended().await;
    });
}

#[test]
fn listeners_of_equal_priority_begin_in_the_order_of_registration_on_any_number_of_threads() {
    limited(async {
        let site = Site::idle().await;
        let names: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();
        for (number, name) in names.iter().enumerate() {
            let deed = if number % 3 == 0 { Deed::Sleep(Duration::from_millis(1)) } else { OK };
            site.probe("x", name, 50, deed.clone());
            site.probe(STOP, name, 50, deed);
        }
        for _ in 0..100 {
            site.journal.clear();
            site.bus.publish("x", Value::Null).await;
            assert_eq!(site.journal.names("x"), names);
        }
        site.done(Request::Start).await;
        site.exit().await;
        let backwards: Vec<String> = names.into_iter().rev().collect();
        assert_eq!(site.journal.names(STOP), backwards);
    });
}
