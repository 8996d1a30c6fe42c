//! Section C: start.

use std::time::Instant;

use crate::appliance::{Appliance, Ran, component, refit};
use crate::bus::four;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

#[test]
fn b032_external_stop_and_start_of_the_site_are_requests_like_any_other() {
    let appliance = Appliance::new(&four("1.0.0")).start();
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    eventually(LIMIT, "the site is stopped", || appliance.order().len() == 8);
    let state = appliance.refit(&["bus", "state"]).ends_with(0);
    assert_eq!(state.stdout, "Idle\n");
    let line = appliance.install(&four("1.1.0"), &[]).complains_with(75);
    assert!(line.contains("Idle"), "{line}");
    appliance.refit(&["bus", "request", "start"]).ends_with(0);
    assert_eq!(appliance.status()["bus"]["state"], "Running");
    assert_eq!(appliance.order().len(), 12);
}

#[test]
fn b035_external_a_component_that_hangs_at_start_meets_its_deadline_and_the_appliance_ends_with_70() {
    let release = Release::bare("1.0.0").part("database", &[], "").part(
        "web",
        &["--hang"],
        // Long enough for an interpreter to start on a busy machine and to write its line.
        "needs = [\"database\"]\nstart_timeout = \"8s\"",
    );
    let appliance = Appliance::new(&release);
    let begun = Instant::now();
    let ran = Ran::of(refit().args(["run", "--with-parent", "--home"]).arg(appliance.home()));
    let ran = ran.ends_with(70);
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert!(ran.stderr.contains("web") && ran.stderr.contains("within 8 s"), "{}", ran.stderr);
    assert!(appliance.processes().is_empty(), "no process is left");
    let order: Vec<String> = appliance.order().into_iter().filter(|line| line != "stop web").collect();
    assert_eq!(order, ["start database", "start web", "stop database"]);
}

#[test]
fn b037_external_running_comes_after_the_ready_message_and_nobody_knocks_at_the_port() {
    let release = Release::bare("1.0.0").listener("http").part("web", &["--late"], "listeners = [\"http\"]");
    let appliance = Appliance::new(&release).start();
    assert_eq!(appliance.order(), ["start web", "ready web"]);
    let status = component(&appliance.status(), "web");
    assert_eq!(status["state"], "running", "{status}");
    let waiting = process::backlog(appliance.address("http").port());
    assert_eq!(waiting, 0, "no connection was made to see whether it serves");
}
