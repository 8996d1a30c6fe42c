//! `GET /api/v1/releases`: the releases on the disk; `DELETE /api/v1/releases/VERSION` removes one.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use refit_base::{Exit, Reported, clock};
use refit_updater::journal::{self, Journal};
use refit_updater::release::Release;
use semver::Version;

use super::{Problem, Shared};
use crate::update::UpdateError;
use crate::wire::{self, ReleaseState, Releases, Removed};

/// `GET /api/v1/releases`: what is on the disk, newest first, and what waits to be installed.
pub(super) async fn list(State(app): State<Shared>) -> Result<Json<Releases>, Problem> {
    let journal = app.manager.journal();
    let manager = std::sync::Arc::clone(&app.manager);
    let releases = tokio::task::spawn_blocking(move || manager.releases())
        .await
        .map_err(|source| Problem::of(&UpdateError::Worker { source }))?
        .map_err(|error| Problem::of(&error))?;
    Ok(Json(Releases { releases: describe(&journal, &releases), staged: app.manager.receiving().staged() }))
}

/// Returns what is said of `releases`, which are in the order of their versions, the newest first.
pub fn describe(journal: &Journal, releases: &[Release]) -> Vec<wire::Release> {
    let current = journal.state.wanted();
    let on_trial = matches!(journal.state, journal::State::Trial { .. });
    let previous = journal.previous();
    releases
        .iter()
        .rev()
        .map(|release| {
            let version = &release.version;
            let failed = journal.failed.get(version);
            let state = if version == current {
                if on_trial { ReleaseState::Trial } else { ReleaseState::Current }
            } else if Some(version) == previous {
                ReleaseState::Previous
            } else if failed.is_some() {
                ReleaseState::Failed
            } else if journal.good.contains(version) {
                ReleaseState::Kept
            } else {
                ReleaseState::Staged
            };
            wire::Release {
                version: version.clone(),
                state,
                digest: release.digest,
                installed_bytes: release.installed_bytes(),
                installed_at: installed_at(&release.dir),
                reason: failed.map(|failed| failed.reason.clone()),
            }
        })
        .collect()
}

/// Returns when a release was unpacked: its manifest is the last file that is written.
fn installed_at(dir: &std::path::Path) -> Option<String> {
    let modified = dir.join(refit_updater::manifest::INSTALLED_PATH).metadata().ok()?.modified().ok()?;
    Some(clock::rfc3339(jiff::Timestamp::try_from(modified).ok()?))
}

/// `DELETE /api/v1/releases/VERSION`: removes a release that nothing needs, and its configuration.
pub(super) async fn remove(State(app): State<Shared>, Path(version): Path<Version>) -> Result<Json<Removed>, Problem> {
    let removed = app.manager.remove(version.clone()).await;
    let bytes = removed.map_err(|error| {
        let problem = Problem::of(&error);
        // Nothing failed: the release is needed.
        if matches!(error, UpdateError::Removal(_)) && error.exit() == Exit::Failed {
            Problem { status: StatusCode::CONFLICT.as_u16(), ..problem }
        } else {
            problem
        }
    })?;
    Ok(Json(Removed { removed: version, installed_bytes: bytes }))
}
