//! One process of a component: how it is started, found again after an exec or a crash, heard, and ended.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use refit_base::{Cause, clock};
use refit_bus::Failure;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::context::RunContext;
use super::live_config;
use super::reports::{self, Heard, Reports, Said};
use super::senders::Senders;
use super::spawn::{Account, Given};
use super::variables::Variables;
use super::view::View;
use super::{data, limits, notify_socket, output, reload, spawn};
use crate::carry::{CarriedEnding, CarriedInstance, Descriptors, Role};
use crate::config::{Component, NotifyAccess, Signal};
use crate::handover::fd;
use crate::handover::notify;
use crate::logs::Stream;
use crate::process::cgroup::Group;
use crate::process::descendants::Descendants;
use crate::process::handle::Handle;
use crate::process::stat::{Stat, account_of};

/// How many of a process's last lines explain its failure.
const FAILURE_LINES: usize = 20;
/// How long to wait for the last output of a process that has ended: it lies in a pipe already.
const LAST_OUTPUT_WAIT: Duration = Duration::from_millis(500);
/// The pause between two records of what a process says of itself: each is a document, and it may say it a hundred times a second.
pub(super) const RECORD_PAUSE: Duration = Duration::from_millis(100);
/// How long a guard may take to say how a process ended that it had to collect.
const REAPED_WAIT: Duration = Duration::from_millis(500);

