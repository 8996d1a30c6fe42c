//! Whom `NOTIFY_SOCKET` and the guard's socket believe, and `refit notify`.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use refit::handover::notify;
use refit_fixtures::tools::as_root;

use crate::appliance::{Appliance, Ran, component, end_all, refit};
use crate::components::{odd, of, with_odd, without_groups};
use crate::process;
use crate::release::{REFIT, Release};
use crate::wait::{LIMIT, eventually, until};

/// What is said of a notification that is not believed.
const REFUSED: &str = "a notification was refused";

/// A shell script that reports as it can.
const SHELL: &str = "\"$REFIT\" notify READY=1 \"STATUS=from a shell\" || exit 1\nexec sleep 1000\n";

/// Sends what is in its arguments, again and again, to the socket in the first, and says what came of it.
const FORGE: &str = "
import socket, sys
found = set()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as forger:
    forger.settimeout(10)
    for text in sys.argv[2:]:
        for _ in range(42):
            try:
                forger.sendto(text.encode(), sys.argv[1])
                found.add('sent')
            except OSError as error:
                found.add(type(error).__name__)
print(*sorted(found))
";

/// Everything that could do harm.
const FORGED: [&str; 6] = [
    "READY=1\nSTATUS=forged",
    "WATCHDOG=trigger",
    "STOPPING=1\nRELOADING=1\nERRNO=5",
    "EXTEND_TIMEOUT_USEC=3600000000",
    "MAINPID=1",
    "FDSTORE=1\nFDNAME=forged",
];

/// Returns the socket on which a process reports.
fn socket_of(pid: i32) -> PathBuf {
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("it lives");
    let text = String::from_utf8_lossy(&environment).into_owned();
    text.split('\0').find_map(|word| word.strip_prefix("NOTIFY_SOCKET=")).expect("it may report").into()
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o7777
}

/// Sends all that is forged to `socket`, as `account` if there is one. Returns what came of it.
fn forge(socket: &Path, account: Option<u32>) -> String {
    let mut python = Command::new("python3");
    python.arg("-c").arg(FORGE).arg(socket).args(FORGED);
    if let Some(account) = account {
        python.uid(account).gid(account);
    }
    Ran::of(&mut python).ends_with(0).stdout.trim().to_owned()
}

/// Asserts that the component goes on as process `pid` and has heard nothing of what was forged.
fn is_untouched(appliance: &Appliance, pid: i32) {
    let found = of(appliance);
    assert_eq!((found["pid"].as_i64(), &found["state"]), (Some(pid.into()), &"running".into()), "{found}");
    assert!(found["announced"].is_null() && found["status"] != "forged", "{found}");
}

/// Waits until all that was sent to the socket has been taken: forges a little more, and waits for that.
fn all_was_taken(socket: &Path) {
    let ran = Ran::of(notifier(socket).args(["STATUS=forged", "WATCHDOG=trigger"])).ends_with(0);
    assert_eq!(ran.stderr, "", "one that is not believed does not hear of it");
}

/// Opens the way to the home for components of other accounts.
fn opened(appliance: Appliance) -> Appliance {
    for dir in [appliance.scratch(), appliance.home()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("open the way to the release");
    }
    appliance
}

#[test]
fn another_account_cannot_report_for_a_component() {
    if !as_root() {
        return;
    }
    let daemon = User::from_name("daemon").expect("accounts").expect("every system has it").uid.as_raw();
    for keys in ["ready = \"notify\"", "ready = \"notify\"\nuser = \"nobody\"\nsupplementary_groups = []"] {
        let appliance = opened(Appliance::new(&odd(&["plain", "own"], keys))).start();
        let pid = appliance.component_pid("odd");
        let socket = socket_of(pid);
        assert_eq!(forge(&socket, Some(daemon)), "PermissionError", "{keys}");
        is_untouched(&appliance, pid);
        // Nor would it be believed if it could reach the socket.
        for (path, mode) in [(socket.parent().expect("a directory"), 0o755), (&socket, 0o666)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("opened");
        }
        assert_eq!(forge(&socket, Some(daemon)), "sent");
        eventually(LIMIT, "the forger is named", || appliance.log().contains("another account"));
        all_was_taken(&socket);
        is_untouched(&appliance, pid);
        assert_eq!(of(&appliance)["status"], "own");
        let log = appliance.log();
        assert_eq!(log.matches("another account").count(), 1, "one line for each sender: {log}");
    }
}

