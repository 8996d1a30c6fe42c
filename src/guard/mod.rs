//! The guard: the parent that outlives every runtime. One thread, no async runtime.
//!
//! It owns the home's lock, a store of descriptors, and the decision which release runs: it asks
//! [`select_release`](refit_updater::journal::select_release) before each start. It binds no network address, opens no
//! package and knows no component; being the subreaper it only collects what dies, tells the runtime, and at the very end leaves no
//! process behind. To the runtime it is a service manager (readiness, status, watchdog, descriptor store); to systemd it is a
//! `Type=notify` service.

mod child;
mod orphans;
mod store;

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use refit_base::{Cause, Chain, Exit, Report, Reported};
use refit_updater::attempt::Ending;
use refit_updater::journal::{self, JournalError, State};
use refit_updater::{modes, spare};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use crate::handover::reaped::Reaped;
use crate::handover::{Named, names, notify};
use crate::home::{Home, HomeError, HomeLock, PidFile};
use crate::process::cgroup;
use child::Output;
use store::Store;

/// A runtime that says nothing for so long after its start, before it named a time of its own, hangs.
const FIRST_WORD_MAX: Duration = Duration::from_secs(60);
/// After the first request to end, the runtime has so long: its own deadlines are far shorter.
const END_MAX: Duration = Duration::from_secs(120);
/// How long a report may wait for a place in the service manager's queue: the guard has others to look after.
const MANAGER_WAIT_MAX: Duration = Duration::from_millis(200);
/// The first pause before a runtime that crashed is started again; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest pause between two starts.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A runtime that ran so long had no bad start: the pauses begin anew.
const BACKOFF_FORGET: Duration = Duration::from_secs(60);
/// How often a runtime that never became ready is started when it is ended by a signal. An exit status ends the guard at
/// once: whoever started it has to hear of a wrong configuration or an occupied port.
const FIRST_STARTS_MAX: u32 = 3;

/// What the guard cannot go on from.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The home cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The system refused something that every start needs.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
}

impl Reported for GuardError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Home(error) => error.report(),
            Self::Journal(error) => error.report(),
            Self::System { .. } => {
                Report::new("system_refused", Exit::Failed, "check the limits of the system; nothing was changed")
            }
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> GuardError {
    move |source| GuardError::System { what, source }
}

/// What the guard is given by whoever starts it.
#[derive(Debug)]
pub struct Given {
    /// The home.
    pub home: Home,
    /// This program's file: the runtime of a release that brings none.
    pub installed: PathBuf,
    /// Descriptors from a service manager.
    pub descriptors: Vec<Named>,
    /// The service manager's `NOTIFY_SOCKET`.
    pub manager: Option<PathBuf>,
    /// Whether to end when the process that started this one ends.
    pub with_parent: bool,
    /// The journal's socket, if standard error goes to the journal.
    pub journal: Option<PathBuf>,
}

/// Runs the appliance until it is asked to end. Returns the exit status.
///
/// # Errors
/// Nothing could be started; nothing is left running.
pub fn run(given: Given) -> Result<Exit, GuardError> {
    let home = &given.home;
    if !home.path().is_dir() {
        return Err(HomeError::Missing { home: home.path().to_owned() }.into());
    }
    home.make_passable();
    if !journal::exists(home.path()) {
        return Err(HomeError::Empty { home: home.path().to_owned() }.into());
    }
    home.repair(say);
    home.check_owner()?;
    journal::load(home.path())?;
    let lock = HomeLock::acquire(home, std::process::id(), || say("waiting for the previous runtime to end"))?;
    if given.with_parent {
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)
            .map_err(io::Error::from)
            .map_err(system("watch the parent process"))?;
    }
    if let Err(error) = spare::keep(home.path()) {
        say(&format!("no blocks can be put aside for a full disk: {error}"));
    }
    let _pid_file = PidFile::write(home, std::process::id(), &lock)?;
    let mut guard = Guard::new(given, &lock)?;
    if !guard.store.has(names::STATE) {
        orphans::end_all(&guard.home);
    }
    let exit = guard.supervise();
    orphans::end_children();
    cgroup::remove_all(guard.home.path());
    for name in ["guard.sock", "refit.sock", "bus.sock"] {
        if let Err(error) = std::fs::remove_file(guard.home.run().join(name))
            && error.kind() != io::ErrorKind::NotFound
        {
            say(&format!("cannot remove run/{name}: {error}"));
        }
    }
    exit
}

/// Prints one line for whoever reads the guard's own output.
fn say(text: &str) {
    use io::Write;
    drop(writeln!(io::stderr().lock(), "refit: {text}"));
}

