//! `refit demo`: a small shop, running, with one good update and every kind of bad one ready to try.
//!
//! The demo is made with the same functions as any appliance: keys, packages, a home. Its programs are built beside this one and
//! embedded; its `refit` is this very program.

mod releases;

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{SigSet, Signal};
use refit_author::inspect::inspect;
use refit_author::keys::Keys;
use refit_author::pack::{METADATA_VERSION, PackOptions, pack};
use refit_author::publish::{Repository, Terms};
use refit_base::clock;
use refit_base::{Chain, Exit};
use refit_updater::durable::{self, remove_tree};
use refit_updater::journal;
use refit_updater::manifest::{Body, Codec};
use refit_updater::modes;
use serde::Serialize;

use self::releases::{Addresses, write_release};
use super::client::Client;
use super::context::Context;
use super::init::{self, NewHome};
use super::input::Input;
use super::said::{Said, in_json};
use crate::auth;
use crate::config::LOCAL_FILE;
use crate::handover::bind::bind;
use crate::home::Home;
use crate::wire::{BusState, Status};

/// The ports that are easy to remember; others are taken if they are in use.
const PORTS: [(&str, u16); 2] = [("@ADMIN@", 8443), ("@HTTP@", 8080)];
/// How long the appliance may take to run.
const START_MAX: Duration = Duration::from_secs(60);
/// How often it is asked whether it runs.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// The demo's signatures are for today's play.
const EXPIRES: SignedDuration = SignedDuration::from_hours(24 * 365);

