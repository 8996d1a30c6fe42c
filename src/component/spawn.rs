//! How a process of a component begins: what it is given, and the command that brings it there.
//!
//! It gets an environment from a list, its listeners from descriptor 3 on, its standard streams, and nothing else.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::sys::signal::kill;
use nix::sys::wait::waitpid;
use nix::unistd::{Group, Pid, User, getegid, geteuid};
use refit_base::{Cause, lock};
use refit_bus::Failure;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::context::RunContext;
use super::limits;
use super::variables::Variables;
use crate::awake;
use crate::carry::CarriedLimit;
use crate::config::{Component, Signal};
use crate::handover::inherit::VARIABLES;
use crate::handover::spawn::{self, Plan, State};
use crate::process::cgroup;
use crate::process::environ::STOP_SIGNAL;
use crate::process::launch::{Begin, report_pipe};

/// The variables of the runtime's own environment that components get, besides those that Refit sets.
const PASSED_ON: [&str; 8] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// How long the step before the program may take: it looks up an account, which may be a directory on the network, and its file may be.
const LAUNCH_MAX: Duration = Duration::from_secs(30);
/// This very program.
const LAUNCHER: &str = "/proc/self/exe";
/// The longest reason that it may give.
const REPORT_BYTES_MAX: u64 = 4096;

/// The account and the group that a process runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// Returns those of the processes of `component`. A name that does not exist is found out when the process starts.
    pub(super) fn of(component: &Component) -> Self {
        let named = |name: &String| User::from_name(name).ok().flatten();
        let user = component.user.as_ref().and_then(named);
        let group = component.spawn.group.as_ref().and_then(|name| Group::from_name(name).ok().flatten());
        let uid = user.as_ref().map_or_else(geteuid, |user| user.uid);
        let gid = group.map(|group| group.gid).or(user.map(|user| user.gid)).unwrap_or_else(getegid);
        Self { uid: uid.as_raw(), gid: gid.as_raw() }
    }

    /// Returns whether it has all rights.
    pub(super) fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// Returns a duplicate of each listener of `component`, blocking unless another process already uses them.
pub(super) fn sockets(component: &Component, context: &RunContext, overlapping: bool) -> io::Result<Vec<OwnedFd>> {
    let listeners = lock(&context.listeners);
    let mut sockets = Vec::with_capacity(component.listeners.len());
    for name in &component.listeners {
        let listener = listeners.get(name).ok_or_else(|| io::Error::other(format!("no listener {name}")))?;
        if !overlapping {
            listener.set_nonblocking(false)?;
        }
        sockets.push(listener.try_clone()?.into());
    }
    Ok(sockets)
}

/// Returns the whole environment of a process with these variables, besides what it needs to be heard.
pub(super) fn environment(
    component: &Component,
    variables: &Variables<'_>,
    context: &RunContext,
) -> BTreeMap<OsString, OsString> {
    let passed_on = |key: &OsString| {
        // Another account has another home.
        PASSED_ON.iter().any(|name| key == name) && !(component.user.is_some() && key == "HOME")
    };
    let mut environment: BTreeMap<OsString, OsString> = context
        .environment
        .iter()
        .filter(|(key, _)| passed_on(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    environment.extend(variables.iter().map(|(key, value)| (key.into(), value.clone())));
    environment.extend(component.env.iter().map(|(key, text)| (key.into(), variables.value(text))));
    if component.spawn.stop_signal != Signal::default() {
        environment.insert(STOP_SIGNAL.into(), component.spawn.stop_signal.name().into());
    }
    environment
}

/// Returns the variables by which a component's own process is heard, if it is, and finds its listeners.
pub(super) fn channels<'a>(
    component: &'a Component,
    variables: &Variables<'_>,
    notify: Option<PathBuf>,
) -> Vec<(&'a str, OsString)> {
    let mut channels = listener_names(component, variables);
    channels.extend(notify.map(|path| ("NOTIFY_SOCKET", path.into_os_string())));
    if let Some(watchdog) = component.spawn.watchdog {
        channels.push(("WATCHDOG_USEC", watchdog.as_micros().to_string().into()));
    }
    channels
}

/// Returns the variables by which a process that gets a component's listeners finds them, but for those that its own PID is in.
pub(super) fn listener_names<'a>(component: &'a Component, variables: &Variables<'_>) -> Vec<(&'a str, OsString)> {
    let mut names = vec![("LISTEN_FDNAMES", OsString::from(component.listeners.join(":")))];
    names.extend(component.spawn.pass.as_deref().map(|name| (name, variables.descriptors())));
    names
}