/// How far a process image has come, as far as the guard has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Image {
    /// None was seen by this guard.
    Unknown,
    /// It was executed and has said nothing.
    Silent,
    /// It lives.
    Starting,
    /// It serves.
    Ready,
}

impl Image {
    /// Returns the step of an update that it is in.
    const fn step(self) -> &'static str {
        match self {
            Self::Unknown => "trial",
            Self::Silent => "exec",
            Self::Starting => "starting",
            Self::Ready => "probation",
        }
    }
}

/// Whether a runtime runs, and since when.
#[derive(Debug)]
enum Phase {
    Up { pid: Pid, since: Instant, alive_until: Option<Instant> },
    Pausing { until: Instant },
}

struct Guard {
    home: Home,
    installed: PathBuf,
    journal: Option<PathBuf>,
    manager: Option<UnixDatagram>,
    store: Store,
    signals: SignalFd,
    reports: UnixDatagram,
    /// The guard's end of the channel, and the runtime's, which each runtime gets a duplicate of.
    channel: (OwnedFd, OwnedFd),
    pipe: OwnedFd,
    output: Output,
    watchdog: Option<Duration>,
    /// Whether any runtime of this guard ever became ready.
    was_ready: bool,
    /// How far the image that runs has come.
    image: Image,
    /// Whether the runtime says that it ends because it was asked to.
    ends_as_asked: bool,
    /// What the system said to the runtime that runs, if it has told that.
    errno: Option<i32>,
    /// Whether the guard ended the runtime because it did not report.
    is_hung: bool,
    asked_to_end: u32,
    end_by: Option<Instant>,
    starts: u32,
}

