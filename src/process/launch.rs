//! `refit launch`: the last step before a program that becomes another account, or is a runtime, in its own process.
//!
//! Some things only the child can do: put its own PID into `LISTEN_PID`, enter a control group, become another user. Most of them are single
//! calls, which [`spawn`](crate::handover::spawn) makes in the child; looking up an account is not, and needs this program between fork and exec. The order is the
//! same: what needs the rights of the runtime comes before the account is changed, what must not limit this program itself comes last.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, setgid, setgroups, setsid, setuid};
use refit_base::Exit;
use refit_bus::Failure;

use super::cgroup;
use super::resources::Resources;
use crate::handover::exec;
use crate::handover::fd::{self, Signals};
use crate::handover::inherit::VARIABLES;
use crate::handover::spawn::{NotStarted, State, Step};

const BEGIN_SESSION: &str = "begin a session";
const GIVE_UP_RIGHTS: &str = "give up new rights";

/// What the child is to become.
#[derive(Debug, clap::Args)]
pub struct Launch {
    /// How many descriptors from 3 on are its sockets.
    #[arg(long, default_value_t = 0)]
    pub listen_fds: usize,
    /// It is a component: the next descriptor after them is a pipe on which a failure is reported; its end means success.
    #[arg(long)]
    pub report: bool,
    /// Leave signals as they are: the program keeps them blocked until it has handlers.
    #[arg(long)]
    pub keep_blocked: bool,
    /// The program is named by its path, and executed as it is: a text without an interpreter is not given to the shell.
    #[arg(long)]
    pub no_shell: bool,
    /// What a component's program begins with.
    #[command(flatten)]
    pub state: Begin,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// The state that a component's program begins in.
#[derive(Debug, Default, clap::Args)]
pub struct Begin {
    /// Begin a session, and with it a process group, of its own.
    #[arg(long)]
    pub session: bool,
    /// The control group to enter.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// The account to run as.
    #[arg(long)]
    pub user: Option<String>,
    /// The group to run as.
    #[arg(long)]
    pub group: Option<String>,
    /// The further groups, separated by commas; none if empty, the account's if absent.
    #[arg(long)]
    pub groups: Option<String>,
    /// The working directory.
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// The mode bits that new files do not get.
    #[arg(long)]
    pub umask: Option<u32>,
    /// Let set-user-ID programs give no rights.
    #[arg(long)]
    pub no_new_privs: bool,
    /// How many bytes of addresses it may use.
    #[arg(long)]
    pub limit_memory: Option<u64>,
    /// How many files each process may open.
    #[arg(long)]
    pub limit_files: Option<u64>,
    /// How many processes its account may have.
    #[arg(long)]
    pub limit_processes: Option<u64>,
    /// Its place in the order of the OOM killer.
    #[arg(long, allow_negative_numbers = true)]
    pub oom_score: Option<i32>,
    /// How many files each process may open, unless it raises that itself.
    #[arg(long)]
    pub soft_files: Option<u64>,
}

impl Begin {
    /// Returns the beginning of a program that gets what this process had, before it was given more, and changes nothing else.
    pub(crate) fn with(found: Resources) -> Self {
        Self { oom_score: found.oom_score, soft_files: found.files, ..Self::default() }
    }

    /// Returns whether it takes a [launch](Launch) to begin so.
    pub(crate) fn needs_launch(&self) -> bool {
        self.user.is_some() || self.group.is_some() || self.groups.is_some()
    }

    /// Returns the state of a child that begins so without a launch.
    ///
    /// # Errors
    /// A path has a zero in it.
    pub(crate) fn state(&self) -> io::Result<State> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
        Ok(State {
            session: self.session,
            cgroup: self.cgroup.as_deref().map(|group| text(&cgroup::entrance(group))).transpose()?,
            umask: self.umask,
            oom_score: self.oom_score.map(|score| score.to_string()),
            soft_files: self.soft_files,
            files: self.limit_files,
            processes: self.limit_processes,
            directory: self.directory.as_deref().map(text).transpose()?,
            memory: self.limit_memory,
            no_new_privs: self.no_new_privs,
        })
    }

