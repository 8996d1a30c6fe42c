//! The runtime's own part in a reload: the configuration is read again, and a mistake in it refuses the whole reload.
//!
//! What is in force stays so until a restart in place, which costs no connection: listeners, components and limits belong
//! together, and are taken over together. A reload says whether there is something that waits for it.

use std::path::PathBuf;
use std::sync::Arc;

use refit_bus::{self as bus, Bus, Call, Failure, Level, Listener, Phase, Subscription, Work};
use serde_json::Value;

use crate::config::{self, Config};
use crate::home::Home;

/// The configuration that is in force, and where the one on disk is.
struct Settings {
    bus: Bus,
    in_force: Arc<Config>,
    release_dir: PathBuf,
    local: PathBuf,
}

/// Puts the settings on the bus, before everybody else.
pub(super) fn attach(bus: &Bus, in_force: Arc<Config>, release_dir: PathBuf, home: &Home) {
    let local = home.path().join(config::LOCAL_FILE);
    let settings = Settings { bus: bus.clone(), in_force, release_dir, local };
    bus.subscribe(
        Subscription::new(bus::RELOAD, "refit.settings", Arc::new(settings)).priority(i32::MIN).only_checks(),
    );
}

impl Settings {
    async fn read(&self) -> Result<Config, Failure> {
        let (release, local) = (self.release_dir.clone(), self.local.clone());
        match tokio::task::spawn_blocking(move || Config::load(&release, &local)).await {
            Ok(Ok(config)) => Ok(config),
            Ok(Err(error)) => Err(Failure::from_error(&error)),
            Err(error) => Err(Failure::from_error(&error)),
        }
    }
}

impl Listener for Settings {
    fn call(self: Arc<Self>, call: Call) -> Work {
        Box::pin(async move {
            match call.phase {
                Some(Phase::Prepare) => drop(self.read().await?),
                Some(Phase::Commit) => {
                    if self.read().await? != *self.in_force {
                        let text = "the configuration on disk is not the one in force: `refit bus request restart` \
                                    takes it over, without a lost connection";
                        self.bus.log(Level::Warning, text);
                    }
                }
                Some(Phase::Abort | Phase::Revert) | None => {}
            }
            Ok(Value::Null)
        })
    }
}
