//! The moment in which a release that proved healthy becomes the good one, while the machine does not let that be written: the
//! release is watched on, everybody is told what is waited for, and every attempt ends for everybody in the same way.
//!
//! Trouble is made from outside: limits of the runtime's process, and a home that cannot be written to, for which a child of a test
//! mounts (root may, and in a user namespace of its own everybody, where the machine allows it).

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use refit_updater::spare::SPARE_FILE;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::appliance::{Appliance, Ran, refit, text};
use crate::load::LoadOptions;
use crate::mounting::{
    assert_may_mount, assert_passes_where_it_may_mount, end_at_once, onto_a_small_disk, read_only, unmount,
};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// Returns an appliance whose trials leave the time to make trouble.
fn patient(first: &Release) -> Appliance {
    Appliance::new(first).local(|text| text.replace("probation = \"300ms\"", "probation = \"2s\""))
}

fn shop() -> Appliance {
    patient(&Release::shop("1.0.0"))
}

/// Returns a release whose component needs no disk.
fn part(version: &str) -> Release {
    Release::bare(version).component("part", "command = [\"sleep\", \"1000\"]\nready = \"exec\"")
}

/// An installation that is followed by nobody yet.
pub(crate) struct Install(Child);

impl Install {
    pub(crate) fn begin(appliance: &Appliance, release: &Release, options: &[&str]) -> Self {
        let out = |name: &str| fs::File::create(appliance.scratch().join(name)).expect("make a file");
        let mut command = refit();
        command.arg("install").arg(release.package()).args(options).arg("--home").arg(appliance.home());
        Self(command.stdout(out("install.out")).stderr(out("install.err")).spawn().expect("start the installation"))
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().expect("look at the installation").is_none()
    }

    /// Waits for its end.
    pub(crate) fn end(mut self, appliance: &Appliance) -> Ran {
        let status = until(LIMIT, "the installation ends", || self.0.try_wait().expect("wait for it"));
        let read = |name: &str| fs::read_to_string(appliance.scratch().join(name)).expect("read a file");
        Ran { code: status.code().unwrap_or(-1), stdout: read("install.out"), stderr: read("install.err") }
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        self.0.kill().ok(); // ended already is as good
        self.0.wait().ok();
    }
}

/// Waits until `version` is on trial and being watched. Returns the PID of its runtime.
pub(crate) fn wait_probation(appliance: &Appliance, version: &str) -> i32 {
    let status = until(LIMIT, "the release is being watched", || {
        let status = appliance.try_status()?;
        let watched = status["update"]["phase"] == "probation" && status["release"]["version"] == version;
        watched.then_some(status)
    });
    crate::appliance::pid_of(&status["runtime"])
}

/// Waits until the status says that the commit cannot be written; returns what it says.
fn wait_stuck(appliance: &Appliance) -> String {
    until(LIMIT, "the commit is waited for", || {
        let step = appliance.try_status()?["update"]["step"].as_str()?.to_owned();
        step.contains("cannot journal the commit").then_some(step)
    })
}

/// Sets how large the files may be that `pid` writes, or how many descriptors it may have; returns what it was.
fn limit(pid: i32, resource: Resource, current: u64) -> Rlimit {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("the kernel says it");
    let name = if matches!(resource, Resource::Fsize) { "Max file size" } else { "Max open files" };
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a row");
    // None for `unlimited`.
    let maximum = line.split_whitespace().nth(1).expect("a hard limit").parse().ok();
    let wanted = Rlimit { current: Some(current), maximum };
    prlimit(Some(Pid::from_raw(pid).expect("a PID")), resource, wanted).expect("set a limit")
}

/// Gives `pid` the limit back that it had.
fn lift(pid: i32, resource: Resource, before: Rlimit) {
    prlimit(Some(Pid::from_raw(pid).expect("a PID")), resource, before).expect("lift a limit");
}

fn newest(appliance: &Appliance) -> Value {
    appliance.history().first().expect("an entry").clone()
}

fn assert_committed(appliance: &Appliance, ran: Ran, version: &str) {
    ran.ends_with(0);
    appliance.settled(version);
    let entry = newest(appliance);
    assert_eq!((text(&entry["outcome"]), text(&entry["to"])), ("done".into(), version.into()), "{entry}");
    assert!(fs::read_to_string(appliance.home().join("history.jsonl")).expect("a history").contains(version));
}

