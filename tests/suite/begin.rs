//! What guard, runtime and components begin with, whoever starts the guard: signals.

use nix::sys::signal::Signal;

use crate::appliance::Appliance;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// Executes the words after it with every signal blocked that can be, and with these ignored.
const DEAF: &str = "import os, signal, sys\n\
    for name in 'CHLD TERM INT HUP PIPE USR1 USR2 ALRM QUIT WINCH'.split():\n    \
        signal.signal(getattr(signal, 'SIG' + name), signal.SIG_IGN)\n\
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n\
    os.execv(sys.argv[1], sys.argv[1:])";

/// The bit of a signal in the kernel's masks.
fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// A component that is a program of the system's, which changes nothing of what it begins with.
fn sleeper(version: &str) -> Release {
    let keys = "command = [\"sleep\", \"1000\"]\nready = \"started\"";
    Release::bare(version).component("sleeper", keys).with_a_runtime()
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

    process::send(appliance.guard_pid(), Signal::SIGTERM);
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0), "{}", appliance.log());
    assert_eq!(appliance.processes(), Vec::<i32>::new());
    assert!(appliance.log().lines().count() < 200, "the log is short: {}", appliance.log());
}
