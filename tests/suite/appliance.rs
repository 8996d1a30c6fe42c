//! An appliance as a user has it: a home, a guard started with `refit run`, the commands, and the API.
//!
//! `Appliance::new(&Release::shop("1.0.0")).start()` runs; what differs from machine to machine (addresses, short times)
//! is in the home's `local.toml`, so that one package serves every test. Dropping it ends every process of its home.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use refit_updater::durable::make_dirs_writable;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{At, Request};
use crate::load::{Load, LoadOptions};
use crate::process;
use crate::release::{REFIT, Release, Vendor};
use crate::wait::{LIMIT, eventually, until};

/// Ports for the tests: below those that the kernel gives to clients, so that none of the load's connections takes one.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How long a command may take: an update that waits for the end of a trial included.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// What a command left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Runs a command to its end. Panics, and ends it, when that takes longer than [`COMMAND_MAX`].
    pub(crate) fn of(command: &mut Command) -> Self {
        // Files and not pipes: nobody has to read while the command runs.
        let [mut stdout, mut stderr] = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
        command.stdout(stdout.try_clone().expect("a descriptor")).stderr(stderr.try_clone().expect("a descriptor"));
        let mut child = command.spawn().expect("start refit");
        let begun = Instant::now();
        let status = until(COMMAND_MAX + LIMIT, "the command ends", || {
            if begun.elapsed() >= COMMAND_MAX {
                child.kill().expect("end it");
            }
            child.try_wait().expect("wait for it")
        });
        assert!(begun.elapsed() < COMMAND_MAX, "{command:?} did not end within {COMMAND_MAX:?}");
        let [stdout, stderr] = [&mut stdout, &mut stderr].map(|file| {
            let mut text = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("read what it printed");
            text
        });
        Self { code: status.code().unwrap_or(-1), stdout, stderr }
    }

    /// Asserts the exit status.
    pub(crate) fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit status\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Asserts the exit status and that there is exactly one line on standard error; returns it.
    pub(crate) fn complains_with(self, code: i32) -> String {
        let ran = self.ends_with(code);
        assert_eq!(ran.stderr.lines().count(), 1, "not one line: {}", ran.stderr);
        ran.stderr.trim_end().to_owned()
    }

    /// Returns the objects on standard output, one a line.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.stdout.lines().map(parse).collect()
    }
}

/// Returns `refit` with an environment that has nothing but the way to programs.
pub(crate) fn refit() -> Command {
    let mut command = Command::new(REFIT);
    let path = std::env::var_os("PATH").expect("there are programs");
    command.env_clear().env("PATH", path).stdin(Stdio::null());
    command
}

/// Writes the machine's own settings with the mode that the runtime would give them: it changes none while a test looks.
fn write_settings(path: &Path, text: &str) {
    fs::write(path, text).expect("write local.toml");
    fs::set_permissions(path, fs::Permissions::from_mode(0o640)).expect("set its mode");
}

/// Returns a port that nobody uses now, and no other test of this process later.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two suites at once begin at different places.
    let begin = u16::try_from(std::process::id() % 60).expect("below 60") * 200;
    until(LIMIT, "a port is free", || {
        let place = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let port = PORTS.start + place;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok().then_some(port)
    })
}

/// An appliance.
pub(crate) struct Appliance {
    dir: TempDir,
    home: PathBuf,
    addresses: Vec<(String, SocketAddr)>,
    password: String,
    guard: Option<Child>,
    /// How many guards it had: each has a log of its own.
    guards: u32,
    /// The umask of everything that is run, if it is another than that of the tests.
    umask: Option<u32>,
}

impl Appliance {
    /// Makes a home with this first release. Nothing runs yet.
    pub(crate) fn new(first: &Release) -> Self {
        Self::of_package(first, &first.package(), &Vendor::get().root())
    }

    /// Makes a home with this first release, and runs everything under this umask. Nothing runs yet.
    pub(crate) fn new_under(first: &Release, umask: u32) -> Self {
        Self::make(first, &first.package(), &Vendor::get().root(), Some(umask))
    }

