//! `GET /api/v1/releases`: the releases on the disk; `DELETE /api/v1/releases/VERSION` removes one.

use axum::Json;
use axum::extract::{Path, State};
use refit_base::{Chain, clock};
use refit_updater::Store;
use refit_updater::journal::{self, Journal};
use refit_updater::release::StoreError;
use semver::Version;

use super::{Problem, Shared};
use crate::update::UpdateError;
use crate::wire::{self, ReleaseState, Releases, Removed};

/// `GET /api/v1/releases`: what is on the disk, newest first, and what waits to be installed.
pub(super) async fn list(State(app): State<Shared>) -> Result<Json<Releases>, Problem> {
    let journal = app.manager.journal();
    let manager = std::sync::Arc::clone(&app.manager);
    let list = tokio::task::spawn_blocking(move || describe(&journal, manager.store()))
        .await
        .map_err(|source| Problem::of(&UpdateError::Worker { source }))?
        .map_err(|error| Problem::of(&UpdateError::Store(error)))?;
    Ok(Json(Releases { releases: list, staged: app.manager.receiving().staged() }))
}

/// Returns what is said of the releases in `store`, the newest first. Those that the journal needs are among them, whether they are there or not.
/// Their files are not looked at.
///
/// # Errors
/// It cannot be listed which there are.
pub fn describe(journal: &Journal, store: &Store) -> Result<Vec<wire::Release>, StoreError> {
    let mut versions = store.versions()?;
    versions.extend([journal.state.wanted()].into_iter().chain(journal.previous()).cloned());
    versions.sort();
    versions.dedup();
    Ok(versions.iter().rev().map(|version| describe_one(journal, store, version)).collect())
}

fn describe_one(journal: &Journal, store: &Store, version: &Version) -> wire::Release {
    let on_trial = matches!(journal.state, journal::State::Trial { .. });
    let failed = journal.failed.get(version);
    let state = if version == journal.state.wanted() {
        if on_trial { ReleaseState::Trial } else { ReleaseState::Current }
    } else if Some(version) == journal.previous() {
        ReleaseState::Previous
    } else if failed.is_some() {
        ReleaseState::Failed
    } else if journal.good.contains(version) {
        ReleaseState::Kept
    } else {
        ReleaseState::Staged
    };
    match store.release(version) {
        Ok(release) => wire::Release {
            version: version.clone(),
            state,
            digest: Some(release.digest),
            installed_bytes: Some(release.installed_bytes()),
            installed_at: installed_at(&release.dir),
            reason: failed.map(|failed| failed.reason.clone()),
        },
        Err(error) => {
            let is_gone = matches!(error, StoreError::Unknown { .. });
            let what = if is_gone { "its directory is missing".to_owned() } else { Chain(&error).to_string() };
            wire::Release {
                version: version.clone(),
                state: ReleaseState::Damaged,
                digest: None,
                installed_bytes: None,
                installed_at: None,
                reason: Some(format!("the {state} release: {what}; {}", StoreError::MADE_WHOLE)),
            }
        }
    }
}

/// Returns when a release was unpacked: its manifest is the last file that is written.
fn installed_at(dir: &std::path::Path) -> Option<String> {
    let modified = dir.join(refit_updater::manifest::INSTALLED_PATH).metadata().ok()?.modified().ok()?;
    Some(clock::rfc3339(jiff::Timestamp::try_from(modified).ok()?))
}

/// `DELETE /api/v1/releases/VERSION`: removes a release that nothing needs, and its configuration.
pub(super) async fn remove(State(app): State<Shared>, Path(version): Path<Version>) -> Result<Json<Removed>, Problem> {
    let removed = app.manager.remove(version.clone()).await;
    let bytes = removed.map_err(|error| Problem::of(&error))?;
    Ok(Json(Removed { removed: version, installed_bytes: bytes }))
}
