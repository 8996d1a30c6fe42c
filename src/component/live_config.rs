//! The live configuration of the release that runs: made again where it is gone, and open to the components' accounts.

use std::io;
use std::path::Path;

use nix::unistd::User;
use refit_base::{Chain, lock};
use refit_updater::Store;
use refit_updater::config::{Existing, merge_config};
use semver::Version;

use super::context::RunContext;
use crate::config::Config;
use crate::home::acl;

/// Makes the live configuration again where it is gone: a cleaner may have taken it while everything runs. Blocks.
pub(super) fn restore_running(context: &RunContext) {
    let _alone = lock(&context.restoring);
    if !is_gone(&context.config_dir) {
        return;
    }
    if let Ok(store) = Store::open(context.home.path()) {
        restore_config(&store, &context.version);
    }
    open_config(&context.config_dir, &context.config);
}

/// Makes the live configuration of release `version` from its defaults where it is gone. What is in the way is logged: its components say what
/// they lack. Blocks.
pub fn restore_config(store: &Store, version: &Version) {
    let dir = store.config_dir(version);
    if !is_gone(&dir) {
        return;
    }
    let path = dir.display();
    match merge_config(store, None, version, Existing::Keep) {
        Ok(_) => tracing::warn!(%path, "the live configuration was missing; it was made from the release's defaults"),
        Err(error) => {
            tracing::error!(%path, error = %Chain(&error), "the live configuration is missing and cannot be made again");
        }
    }
}

fn is_gone(dir: &Path) -> bool {
    dir.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Lets the accounts of `config`'s components, and no others, into the live configuration in `dir`. What is in the way is logged:
/// a component that reads no configuration runs all the same.
pub fn open_config(dir: &Path, config: &Config) {
    let names = config.components.iter().filter_map(|component| component.user.as_deref());
    // One that does not exist is found out when its process starts.
    let accounts =
        names.filter_map(|name| User::from_name(name).ok().flatten()).map(|user| user.uid.as_raw()).collect();
    match acl::let_in(dir, &accounts) {
        Ok(true) => {}
        Ok(false) => tracing::warn!(
            path = %dir.display(),
            "the file system keeps no access lists: every account that knows the name of a file of the configuration can read it, \
             unless its mode forbids that"
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {} // a release without configuration
        Err(error) => {
            tracing::warn!(path = %dir.display(), %error, "cannot let the components' accounts into their configuration");
        }
    }
}