    /// Makes a home with this package of a first release, and this root of trust. Nothing runs yet.
    pub(crate) fn of_package(first: &Release, package: &Path, root: &Path) -> Self {
        Self::make(first, package, root, None)
    }

    fn make(first: &Release, package: &Path, root: &Path, umask: Option<u32>) -> Self {
        let dir = tempfile::Builder::new().prefix("refit-").tempdir().expect("a temporary directory");
        let home = dir.path().join("home");
        let mut addresses = first.listeners().to_vec();
        for (_, address) in addresses.iter_mut().filter(|(_, address)| address.port() == 0) {
            address.set_port(free_port());
        }
        let mut appliance = Self { dir, home, addresses, password: String::new(), guard: None, guards: 0, umask };
        let mut init = refit();
        init.arg("init").arg(package).arg("--root").arg(root).arg("--json");
        let made = appliance.run(&mut init).ends_with(0);
        appliance.password = text(&made.objects()[0]["password"]);
        let mut local = "[update]\nprobation = \"300ms\"\nstart_timeout = \"20s\"\n\n[listeners]\n".to_owned();
        for (name, address) in &appliance.addresses {
            local.push_str(&format!("{name} = \"{address}\"\n"));
        }
        if first.has("shop") {
            let http = appliance.address("http");
            local.push_str(&format!(
                "\n[[component]]\nname = \"shop\"\nhealth = {{ http = \"http://{http}/healthz\", interval = \"100ms\", \
                 timeout = \"5s\", threshold = 3 }}\n"
            ));
        }
        write_settings(&appliance.home.join("local.toml"), &local);
        appliance
    }

    /// Has `change` change the machine's own settings.
    pub(crate) fn local(self, change: impl FnOnce(String) -> String) -> Self {
        self.set_local(change);
        self
    }

    /// Has `change` change the machine's own settings, while everything runs.
    pub(crate) fn set_local(&self, change: impl FnOnce(String) -> String) {
        let path = self.home.join("local.toml");
        let text = fs::read_to_string(&path).expect("read local.toml");
        write_settings(&path, &change(text));
    }

    /// Starts the guard and waits until the appliance runs.
    pub(crate) fn start(mut self) -> Self {
        self.run_guard();
        self.wait_running();
        self
    }

    /// Starts the guard.
    pub(crate) fn run_guard(&mut self) {
        self.run_guard_through(&[]);
    }

    /// Starts the guard with the home spelled as in `home`.
    pub(crate) fn run_guard_in(&mut self, home: &Path) {
        self.begin_guard(&[], home);
    }

    /// Gives up the guard, which has ended: it stays uncollected as long as what this returns lives.
    pub(crate) fn leave_guard(&mut self) -> Child {
        self.guard.take().expect("a guard runs")
    }

    /// Starts the guard by a program that executes the words after its own: first it changes what the guard begins with.
    pub(crate) fn run_guard_through(&mut self, words: &[&str]) {
        self.begin_guard(words, &self.home.clone());
    }

