//! Section H: signals, privileges, files.

use std::sync::Arc;

use nix::sys::signal::{Signal, raise};
use refit_bus::Request;
use refit_bus::{ENTER, State};

use crate::probe::{OK, Site, both, limited};

#[test]
fn b098_who_listened_before_the_bus_is_heard_again_when_the_bus_has_let_go() {
    limited(async {
        // Nobody else in this process listens for this signal, and whoever does is not ended by it.
        let mut own = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler");
        let site = Site::idle().await;
        drop(site.bus.signals().expect("handlers"));
        raise(Signal::SIGTERM).expect("raised");
        own.recv().await.expect("the old handler runs");
        assert_eq!(site.bus.state(), State::Idle, "the bus does not hear of it");
        site.exit().await;
    });
}

#[test]
fn b103_what_is_once_per_process_is_called_once() {
    both(|| async {
        let site = Arc::new(Site::at_rest());
        site.probe(ENTER, "once", 50, OK);
        site.run();
        for request in [Request::Start, Request::Stop, Request::Start] {
            site.done(request).await;
        }
        site.want(Request::Reload).await;
        site.exit().await;
        assert_eq!(site.journal.calls(), ["enter once"]);
    });
}
