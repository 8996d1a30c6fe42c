//! `refit install`: a package, a release of the repository, or a release on this appliance again.

mod at_rest;

use std::fs::File;
use std::io::{self, Seek};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use indicatif::ProgressBar;
use refit_base::{Exit, file_error, lock};
use refit_updater::Digest;
use reqwest::Method;
use reqwest::header;
use semver::Version;
use serde::Serialize;
use tokio_util::io::ReaderStream;

use super::client::{Client, ClientError};
use super::context::Context;
use super::events::read_events;
use super::follow::ask_and_follow;
use super::input::Input;
use super::notes;
use super::said::{Said, in_json};
use super::table::cell;
use crate::wire::{Changes, Destination, Event, EventRecord, FetchBody, Package, Release, Releases, Status};

/// How much of a package is read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// How long a web server may be silent: as long as a repository of the appliance may.
const URL_SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(super) struct Install {
    /// A package: a file, a pipe, `-` for standard input, or its URL; the version of a release, an installed one or one of the
    /// repository; or the digest of a package that was staged.
    #[arg(value_name = "PATH|URL|VERSION|DIGEST")]
    what: String,
    /// Verify and unpack only; install later with the digest that is printed.
    #[arg(long)]
    stage_only: bool,
    /// Accept a version that is not newer than the running one.
    #[arg(long)]
    allow_downgrade: bool,
    /// The digest that was approved, as `refit inspect` prints it: any other package is refused.
    #[arg(long)]
    digest: Option<Digest>,
}

pub(super) async fn run(context: &Context, install: &Install) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    let input = Input::new(context, Path::new(&install.what));
    let path = input.path();
    let version = Version::parse(&install.what).ok().filter(|_| !path.exists());
    let staged = install.what.parse::<Digest>().ok().filter(|_| !path.exists());
    // Asked before anything is sent: an upload into nowhere helps nobody.
    let status: Status = match client.get("/api/v1/status").await {
        Err(unavailable) if unavailable.is_at_rest() && staged.is_none() && !is_url(&install.what) => {
            return crate::cli::at_rest::instead(context, unavailable, || at_rest::install(context, install, &input));
        }
        status => status?,
    };
    let kept = match &version {
        Some(version) => installed(&client, version).await?,
        None => None,
    };
    let mut to = version.clone();
    let body = match (staged, version) {
        (Some(_), _) if install.stage_only => {
            let remedy = "leave --stage-only out to install it";
            return Ok(context.print_failure("a digest names what is staged already", "usage", remedy, Exit::Usage));
        }
        (Some(digest), _) => Destination { digest: Some(digest), version: None },
        (None, Some(version)) if kept.is_some() || status.repository.is_none() => {
            if let Some(release) = kept {
                check_approved(install, &version, &release)?;
                if install.stage_only {
                    context.print_text(&format!("{:<13} release {version} is complete on disk", "staged"));
                    return Ok(Exit::Done);
                }
            }
            Destination { digest: None, version: Some(version) }
        }
        (None, version) => {
            let package = match version {
                Some(version) => fetch(context, &client, install, &version).await?,
                None => send(context, &client, install, &input).await?,
            };
            print_package(context, &package);
            if install.stage_only {
                return Ok(Exit::Done);
            }
            to = Some(package.version.clone());
            Destination { digest: Some(package.digest), version: None }
        }
    };
    ask_and_follow(context, &client, "/api/v1/updates", &body, to.as_ref()).await
}

/// Returns what is known of release `version`, if it is on the appliance.
async fn installed(client: &Client, version: &Version) -> Result<Option<Release>, ClientError> {
    let releases: Releases = client.get("/api/v1/releases").await?;
    Ok(releases.releases.into_iter().find(|release| release.version == *version))
}

/// Refuses a release on the appliance that is not the one that was approved.
fn check_approved(install: &Install, version: &Version, release: &Release) -> Result<(), ClientError> {
    match install.digest {
        Some(approved) if release.digest != Some(approved) => {
            let (found, approved) = (cell(release.digest), approved.to_string());
            Err(ClientError::NotApproved { version: version.clone(), found, approved })
        }
        Some(_) | None => Ok(()),
    }
}

/// Has the appliance fetch a release from its repository. Returns its description.
async fn fetch(
    context: &Context,
    client: &Client,
    install: &Install,
    version: &Version,
) -> Result<Said<Package>, ClientError> {
    let bar = context.bytes_bar("fetching and verifying");
    let body = FetchBody { version: version.clone(), allow_downgrade: install.allow_downgrade, digest: install.digest };
    let answer = tokio::select! {
        answer = client.post_long("/api/v1/packages", &body) => answer,
        answer = show_fetched(client, &bar), if context.is_watched() => answer,
    };
    bar.finish_and_clear();
    answer.map_err(interrupted)
}

/// Returns `error` as what it means while a package arrives: nothing of it is left.
fn interrupted(error: ClientError) -> ClientError {
    if let ClientError::Broken { source } = error { ClientError::Interrupted { source } } else { error }
}

