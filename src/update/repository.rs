//! The appliance's repository: what it offers, and a release from it, by HTTP or from a directory.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use refit_updater::receive::Receiver;
use refit_updater::repository::{Answer, Directory, Offer, Server, check};
use refit_updater::trust::TrustStatus;
use reqwest::{StatusCode, header};
use semver::Version;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::receiving::{PackageView, Progress};
use super::{Manager, UpdateError};
use crate::clock;

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// How long a server may be silent within an answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What a repository offers to this appliance.
#[derive(Debug, Clone, Serialize)]
pub struct RepositoryView {
    /// Where it is.
    pub repository: String,
    /// The release that runs.
    pub current: Version,
    /// The newest release that is newer than that, if there is one.
    pub newer: Option<Version>,
    /// Every release for this appliance and machine, oldest first.
    pub releases: Vec<Offer>,
}

/// A repository, wherever it is.
enum Place {
    Web { client: reqwest::Client, base: String, handle: Handle },
    Directory(Directory),
}

impl Place {
    /// Returns the repository at `address`. Nothing is sent yet. Must be called inside the async runtime.
    fn new(address: &str) -> Result<Self, UpdateError> {
        if address.starts_with('/') {
            return Ok(Self::Directory(Directory(PathBuf::from(address))));
        }
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_MAX).read_timeout(SILENCE_MAX);
        if address.starts_with("http://") {
            // Nothing is encrypted, so no certificates are read; what is fetched is signed in any case.
            builder = builder.tls_certs_only(std::iter::empty()).redirect(reqwest::redirect::Policy::none());
        }
        let client = builder.build().map_err(|source| UpdateError::HttpClient { source })?;
        let base = format!("{}/", address.trim_end_matches('/'));
        Ok(Self::Web { client, base, handle: Handle::current() })
    }
}

impl Server for Place {
    fn open(&mut self, path: &str, range: Option<Range<u64>>) -> io::Result<Option<Answer>> {
        let (client, base, handle) = match self {
            Self::Directory(directory) => return directory.open(path, range),
            Self::Web { client, base, handle } => (client, base, handle),
        };
        let mut request = client.get(format!("{base}{path}"));
        if let Some(range) = &range {
            // The last byte is part of what HTTP calls a range.
            let last = range.end.saturating_sub(1);
            request = request.header(header::RANGE, format!("bytes={}-{last}", range.start));
        }
        // Built inside the runtime as well, whose timers the client uses: who asks is a thread of its own.
        let answer = handle.block_on(async { request.send().await });
        let answer = answer.map_err(|error| io::Error::other(error.without_url()))?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = answer.error_for_status().map_err(|error| io::Error::other(error.without_url()))?;
        let whole = answer.status() != StatusCode::PARTIAL_CONTENT;
        let bytes = answer.bytes_stream().map_err(io::Error::other);
        let input = SyncIoBridge::new_with_handle(StreamReader::new(Box::pin(bytes)), handle.clone());
        Ok(Some(Answer { input: Box::new(input), whole }))
    }
}

impl Manager {
    fn place(&self) -> Result<Place, UpdateError> {
        let address = self.parts.config.update.repository.as_ref();
        Place::new(address.ok_or(UpdateError::NoRepository)?)
    }

    /// Asks the repository what it offers.
    ///
    /// # Errors
    /// None is configured, it cannot be read or is not to be trusted.
    pub async fn check_repository(self: &Arc<Self>) -> Result<RepositoryView, UpdateError> {
        let mut place = self.place()?;
        let permit = self.hold_receiving().ok_or(UpdateError::Receiving)?;
        let manager = Arc::clone(self);
        let work = move || {
            let _permit = permit; // what is remembered of metadata has one writer at a time
            let policy = manager.policy(false);
            let releases = check(&mut place, &manager.parts.trust, &policy)?;
            let current = manager.journal().state.wanted().clone();
            let newer = releases.iter().map(|offer| &offer.version).rfind(|it| it.cmp_precedence(&current).is_gt());
            Ok(RepositoryView {
                repository: manager.parts.config.update.repository.clone().unwrap_or_default(),
                newer: newer.cloned(),
                current,
                releases,
            })
        };
        tokio::task::spawn_blocking(work).await.map_err(|source| UpdateError::Worker { source })?
    }

    /// Fetches a release from the repository, as [`Manager::receive`] receives a package.
    ///
    /// # Errors
    /// As there; or no repository is configured, or it has no such release.
    pub async fn fetch(self: &Arc<Self>, version: Version, allow_downgrade: bool) -> Result<PackageView, UpdateError> {
        let mut place = self.place()?;
        let fetch =
            move |receiver: Receiver<'_>, progress: &mut Progress<'_>| receiver.fetch(&mut place, &version, progress);
        self.receive_by(fetch, None, allow_downgrade).await
    }

    /// Returns how long what is trusted is good. Blocks.
    ///
    /// # Errors
    /// The home's trust is missing or damaged.
    pub fn trust_status(&self) -> Result<TrustStatus, UpdateError> {
        Ok(self.parts.trust.status(clock::now())?)
    }
}
