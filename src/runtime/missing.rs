//! Listeners that could not be had when this image began.

use std::sync::Arc;
use std::time::Duration;

use refit_base::lock;
use refit_bus::{Bus, Origin, State};

use crate::component::RunContext;
use crate::update::Manager;

/// How often it is tried whether one can be had.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Has this image replaced by the next one, which binds what it can, as soon as one of them can be had.
pub(super) async fn listen_when_possible(context: Arc<RunContext>, bus: Bus, manager: Arc<Manager>) {
    loop {
        tokio::time::sleep(TRY_AGAIN).await;
        // While the site is stopped nothing begins.
        if bus.state() == State::Running && lock(&context.listeners).can_be_had() {
            manager.restart_or_log(&bus, Origin("a listener that can be had".to_owned())).await;
        }
    }
}
