//! A reload that has to be confirmed: it is in force provisionally, and is reverted unless somebody confirms it in time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use refit_bus::{
    Bus, CancellationToken, ConfirmStep, ConfirmTerms, Failure, Limits, Origin, Phase, Progress, RELOAD, Replacement,
    Reply, Request, State, Subscription, Ticket, listener,
};
use serde_json::Value;
use tokio::time::Instant;

use crate::probe::{Deed, FAST, Journal, Line, OK, OPTIONS, Site, both, paused, probe};

/// How long the wait lasts where its end is not waited for.
const LONG: Duration = Duration::from_secs(3600);
/// How long it lasts where it is.
const SHORT: Duration = Duration::from_millis(200);

const fn within(within: Duration) -> Request {
    Request::ReloadProvisionally(ConfirmTerms { within, restores: false })
}

const fn restoring(within: Duration) -> Request {
    Request::ReloadProvisionally(ConfirmTerms { within, restores: true })
}

/// A site that runs a, b and c, which can revert; b does these things.
async fn a_b_c(deeds: &[(&'static str, Deed)]) -> Site {
    let site = Site::idle().await;
    site.part("a").priority(10).reverts().attach();
    let mut b = site.part("b").priority(20).reverts();
    for (what, deed) in deeds {
        b = b.on(what, deed.clone());
    }
    b.attach();
    site.part("c").priority(30).reverts().attach();
    site.done(Request::Start).await;
    site.journal.clear();
    site.seen.clear();
    site
}

/// Has a reload wait to be confirmed for `time`.
async fn waiting(site: &Site, time: Duration) -> Ticket {
    let ticket = site.ask(within(time));
    assert_eq!(ticket.clone().outcome().await, Progress::Done, "{:?}", site.bus.faults());
    ticket
}

fn failed(outcome: &Progress) -> &str {
    let Progress::Failed(why) = outcome else { panic!("{outcome:?}") };
    why
}

fn refused(outcome: &Progress) -> &str {
    let Progress::Refused(why) = outcome else { panic!("{outcome:?}") };
    why
}

/// Why it was reverted, and who did not.
fn reverted(step: Option<ConfirmStep>) -> (String, Option<String>) {
    let Some(ConfirmStep::Reverted { why, failed, .. }) = step else { panic!("{step:?}") };
    (why, failed)
}

/// Returns the steps that the owner of the bus heard of, by name.
fn steps(site: &Site) -> Vec<&'static str> {
    let name = |(_, step): (u64, ConfirmStep)| match step {
        ConfirmStep::Waits => "waits",
        ConfirmStep::Confirmed { .. } => "confirmed",
        ConfirmStep::Reverting { .. } => "reverting",
        ConfirmStep::Reverted { .. } => "reverted",
    };
    site.seen.steps().into_iter().map(name).collect()
}

/// Returns where `words` stands among the calls.
fn place(site: &Site, words: &str) -> usize {
    let calls = site.journal.calls();
    calls.iter().position(|call| call == words).unwrap_or_else(|| panic!("no {words}: {calls:?}"))
}

#[test]
fn one_that_is_confirmed_in_time_stays_in_force() {
    both(|| async {
        let site = a_b_c(&[]).await;
        let ticket = waiting(&site, LONG).await;
        let confirmation = ticket.confirmation().expect("it waits");
        let reload = confirmation.reload.clone();
        assert_eq!((confirmation.step, reload.generation, reload.request), (ConfirmStep::Waits, 1, ticket.number()));
        assert_eq!(
            (reload.origin.0.as_str(), reload.listeners.as_slice()),
            ("test", ["a", "b", "c"].map(str::to_owned).as_slice())
        );
        assert!(reload.until > reload.since && reload.until.ends_with('Z'), "{reload:?}");
        assert_eq!(site.bus.unconfirmed(), Some(reload));
        let confirm = site.bus.request(Request::Confirm, Origin("admin".to_owned()));
        assert_eq!(confirm.outcome().await, Progress::Done);
        let by = Origin("admin".to_owned());
        assert_eq!(ticket.clone().confirmation_ended().await, Some(ConfirmStep::Confirmed { by }));
        assert_eq!((site.bus.unconfirmed(), steps(&site)), (None, vec!["waits", "confirmed"]));
        // Its time has no meaning any more, and the next reload is as any other.
        site.done(Request::Reload).await;
        assert!(site.journal.names("revert").is_empty(), "{:?}", site.journal.calls());
        site.exit().await;
        assert!(site.journal.names("revert").is_empty(), "{:?}", site.journal.calls());
    });
}

#[test]
fn one_that_is_not_confirmed_is_reverted_in_the_reverse_order_of_the_commit() {
    both(|| async {
        let site = a_b_c(&[]).await;
        let ticket = waiting(&site, SHORT).await;
        let (why, failed) = reverted(ticket.confirmation_ended().await);
        assert_eq!((why.as_str(), failed), ("it was not confirmed within 0.2 s", None));
        assert_eq!(site.journal.names("commit"), ["a", "b", "c"]);
        assert_eq!(site.journal.names("revert"), ["c", "b", "a"]);
        let told = |line: &Line| line.what == "revert" && (line.argument != 1 || line.state != State::Running);
        assert!(!site.journal.lines().iter().any(told), "each is told which generation: {:?}", site.journal.lines());
        assert_eq!((site.bus.state(), site.bus.unconfirmed()), (State::Running, None));
        assert_eq!(steps(&site), ["waits", "reverting", "reverted"]);
        assert!(site.bus.faults().is_empty(), "{:?}", site.bus.faults());
        // Too late is too late, and the next reload has a number of its own.
        assert!(refused(&site.want(Request::Confirm).await).contains("no reload waits to be confirmed"));
        site.done(Request::Reload).await;
        assert_eq!(site.journal.find("prepare a").argument, 1);
        assert!(site.journal.lines().iter().any(|line| line.what == "prepare" && line.argument == 2));
        site.exit().await;
    });
}

#[test]
fn the_wait_lasts_as_long_as_it_was_asked_for() {
    paused(async {
        let site = a_b_c(&[]).await;
        let begun = Instant::now();
        let ticket = waiting(&site, Duration::from_secs(20)).await;
        drop(ticket.confirmation_ended().await);
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(20) && took < Duration::from_secs(21), "{took:?}");
        site.exit().await;
    });
}

