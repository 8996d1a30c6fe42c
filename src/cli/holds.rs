//! `refit holds`: whether one of some processes has a socket. The runtime runs it with the account of a component into whose
//! processes it may not look itself.

use refit_base::Exit;

use crate::probe::acceptor;

#[derive(Debug, clap::Args)]
pub(super) struct Holds {
    /// The number of the socket, as in `socket:[NUMBER]`.
    inode: u64,
    /// The processes.
    #[arg(required = true)]
    processes: Vec<i32>,
}

/// Looks: done if one has it, unavailable if none has, failed if that cannot be seen.
pub(super) fn run(holds: &Holds) -> Exit {
    match acceptor::has_socket(&holds.processes, holds.inode) {
        Some(true) => Exit::Done,
        Some(false) => Exit::Unavailable,
        None => Exit::Failed,
    }
}
