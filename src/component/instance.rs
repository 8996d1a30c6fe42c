//! One process of a component: how it is started, found again after an exec or a crash, heard, and ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::estate::{Descriptors, Estate};
use super::launch::report_pipe;
use super::logs::{Lines, Stream};
use super::signal::{Handle, start_ticks};
use crate::bus::Failure;
use crate::clock;
use crate::config::Component;
use crate::handover::carry::{CarriedInstance, Role};
use crate::handover::fd::{self, FIRST};
use crate::handover::listener::Listeners;
use crate::handover::notify;
use crate::home::Home;

/// The variables of the runtime's own environment that components get, besides those that Refit sets.
const PASSED_ON: [&str; 8] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// How many of a process's last lines explain its failure.
const FAILURE_LINES: usize = 20;
/// How long to wait for the last output of a process that has ended: it lies in a pipe already.
const LAST_OUTPUT_WAIT: Duration = Duration::from_millis(500);
/// How long a guard may take to say how a process ended that it had to collect.
const REAPED_WAIT: Duration = Duration::from_millis(500);
/// The longest `NOTIFY_SOCKET` that fits into a socket's address.
const ADDRESS_BYTES_MAX: usize = 107;
/// The longest status text that a component may set.
const STATUS_CHARS_MAX: usize = 200;

/// Where a component runs: what is the same for every process of one release.
#[derive(Debug)]
pub struct Surroundings {
    /// The home.
    pub home: Home,
    /// The release's directory.
    pub release_dir: PathBuf,
    /// The release.
    pub version: semver::Version,
    /// The live configuration.
    pub config_dir: PathBuf,
    /// The listeners.
    pub listeners: std::sync::Mutex<Listeners>,
    /// The registry of what survives.
    pub estate: Arc<Estate>,
    /// How processes ended that the guard collected, by PID.
    pub reaped: watch::Receiver<BTreeMap<i32, String>>,
    /// This process's own environment.
    pub environment: BTreeMap<OsString, OsString>,
}

/// One process.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) carried: CarriedInstance,
    pub(super) ready: watch::Receiver<bool>,
    pub(super) status: watch::Receiver<Option<String>>,
    /// How it ended, once it has.
    pub(super) ended: watch::Receiver<Option<String>>,
    handle: Arc<Handle>,
    descriptors: Arc<Descriptors>,
    output_done: watch::Receiver<u32>,
    /// What hears it; ended with it.
    tasks: JoinSet<()>,
}

