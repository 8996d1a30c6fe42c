//! One process of a component: how it is started, found again after an exec or a crash, heard, and ended.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use refit_base::clock;
use refit_bus::Failure;
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::context::RunContext;
use super::reports::{self, Reports, Said};
use super::{limits, output, spawn};
use crate::carry::{CarriedInstance, Descriptors, Role};
use crate::config::{Component, ReloadSignal};
use crate::handover::fd::{self, FIRST};
use crate::logs::Stream;
use crate::process::cgroup::Group;
use crate::process::descendants::Descendants;
use crate::process::handle::Handle;
use crate::process::launch::report_pipe;
use crate::process::stat::Stat;

/// How many of a process's last lines explain its failure.
const FAILURE_LINES: usize = 20;
/// How long to wait for the last output of a process that has ended: it lies in a pipe already.
const LAST_OUTPUT_WAIT: Duration = Duration::from_millis(500);
/// How long a guard may take to say how a process ended that it had to collect.
const REAPED_WAIT: Duration = Duration::from_millis(500);

/// One process.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) carried: CarriedInstance,
    /// What it says of itself.
    pub(super) said: watch::Receiver<Said>,
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
        context: &RunContext,
    ) -> Result<Self, Failure> {
        let failed = |what: &str, error: io::Error| Failure::new(format!("cannot {what}: {error}"));
        let id = format!("{}-{generation}", component.name);
        let token: String = hex::encode(rand::random::<[u8; 16]>());
        let (notify, notify_address) =
            spawn::bind_notify(context, &id).map_err(|error| failed("bind its notify socket", error))?;
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (stdout, stdout_end) = pipe().map_err(|error| failed("make a pipe", error))?;
        let (stderr, stderr_end) = pipe().map_err(|error| failed("make a pipe", error))?;
        let (report, report_end) = report_pipe().map_err(|error| failed("make a pipe", error))?;
        let sockets = spawn::sockets(component, context, overlapping)
            .map_err(|error| failed("hand over its listeners", error))?;
        let group = context.cgroups.make(&id);
        let limits =
            limits::apply(&component.spawn.limits, &context.cgroups, group.as_ref(), spawn::is_root(component));
        let begin = spawn::begin(component, context, group.as_ref(), &limits);

        let mut command = spawn::launcher(&component.command, context, &begin, Some(sockets.len()));
        command.envs(spawn::environment(component, &token, context)).envs(spawn::channels(component, notify_address));
        command.current_dir(&context.release_dir).stdout(stdout_end).stderr(stderr_end);
        let mut mappings: Vec<FdMapping> =
            sockets.into_iter().zip(FIRST..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        let next = FIRST + i32::try_from(mappings.len()).unwrap_or(0);
        mappings.push(FdMapping { parent_fd: report_end, child_fd: next });
        command.fd_mappings(mappings).map_err(|error| Failure::new(error.to_string()))?;
        let child = command.spawn().map_err(|error| failed("start a process", error))?;
        drop(command); // and with it the child's ends of the pipes
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let handle = Handle::open(pid, None).map_err(|error| failed("watch the process", error))?;
        let stat = Stat::of(pid).map_err(|error| failed("watch the process", error))?;

        let carried = CarriedInstance {
            id,
            component: component.name.clone(),
            generation,
            pid,
            start_ticks: stat.began,
            token,
            release: context.version.clone(),
            fingerprint: fingerprint.to_owned(),
            started_at: clock::stamp(),
            ready: false,
            status: None,
            role: Role::Current,
            restarts,
            cgroup: group.map(|group| group.path().to_owned()),
            limits,
            watchdog_us: None,
        };
        let descriptors = Arc::new(Descriptors { notify: notify.into(), stdout, stderr });
        let mut instance =
            Self::watch(carried, handle, descriptors, context).map_err(|error| failed("watch the process", error))?;
        context.registry.put(instance.carried.clone(), &instance.descriptors, false);
        if let Some(reason) = spawn::read_report(report).await {
            instance.kill_and_wait().await;
            instance.forget(context);
            return Err(Failure::new(reason));
        }
        Ok(instance)
    }

    /// Finds a process of an earlier image. `None` if it has ended meanwhile.
    pub(super) fn adopt(carried: CarriedInstance, descriptors: Descriptors, context: &RunContext) -> Option<Self> {
        let id = carried.id.clone();
        let found = Handle::open(carried.pid, Some(carried.start_ticks))
            .and_then(|handle| Self::watch(carried, handle, Arc::new(descriptors), context));
        match found {
            Ok(instance) => {
                context.registry.put(instance.carried.clone(), &instance.descriptors, true);
                Some(instance)
            }
            Err(error) => {
                tracing::warn!(instance.id = id, %error, "a process of the image before is gone");
                context.registry.remove(&id);
                None
            }
        }
    }

    /// Begins to hear a process.
    fn watch(
        carried: CarriedInstance,
        handle: Handle,
        descriptors: Arc<Descriptors>,
        context: &RunContext,
    ) -> io::Result<Self> {
        let (said_sender, said) =
            watch::channel(Said::carried(carried.ready, carried.status.clone(), carried.watchdog_us));
        let (ended_sender, ended) = watch::channel(None);
        let (done_sender, output_done) = watch::channel(0);
        let handle = Arc::new(handle);
        let mut tasks = JoinSet::new();
        for (stream, descriptor) in [(Stream::Stdout, &descriptors.stdout), (Stream::Stderr, &descriptors.stderr)] {
            let reader = pipe::Receiver::from_owned_fd(descriptor.try_clone()?)?;
            let reading = output::read(reader, &context.registry.logs, &carried.component, &carried.id, stream);
            let done = done_sender.clone();
            tasks.spawn(async move {
                reading.await;
                done.send_modify(|count| *count += 1);
            });
        }
        let socket = descriptors.notify.try_clone()?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        let socket = fd::watch(socket)?;
        let mut reports = Reports::new(socket, said_sender, carried.component.clone(), carried.id.clone());
        let process = fd::watch(handle.descriptor().try_clone()?)?;
        let reaped = context.reaped.clone();
        let pid = handle.pid();
        let registry = Arc::clone(&context.registry);
        tasks.spawn(async move {
            // Cancel-safe: reading takes whole messages.
            let how = tokio::select! {
                how = wait_end(&process, pid, reaped) => how,
                never = reports.read() => match never {},
            };
            reports.rest();
            registry.note_end(pid, &how);
            ended_sender.send_replace(Some(how));
            match reports.read().await {}
        });
        Ok(Self { carried, said, ended, handle, descriptors, output_done, tasks })
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
        end_of(&self.ended).await
    }

    /// Asks it to end; kills it after `limit`, which it may move, or when `hurry` says so. What it started ends with it, in any
    /// case.
    pub(super) async fn stop(&self, limit: Duration, hurry: &CancellationToken) -> Stopped {
        let begun = Instant::now();
        self.handle.terminate();
        // Cancel-safe: all three only wait.
        let ended = tokio::select! {
            biased;
            how = self.wait() => Some(how),
            () = reports::deadline(&self.said, begun, limit) => None,
            () = hurry.cancelled() => None,
        };
        let killed = ended.is_none();
        if killed {
            self.handle.kill();
        }
        let left = self.end_rest().await;
        let how = match ended {
            Some(how) => how,
            None => self.wait().await,
        };
        Stopped { how, killed, left, after: begun.elapsed() }
    }

    /// Asks it to end and returns at once.
    pub(super) fn terminate(&self) {
        self.handle.terminate();
    }

    /// Ends it, and has the system keep what was in it.
    pub(super) fn abort(&self) {
        self.handle.abort();
    }

    /// Ends it and returns at once.
    pub(super) fn kill(&self) {
        self.handle.kill();
    }

    /// Tells it to read its settings again.
    pub(super) fn reload(&self, signal: ReloadSignal) {
        self.handle.send(match signal {
            ReloadSignal::Hup => Signal::HUP,
            ReloadSignal::Usr1 => Signal::USR1,
            ReloadSignal::Usr2 => Signal::USR2,
            ReloadSignal::Winch => Signal::WINCH,
        });
    }

    async fn kill_and_wait(&self) {
        self.handle.kill();
        self.end_rest().await;
        self.wait().await;
    }

    /// Ends all that it started, and itself. Returns how many others there were.
    pub(super) async fn end_rest(&self) -> usize {
        let carried = &self.carried;
        Descendants::of(self.group(), Descendants::mark(&carried.token), carried.pid, carried.start_ticks).end().await
    }

    /// Returns its control group.
    pub(super) fn group(&self) -> Option<Group> {
        self.carried.cgroup.as_deref().and_then(Group::found)
    }

    /// Records what has changed of it, for the next image.
    pub(super) fn record(&mut self, context: &RunContext, role: Role) {
        self.carried.role = role;
        {
            let said = self.said.borrow();
            self.carried.status.clone_from(&said.status);
            self.carried.watchdog_us = said.watchdog.map(|limit| u64::try_from(limit.as_micros()).unwrap_or(u64::MAX));
        }
        context.registry.put(self.carried.clone(), &self.descriptors, true);
    }

    /// Removes what is kept of a process that has ended, and of all that it started.
    pub(super) fn forget(&mut self, context: &RunContext) {
        self.tasks.abort_all();
        if let Some(group) = self.group() {
            group.remove();
        }
        context.registry.remove(&self.carried.id);
        let path = context.home.notify().join(format!("{}.sock", self.carried.id));
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a notify socket");
        }
    }

    /// Returns a failure with this reason, what more is known of it, and the last lines that the process printed.
    pub(super) async fn failure(&self, mut reason: String, context: &RunContext) -> Failure {
        if let Some(number) = self.said.borrow().errno.filter(|number| *number > 0) {
            reason.push_str(&format!("; it said why: {}", io::Error::from_raw_os_error(number)));
        }
        if self.group().is_some_and(|group| group.out_of_memory()) {
            reason.push_str("; it used more memory than its limit allows");
        }
        if self.ended.borrow().is_some() {
            // What it printed last may still lie in the pipes; a grandchild that keeps them open is not waited for.
            let mut done = self.output_done.clone();
            let drained = tokio::time::timeout(LAST_OUTPUT_WAIT, done.wait_for(|count| *count >= 2)).await;
            drop(drained);
        }
        let output = context.registry.logs.last_of(&self.carried.component, &self.carried.id, FAILURE_LINES);
        Failure { reason, output }
    }
}

/// How a process was stopped.
#[derive(Debug)]
pub(super) struct Stopped {
    /// How it ended.
    pub(super) how: String,
    /// Whether it had to be killed.
    pub(super) killed: bool,
    /// How many processes that it had started were left, and ended.
    pub(super) left: usize,
    /// How long it took.
    pub(super) after: Duration,
}

/// Waits until `ended` says how a process ended.
pub(super) async fn end_of(ended: &watch::Receiver<Option<String>>) -> String {
    match ended.clone().wait_for(Option::is_some).await {
        Ok(how) => how.clone().unwrap_or_default(),
        Err(_) => "ended".to_owned(),
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
