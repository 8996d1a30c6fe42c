//! A runtime of a good release that dies again and again: each start waits longer, nobody else notices, and everybody is told.

use std::fs;

use serde_json::{Value, json};

use crate::appliance::{Appliance, component, text};
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

fn crashes(appliance: &Appliance) -> Vec<Value> {
    appliance.history().into_iter().filter(|entry| entry["kind"] == "crash").collect()
}

#[test]
fn a_runtime_that_dies_again_and_again_backs_off_and_its_deaths_are_told() {
    let mut appliance = Appliance::new(&Release::bare("1.0.0").part("web", &[], "")).start();
    let web = appliance.component_pid("web");
    appliance.kill_runtime();
    assert_eq!(appliance.status()["faults"], json!([]), "one that dies once was killed by somebody");
    for count in 2_u32..=5 {
        appliance.kill_runtime();
        let status = appliance.status();
        let fault = &status["faults"][0];
        assert_eq!((&fault["component"], &fault["phase"]), (&json!("runtime"), &json!("run")), "{status}");
        let cause = text(&fault["cause"]);
        let how = format!("the runtime was ended by signal 9 (SIGKILL), {count} times in a row since ");
        assert!(cause.starts_with(&how), "{cause}");
        eventually(LIMIT, "it is in the history", || crashes(&appliance).len() == count as usize - 1);
        let newest = crashes(&appliance).remove(0);
        assert_eq!((&newest["reason"], &newest["to"]), (&fault["cause"], &json!("1.0.0")), "newest first: {newest}");
        let pause = 100 << (count - 1);
        assert!(appliance.log().contains(&format!("starting it again in {pause} ms")), "{}", appliance.log());
    }
    let shown = appliance.refit(&["status"]).ends_with(0).stdout;
    assert!(shown.contains("fault: runtime run: the runtime was ended by signal 9"), "{shown}");
    let shown = appliance.refit(&["history"]).ends_with(0).stdout;
    assert_eq!(shown.lines().filter(|line| line.contains("crash") && line.contains("in a row")).count(), 4, "{shown}");
    assert_eq!(appliance.component_pid("web"), web, "the component has not noticed");

    // An update is another matter, and the image after it has nothing to tell.
    appliance.install(&Release::bare("1.1.0").part("web", &[], ""), &[]).ends_with(0);
    let status = appliance.settled("1.1.0");
    assert_eq!((&status["faults"], &appliance.history()[0]["kind"]), (&json!([]), &json!("update")), "{status}");
    assert_eq!(crashes(&appliance).len(), 4);
    assert_eq!(component(&status, "web")["state"], "running");
    appliance.refit(&["bus", "request", "exit"]).ends_with(0);
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0), "no fault of the image that ends");
}

/// Returns the command line of the runtime.
fn command_line(appliance: &Appliance) -> Vec<String> {
    let line = fs::read(format!("/proc/{}/cmdline", appliance.runtime_pid())).expect("it runs");
    String::from_utf8(line).expect("text").split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn a_runtime_keeps_its_command_line_over_a_restart_and_an_update() {
    let appliance = Appliance::new(&Release::bare("1.0.0").with_a_runtime()).start();
    let before = command_line(&appliance);
    let pid = appliance.runtime_pid();
    let again = |what: &str| {
        assert_eq!((appliance.runtime_pid(), command_line(&appliance)), (pid, before.clone()), "{what}");
    };
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    again("restart");
    appliance.install(&Release::bare("1.1.0").with_a_runtime(), &[]).ends_with(0);
    appliance.settled("1.1.0");
    again("update");
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.0.0");
    again("rollback");
}
