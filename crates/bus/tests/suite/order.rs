//! Section I: dependencies, tasks, monitors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_bus::{CancellationToken, Limits, OnEnd, Service, ServiceState, State};
use refit_bus::{Failure, Origin, Request};
use tokio::time::Instant;

use crate::probe::{Deed, FAST, OK, Site, both, paused, reached};

#[test]
fn b104_components_start_by_dependency_and_stop_in_exact_reverse() {
    both(|| async {
        let site = Site::idle().await;
        // The priorities say the contrary.
        site.part("d").needs(&["b", "c"]).priority(1).attach();
        for name in ["b", "c"] {
            let slow = site.part(name).limits(Limits { start: Some(FAST), ..Limits::default() });
            slow.needs(&["a"]).priority(10).on("start", Deed::Sleep(Duration::from_millis(200))).attach();
        }
        site.part("a").priority(90).attach();
        site.done(Request::Start).await;
        let started = site.journal.names("start");
        assert_eq!((started[0].as_str(), started[3].as_str()), ("a", "d"), "{started:?}");
        let at = |words: &str| site.journal.find(words).at;
        assert!(at("start c") < at("start done b") && at("start b") < at("start done c"), "b and c start together");
        site.journal.clear();
        site.done(Request::Stop).await;
        let stopped = site.journal.names("stop");
        assert_eq!((stopped[0].as_str(), stopped[3].as_str()), ("d", "a"), "{stopped:?}");
        site.exit().await;
    });
}

#[test]
fn b104_the_reverse_is_exact_where_one_has_nothing_to_stop() {
    both(|| async {
        let site = Site::idle().await;
        // b only starts: c has to stop before a all the same, although the priorities say the contrary.
        let only = |name: &str, needs: &[&str], priority, channel| {
            let order = refit_bus::Order {
                needs: needs.iter().map(|name| (*name).to_owned()).collect(),
                priority,
                ..refit_bus::Order::default()
            };
            let listener = super::probe::probe(&site.journal, name, OK);
            site.bus.subscribe(refit_bus::Subscription::new(channel, name, listener).order(order));
        };
        site.part("a").priority(90).attach();
        only("b", &["a"], 50, "start");
        site.part("c").after(&["b"]).priority(10).attach();
        site.done(Request::Start).await;
        site.done(Request::Stop).await;
        assert_eq!(site.journal.calls(), ["start a", "start b", "start c", "stop c", "stop a"]);
        site.exit().await;
    });
}

#[test]
fn b106_a_task_that_fails_is_reported_and_tried_again_later_and_later() {
    paused(async {
        let site = Site::idle().await;
        let runs = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&runs);
        let task = Service::every(&site.bus, "task", Duration::from_millis(50), move || {
            let mut runs = noted.lock().expect("no panic");
            runs.push(Instant::now());
            let good = runs.len() == 1 || runs.len() == 5;
            async move { if good { Ok(()) } else { Err(Failure::new("no answer")) } }
        });
        let mut state = task.watch();
        site.bus.attach(Arc::new(task)).expect("its name is free");
        site.done(Request::Start).await;
        let degraded = |state: &ServiceState| *state == ServiceState::Degraded("no answer".to_owned());
        state.wait_for(degraded).await.expect("it is watched");
        assert_eq!(runs.lock().expect("no panic").len(), 2, "it failed at its second run");
        reached("it is well again", || runs.lock().expect("no panic").len() == 5).await;
        assert_eq!((site.bus.state(), state.borrow().clone()), (State::Running, ServiceState::Running));
        let runs = runs.lock().expect("no panic").clone();
        let pauses: Vec<Duration> = runs.windows(2).skip(1).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses[0] < pauses[1] && pauses[1] < pauses[2], "{pauses:?}");
        site.exit().await;
    });
}

#[test]
fn b107_a_task_of_an_interval_runs_only_while_the_site_does_and_once_at_a_time() {
    paused(async {
        let site = Arc::new(Site::idle().await);
        let (runs, at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, now) = (Arc::clone(&runs), Arc::clone(&at_once));
        let task = Service::every(&site.bus, "task", Duration::from_millis(50), move || {
            assert_eq!(now.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            let (count, now) = (Arc::clone(&count), Arc::clone(&now));
            async move {
                tokio::task::yield_now().await;
                count.fetch_add(1, Ordering::SeqCst);
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        });
        site.bus.attach(Arc::new(task)).expect("its name is free");
        for request in [Request::Start, Request::Stop] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            site.done(request).await;
        }
        let before = runs.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(runs.load(Ordering::SeqCst), before, "no run while idle");
        site.done(Request::Start).await;
        site.want(Request::Reload).await; // a task has no settings
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ran = runs.load(Ordering::SeqCst) - before;
        assert!((14..=21).contains(&ran), "{ran} runs in a second: one instance");
        site.exit().await;
    });
}

#[test]
fn b107_a_task_may_stop_the_site_that_it_runs_in() {
    both(|| async {
        let site = Site::idle().await;
        let bus = site.bus.clone();
        let task = Service::every(&site.bus, "task", Duration::from_millis(50), move || {
            drop(bus.request(Request::Stop, Origin("task".to_owned())));
            async { Ok(()) }
        });
        site.bus.attach(Arc::new(task)).expect("its name is free");
        let start = async { drop(site.ask(Request::Start)) };
        let (stopping, ()) = tokio::join!(biased; site.bus.wait(&[State::Stopping]), start);
        stopping.expect("it stops");
        site.bus.wait(&[State::Idle]).await.expect("it is idle");
        site.bus.detach("task");
        site.exit().await;
    });
}

#[test]
fn b110_the_end_of_a_thread_is_a_components_event_and_only_a_request_ends_the_site() {
    both(|| async {
        let site = Site::idle().await;
        let ask = CancellationToken::new();
        let (heard, bus) = (ask.clone(), site.bus.clone());
        let worker = Service::new(&site.bus, "worker", OnEnd::Report, |_| async { Ok(()) });
        let mut state = worker.watch();
        let asker = Service::new(&site.bus, "asker", OnEnd::Report, move |stop| {
            let (heard, bus) = (heard.clone(), bus.clone());
            async move {
                heard.cancelled().await;
                drop(bus.request(Request::Exit, Origin("component asker".to_owned())));
                stop.cancelled().await;
                Ok(())
            }
        });
        site.bus.attach(Arc::new(worker)).expect("its name is free");
        site.bus.attach(Arc::new(asker)).expect("its name is free");
        site.done(Request::Start).await;
        state.wait_for(|state| matches!(state, ServiceState::Degraded(_))).await.expect("it is watched");
        assert_eq!(site.bus.state(), State::Running, "the end of a worker is not the end of the site");
        ask.cancel();
        let ended = site.ended().await;
        assert!(ended.asked && ended.faults.is_empty(), "{ended:?}");
    });
}