impl Instance {
    /// Starts a process of `component`.
    ///
    /// # Errors
    /// The program cannot be executed; nothing of it is left.
    pub(super) async fn start(
        component: &Component,
        generation: u32,
        fingerprint: &str,
        restarts: u32,
        overlapping: bool,
        around: &Surroundings,
    ) -> Result<Self, Failure> {
        let failed = |what: &str, error: io::Error| Failure::new(format!("cannot {what}: {error}"));
        let id = format!("{}-{generation}", component.name);
        let token: String = hex::encode(rand::random::<[u8; 16]>());
        let (notify, notify_address) =
            bind_notify(around, &id).map_err(|error| failed("bind its notify socket", error))?;
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (stdout, stdout_end) = pipe().map_err(|error| failed("make a pipe", error))?;
        let (stderr, stderr_end) = pipe().map_err(|error| failed("make a pipe", error))?;
        let (report, report_end) = report_pipe().map_err(|error| failed("make a pipe", error))?;
        let sockets =
            sockets(component, around, overlapping).map_err(|error| failed("hand over its listeners", error))?;

        let mut command = Command::new("/proc/self/exe");
        command.arg("launch").arg("--listen-fds").arg(sockets.len().to_string()).arg("--report");
        if let Some(user) = &component.user {
            command.arg("--user").arg(user);
        }
        let program = &component.command[0];
        let path = if program.contains('/') {
            around.release_dir.join(program).into_os_string()
        } else {
            OsString::from(program)
        };
        command.arg("--").arg(path).args(&component.command[1..]);
        command.env_clear().envs(environment(component, &token, &notify_address, around));
        command.current_dir(&around.release_dir).stdin(Stdio::null()).stdout(stdout_end).stderr(stderr_end);
        command.process_group(0);
        let mut mappings: Vec<FdMapping> =
            sockets.into_iter().zip(FIRST..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        let next = FIRST + i32::try_from(mappings.len()).unwrap_or(0);
        mappings.push(FdMapping { parent_fd: report_end, child_fd: next });
        command.fd_mappings(mappings).map_err(|error| Failure::new(error.to_string()))?;
        let child = command.spawn().map_err(|error| failed("start a process", error))?;
        drop(command); // and with it the child's ends of the pipes
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let handle = Handle::open(pid, None).map_err(|error| failed("watch the process", error))?;
        let ticks = start_ticks(pid).map_err(|error| failed("watch the process", error))?;

        let carried = CarriedInstance {
            id,
            component: component.name.clone(),
            generation,
            pid,
            start_ticks: ticks,
            token,
            release: around.version.clone(),
            fingerprint: fingerprint.to_owned(),
            started_at: clock::stamp(),
            ready: false,
            status: None,
            role: Role::Current,
            restarts,
        };
        let descriptors = Arc::new(Descriptors { notify: notify.into(), stdout, stderr });
        let mut instance =
            Self::watch(carried, handle, descriptors, around).map_err(|error| failed("watch the process", error))?;
        around.estate.put(instance.carried.clone(), &instance.descriptors, false);
        if let Some(reason) = read_report(report).await {
            instance.kill_and_wait().await;
            instance.forget(around);
            return Err(Failure::new(reason));
        }
        Ok(instance)
    }

    /// Finds a process of an earlier image. `None` if it has ended meanwhile.
    pub(super) fn adopt(carried: CarriedInstance, descriptors: Descriptors, around: &Surroundings) -> Option<Self> {
        let id = carried.id.clone();
        let found = Handle::open(carried.pid, Some(carried.start_ticks))
            .and_then(|handle| Self::watch(carried, handle, Arc::new(descriptors), around));
        match found {
            Ok(instance) => {
                around.estate.put(instance.carried.clone(), &instance.descriptors, true);
                Some(instance)
            }
            Err(error) => {
                tracing::warn!(instance.id = id, %error, "a process of the image before is gone");
                around.estate.remove(&id);
                None
            }
        }
    }

    /// Begins to hear a process.
    fn watch(
        carried: CarriedInstance,
        handle: Handle,
        descriptors: Arc<Descriptors>,
        around: &Surroundings,
    ) -> io::Result<Self> {
        let (ready_sender, ready) = watch::channel(carried.ready);
        let (status_sender, status) = watch::channel(carried.status.clone());
        let (ended_sender, ended) = watch::channel(None);
        let (done_sender, output_done) = watch::channel(0);
        let handle = Arc::new(handle);
        let mut tasks = JoinSet::new();
        for (stream, descriptor) in [(Stream::Stdout, &descriptors.stdout), (Stream::Stderr, &descriptors.stderr)] {
            let reader = pipe::Receiver::from_owned_fd(descriptor.try_clone()?)?;
            let logs = Arc::clone(&around.estate.logs);
            let (component, id) = (carried.component.clone(), carried.id.clone());
            let done = done_sender.clone();
            tasks.spawn(async move {
                let guard = Partial { logs, component, id, stream, lines: Lines::default() };
                read_output(reader, guard).await;
                done.send_modify(|count| *count += 1);
            });
        }
        let socket = descriptors.notify.try_clone()?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        let socket = fd::watch(socket)?;
        tasks.spawn(read_notifications(socket, ready_sender, status_sender));
        let process = fd::watch(handle.descriptor().try_clone()?)?;
        let reaped = around.reaped.clone();
        let pid = handle.pid();
        let estate = Arc::clone(&around.estate);
        tasks.spawn(async move {
            let how = wait_end(&process, pid, reaped).await;
            estate.note_end(pid, &how);
            ended_sender.send_replace(Some(how));
        });
        Ok(Self { carried, ready, status, ended, handle, descriptors, output_done, tasks })
    }

    /// Returns its PID.
    pub(super) fn pid(&self) -> i32 {
        self.carried.pid
    }

    /// Returns the name of the process among all of the appliance.
    pub(super) fn id(&self) -> &str {
        &self.carried.id
    }

    /// Waits until it has ended. Returns how.
    pub(super) async fn wait(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or_default(),
            Err(_) => "ended".to_owned(),
        }
    }

    /// Asks it to end; kills what is left of it after `limit`, or when `hurry` says so. Returns how it ended, and whether it
    /// had to be killed.
    pub(super) async fn stop(&self, limit: Duration, hurry: &tokio_util::sync::CancellationToken) -> (String, bool) {
        self.handle.terminate();
        // Cancel-safe: all three only wait.
        let ended = tokio::select! {
            how = self.wait() => Some(how),
            () = tokio::time::sleep(limit) => None,
            () = hurry.cancelled() => None,
        };
        match ended {
            Some(how) => {
                self.handle.kill_group();
                (how, false)
            }
            None => {
                self.handle.kill();
                (self.wait().await, true)
            }
        }
    }

