//! One call of one listener: what it is told, and what it answers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::phase::Phase;
use crate::request::StopReason;
use crate::state::State;

/// What a listener gives to the bus when it is called: its answer, some time later.
pub type Work = Pin<Box<dyn Future<Output = Result<Value, Failure>> + Send>>;

/// What all listeners of a publication are told.
#[derive(Debug, Clone)]
pub struct CallInfo {
    /// The channel.
    pub channel: Arc<str>,
    /// The number of the publication.
    pub publication: u64,
    /// The state of the site.
    pub state: State,
    /// What the publisher says.
    pub argument: Value,
    /// Of a reload: what is to be done with the new generation.
    pub phase: Option<Phase>,
    /// Of a reload: the number of the new generation.
    pub generation: u64,
    /// Of a stop: why.
    pub reason: Option<StopReason>,
    /// How many publications inside listeners of others led to this one.
    pub depth: u32,
    /// Whether the site itself calls, and not somebody who publishes on the same channel.
    pub(crate) by_the_site: bool,
}

impl CallInfo {
    /// Returns what is told by a publication that is no transition.
    pub(crate) const fn plain(channel: Arc<str>, publication: u64, state: State, argument: Value, depth: u32) -> Self {
        Self {
            channel,
            publication,
            state,
            argument,
            phase: None,
            generation: 0,
            reason: None,
            depth,
            by_the_site: false,
        }
    }
}

/// Where a call belongs: what all of its publication are told, and what cancels each.
pub(crate) trait Publication: Send + Sync {
    fn info(&self) -> &CallInfo;

    /// Returns what cancels the call at `place`.
    fn token(&self, place: usize) -> CancellationToken;
}

/// What a listener is told.
#[derive(Clone)]
pub struct Call {
    pub(crate) calls: Arc<dyn Publication>,
    pub(crate) place: usize,
    /// How long the bus waits.
    pub limit: Duration,
}

impl Call {
    /// Returns what is cancelled when nobody waits any longer: the time is over, or the answer is not wanted any more. It is made
    /// when it is asked for: most listeners never do.
    pub fn cancelled(&self) -> CancellationToken {
        self.calls.token(self.place)
    }
}

impl std::ops::Deref for Call {
    type Target = CallInfo;

    fn deref(&self) -> &CallInfo {
        self.calls.info()
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("info", self.calls.info()).field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Whoever can be called.
pub trait Listener: Send + Sync + 'static {
    /// Does what the channel means to it, and answers.
    fn call(self: Arc<Self>, call: Call) -> Work;

    /// Returns why it has no part in a reload that begins now; `None` if it is to be asked.
    fn exempt(&self) -> Option<String> {
        None
    }
}

/// A function as a listener.
struct Function<F>(F);

impl<F, A> Listener for Function<F>
where
    F: Fn(Call) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    fn call(self: Arc<Self>, call: Call) -> Work {
        Box::pin(async move { (self.0)(call).await })
    }
}

/// Returns a listener that calls `function`.
pub fn listener<F, A>(function: F) -> Arc<dyn Listener>
where
    F: Fn(Call) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    Arc::new(Function(function))
}
