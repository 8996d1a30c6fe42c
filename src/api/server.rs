//! [`ApiServer`]: the API on the bus. It starts first and stops last, so that everything between can be watched.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::{from_fn, from_fn_with_state};
use refit_base::clock::monotonic_ns;
use refit_bus::{self as bus, Bus, Call, Failure, StopReason, Subscription, Work};
use serde_json::Value;

use super::routes::routes;
use super::{App, access, origin};
use crate::carry::Carry;
use crate::http::{Endpoint, Parked, Server, Socket};
use crate::wire::Event;
use crate::wire::event::TookOver;

/// Binding is done before: a start only begins to accept.
const START_MAX: Duration = Duration::from_secs(5);
/// Who may use the API's Unix socket: the runtime's account and its group.
pub const SOCKET_MODE: u32 = 0o660;
/// The name of the API's Unix socket among the listeners of parked connections.
const LOCAL: &str = "api";

/// The API on the bus.
pub struct ApiServer {
    app: Arc<App>,
    http: Server,
    /// When the image before stopped accepting.
    stopped_before_ns: Option<u64>,
    /// When it was about to execute this one.
    exec_ns: Option<u64>,
}

impl ApiServer {
    /// Returns a server of `app` on the Unix socket and, if there is one, the admin listener. The image `before` left the
    /// connections `parked`.
    pub fn new(
        app: Arc<App>,
        socket: UnixListener,
        admin: Option<TcpListener>,
        before: &Carry,
        parked: Vec<Parked>,
    ) -> Self {
        let resources = routes(Arc::clone(&app));
        let local = Endpoint {
            name: LOCAL,
            socket: Socket::Unix(socket),
            router: resources.clone().layer(from_fn(access::come_from_socket)),
        };
        let behind = resources.layer(from_fn_with_state(Arc::clone(&app), origin::come_from_page));
        let admin =
            admin.map(|admin| Endpoint { name: crate::config::ADMIN, socket: Socket::Tcp(admin), router: behind });
        let endpoints = std::iter::once(local).chain(admin).collect();
        let http = Server::new(endpoints, app.stopping.clone(), app.config.update.drain_grace, parked);
        Self { app, http, stopped_before_ns: before.stopped_accepting_ns, exec_ns: before.exec_ns }
    }

    /// Puts the server on the bus: the first to enter, the last to leave, so that everything between can be watched.
    pub fn attach(self: &Arc<Self>, bus: &Bus) {
        let name = "refit.api";
        bus.subscribe(Subscription::new(bus::ENTER, name, Arc::clone(self) as _).priority(i32::MIN).limit(START_MAX));
        let limit = self.app.config.update.drain_grace + START_MAX;
        bus.subscribe(Subscription::new(bus::EXIT, name, Arc::clone(self) as _).priority(i32::MAX).limit(limit));
    }

    /// Returns what it serves with.
    pub fn http(&self) -> &Server {
        &self.http
    }

    /// Publishes how long nobody accepted, if there was an image before this one.
    fn publish_handover(&self) {
        let Some(stopped) = self.stopped_before_ns else { return };
        let now = monotonic_ns();
        let since = |then: Option<u64>| then.map(|then| now.saturating_sub(then) / 1_000);
        self.app.context.registry.events.publish(Event::Handover(TookOver {
            listener: crate::config::ADMIN.to_owned(),
            gap_us: since(Some(stopped)),
            exec_to_accept_us: since(self.exec_ns),
        }));
    }
}

impl bus::Listener for ApiServer {
    fn call(self: Arc<Self>, call: Call) -> Work {
        Box::pin(async move {
            match call.reason {
                None => {
                    self.http.begin().map_err(|error| Failure::new(format!("cannot serve the API: {error}")))?;
                    self.publish_handover();
                }
                Some(StopReason::Replace(_)) => self.http.drain(true, &call.cancelled()).await,
                Some(StopReason::Stop | StopReason::Exit | StopReason::Undo) => {
                    self.http.drain(false, &call.cancelled()).await;
                }
            }
            Ok(Value::Null)
        })
    }
}
