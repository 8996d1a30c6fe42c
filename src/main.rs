//! The program `refit`: arguments in, exit status out.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use refit::cli::{self, Process};
use refit::handover::inherit::Announcement;

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok();
    let process = Process {
        arguments: std::env::args_os().collect(),
        environment: std::env::vars_os().collect(),
        cwd: std::env::current_dir().unwrap_or_default(),
        program: std::env::current_exe().unwrap_or_default(),
        announcement: Announcement {
            pid: variable("LISTEN_PID"),
            count: variable("LISTEN_FDS"),
            names: variable("LISTEN_FDNAMES"),
        },
    };
    ExitCode::from(cli::main(process).code())
}
