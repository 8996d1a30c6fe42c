//! The commands. Each talks to a running appliance through its API, or works on files; none reaches into a running one.

mod author;
mod bus;
mod client;
mod component;
mod config;
mod demo;
mod follow;
mod inhibit;
mod input;
mod install;
mod keys;
mod logs;
mod passphrase;
mod repo;
mod setup;
mod show;
mod timeline;
mod trust;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use refit_base::{Chain, Exit, Reported};

use crate::guard;
use crate::handover::inherit::Announcement;
use crate::home::Home;
use crate::logs::journal;
use crate::process::launch::{self, Launch};
use crate::runtime;

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
    fn path(&self, name: &str) -> Option<PathBuf> {
        self.environment.get(&OsString::from(name)).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

/// A self-updating appliance runtime.
#[derive(Debug, Parser)]
#[command(name = "refit", version, max_term_width = 100)]
struct Cli {
    /// The directory of the appliance.
    #[arg(long, global = true, env = "REFIT_HOME", default_value = "/var/lib/refit", value_name = "DIR")]
    home: PathBuf,
    /// Answer in JSON, one object a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a complete appliance in a temporary home, with good and bad updates to try.
    Demo(demo::Demo),
    /// Run the appliance: the guard, which starts the runtime.
    Run {
        /// End when the process that started this one ends.
        #[arg(long, hide = true)]
        with_parent: bool,
        /// The journal's socket, used if the service manager says that standard error goes to the journal.
        #[arg(long, hide = true, default_value = journal::SOCKET, value_name = "PATH")]
        journal_socket: PathBuf,
    },
    /// The runtime; started by the guard.
    #[command(hide = true)]
    Runtime {
        /// Only read what this release needs.
        #[arg(long, value_name = "VERSION")]
        check: Option<semver::Version>,
    },
    /// The last step before a component's program.
    #[command(hide = true)]
    Launch(Launch),
    /// Make a home and install its first release.
    Init(setup::Init),
    /// Show how the appliance is.
    Status,
    /// List the releases on this appliance.
    Releases,
    /// List what was tried on this appliance, newest first.
    History,
    /// Install a package, or an installed release again.
    Install(install::Install),
    /// Ask the repository whether there is a newer release.
    Check,
    /// Go back to the previous good release, or to a kept one.
    Rollback(install::Rollback),
    /// Compare an installed release with its signed manifest, byte for byte.
    Verify(install::Verify),
    /// Show and control single components.
    #[command(subcommand)]
    Component(component::Component),
    /// The bus from a shell.
    #[command(subcommand)]
    Bus(bus::Bus),
    /// Check a configuration before anything is packed or started.
    #[command(subcommand)]
    Config(config::Config),
    /// Make a package of a directory.
    Pack(author::Pack),
    /// Show what a package holds, or what another one changes of it.
    Inspect(author::Inspect),
    /// Make and keep signing keys.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Write a repository of releases.
    #[command(subcommand)]
    Repo(repo::Repo),
    /// Show or renew whom this appliance trusts.
    #[command(subcommand)]
    Trust(trust::Trust),
    /// Accounts of the admin page.
    #[command(subcommand)]
    User(setup::User),
}

/// What every command is given.
struct Context {
    home: Home,
    json: bool,
    process: Process,
    /// Why a part of the answer could not be written.
    unwritten: OnceLock<io::Error>,
}

impl Context {
    /// Prints a line on standard output.
    fn print(&self, text: &str) {
        match writeln!(io::stdout().lock(), "{text}") {
            // A reader that has gone away is no reason to fail.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => drop(self.unwritten.set(error)),
            Ok(()) | Err(_) => {}
        }
    }

    /// Prints a line for people; nothing when the answer is in JSON.
    fn tell(&self, text: &str) {
        if !self.json {
            self.print(text);
        }
    }

    /// Returns whether standard output shows colours, and whoever reads it wants them (no-color.org).
    fn has_colours(&self) -> bool {
        let unwanted = self.process.environment.get(&OsString::from("NO_COLOR")).is_some_and(|value| !value.is_empty());
        !self.json && !unwanted && io::stdout().is_terminal()
    }

    /// Returns whether somebody watches.
    fn is_watched(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Returns a bar of bytes for what is being done, which somebody sees who watches. How many there are may be said later.
    fn bytes_bar(&self, what: &'static str) -> ProgressBar {
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
    fn path(&self, path: &std::path::Path) -> PathBuf {
        self.process.cwd.join(path)
    }

    /// Returns the exit status of a command that ended with `exit`: nothing is done whose answer got lost.
    fn end(&self, exit: Exit) -> Exit {
        match self.unwritten.get() {
            Some(error) if exit == Exit::Done => {
                let line = format!("cannot write the answer: {error}");
                self.complain(&line, "output_unwritable", "make room where it goes, then ask again", Exit::Disk)
            }
            Some(_) | None => exit,
        }
    }

    /// Says what failed, why, and what to do. Returns the exit status.
    fn fail(&self, error: &(impl Reported + 'static)) -> Exit {
        self.complain(&Chain(error).to_string(), error.code(), error.remedy(), error.exit())
    }

    /// Prints one line on standard error and, for scripts, one object on standard output.
    fn complain(&self, detail: &str, code: &str, remedy: &str, exit: Exit) -> Exit {
        let what_to_do = if remedy.is_empty() { String::new() } else { format!("; {remedy}") };
        drop(writeln!(io::stderr().lock(), "refit: {detail}{what_to_do}"));
        if self.json {
            let object = serde_json::json!({
                "error": { "code": code, "detail": detail, "remedy": remedy, "exit": exit.code() }
            });
            self.print(&object.to_string());
        }
        exit
    }
}

/// Runs the command line. Returns the exit status.
pub fn main(process: Process) -> Exit {
    let cli = match Cli::try_parse_from(&process.arguments) {
        Ok(cli) => cli,
        Err(error) => return not_understood(without_hidden(error)),
    };
    let home = Home::new(&process.cwd, &cli.home);
    let context = Context { home, json: cli.json, process, unwritten: OnceLock::new() };
    let exit = match cli.command {
        Command::Run { with_parent, journal_socket } => return run_guard(context, with_parent, journal_socket),
        Command::Runtime { check: Some(version) } => {
            let search = context.process.environment.get(OsStr::new("PATH"));
            runtime::check(&context.home, &version, search.map(OsString::as_os_str))
        }
        Command::Runtime { check: None } => return run_runtime(context),
        Command::Launch(launch) => launch::main(launch),
        Command::Demo(demo) => demo::main(&context, &demo),
        Command::Init(init) => setup::init(&context, &init),
        Command::User(user) => setup::user(&context, &user),
        Command::Config(config) => config::main(&context, &config),
        Command::Pack(pack) => author::pack(&context, &pack),
        Command::Inspect(inspect) => author::inspect(&context, &inspect),
        Command::Keys(keys) => keys::run(&context, &keys),
        Command::Repo(repo) => repo::run(&context, &repo),
        Command::Trust(trust) => trust::run(&context, &trust),
        Command::Check => online(&context, install::check(&context)),
        Command::Status => online(&context, show::status(&context)),
        Command::Releases => online(&context, show::releases(&context)),
        Command::History => online(&context, show::history(&context)),
        Command::Install(install) => online(&context, install::install(&context, &install)),
        Command::Rollback(rollback) => online(&context, install::rollback(&context, &rollback)),
        Command::Verify(verify) => install::verify(&context, &verify),
        Command::Component(component) => online(&context, component::main(&context, &component)),
        Command::Bus(bus) => online(&context, bus::main(&context, &bus)),
    };
    context.end(exit)
}

/// Returns what reads a whole number within these limits, and names them when it is given anything else.
fn number_in<N>(limits: RangeInclusive<N>) -> impl Fn(&str) -> Result<N, String> + Clone
where
    N: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        let number = text.parse().ok().filter(|number| limits.contains(number));
        number.ok_or_else(|| format!("a whole number from {} to {} is wanted", limits.start(), limits.end()))
    }
}

/// Returns `error` without the hidden commands among those that it proposes.
fn without_hidden(mut error: clap::Error) -> clap::Error {
    let command = Cli::command();
    let is_hidden = |name: &String| command.find_subcommand(name).is_some_and(clap::Command::is_hide_set);
    match error.remove(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(names)) => {
            let shown: Vec<String> = names.into_iter().filter(|name| !is_hidden(name)).collect();
            if !shown.is_empty() {
                error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(shown));
            }
        }
        Some(ContextValue::String(name)) if is_hidden(&name) => {}
        Some(value) => drop(error.insert(ContextKind::SuggestedSubcommand, value)),
        None => {}
    }
    error
}