/// One process.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) carried: CarriedInstance,
    /// What it says of itself.
    pub(super) said: watch::Receiver<Said>,
    /// Since when this image hears it.
    pub(super) since: Instant,
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
        let failed = |what: &str, error: io::Error| {
            Failure::new(format!("cannot {what}: {error}")).with_cause(Cause::of(&error))
        };
        let mut carried = new_process(component, generation, fingerprint, restarts, context);
        let account = Account::of(component);
        let access = component.spawn.notify_access;
        data::make_all(component, account, &context.home.data())?;
        live_config::restore_running(context);
        let (notify, notify_path) = Self::bind_notify(context, &carried.id, account, access)
            .map_err(|error| failed("bind its notify socket", error))?;
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (stdout, stdout_end) = pipe().map_err(|error| failed("make a pipe", error))?;
        let (stderr, stderr_end) = pipe().map_err(|error| failed("make a pipe", error))?;
        let sockets = spawn::sockets(component, context, overlapping)
            .map_err(|error| failed("hand over its listeners", error))?;
        let group = context.cgroups.make(&carried.id);
        let limits = limits::apply(&component.spawn.limits, &context.cgroups, group.as_ref(), account.is_root());
        let variables = Variables::new(component, &carried.token, context);
        let begin = spawn::begin(component, &variables, context, group.as_ref(), &limits);
        let mut environment = spawn::environment(component, &variables, context);
        let channels = spawn::channels(component, &variables, notify_path.clone());
        environment.extend(channels.into_iter().map(|(key, value)| (key.into(), value)));
        let words = variables.words(&component.command);
        let given = Given { words, environment, outputs: [stdout_end, stderr_end], sockets };
        let started = match spawn::start(given, begin, context).await {
            Ok(started) => started,
            Err(failure) => {
                remove_place(context, &carried.id, group.as_ref(), notify_path.as_deref());
                return Err(failure);
            }
        };
        carried.pid = started.pid();
        let handle = Handle::open(carried.pid, None).map_err(|error| failed("watch the process", error))?;
        carried.start_ticks = Stat::of(carried.pid).map_err(|error| failed("watch the process", error))?.began;
        carried.cgroup = group.map(|group| group.path().to_owned());
        carried.account = Some(account.uid);
        (carried.limits, carried.notify_path) = (limits, notify_path);
        let descriptors = Arc::new(Descriptors { notify: notify.into(), stdout, stderr });
        let mut instance = Self::watch(carried, handle, descriptors, access, context)
            .map_err(|error| failed("watch the process", error))?;
        context.registry.put(instance.carried.clone(), &instance.descriptors, false);
        if let Some(report) = started.keep()
            && let Some(failure) = spawn::read_report(report).await
        {
            instance.condemn(Duration::ZERO, None, context);
            instance.kill_and_wait().await;
            instance.forget(context);
            return Err(failure);
        }
        Ok(instance)
    }

    /// Binds the socket of a new process. Returns its path, too, unless nothing is to be heard there.
    fn bind_notify(
        context: &RunContext,
        id: &str,
        account: Account,
        access: NotifyAccess,
    ) -> io::Result<(UnixDatagram, Option<PathBuf>)> {
        if access == NotifyAccess::None {
            return Ok((UnixDatagram::unbound()?, None));
        }
        let (socket, path) = notify_socket::bind(&context.home, id, account)?;
        Ok((socket, Some(path)))
    }

    /// Finds a process of an earlier image, of which those that `access` says may report.
    ///
    /// # Errors
    /// It has ended meanwhile: what is left of it.
    pub(super) fn adopt(
        mut carried: CarriedInstance,
        descriptors: Descriptors,
        access: NotifyAccess,
        context: &RunContext,
    ) -> Result<Self, Lost> {
        let watch = |carried: &mut CarriedInstance| {
            let handle = Handle::open(carried.pid, Some(carried.start_ticks))?;
            if carried.account.is_none() {
                // An older release told this one of it, and may have let every account report.
                let account = account_of(carried.pid)?;
                carried.account = Some(account);
                carried.notify_path = notify_socket::find(&context.home, &carried.id);
                if let Some(path) = &carried.notify_path
                    && let Err(error) = notify_socket::close_to_others(path, account)
                {
                    tracing::warn!(instance.id = carried.id, %error, "cannot close a notify socket to other accounts");
                }
            }
            Self::watch(carried.clone(), handle, Arc::new(descriptors), access, context)
        };
        match watch(&mut carried) {
            Ok(instance) => {
                context.registry.put(instance.carried.clone(), &instance.descriptors, true);
                Ok(instance)
            }
            Err(error) => {
                tracing::warn!(instance.id = carried.id, %error, "a process of the image before is gone");
                Err(Lost::of(carried))
            }
        }
    }

    /// Begins to hear a process.
    fn watch(
        carried: CarriedInstance,
        handle: Handle,
        descriptors: Arc<Descriptors>,
        access: NotifyAccess,
        context: &RunContext,
    ) -> io::Result<Self> {
        let since = Instant::now();
        let (said_sender, said) = watch::channel(Said::carried(&carried));
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
        notify::identify(&socket)?; // an older release did not ask for that
        let senders = Senders::new(access, carried.account.unwrap_or_default(), carried.pid, descendants_of(&carried));
        let heard = Heard { component: carried.component.clone(), id: carried.id.clone(), senders };
        let mut reports = Reports::new(fd::watch(socket)?, said_sender, heard);
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
        Ok(Self { carried, said, since, ended, handle, descriptors, output_done, tasks })
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

    /// Writes down for the next image that the process is about to be told to end, by `reason` if the component is wanted, and that
    /// it may take `limit`. For the moment before it is told.
    pub(super) fn condemn(&mut self, limit: Duration, reason: Option<&str>, context: &RunContext) {
        let by_ns = clock::monotonic_ns().saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        self.carried.ending = Some(CarriedEnding { by_ns, reason: reason.map(str::to_owned) });
        self.record(context);
    }

    /// Returns how long it may still take to end: what an earlier image has left it, or else `limit`.
    pub(super) fn time_left(&self, limit: Duration) -> Duration {
        let ending = self.carried.ending.as_ref();
        ending.map_or(limit, |ending| Duration::from_nanos(ending.by_ns.saturating_sub(clock::monotonic_ns())))
    }

    /// Asks it to end, which the next image will know. It may take `limit`.
    pub(super) fn tell_to_end(&mut self, limit: Duration, context: &RunContext) {
        self.condemn(limit, None, context);
        self.terminate();
    }

    /// Asks it to end and [waits](Self::see_end) until it has.
    pub(super) async fn stop(&mut self, limit: Duration, hurry: &CancellationToken, context: &RunContext) -> Stopped {
        self.tell_to_end(limit, context);
        self.see_end(limit, hurry, context).await
    }

    /// Waits until a process that was told to end has ended; kills it after `limit`, which it may move, or when `hurry` says so.
    /// What it started ends with it, in any case.
    pub(super) async fn see_end(&self, limit: Duration, hurry: &CancellationToken, context: &RunContext) -> Stopped {
        let begun = Instant::now();
        let ended = {
            let recorded = self.carried.ending.as_ref().map_or(0, |ending| ending.by_ns);
            // Cancel-safe: all four only wait, or write down what they have seen.
            tokio::select! {
                biased;
                how = self.wait() => Some(how),
                () = reports::deadline(&self.said, begun, begun, limit) => None,
                () = hurry.cancelled() => None,
                never = self.record_more_time(begun, recorded, context) => match never {},
            }
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

    /// Writes down how much more time the process asks for while it ends, after `begun`; now it may end at `recorded`.
    async fn record_more_time(&self, begun: Instant, mut recorded: u64, context: &RunContext) -> Infallible {
        /// What is less is not worth a document.
        const STEP: Duration = Duration::from_secs(1);
        let mut said = self.said.clone();
        loop {
            let extended = said.borrow_and_update().extended;
            if let Some((at, until)) = extended
                && at >= begun
            {
                let left = until.saturating_duration_since(Instant::now()).as_nanos();
                let by_ns = clock::monotonic_ns().saturating_add(u64::try_from(left).unwrap_or(u64::MAX));
                if by_ns > recorded.saturating_add(STEP.as_secs() * 1_000_000_000) {
                    recorded = by_ns;
                    let carried =
                        CarriedInstance { ending: Some(CarriedEnding { by_ns, reason: None }), ..self.carried.clone() };
                    context.registry.put(carried, &self.descriptors, true);
                }
            }
            if said.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Shows what is known of a component's process, if it has one.
    pub(super) fn show(instance: Option<&Self>, view: &mut View) {
        view.pid = instance.map(Self::pid);
        view.release = instance.map(|instance| instance.carried.release.clone());
        view.started_at = instance.map(|instance| instance.carried.started_at.clone());
        view.status = instance.and_then(|instance| instance.said.borrow().status.clone());
        view.announced = instance.and_then(|instance| instance.said.borrow().announced);
        if let Some(instance) = instance {
            view.limits.clone_from(&instance.carried.limits);
            view.generation = instance.carried.generation;
        }
    }

    /// Asks it to end and returns at once.
    pub(super) fn terminate(&self) {
        self.handle.send(reload::number(self.carried.stop_signal));
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
    pub(super) fn reload(&self, signal: Signal) {
        self.handle.send(reload::number(signal));
    }

    async fn kill_and_wait(&self) {
        self.handle.kill();
        self.end_rest().await;
        self.wait().await;
    }

    /// Ends all that it started, and itself. Returns how many others there were.
    pub(super) async fn end_rest(&self) -> usize {
        descendants_of(&self.carried).end().await
    }

    /// Returns its control group.
    pub(super) fn group(&self) -> Option<Group> {
        group_of(&self.carried)
    }

    /// Records what has changed of it, for the next image.
    pub(super) fn record(&mut self, context: &RunContext) {
        self.carried.role = if self.carried.ending.is_some() { Role::Outgoing } else { Role::Current };
        self.said.borrow().record_in(&mut self.carried);
        context.registry.put(self.carried.clone(), &self.descriptors, true);
    }

    /// Returns whether it has said something that is not recorded.
    pub(super) fn has_news(&self) -> bool {
        self.said.borrow().is_news_to(&self.carried)
    }

    /// Records again and again what it says, while it starts.
    pub(super) async fn record_news(&self, context: &RunContext) -> Infallible {
        let (mut said, mut carried) = (self.said.clone(), self.carried.clone());
        loop {
            let has_news = {
                let said = said.borrow_and_update();
                let has_news = said.is_news_to(&carried);
                if has_news {
                    said.record_in(&mut carried);
                }
                has_news
            };
            if has_news {
                context.registry.put(carried.clone(), &self.descriptors, true);
                tokio::time::sleep(RECORD_PAUSE).await;
            }
            if said.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Removes what is kept of a process that has ended, and of all that it started.
    pub(super) fn forget(&mut self, context: &RunContext) {
        self.tasks.abort_all();
        forget(&self.carried, context);
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
        let cause = self.said.borrow().errno.map_or(Cause::Release, Cause::of_errno);
        Failure { output, cause, ..Failure::new(reason) }
    }
}

/// A process of an earlier image that has ended since.
#[derive(Debug)]
pub(super) struct Lost(Box<CarriedInstance>);

impl Lost {
    /// Returns what is left of a process that an earlier image tells of.
    pub(super) fn of(carried: CarriedInstance) -> Self {
        Self(Box::new(carried))
    }

    /// Ends what it started, and removes what is kept of it.
    pub(super) async fn forget(self, context: &RunContext) {
        let left = descendants_of(&self.0).end().await;
        if left > 0 {
            tracing::info!(component.name = self.0.component, left, "what it had started was ended");
        }
        forget(&self.0, context);
    }
}

impl Lost {
    /// Returns what it was started from, as a digest; nothing if it was told to end, or another had taken its place.
    pub(super) fn fingerprint(&self) -> &str {
        let is_current = self.0.ending.is_none() && self.0.role == Role::Current;
        if is_current { &self.0.fingerprint } else { "" }
    }

    /// Returns when it was started.
    pub(super) fn started_at(&self) -> &str {
        &self.0.started_at
    }

    /// Returns how it ended, if the guard has collected it.
    pub(super) async fn how(&self, context: &RunContext) -> Option<String> {
        let (pid, mut reaped) = (self.0.pid, context.reaped.clone());
        let known = tokio::time::timeout(REAPED_WAIT, reaped.wait_for(|all| all.contains_key(&pid))).await;
        known.ok()?.ok()?.get(&pid).cloned()
    }
}

/// Returns what is known of a process of `component` before it is started.
fn new_process(
    component: &Component,
    generation: u32,
    fingerprint: &str,
    restarts: u32,
    context: &RunContext,
) -> CarriedInstance {
    CarriedInstance {
        id: format!("{}-{generation}", component.name),
        component: component.name.clone(),
        generation,
        pid: 0,
        start_ticks: 0,
        token: hex::encode(rand::random::<[u8; 16]>()),
        release: context.version.clone(),
        fingerprint: fingerprint.to_owned(),
        started_at: clock::stamp(),
        ready: false,
        status: None,
        role: Role::Current,
        restarts,
        cgroup: None,
        limits: BTreeMap::new(),
        watchdog_us: None,
        extended_until_ns: None,
        announced: None,
        errno: None,
        account: None,
        notify_path: None,
        ending: None,
        stop_signal: component.spawn.stop_signal,
        listeners: Some(component.listeners.clone()),
    }
}

/// Returns what a process and all that it starts are known by.
fn descendants_of(carried: &CarriedInstance) -> Descendants {
    Descendants::of(group_of(carried), Descendants::mark(&carried.token), carried.pid, carried.start_ticks)
}

fn group_of(carried: &CarriedInstance) -> Option<Group> {
    carried.cgroup.as_deref().and_then(Group::found)
}

/// Removes what is kept of a process that has ended.
fn forget(carried: &CarriedInstance, context: &RunContext) {
    let path = carried.notify_path.clone().or_else(|| notify_socket::find(&context.home, &carried.id));
    context.registry.remove(&carried.id);
    remove_place(context, &carried.id, group_of(carried).as_ref(), path.as_deref());
}

/// Removes the control group of the process `id` and its notify socket at `path`.
fn remove_place(context: &RunContext, id: &str, group: Option<&Group>, path: Option<&Path>) {
    if let Some(group) = group {
        group.remove();
    }
    if let Some(path) = path
        && let Err(error) = notify_socket::remove_socket(&context.home, id, path)
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a notify socket");
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
