//! The API from the command line: HTTP over the appliance's Unix socket.

use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use refit_base::{Exit, FileError, Report, Reported};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use semver::Version;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::Context;
use crate::home::trouble::{self, Trouble};
use crate::home::{Home, HomeError, as_account, name_of};
use crate::wire::Problem;

/// How long an appliance may take to accept a connection: it does so even while it replaces itself.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long it may take over an answer that it has at hand: replacing itself, and starting after a crash, take less.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long a stream may be silent: some of the pings that each has, also of a release that sends them less often.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How often an appliance that takes its time over an answer is asked whether it still answers at all.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// So many of these in a row without an answer mean that none will come.
const HEARTBEATS_MISSED_MAX: u32 = 2;
/// The pause before a question is asked again whose connection broke.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// How often a command without an answer looks whether the guard says why.
const TROUBLE_EVERY: Duration = Duration::from_millis(200);
/// After so long without an answer a single start that failed says enough.
const TROUBLE_ONCE: Duration = Duration::from_secs(2);

/// Why a command got no answer, or not the one it wanted.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody answers.
    #[error("no running appliance answers on {}", socket.display())]
    Unavailable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A guard runs, and its runtime does not start.
    #[error("{}", describe_guard(home, *pid, why.as_deref()))]
    NoRuntime {
        /// The home.
        home: PathBuf,
        /// The guard.
        pid: i32,
        /// Why not, if the guard has said.
        why: Option<String>,
        /// What to do.
        remedy: String,
    },
    /// Somebody has the socket, and says nothing.
    #[error("nothing came from {} for {} s", socket.display(), after.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// How long nothing came.
        after: Duration,
    },
    /// The appliance ended while a package was on the way.
    #[error("the appliance ended while it received the package")]
    Interrupted {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The appliance ended, in order, while a command waited for it.
    #[error("the appliance in {} has ended before it said what became of this", home.display())]
    Ended {
        /// The home.
        home: PathBuf,
    },
    /// The same, and its journal says that the update is tried when it starts again.
    #[error("the appliance in {} has ended; release {to} waits, and the next start tries it", home.display())]
    Waits {
        /// The home.
        home: PathBuf,
        /// The release.
        to: Version,
    },
    /// Nothing is known of what was asked.
    #[error("the appliance knows nothing of the {request}: it ended before that was recorded")]
    Lost {
        /// What was asked.
        request: String,
    },
    /// This account may not use the socket.
    #[error("this account may not use {}", socket.display())]
    Forbidden {
        /// The socket.
        socket: PathBuf,
        /// Which account may.
        remedy: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the connection to the appliance broke")]
    Broken {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The client cannot be made.
    #[error("cannot make an HTTP client")]
    Client {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The appliance refused.
    #[error("{}", problem.detail)]
    Refused {
        /// What it says.
        problem: Box<Problem>,
    },
    /// The answer is not understood.
    #[error("the appliance answered {status} with something that is not understood")]
    Answer {
        /// The status.
        status: u16,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The release is not the one that was approved.
    #[error("release {version} has the digest {found}, {approved} was approved")]
    NotApproved {
        /// Its version.
        version: Version,
        /// The digest it has.
        found: String,
        /// The digest that was approved.
        approved: String,
    },
    /// A URL cannot be read.
    #[error("cannot fetch {url}")]
    Fetch {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

impl Reported for ClientError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Unavailable { .. } => Report::new(
                "no_running_appliance",
                Exit::Unavailable,
                "start it with `refit run`, or name its directory with --home",
            ),
            Self::NoRuntime { remedy, .. } => Report::new("no_runtime", Exit::Unavailable, remedy),
            Self::Silent { .. } => Report::new(
                "no_answer",
                Exit::Unavailable,
                "the log of `refit run` says why; a runtime that hangs is ended by its watchdog and started again. If none can start, end \
                 `refit run`: `refit recover`, `rollback` and `install` then work with the files",
            ),
            Self::Interrupted { .. } => Report::new(
                "package_interrupted",
                Exit::TryLater,
                "install it again: the appliance takes it once `refit status` answers, and without one the files of the home do; nothing was \
                 changed",
            ),
            Self::Ended { .. } => Report::new(
                "appliance_ended",
                Exit::TryLater,
                "`refit history` says what was done; what it does not name has changed nothing. Start it again with `refit run`, or go on with \
                 the files: `refit install` and `refit rollback` do",
            ),
            Self::Waits { .. } => Report::new(
                "update_waits",
                Exit::TryLater,
                "`refit run` tries it; `refit recover VERSION` of the release that is to run instead gives it up",
            ),
            Self::Lost { .. } => Report::new(
                "request_lost",
                Exit::TryLater,
                "see `refit status` and `refit history`, then ask again; nothing was changed",
            ),
            Self::Forbidden { remedy, .. } => Report::new("socket_forbidden", Exit::Unavailable, remedy),
            Self::Broken { .. } => Report::new("connection_broken", Exit::Failed, "see `refit status`, then try again"),
            Self::Client { .. } => Report::new("internal", Exit::Failed, "check the limits of the system"),
            Self::Refused { problem } => {
                let report = Report::new(&problem.code, Exit::from_code(i32::from(problem.exit)), &problem.remedy);
                // An older release says the one only.
                if problem.reason_code.is_empty() {
                    report
                } else {
                    Report { reason_code: &problem.reason_code, ..report }
                }
            }
            Self::Answer { .. } => {
                Report::new("internal", Exit::Failed, "use the refit of the same release as the appliance")
            }
            Self::File(_) => {
                Report::new("file_unreadable", Exit::Usage, "check the name and the permissions; nothing was changed")
            }
            Self::NotApproved { .. } => Report::new(
                "package_not_approved",
                Exit::Refused,
                "approve what it is, or choose another release; nothing was changed",
            ),
            Self::Fetch { source, .. } => Report::new(
                "fetch_failed",
                if source.status().is_some_and(is_final) { Exit::Usage } else { Exit::TryLater },
                "check the address and the network; nothing was changed",
            ),
        }
    }
}

impl ClientError {
    /// Returns that the guard `pid` has the home `home`, and no runtime.
    pub(super) fn no_runtime(home: &Path, pid: i32) -> Self {
        let remedy = format!(
            "its log says why, and it tries again; or end `refit run` (`kill {pid}`; the components end, too): `refit recover`, `rollback` \
             and `install` then work with the files"
        );
        Self::NoRuntime { home: home.to_owned(), pid, why: None, remedy }
    }

    /// Returns that no runtime of a guard starts, and it has said why.
    fn in_trouble(home: &Home, trouble: Trouble) -> Self {
        let Trouble { guard: pid, reason, .. } = trouble;
        let remedy = format!(
            "what keeps it from starting is over when that is put right, and the guard goes on by itself (`kill -HUP {pid}`: at once); \
             `refit rollback`, and `refit install PACKAGE` of a file, have it start another release, or this one whole"
        );
        Self::NoRuntime { home: home.path().to_owned(), pid, why: Some(reason), remedy }
    }

    /// Returns whether it is about the way to the appliance, which may be there again in a moment.
    pub(super) const fn is_silence(&self) -> bool {
        self.is_at_rest() || matches!(self, Self::Broken { .. } | Self::Silent { .. })
    }

    /// Returns whether nobody will answer, so that the files say what there is to be said.
    pub(super) const fn is_at_rest(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::NoRuntime { .. })
    }

    /// Returns whether the appliance answered that there is no such thing.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { problem } if problem.status == StatusCode::NOT_FOUND)
    }
}

/// A client of one appliance.
pub(super) struct Client {
    http: reqwest::Client,
    home: Home,
    socket: PathBuf,
    /// Held so that the short way to a socket in a deep home stays open.
    _dir: Option<std::fs::File>,
}

impl Client {
    /// Returns a client of the appliance in `home`. Nothing is sent yet.
    pub(super) fn new(home: &Home) -> Result<Self, ClientError> {
        let socket = home.socket();
        let (path, dir) = crate::handover::unix::short_path(&socket);
        let http = reqwest::Client::builder()
            .unix_socket(path)
            // A local socket has no TLS: reading the system's certificates would be most of a command's time.
            .tls_certs_only(std::iter::empty())
            .connect_timeout(CONNECT_MAX)
            .build()
            .map_err(|source| ClientError::Client { source })?;
        Ok(Self { http, home: home.clone(), socket, _dir: dir })
    }

    /// Returns whether the appliance has ended in order: no guard has the home, and none left its number behind.
    pub(super) fn has_ended(&self) -> bool {
        self.home.guard().is_none() && !self.home.pid_file().exists()
    }

    /// Returns that it has.
    pub(super) fn ended(&self) -> ClientError {
        ClientError::Ended { home: self.home.path().to_owned() }
    }

    /// Returns a request for `path`.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://appliance{path}"))
    }

    /// Sends a request whose answer the appliance has at hand. Returns the answer if it is good; its body may be a stream, to be read
    /// with [`Client::next_chunk`].
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        self.within(ANSWER_MAX, self.exchange(request)).await
    }

    /// Returns what comes next of a stream; `None` at its end.
    pub(super) async fn next_chunk(&self, stream: &mut Response) -> Result<Option<Bytes>, ClientError> {
        let next = async { stream.chunk().await.map_err(|source| ClientError::Broken { source }) };
        self.within(SILENCE_MAX, next).await
    }

    /// Returns the JSON at `path`, which the appliance has at hand. Where the connection breaks, as it may while a runtime ends, it is
    /// asked again.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.get_within(ANSWER_MAX, path).await
    }

    /// Returns the JSON at `path`, which the appliance has after at most `wait`.
    pub(super) async fn get_after<T: DeserializeOwned>(&self, wait: Duration, path: &str) -> Result<T, ClientError> {
        self.get_within(wait + ANSWER_MAX, path).await
    }

    async fn get_within<T: DeserializeOwned>(&self, limit: Duration, path: &str) -> Result<T, ClientError> {
        let begun = Instant::now();
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            match self.within(left, self.exchange_json(self.request(Method::GET, path))).await {
                Err(ClientError::Broken { .. }) if begun.elapsed() + ASK_AGAIN < limit => {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                // The socket is made again by the next runtime, or the guard says why there is none.
                Err(ClientError::Unavailable { .. })
                    if self.home.guard().is_some() && begun.elapsed() < TROUBLE_ONCE =>
                {
                    if let Some(trouble) = self.trouble(begun) {
                        return Err(trouble);
                    }
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                Err(ClientError::Silent { socket, .. }) => return Err(ClientError::Silent { socket, after: limit }),
                answer => return answer,
            }
        }
    }

    /// Posts `body` to `path`, which the appliance answers at once. Returns the JSON of the answer.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.within(ANSWER_MAX, self.exchange_json(self.request(Method::POST, path).json(body))).await
    }

    /// Posts `body` to `path`, and waits as long as the appliance works on it.
    pub(super) async fn post_long<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json_long(self.request(Method::POST, path).json(body)).await
    }

    /// Sends a request, and waits as long as the appliance works on it: as long as it answers other questions. Returns the JSON of
    /// the answer.
    pub(super) async fn json_long<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        // Cancel-safe: what is dropped is not wanted any more.
        tokio::select! {
            biased;
            answer = self.exchange_json(request) => answer,
            silence = self.miss_heartbeats() => Err(silence),
            trouble = self.find_trouble() => Err(trouble),
        }
    }

    /// Asks again and again whether the appliance still answers. Ends when it does not.
    async fn miss_heartbeats(&self) -> ClientError {
        let mut missed = 0;
        loop {
            tokio::time::sleep(HEARTBEAT_EVERY).await;
            match self.within(ANSWER_MAX, self.exchange(self.request(Method::GET, "/healthz"))).await {
                Err(silence) if silence.is_silence() => {
                    missed += 1;
                    if missed == HEARTBEATS_MISSED_MAX {
                        return silence;
                    }
                }
                Ok(_) | Err(_) => missed = 0, // also one that is not healthy answers
            }
        }
    }

    /// Returns the result of `work`, unless nothing came for as long as `limit`.
    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let silent = |_elapsed| Err(ClientError::Silent { socket: self.socket.clone(), after: limit });
        // Cancel-safe: what is dropped is not wanted any more.
        tokio::select! {
            biased;
            answer = tokio::time::timeout(limit, work) => answer.unwrap_or_else(silent),
            trouble = self.find_trouble() => Err(trouble),
        }
    }

    /// Looks again and again whether the guard has said that no runtime starts. Ends when that is clear.
    async fn find_trouble(&self) -> ClientError {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(TROUBLE_EVERY).await;
            if let Some(trouble) = self.trouble(begun) {
                return trouble;
            }
        }
    }

    /// Returns what the guard has said of starts that lead to nothing, to a question that was asked at `begun`.
    fn trouble(&self, begun: Instant) -> Option<ClientError> {
        let found = trouble::read(&self.home, self.home.guard()?)?;
        // One start may have failed for a reason that is over at the next.
        let is_clear = found.failures > 1 || begun.elapsed() > TROUBLE_ONCE;
        is_clear.then(|| ClientError::in_trouble(&self.home, found))
    }

    /// Sends a request. Returns the answer if it is good.
    async fn exchange(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|source| self.failed(source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        match response.json::<Problem>().await {
            Ok(problem) => Err(ClientError::Refused { problem: Box::new(problem) }),
            Err(_) => Err(ClientError::Answer { status: status.as_u16() }),
        }
    }

    async fn exchange_json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let answer = self.exchange(request).await?;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await.map_err(|source| ClientError::Broken { source })?;
        serde_json::from_slice(&bytes).map_err(|_not_understood| ClientError::Answer { status })
    }

    fn failed(&self, source: reqwest::Error) -> ClientError {
        match connection_failure(&source) {
            Some(source) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                ClientError::Forbidden { socket: self.socket.clone(), remedy: account_remedy(&self.socket), source }
            }
            Some(source) => ClientError::Unavailable { socket: self.socket.clone(), source },
            None => ClientError::Broken { source: source.without_url() },
        }
    }
}

