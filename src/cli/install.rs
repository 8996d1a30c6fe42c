//! `refit install`, `refit check`, `refit rollback`, `refit verify`.

use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use refit_updater::Store;
use refit_updater::journal;
use refit_updater::release::StoreError;
use reqwest::Method;
use reqwest::header;
use semver::Version;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use super::Context;
use super::client::{Client, ClientError};
use super::follow::follow;
use super::show::{cell, table};
use crate::error::{Exit, Reported};

/// How much of a package is read at once.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Install {
    /// A package file, its URL, or the version of a release: an installed one, or one of the repository.
    #[arg(value_name = "PATH|URL|VERSION")]
    what: String,
    /// Verify and unpack only; install later with the digest that is printed.
    #[arg(long)]
    stage_only: bool,
    /// Accept a version that is not newer than the running one.
    #[arg(long)]
    allow_downgrade: bool,
    /// The digest that was approved, as `refit inspect` prints it: any other package is refused.
    #[arg(long)]
    digest: Option<refit_updater::Digest>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    /// The release to go back to; the previous good one if none is named.
    version: Option<Version>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// The release; the current one if none is named.
    version: Option<Version>,
}

pub(super) async fn install(context: &Context, install: &Install) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    let path = context.path(Path::new(&install.what));
    let version = Version::parse(&install.what).ok().filter(|_| !path.exists());
    // Asked before anything is sent: an upload into nowhere helps nobody.
    let status = client.get("/api/v1/status").await?;
    let body = match version {
        Some(version) if status["repository"].is_null() || is_installed(&client, &version).await? => {
            json!({ "version": version })
        }
        version => {
            let package = match version {
                Some(version) => fetch(context, &client, install, &version).await?,
                None => send(context, &client, install, &path).await?,
            };
            tell_package(context, &package);
            if install.stage_only {
                return Ok(Exit::Done);
            }
            json!({ "digest": package["digest"] })
        }
    };
    let answer = client.post("/api/v1/updates", &body).await?;
    follow(context, &client, answer["ticket"]["id"].as_str().unwrap_or_default()).await
}

/// Returns whether release `version` is on the appliance.
async fn is_installed(client: &Client, version: &Version) -> Result<bool, ClientError> {
    let releases = client.get("/api/v1/releases").await?;
    let version = version.to_string();
    Ok(releases["releases"].as_array().is_some_and(|list| list.iter().any(|release| release["version"] == version)))
}

/// Has the appliance fetch a release from its repository. Returns its description.
async fn fetch(context: &Context, client: &Client, install: &Install, version: &Version) -> Result<Value, ClientError> {
    let bar = if context.is_watched() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_message(format!("fetching release {version} from the repository"));
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let body = json!({ "version": version, "allow_downgrade": install.allow_downgrade, "digest": install.digest });
    let answer = client.post("/api/v1/packages", &body).await;
    bar.finish_and_clear();
    answer
}

