//! Starts a program in a child that shares this process's memory until the exec: with [`fd`](super::fd) the only `unsafe` code of the
//! crate.
//!
//! A fork copies the tables of a whole runtime's memory only to throw them away, and the standard library has to fork wherever a
//! descriptor has a number of its own. posix_spawn(3) forks nothing, but cannot write the child's own PID into its environment, enter a
//! control group or set a limit: a second program would have to, which costs more than the fork. So this is what posix_spawn does inside
//! (`CLONE_VM | CLONE_VFORK`), with these steps in it. The calling thread waits until the exec; the other threads go on.
//!
//! The child owns nothing: what it needs was made before, and it only calls the system. It takes no memory and no lock, for another
//! thread may hold that, and it runs no handler of this process. What needs more (becoming another account asks name services, and
//! would let that account signal a process that shares this one's memory) is for a program of its own.

#![expect(unsafe_code, reason = "what a child may do that shares this process's memory cannot be said in types")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, Ordering};

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, Rlimit, getpid, getppid, getrlimit, setrlimit};

use super::fd::{self, FIRST};

/// The child's stack: its calls are few and not deep.
const STACK_BYTES: usize = 64 << 10;
/// The most digits of a PID.
const PID_DIGITS: usize = 10;
/// Runs a script that does not say what runs it, as execvp(3) does.
const SHELL: &CStr = c"/bin/sh";
/// Where a process says its place in the order of the OOM killer.
const OOM_SCORE: &CStr = c"/proc/self/oom_score_adj";

/// A program, and all that it begins with.
#[derive(Debug)]
pub struct Plan {
    /// Where it may be, the first place first.
    pub places: Vec<CString>,
    /// Its arguments, the name first.
    pub arguments: Vec<CString>,
    /// Its environment, `NAME=value`.
    pub environment: Vec<CString>,
    /// The variables besides that have its own PID.
    pub own_pid: Vec<&'static str>,
    /// Its standard streams.
    pub streams: [OwnedFd; 3],
    /// Its descriptors from [`FIRST`] on.
    pub descriptors: Vec<OwnedFd>,
    /// The state that it begins in.
    pub state: State,
}

/// The state that a program begins in. What is `None` is as in this process.
#[derive(Debug, Default)]
pub struct State {
    /// Whether it begins a session, and with it a process group, of its own.
    pub session: bool,
    /// The file through which it enters its control group.
    pub cgroup: Option<CString>,
    /// The mode bits that new files do not get.
    pub umask: Option<u32>,
    /// Its place in the order of the OOM killer, in digits. One that the system refuses is passed over.
    pub oom_score: Option<String>,
    /// The soft limit of open files, as far as the hard one allows. One that the system refuses is passed over.
    pub soft_files: Option<u64>,
    /// How many files it may open.
    pub files: Option<u64>,
    /// How many processes its account may have.
    pub processes: Option<u64>,
    /// The working directory.
    pub directory: Option<CString>,
    /// How many bytes of addresses it may use; a lower limit is not lifted.
    pub memory: Option<u64>,
    /// Whether set-user-ID programs give it no rights.
    pub no_new_privs: bool,
}

/// What could not be done in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A process could not be had.
    Start,
    /// It could not begin a session.
    Session,
    /// It could not enter its control group.
    Cgroup,
    /// Its open files could not be limited.
    Files,
    /// Its processes could not be limited.
    Processes,
    /// It could not change to its directory.
    Directory,
    /// Its memory could not be limited.
    Memory,
    /// It could not give up new rights.
    NoNewPrivs,
    /// Its descriptors could not be put in their places.
    Descriptors,
    /// Signals could not be let through.
    Signals,
    /// The program could not be executed.
    Execute,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Start,
        Self::Session,
        Self::Cgroup,
        Self::Files,
        Self::Processes,
        Self::Directory,
        Self::Memory,
        Self::NoNewPrivs,
        Self::Descriptors,
        Self::Signals,
        Self::Execute,
    ];
}

