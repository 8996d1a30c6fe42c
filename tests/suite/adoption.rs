//! What the next runtime believes of processes to which something was being done when the one before was killed.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::appliance::{Appliance, component, refit, text};
use crate::components::{data, in_state, odd, of, pid_in, with_odd, without_groups};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, passes, until};

const KEYS: &str = "ready = \"notify\"\nstop_timeout = \"60s\"";

/// A component that ends well when it is told to, and takes until `data/end` is there.
fn slow() -> Release {
    odd(&["slow_end", "100"], KEYS)
}

/// Returns the numbers in one of the component's files.
fn pids_in(appliance: &Appliance, name: &str) -> Vec<i32> {
    let text = fs::read_to_string(appliance.home().join("data").join(name)).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Lets the processes that were told to end do it.
fn let_end(appliance: &Appliance) {
    fs::write(appliance.home().join("data/end"), "").expect("written");
}

/// Has `words` done by a command that nobody waits for.
pub(crate) fn ask(appliance: &Appliance, words: &[&str]) -> std::process::Child {
    let mut command = refit();
    command.args(words).arg("--home").arg(appliance.home()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.spawn().expect("start refit")
}

/// Asserts that a command ends with success.
pub(crate) fn is_done(mut asked: std::process::Child) {
    let status = until(LIMIT, "the command ends", || asked.try_wait().expect("wait for it"));
    assert_eq!(status.code(), Some(0));
}

/// Kills the runtime although it may have more to do, and waits until another one answers.
pub(crate) fn kill_runtime(appliance: &Appliance) {
    let killed = appliance.runtime_pid();
    process::send(killed, Signal::SIGKILL);
    eventually(LIMIT, "another runtime answers", || {
        appliance.try_status().is_some_and(|status| status["runtime"]["pid"] != killed)
    });
}

/// Asserts that the component runs as exactly one process, none of `old`.
fn runs_anew(appliance: &Appliance, old: &[i32]) {
    in_state(appliance, "running");
    let pid = appliance.component_pid("odd");
    assert!(!old.contains(&pid), "{pid} is one of {old:?}");
    assert!(old.iter().all(|pid| !process::is_alive(*pid)), "{old:?}");
    // Guard, runtime, component.
    eventually(LIMIT, "there is one process of it", || appliance.processes().len() == 3);
    assert_eq!(appliance.component_pid("odd"), pid);
}

#[test]
fn one_that_was_told_to_stop_is_not_taken_for_one_that_serves() {
    let appliance = Appliance::new(&slow()).start();
    let old = appliance.component_pid("odd");
    let asked = ask(&appliance, &["component", "restart", "odd"]);
    assert_eq!(pid_in(&appliance, "told"), old);
    kill_runtime(&appliance);
    assert!(process::is_alive(old), "it has its time to end");
    let_end(&appliance);
    runs_anew(&appliance, &[old]);
    assert_eq!(pids_in(&appliance, "ended"), [old]);
    is_done(asked);
}

#[test]
fn a_site_that_was_asked_to_stop_is_stopped_by_the_next_runtime_and_stays_so() {
    let keys = format!("{KEYS}\nneeds = [\"base\"]");
    let appliance =
        Appliance::new(&with_odd(odd(&["slow_end", "100"], &keys), "base", &["slow_end", "100"], KEYS)).start();
    let old = ["odd", "base"].map(|name| appliance.component_pid(name));
    let asked = ask(&appliance, &["bus", "request", "stop"]);
    assert_eq!(pid_in(&appliance, "told"), old[0]);
    kill_runtime(&appliance);
    assert!(old.iter().all(|pid| process::is_alive(*pid)), "it has its time to end, and the other serves it");
    let_end(&appliance);
    is_done(asked);
    // Where the answer to the command got lost, it has asked again, and heard that it is so already.
    eventually(LIMIT, "both have ended", || pids_in(&appliance, "ended").len() == 2);
    assert_eq!(pids_in(&appliance, "ended"), old, "each before what it needs");
    in_state(&appliance, "stopped");
    eventually(LIMIT, "the other is stopped, too", || component(&appliance.status(), "base")["state"] == "stopped");
    for _ in 0..2 {
        let status = appliance.status();
        assert_eq!(status["bus"]["state"], "Idle");
        for name in ["odd", "base"] {
            assert_eq!(component(&status, name)["state"], "stopped", "{status}");
        }
        assert_eq!(appliance.processes().len(), 2, "guard and runtime");
        kill_runtime(&appliance);
        eventually(LIMIT, "the site rests", || appliance.status()["bus"]["state"] == "Idle");
    }
    appliance.refit(&["bus", "request", "start"]).ends_with(0);
    let new = appliance.component_pid("odd");
    appliance.kill_runtime();
    assert_eq!(appliance.component_pid("odd"), new);
    // A restart in place asks for a site that runs.
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    appliance.kill_runtime();
}

#[test]
fn an_appliance_that_was_asked_to_end_ends_although_its_runtime_is_killed() {
    let mut appliance = Appliance::new(&slow()).start();
    let (old, runtime) = (appliance.component_pid("odd"), appliance.runtime_pid());
    let asked = ask(&appliance, &["bus", "request", "exit"]);
    assert_eq!(pid_in(&appliance, "told"), old);
    process::send(runtime, Signal::SIGKILL);
    eventually(LIMIT, "the next runtime is there", || appliance.log().contains("as somebody has asked before"));
    assert!(process::is_alive(old), "it has its time to end");
    let_end(&appliance);
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0));
    assert_eq!(pids_in(&appliance, "ended"), [old]);
    is_done(asked);
}