#[test]
fn one_that_cannot_revert_refuses_before_anybody_is_called() {
    both(|| async {
        let site = a_b_c(&[]).await;
        site.probe(RELOAD, "plain", 40, OK);
        let check = listener(|_| async { Ok(Value::Null) });
        site.bus.subscribe(Subscription::new(RELOAD, "check", check).only_checks());
        let ticket = site.ask(within(LONG));
        let outcome = ticket.clone().outcome().await;
        let why = failed(&outcome);
        assert!(why.starts_with("refused by plain: it cannot revert") && why.contains("`restores`"), "{why}");
        assert!(why.ends_with("; nothing has changed"), "{why}");
        assert!(site.journal.calls().is_empty(), "{:?}", site.journal.calls());
        let answers: Vec<_> = ticket.asked().into_iter().map(|one| (one.listener, one.answer)).collect();
        let one = |name: &str, answer| (name.to_owned(), answer);
        let skipped = ["a", "b", "c"].map(|name| one(name, Reply::Skipped));
        assert!(skipped.iter().all(|one| answers.contains(one)), "{answers:?}");
        assert!(answers.contains(&one("plain", Reply::Refused)), "{answers:?}");
        assert_eq!((ticket.confirmation(), site.bus.unconfirmed()), (None, None));
        assert!(refused(&site.want(Request::Confirm).await).contains("no reload waits"));
        assert!(steps(&site).is_empty());
        // Another says so for each, one line each; a plain reload asks nobody for it.
        site.probe(RELOAD, "simple", 45, OK);
        let several = site.want(within(LONG)).await;
        assert!(failed(&several).contains("\n    simple: it cannot revert"), "{several:?}");
        site.done(Request::Reload).await;
        // Only those who take settings have to: one that only checks need not.
        for name in ["plain", "simple"] {
            site.bus.unsubscribe(RELOAD, name);
        }
        waiting(&site, LONG).await;
        site.done(Request::Confirm).await;
        site.exit().await;
    });
}

