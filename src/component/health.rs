//! How a component's health is judged: by trying it from outside, again and again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use refit_base::{Cause, Chain};
use refit_bus::Failure;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::watch;

use super::context::RunContext;
use super::spawn;
use super::variables::Variables;
use crate::awake;
use crate::carry::CarriedLimit;
use crate::config::{Component, Health, Probe};
use crate::process::cgroup::Group;
use crate::process::descendants::Descendants;
use crate::process::environ::HEALTH;
use crate::process::stat::Stat;

/// How much of an answer explains a failure.
const ANSWER_CHARS_MAX: usize = 200;

/// How much of the end of a health command's output is kept to explain a failure.
const OUTPUT_BYTES_MAX: usize = 4096;
/// How long to wait for the last output of a health command that has ended: it lies in a pipe already.
const LAST_OUTPUT_WAIT: Duration = Duration::from_millis(100);

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

/// The process that is tried, as far as a health command shares its state.
pub(super) struct Probed {
    pub(super) component: Component,
    pub(super) token: String,
    pub(super) group: Option<Group>,
    pub(super) limits: BTreeMap<String, CarriedLimit>,
    pub(super) context: Arc<RunContext>,
}

/// Tries until it is cancelled, telling `state` what comes out.
pub(super) async fn watch(health: Health, state: watch::Sender<State>, probed: Probed) {
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
    let mut excused = false;
    loop {
        let begun = Instant::now();
        let result = probe(&client, &health, &probed).await;
        // Its limit is over since long: the machine was paused, and nobody could answer. Once, in case it is only that slow.
        let was_paused = !awake::paused_since(begun + health.timeout, health.timeout / 2).is_zero();
        if result.is_err() && was_paused && !excused {
            excused = true;
            continue;
        }
        excused = false;
        match result {
            Ok(()) => {
                failures = 0;
                set(&state, State::Healthy);
            }
            Err(Failure { reason, cause, .. }) => {
                // What the machine did not let be tried says nothing of the component: it is no failure, and no success.
                failures += u32::from(cause == Cause::Release);
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
/// Why it is not healthy, or could not be tried.
async fn probe(client: &reqwest::Client, health: &Health, probed: &Probed) -> Result<(), Failure> {
    let in_time = |limit: Duration| format!("did not answer within {} s", limit.as_secs_f32());
    match &health.probe {
        Probe::Http(url) => match client.get(url).send().await {
            Ok(answer) if answer.status().is_success() || answer.status().is_redirection() => Ok(()),
            Ok(answer) => {
                let status = answer.status();
                let body = answer.text().await.unwrap_or_default();
                let body: String = body.split_whitespace().collect::<Vec<_>>().join(" ");
                let body: String = body.chars().take(ANSWER_CHARS_MAX).collect();
                let separator = if body.is_empty() { "" } else { ": " };
                Err(Failure::new(format!("GET {url} answered {status}{separator}{body}")))
            }
            Err(error) if error.is_timeout() => Err(Failure::new(format!("GET {url} {}", in_time(health.timeout)))),
            Err(error) => {
                let error = error.without_url();
                Err(Failure::new(format!("GET {url} failed: {}", Chain(&error))).with_cause(Cause::of(&error)))
            }
        },
        Probe::Tcp(address) => {
            match tokio::time::timeout(health.timeout, tokio::net::TcpStream::connect(address)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => {
                    let reason = format!("a connection to {address} failed: {error}");
                    Err(Failure::new(reason).with_cause(Cause::of(&error)))
                }
                Err(_) => Err(Failure::new(format!("{address} {}", in_time(health.timeout)))),
            }
        }
        Probe::Command(words) => run(words, health.timeout, probed).await,
    }
}

/// Runs a health command as a process of its component: same account, limits and environment, a session of its own. It, and all
/// that it starts, ends with the try.
async fn run(words: &[String], limit: Duration, probed: &Probed) -> Result<(), Failure> {
    let Probed { component, token, group, limits, context } = probed;
    let group = group.as_ref().and_then(|group| group.below("health").ok());
    let variables = Variables::new(component, token, context);
    let begin = spawn::begin(component, &variables, context, group.as_ref(), limits);
    let mark: String = hex::encode(rand::random::<[u8; 16]>());
    let mut command = Command::from(spawn::launcher(&variables.words(words), context, &begin, None));
    command
        .envs(spawn::environment(component, &variables, context))
        .env(HEALTH, &mark)
        .current_dir(&context.release_dir)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let cannot = |error: std::io::Error| {
        Failure::new(format!("the health command cannot be started: {error}")).with_cause(Cause::of(&error))
    };
    let mut child = command.spawn().map_err(cannot)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    let began = Stat::of(pid).map_err(cannot)?.began;
    let stderr = child.stderr.take();
    let mut said = Tail::default();
    let ended = {
        let reading = async {
            if let Some(stderr) = stderr {
                said.read(stderr).await;
            }
        };
        tokio::pin!(reading);
        let mut read = false;
        let over = tokio::time::sleep(limit);
        tokio::pin!(over);
        let ended = loop {
            // Cancel-safe: waiting for a child only waits, the other two are polled on.
            tokio::select! {
                status = child.wait() => break Some(status),
                () = &mut reading, if !read => read = true,
                () = &mut over => break None,
            }
        };
        Descendants::of(group.clone(), format!("{HEALTH}={mark}"), pid, began).end().await;
        if !read {
            // Whoever held the pipe is gone.
            drop(tokio::time::timeout(LAST_OUTPUT_WAIT, &mut reading).await);
        }
        ended
    };
    if let Some(group) = group {
        group.remove();
    }
    match ended {
        Some(Ok(status)) if status.success() => Ok(()),
        Some(Ok(status)) => Err(Failure::new(format!("the health command ended with {status}: {}", said.last_line()))),
        Some(Err(error)) => {
            let reason = format!("the health command cannot be watched: {error}");
            Err(Failure::new(reason).with_cause(Cause::of(&error)))
        }
        None => {
            // Collected, so that nothing of it stays.
            drop(tokio::time::timeout(LAST_OUTPUT_WAIT, child.wait()).await);
            Err(Failure::new(format!("the health command did not end within {} s", limit.as_secs_f32())))
        }
    }
}

/// The end of what was read.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    async fn read(&mut self, mut reader: impl AsyncRead + Unpin) {
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = reader.read(&mut bytes).await {
            self.0.extend(&bytes[..count]);
            let beyond = self.0.len().saturating_sub(OUTPUT_BYTES_MAX);
            self.0.drain(..beyond);
        }
    }

    fn last_line(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().last().unwrap_or_default().chars().take(ANSWER_CHARS_MAX).collect()
    }
}
