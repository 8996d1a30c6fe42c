//! The last wave of a start: the site runs when an update would be taken, too.
//!
//! The home is tidied beside the start of the components, and an update has to wait for that. A client that sees the site run may ask for one
//! at once.

use std::sync::Arc;
use std::time::Duration;

use refit_bus::{self as bus, Bus, Call, Listener, Subscription, Work};
use serde_json::Value;

use super::receiving::Receiving;

/// For how long the site waits: a disk that takes longer has trouble, and the components serve meanwhile.
const TIDY_WAITED_MAX: Duration = Duration::from_secs(30);
/// Longer than that: a slow disk does not fail the start.
const CALL_MAX: Duration = Duration::from_secs(40);

/// Waits for the home.
struct Gate {
    receiving: Arc<Receiving>,
}

/// Puts it on the bus, after everybody else.
pub(super) fn attach(bus: &Bus, receiving: &Arc<Receiving>) {
    let gate = Arc::new(Gate { receiving: Arc::clone(receiving) });
    bus.subscribe(Subscription::new(bus::START, "refit.update", gate).priority(i32::MAX).limit(CALL_MAX));
}

impl Listener for Gate {
    fn call(self: Arc<Self>, call: Call) -> Work {
        let cancelled = call.cancelled();
        Box::pin(async move {
            // Cancel-safe: levels are waited for.
            tokio::select! {
                () = cancelled.cancelled() => {}
                waited = tokio::time::timeout(TIDY_WAITED_MAX, self.receiving.until_tidy()) => {
                    if waited.is_err() {
                        tracing::warn!("the disk takes long; no update is taken until the home is tidy");
                    }
                }
            }
            Ok(Value::Null)
        })
    }
}