#[test]
fn a_reload_that_is_refused_or_asks_nobody_does_not_wait() {
    both(|| async {
        let site = a_b_c(&[("prepare", Deed::Fail("no such font"))]).await;
        let ticket = site.ask(within(SHORT));
        assert_eq!(failed(&ticket.clone().outcome().await), "refused by b: no such font; nothing has changed");
        assert_eq!(site.journal.names("abort"), ["c", "a"]);
        assert_eq!((ticket.clone().confirmation_ended().await, ticket.confirmation()), (None, None));
        assert_eq!((site.bus.unconfirmed(), steps(&site)), (None, Vec::new()));
        site.exit().await;

        let empty = Site::idle().await;
        empty.done(Request::Start).await;
        assert!(failed(&empty.want(within(SHORT)).await).starts_with("nobody was asked"));
        assert_eq!((empty.bus.unconfirmed(), steps(&empty)), (None, Vec::new()));
        empty.exit().await;
    });
}

#[test]
fn a_commit_that_fails_is_reverted_at_once_where_it_was_in_force() {
    both(|| async {
        let site = a_b_c(&[("commit", Deed::Fail("disk full"))]).await;
        let ticket = site.ask(within(LONG));
        let outcome = ticket.clone().outcome().await;
        let expected = "generation 1 is in force except for b: disk full; where it was in force it is reverted";
        assert_eq!(failed(&outcome), expected);
        assert_eq!(site.journal.names("revert"), ["c", "a"], "only those who committed");
        assert_eq!((ticket.confirmation(), site.bus.unconfirmed()), (None, None));
        assert_eq!(steps(&site), ["reverting", "reverted"]);
        assert!(refused(&site.want(Request::Confirm).await).contains("no reload waits"));
        site.done(Request::Stop).await;
        assert_eq!(site.journal.names("revert").len(), 2, "once");
        let faults: Vec<_> = site.bus.faults().into_iter().map(|fault| (fault.component, fault.phase)).collect();
        assert_eq!(faults, [("b".to_owned(), "commit a reload".to_owned())]);
    });
}

#[test]
fn a_revert_that_fails_hangs_or_panics_is_a_fault_and_skips_nobody() {
    let deeds = [
        (Deed::Fail("no way back"), "no way back"),
        (Deed::Hang, "within"),
        (Deed::Panic, "a probe panics"),
        (Deed::Polite, "within"),
    ];
    for (deed, words) in deeds {
        paused(async {
            let site = a_b_c(&[("revert", deed.clone())]).await;
            let ticket = waiting(&site, SHORT).await;
            let (_, failed) = reverted(ticket.confirmation_ended().await);
            let failed = failed.expect("b has");
            assert!(failed.starts_with("b: ") && failed.contains(words), "{failed}");
            assert_eq!(site.journal.names("revert"), ["c", "b", "a"]);
            let faults = site.bus.faults();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert_eq!((faults[0].component.as_str(), faults[0].phase.as_str()), ("b", "revert a reload"));
            assert_eq!((faults[0].priority, site.bus.state()), (Some(20), State::Running));
            site.done(Request::Reload).await;
            site.done(Request::Exit).await;
        });
    }
}

#[test]
fn whatever_takes_the_site_elsewhere_reverts_before_it_stops_anything() {
    let replacement = || {
        Arc::new(Replacement { label: "next".to_owned(), program: "/nowhere".into(), keep_running: BTreeSet::new() })
    };
    type Way = fn(Arc<Replacement>) -> Request;
    let ways: [(&str, Way); 5] = [
        ("stop", |_| Request::Stop),
        ("exit", |_| Request::Exit),
        ("restart", Request::Restart),
        ("update", Request::Update),
        ("rollback", Request::Rollback),
    ];
    for (name, way) in ways {
        both(|| async {
            let site = a_b_c(&[]).await;
            let ticket = waiting(&site, LONG).await;
            site.done(way(replacement())).await;
            let (why, failed) = reverted(ticket.confirmation_ended().await);
            assert_eq!((why, failed), (format!("it was not confirmed before the {name} of the site"), None));
            assert_eq!(site.journal.names("revert"), ["c", "b", "a"]);
            assert!(place(&site, "revert a") < place(&site, "stop c"), "{:?}", site.journal.calls());
            let running = |line: &Line| line.what != "revert" || line.state == State::Running;
            assert!(site.journal.lines().iter().all(running), "{:?}", site.journal.lines());
            assert_eq!(steps(&site), ["waits", "reverting", "reverted"]);
            if name == "stop" {
                assert!(refused(&site.want(Request::Confirm).await).contains("no reload waits"));
                site.done(Request::Start).await;
                site.exit().await;
                assert_eq!(site.journal.names("revert").len(), 3, "once");
            } else {
                assert_eq!(site.ended().await.faults.len(), 0);
            }
        });
    }
}

