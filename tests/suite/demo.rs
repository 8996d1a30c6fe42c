//! `refit demo`: a complete appliance out of nothing, and nothing left of it in the end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use refit_updater::durable::make_dirs_writable;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::appliance::{Ran, end_all, refit, text};
use crate::http::{At, Request};
use crate::process;
use crate::wait::{LIMIT, until};

/// What lies ready to be tried.
const PACKAGES: [&str; 6] = [
    "hostile.refit",
    "shop-1.0.0.refit",
    "shop-1.1.0.refit",
    "shop-1.2.0.refit",
    "shop-1.3.0.refit",
    "shop-1.4.0.refit",
];

/// Two demos that start at the same moment may want the same ports; a user starts one.
static STARTING: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A demo that runs.
struct Demo {
    child: Child,
    /// What it said at its start.
    said: Value,
    home: PathBuf,
}

impl Demo {
    /// Starts it and waits until it says what there is.
    fn start(command: &mut Command) -> Self {
        let _alone = STARTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut child = command.arg("--json").stdout(Stdio::piped()).spawn().expect("start the demo");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("read what it says");
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(said["home"].is_string(), "{line}");
        let home = PathBuf::from(text(&said["home"]));
        Self { child, said, home }
    }

    fn at(&self, key: &str) -> At {
        let url = text(&self.said[key]);
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        At::Tcp(address.parse().unwrap_or_else(|error| panic!("{url}: {error}")))
    }

    fn shop_version(&self) -> String {
        Request::new(&self.at("shop"), "GET", "/version").send().text()
    }

    fn refit(&self, words: &[&str]) -> Ran {
        Ran::of(refit().args(words).arg("--home").arg(&self.home))
    }

    fn end(&mut self, signal: Signal) -> Option<i32> {
        process::send(i32::try_from(self.child.id()).expect("a PID"), signal);
        until(LIMIT, "the demo ends", || self.child.try_wait().expect("wait for it")).code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.child.kill().ok(); // gone already is as good
        self.child.wait().ok();
        end_all(&self.home);
        make_dirs_writable(&self.home).ok(); // it may be gone already
    }
}

fn in_home(home: &Path) -> Command {
    let mut command = refit();
    command.arg("demo").arg("--home").arg(home);
    command
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("refit-").tempdir().expect("a temporary directory")
}

#[test]
fn the_demo_says_where_everything_is_updates_itself_and_goes_on_where_it_was() {
    let dir = scratch();
    let home = dir.path().join("home");
    let mut demo = Demo::start(&mut in_home(&home));
    assert_eq!(demo.said["user"], "admin");
    let mut packages: Vec<String> = fs::read_dir(text(&demo.said["packages"]))
        .expect("the packages are there")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    packages.sort();
    assert_eq!(packages, PACKAGES);
    let answer = Request::new(&demo.at("page"), "GET", "/").send();
    assert!(answer.status == 200 && answer.text().contains("<html"), "the page is there: {}", answer.status);
    let login = Request::new(&demo.at("page"), "POST", "/api/v1/session")
        .json(&json!({ "password": text(&demo.said["password"]) }))
        .send();
    assert_eq!(login.status, 200, "the password opens it: {}", login.text());
    assert_eq!(demo.shop_version().trim(), "1.0.0");

    let package = home.join("packages/shop-1.1.0.refit");
    demo.refit(&["install", package.to_str().expect("text")]).ends_with(0);
    assert_eq!(demo.shop_version().trim(), "1.1.0");
    assert_eq!(demo.end(Signal::SIGTERM), Some(0));
    assert!(process::of_home(&home).is_empty(), "no process is left");

    let mut demo = Demo::start(&mut in_home(&home));
    assert_eq!(demo.shop_version().trim(), "1.1.0");
    assert_eq!(demo.said["status"]["release"]["version"], "1.1.0");
    let hostile = home.join("packages/hostile.refit");
    demo.refit(&["install", hostile.to_str().expect("text")]).complains_with(65);
    assert_eq!(demo.end(Signal::SIGINT), Some(0));
    assert!(process::of_home(&home).is_empty(), "no process is left");
    assert!(home.join("state.json").exists(), "a home that was named stays");
}

#[test]
fn the_bad_packages_of_the_demo_are_what_they_say() {
    let dir = scratch();
    let home = dir.path().join("home");
    let demo = Demo::start(&mut in_home(&home));
    for (package, reason) in [
        ("shop-1.2.0.refit", "component shop did not start"),
        ("shop-1.3.0.refit", "is unhealthy"),
        ("shop-1.4.0.refit", "signal 6"),
    ] {
        let path = home.join("packages").join(package);
        let line = demo.refit(&["install", path.to_str().expect("text")]).complains_with(70);
        assert!(line.contains(reason), "{package}: {line}");
        assert_eq!(demo.shop_version().trim(), "1.0.0");
    }
}

#[test]
fn a_demo_in_a_temporary_home_leaves_nothing() {
    let dir = scratch();
    let mut demo = Demo::start(refit().arg("demo").env("TMPDIR", dir.path()));
    assert!(demo.home.starts_with(dir.path()) && demo.home.join("state.json").exists());
    assert_eq!(demo.end(Signal::SIGINT), Some(0));
    assert!(process::of_home(&demo.home).is_empty(), "no process is left");
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0, "its home is gone");
}

#[test]
fn a_demo_whose_parent_dies_does_not_outlive_it_for_long() {
    let dir = scratch();
    let home = dir.path().join("home");
    let mut demo = Demo::start(&mut in_home(&home));
    demo.child.kill().expect("kill the demo");
    demo.child.wait().expect("collect it");
    until(LIMIT.max(Duration::from_secs(30)), "all of it has ended", || {
        process::of_home(&home).is_empty().then_some(())
    });
}
