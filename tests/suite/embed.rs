//! The bus in somebody else's daemon: the example is built and run as its reader would.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use nix::sys::signal::Signal;

use crate::process;
use crate::wait::{LIMIT, until};

/// The source of the example, and how long it may be: what takes more to embed is not easy to embed.
const EXAMPLE: &str = include_str!("../../examples/embed.rs");
const LINES_MAX: usize = 60;

/// Ends the example when the test ends, however it does.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok(); // gone already is as good
        self.0.wait().ok();
    }
}

/// Builds the example as this test was built, which is done already if all tests were asked for; returns its path.
fn build() -> std::path::PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--offline", "--quiet", "--package", "refit", "--example", "embed"]);
    if cfg!(feature = "fault") {
        cargo.args(["--features", "fault"]);
    }
    let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("below the target directory");
    cargo.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_refit")).parent().expect("a directory of programs");
    if programs.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.stdin(Stdio::null()).output().expect("start cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    programs.join("examples/embed")
}

#[test]
fn the_example_of_embedding_starts_reloads_and_ends_and_is_short() {
    let lines = EXAMPLE.lines().count();
    assert!(lines < LINES_MAX, "{lines} lines");
    let child = Command::new(build()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut daemon = Daemon(child.expect("start the example"));
    let pid = i32::try_from(daemon.0.id()).expect("a PID");
    let (said, lines) = mpsc::channel();
    let stderr = BufReader::new(daemon.0.stderr.take().expect("a pipe"));
    // Ends with the example, which ends with the test.
    std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
    let hear = |words: &str| {
        until(LIMIT, &format!("the example says {words:?}"), || lines.try_iter().find(|line| line.contains(words)))
    };
    hear("start: Done");
    for generation in 1..=2 {
        process::send(pid, Signal::SIGHUP);
        hear(&format!("certificate {generation} is in force"));
    }
    process::send(pid, Signal::SIGTERM);
    let status = until(LIMIT, "the example ends", || daemon.0.try_wait().expect("wait for the example"));
    assert_eq!(status.code(), Some(0));
}