    /// Asks it to end and returns at once.
    pub(super) fn terminate(&self) {
        self.handle.terminate();
    }

    async fn kill_and_wait(&self) {
        self.handle.kill();
        self.wait().await;
    }

    /// Records what has changed of it, for the next image.
    pub(super) fn record(&mut self, around: &Surroundings, role: Role) {
        self.carried.role = role;
        self.carried.status = self.status.borrow().clone();
        around.estate.put(self.carried.clone(), &self.descriptors, true);
    }

    /// Removes what is kept of a process that has ended.
    pub(super) fn forget(&mut self, around: &Surroundings) {
        self.handle.kill_group(); // what it left behind in its group
        self.tasks.abort_all();
        around.estate.remove(&self.carried.id);
        let path = around.home.notify().join(format!("{}.sock", self.carried.id));
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a notify socket");
        }
    }

    /// Returns a failure with this reason and the last lines that the process printed.
    pub(super) async fn failure(&self, reason: String, around: &Surroundings) -> Failure {
        if self.ended.borrow().is_some() {
            // What it printed last may still lie in the pipes; a grandchild that keeps them open is not waited for.
            let mut done = self.output_done.clone();
            let drained = tokio::time::timeout(LAST_OUTPUT_WAIT, done.wait_for(|count| *count >= 2)).await;
            drop(drained);
        }
        let output = around.estate.logs.last_of(&self.carried.component, &self.carried.id, FAILURE_LINES);
        Failure { reason, output }
    }
}