/// Prints the help that was asked for, or one line that says what is wrong with the command line.
fn not_understood(error: clap::Error) -> Exit {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand || !error.use_stderr() {
        drop(error.print()); // as in `Context::print`
        return if error.use_stderr() { Exit::Usage } else { Exit::Done };
    }
    let text = error.render().to_string();
    let what = text.split("\nUsage:").flat_map(|part| part.split("\nFor more information")).next().unwrap_or_default();
    let line = what.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
    drop(writeln!(io::stderr().lock(), "refit: {line}; see `refit --help`"));
    Exit::Usage
}

/// Runs a command that talks to the API.
fn online(context: &Context, work: impl Future<Output = Result<Exit, client::ClientError>>) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let line = format!("cannot start the async runtime: {error}");
            return context.complain(&line, "system_refused", "check the limits of the system", Exit::Failed);
        }
    };
    let ended = runtime.block_on(work);
    // A read of a pipe into which nobody writes any more, or yet, holds nobody who has the answer.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => exit,
        Err(error) => context.fail(&error),
    }
}

fn run_guard(context: Context, with_parent: bool, journal_socket: PathBuf) -> Exit {
    let descriptors = match context.process.announcement.take(std::process::id()) {
        Ok(descriptors) => descriptors,
        Err(error) => {
            let line = format!("cannot take the descriptors of the service manager: {error}");
            return context.complain(&line, "system_refused", "", Exit::Failed);
        }
    };
    let stream = context.process.environment.get(OsStr::new(journal::STREAM_VARIABLE));
    let is_journal = stream.and_then(|text| text.to_str()).is_some_and(|text| journal::is_journal(text, io::stderr()));
    guard::main(guard::Given {
        installed: context.process.program.clone(),
        manager: context.process.path("NOTIFY_SOCKET"),
        home: context.home,
        descriptors,
        with_parent,
        journal: is_journal.then_some(journal_socket),
    })
}

fn run_runtime(context: Context) -> Exit {
    let filter = tracing_subscriber::EnvFilter::try_from_env("REFIT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // The guard reads what is written here. Without one a line is lost, and nothing else: complaining about that on the same
    // closed stream would end the task that had something to say.
    let format = tracing_subscriber::fmt().log_internal_errors(false);
    format.with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    let process = context.process;
    let installed = process.path("REFIT_INSTALLED").unwrap_or_else(|| process.program.clone());
    runtime::main(&runtime::Given {
        home: context.home,
        announcement: process.announcement.clone(),
        notify: process.path("NOTIFY_SOCKET"),
        installed,
        environment: process.environment,
    })
}