#[test]
fn another_process_of_the_same_account_cannot_report_for_a_component() {
    for local in [|text| text, without_groups as fn(String) -> String] {
        let appliance = Appliance::new(&odd(&["plain", "own"], "ready = \"notify\"")).local(local).start();
        let pid = appliance.component_pid("odd");
        // It sends from a process that lives until all has been taken, unlike one that only sends and ends.
        let socket = socket_of(pid);
        let forger = UnixDatagram::unbound().expect("a socket");
        for text in FORGED.iter().cycle().take(6 * 42) {
            forger.send_to(text.as_bytes(), &socket).expect("sent");
        }
        all_was_taken(&socket);
        is_untouched(&appliance, pid);
        let log = appliance.log();
        assert_eq!(log.matches(REFUSED).count(), 2, "one line for each sender: {log}");
    }
}

#[test]
fn another_component_of_the_same_account_cannot_report_for_one() {
    let keys = "ready = \"notify\"";
    let release = with_odd(odd(&["plain", "own"], keys), "forger", &["forger", "odd"], keys);
    let appliance = Appliance::new(&release).start();
    let pid = appliance.component_pid("odd");
    fs::write(appliance.home().join("data/target"), socket_of(pid).as_os_str().as_encoded_bytes()).expect("written");
    until(LIMIT, "all was forged", || {
        (component(&appliance.try_status()?, "forger")["status"] == "forged").then_some(())
    });
    all_was_taken(&socket_of(pid));
    is_untouched(&appliance, pid);
    assert!(appliance.log().contains("not a process of the component"), "{}", appliance.log());
}

#[test]
fn a_forged_word_does_not_commit_a_release() {
    let appliance = Appliance::new(&odd(&["plain", "old"], "ready = \"notify\"")).start();
    let next = with_odd(Release::bare("1.1.0"), "odd", &["silent"], "ready = \"notify\"\nstart_timeout = \"2s\"");
    let forger = UnixDatagram::unbound().expect("a socket");
    let home = appliance.home();
    thread::scope(|scope| {
        let install = scope.spawn(|| appliance.install(&next, &[]).ends_with(70));
        until(LIMIT, "the update has ended", || {
            for path in fs::read_dir(home.join("run/notify")).into_iter().flatten().flatten() {
                let paths = [path.path().join("socket"), path.path()];
                // One that is not there any more is as good.
                let _ = paths.iter().any(|path| forger.send_to(b"READY=1", path).is_ok());
            }
            install.is_finished().then_some(())
        });
    });
    appliance.settled("1.0.0");
    let newest = appliance.history().first().expect("an entry").to_string();
    assert!(newest.contains("a notification was refused"), "{newest}");
}

#[test]
fn all_that_a_component_starts_may_report_for_it() {
    for local in [|text| text, without_groups as fn(String) -> String] {
        for (behaviour, status) in [("by_child", "child"), ("by_gone", "gone"), ("by_orphan", "orphan")] {
            let appliance = Appliance::new(&odd(&[behaviour], "ready = \"notify\"")).local(local).start();
            assert_eq!(of(&appliance)["status"], status);
            // Also under the next runtime, which has not started it.
            appliance.kill_runtime();
            fs::write(appliance.home().join("data/again"), "").expect("written");
            until(LIMIT, "it is heard again", || (of(&appliance)["status"] == "again").then_some(()));
            assert!(!appliance.log().contains(REFUSED), "{behaviour}: {}", appliance.log());
        }
    }
}

#[test]
fn notify_access_narrows_who_may_report() {
    let keys = "ready = \"notify\"\nnotify_access = \"main\"\nstart_timeout = \"1h\"";
    let mut appliance = Appliance::new(&odd(&["by_child"], keys));
    appliance.run_guard();
    eventually(LIMIT, "the child is refused", || appliance.log().contains("notify_access is"));
    assert_eq!(of(&appliance)["state"], "starting", "{}", appliance.log());

    let appliance = Appliance::new(&odd(&["plain", "main"], "ready = \"notify\"\nnotify_access = \"main\"")).start();
    assert_eq!(of(&appliance)["status"], "main");

    let appliance = Appliance::new(&odd(&["silent"], "ready = \"exec\"\nnotify_access = \"none\"")).start();
    let pid = appliance.component_pid("odd");
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("it lives");
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"));
    // Nothing of that keeps the next runtime from taking it over.
    appliance.kill_runtime();
    assert_eq!(appliance.component_pid("odd"), pid);
}

