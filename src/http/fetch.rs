//! The client: files below one address, read by a thread that may block.

use std::io::{self, Read};
use std::ops::Range;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{StatusCode, header, redirect};
use tokio::runtime::Handle;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tokio_util::sync::CancellationToken;

use super::stall::with_minimum_rate;

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// Returns an address as it is shown: without the password that may be in it.
pub(crate) fn shown_address(address: &str) -> String {
    if let Ok(mut url) = reqwest::Url::parse(address)
        && url.password().is_some()
        && url.set_password(Some("***")).is_ok()
    {
        return url.to_string();
    }
    address.to_owned()
}

/// Fetches what lies below one address.
pub(crate) struct Fetcher {
    client: reqwest::Client,
    base: String,
    silence_max: Duration,
    cancelled: CancellationToken,
    handle: Handle,
}

/// What a server answered.
pub(crate) struct Fetched {
    /// Whether it did what it was asked.
    pub(crate) status: StatusCode,
    /// Where it says that the file is instead.
    pub(crate) location: Option<String>,
    /// The bytes, which come while they are read.
    pub(crate) body: Box<dyn Read + Send>,
}

impl Fetcher {
    /// Returns what fetches from below `address`, which may be silent for as long as `silence_max`. Nothing is sent yet, and
    /// nothing any more once `cancelled`. Must be called inside the async runtime.
    ///
    /// # Errors
    /// The certificates of this system cannot be used.
    pub(crate) fn new(
        address: &str,
        silence_max: Duration,
        cancelled: CancellationToken,
    ) -> Result<Self, reqwest::Error> {
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_MAX).read_timeout(silence_max);
        if address.starts_with("http://") {
            // Nothing is encrypted, so no certificates are read; what is fetched is signed in any case.
            builder = builder.tls_certs_only(std::iter::empty()).redirect(redirect::Policy::custom(within_http));
        }
        let client = builder.build()?;
        let base = format!("{}/", address.trim_end_matches('/'));
        Ok(Self { client, base, silence_max, cancelled, handle: Handle::current() })
    }

    /// Asks for the file `path`, or for those of its bytes that are in `range`, and returns what the server answers. Blocks; call
    /// it outside the async runtime.
    ///
    /// # Errors
    /// Nothing was answered, or it is cancelled.
    pub(crate) fn get(&self, path: &str, range: Option<&Range<u64>>) -> io::Result<Fetched> {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(range) = range {
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
        let status = answer.status();
        let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // An answer that ends early is asked for anew, and that fails once it is cancelled.
        let bytes = with_minimum_rate(answer.bytes_stream(), self.silence_max)
            .take_until(self.cancelled.clone().cancelled_owned());
        let body = SyncIoBridge::new_with_handle(StreamReader::new(Box::pin(bytes)), self.handle.clone());
        Ok(Fetched { status, location, body: Box::new(body) })
    }
}

/// Follows redirects as long as they need no certificates.
fn within_http(attempt: redirect::Attempt<'_>) -> redirect::Action {
    if attempt.url().scheme() == "http" { redirect::Policy::default().redirect(attempt) } else { attempt.stop() }
}