#[derive(Debug, clap::Args)]
pub(super) struct Demo {}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the demo's keys")]
    Keys(#[from] refit_author::keys::KeysError),
    #[error("cannot make the demo's packages")]
    Pack(#[from] refit_author::pack::PackError),
    #[error("cannot look into a demo package")]
    Inspect(#[from] refit_author::inspect::InspectError),
    #[error("cannot make the demo's repository")]
    Repository(#[from] refit_author::publish::RepositoryError),
    #[error("cannot install the demo")]
    Init(#[from] init::InitError),
    #[error("the demo did not start")]
    NotStarted,
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> DemoError {
    move |source| DemoError::Io { what, source }
}

pub(super) fn run(context: &Context, _demo: &Demo) -> Exit {
    match run_demo(context) {
        Ok(exit) => exit,
        Err(error) => {
            let remedy = "see the lines above, or try another --home";
            context.print_failure(&Chain(&error).to_string(), "demo_failed", remedy, Exit::Failed)
        }
    }
}

fn run_demo(context: &Context) -> Result<Exit, DemoError> {
    // Blocked from here on and taken one by one: the demo outlives its appliance by the time of cleaning up.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().map_err(io::Error::from).map_err(io_error("block signals"))?;

    let named = context.process.arguments.iter().any(|word| word.to_string_lossy().starts_with("--home"))
        || context.process.environment.contains_key(std::ffi::OsStr::new("REFIT_HOME"));
    let temporary = if named {
        None
    } else {
        // Closed until it has its own mode, whatever the umask is.
        let private = fs::Permissions::from_mode(modes::PRIVATE_DIR);
        let dir = tempfile::Builder::new().prefix("refit-demo-").permissions(private).tempdir().and_then(|dir| {
            // As the home of any appliance: what is private in it says so itself.
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(modes::of(""))).map(|()| dir)
        });
        Some(dir.map_err(io_error("make a temporary directory"))?)
    };
    let home = match &temporary {
        Some(dir) => Home::new(&context.process.cwd, dir.path()),
        None => context.home.clone(),
    };
    let password = if journal::exists(home.path()) {
        // A demo that was stopped goes on where it was; its password is known to nobody, so it gets a new one.
        let password = auth::new_password();
        auth::set_password(&home, auth::ADMIN, &password).map_err(init::InitError::from)?;
        password
    } else {
        context.print_text("making keys and packages ...");
        set_up(&home, &context.process.program)?.password
    };
    let mut guard = start_guard(&home, &context.process.program)?;
    let result = serve(context, &home, &password, &mut guard, &signals);
    drop(guard.kill()); // for the case that it could not be waited for; otherwise it has ended
    drop(guard.wait());
    if let Some(dir) = temporary {
        // Releases are read-only: dropping the directory would leave them to whoever is not root.
        remove_tree(dir.path()).map_err(io_error("remove the temporary home"))?;
    }
    result
}

/// Makes keys, packages and the home with release 1.0.0.
fn set_up(home: &Home, program: &Path) -> Result<NewHome, DemoError> {
    let packages = home.path().join("packages");
    durable::create_dirs(&packages, modes::OPEN_DIR).map_err(io_error("make the home"))?;
    let keys = Keys::init(&home.path().join("keys"), expiry())?;
    // Held until the home is made: another demo that is made meanwhile finds others.
    let (addresses, held) = addresses().map_err(io_error("find free ports"))?;
    let refit = fs::read(program).map_err(io_error("read this program"))?;
    let scratch = tempfile::Builder::new()
        .prefix("demo-")
        .tempdir_in(home.path())
        .map_err(io_error("make a scratch directory"))?;
    let write = |version: &str, extra: &[(&str, &str)]| -> Result<PathBuf, DemoError> {
        let dir = scratch.path().join(format!("{version}{}", if extra.is_empty() { "" } else { "-hostile" }));
        write_release(&dir, version, extra, &addresses, &refit).map_err(io_error("write a demo release"))?;
        Ok(dir)
    };
    let options = PackOptions {
        codec: Codec::Zstd,
        level: Some(1), // made to be used once, here
        arch: std::env::consts::ARCH.to_owned(),
        expires: expiry(),
        released: clock::now(),
        metadata_version: METADATA_VERSION,
    };
    for version in ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"] {
        let out = packages.join(format!("shop-{version}.refit"));
        pack(&write(version, &[])?, &out, &keys, &options, &mut |_| {})?;
    }
    let hostile = packages.join("hostile.refit");
    let offer = "share/offer.txt";
    let dir = write("1.5.0", &[(offer, "Everything must go: all prices halved, today only.\n")])?;
    pack(&dir, &hostile, &keys, &options, &mut |_| {})?;
    change_one_byte(&hostile, offer)?;
    let first = packages.join("shop-1.0.0.refit");
    let made = init::make_home(home, &Input::file(first), &home.path().join("keys").join("1.root.json"))?;
    drop(held);
    make_repository(home, &packages.join("shop-1.1.0.refit"), &keys)?;
    Ok(made)
}

/// Makes a repository with this package, and has the appliance know of it.
fn make_repository(home: &Home, package: &Path, keys: &Keys) -> Result<(), DemoError> {
    let dir = home.path().join("repository");
    let terms = Terms { now: clock::now(), expires: expiry(), timestamp_expires: expiry() };
    Repository::init(&dir, keys, &terms)?.add(package, keys, &terms)?;
    let quoted = toml::Value::from(dir.to_string_lossy().into_owned());
    let text = format!("# Of this machine alone: it overrides appliance.toml.\n[update]\nrepository = {quoted}\n");
    durable::replace_with_mode(home.path(), LOCAL_FILE, text.as_bytes(), modes::of(LOCAL_FILE))
        .map_err(io_error("write local.toml"))
}

fn expiry() -> Timestamp {
    clock::now().checked_add(EXPIRES).unwrap_or(Timestamp::MAX)
}

/// Returns what each placeholder becomes: an address that is free now, and what holds it.
fn addresses() -> io::Result<(Addresses, Vec<std::net::TcpListener>)> {
    let mut found = Vec::new();
    let mut held = Vec::new();
    for (placeholder, port) in PORTS {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = bind(at(port)).or_else(|_| bind(at(0)))?;
        found.push((placeholder, listener.local_addr()?.to_string()));
        held.push(listener); // so that the next one is another
    }
    Ok((found, held))
}

/// Changes one byte of the content of `path` in a package, which is then not what was signed.
fn change_one_byte(package: &Path, path: &str) -> Result<(), DemoError> {
    let found = inspect(package, None, false, clock::now())?;
    let frame = found.manifest.file(path).and_then(|file| match &file.body {
        Body::Regular { frames, .. } => frames.first().cloned(),
        Body::Link { .. } => None,
    });
    let Some(frame) = frame else { return Ok(()) };
    let change = || -> io::Result<()> {
        let file = fs::OpenOptions::new().read(true).write(true).open(package)?;
        let at = found.payload_begin() + frame.offset + frame.stored / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 1], at)
    };
    change().map_err(io_error("make the hostile package"))
}

fn start_guard(home: &Home, program: &Path) -> Result<Child, DemoError> {
    let log = durable::open_or_create(&home.path().join("demo.log"), modes::STATE_FILE);
    let log = log.and_then(|file| file.set_len(0).map(|()| file)).map_err(io_error("make the log"))?;
    Command::new(program)
        .args(["run", "--with-parent", "--home"])
        .arg(home.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(log)
        // Its own group: Ctrl-C reaches the demo, which ends the guard.
        .process_group(0)
        .spawn()
        .map_err(io_error("start the guard"))
}

/// Shows what there is to try, and waits for the end.
fn serve(
    context: &Context,
    home: &Home,
    password: &str,
    guard: &mut Child,
    signals: &SigSet,
) -> Result<Exit, DemoError> {
    let log = home.path().join("demo.log");
    let Some(status) = wait_running(home, guard) else {
        drop(io::stderr().lock().write_all(&fs::read(&log).unwrap_or_default()));
        return Err(DemoError::NotStarted);
    };
    print_instructions(context, home, password, &status);
    loop {
        let signal = signals.wait().map_err(io::Error::from).map_err(io_error("wait for signals"))?;
        if signal == Signal::SIGCHLD {
            if let Ok(Some(ended)) = guard.try_wait() {
                return Ok(ended.code().map_or(Exit::Failed, Exit::from_code));
            }
            continue;
        }
        context.print_text("ending ...");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(guard.id()).unwrap_or(0));
        let _ = nix::sys::signal::kill(pid, Signal::SIGTERM); // gone already is as good
    }
}

/// Waits until the appliance runs. Returns its status; `None` if it ended instead.
fn wait_running(home: &Home, guard: &mut Child) -> Option<Said<Status>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let begun = Instant::now();
    while begun.elapsed() < START_MAX {
        if guard.try_wait().ok()?.is_some() {
            return None;
        }
        let status: Option<Said<Status>> =
            runtime.block_on(async { Client::new(home).ok()?.get("/api/v1/status").await.ok() });
        if let Some(status) = status
            && status.bus.state == BusState::Running
        {
            return Some(status);
        }
        std::thread::sleep(ASK_AGAIN);
    }
    None
}

