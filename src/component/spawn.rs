//! How a process of a component begins: what it is given, and the command that brings it there.
//!
//! It gets an environment from a list, its listeners from descriptor 3 on, its standard streams, and nothing else.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::{Group, User, getegid, geteuid};
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
use crate::process::cgroup;
use crate::process::environ::STOP_SIGNAL;
use crate::process::launch::Begin;

/// The variables of the runtime's own environment that components get, besides those that Refit sets.
const PASSED_ON: [&str; 8] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// How long the step before the program may take: it looks up an account, which may be a directory on the network.
const LAUNCH_MAX: Duration = Duration::from_secs(30);
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

/// Returns the command that becomes `words`, the program first: one with a slash is below the release. It gets so many `sockets`; with
/// `report` the descriptor after them is the pipe on which a failure is reported.
pub(super) fn launcher(
    words: &[OsString],
    context: &RunContext,
    begin: &Begin,
    sockets: usize,
    report: bool,
) -> Command {
    // The launcher is this very program, even when its file was replaced.
    let mut command = Command::new("/proc/self/exe");
    command.arg("launch").args(begin.arguments()).arg(format!("--listen-fds={sockets}"));
    if report {
        command.arg("--report");
    }
    command.arg("--");
    if let Some((program, arguments)) = words.split_first() {
        if program.as_encoded_bytes().contains(&b'/') {
            command.arg(context.release_dir.join(program));
        } else {
            command.arg(program);
        }
        command.args(arguments);
    }
    command.env_clear().stdin(Stdio::null());
    command
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
        None => Some(Failure::new(format!("the program was not executed within {} s", LAUNCH_MAX.as_secs()))),
    }
}