/// Shows on `bar` how far the appliance is with a release that it fetches. Never ends.
async fn show_fetched<T>(client: &Client, bar: &ProgressBar) -> T {
    let show = |record: Option<&Said<EventRecord>>| {
        if let Some(Event::PackageProgress(progress)) = record.map(|record| &record.event)
            && let (Some(received), Some(total)) = (progress.received_bytes, progress.total_bytes)
        {
            bar.set_length(total);
            bar.set_position(received);
        }
        ControlFlow::Continue(())
    };
    // Without it there is no progress to be seen, and the answer still comes.
    drop(read_events(client, None, show).await);
    std::future::pending().await
}

/// Streams the package to the appliance. Returns its description.
async fn send(
    context: &Context,
    client: &Client,
    install: &Install,
    input: &Input,
) -> Result<Said<Package>, ClientError> {
    let mut url = format!("/api/v1/packages?allow_downgrade={}", install.allow_downgrade);
    if let Some(digest) = install.digest {
        url.push_str(&format!("&digest={digest}"));
    }
    let request = client.request(Method::PUT, &url).header(header::CONTENT_TYPE, "application/octet-stream");
    let is_url = is_url(&install.what);
    // Why the package could not be read to its end: what the client says of it then is that its connection broke.
    let broken = Arc::new(Mutex::new(None));
    let breaks = Arc::clone(&broken);
    let note = move |error: ClientError| {
        lock(&breaks).get_or_insert(error);
        io::Error::other("the package cannot be read")
    };
    let (body, length) = if is_url {
        let url = install.what.clone();
        let fetch = move |source: reqwest::Error| ClientError::Fetch { url: url.clone(), source: source.without_url() };
        let answer = get_url(&install.what).await.map_err(&fetch)?;
        let length = answer.content_length();
        (answer.bytes_stream().map(move |chunk| chunk.map_err(|error| note(fetch(error)))).boxed(), length)
    } else {
        let path = input.path().to_owned();
        let unreadable = move |source| ClientError::from(file_error("read", &path)(source));
        let mut file = input.open().map_err(&unreadable)?;
        let length = bytes_left(&mut file).map_err(&unreadable)?;
        let chunks = ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK_BYTES);
        (chunks.map(move |chunk| chunk.map_err(|error| note(unreadable(error)))).boxed(), length)
    };
    let bar = context.bytes_bar("sending and verifying");
    if let Some(length) = length {
        bar.set_length(length);
    }
    let counted = bar.clone();
    let body = body.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            counted.inc(chunk.len() as u64);
        }
    });
    let mut request = request.body(reqwest::Body::wrap_stream(body));
    if let Some(length) = length {
        request = request.header(header::CONTENT_LENGTH, length);
    }
    let answer = client.json_long(request).await;
    bar.finish_and_clear();
    let broken = lock(&broken).take();
    answer.map_err(|error| broken.unwrap_or_else(|| interrupted(error)))
}

/// Returns the answer of a web server, which may not be silent for longer than [`URL_SILENCE_MAX`].
async fn get_url(url: &str) -> reqwest::Result<reqwest::Response> {
    let client = reqwest::Client::builder().connect_timeout(URL_SILENCE_MAX).read_timeout(URL_SILENCE_MAX).build()?;
    client.get(url).send().await?.error_for_status()
}

/// Returns whether `what` is the URL of a package. The case of a scheme says nothing (RFC 3986, 3.1).
fn is_url(what: &str) -> bool {
    let scheme = what.split_once("://").map_or("", |(scheme, _)| scheme);
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

/// Returns how many bytes are still to be read of a file; only a regular one says.
fn bytes_left(file: &mut File) -> io::Result<Option<u64>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(metadata.len().saturating_sub(file.stream_position()?)))
}

/// What is printed in JSON of a package that has arrived.
#[derive(Debug, Serialize)]
struct PackageReceived<T> {
    event: &'static str,
    data: T,
}

impl<T> PackageReceived<T> {
    const fn new(data: T) -> Self {
        Self { event: "package.received", data }
    }
}

fn print_package(context: &Context, package: &Said<Package>) {
    if context.json {
        return context.print(&in_json(&PackageReceived::new(package)));
    }
    let changes = match &package.changes {
        Some(Changes { added, changed, removed }) => {
            format!("{} changed, {} added, {} removed", changed.len(), added.len(), removed.len())
        }
        None => "what changes is unknown".to_owned(), // the running release is damaged
    };
    context.print(&format!(
        "{:<13} {} {} -> {}: {changes}; {} bytes written, {} shared",
        "verified", package.appliance, package.from, package.version, package.written_bytes, package.linked_bytes,
    ));
    if let Some(reason) = &package.failed_before {
        context.print(&format!("{:<13} this release failed here before: {reason}", "note"));
    }
    if package.expired {
        context.print(&format!("{:<13} its signatures are past their date", "note"));
    }
    if let Some(released) = &package.clock_behind {
        context.print(&format!("{:<13} {}", "note", notes::clock_behind(released)));
    }
    context.print(&format!("{:<13} {}", "digest", package.digest));
}
