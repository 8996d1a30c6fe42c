//! The program `refit`: arguments in, exit status out.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use refit::cli::{self, Process};
use refit::handover::inherit::Announcement;
use refit::process::installed;

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok();
    let arguments: Vec<_> = std::env::args_os().collect();
    let cwd = std::env::current_dir().unwrap_or_default();
    let called = arguments.first().cloned().unwrap_or_default();
    let process = Process {
        program: installed::path(&called, &cwd, std::env::var_os("PATH").as_deref()),
        arguments,
        environment: std::env::vars_os().collect(),
        cwd,
        announcement: Announcement {
            pid: variable("LISTEN_PID"),
            count: variable("LISTEN_FDS"),
            names: variable("LISTEN_FDNAMES"),
        },
    };
    ExitCode::from(cli::main(process).code())
}