/// Streams the package to the appliance. Returns its description.
async fn send(context: &Context, client: &Client, install: &Install, path: &PathBuf) -> Result<Value, ClientError> {
    let mut url = format!("/api/v1/packages?allow_downgrade={}", install.allow_downgrade);
    if let Some(digest) = install.digest {
        url.push_str(&format!("&digest={digest}"));
    }
    let request = client.request(Method::PUT, &url).header(header::CONTENT_TYPE, "application/octet-stream");
    let is_url = install.what.starts_with("http://") || install.what.starts_with("https://");
    let (body, length) = if is_url {
        let fetch =
            |source: reqwest::Error| ClientError::Fetch { url: install.what.clone(), source: source.without_url() };
        let answer = reqwest::get(&install.what).await.and_then(reqwest::Response::error_for_status).map_err(fetch)?;
        let length = answer.content_length();
        (answer.bytes_stream().map(|chunk| chunk.map_err(std::io::Error::other)).boxed(), length)
    } else {
        let unreadable = |source| ClientError::File { path: path.clone(), source };
        let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        let metadata = file.metadata().await.map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(unreadable(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        (ReaderStream::with_capacity(file, CHUNK_BYTES).boxed(), Some(metadata.len()))
    };
    let bar = progress_bar(context, length);
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
    let answer = client.json(request).await;
    bar.finish_and_clear();
    answer
}

fn progress_bar(context: &Context, length: Option<u64>) -> ProgressBar {
    if !context.is_watched() {
        return ProgressBar::hidden();
    }
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let template = "sending and verifying [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn tell_package(context: &Context, package: &Value) {
    if context.json {
        return context.print(&json!({ "event": "package.received", "data": package }).to_string());
    }
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let count = |key: &str| package["changes"][key].as_array().map_or(0, Vec::len);
    context.print(&format!(
        "{:<13} {} {} -> {}: {} changed, {} added, {} removed; {} bytes written, {} shared",
        "verified",
        text("appliance"),
        text("from"),
        text("version"),
        count("changed"),
        count("added"),
        count("removed"),
        package["written_bytes"],
        package["linked_bytes"],
    ));
    if let Some(reason) = package["failed_before"].as_str() {
        context.print(&format!("{:<13} this release failed here before: {reason}", "note"));
    }
    if package["expired"] == true {
        context.print(&format!("{:<13} its signatures are past their date", "note"));
    }
    if let Some(released) = package["clock_behind"].as_str() {
        let note = "the clock is before the date of a signed release, so no date can be judged: set it";
        context.print(&format!("{:<13} {note} (released {released})", "note"));
    }
    context.print(&format!("{:<13} {}", "digest", text("digest")));
}

pub(super) async fn check(context: &Context) -> Result<Exit, ClientError> {
    let found = Client::new(&context.home)?.get("/api/v1/repository").await?;
    if context.json {
        context.print(&found.to_string());
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = found["releases"]
        .as_array()
        .into_iter()
        .flatten()
        .rev()
        .map(|release| ["version", "released", "payload_bytes", "requires"].map(|key| cell(&release[key])).to_vec())
        .collect();
    table(context, &["RELEASE", "MADE", "BYTES", "REQUIRES"], &rows);
    context.print("");
    context.print(&match found["newer"].as_str() {
        Some(version) => {
            format!("release {version} is newer than {}: refit install {version}", cell(&found["current"]))
        }
        None => format!("release {} is the newest", cell(&found["current"])),
    });
    Ok(Exit::Done)
}

pub(super) async fn rollback(context: &Context, rollback: &Rollback) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    let answer = client.post("/api/v1/rollback", &json!({ "version": rollback.version })).await?;
    follow(context, &client, answer["ticket"]["id"].as_str().unwrap_or_default()).await
}

/// Why a release cannot be verified.
#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
    #[error("no appliance is installed in {}", home.display())]
    Empty { home: PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("release {version} is damaged: {} of its files: {first}", problems)]
    Damaged { version: Version, problems: usize, first: String },
}

impl Reported for VerifyError {
    fn code(&self) -> &'static str {
        match self {
            Self::Journal(_) => "journal_unusable",
            Self::Empty { .. } => "home_empty",
            Self::Store(_) => "release_unusable",
            Self::Damaged { .. } => "release_damaged",
        }
    }

    fn remedy(&self) -> &str {
        match self {
            Self::Journal(error) => error.remedy(),
            Self::Empty { .. } => "name the right directory with --home",
            Self::Store(error) => error.remedy(),
            Self::Damaged { .. } => "install the release again from its package",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Journal(_) => Exit::Disk,
            Self::Empty { .. } => Exit::Config,
            Self::Store(_) | Self::Damaged { .. } => Exit::Failed,
        }
    }
}

pub(super) fn verify(context: &Context, verify: &Verify) -> Exit {
    match try_verify(context, verify) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

fn try_verify(context: &Context, verify: &Verify) -> Result<(), VerifyError> {
    let home = context.home.path();
    let store = Store::open(home)?;
    let version = match &verify.version {
        Some(version) => version.clone(),
        None => {
            let journal = journal::load(home)?.ok_or_else(|| VerifyError::Empty { home: home.to_owned() })?;
            journal.state.wanted().clone()
        }
    };
    let report = store.verify(&version, &mut |_| {})?;
    if context.json {
        context.print(&json!({ "version": version, "report": report }).to_string());
    }
    for problem in &report.problems {
        context.tell(&problem.to_string());
    }
    match report.problems.first() {
        Some(first) => Err(VerifyError::Damaged { version, problems: report.problems.len(), first: first.to_string() }),
        None => {
            context.tell(&format!("release {version} is as signed: {} files, {} bytes", report.files, report.bytes));
            Ok(())
        }
    }
}
