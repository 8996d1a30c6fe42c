//! Under a service manager: its socket is the one that serves, and it hears of readiness and gets descriptors to keep.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::Signal;

use crate::appliance::{Appliance, refit};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// Ends the guard when the test ends, however it does.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.kill().ok(); // gone already is as good
        self.0.wait().ok();
    }
}

/// Returns what is reported from now on, read by a thread that ends with the test's process.
fn listen(manager: UnixDatagram) -> Arc<Mutex<Vec<String>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hearing = Arc::clone(&heard);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count) = manager.recv(&mut bytes) {
            let report = String::from_utf8_lossy(&bytes[..count]).into_owned();
            hearing.lock().expect("the test lives").push(report);
        }
    });
    heard
}

#[test]
fn b087_the_managers_socket_serves_across_updates_and_the_manager_hears_of_it() {
    let appliance = Appliance::new(&Release::shop("1.0.0"));
    let address = appliance.address("http");
    let socket = TcpListener::bind(address).expect("bind as a service manager does");
    let reports = appliance.scratch().join("manager.sock");
    let manager = UnixDatagram::bind(&reports).expect("bind the manager's socket");
    let heard = listen(manager);

    let mut command = Command::new("sh");
    // The PID in LISTEN_PID is the guard's own, as sd_listen_fds(3) asks.
    command.args(["-c", "LISTEN_PID=$$ exec \"$0\" run --with-parent --home \"$1\""]);
    command.arg(refit().get_program()).arg(appliance.home());
    command.env_clear().env("PATH", std::env::var_os("PATH").expect("there are programs"));
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "http").env("NOTIFY_SOCKET", &reports);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
        .fd_mappings(vec![FdMapping { parent_fd: socket.try_clone().expect("duplicate").into(), child_fd: 3 }])
        .expect("one descriptor");
    let mut guard = Guard(command.spawn().expect("start the guard"));

    let reports = || heard.lock().expect("the listener lives").clone();
    eventually(LIMIT, "the manager hears READY=1", || {
        reports().iter().any(|report| report.lines().any(|line| line == "READY=1"))
    });
    let stored: BTreeSet<String> = reports()
        .iter()
        .filter(|report| report.contains("FDSTORE=1"))
        .flat_map(|report| report.lines().filter_map(|line| line.strip_prefix("FDNAME=")).map(str::to_owned))
        .collect();
    assert!(stored.iter().any(|name| name == "admin"), "{stored:?}");
    assert!(!stored.contains("http"), "the manager has it already: {stored:?}");

    let inodes = process::listening_inodes(address.port());
    assert_eq!(inodes.len(), 1, "the manager's socket is the only one");
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.refit(&["rollback"]).ends_with(0);
    assert_eq!(process::listening_inodes(address.port()), inodes);
    let runtime = appliance.runtime_pid();
    assert!(process::socket_inodes(runtime).contains(&inodes[0]), "the runtime holds it");

    process::send(i32::try_from(guard.0.id()).expect("a PID"), Signal::SIGTERM);
    let ended = until(LIMIT, "the guard ends", || guard.0.try_wait().expect("wait for the guard"));
    assert_eq!(ended.code(), Some(0));
    eventually(LIMIT, "nothing is left", || appliance.processes().is_empty());
    assert_eq!(process::listening_inodes(address.port()), inodes, "the manager keeps its socket");
    drop(socket);
}