/// Binds the socket on which the process reports. Returns its address as `NOTIFY_SOCKET` has it.
fn bind_notify(around: &Surroundings, id: &str) -> io::Result<(UnixDatagram, OsString)> {
    let dir = around.home.notify();
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{id}.sock"));
    if path.as_os_str().len() > ADDRESS_BYTES_MAX {
        // A home so deep that no program could connect to a path below it: an abstract name, as unguessable as the token.
        let name = format!("refit-{}", hex::encode(rand::random::<[u8; 16]>()));
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        return Ok((socket, format!("@{name}").into()));
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket = UnixDatagram::bind(&path)?;
    // A component may run as another user; who knows the path may report, which is no more than its own component's state.
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    Ok((socket, path.into_os_string()))
}

/// Returns a duplicate of each listener of `component`, blocking unless another process already uses them.
fn sockets(component: &Component, around: &Surroundings, overlapping: bool) -> io::Result<Vec<OwnedFd>> {
    let listeners = around.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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

/// Returns the whole environment of a process.
fn environment(
    component: &Component,
    token: &str,
    notify: &OsString,
    around: &Surroundings,
) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<OsString, OsString> = around
        .environment
        .iter()
        .filter(|(key, _)| PASSED_ON.iter().any(|name| *key == *name))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let home = &around.home;
    let own: [(&str, OsString); 11] = [
        ("REFIT_HOME", home.path().into()),
        ("REFIT_SOCKET", home.socket().into()),
        ("REFIT_BUS", home.bus_socket().into()),
        ("REFIT_TOKEN", token.into()),
        ("REFIT_COMPONENT", component.name.clone().into()),
        ("REFIT_VERSION", around.version.to_string().into()),
        ("REFIT_RELEASE", around.release_dir.clone().into()),
        ("REFIT_CONFIG", around.config_dir.clone().into()),
        ("REFIT_DATA", home.data().into()),
        ("NOTIFY_SOCKET", notify.clone()),
        ("LISTEN_FDNAMES", component.listeners.join(":").into()),
    ];
    environment.extend(own.into_iter().map(|(key, value)| (key.into(), value)));
    environment.extend(component.env.iter().map(|(key, value)| (key.into(), value.into())));
    environment
}

/// Waits until the program is executed. Returns why it could not be.
async fn read_report(report: OwnedFd) -> Option<String> {
    let mut text = String::new();
    let read = match pipe::Receiver::from_owned_fd(report) {
        Ok(mut reader) => reader.read_to_string(&mut text).await,
        Err(error) => Err(error),
    };
    match read {
        Ok(_) if text.is_empty() => None,
        Ok(_) => Some(text),
        Err(error) => Some(format!("cannot learn whether the program was executed: {error}")),
    }
}

/// The line that a stream has begun: written down when the reading ends, whyever it does.
struct Partial {
    logs: Arc<super::Logs>,
    component: String,
    id: String,
    stream: Stream,
    lines: Lines,
}

impl Partial {
    fn feed(&mut self, bytes: &[u8]) {
        let Self { logs, component, id, stream, lines } = self;
        lines.feed(bytes, |line| logs.push(component, id, *stream, line));
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(rest) = self.lines.finish() {
            self.logs.push(&self.component, &self.id, self.stream, &rest);
        }
    }
}

async fn read_output(mut reader: pipe::Receiver, mut partial: Partial) {
    let mut bytes = [0; 8192];
    loop {
        match reader.read(&mut bytes).await {
            Ok(0) => return,
            Ok(count) => partial.feed(&bytes[..count]),
            Err(error) => {
                tracing::warn!(component.name = partial.component, %error, "cannot read a component's output");
                return;
            }
        }
    }
}

async fn read_notifications(
    socket: AsyncFd<OwnedFd>,
    ready: watch::Sender<bool>,
    status: watch::Sender<Option<String>>,
) {
    loop {
        let received = socket.async_io(Interest::READABLE, |socket| notify::receive(socket.as_fd())).await;
        match received {
            Ok(notification) => {
                if let Some(text) = notification.get("STATUS") {
                    status.send_replace(Some(text.chars().take(STATUS_CHARS_MAX).collect()));
                }
                if notification.get("READY") == Some("1") {
                    ready.send_replace(true);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read a component's notifications");
                return;
            }
        }
    }
}

/// Waits for the end of a process. Returns how it ended: known if it is our child, told by the guard if it is the guard's.
async fn wait_end(process: &AsyncFd<OwnedFd>, pid: i32, mut reaped: watch::Receiver<BTreeMap<i32, String>>) -> String {
    loop {
        match process.readable().await {
            Ok(mut ready) => {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                match waitid(WaitId::PidFd(process.get_ref().as_fd()), options) {
                    Ok(Some(status)) => return describe(&status),
                    Ok(None) => ready.clear_ready(),
                    Err(_) => break, // not our child
                }
            }
            Err(error) => return format!("cannot be watched any more: {error}"),
        }
    }
    match tokio::time::timeout(REAPED_WAIT, reaped.wait_for(|all| all.contains_key(&pid))).await {
        Ok(Ok(all)) => all.get(&pid).cloned().unwrap_or_default(),
        Ok(Err(_)) | Err(_) => "ended".to_owned(),
    }
}

fn describe(status: &rustix::process::WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => {
            let name = ExitStatus::from_raw(signal).to_string();
            format!("was ended by {}", name.split(" (core").next().unwrap_or(&name))
        }
        (None, None) => "ended".to_owned(),
    }
}

/// Waits until the process serves, as `ready` defines it, or `deadline` passes.
///
/// # Errors
/// It ended before, or did not become ready in time.
pub(super) async fn wait_ready(
    instance: &Instance,
    component: &Component,
    around: &Surroundings,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let limit = component.start_timeout;
    let became_ready = async {
        match component.ready {
            crate::config::Ready::Notify => {
                let mut ready = instance.ready.clone();
                // The sender lives as long as the instance.
                let waited = ready.wait_for(|ready| *ready).await.is_ok();
                if !waited {
                    std::future::pending::<()>().await;
                }
            }
            crate::config::Ready::Listen => accepts(component, around, limit).await,
            crate::config::Ready::Exec | crate::config::Ready::Started => {}
        }
    };
    // Cancel-safe: all three only wait. A process that is ready and then ends is the actor's to notice.
    tokio::select! {
        biased;
        () = became_ready => Ok(()),
        how = instance.wait() => {
            let text = format!("{how} before it was ready, after {} ms", begun.elapsed().as_millis());
            Err(instance.failure(text, around).await)
        }
        () = tokio::time::sleep(limit) => {
            let text = format!("was not ready within {} s", limit.as_secs_f32());
            Err(instance.failure(text, around).await)
        }
    }
}

/// Waits until somebody accepts on every listener of the component; on the address of its health probe if it binds its own.
async fn accepts(component: &Component, around: &Surroundings, limit: Duration) {
    /// How often a port that nobody listens on yet is tried.
    const TRY_AGAIN: Duration = Duration::from_millis(20);
    if component.listeners.is_empty()
        && let Some(address) = component.health.as_ref().and_then(crate::config::Health::address)
    {
        while tokio::net::TcpStream::connect(&address).await.is_err() {
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }
    for name in &component.listeners {
        let listener = {
            let listeners = around.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            listeners.get(name).and_then(|listener| listener.try_clone().ok())
        };
        let Some(listener) = listener else { continue };
        match crate::handover::listener::answers(&listener, limit).await {
            Ok(true) => {}
            Ok(false) => std::future::pending::<()>().await, // the caller's limit comes next
            Err(error) => {
                tracing::warn!(component.name, listener.name = name, %error, "cannot try a listener");
                std::future::pending::<()>().await;
            }
        }
    }
}
