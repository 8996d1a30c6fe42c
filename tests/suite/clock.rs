//! The wall clock is set while the appliance runs: what takes time takes as long as it takes.
//!
//! Who may set the clock of a machine sets it for everybody. Here a library that guard and runtime load shows them another time, as far
//! from the real one as a file says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use refit_fixtures::tools::missing;
use serde_json::json;

use crate::appliance::Appliance;
use crate::commit::{Install, wait_probation};
use crate::http::Request;
use crate::process;
use crate::release::Release;

/// Adds so many seconds to the wall clock as `SHIFT_FILE` has.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, id, time);
    char text[32] = {0};
    if (result == 0 && id == CLOCK_REALTIME) {
        int file = open(getenv("SHIFT_FILE"), O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
            close(file);
        }
    }
    return result;
}
"#;

const HOUR: i64 = 3600;

/// Returns the library, in `dir`.
fn library(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    fs::write(&source, LIBRARY).expect("write the source");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
    assert!(compile.status().expect("run cc").success());
    library
}

/// Sets the wall clock so many seconds off, in one step.
fn set(appliance: &Appliance, seconds: i64) {
    let new = appliance.scratch().join("shift.new");
    fs::write(&new, seconds.to_string()).expect("write it");
    fs::rename(new, appliance.scratch().join("shift")).expect("name it");
}

/// Asserts that the newest attempt ended so, and that its times are those of a clock that nobody sets.
fn assert_times(appliance: &Appliance, outcome: &str) {
    let entry = appliance.history().first().expect("an entry").clone();
    assert_eq!(entry["outcome"], outcome, "{entry}");
    let times = entry["durations"].as_object().expect("an object").values().chain([&entry["duration_ms"]]);
    for time in times {
        assert!(time.as_u64().expect("a number") < 60_000, "{entry}");
    }
    assert!(entry["duration_ms"].as_u64() > Some(10), "{entry}");
}

#[test]
fn times_and_sessions_do_not_depend_on_the_wall_clock() {
    if missing(&["cc"]) {
        return;
    }
    let release =
        |version: &str| Release::bare(version).component("part", "command = [\"sleep\", \"1000\"]\nready = \"exec\"");
    let mut appliance = Appliance::new(&release("1.0.0")).local(|text| text.replace("300ms", "1s"));
    let library = library(appliance.scratch());
    set(&appliance, 0);
    let [library, shift] = [("LD_PRELOAD", library), ("SHIFT_FILE", appliance.scratch().join("shift"))]
        .map(|(name, path)| format!("{name}={}", path.display()));
    appliance.run_guard_through(&["env", &library, &shift]);
    appliance.wait_running();
    let account = json!({ "password": appliance.password() });
    let login = Request::new(&appliance.admin(), "POST", "/api/v1/session").json(&account).send();
    assert_eq!(login.status, 200, "{}", login.text());
    let cookie = login.header("set-cookie").split(';').next().expect("a cookie").to_owned();
    let is_known =
        || Request::new(&appliance.admin(), "GET", "/api/v1/status").header("Cookie", &cookie).send().status == 200;
    assert!(is_known());

    // Back and forward, in the trial.
    for (version, seconds) in [("1.1.0", -2 * HOUR), ("1.2.0", 48 * HOUR)] {
        let install = Install::begin(&appliance, &release(version), &[]);
        wait_probation(&appliance, version);
        set(&appliance, seconds);
        install.end(&appliance).ends_with(0);
        appliance.settled(version);
        assert_times(&appliance, "done");
        assert!(is_known(), "{version}");
    }
    // The guard ends a trial by the clock that it has been told.
    let install = Install::begin(&appliance, &release("1.3.0"), &[]);
    let runtime = wait_probation(&appliance, "1.3.0");
    set(&appliance, 0);
    process::send(runtime, Signal::SIGKILL);
    install.end(&appliance).ends_with(70);
    appliance.settled("1.2.0");
    assert_times(&appliance, "rolled-back");
    // Forward again: 48 hours that did not pass.
    let install = Install::begin(&appliance, &release("1.4.0"), &[]);
    let runtime = wait_probation(&appliance, "1.4.0");
    set(&appliance, 48 * HOUR);
    process::send(runtime, Signal::SIGKILL);
    install.end(&appliance).ends_with(70);
    appliance.settled("1.2.0");
    assert_times(&appliance, "rolled-back");
    assert!(is_known());
}
