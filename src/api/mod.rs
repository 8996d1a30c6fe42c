//! The HTTP API and the page: the same on the Unix socket and, behind the password, on the admin listener.
//!
//! One file per resource. Handlers read what others own and ask the bus and the update manager; they decide nothing.

mod access;
mod bus;
mod components;
mod error;
mod events;
mod extract;
mod logs;
mod metrics;
mod packages;
mod releases;
mod server;
mod session;
mod status;
mod updates;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use refit_bus::{Bus, Fault};
use tokio_util::sync::CancellationToken;

use crate::component::{Process, RunContext};
use crate::config::Config;
use crate::peers::Peers;
use crate::requests::RequestDispatcher;
use crate::update::Manager;

pub use error::Problem;
pub use logs::CURSOR;
pub use releases::describe as describe_releases;
pub use server::{ApiServer, SOCKET_MODE};

/// Everything that the handlers read.
pub struct App {
    /// Where requests are made.
    pub requests: Arc<RequestDispatcher>,
    /// The peers on the bus.
    pub peers: Arc<Peers>,
    /// The update manager.
    pub manager: Arc<Manager>,
    /// The bus.
    pub bus: Bus,
    /// The running release's configuration.
    pub config: Arc<Config>,
    /// Where components run.
    pub context: Arc<RunContext>,
    /// The components by name.
    pub components: BTreeMap<String, Arc<Process>>,
    /// The guard's PID.
    pub guard_pid: u32,
    /// The runtimes before this one that died one after the other, as a fault.
    pub deaths: Option<Fault>,
    /// When this process image started, RFC 3339.
    pub started_at: String,
    /// Cancelled when the server stops: streams end.
    pub stopping: CancellationToken,
}

impl App {
    /// Returns everything that failed so far.
    fn faults(&self) -> Vec<Fault> {
        self.deaths.iter().cloned().chain(self.bus.faults()).collect()
    }
}

/// The state that handlers share.
type Shared = Arc<App>;

/// Refuses what needs the home while that is not where it was: what its files are said to lack would be wrong.
async fn require_home(State(app): State<Shared>, request: Request, next: Next) -> Response {
    match app.context.home.require() {
        Ok(()) => next.run(request).await,
        Err(moved) => Problem::of(&moved).into_response(),
    }
}

fn routes(app: Shared) -> Router {
    let of_releases = Router::new()
        .route("/releases", get(releases::list))
        .route("/releases/{version}", delete(releases::remove))
        .route("/packages", get(packages::list).put(packages::receive).post(packages::fetch))
        .route("/packages/{digest}", delete(packages::discard))
        .route("/repository", get(packages::check))
        .route("/updates", post(updates::update))
        .route("/rollback", post(updates::rollback))
        .route_layer(from_fn_with_state(Arc::clone(&app), require_home));
    let api = Router::new()
        .route("/status", get(status::status))
        .route("/history", get(status::history))
        .route("/components", get(components::list))
        .route("/components/{name}/logs", get(logs::logs))
        .route("/components/{name}/{action}", post(components::act))
        .route("/events", get(events::stream))
        .route("/bus", get(bus::show))
        .route("/bus/publications", post(bus::publish))
        .route("/bus/requests", post(bus::request))
        .route("/bus/requests/{id}", get(bus::ticket))
        .route("/session", post(session::begin).delete(session::end))
        .merge(of_releases);
    Router::new()
        .nest("/api/v1", api)
        .route("/healthz", get(status::healthz))
        .route("/metrics", get(metrics::metrics))
        .merge(crate::web::routes())
        .fallback(|| async { Problem::missing("there is nothing at this address") })
        .layer(from_fn(extract::or_problem))
        .with_state(app)
}
