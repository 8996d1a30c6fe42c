//! A health command: a process of its component, which ends with the try.

use std::collections::VecDeque;
use std::time::Duration;

use refit_base::Cause;
use refit_bus::Failure;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{ANSWER_CHARS_MAX, Probed};
use crate::component::spawn;
use crate::component::variables::Variables;
use crate::process::cgroup::Group;
use crate::process::descendants::Descendants;
use crate::process::environ::HEALTH;
use crate::process::stat::Stat;

/// How much of the end of a health command's output is kept to explain a failure.
const OUTPUT_BYTES_MAX: usize = 4096;
/// How long to wait for the last output of a health command that has ended: it lies in a pipe already.
const LAST_OUTPUT_WAIT: Duration = Duration::from_millis(100);

/// Runs a health command as a process of its component: same account, limits and environment, a session of its own. It, and all
/// that it starts, ends with the try.
pub(super) async fn run(words: &[String], limit: Duration, probed: &Probed) -> Result<(), Failure> {
    let Probed { component, carried, context } = probed;
    let group = carried.cgroup.as_deref().and_then(Group::found).and_then(|group| group.below("health").ok());
    let variables = Variables::new(component, &carried.token, context);
    let begin = spawn::begin(component, &variables, context, group.as_ref(), &carried.limits);
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