    /// Returns why `program` was not started in that state.
    pub(crate) fn describe(&self, program: &OsStr, NotStarted { step, source }: NotStarted) -> io::Error {
        let path = |path: &Option<PathBuf>| path.clone().unwrap_or_default().display().to_string();
        let limit = |limit: Option<u64>| limit.unwrap_or_default();
        let what = match step {
            Step::Start => "start a process".to_owned(),
            Step::Session => BEGIN_SESSION.to_owned(),
            Step::Cgroup => format!("enter the control group {}", path(&self.cgroup)),
            Step::Files => format!("limit its open files to {}", limit(self.limit_files)),
            Step::Processes => format!("limit its processes to {}", limit(self.limit_processes)),
            Step::Directory => format!("change to {}", path(&self.directory)),
            Step::Memory => format!("limit its memory to {}", limit(self.limit_memory)),
            Step::NoNewPrivs => GIVE_UP_RIGHTS.to_owned(),
            Step::Descriptors => "put its descriptors in their places".to_owned(),
            Step::Signals => "let signals through".to_owned(),
            Step::Execute => format!("execute {}", program.display()),
        };
        io::Error::new(source.kind(), format!("cannot {what}: {source}"))
    }

    /// Returns the words on the command line that say the same.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: Option<&OsStr>| {
            if let Some(value) = value {
                let mut word = OsString::from(format!("--{name}="));
                word.push(value);
                words.push(word);
            }
        };
        let number = |value: Option<u64>| value.map(|value| OsString::from(value.to_string()));
        add("cgroup", self.cgroup.as_ref().map(|path| path.as_os_str()));
        add("user", self.user.as_ref().map(AsRef::as_ref));
        add("group", self.group.as_ref().map(AsRef::as_ref));
        add("groups", self.groups.as_ref().map(AsRef::as_ref));
        add("directory", self.directory.as_ref().map(|path| path.as_os_str()));
        add("umask", number(self.umask.map(u64::from)).as_deref());
        add("limit-memory", number(self.limit_memory).as_deref());
        add("limit-files", number(self.limit_files).as_deref());
        add("limit-processes", number(self.limit_processes).as_deref());
        add("oom-score", self.oom_score.map(|score| OsString::from(score.to_string())).as_deref());
        add("soft-files", number(self.soft_files).as_deref());
        words.extend(self.session.then(|| OsString::from("--session")));
        words.extend(self.no_new_privs.then(|| OsString::from("--no-new-privs")));
        words
    }
}

/// Becomes the program. Returns only if that failed.
pub fn main(launch: Launch) -> Exit {
    let count = launch.listen_fds + usize::from(launch.report);
    let mut inherited = match fd::take(count) {
        Ok(inherited) => inherited,
        Err(error) => return failed(None, Failure::new(format!("cannot take the descriptors: {error}"))),
    };
    let report = if launch.report { inherited.pop() } else { None };
    match become_program(&launch, inherited) {
        Ok(never) => match never {},
        Err(error) => failed(report, Failure::from_error(&error)),
    }
}

fn failed(report: Option<OwnedFd>, failure: Failure) -> Exit {
    let written = match report {
        Some(report) => serde_json::to_writer(std::fs::File::from(report), &failure).map_err(io::Error::from),
        None => writeln!(io::stderr().lock(), "refit: {failure}"),
    };
    drop(written); // nobody is left to hear of it
    Exit::Failed
}

fn become_program(launch: &Launch, sockets: Vec<OwnedFd>) -> io::Result<std::convert::Infallible> {
    let Some(program) = launch.command.first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    let mut command = Command::new(program);
    command.args(&launch.command[1..]);
    for variable in VARIABLES {
        if launch.listen_fds == 0 || variable != "LISTEN_FDNAMES" {
            command.env_remove(variable);
        }
    }
    let pid = std::process::id().to_string();
    if launch.listen_fds > 0 {
        command.env("LISTEN_PID", &pid).env("LISTEN_FDS", launch.listen_fds.to_string());
    }
    if launch.report && std::env::var_os("WATCHDOG_USEC").is_some() {
        command.env("WATCHDOG_PID", &pid);
    }
    begin(&launch.state, &mut command)?;
    for socket in sockets {
        fd::keep_over_exec(socket)?;
    }
    if !launch.keep_blocked {
        fd::default_signals(Signals::All)?;
        exec::unblock_signals()?;
    }
    let error = if launch.no_shell {
        match exec::execute(Path::new(program), &launch.command, &environment_of(&command)) {
            Err(error) => error,
            Ok(never) => match never {},
        }
    } else {
        command.exec()
    };
    Err(io::Error::new(error.kind(), format!("cannot execute {}: {error}", program.display())))
}

/// Returns what `command` would give its program of the environment.
fn environment_of(command: &Command) -> Vec<(OsString, OsString)> {
    let mut all: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => drop(all.insert(key.to_owned(), value.to_owned())),
            None => drop(all.remove(key)),
        }
    }
    all.into_iter().collect()
}

