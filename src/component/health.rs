//! How a component's health is judged: by trying it from outside, again and again.

use std::time::Duration;

use serde::Serialize;
use tokio::process::Command;
use tokio::sync::watch;

use super::instance::Surroundings;
use crate::config::{Health, Probe};
use crate::error::Chain;

/// How much of an answer explains a failure.
const ANSWER_CHARS_MAX: usize = 200;

/// So many tries are made in quick succession after a start.
const FIRST_TRIES: u32 = 4;
/// The longest pause between them.
const FIRST_INTERVAL_MAX: Duration = Duration::from_millis(500);

/// What is known of a component's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has no health check.
    None,
    /// It was not tried yet.
    Unknown,
    /// The last try was good.
    Healthy,
    /// The last try was bad, and not enough before it: why. Nobody can say that it is healthy.
    Doubtful(String),
    /// The last tries were bad: why.
    Unhealthy(String),
}

impl State {
    /// Returns the name that API and page show.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unknown | Self::Doubtful(_) => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy(_) => "unhealthy",
        }
    }
}

/// Tries until it is cancelled, telling `state` what comes out.
pub(super) async fn watch(health: Health, state: watch::Sender<State>, around: std::sync::Arc<Surroundings>) {
    let client = reqwest::Client::builder()
        .timeout(health.timeout)
        .pool_max_idle_per_host(0)
        .no_proxy()
        // Probes are plain HTTP: reading the system's certificates would be work for nothing at every start.
        .tls_certs_only(std::iter::empty())
        .redirect(reqwest::redirect::Policy::none())
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            state.send_replace(State::Unhealthy(format!("cannot be tried: {}", Chain(&error))));
            return;
        }
    };
    let (mut failures, mut tries) = (0, 0);
    loop {
        match probe(&client, &health, &around).await {
            Ok(()) => {
                failures = 0;
                set(&state, State::Healthy);
            }
            Err(reason) => {
                failures += 1;
                set(
                    &state,
                    if failures >= health.threshold { State::Unhealthy(reason) } else { State::Doubtful(reason) },
                );
            }
        }
        tries += 1;
        // The first tries may have been answered by the process before, which accepts until it has heard that it is to stop.
        let pause = if tries < FIRST_TRIES { health.interval.min(FIRST_INTERVAL_MAX) } else { health.interval };
        tokio::time::sleep(pause).await;
    }
}

/// Sets `state` without waking anybody if nothing has changed.
fn set(state: &watch::Sender<State>, new: State) {
    state.send_if_modified(|old| {
        let changed = *old != new;
        *old = new;
        changed
    });
}

/// Tries once.
///
/// # Errors
/// Why it is not healthy, for people.
async fn probe(client: &reqwest::Client, health: &Health, around: &Surroundings) -> Result<(), String> {
    let in_time = |limit: Duration| format!("did not answer within {} s", limit.as_secs_f32());
    match &health.probe {
        Probe::Http(url) => match client.get(url).send().await {
            Ok(answer) if answer.status().is_success() || answer.status().is_redirection() => Ok(()),
            Ok(answer) => {
                let status = answer.status();
                let body = answer.text().await.unwrap_or_default();
                let body: String = body.split_whitespace().collect::<Vec<_>>().join(" ");
                let body: String = body.chars().take(ANSWER_CHARS_MAX).collect();
                Err(format!("GET {url} answered {status}{}{body}", if body.is_empty() { "" } else { ": " }))
            }
            Err(error) if error.is_timeout() => Err(format!("GET {url} {}", in_time(health.timeout))),
            Err(error) => Err(format!("GET {url} failed: {}", Chain(&error.without_url()))),
        },
        Probe::Tcp(address) => {
            match tokio::time::timeout(health.timeout, tokio::net::TcpStream::connect(address)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("a connection to {address} failed: {error}")),
                Err(_) => Err(format!("{address} {}", in_time(health.timeout))),
            }
        }
        Probe::Command(words) => {
            let Some((program, arguments)) = words.split_first() else { return Ok(()) };
            let program =
                if program.contains('/') { around.release_dir.join(program).into_os_string() } else { program.into() };
            let run = Command::new("/proc/self/exe")
                .args(["launch", "--"])
                .arg(&program)
                .args(arguments)
                .current_dir(&around.release_dir)
                .stdin(std::process::Stdio::null())
                .kill_on_drop(true)
                .output();
            match tokio::time::timeout(health.timeout, run).await {
                Ok(Ok(output)) if output.status.success() => Ok(()),
                Ok(Ok(output)) => {
                    let text = String::from_utf8_lossy(&output.stderr);
                    let line: String = text.lines().last().unwrap_or_default().chars().take(ANSWER_CHARS_MAX).collect();
                    Err(format!("the health command ended with {}: {line}", output.status))
                }
                Ok(Err(error)) => Err(format!("the health command cannot be started: {error}")),
                Err(_) => Err(format!("the health command {}", in_time(health.timeout))),
            }
        }
    }
}
