//! `GET /api/v1/status`, `releases`, `history`, and `GET /healthz`: how things are.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use refit_base::{Reported, clock, lock, message};
use refit_bus as bus;
use refit_updater::config::{Unmerged, Unread};
use refit_updater::journal;
use serde_json::{Value, json};

use super::components::views;
use super::{Problem, Shared};
use crate::update::UpdateError;

pub(super) async fn status(State(app): State<Shared>) -> Json<Value> {
    let journal = app.manager.journal();
    let update = app.manager.view();
    let on_trial = matches!(journal.state, journal::State::Trial { .. });
    let registry = &app.context.registry;
    let listeners: Vec<Value> = {
        let listeners = lock(&app.context.listeners);
        let bound = listeners.addresses().into_iter();
        let bound =
            bound.map(|(name, address)| json!({ "name": name, "address": address.to_string(), "failure": null }));
        let missing = listeners.missing().map(|missing| {
            let failure = missing.source.to_string();
            json!({ "name": missing.name, "address": missing.address.to_string(), "failure": failure })
        });
        bound.chain(missing).collect()
    };
    let components = views(&app);
    let trust = trust(&app).await;
    let (unmerged, unread) = live_config(&app).await;
    Json(json!({
        "appliance": app.config.name,
        "release": {
            "version": app.config.version,
            "state": if on_trial { "trial" } else { "good" },
            "probation_ends_at": update.as_ref().and_then(|update| update.probation_ends_at.clone()),
        },
        "previous": journal.previous(),
        "guard": { "pid": app.guard_pid },
        "runtime": {
            "pid": std::process::id(),
            "generation": registry.generation(),
            "started_at": app.started_at,
            "version": env!("CARGO_PKG_VERSION"),
        },
        "bus": { "state": app.bus.state().name() },
        "components": components,
        "listeners": listeners,
        "receiving": app.manager.receiving().reception(),
        "staged": app.manager.receiving().staged(),
        "update": update,
        "repository": app.manager.receiving().repository(),
        "trust": trust,
        "config": { "unmerged": unmerged, "unread": unread },
        "read_only": app.context.home.is_read_only(),
        "faults": app.faults(),
        "time": clock::stamp(),
    }))
}

/// Returns the configuration files that wait for the admin, each with the default that could not be merged, and what cannot be read.
async fn live_config(app: &Shared) -> (Vec<Unmerged>, Vec<Unread>) {
    let manager = std::sync::Arc::clone(&app.manager);
    let found = tokio::task::spawn_blocking(move || (manager.unmerged(), manager.unread())).await;
    found.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot look at the live configuration");
        (Vec::new(), Vec::new())
    })
}

/// Returns how long what is trusted is good. A trust that is damaged is a warning, too: the appliance runs on without.
async fn trust(app: &Shared) -> Value {
    let nothing = |warning: String| json!({ "roles": [], "warnings": [warning], "warning": warning });
    if let Err(moved) = app.context.home.require() {
        return nothing(message(&moved));
    }
    let manager = std::sync::Arc::clone(&app.manager);
    let found = tokio::task::spawn_blocking(move || manager.trust_status()).await;
    match found.unwrap_or_else(|source| Err(UpdateError::Worker { source })) {
        Ok(status) => json!(status),
        Err(error) => nothing(format!("{}: {}", refit_base::Chain(&error), error.remedy())),
    }
}

pub(super) async fn history(State(app): State<Shared>) -> Result<Json<Value>, Problem> {
    let manager = std::sync::Arc::clone(&app.manager);
    let entries = tokio::task::spawn_blocking(move || manager.history())
        .await
        .map_err(|source| Problem::of(&UpdateError::Worker { source }))?
        .map_err(|error| Problem::of(&error))?;
    let newest_first: Vec<_> = entries.into_iter().rev().collect();
    Ok(Json(json!({ "history": newest_first })))
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
