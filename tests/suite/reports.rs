//! What a runtime reports to its guard, and the guard to a service manager: nothing of it gets lost, and nobody waits for one that does
//! not read.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::appliance::{Appliance, component, pid_of};
use crate::components::{in_state, pid_in, with_odd};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, passes, until};

/// The watchdog time of appliances that are watched closely.
const WATCHDOG: Duration = Duration::from_secs(1);

fn watched(local: String) -> String {
    local.replace("[update]\n", "[update]\nwatchdog = \"1s\"\n")
}

/// Returns the keys of a component that counts aloud in lines of a hundred bytes, so many between two pauses.
fn counts(lines: u32) -> String {
    let script =
        format!("n=0; while :; do n=$((n+1)); printf '%0100d\\\\n' $n; [ $((n % {lines})) -ne 0 ] || sleep 0.1; done");
    format!("command = [\"sh\", \"-c\", \"{script}\"]\nready = \"started\"")
}

/// Returns a release whose components, with these names, print now and then.
fn printers(version: &str, names: &[String]) -> Release {
    names.iter().fold(Release::bare(version), |release, name| release.component(name, &counts(1)))
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("part{number}")).collect()
}

fn pids(appliance: &Appliance, names: &[String]) -> Vec<i32> {
    let status = appliance.status();
    names.iter().map(|name| pid_of(&component(&status, name))).collect()
}

/// Returns what the process has open.
fn open(pid: i32) -> BTreeSet<String> {
    let link = |entry: fs::DirEntry| Some(fs::read_link(entry.path()).ok()?.to_str()?.to_owned());
    fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").flatten().filter_map(link).collect()
}

/// Returns what the process prints to.
fn output_of(pid: i32) -> [String; 2] {
    [1, 2].map(|number| {
        let pipe = fs::read_link(format!("/proc/{pid}/fd/{number}")).expect("it lives");
        pipe.to_str().expect("text").to_owned()
    })
}

/// Returns whether the guard keeps what the process prints to.
fn is_kept(appliance: &Appliance, pid: i32) -> bool {
    let kept = open(appliance.guard_pid());
    output_of(pid).iter().all(|pipe| kept.contains(pipe))
}

/// Returns the number that the next descriptor of the process has.
fn lowest_free(pid: i32) -> u64 {
    let dir = format!("/proc/{pid}/fd");
    (0..).find(|number| fs::symlink_metadata(format!("{dir}/{number}")).is_err()).expect("one is free")
}