/// Runs a command that talks to the API.
pub(super) fn run_online(context: &Context, work: impl Future<Output = Result<Exit, ClientError>>) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let line = format!("cannot start the async runtime: {error}");
            return context.print_failure(&line, "system_refused", "check the limits of the system", Exit::Failed);
        }
    };
    let ended = runtime.block_on(work);
    // A read of a pipe into which nobody writes any more, or yet, holds nobody who has the answer.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => exit,
        Err(error @ ClientError::Unavailable { .. }) => match context.home.guard() {
            Some(pid) => context.fail(&match trouble::read(&context.home, pid) {
                Some(trouble) => ClientError::in_trouble(&context.home, trouble),
                None => ClientError::no_runtime(context.home.path(), pid),
            }),
            None => match context.home.require_appliance() {
                Err(none @ (HomeError::Missing { .. } | HomeError::Empty { .. })) => {
                    let detail = format!("no running appliance answers: {none}");
                    let remedy = "name the right directory with --home: where it was moved to, if it was";
                    context.print_failure(&detail, error.code(), remedy, error.exit())
                }
                Err(forbidden @ HomeError::Forbidden { .. }) => context.fail(&forbidden),
                Ok(()) | Err(_) => context.fail(&error),
            },
        },
        Err(error) => context.fail(&error),
    }
}