/// Returns the state that a process of `component` begins in, limited by what a process can be limited by.
pub(super) fn begin(
    component: &Component,
    variables: &Variables<'_>,
    context: &RunContext,
    group: Option<&cgroup::Group>,
    limits: &BTreeMap<String, CarriedLimit>,
) -> Begin {
    let spawn = &component.spawn;
    let directory = match &spawn.working_directory {
        Some(directory) => context.release_dir.join(variables.value(directory)),
        None => context.release_dir.clone(),
    };
    let mut begin = Begin {
        session: true,
        cgroup: group.map(|group| group.path().to_owned()),
        user: component.user.clone(),
        group: spawn.group.clone(),
        groups: spawn.supplementary_groups.as_ref().map(|groups| groups.join(",")),
        directory: Some(directory),
        umask: Some(spawn.umask),
        no_new_privs: spawn.no_new_privs,
        ..Begin::with(context.found)
    };
    limits::begin_with(limits, &mut begin);
    begin
}

/// Returns the command that becomes `words`, the program first: one with a slash is below the release. It gets so many `sockets`.
pub(super) fn launcher(words: &[OsString], context: &RunContext, begin: &Begin, sockets: usize) -> Command {
    let mut words = words.to_vec();
    if let Some(program) = words.first_mut().filter(|program| program.as_bytes().contains(&b'/')) {
        *program = context.release_dir.join(&*program).into_os_string();
    }
    // The launcher is this very program, even when its file was replaced.
    let mut command = Command::new(LAUNCHER);
    command.args(launch_words(&words, begin, sockets, false).into_iter().skip(1));
    command.env_clear().stdin(Stdio::null());
    command
}

/// Returns the command of a launch of `words` that gets so many `sockets`, its name first; with `report` the descriptor after them is the pipe on which a
/// failure is reported.
fn launch_words(words: &[OsString], begin: &Begin, sockets: usize, report: bool) -> Vec<OsString> {
    let mut all = vec![OsString::from(LAUNCHER), OsString::from("launch")];
    all.extend(begin.arguments());
    all.push(format!("--listen-fds={sockets}").into());
    all.extend(report.then(|| OsString::from("--report")));
    all.push("--".into());
    all.extend_from_slice(words);
    all
}

/// What a process is given besides its state.
pub(super) struct Given {
    /// Its program and arguments.
    pub(super) words: Vec<OsString>,
    /// Its whole environment.
    pub(super) environment: BTreeMap<OsString, OsString>,
    /// Its standard output and standard error.
    pub(super) outputs: [OwnedFd; 2],
    /// Its listeners.
    pub(super) sockets: Vec<OwnedFd>,
}

/// A process that was started. Until it is kept, it ends when this is dropped: nobody knows of it yet.
pub(super) struct Started {
    pid: i32,
    report: Option<OwnedFd>,
    is_kept: bool,
}

impl Started {
    /// Returns its PID.
    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Leaves it to its owner. Returns the pipe from which is [read](read_report) whether the program is executed, if it is not yet.
    pub(super) fn keep(mut self) -> Option<OwnedFd> {
        self.is_kept = true;
        self.report.take()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.is_kept {
            end_child(self.pid);
        }
    }
}

/// Ends a child of this process, and collects it.
fn end_child(pid: i32) {
    let pid = Pid::from_raw(pid);
    // One that has ended waits to be collected, so that the number is still its own.
    if kill(pid, nix::sys::signal::Signal::SIGKILL).is_ok() {
        let _ = waitpid(pid, None);
    }
}

/// Starts a process in the state `begin`. It is known to run its program, or there is a pipe that will tell.
///
/// # Errors
/// It cannot be started, or not within [`LAUNCH_MAX`].
pub(super) async fn start(given: Given, begin: Begin, context: &RunContext) -> Result<Started, Failure> {
    let (program, plan, report) = plan(given, &begin, context).map_err(|error| Failure::from_error(&error))?;
    let begun = Arc::new(AtomicI32::new(0));
    let told = Arc::clone(&begun);
    // The disk with the program may take its time, and nobody waits for this any more then.
    let starting = tokio::task::spawn_blocking(move || {
        let pid = spawn::spawn(plan, &told).map_err(|refused| begin.describe(&program, refused))?;
        Ok(Started { pid, report, is_kept: false })
    });
    match awake::timeout(LAUNCH_MAX, starting).await {
        Some(Ok(started)) => started.map_err(|error: io::Error| Failure::from_error(&error)),
        Some(Err(error)) => Err(Failure::new(format!("cannot start a process: {error}"))),
        None => {
            let pid = begun.load(Ordering::SeqCst);
            if pid > 0 {
                let _ = kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL); // the thread that waits collects it
            }
            Err(not_executed())
        }
    }
}

