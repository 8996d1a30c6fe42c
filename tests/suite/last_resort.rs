//! The guard never gives up: what keeps a runtime from starting leaves the components serving, and is over when it is over.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use refit_fixtures::tools::put_program;
use refit_updater::durable;
use refit_updater::spare::SPARE_FILE;
use rustix::process::{Pid, Resource, Rlimit};

use crate::appliance::{Appliance, pid_of, text};
use crate::load::LoadOptions;
use crate::mounting::{
    assert_may_mount, assert_passes_where_it_may_mount, end_at_once, mount, onto_a_small_disk, unmount,
};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// Something that keeps a runtime from starting.
struct Trouble {
    name: &'static str,
    begin: fn(&Appliance),
    end: fn(&Appliance),
    /// What the guard says of it.
    said: &'static str,
}

fn journal(appliance: &Appliance) -> PathBuf {
    appliance.home().join("state.json")
}

/// Returns the runtime's program, whose directory is made writable.
fn program(appliance: &Appliance) -> PathBuf {
    let path = appliance.home().join("releases/1.0.0/bin/refit");
    durable::set_owner_write(path.parent().expect("a directory")).expect("make it writable");
    path
}

fn away(path: &Path) -> PathBuf {
    path.with_extension("away")
}

fn put_away(path: &Path) {
    fs::rename(path, away(path)).expect("put it away");
}

fn put_back(path: &Path) {
    fs::rename(away(path), path).expect("put it back");
}

/// Sets a limit of the guard; returns what it was.
fn limit(appliance: &Appliance, resource: Resource, new: Rlimit) -> Rlimit {
    let pid = Pid::from_raw(appliance.guard_pid()).expect("a PID");
    rustix::process::prlimit(Some(pid), resource, new).expect("set a limit of the guard")
}

/// Sets a soft limit of the guard.
fn soft(appliance: &Appliance, resource: Resource, value: Option<u64>) {
    let maximum = rustix::process::getrlimit(resource).maximum;
    limit(appliance, resource, Rlimit { current: value, maximum });
}

const TROUBLES: &[Trouble] = &[
    Trouble {
        name: "the journal is a directory",
        begin: |appliance| {
            put_away(&journal(appliance));
            fs::create_dir(journal(appliance)).expect("make a directory");
        },
        end: |appliance| {
            fs::remove_dir(journal(appliance)).expect("remove the directory");
            put_back(&journal(appliance));
        },
        said: "cannot read the update journal",
    },
    Trouble {
        name: "the journal is a pipe",
        begin: |appliance| {
            put_away(&journal(appliance));
            let made = Command::new("mkfifo").arg(journal(appliance)).status().expect("run mkfifo");
            assert!(made.success());
        },
        end: |appliance| {
            fs::remove_file(journal(appliance)).expect("remove the pipe");
            put_back(&journal(appliance));
        },
        said: "not a regular file",
    },
    Trouble {
        name: "the journal is damaged",
        begin: |appliance| fs::write(journal(appliance), "{\"format\": 1").expect("damage it"),
        end: |_| {},
        said: "state.json is damaged",
    },
    Trouble {
        name: "the journal is empty",
        begin: |appliance| fs::write(journal(appliance), "").expect("empty it"),
        end: |_| {},
        said: "it was replaced by what was last read of it",
    },
    Trouble {
        name: "the journal is gone",
        begin: |appliance| fs::remove_file(journal(appliance)).expect("remove it"),
        end: |_| {},
        said: "state.json is gone",
    },
    Trouble {
        name: "the journal belongs to the future",
        begin: |appliance| {
            put_away(&journal(appliance));
            fs::write(journal(appliance), "{\"format\": 99}").expect("write it");
        },
        end: |appliance| put_back(&journal(appliance)),
        said: "has the format 99",
    },
    Trouble {
        name: "the runtime's program is gone",
        begin: |appliance| put_away(&program(appliance)),
        end: |appliance| put_back(&program(appliance)),
        said: "the installed refit runs it instead",
    },
    Trouble {
        name: "the runtime's program is not one",
        begin: |appliance| {
            put_away(&program(appliance));
            put_program(&program(appliance), "no program at all");
        },
        end: |appliance| put_back(&program(appliance)),
        said: "the installed refit runs it instead",
    },
    Trouble {
        name: "the runtime's program ends at once",
        begin: |appliance| {
            put_away(&program(appliance));
            put_program(&program(appliance), "#!/bin/sh\nexit 78\n");
        },
        end: |appliance| put_back(&program(appliance)),
        said: "ended with status 78; starting it again",
    },
    Trouble {
        name: "the configuration is wrong",
        begin: |appliance| {
            put_away(&appliance.home().join("local.toml"));
            fs::write(appliance.home().join("local.toml"), "[what").expect("write it");
        },
        end: |appliance| put_back(&appliance.home().join("local.toml")),
        said: "ended with status 78; starting it again",
    },
    Trouble {
        name: "the guard may open no more files",
        begin: |appliance| soft(appliance, Resource::Nofile, Some(8)),
        end: |_| {},
        said: "Too many open files",
    },
    Trouble {
        name: "no process may write",
        begin: |appliance| soft(appliance, Resource::Fsize, Some(0)),
        end: |appliance| soft(appliance, Resource::Fsize, rustix::process::getrlimit(Resource::Fsize).current),
        said: "", // nor may the guard, to its log
    },
    Trouble {
        name: "no process gets memory",
        begin: |appliance| soft(appliance, Resource::As, Some(1 << 20)),
        end: |appliance| soft(appliance, Resource::As, rustix::process::getrlimit(Resource::As).current),
        said: "starting it again in 1600 ms",
    },
    Trouble {
        name: "the guard's socket is gone",
        begin: |appliance| fs::remove_file(appliance.home().join("run/guard.sock")).expect("remove it"),
        end: |_| {},
        said: "was ended by signal 9",
    },
    Trouble {
        name: "the directory of sockets is gone",
        begin: |appliance| fs::remove_dir_all(appliance.home().join("run")).expect("remove it"),
        end: |_| {},
        said: "was ended by signal 9",
    },
];

