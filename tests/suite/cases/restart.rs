//! Section G: restart and update. Those of b080 and b082 are in `tests/suite/watch.rs`.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use refit_fixtures::tools::{cannot_try, put_program};

use crate::appliance::Appliance;
use crate::bus::generation;
use crate::http::{At, Request as Http};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

#[test]
fn b083_a_restart_in_place_keeps_pid_sockets_and_components_and_no_client_notices() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let pids = || (appliance.runtime_pid(), appliance.component_pid("shop"), appliance.component_pid("stock"));
    let (before, first) = (pids(), generation(&appliance));
    let inodes = process::listening_inodes(appliance.address("http").port());
    let load = appliance.load(crate::load::LoadOptions::default());
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    assert_eq!((pids(), generation(&appliance)), (before, first + 1));
    process::send(appliance.guard_pid(), Signal::SIGUSR2);
    eventually(LIMIT, "the next image runs", || {
        appliance
            .try_status()
            .is_some_and(|status| status["bus"]["state"] == "Running" && status["runtime"]["generation"] == first + 2)
    });
    assert_eq!(pids(), before);
    assert_eq!(process::listening_inodes(appliance.address("http").port()), inodes);
    load.finish().assert_clean();
    assert!(appliance.history().is_empty(), "a restart is no update");
}

#[test]
fn b085_a_restart_that_cannot_work_is_refused_before_anything_stops() {
    let appliance = Appliance::new(&Release::voyage("1.0.0")).start();
    let dir = appliance.home().join("releases/1.0.0/bin");
    let (program, aside) = (dir.join("refit"), dir.join("aside"));
    let seen = || (appliance.runtime_pid(), appliance.component_pid("shop"), generation(&appliance));
    let before = seen();
    let refused = |reason: &str| {
        let ran = appliance.refit(&["bus", "request", "restart"]).ends_with(70);
        assert!(ran.stderr.contains(reason) && ran.stderr.contains("nothing was stopped"), "{}", ran.stderr);
        process::send(appliance.guard_pid(), Signal::SIGUSR2);
        eventually(LIMIT, "the signal is refused, too", || {
            appliance.log().lines().any(|line| line.contains("signal USR2: refused") && line.contains(reason))
        });
        assert_eq!((seen(), appliance.status()["bus"]["state"].as_str()), (before, Some("Running")), "{reason}");
    };
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("opened");
    fs::rename(&program, &aside).expect("moved aside");
    refused("the runtime of release 1.0.0: No such file or directory");
    put_program(&program, "#!/bin/sh\necho the library libmast.so is missing\nexit 1\n");
    refused("libmast.so is missing");
    fs::rename(&aside, &program).expect("moved back");
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    assert_eq!(seen(), (before.0, before.1, before.2 + 1));
}

/// Returns a free port that only root may bind.
fn low_port() -> u16 {
    (600..1000).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("one is free")
}

#[test]
fn b088_after_privileges_were_dropped_a_restart_serves_on_the_same_port_as_the_same_account() {
    let appliance = Appliance::new(&Release::shop("1.0.0"));
    let given = appliance.address("http");
    // Nobody but root can bind a low port, and become somebody else.
    let root = geteuid().is_root();
    let account = if root { User::from_name("nobody") } else { User::from_uid(geteuid()) };
    let Ok(Some(account)) = account else { return cannot_try("the account has no name") };
    let address: SocketAddr = if root { ([127, 0, 0, 1], low_port()).into() } else { given };
    for dir in [appliance.scratch(), appliance.home()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("opened the way to the release");
    }
    let user = format!("name = \"shop\"\nuser = \"{}\"", account.name);
    let appliance = appliance
        .local(|text| text.replace(&given.to_string(), &address.to_string()).replace("name = \"shop\"", &user))
        .start();
    let serves = || {
        let shop = appliance.component_pid("shop");
        let status = fs::read_to_string(format!("/proc/{shop}/status")).expect("its status");
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("its accounts").to_owned();
        assert!(uids.split_whitespace().all(|uid| uid == account.uid.to_string()), "{uids}");
        assert_eq!(Http::new(&At::Tcp(address), "GET", "/version").send().text(), "1.0.0");
        shop
    };
    let first = serves();
    appliance.refit(&["component", "restart", "shop"]).ends_with(0);
    let second = serves();
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    assert_eq!((first != second, serves()), (true, second));
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    appliance.refit(&["bus", "request", "start"]).ends_with(0);
    serves();
    if !root {
        cannot_try("a low port and another account take root");
    }
}