/// Returns how far the component has counted, as the appliance has read it.
fn counted(appliance: &Appliance, name: &str) -> u64 {
    let text = appliance.refit(&["component", "logs", name, "-n", "1"]).ends_with(0).stdout;
    text.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Kills the runtime, and asserts that these processes are the components afterwards, and are read.
fn survive(appliance: &Appliance, names: &[String], before: &[i32]) {
    appliance.kill_runtime();
    assert_eq!(pids(appliance, names), before, "{}", appliance.log());
    for name in names {
        let before = counted(appliance, name);
        eventually(LIMIT, "it is read", || counted(appliance, name) > before);
    }
}

#[test]
fn a_release_does_not_pay_for_a_socket_of_the_guard_that_somebody_removed() {
    let damages: [fn(&Path); 3] = [
        |socket| fs::remove_file(socket).expect("removed"),
        |socket| {
            fs::remove_file(socket).expect("removed");
            drop(UnixDatagram::bind(socket).expect("a socket that nobody reads"));
        },
        |socket| fs::remove_dir_all(socket.parent().expect("a directory")).expect("removed"),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let parts = names(2);
        // Of one the trial is longer than what an image has that reports nothing.
        let local = |text: String| {
            let text = text.replace("[update]\n", "[update]\nwatchdog = \"5s\"\n");
            if number == 0 { text.replace("probation = \"300ms\"", "probation = \"7s\"") } else { text }
        };
        let appliance = Appliance::new(&printers("1.0.0", &parts)).local(local).start();
        let runtime = appliance.runtime_pid();
        let socket = appliance.home().join("run/guard.sock");
        assert!(fs::metadata(&socket).expect("it is there").file_type().is_socket());
        // Where the commands find the appliance again.
        let others = ["refit.sock", "bus.sock"].map(|name| socket.with_file_name(name));
        let aside = |path: &Path| appliance.home().join("data").join(path.file_name().expect("a name"));
        fs::create_dir_all(appliance.home().join("data")).expect("made");
        others.iter().for_each(|path| fs::rename(path, aside(path)).expect("moved"));
        damage(&socket);
        fs::create_dir_all(socket.parent().expect("a directory")).expect("made");
        others.iter().for_each(|path| fs::rename(aside(path), path).expect("moved back"));

        appliance.refit(&["bus", "request", "restart"]).ends_with(0);
        let before = pids(&appliance, &parts);
        appliance.install(&printers("1.1.0", &parts), &[]).ends_with(0);
        appliance.settled("1.1.0");
        assert_eq!(appliance.runtime_pid(), runtime, "{number}: {}", appliance.log());
        assert_eq!(appliance.history()[0]["outcome"], "done");
        assert_eq!(pids(&appliance, &parts), before, "nothing of them has changed");
        // The guard hears of what changes.
        appliance.refit(&["component", "restart", "part0"]).ends_with(0);
        let after = pids(&appliance, &parts);
        survive(&appliance, &parts, &after);
    }
}

#[test]
fn a_guard_that_does_not_read_holds_nobody_up_and_is_told_everything_later() {
    let parts = names(12);
    for restarts in [false, true] {
        let release = printers("1.0.0", &parts).component("chatty", &counts(100));
        let appliance = Appliance::new(&release).start();
        let old = pids(&appliance, &parts);
        process::send(appliance.guard_pid(), Signal::SIGSTOP);
        // What the components print is on the log, which the guard reads: more than its pipe holds.
        let before = counted(&appliance, "chatty");
        eventually(LIMIT, "much is printed", || counted(&appliance, "chatty") > before + 1000);
        // More reports than the channel holds.
        for _ in 0..2 {
            appliance.refit(&["bus", "request", "stop"]).ends_with(0);
            appliance.refit(&["bus", "request", "start"]).ends_with(0);
        }
        appliance.refit(&["component", "restart", "part0"]).ends_with(0);
        appliance.refit(&["status"]).ends_with(0);
        if restarts {
            appliance.refit(&["bus", "request", "restart"]).ends_with(0);
        }
        let new = pids(&appliance, &parts);
        assert!(old.iter().zip(&new).all(|(old, new)| old != new), "{old:?} {new:?}");
        process::send(appliance.guard_pid(), Signal::SIGCONT);
        eventually(LIMIT, "the guard keeps everything", || new.iter().all(|pid| is_kept(&appliance, *pid)));
        survive(&appliance, &parts, &new);
        // And nothing of those that are gone.
        let pipes = |pid| open(pid).into_iter().filter(|link| link.starts_with("pipe:")).count();
        eventually(LIMIT, "the guard keeps no more", || pipes(appliance.guard_pid()) <= 2 * parts.len() + 4);
    }
}

#[test]
fn a_runtime_that_is_killed_while_the_guard_is_stopped_loses_nothing() {
    let parts = names(5);
    let appliance = Appliance::new(&printers("1.0.0", &parts)).start();
    let runtime = appliance.runtime_pid();
    process::send(appliance.guard_pid(), Signal::SIGSTOP);
    for name in &parts {
        appliance.refit(&["component", "restart", name]).ends_with(0);
    }
    let new = pids(&appliance, &parts);
    process::send(runtime, Signal::SIGKILL);
    process::send(appliance.guard_pid(), Signal::SIGCONT);
    until(LIMIT, "another runtime runs", || {
        appliance
            .try_status()
            .filter(|status| status["bus"]["state"] == "Running" && status["runtime"]["pid"] != runtime)
    });
    assert_eq!(pids(&appliance, &parts), new, "{}", appliance.log());
    survive(&appliance, &parts, &new);
}

/// Starts the component `odd` while the guard can open nothing more.
fn start_unseen(appliance: &Appliance) -> i32 {
    let old = output_of(appliance.component_pid("odd"));
    appliance.refit(&["component", "stop", "odd"]).ends_with(0);
    let guard = Pid::from_raw(appliance.guard_pid()).expect("a PID");
    eventually(LIMIT, "what belonged to it is given back", || {
        let kept = open(appliance.guard_pid());
        old.iter().all(|pipe| !kept.contains(pipe))
    });
    // And the document about that is there.
    let mut free = lowest_free(appliance.guard_pid());
    until(LIMIT, "the guard rests", || {
        passes(Duration::from_millis(200));
        let now = lowest_free(appliance.guard_pid());
        (std::mem::replace(&mut free, now) == now).then_some(())
    });
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(free), maximum };
    let before = prlimit(Some(guard), Resource::Nofile, limit).expect("set a limit of the guard");
    appliance.refit(&["component", "start", "odd"]).ends_with(0);
    eventually(LIMIT, "the guard has missed it", || appliance.log().contains("did not arrive"));
    prlimit(Some(guard), Resource::Nofile, before).expect("lift it");
    appliance.component_pid("odd")
}

