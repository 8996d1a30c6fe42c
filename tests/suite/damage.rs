//! Damage that is done to a home at rest: the appliance starts, and says what it found.

use std::fs;
use std::path::Path;

use crate::appliance::{Appliance, Ran, refit};
use crate::release::{Release, Vendor};
use crate::wait::LIMIT;

/// Does something to the file at a path.
type Damage = fn(&Path);

fn stop(appliance: &mut Appliance) {
    appliance.refit(&["bus", "request", "exit"]).ends_with(0);
    appliance.wait_guard(LIMIT);
}

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
        stop(&mut appliance);
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
    stop(&mut appliance);
    fs::remove_file(appliance.home().join("state.json.copy")).expect("removed");
    appliance.run_guard();
    appliance.wait_running();
    let read = |name: &str| fs::read(appliance.home().join(name)).expect("read");
    assert_eq!(read("state.json"), read("state.json.copy"));
}

#[test]
fn a_home_whose_journal_is_gone_is_not_made_anew() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    stop(&mut appliance);
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
    stop(&mut appliance);
    for name in ["state.json", "state.json.copy"] {
        fs::write(appliance.home().join(name), "{").expect("written");
    }
    let line = Ran::of(refit().args(["run", "--home"]).arg(appliance.home())).complains_with(78);
    assert!(line.contains("state.json is damaged"), "{line}");
    assert_eq!(fs::read(appliance.home().join("state.json")).expect("read"), b"{");
}