impl Guard {
    fn new(given: Given, lock: &HomeLock) -> Result<Self, GuardError> {
        let mut mask = SigSet::empty();
        for signal in
            [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD]
        {
            mask.add(signal);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)
            .map_err(io::Error::from)
            .map_err(system("block signals"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(io::Error::from)
            .map_err(system("receive signals"))?;
        nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from).map_err(system("become the subreaper"))?;

        let address = given.home.guard_socket();
        remove_stale(&address).map_err(system("remove the old guard socket"))?;
        let bind = |path: &Path| {
            let socket = UnixDatagram::bind(path)?;
            std::fs::set_permissions(path, Permissions::from_mode(modes::of("run/guard.sock"))).map(|()| socket)
        };
        let reports =
            crate::handover::unix::with_short_path(&address, bind).map_err(system("bind the guard socket"))?;
        reports.set_nonblocking(true).map_err(system("set up the guard socket"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let channel = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(io::Error::from)
            .map_err(system("make the channel to the runtime"))?;
        let (reader, pipe) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(system("make a pipe"))?;
        rustix::io::ioctl_fionbio(&reader, true).map_err(io::Error::from).map_err(system("set up a pipe"))?;
        let mut store = Store::new(given.descriptors);
        for stale in [names::GUARD, names::LOCK] {
            store.remove(stale);
        }
        store.keep(names::LOCK, lock.share().map_err(system("share the lock"))?);
        let connect = |address: &Path| notify::connect(address, MANAGER_WAIT_MAX);
        let manager = given.manager.as_deref().and_then(|address| match connect(address) {
            Ok(socket) => Some(socket),
            Err(error) => {
                say(&format!("cannot reach the service manager: {error}"));
                None
            }
        });
        Ok(Self {
            home: given.home,
            installed: given.installed,
            journal: given.journal,
            manager,
            store,
            signals,
            reports,
            channel,
            pipe,
            output: Output::new(reader),
            watchdog: None,
            was_ready: false,
            image: Image::Unknown,
            ends_as_asked: false,
            errno: None,
            is_hung: false,
            asked_to_end: 0,
            end_by: None,
            starts: 0,
        })
    }

    fn supervise(&mut self) -> Result<Exit, GuardError> {
        let mut ending = self.ending("the appliance ended during the trial (power cut or kill)".to_owned());
        ending.cause = Cause::Machine;
        let mut phase = self.start(&ending)?;
        loop {
            self.wait(&phase)?;
            self.output.copy();
            self.read_reports(&mut phase);
            while let Ok(Some(info)) = self.signals.read_signal() {
                let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
                if let Some(exit) = signal.and_then(|signal| self.on_signal(signal, &phase)) {
                    return Ok(exit);
                }
            }
            if let Some(status) = self.reap(&phase) {
                self.output.copy();
                // What it said before its end may have come after the last look.
                self.read_reports(&mut phase);
                let since = match phase {
                    Phase::Up { since, .. } => since,
                    Phase::Pausing { until } => until,
                };
                match self.on_runtime_end(status, since, &mut ending)? {
                    Next::End(exit) => return Ok(exit),
                    Next::StartNow => phase = self.start(&ending)?,
                    Next::StartAt(until) => phase = Phase::Pausing { until },
                }
            }
            self.check_deadlines(&phase);
            if let Phase::Pausing { until } = phase
                && Instant::now() >= until
            {
                phase = self.start(&ending)?;
            }
        }
    }

    /// Selects the release, journals the start, and starts its runtime.
    fn start(&mut self, ending: &Ending) -> Result<Phase, GuardError> {
        let Some(journal) = journal::load(self.home.path())? else {
            return Err(HomeError::Empty { home: self.home.path().to_owned() }.into());
        };
        let (version, changed) = journal::select_release(&journal, ending);
        if let Some(changed) = changed {
            if let (State::Trial { next, .. }, State::Idle { .. }) = (&journal.state, &changed.state) {
                say(&format!("release {next} failed its trial: {}; going back to {version}", ending.reason));
            }
            journal::store(self.home.path(), &changed)?;
        }
        let program = child::program(&self.home, &version, &self.installed);
        let mut descriptors = self.store.duplicate().map_err(system("duplicate the stored descriptors"))?;
        let channel = self.channel.1.try_clone().map_err(system("duplicate the channel"))?;
        descriptors.push(Named { name: names::GUARD.to_owned(), descriptor: channel });
        self.starts += 1;
        self.ends_as_asked = false;
        self.errno = None;
        self.is_hung = false;
        self.image = Image::Silent;
        self.watchdog = None;
        let pid = child::start(&program, &self.home, &self.installed, descriptors, &self.pipe, self.journal.as_deref())
            .map_err(system("start the runtime"))?;
        let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(0));
        let now = Instant::now();
        Ok(Phase::Up { pid, since: now, alive_until: Some(now + FIRST_WORD_MAX) })
    }

    /// Sleeps until something happens or a deadline comes.
    fn wait(&self, phase: &Phase) -> Result<(), GuardError> {
        let next = match phase {
            Phase::Up { alive_until, .. } => [*alive_until, self.end_by].into_iter().flatten().min(),
            Phase::Pausing { until } => Some(*until),
        };
        let timeout = match next {
            None => PollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut polled = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.reports.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.output.descriptor(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(system("wait for events")(error.into())),
        }
    }

    fn read_reports(&mut self, phase: &mut Phase) {
        loop {
            let mut report = match notify::receive(self.reports.as_fd()) {
                Ok(report) => report,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return say(&format!("cannot read the runtime's report: {error}")),
            };
            let descriptors = std::mem::take(&mut report.descriptors);
            self.pass_on(&report, &descriptors);
            let name = report.get("FDNAME").unwrap_or("stored").to_owned();
            if report.get("FDSTORE") == Some("1") {
                for descriptor in descriptors {
                    if !self.store.keep(&name, descriptor) {
                        say(&format!("the descriptor store is full; {name} would not survive a crash"));
                    }
                }
            }
            if report.get("FDSTOREREMOVE") == Some("1") {
                self.store.remove(&name);
            }
            if let Some(micros) = report.get("WATCHDOG_USEC").and_then(|text| text.parse().ok()) {
                self.watchdog = (micros > 0).then(|| Duration::from_micros(micros));
                self.image = Image::Starting; // the first thing that an image says
            }
            if report.get("READY") == Some("1") {
                self.was_ready = true;
                self.image = Image::Ready;
            }
            if report.get("RELOADING") == Some("1") {
                self.image = Image::Silent;
            }
            if let Some(errno) = report.get("ERRNO").and_then(|text| text.parse().ok()) {
                self.errno = Some(errno);
            }
            if report.get("STOPPING") == Some("1") {
                self.ends_as_asked = true;
            }
            if let Phase::Up { alive_until, .. } = phase
                && (report.get("WATCHDOG") == Some("1") || report.get("WATCHDOG_USEC").is_some())
            {
                *alive_until = self.watchdog.map(|limit| Instant::now() + limit);
            }
        }
    }

    /// Passes on what a service manager above is to know: readiness, status, watchdog, and the descriptors to keep.
    fn pass_on(&self, report: &notify::Notification, descriptors: &[OwnedFd]) {
        let Some(manager) = &self.manager else { return };
        let lines: Vec<String> = report
            .fields
            .iter()
            // What is between the guard and the runtime means nothing, or something else, above.
            .filter(|(key, _)| key != "WATCHDOG_USEC" && key != "RELOADING")
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if lines.is_empty() {
            return;
        }
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if let Err(error) = notify::send(manager, &lines.join("\n"), &borrowed) {
            say(&format!("cannot report to the service manager: {error}"));
        }
    }

    /// Passes a signal on. Returns the exit status if that ends the guard itself.
    fn on_signal(&mut self, signal: Signal, phase: &Phase) -> Option<Exit> {
        if matches!(signal, Signal::SIGTERM | Signal::SIGINT) {
            self.asked_to_end += 1;
            match phase {
                Phase::Pausing { .. } => return Some(Exit::Done),
                Phase::Up { pid, .. } if self.asked_to_end < 3 => {
                    self.end_by.get_or_insert_with(|| Instant::now() + END_MAX);
                    self.kill(*pid, Signal::SIGTERM);
                }
                Phase::Up { pid, .. } => self.kill(*pid, Signal::SIGKILL),
            }
        } else if signal != Signal::SIGCHLD
            && let Phase::Up { pid, .. } = phase
        {
            self.kill(*pid, signal); // SIGCHLD is for the reaping that follows every wait
        }
        None
    }

    fn kill(&self, pid: Pid, signal: Signal) {
        if let Err(error) = nix::sys::signal::kill(pid, signal) {
            say(&format!("cannot signal the runtime: {error}"));
        }
    }

    /// Collects every child that ended. Returns the runtime's status if it is among them; the others are told to the runtime.
    fn reap(&self, phase: &Phase) -> Option<WaitStatus> {
        let runtime = match phase {
            Phase::Up { pid, .. } => Some(*pid),
            Phase::Pausing { .. } => None,
        };
        let mut ended = None;
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            match status.pid() {
                None => break, // nobody else has ended
                Some(pid) if Some(pid) == runtime => ended = Some(status),
                Some(pid) => self.tell_reaped(pid, status),
            }
        }
        ended
    }

    fn tell_reaped(&self, pid: Pid, status: WaitStatus) {
        let reaped = Reaped { pid: pid.as_raw(), how: child::describe(status) };
        let Ok(bytes) = serde_json::to_vec(&reaped) else { return };
        // A full queue means a runtime that does not read: it will find the process gone by itself.
        let _ = rustix::net::send(&self.channel.0, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    fn on_runtime_end(&mut self, status: WaitStatus, since: Instant, ending: &mut Ending) -> Result<Next, GuardError> {
        let how = child::describe(status);
        let code = if let WaitStatus::Exited(_, code) = status { Some(Exit::from_code(code)) } else { None };
        if self.asked_to_end > 0 || self.ends_as_asked {
            return Ok(Next::End(code.unwrap_or(Exit::Failed)));
        }
        let journal = journal::load(self.home.path())?;
        *ending = self.ending(format!("the runtime {how}"));
        ending.cause = child::cause(status, self.errno, self.is_hung);
        ending.output = self.output.take_lines();
        if matches!(journal.map(|journal| journal.state), Some(State::Trial { .. })) {
            return Ok(Next::StartNow);
        }
        if !self.was_ready {
            match code {
                Some(exit) => return Ok(Next::End(exit)),
                None if self.starts >= FIRST_STARTS_MAX => {
                    say(&format!("the runtime {how} at each of {} starts", self.starts));
                    return Ok(Next::End(Exit::Failed));
                }
                None => {}
            }
        }
        if since.elapsed() >= BACKOFF_FORGET {
            self.starts = 1;
        }
        let pause = BACKOFF_MIN.saturating_mul(1 << self.starts.saturating_sub(1).min(16)).min(BACKOFF_MAX);
        // The first crash costs nobody a wait: most are the only one.
        let pause = if self.starts <= 1 { Duration::ZERO } else { pause };
        say(&format!("the runtime {how}; starting it again in {} ms", pause.as_millis()));
        Ok(Next::StartAt(Instant::now() + pause))
    }

    /// Ends a runtime that hangs, or that does not end.
    fn check_deadlines(&mut self, phase: &Phase) {
        let Phase::Up { pid, alive_until, .. } = phase else { return };
        let now = Instant::now();
        if alive_until.is_some_and(|at| now >= at) {
            say("the runtime has not reported within its watchdog time; ending it");
            self.is_hung = true;
            self.kill(*pid, Signal::SIGKILL);
        } else if self.end_by.is_some_and(|at| now >= at) {
            say("the runtime has not ended in time; ending it");
            self.kill(*pid, Signal::SIGKILL);
        }
    }

    fn ending(&self, reason: String) -> Ending {
        Ending::now(self.image.step(), reason)
    }
}

/// What follows the end of a runtime.
enum Next {
    End(Exit),
    StartNow,
    StartAt(Instant),
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs the guard and prints why it could not run. Returns the exit status.
pub fn main(given: Given) -> Exit {
    match run(given) {
        Ok(exit) => exit,
        Err(error) => {
            say(&format!("{}; {}", Chain(&error), error.remedy()));
            error.exit()
        }
    }
}