/// A program that was not started; nothing of it is left.
#[derive(Debug)]
pub struct NotStarted {
    /// What could not be done.
    pub step: Step,
    /// Why.
    pub source: io::Error,
}

impl NotStarted {
    fn before(source: impl Into<io::Error>) -> Self {
        Self { step: Step::Start, source: source.into() }
    }
}

/// Starts the program of `plan` as a child of this process, and returns its PID when the program is executed. `begun` is told the PID
/// as soon as there is one: the program's file may be on a disk that does not answer, and whoever waits for this may end it.
///
/// # Errors
/// What could not be done: nothing was started.
pub fn spawn(plan: Plan, begun: &AtomicI32) -> Result<i32, NotStarted> {
    let Plan { places, arguments, environment, own_pid, streams, descriptors, state } = plan;
    let end = FIRST.saturating_add(RawFd::try_from(descriptors.len()).unwrap_or(0));
    // None where another is to be put.
    let aside = streams.into_iter().chain(descriptors).map(|descriptor| {
        if descriptor.as_raw_fd() < end { Ok(fcntl_dupfd_cloexec(&descriptor, end)?) } else { Ok(descriptor) }
    });
    let aside = aside.collect::<io::Result<Vec<OwnedFd>>>().map_err(NotStarted::before)?;
    let pids: Vec<Vec<AtomicU8>> = own_pid.iter().map(|name| with_room_for_pid(name)).collect();
    let null = || AtomicPtr::new(ptr::null_mut());
    let pointer = |text: &CString| AtomicPtr::new(text.as_ptr().cast_mut());
    // Before the arguments there is room for a shell, and in place of the name for its script.
    let words = [null()].into_iter().chain(arguments.iter().map(pointer)).chain([null()]).collect();
    let variables = environment.iter().map(pointer);
    let variables = variables.chain(pids.iter().map(|text| AtomicPtr::new(text.as_ptr().cast_mut().cast())));
    let job = Job {
        parent: getpid().as_raw_pid(),
        begun,
        places: &places,
        words,
        environment: variables.chain([null()]).collect(),
        pids: &pids,
        descriptors: aside.iter().map(AsRawFd::as_raw_fd).zip(0..).collect(),
        state: &state,
        handled: fd::handled_signals().map_err(NotStarted::before)?,
        failed: AtomicU8::new(0),
        errno: AtomicI32::new(0),
    };
    let mut stack: Vec<u128> = Vec::with_capacity(STACK_BYTES / size_of::<u128>());
    // A handler that ran in the child would act for this process.
    let mut mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask)).map_err(NotStarted::before)?;
    // SAFETY: the end of the stack is within its allocation and aligned. Stack and job live until after the call, which returns when the
    // child has executed its program or has ended, and until then nothing here touches them. The child keeps to the rules above.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.capacity()).cast::<c_void>();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        libc::clone(begin, top, flags, ptr::from_ref(&job).cast_mut().cast())
    };
    let cloned = io::Error::last_os_error();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).map_err(NotStarted::before)?;
    if pid < 0 {
        return Err(NotStarted::before(cloned));
    }
    match job.failed.load(Ordering::SeqCst).checked_sub(1).and_then(|step| Step::ALL.get(usize::from(step))) {
        None => Ok(pid),
        Some(step) => {
            let _ = waitpid(nix::unistd::Pid::from_raw(pid), None); // it has ended, and nobody else collects it
            Err(NotStarted { step: *step, source: io::Error::from_raw_os_error(job.errno.load(Ordering::SeqCst)) })
        }
    }
}

/// Returns the variable `name` with room for a PID.
fn with_room_for_pid(name: &str) -> Vec<AtomicU8> {
    // What the digits leave free is the end of the text.
    name.bytes().chain([b'=']).chain([0; PID_DIGITS + 1]).map(AtomicU8::new).collect()
}

