//! What every command is given: the process it runs in, the home that is meant, and how its answer is printed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use indicatif::{ProgressBar, ProgressStyle};
use refit_base::{Chain, Exit, Report, Reported, visible_lines};
use serde::Serialize;

use super::said::in_json;
use crate::handover::inherit::Announcement;
use crate::home::Home;

/// What the process was started with: read once, by `main`.
#[derive(Debug)]
pub struct Process {
    /// The command line.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub environment: BTreeMap<OsString, OsString>,
    /// The working directory.
    pub cwd: PathBuf,
    /// This program's file.
    pub program: PathBuf,
    /// The variables of a handover.
    pub announcement: Announcement,
}

impl Process {
    /// Returns the path that the variable `name` holds, if it holds one.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.environment.get(&OsString::from(name)).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

/// What every command is given.
pub(super) struct Context {
    pub(super) home: Home,
    pub(super) json: bool,
    pub(super) process: Process,
    /// Why a part of the answer could not be written.
    unwritten: OnceLock<io::Error>,
}

impl Context {
    /// Returns the context of a command on the appliance in `home`.
    pub(super) fn new(process: Process, home: &Path, json: bool) -> Self {
        let home = Home::new(&process.cwd, home);
        Self { home, json, process, unwritten: OnceLock::new() }
    }

    /// Prints a line on standard output. What of it comes from elsewhere does not steer the terminal.
    pub(super) fn print(&self, text: &str) {
        match writeln!(io::stdout().lock(), "{}", visible_lines(text)) {
            // A reader that has gone away is no reason to fail.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => drop(self.unwritten.set(error)),
            Ok(()) | Err(_) => {}
        }
    }

    /// Prints a line for people; nothing when the answer is in JSON.
    pub(super) fn print_text(&self, text: &str) {
        if !self.json {
            self.print(text);
        }
    }

    /// Returns whether standard output shows colours, and whoever reads it wants them (no-color.org).
    pub(super) fn has_colours(&self) -> bool {
        let unwanted = self.process.environment.get(&OsString::from("NO_COLOR")).is_some_and(|value| !value.is_empty());
        !self.json && !unwanted && io::stdout().is_terminal()
    }

    /// Returns whether somebody watches.
    pub(super) fn is_watched(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Returns a bar of bytes for what is being done, which somebody sees who watches. How many there are may be said later.
    pub(super) fn bytes_bar(&self, what: &'static str) -> ProgressBar {
        if !self.is_watched() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec}") {
            bar.set_style(style);
        }
        bar.with_message(what)
    }

    /// Returns `path` below the working directory.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.process.cwd.join(path)
    }

    /// Returns the exit status of a command that ended with `exit`: nothing is done whose answer got lost.
    pub(super) fn end(&self, exit: Exit) -> Exit {
        match self.unwritten.get() {
            Some(error) if exit == Exit::Done => {
                let line = format!("cannot write the answer: {error}");
                self.print_failure(&line, "output_unwritable", "make room where it goes, then ask again", Exit::Disk)
            }
            Some(_) | None => exit,
        }
    }

    /// Says what failed, why, and what to do. Returns the exit status.
    pub(super) fn fail(&self, error: &(impl Reported + 'static)) -> Exit {
        self.print_report(&Chain(error).to_string(), error.report())
    }

    /// Prints one line on standard error and, for scripts, one object on standard output.
    pub(super) fn print_failure(&self, detail: &str, code: &str, remedy: &str, exit: Exit) -> Exit {
        self.print_report(detail, Report::new(code, exit, remedy))
    }

    /// Prints the same of what a report says.
    pub(super) fn print_report(&self, detail: &str, report: Report<'_>) -> Exit {
        let Report { code, reason_code, exit, remedy } = report;
        let what_to_do = if remedy.is_empty() { String::new() } else { format!("; {remedy}") };
        say(&format!("{detail}{what_to_do}"));
        if self.json {
            let error = FailedBody { code, reason_code, detail, remedy, exit: exit.code() };
            self.print(&in_json(&Failed { error }));
        }
        exit
    }
}

/// A command that failed, in JSON.
#[derive(Serialize)]
struct Failed<'a> {
    error: FailedBody<'a>,
}

#[derive(Serialize)]
struct FailedBody<'a> {
    code: &'a str,
    reason_code: &'a str,
    detail: &'a str,
    remedy: &'a str,
    exit: u8,
}

/// Says `text` on standard error. What of it comes from elsewhere does not steer the terminal, and a reader that has gone away is no
/// reason to fail.
pub(super) fn say(text: &str) {
    drop(writeln!(io::stderr().lock(), "refit: {}", visible_lines(text)));
}
