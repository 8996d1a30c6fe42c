//! A disk that becomes read-only: what ran goes on, after a crash of the runtime and after a start, too.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::appliance::Appliance;
use crate::mounting::{
    assert_may_mount, assert_passes_where_it_may_mount, end_at_once, onto_a_small_disk, read_only, unmount,
};
use crate::process;
use crate::readiness::requests;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// A web server that writes nothing.
const PLAIN: &str = "import http.server, socket, sys\n\
    class Handler(http.server.BaseHTTPRequestHandler):\n\
    \x20   def do_GET(self):\n\
    \x20       self.send_response(200)\n\
    \x20       self.send_header('X-Version', sys.argv[1])\n\
    \x20       self.send_header('Content-Length', '0')\n\
    \x20       self.end_headers()\n\
    \x20   def log_message(self, *words):\n\
    \x20       print(*words, flush=True)\n\
    server = http.server.ThreadingHTTPServer(('', 0), Handler, False)\n\
    server.socket = socket.socket(fileno=3)\n\
    server.serve_forever()\n";

fn plain(version: &str) -> Release {
    let keys =
        format!("command = [\"python3\", \"lib/plain.py\", \"{version}\"]\nlisteners = [\"http\"]\nready = \"listen\"");
    Release::bare(version).listener("http").component("web", &keys).file("lib/plain.py", PLAIN)
}

/// Returns what the command shows, which finds the appliance wherever its sockets are.
fn status(appliance: &Appliance) -> Option<Value> {
    let ran = appliance.refit(&["status", "--json"]);
    let status = (ran.code == 0).then(|| ran.objects().pop()).flatten()?;
    let runs = status["bus"]["state"] == "Running" && status["guard"]["pid"] == appliance.guard_pid();
    runs.then_some(status)
}

fn assert_serves(appliance: &Appliance, version: &str) {
    eventually(LIMIT, "it runs", || status(appliance).is_some_and(|status| status["release"]["version"] == version));
    let load = appliance.load(requests());
    load.wait_for_version(version, LIMIT).expect("it answers");
    load.finish().assert_clean();
}

fn kill_runtime(appliance: &Appliance) {
    let killed = until(LIMIT, "it runs", || status(appliance))["runtime"]["pid"].as_i64().expect("a PID");
    process::send(i32::try_from(killed).expect("a PID"), Signal::SIGKILL);
    eventually(LIMIT, "another runtime runs", || {
        status(appliance).is_some_and(|status| status["runtime"]["pid"].as_i64() != Some(killed))
    });
}

/// Returns whether a directory is named as that of a home, and not as that of one process.
fn is_of_a_home(name: &str) -> bool {
    name.strip_prefix("refit-").is_some_and(|digest| digest.len() == 16)
}

/// Returns the directories in memory of appliances whose disk is read-only, of which there is one at most in this test.
fn in_memory() -> Vec<PathBuf> {
    let all = ["/run", "/dev/shm"].into_iter().flat_map(|dir| fs::read_dir(dir).expect("listed").flatten());
    all.map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| is_of_a_home(&name.to_string_lossy())))
        .collect()
}

/// Not a test by itself: what the child of the next one does.
#[test]
#[ignore = "run by the next test, where it may mount"]
fn child_serves_from_a_disk_that_is_read_only() {
    assert_may_mount();
    let before = in_memory();
    let appliance = Appliance::new(&plain("1.0.0"));
    onto_a_small_disk(appliance.home());
    let mut appliance = appliance.start();
    appliance.install(&plain("1.1.0"), &[]).ends_with(0);

    read_only(appliance.home());
    kill_runtime(&appliance);
    assert_serves(&appliance, "1.1.0");
    appliance.refit(&["component", "restart", "web"]).ends_with(0);
    process::send(appliance.component_pid("web"), Signal::SIGKILL);
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    assert_serves(&appliance, "1.1.0");
    end_at_once(&mut appliance);
    appliance.run_guard();
    assert_serves(&appliance, "1.1.0");
    let shown = appliance.refit(&["status"]).ends_with(0).stdout;
    assert!(shown.contains("warning: the disk of the home is read-only"), "{shown}");
    appliance.refit(&["component", "restart", "web"]).ends_with(0);
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    kill_runtime(&appliance);
    assert_serves(&appliance, "1.1.0");
    let refused = appliance.install(&plain("1.2.0"), &[]).complains_with(74);
    assert!(refused.contains("ead-only"), "{refused}");
    assert_eq!(in_memory().len(), before.len() + 1);
    appliance.stop();
    appliance.run_guard();
    assert_serves(&appliance, "1.1.0");

    // The disk is well again; the guard that has begun meanwhile goes on where it is, and the next one finds everything in its place.
    unmount(appliance.home());
    appliance.install(&plain("1.2.0"), &[]).ends_with(0);
    assert_serves(&appliance, "1.2.0");
    appliance.stop();
    appliance.run_guard();
    assert_serves(&appliance, "1.2.0");
    assert!(appliance.home().join("run/refit.sock").exists());
    assert_eq!(in_memory(), before);
    end_at_once(&mut appliance);
    unmount(appliance.home());
}

#[test]
fn a_disk_that_is_read_only_stops_nothing() {
    assert_passes_where_it_may_mount("read_only::child_serves_from_a_disk_that_is_read_only");
}