#[test]
fn a_commit_that_cannot_be_written_is_tried_again_while_the_release_is_healthy() {
    let appliance = shop().start();
    let load = appliance.load(LoadOptions::default());
    let mut install = Install::begin(&appliance, &Release::shop("1.1.0"), &[]);
    let runtime = wait_probation(&appliance, "1.1.0");
    let before = limit(runtime, Resource::Fsize, 0);
    let step = wait_stuck(&appliance);
    assert!(step.starts_with("healthy; cannot journal the commit: ") && step.ends_with("; trying again"), "{step}");
    assert!(install.runs(), "it follows");
    eventually(LIMIT, "the installation shows it", || {
        fs::read_to_string(appliance.scratch().join("install.out")).expect("read").contains("cannot journal the commit")
    });
    // What is asked meanwhile is told what is waited for.
    let line = appliance.refit(&["rollback"]).complains_with(75);
    assert!(line.contains("another update is under way") && line.contains("cannot journal the commit"), "{line}");
    assert_eq!(appliance.status()["release"]["state"], "trial");
    lift(runtime, Resource::Fsize, before);
    assert_committed(&appliance, install.end(&appliance), "1.1.0");
    load.wait_for_version("1.1.0", LIMIT).expect("the shop answers");
    load.finish().assert_clean();
    // Nothing of it is left in the way of the next one.
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.0.0");
}

#[test]
fn a_release_that_becomes_unhealthy_while_its_commit_waits_goes_back() {
    let health = "command = [\"sleep\", \"1000\"]\nready = \"exec\"\nhealth = { command = [\"sh\", \"-c\", \
                  \"! test -e $REFIT_DATA/sick\"], interval = \"100ms\", threshold = 2 }";
    let appliance = shop().start();
    let install = Install::begin(&appliance, &Release::shop("1.1.0").component("part", health), &[]);
    let runtime = wait_probation(&appliance, "1.1.0");
    limit(runtime, Resource::Fsize, 0);
    wait_stuck(&appliance);
    fs::write(appliance.home().join("data/sick"), "").expect("make it sick");
    // Its own runtime can write nothing: the guard finds a trial without starts.
    let line = install.end(&appliance).complains_with(70);
    assert!(line.contains("rolled back to 1.0.0"), "{line}");
    appliance.settled("1.0.0");
    assert_eq!(newest(&appliance)["outcome"], "rolled-back");
}

#[test]
fn a_runtime_without_descriptors_commits_when_it_has_some_again() {
    let appliance = patient(&Release::bare("1.0.0")).start();
    let mut install = Install::begin(&appliance, &Release::bare("1.1.0"), &[]);
    let runtime = wait_probation(&appliance, "1.1.0");
    let before = limit(runtime, Resource::Nofile, 3);
    eventually(LIMIT, "the installation shows it", || {
        fs::read_to_string(appliance.scratch().join("install.out")).expect("read").contains("; trying again")
    });
    assert!(install.runs(), "it follows");
    lift(runtime, Resource::Nofile, before);
    assert_committed(&appliance, install.end(&appliance), "1.1.0");
}

#[test]
fn a_runtime_killed_while_its_commit_waits_means_the_previous_release() {
    let appliance = shop().start();
    let install = Install::begin(&appliance, &Release::shop("1.1.0"), &[]);
    let runtime = wait_probation(&appliance, "1.1.0");
    limit(runtime, Resource::Fsize, 0);
    wait_stuck(&appliance);
    process::send(runtime, Signal::SIGKILL);
    install.end(&appliance).ends_with(70);
    appliance.settled("1.0.0");
    assert_eq!(newest(&appliance)["outcome"], "rolled-back");
}