fn talker() -> Release {
    let release = printers("1.0.0", &names(1));
    with_odd(release, "odd", &["talker"], "ready = \"notify\"\nrestart = { policy = \"no\" }")
}

#[test]
fn descriptors_that_did_not_arrive_are_given_once_more() {
    let appliance = Appliance::new(&talker()).local(watched).start();
    let odd = start_unseen(&appliance);
    eventually(LIMIT, "the guard keeps them", || is_kept(&appliance, odd));
    passes(2 * WATCHDOG); // the document, too
    appliance.kill_runtime();
    assert_eq!(appliance.component_pid("odd"), odd, "{}", appliance.log());
    assert!(!appliance.log().contains("made anew"), "{}", appliance.log());
}

#[test]
fn a_process_whose_descriptors_got_lost_goes_on_and_is_heard() {
    let appliance = Appliance::new(&talker()).start();
    let odd = start_unseen(&appliance);
    // The guard has a document that tells of it, and not what belongs to it.
    appliance.refit(&["component", "restart", "part0"]).ends_with(0);
    appliance.kill_runtime();
    assert_eq!(appliance.component_pid("odd"), odd, "{}", appliance.log());
    assert!(appliance.log().contains("descriptors of a process got lost, and were made anew"), "{}", appliance.log());
    fs::write(appliance.home().join("data/talk"), "").expect("written");
    eventually(LIMIT, "it is heard", || component(&appliance.status(), "odd")["status"] == "busy");
    let printed = || appliance.refit(&["component", "logs", "odd"]).ends_with(0).stdout;
    eventually(LIMIT, "it is read", || printed().contains("talked"));
    // Now the guard keeps them.
    eventually(LIMIT, "the guard keeps them", || is_kept(&appliance, odd));
    appliance.kill_runtime();
    assert_eq!(appliance.component_pid("odd"), odd, "{}", appliance.log());
    fs::write(appliance.home().join("data/fail"), "").expect("written");
    in_state(&appliance, "failed");
    assert_eq!(pid_in(&appliance, "talked"), odd);
}

#[test]
fn a_service_manager_that_does_not_read_hears_everything_later() {
    let parts = names(8);
    let mut appliance = Appliance::new(&printers("1.0.0", &parts));
    let path = appliance.scratch().join("manager.sock");
    let manager = UnixDatagram::bind(&path).expect("bind the manager's socket");
    manager.set_nonblocking(true).expect("a socket");
    appliance.run_guard_through(&["env", &format!("NOTIFY_SOCKET={}", path.display())]);
    appliance.wait_running();
    for name in &parts {
        appliance.refit(&["component", "restart", name]).ends_with(0);
    }
    // More than its queue holds has been said until now; it begins to read.
    let mut heard = String::new();
    let mut hear = |what: &str| {
        eventually(LIMIT, &format!("the manager hears {what}"), || {
            let mut bytes = [0; 4096];
            while let Ok(count) = manager.recv(&mut bytes) {
                heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
                heard.push('\n');
            }
            heard.contains(what)
        });
    };
    hear("READY=1");
    for name in &parts {
        hear(&format!("FDNAME=refit.instance.{name}-2.out"));
    }
    process::send(appliance.guard_pid(), Signal::SIGTERM);
    hear("STOPPING=1");
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0));
}
