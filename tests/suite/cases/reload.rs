//! Section F: graceful and reload.

use crate::appliance::{Appliance, component};
use crate::load::LoadOptions;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

#[test]
fn b069_external_a_reload_stops_nothing_and_breaks_no_connection() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let pids = || (appliance.runtime_pid(), appliance.component_pid("shop"), appliance.component_pid("stock"));
    let seen = || {
        (
            pids(),
            appliance.status()["runtime"]["generation"].clone(),
            process::listening_inodes(appliance.address("http").port()),
        )
    };
    let before = seen();
    let load = appliance.load(LoadOptions::default());
    // Nothing of the shop listens to it: the ticket says so, and the shop goes on.
    appliance.refit(&["bus", "request", "reload"]).ends_with(70);
    load.wait_for_ok(100, LIMIT).expect("the shop goes on");
    load.finish().assert_clean();
    assert_eq!(seen(), before);
    let state = appliance.refit(&["bus", "state"]).ends_with(0);
    assert_eq!(state.stdout, "Running\n");
}

#[test]
fn b078_nobody_is_refused_while_the_site_is_idle_and_who_came_meanwhile_is_served_later() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let first = appliance.component_pid("shop");
    // New connections only: kept ones end with the component that serves them.
    let options = LoadOptions { keepalive_connections: 0, slow_connections: 0, ..LoadOptions::default() };
    let load = appliance.load(options);
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    eventually(LIMIT, "somebody waits", || process::backlog(appliance.address("http").port()) > 0);
    appliance.refit(&["bus", "request", "start"]).ends_with(0);
    assert_ne!(component(&appliance.status(), "shop")["pid"], first);
    let before = load.report().ok;
    load.wait_for_ok(before + 100, LIMIT).expect("the shop serves again");
    load.finish().assert_clean();
}