#[test]
fn one_that_an_operator_has_stopped_stays_down_when_the_runtime_is_killed() {
    let appliance = Appliance::new(&slow()).start();
    let old = appliance.component_pid("odd");
    let asked = ask(&appliance, &["component", "stop", "odd"]);
    assert_eq!(pid_in(&appliance, "told"), old);
    kill_runtime(&appliance);
    let_end(&appliance);
    in_state(&appliance, "stopped");
    assert!(!process::is_alive(old));
    is_done(asked);
    // Nor does it come back later.
    appliance.kill_runtime();
    assert_eq!(of(&appliance)["state"], "stopped");
    assert_eq!(pids_in(&appliance, "started"), [old]);
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    assert_eq!(of(&appliance)["state"], "stopped", "a restart in place touches no component");
    // Until somebody wants it again, which the next runtime knows, too.
    appliance.refit(&["component", "start", "odd"]).ends_with(0);
    let new = appliance.component_pid("odd");
    appliance.kill_runtime();
    assert_eq!(appliance.component_pid("odd"), new);
    // A stop and a start of the whole site start everything.
    appliance.refit(&["component", "stop", "odd"]).ends_with(0);
    appliance.kill_runtime();
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    appliance.refit(&["bus", "request", "start"]).ends_with(0);
    assert_eq!(of(&appliance)["state"], "running");
}

#[test]
fn an_update_that_was_stopping_it_ends_with_the_release_before_and_one_process() {
    let appliance = Appliance::new(&slow()).start();
    let old = appliance.component_pid("odd");
    let next = with_odd(Release::bare("1.1.0"), "odd", &["plain", "1.1.0"], KEYS);
    let package = next.package();
    let mut asked = ask(&appliance, &["install", package.to_str().expect("text")]);
    assert_eq!(pid_in(&appliance, "told"), old);
    kill_runtime(&appliance);
    let_end(&appliance);
    runs_anew(&appliance, &[old]);
    appliance.settled("1.0.0");
    asked.wait().expect("it ends");
}

#[test]
fn one_that_the_watchdog_was_ending_is_ended_by_the_next_runtime() {
    // It ends with 0: the restart policy alone would leave it down.
    for (behaviour, keys) in [
        (&["slow_end", "100", "trigger"][..], KEYS.to_owned()),
        (
            &["slow_end", "100"],
            format!(
                "{KEYS}\nhealth = {{ command = [\"python3\", \"lib/odd.py\", \"probe\"], interval = \"50ms\", timeout = \"30s\", \
                 threshold = 1, action = \"restart\" }}"
            ),
        ),
    ] {
        let appliance = Appliance::new(&odd(behaviour, &keys)).start();
        let old = pid_in(&appliance, "started");
        let bad = appliance.home().join("data/bad");
        // Before the first success it would only not be well yet.
        eventually(LIMIT, "it is well", || component(&appliance.status(), "odd")["health"] != "unknown");
        fs::write(&bad, "").expect("written");
        assert_eq!(pid_in(&appliance, "told"), old);
        fs::remove_file(&bad).expect("removed");
        kill_runtime(&appliance);
        let_end(&appliance);
        runs_anew(&appliance, &[old]);
        assert!(appliance.log().contains("still to be ended"), "{}", appliance.log());
    }
}

