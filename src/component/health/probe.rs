//! One try: a request, a connection, or a command.
//!
//! On a listener of the component another process may answer: the one before it, which was told to stop and has not heard it yet, or
//! one of a component that shares the listener. What it answers says nothing of this one.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper_util::client::legacy::connect::HttpInfo;
use hyper_util::rt::TokioIo;
use refit_base::{Cause, Chain};
use refit_bus::Failure;

use super::{ANSWER_CHARS_MAX, Probed, command};
use crate::component::acceptors::{Acceptors, Verdict};
use crate::config::{Health, Probe};
use crate::handover::fd;
use crate::probe::answer::{self, Answer};

/// For so long a connection may wait to be accepted before anything is asked: a server may wait for the question.
const ACCEPT_MAX: Duration = Duration::from_secs(1);

/// So many connections are made to a listener that other components share, one after the other number, until the process accepts one.
const CONNECTIONS: [u32; 4] = [1, 2, 4, 8];

/// What a try says of the process.
pub(super) enum Outcome {
    /// It is well.
    Well,
    /// It is not, or could not be tried: why.
    Ill(Failure),
    /// Nothing: a process of another instance has answered.
    OfAnother,
}

/// Returns what the requests are made with.
///
/// # Errors
/// Why there is none, for people.
pub(super) fn client(health: &Health) -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .timeout(health.timeout)
        .pool_max_idle_per_host(0)
        .no_proxy()
        // Probes are plain HTTP: reading the system's certificates would be work for nothing at every start.
        .tls_certs_only(std::iter::empty())
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| format!("cannot be tried: {}", Chain(&error)))
}

/// Tries once.
pub(super) async fn once(client: &reqwest::Client, health: &Health, probed: &Probed) -> Outcome {
    let tried = match &health.probe {
        Probe::Http(url) => get(client, url, health, probed).await,
        Probe::Tcp(address) => connect(*address, health, probed).await,
        Probe::Command(words) => run(words, health, probed).await,
    };
    tried.unwrap_or_else(Outcome::Ill)
}

fn in_time(health: &Health) -> String {
    format!("did not answer within {} s", health.timeout.as_secs_f32())
}

async fn get(client: &reqwest::Client, url: &str, health: &Health, probed: &Probed) -> Result<Outcome, Failure> {
    let acceptors = Acceptors::of(&probed.carried, &probed.component, &probed.context);
    if let Some(outcome) = get_from_acceptor(client, url, health, &acceptors).await? {
        return Ok(outcome);
    }
    let answer = match client.get(url).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_timeout() => return Err(Failure::new(format!("GET {url} {}", in_time(health)))),
        Err(error) => {
            let error = error.without_url();
            return Err(Failure::new(format!("GET {url} failed: {}", Chain(&error))).with_cause(Cause::of(&error)));
        }
    };
    let ends = answer.extensions().get::<HttpInfo>().map(|info| (info.remote_addr(), info.local_addr()));
    if let Some((server, own)) = ends
        && says_nothing(server, own, &acceptors).await
    {
        return Ok(Outcome::OfAnother);
    }
    judge(url, answer).await
}

async fn judge(url: &str, answer: reqwest::Response) -> Result<Outcome, Failure> {
    let status = answer.status();
    if status.is_success() || status.is_redirection() {
        return Ok(Outcome::Well);
    }
    let body = answer.text().await.unwrap_or_default();
    let body: String = body.split_whitespace().collect::<Vec<_>>().join(" ");
    let body: String = body.chars().take(ANSWER_CHARS_MAX).collect();
    let separator = if body.is_empty() { "" } else { ": " };
    Err(Failure::new(format!("GET {url} answered {status}{separator}{body}")))
}

/// Makes the request, if another instance may answer it, on a connection of which it is known who has accepted it: that is looked for
/// before anything is asked, since many a server closes the connection with its answer. `None` if it was not seen, and nothing was
/// asked.
async fn get_from_acceptor(
    client: &reqwest::Client,
    url: &str,
    health: &Health,
    acceptors: &Acceptors<'_>,
) -> Result<Option<Outcome>, Failure> {
    if !acceptors.have_rivals() {
        return Ok(None);
    }
    let Some(address) = own_address(health, acceptors).await else { return Ok(None) };
    let until = tokio::time::Instant::now() + health.timeout;
    let mut made = Ok((Verdict::Others, None));
    for count in counts(acceptors) {
        made = acceptors.connect(address, *count, health.timeout.min(ACCEPT_MAX)).await;
        if !matches!(made, Ok((Verdict::Others, _))) {
            break;
        }
    }
    let connection = match made {
        Ok((Verdict::Ours, Some(connection))) => connection,
        Ok((Verdict::Others, _)) => return Ok(Some(Outcome::OfAnother)),
        Ok(_) | Err(_) => return Ok(None),
    };
    match tokio::time::timeout_at(until, ask(client, url, connection)).await {
        Ok(Ok(outcome)) => outcome.map(Some),
        Ok(Err(error)) => Err(Failure::new(format!("GET {url} failed: {}", Chain(error.as_ref())))),
        Err(_) => Err(Failure::new(format!("GET {url} {}", in_time(health)))),
    }
}

