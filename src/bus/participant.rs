//! Who takes part in the life of the site: anything that starts and stops.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::request::Replacement;

/// The priority of a participant that says nothing: lower is earlier.
pub const PRIORITY_DEFAULT: i32 = 50;

/// A future that a participant gives to the bus.
pub type Work = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// Why a participant could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// Why, for people.
    pub reason: String,
    /// The last output of what failed.
    pub output: Vec<String>,
}

impl Failure {
    /// Returns a failure without output.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), output: Vec::new() }
    }
}

/// Where a participant stands in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// It starts after these; if one of them fails, it does not start.
    pub needs: Vec<String>,
    /// It starts after these, whether they failed or not.
    pub after: Vec<String>,
    /// Lower is earlier among those that may start.
    pub priority: i32,
}

impl Default for Order {
    fn default() -> Self {
        Self { needs: Vec::new(), after: Vec::new(), priority: PRIORITY_DEFAULT }
    }
}

/// Why a participant is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody asked for a stop.
    Stop,
    /// The process ends.
    Exit,
    /// Another one's start failed, or the start was cancelled.
    Undo,
    /// The process image is replaced.
    Replace(Arc<Replacement>),
}

impl StopReason {
    /// Returns whether the participant `name` is to be left running for the next process image.
    pub fn leaves(&self, name: &str) -> bool {
        match self {
            Self::Stop | Self::Exit | Self::Undo => false,
            Self::Replace(replacement) => leaves(&replacement.leave, name),
        }
    }
}

fn leaves(leave: &BTreeSet<String>, name: &str) -> bool {
    leave.contains(name)
}

/// Something that starts and stops with the site. The bus calls `start` and `stop` in turn, never at the same time.
pub trait Participant: Send + Sync + 'static {
    /// Returns its name, unique on the bus.
    fn name(&self) -> &str;

    /// Returns its place in the order.
    fn order(&self) -> Order {
        Order::default()
    }

    /// Starts it; done when it serves. `cancelled` says that nobody wants it any more.
    fn start(self: Arc<Self>, cancelled: CancellationToken) -> Work;

    /// Stops it; done when nothing of it is left. `hurry` says that the time is over: end now, whatever is lost.
    fn stop(self: Arc<Self>, reason: StopReason, hurry: CancellationToken) -> Work;

    /// Takes its new settings, without a stop.
    fn reload(self: Arc<Self>) -> Work {
        Box::pin(async { Ok(()) })
    }

    /// Returns how long a start may take.
    fn start_limit(&self) -> Duration;

    /// Returns how long a stop may take before `hurry`.
    fn stop_limit(&self) -> Duration;
}