/// Kills the runtime in this trouble, and asserts that nobody but the runtime is hurt.
fn survive(appliance: &Appliance, trouble: &Trouble) {
    let name = trouble.name;
    let status = appliance.settled("1.0.0");
    let (runtime, shop) = (appliance.runtime_pid(), appliance.component_pid("shop"));
    let said = appliance.log().len();
    let load = appliance.load(LoadOptions::default());
    (trouble.begin)(appliance);
    process::send(runtime, Signal::SIGKILL);
    eventually(LIMIT, &format!("{:?} is said: {name}", trouble.said), || {
        assert!(process::is_alive(appliance.guard_pid()), "{name}: {}", appliance.log());
        appliance.log()[said..].contains(trouble.said)
    });
    load.wait_for_ok(100, LIMIT).expect("the shop goes on");
    assert!(process::is_alive(shop), "{name}");
    (trouble.end)(appliance);
    let after = until(LIMIT, &format!("another runtime runs: {name}"), || {
        let status = appliance.try_status()?;
        (status["runtime"]["pid"] != runtime && status["bus"]["state"] == "Running").then_some(status)
    });
    assert_eq!(after["guard"], status["guard"], "{name}");
    assert_eq!(appliance.component_pid("shop"), shop, "{name}: it was adopted");
    load.finish().assert_clean();
}

/// Returns an appliance that has survived these troubles. Each kill makes the next pause longer, so there are not too many.
fn survivor(troubles: &[Trouble]) -> Appliance {
    let appliance = Appliance::new(&Release::shop("1.0.0").with_a_runtime()).start();
    for trouble in troubles {
        survive(&appliance, trouble);
    }
    appliance
}

#[test]
fn whatever_is_wrong_with_the_journal_the_components_serve_on() {
    survivor(&TROUBLES[..TROUBLES.len() / 2]);
}

#[test]
fn whatever_keeps_a_runtime_from_starting_the_components_serve_on() {
    let appliance = survivor(&TROUBLES[TROUBLES.len() / 2..]);
    // Only root's processes are not counted.
    if !nix::unistd::geteuid().is_root() {
        let trouble = Trouble {
            name: "no process may be started",
            begin: |appliance| soft(appliance, Resource::Nproc, Some(0)),
            end: |appliance| soft(appliance, Resource::Nproc, rustix::process::getrlimit(Resource::Nproc).current),
            said: "cannot start the runtime",
        };
        survive(&appliance, &trouble);
    }
    // And everything still works.
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    let status = appliance.status();
    assert_eq!(status["components"].as_array().map(Vec::len), Some(2));
}

/// Keeps the guard from ever starting anything again.
fn starve(appliance: &Appliance) {
    limit(appliance, Resource::Nofile, Rlimit { current: Some(8), maximum: Some(8) });
    process::send(appliance.runtime_pid(), Signal::SIGKILL);
    eventually(LIMIT, "the guard pauses", || appliance.log().contains("trying again until it works"));
}