#[test]
fn a_notify_socket_belongs_to_one_process_and_goes_with_it() {
    let appliance = Appliance::new(&odd(&["plain"], "ready = \"notify\"")).start();
    let first = socket_of(appliance.component_pid("odd"));
    let (dir, all) = (first.parent().expect("its own"), appliance.home().join("run/notify"));
    assert_eq!((mode_of(&first), mode_of(dir)), (0o600, 0o700));
    assert_eq!(mode_of(&all), if geteuid().is_root() { 0o711 } else { 0o700 });
    appliance.kill_runtime();
    assert_eq!((mode_of(&first), socket_of(appliance.component_pid("odd"))), (0o600, first.clone()));
    appliance.refit(&["component", "restart", "odd"]).ends_with(0);
    let second = socket_of(appliance.component_pid("odd"));
    assert_ne!(first, second);
    assert!(!dir.exists(), "{}", dir.display());
    appliance.refit(&["component", "stop", "odd"]).ends_with(0);
    assert_eq!(fs::read_dir(&all).expect("it is there").count(), 0);
}

/// An appliance whose home lies so deep that the path of a socket in it is too long.
struct Deep {
    appliance: Appliance,
    home: PathBuf,
    guard: Option<Child>,
}

impl Deep {
    fn new() -> Self {
        let appliance = Appliance::new(&odd(&["plain", "deep"], "ready = \"notify\""));
        let deep = appliance.scratch().join("d".repeat(60)).join("e".repeat(60));
        fs::create_dir_all(&deep).expect("directories");
        let home = deep.join("home");
        fs::rename(appliance.home(), &home).expect("moved");
        Self { appliance, home, guard: None }
    }

    /// Starts the guard. Returns its PID, the runtime's, and the directory of the component's socket.
    fn start(&mut self) -> (i32, i32, PathBuf) {
        let mut guard = refit();
        guard.args(["run", "--with-parent", "--home"]).arg(&self.home).stdout(Stdio::null()).stderr(Stdio::null());
        let guard = self.guard.insert(guard.spawn().expect("start the guard"));
        let guard = i32::try_from(guard.id()).expect("a PID");
        let number = |value: &serde_json::Value| value.as_i64().and_then(|pid| i32::try_from(pid).ok());
        let (runtime, pid) = until(LIMIT, "the component is ready", || {
            let status = Ran::of(refit().args(["status", "--json", "--home"]).arg(&self.home));
            let status: serde_json::Value = serde_json::from_str(status.stdout.lines().next()?).ok()?;
            let found = status["components"].as_array()?.first()?.clone();
            let is_ready = found["status"] == "deep" && status["guard"]["pid"] == guard;
            Some((number(&status["runtime"]["pid"])?, number(&found["pid"])?)).filter(|_| is_ready)
        });
        let socket = socket_of(pid);
        assert!(socket.as_os_str().len() < 108 && !socket.starts_with(&self.home), "{}", socket.display());
        let dir = socket.parent().expect("its own").to_owned();
        assert_eq!((mode_of(&socket), mode_of(&dir)), (0o600, 0o700));
        assert_eq!(fs::metadata(&dir).expect("it is there").uid(), geteuid().as_raw());
        (guard, runtime, dir)
    }

    fn wait_guard(&mut self) {
        self.guard.take().expect("it was started").wait().expect("it ends");
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            guard.kill().ok(); // gone already is as good
            guard.wait().ok();
        }
        end_all(&self.home);
        fs::rename(&self.home, self.appliance.home()).expect("moved back"); // for what tidies up
    }
}

#[test]
fn a_component_below_a_deep_home_reports_all_the_same() {
    let mut deep = Deep::new();
    let (guard, _, dir) = deep.start();
    process::send(guard, Signal::SIGTERM);
    deep.wait_guard();
    assert!(!dir.exists(), "{}", dir.display());
    assert_eq!(fs::read_dir(deep.home.join("run/notify")).expect("it is there").count(), 0);
}

#[test]
fn what_lies_outside_of_a_home_is_removed_when_everything_was_killed() {
    let (mut other, mut deep) = (Deep::new(), Deep::new());
    let (_, _, kept) = other.start();
    let (guard, runtime, dir) = deep.start();
    process::send(runtime, Signal::SIGSTOP);
    process::send(guard, Signal::SIGKILL);
    process::send(runtime, Signal::SIGKILL);
    deep.wait_guard();
    assert!(dir.exists(), "nobody could remove it");
    let (guard, _, new) = deep.start();
    assert!(!dir.exists() && new.exists() && kept.exists(), "{} {} {}", dir.display(), new.display(), kept.display());
    process::send(guard, Signal::SIGTERM);
    deep.wait_guard();
    assert!(!new.exists() && kept.exists());
}

