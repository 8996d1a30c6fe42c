//! `refit runtime`: one process image of the runtime. The guard starts it, not an operator.

use std::ffi::{OsStr, OsString};

use refit_base::Exit;

use super::context::Context;
use crate::process::resources::Resources;
use crate::runtime;

#[derive(Debug, clap::Args)]
pub(super) struct Runtime {
    /// Only read what this release needs.
    #[arg(long, value_name = "VERSION")]
    check: Option<semver::Version>,
}

/// Runs the runtime, or checks whether this program can run a release.
pub(super) fn run(context: Context, runtime: &Runtime) -> Exit {
    match &runtime.check {
        Some(version) => {
            let search = context.process.environment.get(OsStr::new("PATH"));
            context.end(runtime::check(&context.home, version, search.map(OsString::as_os_str)))
        }
        None => run_image(context),
    }
}

fn run_image(context: Context) -> Exit {
    let filter = tracing_subscriber::EnvFilter::try_from_env("REFIT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // The guard reads what is written here. Without one a line is lost, and nothing else: complaining about that on the same
    // closed stream would end the task that had something to say.
    let format = tracing_subscriber::fmt().log_internal_errors(false);
    format.with_env_filter(filter).with_writer(runtime::Stderr::default).with_ansi(false).init();
    let process = context.process;
    let installed = process.path("REFIT_INSTALLED").unwrap_or_else(|| process.program.clone());
    runtime::main(&runtime::Given {
        home: context.home,
        announcement: process.announcement.clone(),
        notify: process.path("NOTIFY_SOCKET"),
        installed,
        called: process.arguments.first().cloned().unwrap_or_else(|| "refit".into()),
        environment: process.environment,
        found: Resources::improve(),
    })
}
