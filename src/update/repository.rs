//! The appliance's repository: what it offers, and a release from it, by HTTP or from a directory.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use refit_base::clock;
use refit_updater::package::PackageError;
use refit_updater::receive::{ReceiveError, Receiver};
use refit_updater::repository::{Answer, Directory, Listed, Server, check};
use refit_updater::trust::{TrustError, TrustStatus};
use reqwest::{StatusCode, header, redirect};
use semver::Version;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::line::alive;
use super::receiving::{PackageView, Progress};
use super::{Manager, UpdateError};

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// What a repository offers to this appliance.
#[derive(Debug, Clone, Serialize)]
pub struct RepositoryView {
    /// Where it is.
    pub repository: String,
    /// The release that runs.
    pub current: Version,
    /// The newest release that is newer than that and did not fail here, if there is one.
    pub newer: Option<Version>,
    /// Every release for this appliance and machine, oldest first.
    pub releases: Vec<OfferView>,
}

/// A release of the repository.
#[derive(Debug, Clone, Serialize)]
pub struct OfferView {
    /// What the repository says of it, with its digest.
    #[serde(flatten)]
    pub listed: Listed,
    /// Why it failed here before.
    pub failed_before: Option<String>,
}

/// Returns the address of a repository as it is shown: without the password that may be in it.
fn shown_address(address: &str) -> String {
    if let Ok(mut url) = reqwest::Url::parse(address)
        && url.password().is_some()
        && url.set_password(Some("***")).is_ok()
    {
        return url.to_string();
    }
    address.to_owned()
}

/// A repository, wherever it is.
enum Place {
    Web(Web),
    Directory(Directory),
}

impl Place {
    /// Returns the repository at `address`, which may be silent for as long as `silence_max`. Nothing is sent yet, and
    /// nothing any more once `cancelled`. Must be called inside the async runtime.
    fn new(address: &str, silence_max: Duration, cancelled: CancellationToken) -> Result<Self, UpdateError> {
        if address.starts_with('/') {
            return Ok(Self::Directory(Directory(PathBuf::from(address))));
        }
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_MAX).read_timeout(silence_max);
        if address.starts_with("http://") {
            // Nothing is encrypted, so no certificates are read; what is fetched is signed in any case.
            builder = builder.tls_certs_only(std::iter::empty()).redirect(redirect::Policy::custom(within_http));
        }
        let client = builder.build().map_err(|source| UpdateError::HttpClient { source })?;
        let base = format!("{}/", address.trim_end_matches('/'));
        Ok(Self::Web(Web { client, base, silence_max, cancelled, handle: Handle::current() }))
    }
}

impl Server for Place {
    fn open(&mut self, path: &str, range: Option<Range<u64>>) -> io::Result<Option<Answer>> {
        match self {
            Self::Web(web) => web.open(path, range),
            Self::Directory(directory) => directory.open(path, range),
        }
    }
}

/// Follows redirects as long as they need no certificates.
fn within_http(attempt: redirect::Attempt<'_>) -> redirect::Action {
    if attempt.url().scheme() == "http" { redirect::Policy::default().redirect(attempt) } else { attempt.stop() }
}

/// A repository on a web server.
struct Web {
    client: reqwest::Client,
    base: String,
    silence_max: Duration,
    cancelled: CancellationToken,
    handle: Handle,
}

impl Server for Web {
    fn open(&mut self, path: &str, range: Option<Range<u64>>) -> io::Result<Option<Answer>> {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(range) = &range {
            // The last byte is part of what HTTP calls a range.
            let last = range.end.saturating_sub(1);
            request = request.header(header::RANGE, format!("bytes={}-{last}", range.start));
        }
        // Sent inside the runtime, whose timers the client uses: who asks is a thread of its own.
        let answer = self.handle.block_on(async {
            tokio::select! {
                () = self.cancelled.cancelled() => Err(io::Error::other("nobody waits for it any more")),
                answer = request.send() => answer.map_err(|error| io::Error::other(error.without_url())),
            }
        })?;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            // What an object store says of a file that is not there, to those who may not list: and the root after the
            // newest one never is.
            StatusCode::FORBIDDEN if path.ends_with(".root.json") => return Ok(None),
            status if status.is_redirection() => {
                let to = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                return Err(io::Error::other(format!("the server says that it is elsewhere: {}", to.unwrap_or("?"))));
            }
            status => return Err(io::Error::other(format!("the server answered {status}"))),
        }
        let whole = answer.status() == StatusCode::OK;
        // An answer that ends early is asked for anew, and that fails once it is cancelled.
        let bytes = alive(answer.bytes_stream(), self.silence_max).take_until(self.cancelled.clone().cancelled_owned());
        let input = SyncIoBridge::new_with_handle(StreamReader::new(Box::pin(bytes)), self.handle.clone());
        Ok(Some(Answer { input: Box::new(input), whole }))
    }
}

impl Manager {
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
    pub async fn check_repository(self: &Arc<Self>) -> Result<RepositoryView, UpdateError> {
        let (mut place, _cancels) = self.place()?;
        let permit = self.begin_receiving().await?;
        let manager = Arc::clone(self);
        let work = move || {
            let _permit = permit; // what is remembered of metadata has one writer at a time
            let policy = manager.policy(false);
            let releases = check(&mut place, &manager.parts.trust, &policy)?;
            let journal = manager.journal();
            let current = journal.state.wanted().clone();
            let is_newer = |version: &Version| version.cmp_precedence(&current).is_gt();
            let mut newer = releases.iter().map(|listed| &listed.offer.version);
            let newer = newer.rfind(|version| is_newer(version) && !journal.failed.contains_key(version)).cloned();
            let view = |listed: Listed| {
                let failed_before = journal.failed.get(&listed.offer.version).map(|failed| failed.reason.clone());
                OfferView { listed, failed_before }
            };
            let repository = manager.repository().unwrap_or_default();
            Ok::<_, UpdateError>(RepositoryView {
                repository,
                newer,
                releases: releases.into_iter().map(view).collect(),
                current,
            })
        };
        let result = tokio::task::spawn_blocking(work).await.map_err(|source| UpdateError::Worker { source })?;
        result.map_err(|error| self.locate(error))
    }

    /// Fetches a release from the repository, as [`Manager::receive`] receives a package.
    ///
    /// # Errors
    /// As there; or no repository is configured, or it has no such release.
    pub async fn fetch(self: &Arc<Self>, version: Version, allow_downgrade: bool) -> Result<PackageView, UpdateError> {
        let (mut place, _cancels) = self.place()?;
        let fetch =
            move |receiver: Receiver<'_>, progress: &mut Progress<'_>| receiver.fetch(&mut place, &version, progress);
        self.receive_by(fetch, None, allow_downgrade).await.map_err(|error| self.locate(error))
    }

    /// Returns how long what is trusted is good. Blocks.
    ///
    /// # Errors
    /// The home's trust is missing or damaged.
    pub fn trust_status(&self) -> Result<TrustStatus, UpdateError> {
        Ok(self.parts.trust.status(clock::now())?)
    }
}
