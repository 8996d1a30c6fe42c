//! The HTTP API and the page: the same on the Unix socket and, behind the password, on the admin listener.
//!
//! One file per resource, and one table of all routes, with what each takes (`routes`). Handlers read what others own and ask the bus and
//! the update manager; they decide nothing.

mod access;
mod bus;
mod components;
mod error;
mod events;
mod extract;
mod health;
mod logs;
mod metrics;
mod openapi;
mod origin;
mod packages;
mod releases;
mod routes;
mod server;
mod session;
mod status;
mod updates;

use std::collections::BTreeMap;
use std::sync::Arc;

use refit_bus::{Bus, Fault};
use tokio_util::sync::CancellationToken;

use crate::access::operators::Operators;
use crate::component::{Process, RunContext};
use crate::config::Config;
use crate::peers::Peers;
use crate::requests::RequestDispatcher;
use crate::update::Manager;
use crate::wire::Problem;

pub use logs::CURSOR;
pub use releases::describe as describe_releases;
pub use routes::{description, routes_with_permissions};
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
    /// Which accounts of the machine run the appliance.
    pub(crate) operators: Arc<Operators>,
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