/// Brings this process into the state that the program begins in.
fn begin(state: &Begin, command: &mut Command) -> io::Result<()> {
    let cannot = |what: String, error: io::Error| io::Error::new(error.kind(), format!("cannot {what}: {error}"));
    if state.session {
        setsid().map_err(|error| cannot(BEGIN_SESSION.to_owned(), error.into()))?;
    }
    if let Some(group) = &state.cgroup {
        cgroup::enter(group).map_err(|error| cannot(format!("enter the control group {}", group.display()), error))?;
    }
    if let Some(mask) = state.umask {
        umask(Mode::from_bits_truncate(mask));
    }
    // While the rights are there: where it is set with them, nobody goes below without them. A process that the OOM killer spares
    // is better than none.
    let given_back = Resources { oom_score: state.oom_score, files: state.soft_files }.apply();
    drop(given_back);
    let limits = [
        ("open files", Resource::RLIMIT_NOFILE, state.limit_files),
        ("processes", Resource::RLIMIT_NPROC, state.limit_processes),
    ];
    for (what, resource, limit) in limits {
        let Some(limit) = limit else { continue };
        setrlimit(resource, limit, limit)
            .map_err(|error| cannot(format!("limit its {what} to {limit}"), error.into()))?;
    }
    change_user(state, command)?;
    if let Some(directory) = &state.directory {
        std::env::set_current_dir(directory)
            .map_err(|error| cannot(format!("change to {}", directory.display()), error))?;
    }
    if let Some(limit) = state.limit_memory {
        // One that is lower already is not lifted: that would need the rights that are gone by now.
        let limit = getrlimit(Resource::RLIMIT_AS).map_or(limit, |(_, hard)| limit.min(hard));
        setrlimit(Resource::RLIMIT_AS, limit, limit)
            .map_err(|error| cannot(format!("limit its memory to {limit}"), error.into()))?;
    }
    if state.no_new_privs {
        nix::sys::prctl::set_no_new_privs().map_err(|error| cannot(GIVE_UP_RIGHTS.to_owned(), error.into()))?;
    }
    Ok(())
}

/// Becomes the account of `state`, and has `command` know of it. Groups first, then group, then user: after the last there is no
/// way to do the others.
pub(super) fn change_user(state: &Begin, command: &mut Command) -> io::Result<()> {
    let account = match &state.user {
        Some(name) => Some(
            User::from_name(name)?
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no account {name}")))?,
        ),
        None => None,
    };
    let own = geteuid();
    if let Some(account) = &account {
        for (key, value) in
            [("HOME", account.dir.as_os_str()), ("USER", account.name.as_ref()), ("LOGNAME", account.name.as_ref())]
        {
            // What the component's own `env` says is there already.
            if std::env::var_os(key).is_none() {
                command.env(key, value);
            }
        }
    }
    let name = state.user.clone().unwrap_or_else(|| own.to_string());
    let refused = |error: nix::errno::Errno| {
        io::Error::other(format!("cannot become the account {name}: {}", io::Error::from(error)))
    };
    let same_user = account.as_ref().is_none_or(|account| account.uid == own);
    if same_user && state.group.is_none() && state.groups.is_none() {
        return Ok(());
    }
    let group = match (&state.group, &account) {
        (Some(name), _) => group_id(name)?,
        (None, Some(account)) => account.gid,
        (None, None) => getegid(),
    };
    let groups = match (&state.groups, &account) {
        (Some(names), _) => {
            names.split(',').filter(|name| !name.is_empty()).map(group_id).collect::<io::Result<Vec<Gid>>>()?
        }
        (None, Some(account)) => {
            nix::unistd::getgrouplist(&CString::new(account.name.as_str())?, group).map_err(refused)?
        }
        (None, None) => nix::unistd::getgroups().map_err(refused)?,
    };
    // Nothing to change for somebody who may change nothing.
    if own.is_root() || state.groups.is_some() || !same_user {
        setgroups(&groups).map_err(refused)?;
    }
    if group != getegid() || own.is_root() {
        setgid(group).map_err(refused)?;
    }
    let user: Uid = account.map_or(own, |account| account.uid);
    if user != own {
        setuid(user).map_err(refused)?;
    }
    Ok(())
}

fn group_id(name: &str) -> io::Result<Gid> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no group {name}"));
    Ok(Group::from_name(name)?.ok_or_else(missing)?.gid)
}

/// Returns the pipe on which [`main`] reports: reading end, and writing end for the child.
///
/// # Errors
/// No descriptor is left.
pub(crate) fn report_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(reader.as_fd(), true)?;
    Ok((reader, writer))
}
