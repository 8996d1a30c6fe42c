//! The guard's loop: it sleeps until something happens, hears the runtime, collects the dead, and starts the next runtime.
//!
//! As long as nothing was ever started, what is wrong ends the guard with a status: whoever started it has to hear of it. From
//! then on nothing does. An error of any call leaves the components as they are and is tried again after a pause, and said once;
//! so is a runtime that ends by itself.

mod reports;
mod start;
mod trouble;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use refit_base::{Cause, Chain, Exit};
use refit_updater::attempt::{Ending, Step};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use semver::Version;

use super::backoff::{self, Backoff};
use super::child;
use super::deadlines::Deadlines;
use super::decisions::Decisions;
use super::inbox::Inbox;
use super::installed::Installed;
use super::manager::ServiceManager;
use super::output::Output;
use super::say::{Complaints, say};
use super::store::Store;
use super::{Given, GuardError, system};
use crate::handover::channel::{DEATH_LINE_CHARS_MAX, DEATH_LINES_MAX, Deaths, ToRuntime};
use crate::handover::{names, notify};
use crate::home::turn::Turn;
use crate::home::{Home, HomeLock};
use crate::process::installed;
use crate::process::resources::Resources;

/// How often a runtime that never became ready is started when it is ended by a signal. An exit status ends the guard at
/// once: whoever started it has to hear of a wrong configuration or an occupied port.
const FIRST_STARTS_MAX: u32 = 3;
/// How often the components' output is looked after while no runtime reads it.
const OUTPUT_LOOK: Duration = Duration::from_millis(250);
/// How often the service manager is told that the guard lives while no runtime does: its watchdog has seconds at least.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// After so long it is looked again whether the files of a release that does not start are damaged: it takes reading all of them.
const EXAMINE_AGAIN: Duration = Duration::from_secs(600);
/// So much of what a runtime said last is in the reason of its end: a line of an error, without what follows.
const REASON_CHARS_MAX: usize = 400;
/// How many descriptors are put aside for the end.
const RESERVE: u32 = 3;
/// How long the guard rests when it cannot even wait for events.
const BLIND_REST: Duration = Duration::from_millis(100);

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
    const fn step(self) -> Step {
        match self {
            Self::Unknown => Step::Trial,
            Self::Silent => Step::Exec,
            Self::Starting => Step::Starting,
            Self::Ready => Step::Probation,
        }
    }
}

/// Whether a runtime runs, and since when.
#[derive(Debug)]
enum Phase {
    Up { pid: Pid, since: Instant, deadlines: Deadlines },
    Pausing { until: Instant },
}

/// How a runtime ended.
#[derive(Debug, Clone, Copy)]
enum Ended {
    Status(WaitStatus),
    /// Nobody told: it is gone.
    Gone,
}

/// What follows the end of a runtime.
enum Next {
    End(Exit),
    StartNow,
    StartAt(Instant),
}

/// The guard.
pub(super) struct Guard {
    /// Descriptors of no use but for the end, when there may be no others: so many are needed to find the children.
    reserve: Vec<File>,
    home: Home,
    installed: Installed,
    journal: Option<PathBuf>,
    found: Resources,
    pub(super) manager: ServiceManager,
    store: Store,
    signals: SignalFd,
    inbox: Inbox,
    /// The guard's end of the channel, and the runtime's, which each runtime gets a duplicate of.
    channel: (OwnedFd, OwnedFd),
    pipe: OwnedFd,
    output: Output,
    decisions: Decisions,
    complaints: Complaints,
    backoff: Backoff,
    /// The runtimes of a good release that died one after the other.
    deaths: Option<Deaths>,
    /// The release that the runtime tries, or tried last.
    tried: Option<Version>,
    /// Its turn to start a runtime: not while a command changes what is started.
    turn: Turn,
    /// How many runtimes in a row did not become ready.
    failures: u32,
    /// Whether any runtime of this guard ever became ready.
    was_ready: bool,
    /// How far the image that runs has come.
    image: Image,
    /// Whether the runtime says that it ends because it was asked to.
    ends_as_asked: bool,
    /// What the system said to the runtime that runs, if it has told that.
    errno: Option<i32>,
    asked_to_end: u32,
    /// How many runtimes were started.
    starts: u32,
    /// When the service manager was last told that the guard lives while no runtime does.
    told_alive: Option<Instant>,
    /// The release whose files were last looked at because it did not start, and when.
    examined: Option<(Version, Instant)>,
}

