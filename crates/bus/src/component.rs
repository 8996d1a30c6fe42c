//! Who starts and stops with the site.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::call::{Call, Listener, Work};
use crate::failure::Failure;
use crate::order::Order;
use crate::phase::Phase;
use crate::request::StopReason;

/// What a component gives to the bus when it is asked to do something.
pub type Act = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// How long the bus waits for a component; `None` for as long as the bus itself waits for anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// For its start.
    pub start: Option<Duration>,
    /// For its stop, before it is told to hurry.
    pub stop: Option<Duration>,
    /// For each phase of a reload.
    pub reload: Option<Duration>,
}

/// Something that starts and stops with the site. The bus calls `start` and `stop` in turn, never at the same time.
pub trait Component: Send + Sync + 'static {
    /// Returns its name, unique on the bus.
    fn name(&self) -> &str;

    /// Returns its place in the order.
    fn order(&self) -> Order {
        Order::default()
    }

    /// Returns how long the bus waits for it.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Starts it; done when it serves. `cancelled` says that nobody wants it any more.
    fn start(self: Arc<Self>, cancelled: CancellationToken) -> Act;

    /// Stops it; done when nothing of it is left. `hurry` says that the time is over: end now, whatever is lost.
    fn stop(self: Arc<Self>, reason: StopReason, hurry: CancellationToken) -> Act;

    /// Takes new settings in two phases, without a stop: first everybody prepares the generation or refuses it with a reason;
    /// then all commit, or all that prepared abort. A component without settings has nothing to do. One that can
    /// [revert](Component::reverts) may be told to later.
    fn reload(self: Arc<Self>, _phase: Phase, _generation: u64) -> Act {
        Box::pin(async { Ok(()) })
    }

    /// Returns whether it keeps the generation before until the next one is prepared, and puts it back into force in the phase
    /// `Revert`: one that does not refuses a reload that has to be confirmed.
    fn reverts(&self) -> bool {
        false
    }

    /// Returns why it has no part in a reload that begins now, such as that it is stopped; `None` if it is to be asked. A reload in
    /// which nobody has a part has failed.
    fn exempt(&self) -> Option<String> {
        None
    }
}

/// A component as the listener of the three channels of its life.
pub(crate) struct Life(pub(crate) Arc<dyn Component>);

impl Listener for Life {
    fn call(self: Arc<Self>, call: Call) -> Work {
        if !call.by_the_site {
            let reason =
                format!("a component is called for {} by the site, not by a publication: request it", call.channel);
            return Box::pin(async { Err(Failure::new(reason)) });
        }
        let component = Arc::clone(&self.0);
        let act = match (call.phase, &call.reason) {
            (Some(phase), _) => component.reload(phase, call.generation),
            (None, Some(reason)) => component.stop(reason.clone(), call.cancelled()),
            (None, None) => component.start(call.cancelled()),
        };
        Box::pin(async move { act.await.map(|()| Value::Null) })
    }

    fn exempt(&self) -> Option<String> {
        self.0.exempt()
    }
}