/// A component that takes its time to end, and says that it did; and one that never ends by itself.
fn slow_enders(deaf: bool) -> Release {
    let slow = "trap 'sleep 1; echo done >$REFIT_DATA/ended; exit' TERM; while :; do sleep 0.05; done";
    let release = Release::bare("1.0.0").component(
        "slow",
        &format!("command = [\"sh\", \"-c\", \"{slow}\"]\nready = \"started\"\nstop_timeout = \"20s\""),
    );
    let words =
        "command = [\"sh\", \"-c\", \"trap '' TERM; echo deaf >$REFIT_DATA/deaf; while :; do sleep 0.05; done\"]";
    if deaf { release.component("deaf", &format!("{words}\nready = \"started\"")) } else { release }
}

#[test]
fn a_guard_that_is_asked_to_end_while_no_runtime_runs_asks_the_components_first() {
    let mut appliance = Appliance::new(&slow_enders(false)).start();
    starve(&appliance);
    appliance.stop();
    assert_eq!(fs::read_to_string(appliance.home().join("data/ended")).expect("it ended by itself"), "done\n");
    assert_eq!(appliance.processes(), Vec::<i32>::new());
}

#[test]
fn a_second_request_ends_at_once_what_does_not_end_by_itself() {
    let mut appliance = Appliance::new(&slow_enders(true)).start();
    eventually(LIMIT, "it hears nothing", || appliance.home().join("data/deaf").exists());
    starve(&appliance);
    process::send(appliance.guard_pid(), Signal::SIGTERM);
    eventually(LIMIT, "the components are asked", || appliance.log().contains("asking them to end"));
    eventually(LIMIT, "one has ended", || appliance.home().join("data/ended").exists());
    process::send(appliance.guard_pid(), Signal::SIGINT);
    // Far less than what a component is given that does not hear.
    assert_eq!(appliance.wait_guard(std::time::Duration::from_secs(15)).code(), Some(0));
    assert_eq!(appliance.processes(), Vec::<i32>::new());
}

/// The runtime is killed while it stops what runs: what it had not stopped is asked, and not killed.
#[test]
fn a_runtime_that_is_killed_while_it_stops_the_components_costs_none_its_grace() {
    let mut appliance = Appliance::new(&slow_enders(false)).start();
    let runtime = appliance.runtime_pid();
    // It has the request and no processor.
    process::send(runtime, Signal::SIGSTOP);
    process::send(appliance.guard_pid(), Signal::SIGTERM);
    process::send(runtime, Signal::SIGKILL);
    appliance.wait_guard(LIMIT);
    assert_eq!(fs::read_to_string(appliance.home().join("data/ended")).expect("it ended by itself"), "done\n");
    assert_eq!(appliance.processes(), Vec::<i32>::new());
}

#[test]
fn one_that_prints_goes_on_while_no_runtime_reads() {
    let prints = "n=0; while :; do n=$((n+1)); printf '%01000d\\\\n' $n; echo $n >$REFIT_DATA/n.new; \
                  mv $REFIT_DATA/n.new $REFIT_DATA/n; done";
    let keys = format!("command = [\"sh\", \"-c\", \"{prints}\"]\nready = \"started\"");
    let appliance = Appliance::new(&Release::bare("1.0.0").component("chatty", &keys)).start();
    starve(&appliance);
    let count = || -> u64 {
        until(LIMIT, "it counts", || fs::read_to_string(appliance.home().join("data/n")).ok()?.trim().parse().ok())
    };
    let before = count();
    // Three times what fits into a pipe.
    eventually(LIMIT, "it goes on", || count() > before + 200);
    assert!(appliance.log().contains("no runtime reads what the components print"));
}