#[test]
fn the_guard_believes_its_runtime_alone() {
    let appliance = Appliance::new(&odd(&["plain"], "ready = \"notify\"")).start();
    let (guard, odd) = (appliance.guard_pid(), appliance.component_pid("odd"));
    let socket = appliance.home().join("run/guard.sock");
    assert_eq!(mode_of(&socket), 0o600);
    let forger = UnixDatagram::unbound().expect("a socket");
    let mut forged = vec!["STOPPING=1", "WATCHDOG_USEC=0", "WATCHDOG_USEC=1", "RELOADING=1"];
    let names = ["refit.api", "refit.instance.odd-1.notify", "refit.instance.odd-1.out", "admin"];
    let removals = names.map(|name| format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    forged.extend(removals.iter().map(String::as_str));
    for text in forged.iter().cycle().take(8 * forged.len()) {
        forger.send_to(text.as_bytes(), &socket).expect("sent");
    }
    appliance.kill_runtime();
    assert_eq!((appliance.guard_pid(), appliance.component_pid("odd")), (guard, odd), "it was adopted");
    assert!(process::is_alive(guard));
    let log = appliance.log();
    assert_eq!(log.matches("is not the runtime").count(), 1, "said once: {log}");
    appliance.refit(&["component", "restart", "odd"]).ends_with(0);
}

/// Returns `refit notify` for the socket at `path`.
fn notifier(path: &Path) -> Command {
    let mut command = refit();
    command.arg("notify").env("NOTIFY_SOCKET", path);
    command
}

#[test]
fn a_shell_reports_by_refit_notify() {
    let keys = format!("command = [\"sh\", \"lib/say.sh\"]\nready = \"notify\"\nenv = {{ REFIT = {REFIT:?} }}");
    let release = Release::bare("1.0.0").component("odd", &keys).file("lib/say.sh", SHELL);
    for local in [|text| text, without_groups as fn(String) -> String] {
        let appliance = Appliance::new(&release).local(local).start();
        assert_eq!(of(&appliance)["status"], "from a shell");
        assert!(!appliance.log().contains(REFUSED), "{}", appliance.log());
    }
}

#[test]
fn refit_notify_waits_until_it_was_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("socket");
    let socket = UnixDatagram::bind(&path).expect("bound");
    let said = Ran::of(notifier(&path).args(["READY=1", "--timeout", "200ms"])).complains_with(75);
    assert!(said.contains("not taken within 0.2 s") && said.contains("--timeout"), "{said}");
    thread::scope(|scope| {
        let sender = scope.spawn(|| Ran::of(notifier(&path).args(["READY=1", "STATUS=a=b c"])).ends_with(0));
        // What the first one has left is there, too.
        let texts: Vec<Vec<(String, String)>> =
            (0..4).map(|_| notify::receive(socket.as_fd()).expect("received").fields).collect();
        let field = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(texts[2], [field("READY", "1"), field("STATUS", "a=b c")]);
        assert_eq!(texts[3], [field("BARRIER", "1")]);
        assert_eq!(sender.join().expect("it ends").stdout, "");
    });
}

#[test]
fn refit_notify_says_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("socket");
    let said = Ran::of(refit().args(["notify", "READY=1"])).complains_with(69);
    assert!(said.contains("NOTIFY_SOCKET is not set"), "{said}");
    let said = Ran::of(notifier(&path).arg("READY=1")).complains_with(69);
    assert!(said.contains("cannot reach") && said.contains("No such file"), "{said}");
    drop(UnixDatagram::bind(&path).expect("bound"));
    let said = Ran::of(notifier(&path).arg("READY=1")).complains_with(69);
    assert!(said.contains("Connection refused"), "{said}");
    let _socket = UnixDatagram::bind(dir.path().join("other")).expect("bound");
    let other = dir.path().join("other");
    for word in ["READY", "=1", "STATUS=a\nWATCHDOG=trigger", "BARRIER=1"] {
        let said = Ran::of(notifier(&other).arg(word)).complains_with(64);
        assert!(said.contains("is not a field"), "{said}");
    }
    let said = Ran::of(notifier(&other).arg(format!("STATUS={}", "x".repeat(5000)))).complains_with(64);
    assert!(said.contains("too long"), "{said}");
    Ran::of(&mut notifier(&other)).complains_with(64);
    Ran::of(notifier(&other).args(["READY=1", "--timeout", "soon"])).complains_with(64);
}
