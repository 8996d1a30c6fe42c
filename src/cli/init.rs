//! `refit init`: a home with its first release.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use refit_base::{Exit, FileError, Report, Reported, clock, file_error};
use refit_updater::Store;
use refit_updater::config::{ConfigError as MergeError, Existing, merge_config};
use refit_updater::durable;
use refit_updater::journal::{self, Journal, JournalError};
use refit_updater::receive::{Policy, ReceiveError, Receiver};
use refit_updater::release::StoreError;
use refit_updater::trust::{Expired, Trust, TrustError};
use semver::Version;
use serde::Serialize;

use super::context::Context;
use super::input::Input;
use super::notes;
use super::said::in_json;
use crate::auth::{self, AuthError};
use crate::config::{self, Config, ConfigError, Programs};
use crate::home::{Home, HomeError};

#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// The package of the first release: a file, a pipe, or `-` for standard input.
    package: PathBuf,
    /// The vendor's root of trust, `1.root.json` of `refit keys init`.
    #[arg(long)]
    root: PathBuf,
}

/// Why a home cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum InitError {
    /// There is one already.
    #[error("an appliance is installed in {} already", home.display())]
    Installed { home: PathBuf },
    /// There was one.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Auth(#[from] AuthError),
}

impl Reported for InitError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Installed { .. } => {
                Report::new("home_installed", Exit::Config, "install updates with `refit install`; nothing was changed")
            }
            Self::Home(error) => error.report(),
            Self::File(_) => {
                Report::new("file_unreadable", Exit::Usage, "check the name and the permissions; nothing was changed")
            }
            Self::Store(error) => Report { exit: Exit::Disk, ..error.report() },
            Self::Trust(error) => Report { code: "trust_unusable", ..error.report() },
            Self::Receive(error) => Report { code: "package_refused", ..error.report() },
            Self::Merge(error) => Report { exit: Exit::Disk, ..error.report() },
            Self::Config(error) => error.report(),
            Self::Journal(error) => error.report(),
            Self::Auth(error) => error.report(),
        }
    }
}

/// What [`make_home`] made.
pub(super) struct NewHome {
    pub(super) appliance: String,
    pub(super) version: Version,
    /// The password of the account that was made.
    pub(super) password: String,
    /// Whether the package's signatures are past their date.
    pub(super) expired: bool,
    /// The date of a signed release that the clock is before, if it is, RFC 3339.
    pub(super) clock_behind: Option<String>,
}

/// A home that was made, in JSON.
#[derive(Serialize)]
struct Installed<'a> {
    appliance: &'a str,
    version: &'a Version,
    home: &'a Path,
    user: &'static str,
    password: &'a str,
    expired: bool,
    clock_behind: Option<&'a str>,
}

pub(super) fn run(context: &Context, init: &Init) -> Exit {
    match make_home(&context.home, &Input::new(context, &init.package), &context.path(&init.root)) {
        Ok(made) => {
            let home = context.home.path().display();
            if context.json {
                context.print(&in_json(&Installed {
                    appliance: &made.appliance,
                    version: &made.version,
                    home: context.home.path(),
                    user: auth::ADMIN,
                    password: &made.password,
                    expired: made.expired,
                    clock_behind: made.clock_behind.as_deref(),
                }));
            }
            context.print_text(&format!("{} {} is installed in {home}", made.appliance, made.version));
            if made.expired {
                context.print_text("note: the package's signatures are past their date");
            }
            if let Some(released) = &made.clock_behind {
                context.print_text(&format!("note: {}", notes::clock_behind(released)));
            }
            context.print_text(&format!("the page's account is {}, its password {}", auth::ADMIN, made.password));
            context.print_text(&format!("start it with `refit run --home {home}`"));
            Exit::Done
        }
        Err(error) => context.fail(&error),
    }
}

/// Makes a home and installs `package` as its first release. What fails leaves nothing where there was nothing.
pub(super) fn make_home(home: &Home, package: &Input, root: &Path) -> Result<NewHome, InitError> {
    if !journal::exists(home.path()) && home.had_appliance() {
        return Err(home.without_journal().into());
    }
    if journal::exists(home.path()) {
        return Err(InitError::Installed { home: home.path().to_owned() });
    }
    let was_there = home.path().exists();
    let was_empty = std::fs::read_dir(home.path()).map_or(!was_there, |mut entries| entries.next().is_none());
    let made = fill_home(home, package, root);
    if made.is_err() && was_empty {
        // The error that matters is the one at hand.
        let entries = std::fs::read_dir(home.path()).into_iter().flatten().flatten();
        entries.for_each(|entry| drop(durable::remove_tree(&entry.path())));
        if !was_there {
            drop(std::fs::remove_dir(home.path()));
        }
    }
    made
}

fn fill_home(home: &Home, package: &Input, root: &Path) -> Result<NewHome, InitError> {
    let root_bytes = std::fs::read(root).map_err(file_error("read", root))?;
    let file = package.open().map_err(file_error("read", package.path()))?;
    let store = Store::init(home.path())?;
    let trust = Trust::install_root(home.path(), &root_bytes)?;
    // Before the package arrives: hashing a password and unpacking each take what memory a small machine has to spare.
    let password = auth::new_password();
    auth::set_password(home, auth::ADMIN, &password)?;
    let policy = Policy {
        appliance: None,
        arch: std::env::consts::ARCH.to_owned(),
        current: None,
        allow_downgrade: false,
        expired: Expired::Warn,
        now: clock::now(),
    };
    let receiver =
        Receiver { store: &store, trust: &trust, policy: &policy, cancel: &AtomicBool::new(false), room: None };
    let received = receiver.receive_file(file, &mut |_| {})?;
    let programs = Programs::installed(&received.dir);
    let config = Config::load_with_programs(&programs, &home.path().join(config::LOCAL_FILE))?;
    // Its own policy comes with it.
    if config.update.expired_offline == Expired::Refuse {
        if let Some(seen) = received.clock_behind {
            return Err(ReceiveError::from(TrustError::ClockWentBack { now: policy.now, seen }).into());
        }
        if let Some((role, at)) = received.expired {
            return Err(ReceiveError::from(TrustError::Expired { role, at }).into());
        }
    }
    let (expired, clock_behind) = (received.expired.is_some(), received.clock_behind.map(clock::rfc3339));
    let version = received.manifest.version().clone();
    // A release that an interrupted `init` left here may go: nothing has run yet.
    store.admit(received, std::slice::from_ref(&version))?;
    merge_config(&store, None, &version, Existing::Replace)?;
    journal::store(home.path(), &Journal::first(version.clone()))?;
    // After the journal: where there is the link, there was one.
    store.point_current(&version)?;
    Ok(NewHome { appliance: config.name, version, password, expired, clock_behind })
}
