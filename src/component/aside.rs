//! A command that runs beside the process of a component, as it would: same account, limits, environment and directory, a session of its
//! own. It, and all that it starts, ends with its time.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use refit_base::Cause;
use refit_bus::Failure;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::context::RunContext;
use super::spawn;
use super::variables::Variables;
use crate::carry::CarriedInstance;
use crate::config::Component;
use crate::handover::fd::FIRST;
use crate::process::cgroup::Group;
use crate::process::descendants::Descendants;
use crate::process::environ::HEALTH;
use crate::process::stat::Stat;

/// How much of the end of its output is kept to explain a failure.
const OUTPUT_BYTES_MAX: usize = 4096;
/// How long to wait for the last output of a command that has ended: it lies in a pipe already.
const LAST_OUTPUT_WAIT: Duration = Duration::from_millis(100);
/// The longest line that explains a failure, in characters.
const LINE_CHARS_MAX: usize = 200;

/// A command, and whose it is.
pub(super) struct Aside<'a> {
    /// What it is, for people: "the health command".
    pub(super) what: &'a str,
    /// Its program and arguments.
    pub(super) words: &'a [String],
    /// What it may take.
    pub(super) limit: Duration,
    /// How many of its last lines explain a failure.
    pub(super) lines: usize,
    /// Whether it gets the component's listeners.
    pub(super) with_listeners: bool,
    pub(super) component: &'a Component,
    /// The process that it runs beside.
    pub(super) carried: &'a CarriedInstance,
    pub(super) context: &'a Arc<RunContext>,
}

impl Aside<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// It did not end with 0 in its time, or could not be started.
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let Self { what, limit, .. } = self;
        let group = self.carried.cgroup.as_deref().and_then(Group::found).and_then(|group| group.below("health").ok());
        let mark: String = hex::encode(rand::random::<[u8; 16]>());
        let cannot = |error: std::io::Error| {
            Failure::new(format!("{what} cannot be started: {error}")).with_cause(Cause::of(&error))
        };
        let mut command = self.command(group.as_ref(), &mark).map_err(cannot)?;
        let mut child = command.spawn().map_err(cannot)?;
        drop(command); // and with it the child's listeners
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        let began = Stat::of(pid).map_err(cannot)?.began;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (mut out, mut said) = (Tail::default(), Tail::default());
        let ended = {
            let reading = async { tokio::join!(out.read(stdout), said.read(stderr)) };
            tokio::pin!(reading);
            let mut read = false;
            let over = tokio::time::sleep(*limit);
            tokio::pin!(over);
            let ended = loop {
                // Cancel-safe: waiting for a child only waits, the other two are polled on.
                tokio::select! {
                    status = child.wait() => break Some(status),
                    _ = &mut reading, if !read => read = true,
                    () = &mut over => break None,
                }
            };
            Descendants::of(group.clone(), format!("{HEALTH}={mark}"), pid, began).end().await;
            if !read {
                // Whoever held the pipes is gone.
                drop(tokio::time::timeout(LAST_OUTPUT_WAIT, &mut reading).await);
            }
            ended
        };
        if let Some(group) = group {
            group.remove();
        }
        let mut last = out.last_lines(self.lines);
        last.extend(said.last_lines(self.lines));
        let text = last[last.len().saturating_sub(self.lines)..].join("; ");
        match ended {
            Some(Ok(status)) if status.success() => Ok(()),
            Some(Ok(status)) => {
                Err(Failure { output: last, ..Failure::new(format!("{what} ended with {status}: {text}")) })
            }
            Some(Err(error)) => {
                let reason = format!("{what} cannot be watched: {error}");
                Err(Failure::new(reason).with_cause(Cause::of(&error)))
            }
            None => {
                // Collected, so that nothing of it stays.
                drop(tokio::time::timeout(LAST_OUTPUT_WAIT, child.wait()).await);
                Err(Failure::new(format!("{what} did not end within {} s", limit.as_secs_f32())))
            }
        }
    }

    fn command(&self, group: Option<&Group>, mark: &str) -> std::io::Result<Command> {
        let Self { component, carried, context, .. } = self;
        let variables = Variables::new(component, &carried.token, context);
        let begin = spawn::begin(component, &variables, context, group, &carried.limits);
        // The process that serves has the listeners, too.
        let sockets = if self.with_listeners { spawn::sockets(component, context, true)? } else { Vec::new() };
        let mut command = spawn::launcher(&variables.words(self.words), context, &begin, sockets.len());
        command.envs(spawn::environment(component, &variables, context)).env(HEALTH, mark);
        if self.with_listeners {
            command.envs(spawn::listener_names(component, &variables));
        }
        let mappings = sockets.into_iter().zip(FIRST..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).map_err(std::io::Error::other)?;
        let (out, err) = (if self.lines > 1 { Stdio::piped() } else { Stdio::null() }, Stdio::piped());
        command.current_dir(&context.release_dir).stdout(out).stderr(err);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        Ok(command)
    }
}

/// The end of what was read.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    async fn read(&mut self, reader: Option<impl AsyncRead + Unpin>) {
        let Some(mut reader) = reader else { return };
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = reader.read(&mut bytes).await {
            self.0.extend(&bytes[..count]);
            let beyond = self.0.len().saturating_sub(OUTPUT_BYTES_MAX);
            self.0.drain(..beyond);
        }
    }

    fn last_lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(count)..];
        last.iter().map(|line| line.chars().take(LINE_CHARS_MAX).collect()).collect()
    }
}
