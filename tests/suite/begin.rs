//! What guard, runtime and components begin with, whoever starts the guard: signals, the order of the OOM killer, limits.

use std::fs;

use nix::sys::signal::Signal;

use crate::appliance::Appliance;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// Executes the words after it with every signal blocked that can be, and with these ignored.
const DEAF: &str = "import os, signal, sys\n\
    for name in 'CHLD TERM INT HUP PIPE USR1 USR2 ALRM QUIT WINCH'.split():\n    \
        signal.signal(getattr(signal, 'SIG' + name), signal.SIG_IGN)\n\
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n\
    os.execv(sys.argv[1], sys.argv[1:])";

/// Executes the words after it as one that the OOM killer takes early, and that may open few files.
const LOW: &str = "echo 100 >/proc/self/oom_score_adj && ulimit -Sn 300 && exec \"$0\" \"$@\"";

/// The bit of a signal in the kernel's masks.
fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// A component that is a program of the system's, which changes nothing of what it begins with. Its health command writes down
/// what that began with.
fn sleeper(version: &str) -> Release {
    let health = "read adj </proc/self/oom_score_adj; echo $adj $(ulimit -Sn) $(ulimit -Hn) >$REFIT_DATA/health.new; \
                  mv $REFIT_DATA/health.new $REFIT_DATA/health";
    let keys = format!(
        "command = [\"sleep\", \"1000\"]\nready = \"started\"\n\
         health = {{ command = [\"sh\", \"-c\", \"{health}\"], interval = \"50ms\", timeout = \"20s\" }}"
    );
    let limited = "command = [\"sleep\", \"2000\"]\nready = \"started\"\nlimits = { files = 64 }";
    Release::bare(version).component("sleeper", &keys).component("limited", limited).with_a_runtime()
}

/// Asserts that nothing of what the guard was started with is left in guard and runtime, and that the component ignores and
/// blocks nothing.
fn assert_signals(appliance: &Appliance) {
    let (guard, runtime) = (appliance.guard_pid(), appliance.runtime_pid());
    for (who, pid) in [("guard", guard), ("runtime", runtime)] {
        assert_eq!(process::ignored_signals(pid), bit(Signal::SIGPIPE), "{who}: as every Rust program");
    }
    assert_eq!(process::blocked_signals(runtime), 0, "the runtime");
    assert_eq!(
        process::blocked_signals(guard) & bit(Signal::SIGALRM),
        0,
        "the guard blocks what it reads, and no more"
    );
    let sleeper = appliance.component_pid("sleeper");
    let state = (process::ignored_signals(sleeper), process::blocked_signals(sleeper));
    assert_eq!(state, (0, 0), "a component ignores and blocks nothing");
}