/// Returns how many connections to make, one number after the other, as long as others accept them. The process before is gone soon, and
/// this one tried again; one that shares the listener is not, and some servers are woken in an order that never changes.
fn counts(acceptors: &Acceptors<'_>) -> &'static [u32] {
    if acceptors.have_sharers() { &CONNECTIONS } else { &CONNECTIONS[..1] }
}

/// Returns the address of `health`, if a listener of the component is there.
async fn own_address(health: &Health, acceptors: &Acceptors<'_>) -> Option<SocketAddr> {
    let mut addresses = tokio::net::lookup_host(health.address()?).await.ok()?;
    addresses.find(|address| acceptors.listener_at(*address).is_some_and(|listener| !fd::defers_accept(&listener)))
}

/// Makes the request on `connection`.
///
/// # Errors
/// It could not be made, or there was no answer.
async fn ask(
    client: &reqwest::Client,
    url: &str,
    connection: std::net::TcpStream,
) -> Result<Result<Outcome, Failure>, Box<dyn std::error::Error + Send + Sync>> {
    let mut request = hyper::Request::try_from(client.get(url).build()?)?;
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse()?;
    *request.uri_mut() = path;
    request.headers_mut().insert(hyper::header::HOST, host.parse()?);
    request.headers_mut().insert(hyper::header::ACCEPT, HeaderValue::from_static("*/*"));
    connection.set_nonblocking(true)?;
    let connection = TokioIo::new(tokio::net::TcpStream::from_std(connection)?);
    let (mut sender, driver) = hyper::client::conn::http1::handshake(connection).await?;
    let asked = async {
        let answer = sender.send_request(request).await?.map(reqwest::Body::wrap);
        Ok(judge(url, answer.into()).await)
    };
    let driven = async {
        drop(driver.await); // what went wrong is told to the one that asks
        std::future::pending().await
    };
    tokio::select! { asked = asked => asked, never = driven => never }
}

/// Returns whether what came on the connection from `own` to `server`, which is still open, may be the answer of another instance.
async fn says_nothing(server: SocketAddr, own: SocketAddr, acceptors: &Acceptors<'_>) -> bool {
    if !acceptors.have_rivals() {
        return false;
    }
    match acceptors.of_connection(server, own).await {
        Ok(Verdict::Ours) => false,
        Ok(Verdict::Others) => true,
        // As long as another one serves, only what is known to be this one's counts.
        Ok(Verdict::Nobody | Verdict::Unseen(_) | Verdict::Hidden(_)) | Err(_) => {
            acceptors.listener_at(server).is_some() && acceptors.have_serving_rivals()
        }
    }
}

/// Connects. To a listener of the component that is not enough, since the kernel would do it for a process that hangs: one has
/// to accept.
async fn connect(address: SocketAddr, health: &Health, probed: &Probed) -> Result<Outcome, Failure> {
    let acceptors = Acceptors::of(&probed.carried, &probed.component, &probed.context);
    let Some(listener) = acceptors.listener_at(address).filter(|listener| !fd::defers_accept(listener)) else {
        return only_connect(address, health).await;
    };
    let not_accepted = |why: &str| {
        let seconds = health.timeout.as_secs_f32();
        Failure::new(format!("a connection to {address} was not accepted within {seconds} s{why}"))
    };
    if !acceptors.have_rivals() {
        return match answer::answers(&listener, health.timeout).await {
            Ok(Answer::Accepts) => Ok(Outcome::Well),
            Ok(Answer::Untried) => only_connect(address, health).await,
            Ok(Answer::Silent) => Err(not_accepted("")),
            Ok(Answer::Full) => Err(not_accepted(": the queue was full all the time")),
            Err(error) => Err(cannot_connect(address, &error)),
        };
    }
    let mut verdict = Ok(Verdict::Others);
    for count in counts(&acceptors) {
        verdict = acceptors.of_new_connections(&listener, *count, health.timeout).await;
        if !matches!(verdict, Ok(Verdict::Others)) {
            break;
        }
    }
    match verdict {
        Ok(Verdict::Ours) => Ok(Outcome::Well),
        Ok(Verdict::Others) => Ok(Outcome::OfAnother),
        Ok(Verdict::Unseen(_) | Verdict::Hidden(_)) if acceptors.have_serving_rivals() => Ok(Outcome::OfAnother),
        Ok(Verdict::Unseen(_) | Verdict::Hidden(_)) => Ok(Outcome::Well),
        Ok(Verdict::Nobody) => Err(not_accepted("")),
        Err(error) => Err(cannot_connect(address, &error)),
    }
}

async fn only_connect(address: SocketAddr, health: &Health) -> Result<Outcome, Failure> {
    match tokio::time::timeout(health.timeout, tokio::net::TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(Outcome::Well),
        Ok(Err(error)) => Err(cannot_connect(address, &error)),
        Err(_) => Err(Failure::new(format!("{address} {}", in_time(health)))),
    }
}

/// Runs the health command. One of a component with listeners asks them, most likely, and as long as the process before was not told
/// to stop nobody knows which one answers.
async fn run(words: &[String], health: &Health, probed: &Probed) -> Result<Outcome, Failure> {
    let acceptors = Acceptors::of(&probed.carried, &probed.component, &probed.context);
    let is_shared = !probed.component.listeners.is_empty() && acceptors.have_serving_predecessors();
    command::run(words, health.timeout, probed).await?;
    Ok(if is_shared { Outcome::OfAnother } else { Outcome::Well })
}

fn cannot_connect(address: SocketAddr, error: &std::io::Error) -> Failure {
    Failure::new(format!("a connection to {address} failed: {error}")).with_cause(Cause::of(error))
}
