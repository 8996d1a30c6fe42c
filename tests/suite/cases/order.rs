//! Section I: dependencies, tasks, monitors.

use nix::sys::signal::Signal;

use crate::appliance::Appliance;
use crate::bus::four;
use crate::process;
use crate::wait::LIMIT;

/// Asserts that each of `names` comes after the one before it.
fn assert_order(lines: &[String], names: &[&str]) {
    let places: Vec<usize> = names
        .iter()
        .map(|name| lines.iter().position(|line| line == name).unwrap_or_else(|| panic!("no {name}: {lines:?}")))
        .collect();
    assert!(places.is_sorted(), "not {names:?}: {lines:?}");
}

#[test]
fn b104_external_components_start_after_what_they_need_and_stop_in_exact_reverse() {
    let mut appliance = Appliance::new(&four("1.0.0")).start();
    let started = appliance.order();
    assert_eq!(started.len(), 4, "{started:?}");
    assert_order(&started, &["start database", "start cache", "start web"]);
    assert_order(&started, &["start database", "start queue", "start web"]);
    process::send(appliance.guard_pid(), Signal::SIGTERM);
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0), "{}", appliance.log());
    assert!(appliance.processes().is_empty(), "no process is left");
    let all = appliance.order();
    assert_eq!(all.len(), 8, "{all:?}");
    assert_order(&all, &["stop web", "stop cache", "stop database"]);
    assert_order(&all, &["stop web", "stop queue", "stop database"]);
}