#[test]
fn a_confirmation_comes_too_late_once_the_site_is_wanted_elsewhere() {
    both(|| async {
        let open = CancellationToken::new();
        let site = a_b_c(&[("revert", Deed::Gate(open.clone()))]).await;
        let ticket = waiting(&site, LONG).await;
        let stop = site.ask(Request::Stop);
        assert!(refused(&site.want(Request::Confirm).await).contains("no reload waits to be confirmed"));
        site.journal.happened("revert b").await;
        assert!(refused(&site.want(Request::Confirm).await).contains("no reload waits to be confirmed"));
        assert!(site.bus.unconfirmed().is_some(), "it is being reverted");
        open.cancel();
        assert_eq!(stop.outcome().await, Progress::Done);
        assert_eq!(reverted(ticket.confirmation_ended().await).1, None);
        site.exit().await;
    });
}

#[test]
fn what_was_confirmed_before_an_exit_stays_so() {
    both(|| async {
        let site = a_b_c(&[]).await;
        let ticket = waiting(&site, LONG).await;
        // One after the other, before the bus does anything about the first.
        let confirm = site.ask(Request::Confirm);
        let again = site.ask(Request::Confirm);
        let exit = site.ask(Request::Exit);
        assert_eq!(confirm.outcome().await, Progress::Done);
        // In real time the first may be done by then.
        let again = again.outcome().await;
        assert!(again == Progress::Done || refused(&again).contains("no reload waits"), "{again:?}");
        assert_eq!(exit.outcome().await, Progress::Done);
        assert!(matches!(ticket.confirmation_ended().await, Some(ConfirmStep::Confirmed { .. })));
        assert!(site.journal.names("revert").is_empty(), "{:?}", site.journal.calls());
        site.ended().await;
    });
}

#[test]
fn a_stop_that_is_taken_back_at_once_reverts_nothing() {
    paused(async {
        let site = a_b_c(&[]).await;
        let ticket = waiting(&site, LONG).await;
        let (stop, start) = (site.ask(Request::Stop), site.ask(Request::Start));
        assert!(matches!(stop.outcome().await, Progress::Failed(_)));
        assert_eq!(start.outcome().await, Progress::Done);
        assert!(site.bus.unconfirmed().is_some());
        site.done(Request::Confirm).await;
        assert!(matches!(ticket.confirmation_ended().await, Some(ConfirmStep::Confirmed { .. })));
        site.exit().await;
    });
}

#[test]
fn a_second_reload_is_refused_while_one_waits() {
    both(|| async {
        let open = CancellationToken::new();
        let site = a_b_c(&[("prepare", Deed::Gate(open.clone()))]).await;
        let first = site.ask(within(LONG));
        site.journal.happened("prepare b").await;
        // While it is under way, and while it waits.
        for _ in 0..2 {
            for second in [Request::Reload, within(LONG), restoring(LONG)] {
                let outcome = site.want(second).await;
                let why = refused(&outcome);
                assert!(why.contains("has to be confirmed first") && why.contains("request confirm"), "{why}");
            }
            if !open.is_cancelled() {
                assert!(refused(&site.want(Request::Confirm).await).contains("not in force yet"));
                open.cancel();
                assert_eq!(first.clone().outcome().await, Progress::Done);
            }
        }
        site.done(Request::Confirm).await;
        assert_eq!(site.journal.names("commit"), ["a", "b", "c"], "nothing was reloaded besides");
        site.done(Request::Reload).await;
        site.exit().await;
    });
}

#[test]
fn one_that_has_to_be_confirmed_begins_after_the_plain_one_before_it() {
    both(|| async {
        let open = CancellationToken::new();
        let site = a_b_c(&[("prepare", Deed::Gate(open.clone()))]).await;
        let under_way = site.ask(Request::Reload);
        site.journal.happened("prepare b").await;
        let plain = site.ask(Request::Reload);
        let provisional = site.ask(within(LONG));
        let merged = site.ask(Request::Reload);
        assert_eq!((merged.merged_with(), provisional.merged_with()), (Some(plain.number()), None));
        open.cancel();
        for ticket in [&under_way, &plain, &provisional] {
            assert_eq!(ticket.clone().outcome().await, Progress::Done);
        }
        assert_eq!(provisional.confirmation().map(|said| said.reload.generation), Some(3));
        assert_eq!((plain.confirmation(), merged.confirmation()), (None, None));
        site.done(Request::Confirm).await;
        site.exit().await;
    });
}

