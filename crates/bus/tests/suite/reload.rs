//! Section F: graceful and reload.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use refit_bus::{
    Act, CancellationToken, LOG, Phase, Progress, RELOAD, Reply, State, StopReason, Subscription, listener,
};
use refit_bus::{Component, Failure, Request};
use serde_json::{Value, json};

use crate::probe::{Deed, FAST, OK, Site, both, paused};

/// A site that runs a, b and c, of which b does these things.
async fn a_b_c(deeds: &[(&'static str, Deed)]) -> Site {
    let site = Site::idle().await;
    site.part("a").priority(10).attach();
    let mut b = site.part("b").priority(20);
    for (what, deed) in deeds {
        b = b.on(what, deed.clone());
    }
    b.attach();
    site.part("c").priority(30).attach();
    site.done(Request::Start).await;
    site.journal.clear();
    site.seen.clear();
    site
}

fn failed(outcome: &Progress) -> &str {
    let Progress::Failed(why) = outcome else { panic!("{outcome:?}") };
    why
}

#[test]
fn b069_a_reload_calls_every_listener_once_in_each_phase_and_keeps_running() {
    both(|| async {
        let site = a_b_c(&[]).await;
        site.done(Request::Reload).await;
        let expected = ["prepare a", "prepare b", "prepare c", "commit a", "commit b", "commit c"];
        assert_eq!(site.journal.calls(), expected);
        assert!(
            site.journal
                .lines()
                .iter()
                .all(|line| line.state == State::Running && (line.argument == 1 || line.what.ends_with("done")))
        );
        assert!(site.seen.states().is_empty(), "{:?}", site.seen.states());
        site.done(Request::Reload).await;
        assert_eq!(site.journal.lines().last().expect("called").what, "commit done");
        assert!(site.journal.lines().iter().any(|line| line.argument == 2), "every reload has a number of its own");
        site.exit().await;
    });
}

#[test]
fn b070_a_reload_may_be_asked_for_from_inside_a_publication() {
    both(|| async {
        let site = a_b_c(&[]).await;
        let bus = site.bus.clone();
        let handler = listener(move |_| {
            let bus = bus.clone();
            async move {
                let ticket = bus.request(Request::Reload, refit_bus::Origin("handler".to_owned()));
                Ok(json!(format!("{:?}", ticket.outcome().await)))
            }
        });
        site.bus.subscribe(Subscription::new("request", "handler", handler));
        let report = site.bus.publish("request", Value::Null).await;
        assert_eq!(report.values(), [&json!("Done")]);
        assert_eq!(site.journal.names("commit"), ["a", "b", "c"]);
        site.bus.unsubscribe("request", "handler");
        site.exit().await;
    });
}

#[test]
fn b071_a_site_that_does_not_run_is_not_started_by_a_reload() {
    both(|| async {
        let site = Site::idle().await;
        site.part("a").attach();
        let outcome = site.want(Request::Reload).await;
        assert!(
            matches!(&outcome, Progress::Refused(why) if why.contains("nothing to reload: the site is Idle")),
            "{outcome:?}"
        );
        assert_eq!((site.bus.state(), site.journal.calls().len()), (State::Idle, 0));
        site.exit().await;
    });
}

#[test]
fn b071_a_reload_that_asks_nobody_is_not_done() {
    both(|| async {
        let site = Site::idle().await;
        site.done(Request::Start).await;
        let outcome = site.want(Request::Reload).await;
        assert_eq!(failed(&outcome), "nobody was asked: nobody listens to it; nothing has changed");
        // Whoever only checks takes no settings.
        let check = listener(|_| async { Ok(Value::Null) });
        site.bus.subscribe(Subscription::new(RELOAD, "check", check).only_checks());
        let ticket = site.ask(Request::Reload);
        assert!(failed(&ticket.clone().outcome().await).starts_with("nobody was asked"));
        let asked = ticket.asked();
        assert_eq!((asked.len(), asked[0].listener.as_str(), asked[0].answer), (1, "check", Reply::Ok));
        site.exit().await;
    });
}

#[test]
fn b072_the_ticket_says_who_was_asked_and_what_each_answered() {
    both(|| async {
        let site = a_b_c(&[("prepare", Deed::Fail("no such font"))]).await;
        let ticket = site.ask(Request::Reload);
        drop(ticket.clone().outcome().await);
        let answers = |ticket: &refit_bus::Ticket| -> Vec<(String, Phase, Reply)> {
            ticket.asked().into_iter().map(|one| (one.listener, one.phase, one.answer)).collect()
        };
        let one = |name: &str, phase, reply| (name.to_owned(), phase, reply);
        assert_eq!(
            answers(&ticket),
            [
                one("a", Phase::Abort, Reply::Ok),
                one("b", Phase::Prepare, Reply::Refused),
                one("c", Phase::Abort, Reply::Ok)
            ]
        );
        site.exit().await;

        // One that is gone between its own yes and the commit has not taken the new settings.
        let site = a_b_c(&[]).await;
        let leaving = {
            let bus = site.bus.clone();
            listener(move |call: refit_bus::Call| {
                let bus = bus.clone();
                async move {
                    if call.phase == Some(Phase::Prepare) {
                        bus.unsubscribe(RELOAD, "leaves");
                    }
                    Ok(Value::Null)
                }
            })
        };
        site.bus.subscribe(Subscription::new(RELOAD, "leaves", leaving));
        let ticket = site.ask(Request::Reload);
        let outcome = ticket.clone().outcome().await;
        assert!(
            failed(&outcome).contains("in force except for leaves: it was gone before it could commit"),
            "{outcome:?}"
        );
        assert_eq!(answers(&ticket).last(), Some(&one("leaves", Phase::Commit, Reply::Gone)));
        site.exit().await;
    });
}

#[test]
fn b072_if_one_refuses_everybody_who_prepared_aborts_and_nobody_commits() {
    both(|| async {
        let site = a_b_c(&[("prepare", Deed::Fail("no such font"))]).await;
        let outcome = site.want(Request::Reload).await;
        assert_eq!(failed(&outcome), "refused by b: no such font; nothing has changed");
        assert_eq!(site.journal.names("prepare"), ["a", "b", "c"]);
        assert_eq!(
            (site.journal.names("abort"), site.journal.names("commit").len()),
            (vec!["c".to_owned(), "a".to_owned()], 0)
        );
        assert_eq!(site.bus.state(), State::Running);
        assert!(site.bus.faults().is_empty(), "a refusal is an answer");
        site.exit().await;
    });
}

#[test]
fn b072_all_who_refuse_are_named_one_line_each() {
    both(|| async {
        let site = a_b_c(&[]).await;
        site.probe(LOG, "log", 50, OK);
        for (name, priority) in [("x", 20), ("y", 7)] {
            let refuses = |call: refit_bus::Call| async move {
                let refused = Failure::new("no such\nfont");
                if call.phase == Some(Phase::Prepare) { Err(refused) } else { Ok(Value::Null) }
            };
            site.bus.subscribe(Subscription::new(RELOAD, name, listener(refuses)).priority(priority));
        }
        let outcome = site.want(Request::Reload).await;
        let expected = "refused by several; nothing has changed:\n    y: no such font (priority 7)\n    x: no such font (priority 20)";
        assert_eq!(failed(&outcome), expected);
        site.exit().await;
        let texts: Vec<String> =
            site.journal.lines().iter().filter_map(|line| Some(line.argument["text"].as_str()?.to_owned())).collect();
        for line in ["    y: no such font (priority 7)", "    x: no such font (priority 20)"] {
            assert!(texts.iter().any(|text| text == line), "the log has a line for each: {texts:?}");
        }
    });
}

#[test]
fn b072_who_does_not_answer_in_time_has_refused() {
    paused(async {
        let site = a_b_c(&[("prepare", Deed::Hang)]).await;
        let outcome = site.want(Request::Reload).await;
        assert!(failed(&outcome).contains("b: not done within 0.3 s"), "{outcome:?}");
        assert_eq!(
            (site.journal.names("abort"), site.journal.names("commit").len()),
            (vec!["c".to_owned(), "a".to_owned()], 0)
        );
        assert_eq!(site.bus.state(), State::Running);
        site.exit().await;
    });
}

#[test]
fn b072_who_prepared_too_late_aborts_as_well() {
    both(|| async {
        let site = a_b_c(&[]).await;
        let journal = Arc::clone(&site.journal);
        let late = listener(move |call: refit_bus::Call| {
            let journal = Arc::clone(&journal);
            async move {
                let phase = call.phase.expect("a reload has phases");
                journal.note(phase.name(), "late", call.state, &Value::Null);
                if phase == Phase::Prepare {
                    call.cancelled().cancelled().await;
                }
                Ok(Value::Null)
            }
        });
        site.bus.subscribe(Subscription::new(RELOAD, "late", late));
        let outcome = site.want(Request::Reload).await;
        assert!(failed(&outcome).contains("late: not done within"), "{outcome:?}");
        assert_eq!(site.journal.names("abort"), ["late", "c", "b", "a"]);
        site.exit().await;
    });
}

#[test]
fn b072_an_exit_during_a_reload_aborts_it() {
    both(|| async {
        let site = a_b_c(&[]).await;
        let polite = super::probe::probe(&site.journal, "polite", Deed::Polite);
        site.bus.subscribe(Subscription::new(RELOAD, "polite", polite).limit(FAST));
        let reload = site.ask(Request::Reload);
        site.journal.happened("reload polite").await;
        site.done(Request::Exit).await;
        assert!(!failed(&reload.outcome().await).is_empty());
        assert_eq!(
            (site.journal.names("commit").len(), site.journal.names("abort")),
            (0, ["c", "b", "a"].map(str::to_owned).to_vec())
        );
        assert_eq!(site.journal.names("stop"), ["c", "b", "a"]);
        assert!(site.ended().await.faults.is_empty());
    });
}

#[test]
fn b073_a_failure_in_commit_leaves_the_others_on_the_new_generation_and_is_a_fault() {
    both(|| async {
        let site = a_b_c(&[("commit", Deed::Fail("disk full"))]).await;
        let outcome = site.want(Request::Reload).await;
        assert_eq!(failed(&outcome), "generation 1 is in force except for b: disk full");
        assert_eq!(
            (site.journal.names("commit"), site.journal.names("abort").len()),
            (["a", "b", "c"].map(str::to_owned).to_vec(), 0)
        );
        let faults = site.bus.faults();
        assert_eq!((faults.len(), faults[0].component.as_str(), faults[0].phase.as_str()), (1, "b", "commit a reload"));
        assert_eq!(site.bus.state(), State::Running);
        site.done(Request::Exit).await;
    });
}

/// A certificate that is served, one that was uploaded, and what is prepared of it.
#[derive(Default)]
struct Certificate {
    uploaded: Mutex<String>,
    prepared: Mutex<Option<String>>,
    served: Mutex<String>,
    generation: AtomicU64,
}

fn get<T: Clone>(cell: &Mutex<T>) -> T {
    cell.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn set<T>(cell: &Mutex<T>, value: T) {
    *cell.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

impl Component for Certificate {
    fn name(&self) -> &str {
        "certificate"
    }

    fn start(self: Arc<Self>, _cancelled: CancellationToken) -> Act {
        set(&self.served, get(&self.uploaded));
        Box::pin(async { Ok(()) })
    }

    fn stop(self: Arc<Self>, _reason: StopReason, _hurry: CancellationToken) -> Act {
        Box::pin(async { Ok(()) })
    }

    fn reload(self: Arc<Self>, phase: Phase, generation: u64) -> Act {
        Box::pin(async move {
            match phase {
                Phase::Prepare => {
                    let uploaded = get(&self.uploaded);
                    if let Some(why) = uploaded.strip_prefix("bad: ") {
                        return Err(Failure::new(why));
                    }
                    set(&self.prepared, Some(uploaded));
                }
                Phase::Commit => {
                    set(&self.served, get(&self.prepared).ok_or_else(|| Failure::new("nothing is prepared"))?);
                    self.generation.store(generation, Ordering::SeqCst);
                }
                Phase::Abort => set(&self.prepared, None),
                Phase::Revert => return Err(Failure::new("it has not said that it can revert")),
            }
            Ok(())
        })
    }
}

/// A site that serves certificate 1, of which a worker can upload another.
async fn serving() -> (Site, Arc<Certificate>) {
    let site = Site::idle().await;
    let certificate = Arc::new(Certificate::default());
    set(&certificate.uploaded, "1".to_owned());
    site.bus.attach(Arc::clone(&certificate) as _).expect("its name is free");
    let (own, bus) = (Arc::clone(&certificate), site.bus.clone());
    let upload = listener(move |call: refit_bus::Call| {
        set(&own.uploaded, call.argument.as_str().expect("a certificate").to_owned());
        let ticket = bus.request(Request::Reload, refit_bus::Origin("upload".to_owned()));
        async move { Ok(json!(format!("{:?}", ticket.outcome().await))) }
    });
    site.bus.subscribe(Subscription::new("upload", "upload", upload));
    site.done(Request::Start).await;
    site.seen.clear();
    (site, certificate)
}

#[test]
fn b075_a_new_certificate_from_a_worker_is_served_once_the_ticket_is_resolved() {
    both(|| async {
        let (site, certificate) = serving().await;
        assert_eq!(get(&certificate.served), "1");
        let report = site.bus.publish("upload", json!("2")).await;
        assert_eq!((report.values(), get(&certificate.served)), (vec![&json!("Done")], "2".to_owned()));
        assert!(site.seen.states().is_empty(), "{:?}", site.seen.states());
        assert_eq!(site.bus.state(), State::Running);
        site.bus.unsubscribe("upload", "upload");
        site.exit().await;
    });
}

#[test]
fn b076_a_bad_certificate_is_refused_with_its_reason_and_the_old_one_is_served() {
    both(|| async {
        let (site, certificate) = serving().await;
        site.part("other").attach();
        for why in ["the key does not match", "expired", "cannot be read", "is cut off"] {
            let report = site.bus.publish("upload", json!(format!("bad: {why}"))).await;
            let said = report.values()[0].as_str().expect("a text").to_owned();
            assert!(said.contains(&format!("refused by certificate: {why}; nothing has changed")), "{said}");
            assert_eq!((get(&certificate.served), certificate.generation.load(Ordering::SeqCst)), ("1".to_owned(), 0));
        }
        assert_eq!(site.journal.names("abort").len(), 4);
        assert_eq!(site.bus.state(), State::Running);
        site.bus.unsubscribe("upload", "upload");
        site.exit().await;
    });
}