fn not_executed() -> Failure {
    Failure::new(format!("the program was not executed within {} s", LAUNCH_MAX.as_secs()))
}

/// Returns the program, and how it is started: as itself, or by a [launch](crate::process::launch) that reports on a pipe.
fn plan(given: Given, begin: &Begin, context: &RunContext) -> io::Result<(OsString, Plan, Option<OwnedFd>)> {
    let Given { mut words, mut environment, outputs: [stdout, stderr], sockets: mut descriptors } = given;
    let Some(program) = words.first_mut() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    let is_path = program.as_bytes().contains(&b'/');
    if is_path {
        *program = context.release_dir.join(&*program).into_os_string();
    }
    let program = program.clone();
    let (mut report, mut own_pid) = (None, Vec::new());
    let (places, state) = if begin.needs_launch() {
        let (reader, writer) = report_pipe()?;
        words = launch_words(&words, begin, descriptors.len(), true);
        descriptors.push(writer);
        report = Some(reader);
        // The launcher is this very program, even when its file was replaced.
        (
            vec![PathBuf::from(LAUNCHER)],
            State { directory: Some(text(context.release_dir.as_os_str())?), ..State::default() },
        )
    } else {
        own_pid = own_variables(&mut environment, descriptors.len());
        let places = if is_path { vec![PathBuf::from(&program)] } else { places_of(&program, &environment) };
        (places, begin.state()?)
    };
    let pair = |(key, value): (&OsString, &OsString)| text(&[key.as_os_str(), value].join(OsStr::new("=")));
    let plan = Plan {
        places: places.iter().map(|place| text(place.as_os_str())).collect::<io::Result<_>>()?,
        arguments: words.iter().map(|word| text(word)).collect::<io::Result<_>>()?,
        environment: environment.iter().map(pair).collect::<io::Result<_>>()?,
        own_pid,
        streams: [File::open("/dev/null")?.into(), stdout, stderr],
        descriptors,
        state,
    };
    Ok((program, plan, report))
}

fn text(words: &OsStr) -> io::Result<CString> {
    Ok(CString::new(words.as_bytes())?)
}

/// Has `environment` tell of so many sockets, as the convention of `LISTEN_FDS` says. Returns the variables besides that have the PID.
fn own_variables(environment: &mut BTreeMap<OsString, OsString>, sockets: usize) -> Vec<&'static str> {
    let mut own = Vec::new();
    let names = environment.get(OsStr::new("LISTEN_FDNAMES")).cloned().filter(|_| sockets > 0);
    for variable in VARIABLES {
        environment.remove(OsStr::new(variable));
    }
    if sockets > 0 {
        environment.insert("LISTEN_FDS".into(), sockets.to_string().into());
        own.push("LISTEN_PID");
    }
    environment.extend(names.map(|names| ("LISTEN_FDNAMES".into(), names)));
    if environment.contains_key(OsStr::new("WATCHDOG_USEC")) {
        environment.remove(OsStr::new("WATCHDOG_PID"));
        own.push("WATCHDOG_PID");
    }
    own
}

/// Returns where a program without a path may be, for one with this environment: execvp(3).
fn places_of(program: &OsStr, environment: &BTreeMap<OsString, OsString>) -> Vec<PathBuf> {
    /// What the C library takes where nothing is said.
    const SEARCH: &str = "/bin:/usr/bin";
    if program.is_empty() {
        return vec![PathBuf::new()]; // it is nowhere
    }
    let search = environment.get(OsStr::new("PATH")).map_or(OsStr::new(SEARCH), OsString::as_os_str);
    std::env::split_paths(search).map(|dir| dir.join(program)).collect()
}

/// Waits until the program is executed. Returns why it could not be.
pub(super) async fn read_report(report: OwnedFd) -> Option<Failure> {
    let mut text = String::new();
    let read = match pipe::Receiver::from_owned_fd(report) {
        Ok(reader) => awake::timeout(LAUNCH_MAX, reader.take(REPORT_BYTES_MAX).read_to_string(&mut text)).await,
        Err(error) => Some(Err(error)),
    };
    match read {
        Some(Ok(_)) if text.is_empty() => None,
        // One that is too long is cut, and still says why.
        Some(Ok(_)) => Some(serde_json::from_str(&text).unwrap_or_else(|_cut| Failure::new(text))),
        Some(Err(error)) => {
            let reason = format!("cannot learn whether the program was executed: {error}");
            Some(Failure::new(reason).with_cause(Cause::of(&error)))
        }
        None => Some(not_executed()),
    }
}