/// All that the child goes by. What it writes is atomic: this process reads it afterwards.
struct Job<'a> {
    parent: i32,
    begun: &'a AtomicI32,
    places: &'a [CString],
    words: Vec<AtomicPtr<c_char>>,
    environment: Vec<AtomicPtr<c_char>>,
    pids: &'a [Vec<AtomicU8>],
    /// From which number to which.
    descriptors: Vec<(RawFd, RawFd)>,
    state: &'a State,
    /// The signals that this process does not leave to the kernel: a bit each, that of signal 1 the lowest.
    handled: u64,
    /// One more than the place of the step that failed.
    failed: AtomicU8,
    errno: AtomicI32,
}

/// The child: ends, or becomes the program.
extern "C" fn begin(job: *mut c_void) -> c_int {
    // SAFETY: `spawn` has given its job, which lives until this child has ended or executed its program.
    let job = unsafe { &*job.cast::<Job<'_>>().cast_const() };
    let (step, errno) = job.run();
    job.errno.store(errno.raw_os_error(), Ordering::SeqCst);
    job.failed.store((step as u8).saturating_add(1), Ordering::SeqCst);
    // SAFETY: it ends this child at once, and runs nothing that the process has registered for its own end.
    unsafe { libc::_exit(127) }
}

impl Job<'_> {
    /// Returns which step failed, and why.
    fn run(&self) -> (Step, Errno) {
        let own = getpid().as_raw_pid();
        self.begun.store(own, Ordering::SeqCst);
        self.write_pid(own);
        if let Err(failed) = self.enter_state() {
            return failed;
        }
        for (from, to) in &self.descriptors {
            // SAFETY: two numbers. In this child's own table nobody owns the second one, and a first one never is a second one.
            if unsafe { libc::dup2(*from, *to) } < 0 {
                return (Step::Descriptors, last_errno());
            }
        }
        for number in 1..=64 {
            if self.handled & (1 << (number - 1)) != 0
                && let Err(errno) = fd::default_signal(number)
            {
                return (Step::Signals, errno);
            }
        }
        if let Err(error) = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None) {
            return (Step::Signals, Errno::from_raw_os_error(error as i32));
        }
        // Whoever has started this is gone, and the next one does not know of it.
        if getppid().is_none_or(|parent| parent.as_raw_pid() != self.parent) {
            return (Step::Execute, Errno::CANCELED);
        }
        (Step::Execute, self.execute())
    }

    /// Comes into the state that the program begins in. As in a launch: what needs rights first, what limits this child itself last.
    fn enter_state(&self) -> Result<(), (Step, Errno)> {
        let State { session, cgroup, umask, oom_score, soft_files, files, processes, directory, memory, no_new_privs } =
            self.state;
        let failed = |step: Step| move |errno: Errno| (step, errno);
        if *session {
            rustix::process::setsid().map_err(failed(Step::Session))?;
        }
        if let Some(file) = cgroup {
            enter(file).map_err(failed(Step::Cgroup))?;
        }
        if let Some(mask) = umask {
            rustix::process::umask(Mode::from_bits_truncate(*mask));
        }
        if let Some(score) = oom_score {
            let _refused = set_oom_score(score.as_bytes());
        }
        if let Some(wanted) = soft_files {
            let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
            let wanted = maximum.map_or(*wanted, |hard| hard.min(*wanted));
            if current != Some(wanted) {
                let _refused = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
            }
        }
        let limits = [(Step::Files, Resource::Nofile, files), (Step::Processes, Resource::Nproc, processes)];
        for (step, resource, limit) in limits {
            if limit.is_some() {
                setrlimit(resource, Rlimit { current: *limit, maximum: *limit }).map_err(failed(step))?;
            }
        }
        if let Some(directory) = directory {
            rustix::process::chdir(directory.as_c_str()).map_err(failed(Step::Directory))?;
        }
        if let Some(limit) = memory {
            let limit = Some(getrlimit(Resource::As).maximum.map_or(*limit, |hard| hard.min(*limit)));
            setrlimit(Resource::As, Rlimit { current: limit, maximum: limit }).map_err(failed(Step::Memory))?;
        }
        if *no_new_privs {
            let given_up = nix::sys::prctl::set_no_new_privs();
            given_up.map_err(|error| (Step::NoNewPrivs, Errno::from_raw_os_error(error as i32)))?;
        }
        Ok(())
    }

    /// Writes the child's own PID where the program looks for it.
    fn write_pid(&self, pid: i32) {
        for text in self.pids {
            let mut divisor = 1_000_000_000; // with as many digits as the longest
            let mut room = text.iter().skip_while(|byte| byte.load(Ordering::Relaxed) != 0);
            while divisor > 0 {
                let digit = u8::try_from((pid / divisor) % 10).unwrap_or(0);
                if (divisor == 1 || pid >= divisor)
                    && let Some(byte) = room.next()
                {
                    byte.store(b'0'.saturating_add(digit), Ordering::Relaxed);
                }
                divisor /= 10;
            }
        }
    }

    /// Becomes the program. Returns why it could not, as execvp(3) does: of several places the last one's reason, and before all that it
    /// may not be executed.
    fn execute(&self) -> Errno {
        let (Some([shell, script, ..]), Some(words)) = (self.words.get(..2), self.words.get(1..)) else {
            return Errno::INVAL;
        };
        let environment = self.environment.as_ptr().cast::<*const c_char>();
        let (mut found, mut refused) = (Errno::NOENT, false);
        for place in self.places {
            // SAFETY: a text with its end and two lists of such texts, each with a null at its end; an atomic pointer is a pointer.
            unsafe { libc::execve(place.as_ptr(), words.as_ptr().cast(), environment) };
            found = last_errno();
            if found == Errno::NOEXEC {
                let name = script.load(Ordering::Relaxed);
                shell.store(SHELL.as_ptr().cast_mut(), Ordering::Relaxed);
                script.store(place.as_ptr().cast_mut(), Ordering::Relaxed);
                // SAFETY: as above; the list begins one pointer earlier.
                unsafe { libc::execve(SHELL.as_ptr(), self.words.as_ptr().cast(), environment) };
                found = last_errno();
                script.store(name, Ordering::Relaxed);
            }
            match found {
                Errno::ACCESS => refused = true,
                Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::NODEV | Errno::TIMEDOUT => {}
                _ => return found,
            }
        }
        if refused { Errno::ACCESS } else { found }
    }
}