#[test]
fn a_history_that_cannot_be_written_is_no_failure_and_is_written_later() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let history = appliance.home().join("history.jsonl");
    fs::create_dir(&history).expect("put a directory there");
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    eventually(LIMIT, "the log says so", || appliance.log().contains("cannot write the history"));
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.0.0");
    let broken = Release::shop("1.3.0").component("broken", "command = [\"sh\", \"-c\", \"exit 3\"]");
    appliance.install(&broken, &[]).ends_with(70);
    appliance.settled("1.0.0");
    // The three are known, in order, also to a runtime that did not see them end.
    let outcomes = |appliance: &Appliance| -> Vec<String> {
        appliance.history().iter().map(|entry| format!("{} {}", text(&entry["to"]), text(&entry["outcome"]))).collect()
    };
    let expected = ["1.3.0 rolled-back", "1.0.0 done", "1.1.0 done"];
    assert_eq!(outcomes(&appliance), expected);
    appliance.kill_runtime();
    assert_eq!(outcomes(&appliance), expected);
    fs::remove_dir(&history).expect("take the directory away");
    eventually(LIMIT, "the history is written", || {
        fs::read_to_string(&history).is_ok_and(|text| text.lines().count() == 3)
    });
    assert_eq!(outcomes(&appliance), expected);
}

#[test]
fn an_update_that_a_restart_overtakes_ends_for_everybody() {
    // A dry run that takes its time: the restart in place comes while the release is only staged.
    let appliance = Appliance::new(&Release::voyage("1.0.0")).start();
    let mut install = Install::begin(&appliance, &Release::voyage("1.1.0"), &[]);
    until(LIMIT, "the update has begun", || {
        let status = appliance.try_status()?;
        (status["update"]["phase"].is_string() || !install.runs()).then_some(())
    });
    let restarted = appliance.refit(&["bus", "request", "restart"]);
    let ran = install.end(&appliance);
    assert!([0, 70, 75].contains(&ran.code), "{ran:?} {restarted:?}");
    let status = until(LIMIT, "nothing is under way", || {
        let status = appliance.try_status()?;
        (status["update"].is_null() && status["bus"]["state"] == "Running").then_some(status)
    });
    let runs = if ran.code == 0 { "1.1.0" } else { "1.0.0" };
    assert_eq!(status["release"]["version"], runs, "{ran:?}");
    let tickets = appliance.install(&Release::voyage("1.3.0"), &[]);
    tickets.ends_with(0);
}

/// Not a test by itself: what the child of the next one does.
#[test]
#[ignore = "run by the next test, where it may mount"]
fn child_commits_when_the_disk_recovers() {
    assert_may_mount();
    let appliance = patient(&part("1.0.0"));
    onto_a_small_disk(appliance.home());
    let mut appliance = appliance.start();
    let home = appliance.home().to_owned();

    // Read-only.
    let mut install = Install::begin(&appliance, &part("1.1.0"), &["--json"]);
    wait_probation(&appliance, "1.1.0");
    read_only(appliance.home());
    assert!(wait_stuck(&appliance).contains("Read-only file system"));
    assert!(install.runs(), "it follows");
    unmount(appliance.home());
    let ran = install.end(&appliance);
    assert_eq!(ran.objects().last().expect("a last line")["ticket"]["state"], "done");
    assert_committed(&appliance, ran, "1.1.0");

    // Full to the last block, without those that were put aside.
    let mut install = Install::begin(&appliance, &part("1.3.0"), &[]);
    let runtime = wait_probation(&appliance, "1.3.0");
    let before = limit(runtime, Resource::Fsize, 0); // filling takes its time
    wait_stuck(&appliance);
    let full = home.join("data/full");
    let fill = "cat /dev/zero >\"$1\"; rm -f \"$2\"; cat /dev/zero >>\"$1\"; dd if=/dev/zero bs=1 >>\"$1\"; true";
    let spare = home.join(SPARE_FILE);
    let mut fill_up = Command::new("sh");
    fill_up.args(["-c", fill, "sh"]).arg(&full).arg(spare).stderr(Stdio::null());
    assert!(fill_up.status().expect("run sh").success());
    lift(runtime, Resource::Fsize, before);
    eventually(LIMIT, "the disk is what is waited for", || wait_stuck(&appliance).contains("No space left"));
    assert!(install.runs(), "it follows");
    fs::remove_file(&full).expect("make room");
    assert_committed(&appliance, install.end(&appliance), "1.3.0");

    end_at_once(&mut appliance);
    unmount(appliance.home());
}

#[test]
fn a_release_is_committed_when_a_disk_that_is_full_or_read_only_recovers() {
    assert_passes_where_it_may_mount("commit::child_commits_when_the_disk_recovers");
}
