//! [`Server`]: the API on the bus. It starts first and stops last, so that everything between can be watched.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{App, access, routes};
use crate::bus::{Failure, Order, Participant, StopReason, Work};
use crate::clock::monotonic_ns;
use crate::handover::carry::Carry;
use crate::home::Home;

/// Earlier than any component.
const FIRST: i32 = i32::MIN;
/// Binding is done before: a start only begins to accept.
const START_MAX: Duration = Duration::from_secs(5);
/// Who may use the socket: the runtime's account and its group.
const SOCKET_MODE: u32 = 0o660;

/// The API's own socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind the socket {}", path.display())]
pub struct ApiSocketError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Returns the listener on the API's Unix socket: the one handed over, or a new one.
///
/// # Errors
/// The socket cannot be bound.
pub fn api_socket(home: &Home, inherited: Option<UnixListener>) -> Result<UnixListener, ApiSocketError> {
    let path = home.socket();
    if let Some(listener) = inherited
        && path.exists()
    {
        return Ok(listener);
    }
    let bind = || {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = crate::handover::unix::with_short_path(&path, |path| UnixListener::bind(path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(SOCKET_MODE))?;
        Ok(listener)
    };
    bind().map_err(|source| ApiSocketError { path: path.clone(), source })
}

/// The API on the bus.
pub struct Server {
    app: Arc<App>,
    socket: UnixListener,
    admin: Option<TcpListener>,
    drain_grace: Duration,
    /// What the image before left: when it stopped accepting.
    before: Carry,
    serving: Mutex<JoinSet<io::Result<()>>>,
    stopped_accepting_ns: Mutex<Option<u64>>,
}

impl Server {
    /// Returns a server of `app` on the Unix socket and, if there is one, the admin listener.
    pub fn new(app: Arc<App>, socket: UnixListener, admin: Option<TcpListener>, before: Carry) -> Self {
        let drain_grace = app.config.update.drain_grace;
        Self {
            app,
            socket,
            admin,
            drain_grace,
            before,
            serving: Mutex::new(JoinSet::new()),
            stopped_accepting_ns: Mutex::new(None),
        }
    }

    /// Returns when it stopped accepting, on the monotonic clock.
    pub fn stopped_accepting_ns(&self) -> Option<u64> {
        *self.stopped_accepting_ns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> io::Result<()> {
        let stopping = self.app.stopping.clone();
        let app = routes(Arc::clone(&self.app));
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixListener::from_std(socket)?;
        let local: Router = app.clone().layer(from_fn(access::trust_socket));
        let stopped = stopping.clone();
        serving
            .spawn(async move { axum::serve(socket, local).with_graceful_shutdown(stopped.cancelled_owned()).await });
        if let Some(admin) = &self.admin {
            let admin = admin.try_clone()?;
            admin.set_nonblocking(true)?;
            let admin = tokio::net::TcpListener::from_std(admin)?;
            let behind: Router = app.layer(from_fn_with_state(Arc::clone(&self.app), access::require_account));
            serving.spawn(async move {
                axum::serve(admin, behind).with_graceful_shutdown(stopping.cancelled_owned()).await
            });
        }
        self.tell_handover();
        Ok(())
    }

    /// Publishes how long nobody accepted, if there was an image before this one.
    fn tell_handover(&self) {
        let Some(stopped) = self.before.stopped_accepting_ns else { return };
        let now = monotonic_ns();
        let since = |then: Option<u64>| then.map(|then| now.saturating_sub(then) / 1_000);
        let data = json!({
            "listener": crate::config::ADMIN,
            "gap_us": since(Some(stopped)),
            "exec_to_accept_us": since(self.before.exec_ns),
        });
        self.app.around.estate.events.publish("handover", data);
    }
}

impl Participant for Server {
    fn name(&self) -> &'static str {
        "refit.api"
    }

    fn order(&self) -> Order {
        Order { priority: FIRST, ..Order::default() }
    }

    fn start(self: Arc<Self>, _cancelled: CancellationToken) -> Work {
        Box::pin(async move { self.begin().map_err(|error| Failure::new(format!("cannot serve the API: {error}"))) })
    }

    fn stop(self: Arc<Self>, _reason: StopReason, hurry: CancellationToken) -> Work {
        Box::pin(async move {
            *self.stopped_accepting_ns.lock().unwrap_or_else(PoisonError::into_inner) = Some(monotonic_ns());
            self.app.stopping.cancel();
            let mut serving = std::mem::take(&mut *self.serving.lock().unwrap_or_else(PoisonError::into_inner));
            // Cancel-safe: dropping the set ends the connections that are left.
            tokio::select! {
                () = async { while serving.join_next().await.is_some() {} } => {}
                () = tokio::time::sleep(self.drain_grace) => {}
                () = hurry.cancelled() => {}
            }
            Ok(())
        })
    }

    fn start_limit(&self) -> Duration {
        START_MAX
    }

    fn stop_limit(&self) -> Duration {
        self.drain_grace + START_MAX
    }
}
