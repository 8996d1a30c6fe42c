//! Which failures count against a release: what it did is remembered, the machine's own trouble is not.

use std::fs;
use std::net::TcpListener;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::appliance::{Appliance, end_all, free_port, text};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// Returns an appliance whose trials leave the time to make trouble.
fn patient(first: &Release) -> Appliance {
    Appliance::new(first).local(|text| text.replace("probation = \"300ms\"", "probation = \"10m\""))
}

fn wait_probation(appliance: &Appliance) {
    eventually(LIMIT, "the release is being watched", || {
        appliance
            .try_status()
            .is_some_and(|status| status["update"]["phase"] == "probation" && status["release"]["state"] == "trial")
    });
}

/// Returns why the release 1.1.0 is marked as one that failed here, if it is.
fn mark(appliance: &Appliance) -> Option<String> {
    let text = fs::read_to_string(appliance.home().join("state.json")).expect("read the journal");
    let journal: Value = serde_json::from_str(&text).expect("JSON");
    Some(journal["failed"]["1.1.0"]["reason"].as_str()?.to_owned())
}

/// Asserts how the newest attempt ended, and whose trouble that was.
fn assert_newest(appliance: &Appliance, outcome: &str, cause: &str) {
    let newest = appliance.history().first().expect("an entry").clone();
    assert_eq!((text(&newest["outcome"]), text(&newest["cause"])), (outcome.to_owned(), cause.to_owned()), "{newest}");
}

/// Asserts that 1.1.0 is offered and installed as if nothing had been.
fn assert_installs(appliance: &Appliance, release: &Release) {
    assert_eq!(mark(appliance), None);
    let ran = appliance.install(release, &[]).ends_with(0);
    assert!(!ran.stdout.contains("failed here before"), "{}", ran.stdout);
    appliance.settled("1.1.0");
}

/// Sets the probation to what lets a release become good.
fn quick(appliance: &Appliance) {
    let path = appliance.home().join("local.toml");
    let text = fs::read_to_string(&path).expect("read local.toml");
    fs::write(path, text.replace("10m", "300ms")).expect("write local.toml");
}

#[test]
fn a_release_is_remembered_for_what_it_did() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let broken = Release::bare("1.1.0").component("part", "command = [\"sh\", \"-c\", \"exit 3\"]");
    appliance.install(&broken, &[]).ends_with(70);
    appliance.settled("1.0.0");
    assert_newest(&appliance, "rolled-back", "release");
    assert!(mark(&appliance).expect("a mark").contains("status 3"));
    let ran = appliance.install(&broken, &["--stage-only"]).ends_with(0);
    assert!(ran.stdout.contains("failed here before"), "{}", ran.stdout);
}

#[test]
fn a_port_that_somebody_else_has_is_not_the_releases_mistake() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let port = free_port();
    let held = TcpListener::bind(("127.0.0.1", port)).expect("bind");
    let toml = format!(
        "[appliance]\nname = \"shop\"\nversion = \"1.1.0\"\n\n[listeners]\nadmin = \"{}\"\nextra = \"127.0.0.1:{port}\"\n",
        appliance.address("admin")
    );
    let release = Release::bare("1.1.0").written_as(&toml);
    let line = appliance.install(&release, &[]).complains_with(70);
    assert!(line.contains("in use"), "{line}");
    assert_newest(&appliance, "failed", "machine");
    drop(held);
    assert_installs(&appliance, &release);
}

#[test]
fn a_component_that_says_what_the_system_refused_is_not_to_blame() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    // ENOSPC, by the protocol of sd_notify(3), while a file says that there is no room.
    let script = "import os, socket, sys, time\n\
                  s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                  full = os.path.exists(os.environ['REFIT_DATA'] + '/full')\n\
                  s.sendto(b'ERRNO=28' if full else b'READY=1', os.environ['NOTIFY_SOCKET'])\n\
                  sys.exit(1) if full else time.sleep(1000)\n";
    let release = Release::bare("1.1.0")
        .component("part", "command = [\"python3\", \"lib/full.py\"]\nready = \"notify\"")
        .file("lib/full.py", script);
    let full = appliance.home().join("data/full");
    fs::write(&full, "").expect("fill it");
    appliance.install(&release, &[]).ends_with(70);
    appliance.settled("1.0.0");
    assert_newest(&appliance, "rolled-back", "machine");
    fs::remove_file(&full).expect("make room");
    assert_installs(&appliance, &release);
}

#[test]
fn a_runtime_that_is_killed_from_outside_is_not_the_releases_mistake() {
    let appliance = patient(&Release::bare("1.0.0")).start();
    let release = Release::bare("1.1.0");
    std::thread::scope(|scope| {
        let install = scope.spawn(|| appliance.install(&release, &[]));
        wait_probation(&appliance);
        quick(&appliance);
        process::send(appliance.runtime_pid(), Signal::SIGKILL);
        install.join().expect("no panic").complains_with(70);
    });
    appliance.settled("1.0.0");
    assert_newest(&appliance, "rolled-back", "machine");
    assert_installs(&appliance, &release);
}

#[test]
fn a_power_cut_in_a_trial_is_not_the_releases_mistake() {
    let mut appliance = patient(&Release::bare("1.0.0")).start();
    let release = Release::bare("1.1.0");
    let staged = appliance.install(&release, &["--stage-only", "--json"]).ends_with(0).objects().remove(0);
    let body = serde_json::json!({ "digest": staged["data"]["digest"] });
    crate::http::Request::new(&appliance.socket(), "POST", "/api/v1/updates").json(&body).send();
    wait_probation(&appliance);
    quick(&appliance);
    process::send(appliance.guard_pid(), Signal::SIGSTOP);
    end_all(appliance.home());
    appliance.kill_guard();
    appliance.run_guard();
    appliance.wait_running();
    until(LIMIT, "the history has it", || (!appliance.history().is_empty()).then_some(()));
    assert_newest(&appliance, "rolled-back", "machine");
    assert_installs(&appliance, &release);
}

#[test]
fn a_listener_that_the_new_image_cannot_bind_is_not_the_releases_mistake() {
    // Free when it is examined, taken when the release starts: its component of the release before takes its time to stop.
    let first = Release::bare("1.0.0").part("slow", &["--deaf"], "stop_timeout = \"2s\"");
    let appliance = Appliance::new(&first).start();
    let port = free_port();
    let toml = format!(
        "[appliance]\nname = \"shop\"\nversion = \"1.1.0\"\n\n[listeners]\nadmin = \"{}\"\nextra = \"127.0.0.1:{port}\"\n",
        appliance.address("admin")
    );
    let release = Release::bare("1.1.0").written_as(&toml);
    let held = std::thread::scope(|scope| {
        let install = scope.spawn(|| appliance.install(&release, &[]));
        eventually(LIMIT, "the component is stopped", || {
            appliance.try_status().is_some_and(|status| status["update"]["phase"] == "stopping")
        });
        let held = TcpListener::bind(("127.0.0.1", port)).expect("bind");
        install.join().expect("no panic").complains_with(70);
        held
    });
    appliance.settled("1.0.0");
    assert_newest(&appliance, "rolled-back", "machine");
    drop(held);
    assert_installs(&appliance, &release);
}
