//! `GET /api/v1/status`, `releases`, `history`, and `GET /healthz`: how things are.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use refit_base::{Reported, clock, lock, message};
use refit_bus as bus;
use refit_updater::journal;

use super::components::views;
use super::health::overall;
use super::{Problem, Shared};
use crate::update::UpdateError;
use crate::wire::{
    Config, CurrentRelease, Fault, Guard, History, Listener, ReleaseState, Runtime, SiteState, Status, Trust,
    Unconfirmed, Unmerged, Unread,
};

pub(super) async fn status(State(app): State<Shared>) -> Json<Status> {
    Json(of(&app).await)
}

/// Returns how the appliance is.
pub(super) async fn of(app: &Shared) -> Status {
    let journal = app.manager.journal();
    let update = app.manager.view();
    let on_trial = matches!(journal.state, journal::State::Trial { .. });
    let components = views(app);
    let trust = trust(app).await;
    let config = live_config(app).await;
    let mut status = Status {
        appliance: app.config.name.clone(),
        health: None,
        release: CurrentRelease {
            version: app.config.version.clone(),
            state: if on_trial { ReleaseState::Trial } else { ReleaseState::Good },
            probation_ends_at: update.as_ref().and_then(|update| update.probation_ends_at.clone()),
        },
        previous: journal.previous().cloned(),
        guard: Guard { pid: app.guard_pid },
        runtime: Runtime {
            pid: std::process::id(),
            generation: app.context.registry.generation(),
            started_at: app.started_at.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        bus: SiteState { state: app.bus.state().into(), unconfirmed: app.bus.unconfirmed().map(Unconfirmed::from) },
        components,
        listeners: listeners(app),
        receiving: app.manager.receiving().reception(),
        staged: app.manager.receiving().staged(),
        update,
        repository: app.manager.receiving().repository(),
        trust,
        config,
        read_only: app.context.home.is_read_only(),
        faults: app.faults().iter().map(Fault::from).collect(),
        time: clock::stamp(),
    };
    let public = app.config.components.iter().filter(|component| !component.listeners.is_empty());
    let public = public.map(|component| component.name.clone()).collect();
    status.health = Some(overall(&status, &public, disk_trouble(app)));
    status
}

/// Returns what is wrong with the disk of the home: an update, and whatever components store, needs room.
fn disk_trouble(app: &Shared) -> Option<String> {
    /// Less is no room for a package, nor for an hour of logs.
    const FREE_BYTES_MIN: u64 = 64 << 20;
    let disk = rustix::fs::statvfs(app.context.home.path()).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    (free < FREE_BYTES_MIN).then(|| format!("the disk of the home has {} MiB left", free >> 20))
}

/// Returns the sockets that the appliance listens on, and those that it cannot have yet.
fn listeners(app: &Shared) -> Vec<Listener> {
    let listeners = lock(&app.context.listeners);
    let bound = listeners.addresses().into_iter();
    let bound = bound.map(|(name, address)| Listener { name, address: address.to_string(), failure: None });
    let missing = listeners.missing().map(|missing| Listener {
        name: missing.name.clone(),
        address: missing.address.to_string(),
        failure: Some(missing.source.to_string()),
    });
    bound.chain(missing).collect()
}

/// Returns the configuration files that wait for the admin, each with the default that could not be merged, and what cannot be read.
async fn live_config(app: &Shared) -> Config {
    let manager = std::sync::Arc::clone(&app.manager);
    let found = tokio::task::spawn_blocking(move || (manager.unmerged(), manager.unread())).await;
    let (unmerged, unread) = found.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot look at the live configuration");
        (Vec::new(), Vec::new())
    });
    Config {
        unmerged: unmerged.into_iter().map(Unmerged::from).collect(),
        unread: unread.into_iter().map(Unread::from).collect(),
    }
}

/// Returns how long what is trusted is good. A trust that is damaged is a warning, too: the appliance runs on without.
async fn trust(app: &Shared) -> Trust {
    if let Err(moved) = app.context.home.require() {
        return Trust::unknown(message(&moved));
    }
    let manager = std::sync::Arc::clone(&app.manager);
    let found = tokio::task::spawn_blocking(move || manager.trust_status()).await;
    match found.unwrap_or_else(|source| Err(UpdateError::Worker { source })) {
        Ok(status) => status.into(),
        Err(error) => Trust::unknown(format!("{}: {}", refit_base::Chain(&error), error.remedy())),
    }
}

pub(super) async fn history(State(app): State<Shared>) -> Result<Json<History>, Problem> {
    let manager = std::sync::Arc::clone(&app.manager);
    let entries = tokio::task::spawn_blocking(move || manager.history())
        .await
        .map_err(|source| Problem::of(&UpdateError::Worker { source }))?
        .map_err(|error| Problem::of(&error))?;
    Ok(Json(History::newest_first(entries)))
}

/// 200 when the appliance serves, 503 otherwise. While one process image takes over from another it goes on serving.
pub(super) async fn healthz(State(app): State<Shared>) -> impl IntoResponse {
    // In this order: whoever had not run yet a moment ago either takes over, or runs now.
    let takes_over = app.context.registry.generation() > 1 && !app.bus.ran();
    let state = app.bus.state();
    if state == bus::State::Running || app.bus.is_replacing() || takes_over {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", state.name()))
    }
}
