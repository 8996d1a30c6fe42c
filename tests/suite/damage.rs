//! Damage that is done to a home at rest: the appliance starts, and says what it found.

use std::fs;
use std::path::Path;

use crate::appliance::{Appliance, Ran, refit};
use crate::release::{Release, Vendor};

/// Does something to the file at a path.
type Damage = fn(&Path);

#[test]
fn a_journal_that_is_damaged_or_gone_comes_back_from_its_copy() {
    let damages: [(&str, Damage); 4] = [
        ("empty", |path| fs::write(path, "").expect("written")),
        ("cut", |path| {
            let bytes = fs::read(path).expect("read");
            fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
        }),
        ("not a journal", |path| fs::write(path, [0; 512]).expect("written")),
        ("gone", |path| fs::remove_file(path).expect("removed")),
    ];
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    let journal = appliance.home().join("state.json");
    for (name, damage) in damages {
        appliance.stop();
        damage(&journal);
        let ran = appliance.refit(&["verify", "--json"]).ends_with(0);
        assert!(ran.stdout.contains("1.1.0"), "{name}: {}", ran.stdout);
        appliance.run_guard();
        appliance.wait_running();
        appliance.settled("1.1.0");
        let log = appliance.log();
        assert!(log.contains("state.json") && log.contains("it was replaced by its copy"), "{name}: {log}");
        assert!(fs::read_to_string(&journal).expect("read").contains("1.1.0"), "{name}");
        assert!(appliance.home().join("state.json.damaged").exists(), "{name}: kept to look at");
    }
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.0.0");
    // A home of a program that kept no copy, or an older one.
    appliance.stop();
    fs::remove_file(appliance.home().join("state.json.copy")).expect("removed");
    appliance.run_guard();
    appliance.wait_running();
    let read = |name: &str| fs::read(appliance.home().join(name)).expect("read");
    assert_eq!(read("state.json"), read("state.json.copy"));
}

#[test]
fn a_home_whose_journal_is_gone_is_not_made_anew() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.stop();
    fs::remove_file(appliance.home().join("state.json")).expect("removed");
    let accounts = fs::read(appliance.home().join("auth/users.json")).expect("read");
    let mut init = refit();
    init.arg("init").arg(Release::shop("1.0.0").package()).arg("--root").arg(Vendor::get().root()).arg("--home");
    let line = Ran::of(init.arg(appliance.home())).complains_with(78);
    assert!(line.contains("nothing was changed"), "{line}");
    assert_eq!(fs::read(appliance.home().join("auth/users.json")).expect("read"), accounts);
    appliance.run_guard();
    appliance.wait_running();
    appliance.settled("1.0.0");
}

#[test]
fn a_copy_that_is_damaged_too_helps_nobody_and_changes_nothing() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.stop();
    for name in ["state.json", "state.json.copy"] {
        fs::write(appliance.home().join(name), "{").expect("written");
    }
    let line = Ran::of(refit().args(["run", "--home"]).arg(appliance.home())).complains_with(78);
    assert!(line.contains("is lost: neither state.json nor its copy can be read"), "{line}");
    assert_eq!(fs::read(appliance.home().join("state.json")).expect("read"), b"{");
}

#[test]
fn directories_that_are_missing_are_made_again() {
    let release = |version: &str| Release::shop(version).file("config/colours.conf", "red\n");
    let mut appliance = Appliance::new(&release("1.0.0")).start();
    // What is made anew at each start anyhow is worth no word.
    for (name, is_said) in [("staging", true), ("data", true), ("config", true), ("run", false), ("log", false)] {
        appliance.stop();
        let dir = appliance.home().join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).expect("removed");
        }
        appliance.run_guard();
        appliance.wait_running();
        let log = appliance.log();
        assert_eq!(log.contains(&format!("the directory {name} of the home was missing")), is_said, "{name}: {log}");
        assert!(dir.is_dir() || name == "log", "{name}"); // logs are kept only where that is asked for
    }
    assert_eq!(fs::read_to_string(appliance.home().join("config/1.0.0/colours.conf")).expect("read"), "red\n");
    // And those that go while it runs.
    for (name, version) in [("staging", "1.1.0"), ("config", "1.2.0")] {
        let dir = appliance.home().join(name);
        fs::remove_dir_all(&dir).expect("removed");
        if name == "config" {
            for words in [["status"].as_slice(), &["config", "check"]] {
                let said = appliance.refit(words).ends_with(0).stdout;
                assert!(said.contains("config/1.1.0 cannot be read: it is missing"), "{words:?}: {said}");
            }
            appliance.refit(&["component", "restart", "shop"]).ends_with(0);
            assert_eq!(fs::read_to_string(dir.join("1.1.0/colours.conf")).expect("read"), "red\n");
            assert!(appliance.log().contains("the live configuration was missing; it was made"), "{}", appliance.log());
            assert!(!appliance.refit(&["status"]).ends_with(0).stdout.contains("cannot be read"));
            fs::remove_dir_all(&dir).expect("removed");
        }
        appliance.install(&release(version), &[]).ends_with(0);
        appliance.settled(version);
    }
}

#[test]
fn a_home_whose_lock_is_removed_has_one_guard_all_the_same() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let pids = (appliance.guard_pid(), appliance.runtime_pid(), appliance.component_pid("shop"));
    for remove in ["run/lock", "run"] {
        let path = appliance.home().join(remove);
        if path.is_dir() {
            fs::remove_dir_all(&path).expect("removed");
        } else {
            fs::remove_file(&path).expect("removed");
        }
        let line = Ran::of(refit().args(["run", "--home"]).arg(appliance.home())).complains_with(75);
        assert!(line.contains("in use by another guard") && line.contains(&pids.0.to_string()), "{remove}: {line}");
    }
    for pid in [pids.0, pids.1, pids.2] {
        assert!(crate::process::is_alive(pid), "{pid}");
    }
}
