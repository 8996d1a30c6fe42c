//! Restart on change: a watched file that is replaced restarts the runtime in place, once, and not in the middle of things.

use std::fs;
use std::process::{Child, Stdio};

use crate::appliance::{Appliance, refit};
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

const FILES: [&str; 2] = ["data/one.conf", "data/two.conf"];

fn watching() -> Appliance {
    let appliance = Appliance::new(&Release::shop("1.0.0"))
        .local(|text| format!("{text}\n[runtime]\nwatch = [\"{}\", \"{}\"]\nsettle = \"100ms\"\n", FILES[0], FILES[1]));
    for file in FILES {
        fs::write(appliance.home().join(file), "old").expect("written");
    }
    appliance.start()
}

fn generation(appliance: &Appliance) -> Option<u64> {
    let status = appliance.try_status()?;
    (status["bus"]["state"] == "Running").then(|| status["runtime"]["generation"].as_u64())?
}

fn started_at(appliance: &Appliance) -> String {
    appliance.status()["runtime"]["started_at"].as_str().expect("a time").to_owned()
}

#[test]
fn b080_a_watched_file_that_is_replaced_by_an_older_one_restarts_once() {
    let appliance = watching();
    let (pid, before, first) = (appliance.runtime_pid(), started_at(&appliance), generation(&appliance).expect("runs"));
    // As a package manager does it: written beside, with a time of long ago, and renamed.
    let beside = appliance.home().join("data/one.conf.new");
    fs::write(&beside, "new").expect("written");
    let old = fs::File::options().write(true).open(&beside).expect("opened");
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("dated");
    fs::rename(&beside, appliance.home().join(FILES[0])).expect("renamed");
    eventually(LIMIT, "the next image runs", || generation(&appliance) == Some(first + 1));
    assert_eq!(appliance.runtime_pid(), pid);
    assert!(started_at(&appliance) > before);
    // Nobody is there to be asked; what was asked before it is over by then.
    appliance.refit(&["bus", "request", "reload"]).ends_with(70);
    assert_eq!(generation(&appliance), Some(first + 1), "one restart: {}", appliance.log());
}

/// An update by somebody else's tool: it holds the inhibitor until its standard input ends.
fn inhibiting(appliance: &Appliance) -> Child {
    let mut holder = refit()
        .args(["bus", "inhibit", "--home"])
        .arg(appliance.home())
        .args(["--", "sh", "-c", "echo held; cat >/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut held = [0; 5];
    std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut held).expect("it holds");
    holder
}

#[test]
fn b082_a_half_finished_update_restarts_nothing_until_its_lock_is_released_and_then_once() {
    let appliance = watching();
    let first = generation(&appliance).expect("runs");
    let mut holder = inhibiting(&appliance);
    let path = |file: &str| appliance.home().join(file);
    fs::remove_file(path(FILES[0])).expect("removed");
    fs::write(path(FILES[1]), "half of it").expect("written");
    fs::write(path(FILES[0]), "new").expect("written again");
    fs::write(path(FILES[1]), "all of it").expect("written");
    until(LIMIT, "the change is noticed", || appliance.log().contains("the restart waits for").then_some(()));
    assert_eq!(generation(&appliance), Some(first), "nothing before the lock is released");
    drop(holder.stdin.take());
    assert!(holder.wait().expect("waited for").success());
    eventually(LIMIT, "the next image runs", || generation(&appliance) == Some(first + 1));
    // Nobody is there to be asked; what was asked before it is over by then.
    appliance.refit(&["bus", "request", "reload"]).ends_with(70);
    assert_eq!(generation(&appliance), Some(first + 1), "exactly one restart: {}", appliance.log());
}
