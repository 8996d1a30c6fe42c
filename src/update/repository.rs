//! The appliance's repository: what it offers, and a release from it, by HTTP or from a directory.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use refit_updater::package::PackageError;
use refit_updater::receive::{ReceiveError, Receiver};
use refit_updater::repository::{Answer, Directory, Listed, Server, check};
use refit_updater::trust::TrustError;
use reqwest::StatusCode;
use semver::Version;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::UpdateError;
use super::receiving::{Progress, Receiving};
use crate::http::fetch::{Fetched, Fetcher, shown_address};
use crate::wire::{Offer, Package, Repository};

/// A repository, wherever it is.
enum Place {
    Web(Fetcher),
    Directory(Directory),
}

impl Place {
    /// Returns the repository at `address`, which may be silent for as long as `silence_max`. Nothing is sent yet, and
    /// nothing any more once `cancelled`. Must be called inside the async runtime.
    fn new(address: &str, silence_max: Duration, cancelled: CancellationToken) -> Result<Self, UpdateError> {
        if address.starts_with('/') {
            return Ok(Self::Directory(Directory(PathBuf::from(address))));
        }
        let fetcher = Fetcher::new(address, silence_max, cancelled);
        fetcher.map(Self::Web).map_err(|source| UpdateError::HttpClient { source })
    }
}

impl Server for Place {
    fn open(&mut self, path: &str, range: Option<Range<u64>>) -> io::Result<Option<Answer>> {
        match self {
            Self::Web(fetcher) => open(fetcher, path, range),
            Self::Directory(directory) => directory.open(path, range),
        }
    }
}

/// Opens the file `path` of a repository on a web server.
fn open(fetcher: &Fetcher, path: &str, range: Option<Range<u64>>) -> io::Result<Option<Answer>> {
    let Fetched { status, location, body } = fetcher.get(path, range.as_ref())?;
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
            Ok(Some(Answer { input: body, whole: status == StatusCode::OK }))
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
        // What an object store says of a file that is not there, to those who may not list: and the root after the newest
        // one never is.
        StatusCode::FORBIDDEN if path.ends_with(".root.json") => Ok(None),
        status if status.is_redirection() => {
            let to = location.as_deref().unwrap_or("?");
            Err(io::Error::other(format!("the server says that it is elsewhere: {to}")))
        }
        status => Err(io::Error::other(format!("the server answered {status}"))),
    }
}

impl Receiving {
    /// Returns the address of the repository as it is shown, if there is one.
    pub fn repository(&self) -> Option<String> {
        self.parts.config.update.repository.as_deref().map(shown_address)
    }

    /// Returns the repository, and what ends all that is asked of it when it is dropped.
    fn place(&self) -> Result<(Place, DropGuard), UpdateError> {
        let update = &self.parts.config.update;
        let address = update.repository.as_ref().ok_or(UpdateError::NoRepository)?;
        let cancelled = CancellationToken::new();
        Ok((Place::new(address, update.receive_timeout, cancelled.clone())?, cancelled.drop_guard()))
    }

    /// Returns `error` with the address of the repository, if it is about the way there.
    fn locate(&self, error: UpdateError) -> UpdateError {
        let address = || self.repository().unwrap_or_default();
        if let UpdateError::Trust(TrustError::Unreachable { source })
        | UpdateError::Receive(ReceiveError::Trust { source: TrustError::Unreachable { source } }) = error
        {
            return UpdateError::Unreachable { address: address(), source };
        }
        if let UpdateError::Receive(ReceiveError::Package { source: PackageError::Input { source } }) = error {
            return UpdateError::Unreachable { address: address(), source: source.into() };
        }
        error
    }

    /// Asks the repository what it offers.
    ///
    /// # Errors
    /// None is configured, it cannot be read or is not to be trusted.
    pub async fn check_repository(self: &Arc<Self>) -> Result<Repository, UpdateError> {
        let (mut place, _cancels) = self.place()?;
        let permit = self.begin().await?;
        let receiving = Arc::clone(self);
        let work = move || {
            let _permit = permit; // what is remembered of metadata has one writer at a time
            let policy = receiving.policy(false);
            let releases = check(&mut place, &receiving.parts.trust, &policy)?;
            let journal = receiving.journal.current();
            let current = journal.state.wanted().clone();
            let is_newer = |version: &Version| version.cmp_precedence(&current).is_gt();
            let mut newer = releases.iter().map(|listed| &listed.offer.version);
            let newer = newer.rfind(|version| is_newer(version) && !journal.failed.contains_key(version)).cloned();
            let view = |listed: Listed| {
                let failed_before = journal.failed.get(&listed.offer.version).map(|failed| failed.reason.clone());
                Offer::new(listed, failed_before)
            };
            let repository = receiving.repository().unwrap_or_default();
            Ok::<_, UpdateError>(Repository {
                repository,
                newer,
                releases: releases.into_iter().map(view).collect(),
                current,
            })
        };
        let result = tokio::task::spawn_blocking(work).await.map_err(|source| UpdateError::Worker { source })?;
        result.map_err(|error| self.locate(error))
    }

    /// Fetches a release from the repository, as [`Receiving::receive`] receives a package.
    ///
    /// # Errors
    /// As there; or no repository is configured, or it has no such release.
    pub async fn fetch(self: &Arc<Self>, version: Version, allow_downgrade: bool) -> Result<Package, UpdateError> {
        let (mut place, _cancels) = self.place()?;
        let fetch =
            move |receiver: Receiver<'_>, progress: &mut Progress<'_>| receiver.fetch(&mut place, &version, progress);
        self.receive_by(fetch, None, allow_downgrade).await.map_err(|error| self.locate(error))
    }
}