/// Says that the guard `pid` has no runtime, and why, if that is known.
fn describe_guard(home: &Path, pid: i32, why: Option<&str>) -> String {
    let home = home.display();
    match why {
        Some(why) => format!("no runtime starts in {home}; its guard, process {pid}, tries again and again: {why}"),
        None => format!("no runtime answers in {home}, although its guard, process {pid}, runs"),
    }
}

/// Returns whether a server that answers so has nothing at the address that was named, now or later: as with a file that is not
/// there.
fn is_final(status: StatusCode) -> bool {
    let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    status.is_client_error() && !later.contains(&status)
}

/// Returns which account may use `socket`: that of whoever runs the appliance, as far as it can be seen from here.
fn account_remedy(socket: &Path) -> String {
    let owner = socket.ancestors().find_map(|path| Some(path.metadata().ok()?.uid()));
    as_account(&owner.map_or_else(|| "root".to_owned(), name_of))
}

/// Returns the cause if it is that no connection was made: what the system said, without the layers above it.
fn connection_failure(error: &reqwest::Error) -> Option<std::io::Error> {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(inner) = cause {
        if let Some(inner) = inner.downcast_ref::<std::io::Error>() {
            let nobody = matches!(inner.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused);
            let copy = inner.raw_os_error().map_or_else(|| inner.kind().into(), std::io::Error::from_raw_os_error);
            return (nobody || error.is_connect()).then_some(copy);
        }
        cause = inner.source();
    }
    None
}