#[test]
fn one_that_has_not_begun_goes_with_the_stop_that_overtakes_it() {
    both(|| async {
        let open = CancellationToken::new();
        let site = a_b_c(&[("prepare", Deed::Gate(open.clone()))]).await;
        let under_way = site.ask(Request::Reload);
        site.journal.happened("prepare b").await;
        let waits = site.ask(within(LONG));
        let stop = site.ask(Request::Stop);
        assert!(failed(&waits.outcome().await).contains("cancelled by stop"));
        open.cancel();
        assert_eq!(stop.outcome().await, Progress::Done);
        assert!(under_way.outcome().await.is_final());
        site.done(Request::Start).await;
        waiting(&site, LONG).await; // nothing of the first is left
        site.done(Request::Confirm).await;
        site.exit().await;
    });
}

#[test]
fn an_exit_during_its_phases_takes_back_what_it_must() {
    for phase in ["prepare", "commit"] {
        both(|| async {
            let open = CancellationToken::new();
            let site = a_b_c(&[(phase, Deed::Gate(open.clone()))]).await;
            let ticket = site.ask(within(LONG));
            site.journal.happened(&format!("{phase} b")).await;
            let exit = site.ask(Request::Exit);
            open.cancel();
            let outcome = ticket.clone().outcome().await;
            assert_eq!(exit.outcome().await, Progress::Done);
            if phase == "prepare" {
                assert!(failed(&outcome).contains("the site does not run any more"), "{outcome:?}");
                assert_eq!(site.journal.names("commit").len() + site.journal.names("revert").len(), 0);
            } else {
                assert_eq!(outcome, Progress::Done);
                assert!(reverted(ticket.confirmation_ended().await).0.contains("before the exit"));
                assert_eq!(site.journal.names("revert"), ["c", "b", "a"]);
            }
            assert!(site.ended().await.faults.is_empty());
        });
    }
}