/// What there is to be tried, in JSON.
#[derive(Serialize)]
struct Ready<'a> {
    home: &'a Path,
    page: String,
    shop: String,
    user: &'static str,
    password: &'a str,
    packages: &'a Path,
    status: &'a Said<Status>,
}

fn print_instructions(context: &Context, home: &Home, password: &str, status: &Said<Status>) {
    let address = |name: &str| {
        let found = status.listeners.iter().find(|listener| listener.name == name);
        format!("http://{}/", found.map(|listener| listener.address.as_str()).unwrap_or_default())
    };
    let packages = home.path().join("packages");
    if context.json {
        context.print(&in_json(&Ready {
            home: home.path(),
            page: address("admin"),
            shop: address("http"),
            user: auth::ADMIN,
            password,
            packages: &packages,
            status,
        }));
        return;
    }
    let (home, packages) = (home.path().display(), packages.display());
    let version = &status.release.version;
    context.print(&format!(
        "
A small shop runs, release {version}.

  page      {page}
  user      {user}
  password  {password}
  shop      {shop}
  home      {home}

Drop one of these on the page, or install it from another terminal while the shop is being used:

  {packages}/shop-1.1.0.refit   a good update: new shop, prices, configuration, and a new refit
  {packages}/shop-1.2.0.refit   its shop ends at start
  {packages}/shop-1.3.0.refit   its shop never becomes healthy
  {packages}/shop-1.4.0.refit   its refit crashes at once
  {packages}/hostile.refit      one byte is not what was signed

Or let the appliance get 1.1.0 from its repository, {home}/repository (\"Check for updates\" on the page):

  refit check --home {home}
  refit install --home {home} {packages}/shop-1.1.0.refit
  refit rollback --home {home}
  refit status --home {home}
  refit history --home {home}

Ctrl-C ends all. The log is {home}/demo.log
",
        page = address("admin"),
        user = auth::ADMIN,
        shop = address("http"),
    ));
}
