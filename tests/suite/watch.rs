//! Restart on change: a watched file that is replaced restarts the runtime in place, once, and not in the middle of things.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;

use crate::appliance::{Appliance, refit};
use crate::components::odd;
use crate::process;
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

/// Returns an appliance whose component `odd` is told of a reload when one of these changes.
fn reloading(paths: &[&str], check: &str) -> Appliance {
    let entries: String = paths.iter().map(|path| format!("{{ path = \"{path}\", request = \"reload\" }}, ")).collect();
    let local = move |text| format!("{text}\n[runtime]\nwatch = [{entries}]\nsettle = \"50ms\"\n");
    let keys = format!("ready = \"notify\"\nreload_signal = \"HUP\"\n{check}");
    Appliance::new(&odd(&["reload"], &keys)).local(local).start()
}

/// Waits until the component was told of so many reloads, and no more.
fn reloads(appliance: &Appliance, count: usize) {
    let path = appliance.home().join("data/reloaded");
    until(LIMIT, &format!("{count} reloads"), || {
        let told = fs::read_to_string(&path).unwrap_or_default().lines().count();
        assert!(told <= count, "{told} reloads instead of {count}: {}", appliance.log());
        (told == count).then_some(())
    });
}

#[test]
fn a_certificate_reaches_the_component_however_it_is_replaced() {
    let appliance = reloading(&["data/tls/live/cert.pem", "data/conf.d"], "");
    let (pid, image) = (appliance.runtime_pid(), generation(&appliance));
    let at = |path: &str| appliance.home().join("data").join(path);
    let replace = |path: &str| {
        fs::write(at("new"), path).expect("written");
        fs::rename(at("new"), at(path)).expect("renamed");
    };
    let link = |target: &str| {
        symlink(target, at("new")).expect("a link");
        fs::rename(at("new"), at("tls/live/cert.pem")).expect("renamed");
    };
    // Missing until now, and so is the directory that it comes to lie in: as an ACME client leaves it.
    for dir in ["tls/live", "tls/archive", "conf.new"] {
        fs::create_dir_all(at(dir)).expect("a directory");
    }
    for file in ["tls/archive/1.pem", "tls/archive/2.pem", "conf.new/site"] {
        fs::write(at(file), file).expect("written");
    }
    link("../archive/1.pem");
    reloads(&appliance, 1);
    replace("tls/archive/1.pem");
    reloads(&appliance, 2);
    link("../archive/2.pem");
    reloads(&appliance, 3);
    // What the link does not lead to any more is nobody's business.
    replace("tls/archive/1.pem");
    fs::rename(at("conf.new"), at("conf.d")).expect("renamed");
    reloads(&appliance, 4);
    replace("conf.d/site");
    reloads(&appliance, 5);
    replace("conf.d/another");
    reloads(&appliance, 6);
    fs::rename(at("tls"), at("old")).expect("renamed");
    fs::rename(at("old"), at("tls")).expect("renamed");
    replace("tls/live/cert.pem");
    reloads(&appliance, 7);
    assert_eq!((appliance.runtime_pid(), generation(&appliance)), (pid, image), "nothing restarts");
    // A change while no runtime is there.
    process::send(appliance.guard_pid(), Signal::SIGSTOP);
    process::send(pid, Signal::SIGKILL);
    replace("tls/live/cert.pem");
    process::send(appliance.guard_pid(), Signal::SIGCONT);
    reloads(&appliance, 8);
}

#[test]
fn a_reload_that_a_changed_file_asks_for_may_be_refused_and_the_next_change_asks_again() {
    let check = "reload_check = [\"sh\", \"-c\", \"test -e ${REFIT_DATA}/good || { echo line 7: unknown directive; exit 1; }\"]";
    let appliance = reloading(&["data/site.conf"], check);
    let site = appliance.home().join("data/site.conf");
    fs::write(&site, "bad").expect("written");
    let said =
        "the reload has failed: refused by odd: its reload_check ended with exit status: 1: line 7: unknown directive";
    eventually(LIMIT, "the log says why", || appliance.log().contains(said));
    fs::write(appliance.home().join("data/good"), "").expect("written");
    fs::write(&site, "good").expect("written");
    reloads(&appliance, 1);
}

#[test]
fn a_change_while_a_reload_waits_to_be_confirmed_asks_when_that_is_known() {
    for end in ["confirm", "expiry"] {
        let appliance = reloading(&["data/cert"], "");
        fs::write(appliance.home().join("data/cert"), "first").expect("written");
        reloads(&appliance, 1);
        let within = if end == "confirm" { "10m" } else { "2s" };
        appliance.refit(&["bus", "request", "reload", "--confirm-within", within, "--restores"]).ends_with(0);
        reloads(&appliance, 2);
        fs::write(appliance.home().join("data/cert"), "second").expect("written");
        let waits = "the reload waits until it is known whether the last one stays";
        eventually(LIMIT, "the change waits", || appliance.log().contains(waits));
        if end == "confirm" {
            reloads(&appliance, 2);
            appliance.refit(&["bus", "request", "confirm"]).ends_with(0);
            reloads(&appliance, 3);
        } else {
            reloads(&appliance, 4); // what was restored, and then the change
        }
    }
}
