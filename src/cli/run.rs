//! `refit run`: the guard.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;

use refit_base::Exit;

use super::context::Context;
use crate::guard;
use crate::handover::exec;
use crate::logs::journal;
use crate::process::resources::Resources;

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// End when the process that started this one ends.
    #[arg(long, hide = true)]
    with_parent: bool,
    /// The journal's socket, used if the service manager says that standard error goes to the journal.
    #[arg(long, hide = true, default_value = journal::SOCKET, value_name = "PATH")]
    journal_socket: PathBuf,
}

pub(super) fn run(context: Context, run: Run) -> Exit {
    // A parent may have blocked everything: until the guard reads its signals, one that ends does so at once.
    if let Err(error) = exec::unblock_signals() {
        let line = format!("cannot receive signals: {error}");
        return context.print_failure(&line, "system_refused", "", Exit::Failed);
    }
    let descriptors = match context.process.announcement.take(std::process::id()) {
        Ok(descriptors) => descriptors,
        Err(error) => {
            let line = format!("cannot take the descriptors of the service manager: {error}");
            return context.print_failure(&line, "system_refused", "", Exit::Failed);
        }
    };
    let stream = context.process.environment.get(OsStr::new(journal::STREAM_VARIABLE));
    let is_journal = stream.and_then(|text| text.to_str()).is_some_and(|text| journal::is_journal(text, io::stderr()));
    guard::main(guard::Given {
        found: Resources::improve(),
        installed: context.process.program.clone(),
        manager: context.process.path("NOTIFY_SOCKET"),
        home: context.home,
        descriptors,
        with_parent: run.with_parent,
        journal: is_journal.then_some(run.journal_socket),
    })
}