#[test]
fn an_exit_while_it_reverts_waits_for_it_within_its_limits() {
    paused(async {
        let site = a_b_c(&[("revert", Deed::Hang)]).await;
        let ticket = waiting(&site, SHORT).await;
        site.journal.happened("revert b").await;
        let begun = Instant::now();
        assert_eq!(site.want(Request::Exit).await, Progress::Done);
        assert!(begun.elapsed() < FAST, "{:?}", begun.elapsed());
        assert!(reverted(ticket.confirmation_ended().await).1.is_some());
        assert_eq!(
            (site.journal.names("revert"), site.journal.names("stop").len()),
            (vec!["c".to_owned(), "b".to_owned(), "a".to_owned()], 3)
        );
    });
    // In a hurry it is cancelled.
    paused(async {
        let site = Site::idle().await;
        let slow = Limits { reload: Some(Duration::from_secs(600)), ..Limits::default() };
        site.part("slow").reverts().limits(slow).on("revert", Deed::Hang).attach();
        site.done(Request::Start).await;
        waiting(&site, LONG).await;
        let exit = site.ask(Request::Exit);
        site.journal.happened("revert slow").await;
        let begun = Instant::now();
        site.bus.hurry();
        assert_eq!(exit.outcome().await, Progress::Done);
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_listener_that_is_gone_is_named_and_one_that_came_since_is_not_asked() {
    both(|| async {
        let site = a_b_c(&[]).await;
        let extra = || probe(&site.journal, "extra", OK);
        site.bus.subscribe(Subscription::new(RELOAD, "extra", extra()).priority(15).reverts(true));
        let ticket = waiting(&site, LONG).await;
        site.bus.unsubscribe(RELOAD, "extra");
        let later = probe(&site.journal, "later", OK);
        site.bus.subscribe(Subscription::new(RELOAD, "later", later).reverts(true));
        site.done(Request::Stop).await;
        let (_, failed) = reverted(ticket.confirmation_ended().await);
        assert_eq!(failed.as_deref(), Some("extra: it was gone before it could revert"));
        assert_eq!(site.journal.names("revert"), ["c", "b", "a"]);
        assert_eq!(site.journal.names(RELOAD), ["extra", "extra"], "neither is called any more");
        assert!(site.bus.faults().is_empty(), "who is gone has nothing in force: {:?}", site.bus.faults());
        site.bus.unsubscribe(RELOAD, "later");
        site.exit().await;
    });
}

#[test]
fn one_that_has_come_back_under_its_name_is_told_to_revert() {
    both(|| async {
        let site = a_b_c(&[]).await;
        site.bus.subscribe(Subscription::new(RELOAD, "peer", probe(&site.journal, "peer", OK)).reverts(true));
        for replaced in [true, false] {
            site.journal.clear();
            let ticket = waiting(&site, LONG).await;
            if !replaced {
                site.bus.unsubscribe(RELOAD, "peer"); // its connection has ended
            }
            let again = probe(&site.journal, "peer again", OK);
            site.bus.subscribe(Subscription::new(RELOAD, "peer", again).reverts(true));
            site.done(Request::Stop).await;
            assert_eq!(reverted(ticket.confirmation_ended().await).1, None);
            assert_eq!(site.journal.names(RELOAD).last().map(String::as_str), Some("peer again"));
            site.done(Request::Start).await;
        }
        // One that cannot is not asked, which is a fault: it has what was not confirmed.
        let ticket = waiting(&site, LONG).await;
        site.journal.clear();
        site.probe(RELOAD, "peer", 50, OK);
        site.done(Request::Stop).await;
        let (_, failed) = reverted(ticket.confirmation_ended().await);
        assert_eq!(failed.as_deref(), Some("peer: another listener has its name, and cannot revert"));
        assert_eq!((site.journal.names(RELOAD).len(), site.bus.faults().len()), (0, 1));
        site.done(Request::Exit).await;
    });
}

#[test]
fn who_restores_by_itself_is_told_and_then_everybody_reloads() {
    both(|| async {
        let site = a_b_c(&[]).await;
        site.probe(RELOAD, "plain", 5, OK);
        let ticket = site.ask(restoring(SHORT));
        assert_eq!(ticket.clone().outcome().await, Progress::Done);
        let reload = ticket.confirmation().expect("it waits").reload;
        assert!(reload.restores && !reload.listeners.contains(&"plain".to_owned()), "{reload:?}");
        assert_eq!(reverted(ticket.confirmation_ended().await).1, None);
        assert_eq!(site.journal.names("revert"), ["c", "b", "a"], "who can revert does");
        assert_eq!(site.journal.names(RELOAD), ["plain"; 4], "prepared and committed twice, never told to revert");
        assert_eq!(site.journal.names("prepare").len(), 6);
        assert!(
            place(&site, "revert a")
                < site.journal.calls().iter().rposition(|call| call == "prepare a").expect("again")
        );
        assert_eq!(steps(&site), ["waits", "reverting", "reverted"]);
        assert!(site.bus.faults().is_empty());
        site.journal.clear();
        // On its way elsewhere the site reads nothing anew: what starts next does.
        assert_eq!(site.want(restoring(LONG)).await, Progress::Done);
        site.done(Request::Stop).await;
        assert_eq!((site.journal.names(RELOAD).len(), site.journal.names("revert").len()), (2, 3));
        site.exit().await;
    });
}

#[test]
fn what_was_restored_and_is_refused_is_a_fault() {
    both(|| async {
        let site = a_b_c(&[]).await;
        let broken = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&broken);
        let strict = listener(move |call: refit_bus::Call| {
            let refuses = call.phase == Some(Phase::Prepare) && own.load(Ordering::SeqCst);
            async move { if refuses { Err(Failure::new("torn file")) } else { Ok(Value::Null) } }
        });
        site.bus.subscribe(Subscription::new(RELOAD, "strict", strict));
        let ticket = site.ask(restoring(SHORT));
        assert_eq!(ticket.clone().outcome().await, Progress::Done);
        broken.store(true, Ordering::SeqCst);
        drop(ticket.confirmation_ended().await);
        let faults = site.bus.faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!((faults[0].component.as_str(), faults[0].phase.as_str()), ("the bus", "reload what was restored"));
        assert!(faults[0].cause.contains("refused by strict: torn file"), "{faults:?}");
        site.done(Request::Exit).await;
    });
}

#[test]
fn confirming_when_nothing_waits_is_refused_in_every_state() {
    both(|| async {
        let site = Site::idle().await;
        let confirm = |site: &Site| site.ask(Request::Confirm).outcome();
        assert!(refused(&confirm(&site).await).contains("no reload waits to be confirmed"));
        site.part("a").reverts().attach();
        site.done(Request::Start).await;
        assert!(refused(&confirm(&site).await).contains("no reload waits to be confirmed"));
        site.done(Request::Reload).await;
        assert!(refused(&confirm(&site).await).contains("no reload waits to be confirmed"));
        waiting(&site, LONG).await;
        site.done(Request::Confirm).await;
        assert!(refused(&confirm(&site).await).contains("it was confirmed or reverted before"));
        assert!(site.seen.requests().len() >= 6, "each is heard of");
        site.exit().await;
        assert!(refused(&confirm(&site).await).contains("the bus has ended"));
    });
}

#[test]
fn one_on_the_way_up_waits_from_when_the_site_runs() {
    both(|| async {
        let open = CancellationToken::new();
        let site = Site::idle().await;
        site.part("a").reverts().on("start", Deed::Gate(open.clone())).attach();
        let start = site.ask(Request::Start);
        site.journal.happened("start a").await;
        let ticket = site.ask(within(LONG));
        assert!(refused(&site.want(Request::Confirm).await).contains("not in force yet"));
        open.cancel();
        assert_eq!((start.outcome().await, ticket.outcome().await), (Progress::Done, Progress::Done));
        site.done(Request::Confirm).await;
        site.exit().await;

        // A start that fails takes it along.
        let failing = Site::idle().await;
        let open = CancellationToken::new();
        failing.part("a").reverts().on("start", Deed::Gate(open.clone())).attach();
        failing.part("b").after(&["a"]).on("start", Deed::Fail("no")).attach();
        let start = failing.ask(Request::Start);
        failing.journal.happened("start a").await;
        let ticket = failing.ask(within(LONG));
        open.cancel();
        assert!(matches!(start.outcome().await, Progress::Failed(_)));
        assert!(matches!(ticket.outcome().await, Progress::Failed(_)));
        assert!(refused(&failing.want(Request::Confirm).await).contains("no reload waits"));
        failing.done(Request::Exit).await;
    });
}

#[test]
fn a_listener_may_confirm_and_cannot_wait_for_its_own_transition() {
    both(|| async {
        let site = a_b_c(&[]).await;
        let ticket = waiting(&site, LONG).await;
        let bus = site.bus.clone();
        let confirms = listener(move |_| {
            let bus = bus.clone();
            async move {
                let confirm = bus.request(Request::Confirm, Origin("handler".to_owned()));
                Ok(Value::from(format!("{:?}", confirm.outcome().await)))
            }
        });
        site.bus.subscribe(Subscription::new("page", "handler", confirms));
        let report = site.bus.publish("page", Value::Null).await;
        assert_eq!(report.values(), [&Value::from("Done")]);
        assert!(matches!(ticket.clone().confirmation_ended().await, Some(ConfirmStep::Confirmed { .. })));
        site.bus.unsubscribe("page", "handler");

        // Inside a listener that reverts, the end of the wait is not waited for.
        let ticket = waiting(&site, LONG).await;
        let own = ticket.clone();
        let waits = listener(move |call: refit_bus::Call| {
            let own = own.clone();
            async move {
                if call.phase == Some(Phase::Revert) && own.confirmation_ended().await.is_some() {
                    return Err(Failure::new("it is not over yet"));
                }
                Ok(Value::Null)
            }
        });
        site.bus.subscribe(Subscription::new(RELOAD, "a", waits).reverts(true));
        site.done(Request::Stop).await;
        assert_eq!(reverted(ticket.confirmation_ended().await).1, None);
        site.bus.unsubscribe(RELOAD, "a");
        site.exit().await;
    });
}

#[test]
fn a_wait_does_not_outlive_the_last_handle() {
    both(|| async {
        let (bus, engine) = Bus::new(OPTIONS);
        let journal = Arc::new(Journal::default());
        bus.subscribe(Subscription::new(RELOAD, "a", probe(&journal, "a", OK)).reverts(true));
        let running = tokio::spawn(engine.run());
        let ask = |request| bus.request(request, Origin("test".to_owned()));
        assert_eq!(ask(Request::Start).outcome().await, Progress::Done);
        let ticket = ask(within(LONG));
        assert_eq!(ticket.clone().outcome().await, Progress::Done);
        drop(bus);
        let ended = running.await.expect("the engine does not panic");
        assert!(ended.faults.is_empty(), "{:?}", ended.faults);
        assert!(reverted(ticket.confirmation_ended().await).0.contains("before the exit"));
        assert_eq!(journal.names(RELOAD).len(), 3, "prepare, commit, revert");
    });
}