#[test]
fn a_guard_that_was_started_with_signals_ignored_and_blocked_hears_them_all_the_same() {
    let mut appliance = Appliance::new(&sleeper("1.0.0"));
    appliance.run_guard_through(&["python3", "-c", DEAF]);
    appliance.wait_running();
    assert_signals(&appliance);
    let before = appliance.component_pid("sleeper");
    appliance.kill_runtime();
    assert_signals(&appliance);
    assert_eq!(appliance.component_pid("sleeper"), before, "it was adopted");

    appliance.install(&sleeper("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    assert_signals(&appliance);
    appliance.kill_runtime();
    appliance.refit(&["component", "restart", "sleeper"]).ends_with(0);
    assert_signals(&appliance);
    // A component that ends is noticed, too.
    process::send(appliance.component_pid("sleeper"), Signal::SIGKILL);
    eventually(LIMIT, "its end was noticed", || appliance.log().contains("was ended by signal: 9"));

    appliance.stop();
    assert_eq!(appliance.processes(), Vec::<i32>::new());
    assert!(appliance.log().lines().count() < 200, "the log is short: {}", appliance.log());
}

/// Asserts what each process has of what the guard was started with: the place `found` in the order of the OOM killer, and
/// 300 open files.
fn assert_resources(appliance: &Appliance, found: i32) {
    let lowest = lowest_place(found);
    let (guard, runtime) = (appliance.guard_pid(), appliance.runtime_pid());
    let hard = process::file_limits(guard)[1];
    for (who, pid) in [("guard", guard), ("runtime", runtime)] {
        assert_eq!(process::oom_score(pid), lowest, "{who}");
        assert_eq!(process::file_limits(pid), [hard.min(1 << 20), hard], "{who}");
    }
    let sleeper = appliance.component_pid("sleeper");
    assert_eq!((process::oom_score(sleeper), process::file_limits(sleeper)), (found, [300, hard]), "a component");
    let limited = appliance.component_pid("limited");
    assert_eq!((process::oom_score(limited), process::file_limits(limited)), (found, [64, 64]), "a limited one");
    let health = appliance.home().join("data/health");
    fs::remove_file(&health).ok(); // not there yet is as good
    let expected =
        format!("{found} 300 {}\n", if hard == u64::MAX { "unlimited".to_owned() } else { hard.to_string() });
    let written = until(LIMIT, "the health command was run", || fs::read_to_string(&health).ok());
    assert_eq!(written, expected, "a health command");
}

/// Returns the lowest place that a process of this account may have after it was at `found`.
fn lowest_place(found: i32) -> i32 {
    let script = format!(
        "echo {found} >/proc/self/oom_score_adj; for n in $(seq -1000 {found}); do \
         if echo $n 2>/dev/null >/proc/self/oom_score_adj; then break; fi; done; read n </proc/self/oom_score_adj; echo $n"
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("run sh");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

#[test]
fn guard_and_runtime_are_the_last_that_the_oom_killer_takes_and_children_get_what_refit_was_started_with() {
    let mut appliance = Appliance::new(&sleeper("1.0.0"));
    appliance.run_guard_through(&["sh", "-c", LOW]);
    appliance.wait_running();
    assert_resources(&appliance, 100);
    appliance.install(&sleeper("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    assert_resources(&appliance, 100);
    appliance.kill_runtime();
    assert_resources(&appliance, 100);
    appliance.refit(&["component", "restart", "sleeper"]).ends_with(0);
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.0.0");
    appliance.refit(&["component", "restart", "limited"]).ends_with(0);
    assert_resources(&appliance, 100);
}

#[test]
fn a_first_start_that_fails_shows_the_last_lines_of_the_program_and_what_to_do() {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let bind =
        format!("import socket; socket.create_server(('127.0.0.1', {}))", port.local_addr().expect("bound").port());
    for (program, ready, lines, remedy) in [
        (
            "#!/no/such/interpreter\n".to_owned(),
            "exec",
            "cannot execute ",
            "with an interpreter in its first line that is there",
        ),
        (
            "#!/usr/bin/env python3\nimport no_such_module\n".to_owned(),
            "notify",
            "    ModuleNotFoundError: No module named 'no_such_module'\n",
            "a Python module is missing: pack it",
        ),
        (
            format!("#!/usr/bin/env python3\n{bind}\n"),
            "notify",
            "    OSError: [Errno 98] Address already in use",
            "the program binds an address that is taken: have it take its `listeners` from Refit",
        ),
        (
            "#!/bin/sh\necho \"web: error while loading shared libraries: libx.so.1: cannot open\" >&2\nexit 127\n"
                .to_owned(),
            "notify",
            "    web: error while loading shared libraries: libx.so.1: cannot open\n",
            "a library is missing: install it, or pack it",
        ),
        ("#!/bin/sh\necho hello\nexit 3\n".to_owned(), "notify", "    hello\n", "correct the program or its settings"),
    ] {
        let keys = format!("command = [\"bin/web\"]\nready = \"{ready}\"");
        let release =
            Release::bare("1.0.0").component("web", &keys).program_text("bin/web", Box::leak(program.into_boxed_str()));
        let appliance = Appliance::new(&release);
        let ran = appliance.refit(&["run", "--with-parent"]).ends_with(70);
        let (_, said) = ran.stderr.split_once("refit: component web failed to start: ").expect("it says so");
        assert!(said.contains(lines) && said.contains(remedy), "{said}");
        let home = appliance.home().display();
        let rest =
            format!("`refit run --home {home}` in a terminal shows all that it prints, and {home}/log/web/ keeps it");
        assert!(said.contains(&rest), "{said}");
    }
}
