//! A machine that is paused, as a virtual machine is, and a runtime that hangs: only the second is ended.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::appliance::{Appliance, component, text};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, passes};

/// The watchdog time of these appliances.
const WATCHDOG: Duration = Duration::from_secs(1);

fn watched(local: String) -> String {
    local.replace("[update]\n", "[update]\nwatchdog = \"1s\"\n")
}

#[test]
fn a_paused_machine_is_not_taken_for_a_runtime_that_hangs() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).local(watched).start();
    let (guard, runtime) = (appliance.guard_pid(), appliance.runtime_pid());
    let components = [appliance.component_pid("shop"), appliance.component_pid("stock")];
    for stopped in [[guard, runtime], [runtime, guard]] {
        for resumed in [[guard, runtime], [runtime, guard]] {
            for pid in stopped.into_iter().chain(components) {
                process::send(pid, Signal::SIGSTOP);
            }
            passes(2 * WATCHDOG);
            for pid in resumed.into_iter().chain(components) {
                process::send(pid, Signal::SIGCONT);
            }
            // Long enough for the guard to kill one that it takes for dead.
            passes(2 * WATCHDOG);
            assert_eq!(appliance.runtime_pid(), runtime, "{}", appliance.log());
            assert_eq!([appliance.component_pid("shop"), appliance.component_pid("stock")], components);
        }
    }
    assert!(!appliance.log().contains("watchdog"), "{}", appliance.log());
}

/// What counts time against components was paused, too: their watchdog, their start, their stop, their health.
#[test]
fn a_paused_machine_is_not_taken_for_components_that_hang() {
    let restart = "restart = { policy = \"no\" }";
    let ticks = "import os, socket, time\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        s.connect(os.environ['NOTIFY_SOCKET'])\n\
        while True:\n    s.send(b'READY=1\\nWATCHDOG=1')\n    time.sleep(0.2)\n";
    let starts = "import os, socket, time\n\
        open(os.environ['REFIT_DATA'] + '/begun', 'w').close()\n\
        while not os.path.exists(os.environ['REFIT_DATA'] + '/go'): time.sleep(0.01)\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        s.connect(os.environ['NOTIFY_SOCKET'])\n\
        s.send(b'READY=1')\n\
        time.sleep(1000)\n";
    let health = "health = { command = [\"sh\", \"-c\", \"touch $REFIT_DATA/probe; sleep 0.3\"], interval = \"50ms\", \
                  timeout = \"1s\", threshold = 1, action = \"restart\" }";
    let release = Release::bare("1.0.0")
        .component(
            "ticks",
            &format!("command = [\"python3\", \"lib/ticks.py\"]\nready = \"notify\"\nwatchdog = \"1s\"\n{restart}"),
        )
        .component("probed", &format!("command = [\"sleep\", \"1000\"]\nready = \"started\"\n{health}\n{restart}"))
        .component(
            "starts",
            &format!(
                "command = [\"python3\", \"lib/starts.py\"]\nready = \"notify\"\nstart_timeout = \"3s\"\n{restart}"
            ),
        )
        .file("lib/ticks.py", ticks)
        .file("lib/starts.py", starts);
    let mut appliance = Appliance::new(&release);
    appliance.run_guard();
    let data = appliance.home().join("data");
    eventually(LIMIT, "two run, and the last one starts", || {
        let runs = |status: &Value, name| component(status, name)["state"] == "running";
        data.join("begun").exists()
            && data.join("probe").exists()
            && appliance.try_status().is_some_and(|status| runs(&status, "ticks") && runs(&status, "probed"))
    });
    let status = appliance.status();
    let pids = ["ticks", "probed"].map(|name| component(&status, name)["pid"].clone());
    let all = appliance.processes();
    for pid in &all {
        process::try_send(*pid, Signal::SIGSTOP);
    }
    passes(5 * WATCHDOG);
    for pid in &all {
        process::try_send(*pid, Signal::SIGCONT);
    }
    passes(WATCHDOG);
    std::fs::write(data.join("go"), "").expect("let it start");
    appliance.wait_running();
    let status = appliance.status();
    assert_eq!(["ticks", "probed"].map(|name| component(&status, name)["pid"].clone()), pids, "{}", appliance.log());
    for name in ["ticks", "probed", "starts"] {
        assert_eq!(component(&status, name)["state"], "running", "{name}: {}", appliance.log());
    }
}

#[test]
fn a_runtime_that_hangs_is_ended_by_the_watchdog_and_that_is_said() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).local(watched).start();
    let runtime = appliance.runtime_pid();
    // A guard that was paused itself is as watchful as before.
    process::send(appliance.guard_pid(), Signal::SIGSTOP);
    passes(2 * WATCHDOG);
    process::send(appliance.guard_pid(), Signal::SIGCONT);
    process::send(runtime, Signal::SIGSTOP);
    eventually(15 * WATCHDOG, "another runtime runs", || {
        appliance.try_status().is_some_and(|status| status["runtime"]["pid"] != runtime)
    });
    let log = appliance.log();
    let line = "the runtime did not report within its watchdog time of 1 s, and was killed";
    assert!(log.contains(&format!("{line}; starting it again in 0 ms")), "{log}");
    assert!(!log.contains("signal 9"), "{log}");
}

#[test]
fn a_trial_that_the_watchdog_ended_says_so_in_the_history() {
    let appliance = Appliance::new(&Release::shop("1.0.0"))
        .local(|text| watched(text.replace("probation = \"300ms\"", "probation = \"10m\"")))
        .start();
    std::thread::scope(|scope| {
        let install = scope.spawn(|| appliance.install(&Release::shop("1.1.0"), &[]));
        eventually(LIMIT, "release 1.1.0 is on trial", || {
            appliance.try_status().is_some_and(|status| status["update"]["phase"] == "probation")
        });
        process::send(appliance.runtime_pid(), Signal::SIGSTOP);
        let line = install.join().expect("no panic").complains_with(70);
        assert!(line.contains("did not report within its watchdog time of 1 s"), "{line}");
    });
    appliance.settled("1.0.0");
    let entry = appliance.history().first().expect("an entry").clone();
    let reason = text(&entry["reason"]);
    assert_eq!(reason, "the runtime did not report within its watchdog time of 1 s, and was killed", "{entry}");
    assert_eq!(entry["step"], "probation");
}