impl Guard {
    /// Returns a guard that has started nothing.
    pub(super) fn new(given: Given, lock: &HomeLock, decisions: Decisions) -> Result<Self, GuardError> {
        let reserve = (0..RESERVE).map(|_| File::open("/dev/null")).collect::<io::Result<_>>();
        let reserve = reserve.map_err(system("open /dev/null"))?;
        let signals = listen_to_signals()?;
        nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from).map_err(system("become the subreaper"))?;
        let inbox = Inbox::bind(&given.home).map_err(system("bind the guard socket"))?;
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
        // The runtime reports here, too: see there.
        notify::identify(&channel.0).map_err(system("make the channel to the runtime"))?;
        let manager = ServiceManager::connect(given.manager.as_deref());
        Ok(Self {
            reserve,
            turn: Turn::new(given.home.clone()),
            failures: 0,
            home: given.home,
            installed: Installed::new(given.installed),
            journal: given.journal,
            found: given.found,
            manager,
            store,
            signals,
            inbox,
            channel,
            pipe,
            output: Output::new(reader),
            decisions,
            complaints: Complaints::default(),
            backoff: Backoff::default(),
            deaths: None,
            tried: None,
            was_ready: false,
            image: Image::Unknown,
            ends_as_asked: false,
            errno: None,
            asked_to_end: 0,
            starts: 0,
            told_alive: None,
            examined: None,
        })
    }

    /// Returns its home.
    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    /// Leaves the journal to the guard that comes next, also if somebody removed it.
    pub(super) fn leave_journal(&self) {
        if let Err(error) = self.decisions.put_back() {
            say(&format!("the update journal is gone and cannot be written back: {}", Chain(&error)));
        }
    }

    /// Returns whether it keeps a descriptor whose name begins so.
    pub(super) fn keeps(&self, prefix: &str) -> bool {
        self.store.has(prefix)
    }

    /// Gives up the descriptors that were put aside for the end.
    pub(super) fn give_up_reserve(&mut self) {
        self.reserve.clear();
    }

    /// Runs one runtime after the other until it is asked to end.
    ///
    /// # Errors
    /// The first start failed, and nothing serves.
    pub(super) fn supervise(&mut self) -> Result<Exit, GuardError> {
        let mut ending = self.ending("the appliance ended during the trial (power cut or kill)".to_owned());
        ending.cause = Cause::Machine;
        self.trouble_is_over(); // that of the guard before
        self.wait_for_turn();
        let mut phase = match self.start(&ending) {
            Ok(phase) => phase,
            Err(error) if self.starts == 0 && !self.serves() => return Err(error),
            Err(error) => self.pause(&error),
        };
        loop {
            self.wait(&mut phase);
            self.manager.flush();
            self.output.copy();
            self.read_reports(&mut phase);
            self.refresh();
            while let Some(signal) = self.next_signal() {
                if let Some(exit) = self.on_signal(signal, &mut phase) {
                    return Ok(exit);
                }
            }
            if let Some(ended) = self.reap(&phase) {
                self.output.copy();
                // What it said before its end may have come after the last look.
                self.read_reports(&mut phase);
                self.refresh();
                match self.on_runtime_end(ended, &phase, &mut ending) {
                    Next::End(exit) => return Ok(exit),
                    Next::StartNow => phase = self.start_or_pause(&ending),
                    Next::StartAt(until) => phase = Phase::Pausing { until },
                }
            }
            match &mut phase {
                Phase::Up { pid, deadlines, .. } => {
                    let pid = *pid;
                    if let Some(overdue) = deadlines.look(Instant::now()) {
                        say(&format!("the runtime {}", overdue.describe()));
                        self.kill(pid, Signal::SIGKILL);
                    }
                }
                Phase::Pausing { until } => {
                    let is_over = Instant::now() >= *until;
                    self.relieve_outputs();
                    self.tell_alive();
                    if is_over {
                        phase = self.start_or_pause(&ending);
                    }
                }
            }
        }
    }

    /// Looks at the journal, and remembers which release it tries.
    fn refresh(&mut self) {
        self.decisions.refresh();
        if let Some(tried) = self.decisions.on_trial() {
            self.tried = Some(tried.clone());
        }
    }

    /// Returns whether anything may serve that would end with the guard.
    fn serves(&self) -> bool {
        self.was_ready || self.store.has(names::INSTANCE)
    }

    /// Sleeps until something happens or a deadline comes.
    fn wait(&mut self, phase: &mut Phase) {
        let now = Instant::now();
        let sleep = match phase {
            Phase::Up { deadlines, .. } => deadlines.sleep(now),
            Phase::Pausing { until } => Some(until.saturating_duration_since(now).min(OUTPUT_LOOK)),
        };
        let timeout = sleep.map_or(PollTimeout::NONE, |sleep| {
            // Whole milliseconds: one less would be a look too early.
            PollTimeout::try_from(sleep + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let polled = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.inbox.descriptor(), PollFlags::POLLIN),
            PollFd::new(self.channel.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.output.descriptor(), PollFlags::POLLIN),
        ];
        let mut polled: Vec<PollFd<'_>> = polled.into_iter().chain(self.manager.wants_room()).collect();
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                // A limit of open files below three, or no memory: everything is looked at all the same.
                let text = format!("cannot wait for events: {}; looking again and again", io::Error::from(error));
                self.complaints.say("wait", &text);
                std::thread::sleep(BLIND_REST);
            }
        }
    }

    fn next_signal(&self) -> Option<Signal> {
        let info = self.signals.read_signal().ok().flatten()?;
        i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())
    }

    /// Passes a signal on. Returns the exit status if that ends the guard itself.
    fn on_signal(&mut self, signal: Signal, phase: &mut Phase) -> Option<Exit> {
        match (signal, phase) {
            (Signal::SIGTERM | Signal::SIGINT, Phase::Pausing { .. }) => {
                self.asked_to_end += 1;
                self.manager.tell("STOPPING=1", &[]);
                return Some(Exit::Done);
            }
            (Signal::SIGTERM | Signal::SIGINT, Phase::Up { pid, deadlines, .. }) => {
                self.asked_to_end += 1;
                deadlines.asked_to_end(Instant::now());
                let pid = *pid;
                self.kill(pid, if self.asked_to_end < 3 { Signal::SIGTERM } else { Signal::SIGKILL });
            }
            (Signal::SIGHUP | Signal::SIGUSR1 | Signal::SIGUSR2, Phase::Up { pid, .. }) => {
                let pid = *pid;
                self.kill(pid, signal);
            }
            // A command has changed what is started, or somebody what kept it from starting.
            (Signal::SIGHUP, Phase::Pausing { until }) => *until = Instant::now(),
            // SIGCHLD is for the reaping that follows every wait; a runtime that starts needs no other word.
            (_, Phase::Up { .. } | Phase::Pausing { .. }) => {}
        }
        None
    }

    /// Takes the signals that came. Returns whether everything is to end now: the first request asks, the second hurries those
    /// that no runtime stops, as the third does a runtime.
    pub(super) fn is_in_a_hurry(&mut self) -> bool {
        while let Some(signal) = self.next_signal() {
            self.asked_to_end += u32::from(matches!(signal, Signal::SIGTERM | Signal::SIGINT));
        }
        self.relieve_outputs();
        self.asked_to_end >= 2
    }

    /// Signals the runtime. One that is gone is found so by the reaping that follows.
    fn kill(&mut self, pid: Pid, signal: Signal) {
        match nix::sys::signal::kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                self.complaints.say("signal", &format!("cannot signal the runtime: {}", io::Error::from(error)))
            }
        }
    }

    /// Collects every child that ended. Returns how the runtime did if it is among them; the others are told to the runtime.
    fn reap(&self, phase: &Phase) -> Option<Ended> {
        let runtime = match phase {
            Phase::Up { pid, .. } => Some(*pid),
            Phase::Pausing { .. } => None,
        };
        let mut ended = None;
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => status,
                // One was collected whose status has no name here: it was ended by a real-time signal.
                Err(Errno::EINVAL) => continue,
                Err(_) => break,
            };
            match status.pid() {
                None => break, // nobody else has ended
                Some(pid) if Some(pid) == runtime => ended = Some(Ended::Status(status)),
                Some(pid) => self.tell_reaped(pid, status),
            }
        }
        if ended.is_some() {
            return ended;
        }
        match waitpid(runtime?, Some(WaitPidFlag::WNOHANG)) {
            Ok(status) if status.pid().is_some() => Some(Ended::Status(status)), // it ended just now
            // A child that is nobody's any more ended without a status.
            Err(Errno::ECHILD) => Some(Ended::Gone),
            Ok(_) | Err(_) => None,
        }
    }

    fn tell_reaped(&self, pid: Pid, status: WaitStatus) {
        // A full queue means a runtime that does not read: it will find the process gone by itself.
        self.tell_runtime(&ToRuntime::Reaped { pid: pid.as_raw(), how: child::describe(status) });
    }

    fn tell_runtime(&self, word: &ToRuntime) {
        let Ok(bytes) = serde_json::to_vec(word) else { return };
        let _ = rustix::net::send(&self.channel.0, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    fn on_runtime_end(&mut self, ended: Ended, phase: &Phase, ending: &mut Ending) -> Next {
        let (lived, killed) = match phase {
            Phase::Up { since, deadlines, .. } => (since.elapsed(), deadlines.killed()),
            Phase::Pausing { .. } => (Duration::ZERO, None),
        };
        let (how, code) = match ended {
            Ended::Status(status) => {
                let code = if let WaitStatus::Exited(_, code) = status { Some(Exit::from_code(code)) } else { None };
                (child::describe(status), code)
            }
            Ended::Gone => ("ended without a status".to_owned(), None),
        };
        if self.asked_to_end > 0 || self.ends_as_asked {
            // One that said nothing since its start could not do what was asked; the guard does it.
            let unable = self.serves() && self.image == Image::Silent;
            return Next::End(if unable { Exit::Done } else { code.unwrap_or(Exit::Failed) });
        }
        let how = killed.map_or(how, |overdue| overdue.describe());
        *ending = self.ending(format!("the runtime {how}"));
        ending.cause = match ended {
            Ended::Status(status) => child::cause(status, self.errno, killed.is_some()),
            Ended::Gone => Cause::Machine,
        };
        ending.output = self.output.take_lines();
        // The last thing that it said before it ended by itself is why.
        let said = ending.output.iter().rev().find_map(|line| line.strip_prefix("refit: ").map(str::to_owned));
        if let (Some(said), true) = (&said, code.is_some() && self.image != Image::Ready) {
            ending.reason = format!("{}: {}", ending.reason, said.chars().take(REASON_CHARS_MAX).collect::<String>());
        }
        if self.decisions.is_trial() {
            return Next::StartNow;
        }
        let is_answer = ending.cause == Cause::Machine || code.is_some_and(installed::is_answer);
        if self.image == Image::Silent && !is_answer && self.installed.has_failed() {
            say(&format!(
                "the runtime {how} and said nothing; the program {} is not used until it is another one",
                self.installed.path().display()
            ));
            return Next::StartNow;
        }
        if self.image != Image::Ready && self.leave_damaged() {
            return Next::StartNow;
        }
        if !self.serves() {
            match code {
                Some(exit) => return Next::End(exit),
                None if self.starts >= FIRST_STARTS_MAX => {
                    say(&format!("the runtime {how} at each of {} starts", self.starts));
                    return Next::End(Exit::Failed);
                }
                None => {}
            }
        }
        self.note_death(&how, lived, ending);
        if self.image != Image::Ready {
            self.note_trouble(match said.as_ref().or(ending.output.last()) {
                Some(said) => format!("the runtime {how}: {said}"),
                None => format!("the runtime {how}"),
            });
        }
        self.turn.give();
        let pause = self.backoff.after_end(lived, self.image == Image::Ready);
        say(&format!("the runtime {how}; starting it again in {} ms", pause.as_millis()));
        Next::StartAt(Instant::now() + pause)
    }

    /// Notes the death of a runtime of a good release, which `lived` so long. One whose trial has failed has only made way.
    fn note_death(&mut self, how: &str, lived: Duration, ending: &Ending) {
        let Some(release) = self.decisions.settled().map(|journal| journal.state.wanted().clone()) else { return };
        if self.tried.take().is_some_and(|tried| tried != release) {
            self.deaths = None;
            return;
        }
        let before = self.deaths.take().filter(|deaths| deaths.release == release && lived < backoff::FORGET);
        let at = refit_base::clock::rfc3339(ending.at);
        let lines = &ending.output[ending.output.len().saturating_sub(DEATH_LINES_MAX)..];
        self.deaths = Some(Deaths {
            count: before.as_ref().map_or(0, |deaths| deaths.count).saturating_add(1),
            release,
            how: how.to_owned(),
            cause: ending.cause,
            since: before.map_or_else(|| at.clone(), |deaths| deaths.since),
            at,
            output: lines.iter().map(|line| line.chars().take(DEATH_LINE_CHARS_MAX).collect()).collect(),
        });
    }

    /// Sees to it that no component hangs because nobody reads what it prints.
    fn relieve_outputs(&mut self) {
        if self.store.relieve_outputs() > 0 {
            self.complaints.say("output", "no runtime reads what the components print; a part of it is dropped");
        }
    }

    /// Tells the service manager that the guard lives while no runtime says so: else it would end everything that serves.
    fn tell_alive(&mut self) {
        if self.told_alive.is_none_or(|at| at.elapsed() >= ALIVE_EVERY) {
            self.told_alive = Some(Instant::now());
            self.manager.tell("WATCHDOG=1", &[]);
        }
    }

    fn ending(&self, reason: String) -> Ending {
        Ending::now(self.image.step(), reason).with_code("runtime_died")
    }
}

/// Blocks the signals that the guard acts on. Returns where it reads them.
fn listen_to_signals() -> Result<SignalFd, GuardError> {
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGCHLD,
        // A limit of the size of files: what is written then fails, and does not end the guard.
        Signal::SIGXFSZ,
    ] {
        mask.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)
        .map_err(io::Error::from)
        .map_err(system("block signals"))?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(io::Error::from)
        .map_err(system("receive signals"))
}
