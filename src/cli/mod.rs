//! The commands. Each talks to a running appliance through its API, or works on files; none reaches into a running one.

// The commands, a file each.
mod bus;
mod check;
mod component;
mod config;
mod demo;
mod history;
mod holds;
mod init;
mod inspect;
mod install;
mod keys;
mod notify;
mod pack;
mod recover;
mod releases;
mod repo;
mod rollback;
mod run;
mod runtime;
mod status;
mod trust;
mod user;
mod verify;

// What they share.
mod arguments;
mod at_rest;
mod client;
mod component_table;
mod context;
mod events;
mod follow;
mod input;
mod machine;
mod notes;
mod outcome;
mod passphrase;
mod publish;
mod said;
mod signing_keys;
mod silence;
mod table;
mod totals;
mod usage;

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use refit_base::Exit;

use self::client::run_online;
use self::context::Context;
pub use self::context::Process;
use crate::handover::fd::{self, Signals};
use crate::process::launch::{self, Launch};
use crate::process::reach::{self, Reach};

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
    Run(run::Run),
    /// The runtime; started by the guard.
    #[command(hide = true)]
    Runtime(runtime::Runtime),
    /// The last step before a component's program.
    #[command(hide = true)]
    Launch(Launch),
    /// Whether a component's account reaches what it needs.
    #[command(hide = true)]
    Reach(Reach),
    /// Whether one of some processes has a socket; run by the runtime.
    #[command(hide = true)]
    Holds(holds::Holds),
    /// Make a home and install its first release.
    Init(init::Init),
    /// Show how the appliance is.
    Status(status::StatusOptions),
    /// List the releases on this appliance, or remove one.
    Releases(releases::Releases),
    /// List what was tried on this appliance, newest first.
    History,
    /// Install a package, or an installed release again.
    Install(install::Install),
    /// Ask the repository whether there is a newer release.
    Check,
    /// Go back to the previous good release, or to a kept one.
    Rollback(rollback::Rollback),
    /// List which releases are whole, and have one of them run where nothing starts by itself.
    Recover(recover::Recover),
    /// Compare an installed release with its signed manifest, byte for byte.
    Verify(verify::Verify),
    /// Show and control single components.
    #[command(subcommand)]
    Component(component::Component),
    /// The bus from a shell.
    #[command(subcommand)]
    Bus(bus::Bus),
    /// Report to whoever supervises this process (NOTIFY_SOCKET), for programs that cannot: READY=1, STATUS=text.
    Notify(notify::Notify),
    /// Check a configuration before anything is packed or started.
    #[command(subcommand)]
    Config(config::Config),
    /// Make a package of a directory.
    Pack(pack::Pack),
    /// Show what a package holds, or what another one changes of it.
    Inspect(inspect::Inspect),
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
    User(user::User),
}

/// Returns the description of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The step before a program, by itself: it is taken at many starts, and has no use for the other commands.
#[derive(Debug, Parser)]
#[command(name = "launch")]
struct Alone {
    #[command(flatten)]
    launch: Launch,
}

/// Runs the command line. Returns the exit status.
pub fn main(process: Process) -> Exit {
    let words = process.arguments.get(1..).unwrap_or_default();
    if words.first().is_some_and(|word| word == "launch")
        && let Ok(Alone { launch }) = Alone::try_parse_from(words)
    {
        return launch::main(launch);
    }
    let cli = match Cli::try_parse_from(&process.arguments) {
        Ok(cli) => cli,
        Err(error) => return usage::report(error, &command()),
    };
    let context = Context::new(process, &cli.home, cli.json);
    let is_program = matches!(cli.command, Command::Launch(_));
    // What a shell, cron or a supervisor ignores is not for those who wait for their children, or live as long as an appliance.
    let lives_long = matches!(cli.command, Command::Run(_) | Command::Runtime(_));
    let signals = if lives_long { Signals::AllButPipe } else { Signals::Child };
    if !is_program && let Err(error) = fd::default_signals(signals) {
        let line = format!("signals that the parent process ignores are ignored here, too: {error}");
        context.print_failure(&line, "system_refused", "", Exit::Failed);
    }
    let exit = match cli.command {
        Command::Run(run) => return run::run(context, run),
        Command::Runtime(runtime) => return runtime::run(context, &runtime),
        Command::Launch(launch) => launch::main(launch),
        Command::Reach(reach) => reach::main(&reach),
        Command::Holds(holds) => return holds::run(&holds),
        Command::Demo(demo) => demo::run(&context, &demo),
        Command::Init(init) => init::run(&context, &init),
        Command::User(user) => user::run(&context, &user),
        Command::Config(config) => config::run(&context, &config),
        Command::Notify(notify) => notify::run(&context, &notify),
        Command::Pack(pack) => pack::run(&context, &pack),
        Command::Inspect(inspect) => inspect::run(&context, &inspect),
        Command::Keys(keys) => keys::run(&context, &keys),
        Command::Repo(repo) => repo::run(&context, &repo),
        Command::Trust(trust) => trust::run(&context, &trust),
        Command::Check => run_online(&context, check::run(&context)),
        Command::Status(options) => run_online(&context, status::run(&context, &options)),
        Command::Releases(releases) => releases::run(&context, &releases),
        Command::Recover(recover) => recover::run(&context, &recover),
        Command::History => run_online(&context, history::run(&context)),
        Command::Install(install) => run_online(&context, install::run(&context, &install)),
        Command::Rollback(rollback) => run_online(&context, rollback::run(&context, &rollback)),
        Command::Verify(verify) => verify::run(&context, &verify),
        Command::Component(component) => run_online(&context, component::run(&context, &component)),
        Command::Bus(bus) => run_online(&context, bus::run(&context, &bus)),
    };
    context.end(exit)
}