    fn begin_guard(&mut self, words: &[&str], home: &Path) {
        assert!(self.guard.is_none(), "a guard runs already");
        self.guards += 1;
        File::create(self.log_path()).expect("make the log");
        let mut command = refit();
        if let Some((program, words)) = words.split_first() {
            let mut through = Command::new(program);
            through.args(words).arg(command.get_program());
            through.env_clear().envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
            command = through;
        }
        command.args(["run", "--with-parent", "--home"]).arg(home);
        #[cfg(feature = "fault")]
        command.env("REFIT_FAULT_FILE", self.scratch().join("fault"));
        let log = File::options().append(true).open(self.log_path()).expect("open the log");
        let mut command = self.under_umask(&command);
        self.guard = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("start the guard"));
    }

    /// Waits until the appliance runs.
    pub(crate) fn wait_running(&mut self) {
        let log = self.log_path();
        let guard = self.guard_pid();
        until(LIMIT, "the appliance runs", || {
            if let Some(status) = self.guard.as_mut().and_then(|guard| guard.try_wait().expect("wait for the guard")) {
                panic!("the guard ended with {status}: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            // A runtime whose guard was killed answers for a moment more.
            let status = self.try_status()?;
            (status["bus"]["state"] == "Running" && status["guard"]["pid"] == guard).then_some(())
        });
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join(format!("guard-{}.log", self.guards))
    }

    /// Returns what the guard and the runtime have printed, since the guard was started.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).expect("read the log")
    }

    /// Returns a directory for the test's own files.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Returns its home.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Returns the password of its page.
    pub(crate) fn password(&self) -> &str {
        &self.password
    }

    /// Returns the address of a listener.
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        let found = self.addresses.iter().find(|(other, _)| other == name);
        found.unwrap_or_else(|| panic!("there is no listener {name}")).1
    }

    /// Returns where the API is for the commands.
    pub(crate) fn socket(&self) -> At {
        At::Unix(self.home.join("run/refit.sock"))
    }

    /// Returns where the API is for browsers.
    pub(crate) fn admin(&self) -> At {
        At::Tcp(self.address("admin"))
    }

    /// Runs a command on this home.
    pub(crate) fn run(&self, command: &mut Command) -> Ran {
        command.arg("--home").arg(&self.home);
        match self.umask {
            None => Ran::of(command),
            Some(_) => Ran::of(&mut self.under_umask(command)),
        }
    }

    /// Returns the command that does the same under the umask of this appliance.
    pub(crate) fn under_umask(&self, command: &Command) -> Command {
        let set = self.umask.map(|umask| format!("umask {umask:04o}; ")).unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{set}exec \"$0\" \"$@\"")).arg(command.get_program()).args(command.get_args());
        shell.env_clear().envs(command.get_envs().filter_map(|(key, value)| Some((key, value?)))).stdin(Stdio::null());
        shell
    }

    /// Runs `refit` with these words on this home.
    pub(crate) fn refit(&self, words: &[&str]) -> Ran {
        self.run(refit().args(words))
    }

    /// Runs `refit install` on a release's package, with these options; follows it to its end.
    pub(crate) fn install(&self, release: &Release, options: &[&str]) -> Ran {
        self.install_package(&release.package(), options)
    }

    /// Runs `refit install` on a package, with these options; follows it to its end.
    pub(crate) fn install_package(&self, package: &Path, options: &[&str]) -> Ran {
        self.run(refit().arg("install").arg(package).args(options))
    }

    /// Returns the status, if anybody answers.
    pub(crate) fn try_status(&self) -> Option<Value> {
        let answer = Request::new(&self.socket(), "GET", "/api/v1/status").try_send().ok()?;
        (answer.status == 200).then(|| answer.json())
    }

    /// Returns the status.
    pub(crate) fn status(&self) -> Value {
        until(LIMIT, "the appliance answers", || self.try_status())
    }

    /// Returns the history, newest first.
    pub(crate) fn history(&self) -> Vec<Value> {
        let answer = Request::new(&self.socket(), "GET", "/api/v1/history").send().json();
        answer["history"].as_array().expect("a list").clone()
    }

    /// Waits until nothing is being updated and the appliance runs `version`; returns the status.
    pub(crate) fn settled(&self, version: &str) -> Value {
        until(LIMIT, &format!("release {version} is settled"), || {
            let status = self.try_status()?;
            let settled = status["update"].is_null()
                && status["bus"]["state"] == "Running"
                && status["release"]["version"] == version
                && status["release"]["state"] == "good";
            settled.then_some(status)
        })
    }

    /// Returns the PID of the guard.
    pub(crate) fn guard_pid(&self) -> i32 {
        i32::try_from(self.guard.as_ref().expect("a guard runs").id()).expect("a PID")
    }

    /// Returns the PID of the runtime.
    pub(crate) fn runtime_pid(&self) -> i32 {
        pid_of(&self.status()["runtime"])
    }

    /// Returns the PID of a component.
    pub(crate) fn component_pid(&self, name: &str) -> i32 {
        pid_of(&component(&self.status(), name))
    }

    /// Kills the runtime, and waits until another one runs; returns the PID of the one that was killed.
    pub(crate) fn kill_runtime(&self) -> i32 {
        let killed = self.runtime_pid();
        process::send(killed, Signal::SIGKILL);
        eventually(LIMIT, "another runtime runs", || {
            self.try_status()
                .is_some_and(|status| status["bus"]["state"] == "Running" && status["runtime"]["pid"] != killed)
        });
        killed
    }

    /// Waits until the guard ends by itself, at most `limit`.
    pub(crate) fn wait_guard(&mut self, limit: Duration) -> ExitStatus {
        let mut guard = self.guard.take().expect("a guard runs");
        let begun = Instant::now();
        let status = until(limit + LIMIT, "the guard ends", || guard.try_wait().expect("wait for the guard"));
        assert!(begun.elapsed() < limit, "the guard took {:?} to end", begun.elapsed());
        status
    }

    /// Asks the guard to end, and waits until it has.
    pub(crate) fn stop(&mut self) {
        process::send(self.guard_pid(), Signal::SIGTERM);
        assert_eq!(self.wait_guard(LIMIT).code(), Some(0), "{}", self.log());
    }

    /// Kills the guard with SIGKILL and collects it.
    pub(crate) fn kill_guard(&mut self) {
        let mut guard = self.guard.take().expect("a guard runs");
        guard.kill().expect("kill the guard");
        guard.wait().expect("collect the guard");
    }

    /// Returns the living processes of this appliance.
    pub(crate) fn processes(&self) -> Vec<i32> {
        process::of_home(&self.home)
    }

    /// Starts load on the shop.
    pub(crate) fn load(&self, options: LoadOptions) -> Load {
        let load = Load::start(self.address("http"), options);
        load.wait_for_ok(50, LIMIT).expect("the shop answers");
        load
    }

    /// Returns what the components have recorded, line by line, without PIDs.
    pub(crate) fn order(&self) -> Vec<String> {
        let text = fs::read_to_string(self.home.join("data/order")).unwrap_or_default();
        text.lines().map(|line| line.rsplit_once(' ').expect("three words").0.to_owned()).collect()
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A guard that was never started has none; and this must not panic again.
            let log = fs::read_to_string(self.log_path()).unwrap_or_default();
            eprintln!("--- the log of {}:\n{log}", self.home.display());
        }
        if let Some(mut guard) = self.guard.take() {
            guard.kill().ok(); // gone already is as good
            guard.wait().ok();
        }
        end_all(&self.home);
        // A guard that was killed left its control groups to the next one, and there is none.
        refit::process::cgroup::remove_all(&self.home);
        // Releases are read-only, also for the directory that is removed now.
        make_dirs_writable(&self.home).ok(); // one that was never made needs nothing
    }
}

/// Kills what belongs to `home`, until nothing does.
pub(crate) fn end_all(home: &Path) {
    eventually(LIMIT, "every process is gone", || {
        let left = process::of_home(home);
        for pid in &left {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok(); // gone already is as good
        }
        left.is_empty()
    });
}

/// Returns what a status says of a component.
pub(crate) fn component(status: &Value, name: &str) -> Value {
    let components = status["components"].as_array().expect("a list");
    let found = components.iter().find(|component| component["name"] == name);
    found.unwrap_or_else(|| panic!("no component {name}: {status}")).clone()
}

/// Returns the PID in an object of the status.
pub(crate) fn pid_of(object: &Value) -> i32 {
    let pid = object["pid"].as_i64().unwrap_or_else(|| panic!("no PID: {object}"));
    i32::try_from(pid).expect("a PID")
}

/// Returns a text of the API.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}