/// Not a test by itself: what the child of the next one does.
#[test]
#[ignore = "run by the next test, where it may mount"]
fn child_goes_back_without_writing() {
    assert_may_mount();
    let appliance = Appliance::new(&Release::shop("1.0.0"))
        .local(|text| text.replace("probation = \"300ms\"", "probation = \"10m\""));
    onto_a_small_disk(appliance.home());
    mount(&["-t", "tmpfs", "tmpfs"], &appliance.home().join("run"));
    let mut appliance = appliance.start();
    let load = appliance.load(LoadOptions::default());
    let full = appliance.home().join("data/full");
    std::thread::scope(|scope| {
        let install = scope.spawn(|| appliance.install(&Release::shop("1.1.0"), &[]));
        eventually(LIMIT, "release 1.1.0 is on trial", || {
            appliance.try_status().is_some_and(|status| status["update"]["phase"] == "probation")
        });
        // What was put aside goes, too: nothing at all can be written.
        let trial = fs::read_to_string(journal(&appliance)).expect("the journal");
        fs::remove_file(appliance.home().join(SPARE_FILE)).expect("remove what was put aside");
        let mut file = fs::File::create(&full).expect("make a file");
        while file.write_all(&[1; 1 << 12]).is_ok() {}
        process::send(appliance.runtime_pid(), Signal::SIGKILL);
        for number in 1..=2 {
            let status = appliance.settled("1.0.0");
            assert_eq!(status["guard"]["pid"], appliance.guard_pid());
            assert_eq!(fs::read_to_string(journal(&appliance)).expect("the journal"), trial, "it could not be written");
            load.wait_for_version("1.0.0", LIMIT).expect("the previous release answers");
            // Once more: the journal still says that the other release is on trial.
            if number == 1 {
                appliance.kill_runtime();
            }
        }
        // A restart in place goes by the same decision.
        let before = appliance.status()["runtime"]["generation"].as_u64();
        process::send(appliance.guard_pid(), Signal::SIGUSR2);
        eventually(LIMIT, "the next image runs", || appliance.status()["runtime"]["generation"].as_u64() > before);
        appliance.settled("1.0.0");
        load.finish().assert_clean();
        fs::remove_file(&full).expect("make room");
        install.join().expect("no panic").complains_with(70);
    });
    let entry = until(LIMIT, "the history has it", || appliance.history().first().cloned());
    assert_eq!((text(&entry["outcome"]), text(&entry["to"])), ("rolled-back".into(), "1.1.0".into()), "{entry}");
    assert!(text(&entry["reason"]).contains("the runtime was ended by signal 9"), "{entry}");
    eventually(LIMIT, "the journal has it", || {
        fs::read_to_string(journal(&appliance)).is_ok_and(|text| text.contains("Idle"))
    });
    appliance.kill_runtime();
    appliance.settled("1.0.0");
    end_at_once(&mut appliance);
    for dir in ["run", ""] {
        unmount(&appliance.home().join(dir));
    }
}

#[test]
fn a_trial_that_fails_where_nothing_can_be_written_ends_in_the_previous_release() {
    assert_passes_where_it_may_mount("last_resort::child_goes_back_without_writing");
}

/// Two processes that are kept whatever happens to the runtime.
fn kept() -> Release {
    ["a", "b"].iter().fold(Release::bare("1.0.0"), |release, name| release.part(name, &[], "handover = \"keep\""))
}

#[test]
fn a_runtime_that_begins_with_few_descriptors_hands_all_of_them_on() {
    let mut appliance = Appliance::new(&kept());
    appliance.run_guard_through(&["sh", "-c", "ulimit -Sn 20 && exec \"$@\"", "sh"]);
    appliance.wait_running();
    let before = ["a", "b"].map(|name| appliance.component_pid(name));
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    assert_eq!(["a", "b"].map(|name| appliance.component_pid(name)), before, "{}", appliance.log());
    appliance.kill_runtime();
    assert_eq!(["a", "b"].map(|name| appliance.component_pid(name)), before, "{}", appliance.log());
}

#[test]
fn the_sockets_of_the_runtime_come_back_with_the_next_one_and_stay() {
    let appliance = Appliance::new(&kept()).start();
    let mut runtime = appliance.runtime_pid();
    for name in ["refit.sock", "bus.sock"] {
        fs::remove_file(appliance.home().join("run").join(name)).expect("remove it");
    }
    for _ in 0..3 {
        process::send(runtime, Signal::SIGKILL);
        runtime = until(LIMIT, "the next runtime is reached", || {
            let status = appliance.try_status().filter(|status| status["bus"]["state"] == "Running")?;
            Some(pid_of(&status["runtime"])).filter(|pid| *pid != runtime)
        });
    }
    appliance.refit(&["component", "restart", "a"]).ends_with(0);
}

#[test]
fn a_journal_that_is_removed_is_there_for_the_next_guard() {
    let mut appliance = Appliance::new(&kept()).start();
    fs::remove_file(journal(&appliance)).expect("remove it");
    appliance.stop();
    appliance.run_guard();
    appliance.wait_running();
}