#[test]
fn one_that_takes_too_long_is_killed_when_the_time_that_it_was_given_is_over() {
    let release = odd(&["slow_end", "100"], "ready = \"notify\"\nstop_timeout = \"3s\"");
    let appliance = Appliance::new(&release).start();
    let old = appliance.component_pid("odd");
    let asked = ask(&appliance, &["component", "restart", "odd"]);
    assert_eq!(pid_in(&appliance, "told"), old);
    kill_runtime(&appliance);
    runs_anew(&appliance, &[old]);
    assert!(pids_in(&appliance, "ended").is_empty(), "it was killed");
    is_done(asked);
}

#[test]
fn the_old_process_of_an_overlap_keeps_its_time_over_a_crash() {
    let keys = format!("{KEYS}\nhandover = \"overlap\"");
    let appliance = Appliance::new(&odd(&["slow_end", "100"], &keys)).start();
    let old = appliance.component_pid("odd");
    let next = with_odd(Release::bare("1.1.0"), "odd", &["slow_end", "100", "next"], &keys);
    appliance.install(&next, &[]).ends_with(0);
    let new = appliance.component_pid("odd");
    assert_eq!(pid_in(&appliance, "told"), old);
    appliance.kill_runtime();
    assert!(process::is_alive(old));
    assert_eq!(appliance.component_pid("odd"), new);
    let_end(&appliance);
    eventually(LIMIT, "the old one is gone", || !process::is_alive(old) && appliance.processes().len() == 3);
    assert_eq!((appliance.component_pid("odd"), pids_in(&appliance, "told")), (new, vec![old]));
}

#[test]
fn one_that_ended_while_no_runtime_looked_is_started_anew_and_what_it_left_is_ended() {
    for local in [|text| text, without_groups as fn(String) -> String] {
        let appliance = Appliance::new(&odd(&["crowd"], "ready = \"notify\"")).local(local).start();
        let (old, runtime) = (appliance.component_pid("odd"), appliance.runtime_pid());
        let left = ["away", "child"].map(|name| pid_in(&appliance, name));
        for name in ["away", "away-too", "child"] {
            fs::remove_file(appliance.home().join("data").join(name)).expect("removed");
        }
        process::send(runtime, Signal::SIGSTOP);
        process::send(old, Signal::SIGKILL);
        eventually(LIMIT, "it has ended", || !process::is_alive(old));
        process::send(runtime, Signal::SIGKILL);
        until(LIMIT, "it runs again", || {
            let found = component(&appliance.try_status()?, "odd");
            (found["state"] == "running" && found["pid"] != old).then_some(())
        });
        assert!(left.iter().all(|pid| !process::is_alive(*pid)), "{left:?}");
        assert!(!data(&appliance, "child").is_empty());
    }
}

#[test]
fn what_a_component_has_said_of_itself_is_known_to_the_next_runtime() {
    const START_MAX: Duration = Duration::from_secs(3);
    let keys = format!("ready = \"notify\"\nstart_timeout = \"{}s\"\nafter = [\"talker\"]", START_MAX.as_secs());
    let release =
        with_odd(odd(&["patient"], &keys), "talker", &["talker"], "ready = \"notify\"\nrestart = { policy = \"no\" }");
    let mut appliance = Appliance::new(&release);
    appliance.run_guard();
    let starting = pid_in(&appliance, "started");
    let talker = || component(&appliance.status(), "talker");
    let running =
        text(&until(LIMIT, "one runs", || Some(talker()).filter(|found| found["pid"].is_i64()))["started_at"]);
    let let_it = |name: &str| fs::write(appliance.home().join("data").join(name), "").expect("written");
    let_it("talk");
    eventually(LIMIT, "it is heard", || talker()["status"] == "busy");
    // The time that it asked for is more than every start has; it was asked for once.
    for killed in [false, true, true] {
        if killed {
            kill_runtime(&appliance);
        }
        passes(START_MAX + Duration::from_secs(1));
        assert!(process::is_alive(starting), "it has asked for time: {}", appliance.log());
        let found = talker();
        assert_eq!((text(&found["started_at"]), &found["status"]), (running.clone(), &"busy".into()), "{found}");
        assert_eq!((&found["announced"], &found["restarts"]), (&"reloading".into(), &0.into()), "{found}");
    }
    let_it("go");
    in_state(&appliance, "running");
    assert_eq!((appliance.component_pid("odd"), pids_in(&appliance, "started")), (starting, vec![starting]));
    let_it("fail");
    let failed = until(LIMIT, "it has failed", || Some(talker()).filter(|found| found["state"] == "failed"));
    assert!(text(&failed["reason"]).contains("it said why: No space left on device"), "{failed}");
}