fn enter(group: &CStr) -> Result<(), Errno> {
    let file = rustix::fs::open(group, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"0").map(drop)
}

/// Sets the place in the order of the OOM killer, unless that is it: a system may let nobody write it. The kernel keeps this child's
/// apart from that of the process whose memory it shares.
fn set_oom_score(score: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(OOM_SCORE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut now = [0; 8];
    let length = rustix::io::read(&file, &mut now[..])?;
    if now.get(..length).is_some_and(|now| now.trim_ascii() == score) {
        return Ok(());
    }
    rustix::io::write(&file, score).map(drop)
}

fn last_errno() -> Errno {
    // SAFETY: the number of the last error of this thread, which the child has for itself while the thread waits.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::ffi::OsStrExt;

    use nix::sys::wait::WaitStatus;

    use super::*;

    fn text(text: &str) -> CString {
        CString::new(text).expect("no zero")
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").expect("opened").into()
    }

    fn plan(places: &[&str], arguments: &[&str], output: OwnedFd) -> Plan {
        Plan {
            places: places.iter().map(|place| text(place)).collect(),
            arguments: arguments.iter().map(|word| text(word)).collect(),
            environment: vec![text("PATH=/usr/bin:/bin")],
            own_pid: vec!["LISTEN_PID", "WATCHDOG_PID"],
            streams: [null(), output, null()],
            descriptors: Vec::new(),
            state: State::default(),
        }
    }

    /// Runs what `plan` says of it to its end. Returns its PID and what it has printed.
    fn run(change: impl FnOnce(&mut Plan), script: &str) -> (i32, String) {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut plan = plan(&["/nowhere/sh", "/bin/sh"], &["sh", "-c", script], writer.into());
        change(&mut plan);
        let begun = AtomicI32::new(0);
        let pid = spawn(plan, &begun).expect("started");
        assert_eq!(begun.load(Ordering::SeqCst), pid);
        let mut printed = String::new();
        reader.read_to_string(&mut printed).expect("read");
        assert_eq!(
            waitpid(nix::unistd::Pid::from_raw(pid), None),
            Ok(WaitStatus::Exited(nix::unistd::Pid::from_raw(pid), 0))
        );
        (pid, printed)
    }

    #[test]
    fn a_program_begins_with_its_pid_its_descriptors_and_no_signal() {
        let script = "echo $$ $LISTEN_PID $WATCHDOG_PID $0; for n in 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$n && echo $n; done; cat <&4; exec grep -E 'Sig(Blk|Ign)' /proc/self/status";
        let (pid, printed) = run(
            |plan| {
                let file = |text: &str| {
                    let path = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
                    File::create(&path).and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
                    OwnedFd::from(File::open(&path).expect("opened"))
                };
                plan.descriptors = vec![file("three\n"), file("four\n")];
            },
            script,
        );
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines[0], format!("{pid} {pid} {pid} sh"));
        assert_eq!(lines[1..4], ["3", "4", "four"], "and no other descriptor");
        assert!(lines[4..].iter().all(|line| line.ends_with("\t0000000000000000")), "{printed}");
    }

    #[test]
    fn a_program_begins_in_its_state() {
        let place = tempfile::tempdir().expect("a directory");
        let (_, printed) = run(
            |plan| {
                plan.state = State {
                    session: true,
                    umask: Some(0o027),
                    oom_score: Some("500".to_owned()),
                    soft_files: Some(60),
                    directory: Some(CString::new(place.path().as_os_str().as_bytes()).expect("no zero")),
                    no_new_privs: true,
                    ..State::default()
                };
            },
            "umask; pwd; ulimit -Sn; cat /proc/self/oom_score_adj; cut -d' ' -f6 /proc/$$/stat; echo $$; grep NoNewPrivs /proc/$$/status",
        );
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines[..4], ["0027", place.path().to_str().expect("text"), "60", "500"]);
        assert_eq!((lines[4], lines[6]), (lines[5], "NoNewPrivs:\t1"));
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").expect("read");
        assert_ne!(own.trim(), "500", "this process's own place is as it was");
    }

    #[test]
    fn a_script_that_names_no_interpreter_is_the_shells() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = dir.path().join("script");
        File::create(&script).and_then(|mut file| file.write_all(b"echo $0 $1")).expect("written");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("changed");
        let path = script.to_str().expect("text");
        let (_, printed) =
            run(|plan| (plan.places, plan.arguments) = (vec![text(path)], [path, "x"].map(text).into()), "");
        assert_eq!(printed, format!("{path} x\n"));
    }

    #[test]
    fn what_cannot_be_started_says_which_step_failed_and_leaves_nothing() {
        let not_started = |change: &dyn Fn(&mut Plan)| {
            let mut plan = plan(&["/bin/sh"], &["sh"], null());
            change(&mut plan);
            let begun = AtomicI32::new(0);
            let NotStarted { step, source } = spawn(plan, &begun).expect_err("not started");
            let pid = nix::unistd::Pid::from_raw(begun.load(Ordering::SeqCst));
            assert_eq!(waitpid(pid, None), Err(nix::errno::Errno::ECHILD), "collected");
            (step, source.kind())
        };
        let nowhere = || Some(text("/nowhere/at/all"));
        let missing = io::ErrorKind::NotFound;
        assert_eq!(not_started(&|plan| plan.places = vec![text("/nowhere/at/all")]), (Step::Execute, missing));
        assert_eq!(not_started(&|plan| plan.state.directory = nowhere()), (Step::Directory, missing));
        assert_eq!(not_started(&|plan| plan.state.cgroup = nowhere()), (Step::Cgroup, missing));
        let refused = ["/etc/passwd", "/nowhere"].map(text).to_vec();
        let refused = not_started(&move |plan| plan.places.clone_from(&refused));
        assert_eq!(refused, (Step::Execute, io::ErrorKind::PermissionDenied));
    }
}
