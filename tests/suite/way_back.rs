//! The release that is to run is damaged on disk: the last good one that is whole is started. Whatever else goes wrong leads nowhere.

use std::fs::{self, File, OpenOptions, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use refit_updater::durable;

use crate::appliance::{Appliance, component};
use crate::load::LoadOptions;
use crate::process;
use crate::release::Release;
use crate::wait::LIMIT;

/// Does something to the directory of a release, of which everything may be written.
type Damage = fn(&Path);

/// Cuts a file to half its length.
fn cut(path: &Path) {
    let file = open(path);
    file.set_len(file.metadata().expect("its length").len() / 2).expect("cut");
}

fn empty(path: &Path) {
    open(path).set_len(0).expect("emptied");
}

/// Opens a file of a release, which shares nothing with other releases from now on.
fn open(path: &Path) -> File {
    let bytes = fs::read(path).expect("read");
    let mode = path.metadata().expect("it is there").permissions().mode();
    fs::remove_file(path).expect("removed");
    fs::write(path, bytes).expect("written");
    fs::set_permissions(path, Permissions::from_mode(mode | 0o200)).expect("made writable");
    let file = OpenOptions::new().write(true).open(path).expect("opened");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("made what it was");
    file
}

/// Damages release `version` of an appliance.
fn damage(appliance: &Appliance, version: &str, damage: Damage) {
    let dir = appliance.home().join("releases").join(version);
    durable::make_dirs_writable(&dir).expect("made writable");
    damage(&dir);
}

/// Damages 1.1.0 in each of these ways; 1.0.0 runs instead, until 1.1.0 is installed from its package again.
fn assert_left(damages: &[(&str, Damage)]) {
    let mut appliance = Appliance::new(&Release::voyage("1.0.0")).start();
    let release = Release::voyage("1.1.0");
    appliance.install(&release, &[]).ends_with(0);
    let edited = appliance.home().join("config/1.1.0/shop.toml");
    let with_edit = fs::read_to_string(&edited).expect("read").replace("# Untouched.", "# Mine.");
    fs::write(&edited, &with_edit).expect("edited");
    for (name, how) in damages {
        appliance.settled("1.1.0");
        appliance.stop();
        damage(&appliance, "1.1.0", *how);
        appliance.run_guard();
        appliance.wait_running();
        appliance.settled("1.0.0");
        let log = appliance.log();
        assert!(log.contains("release 1.1.0 is damaged: "), "{name}: {log}");
        assert!(log.contains("going back to release 1.0.0"), "{name}: {log}");
        let newest = &appliance.history()[0];
        assert_eq!(newest["kind"], "rollback", "{name}: {newest}");
        assert_eq!((&newest["from"], &newest["to"]), (&"1.1.0".into(), &"1.0.0".into()), "{name}: {newest}");
        assert_eq!((&newest["outcome"], &newest["who"]), (&"done".into(), &"guard".into()), "{name}: {newest}");
        let reason = newest["reason"].as_str().expect("a reason");
        assert!(reason.starts_with("release 1.1.0 is damaged: "), "{name}: {newest}");
        // What the line in the log says.
        appliance.install(&release, &[]).ends_with(0);
        appliance.refit(&["verify"]).ends_with(0);
        assert_eq!(fs::read_to_string(&edited).expect("read"), with_edit, "{name}");
    }
    appliance.settled("1.1.0");
    // It is not gone back from again.
    appliance.stop();
    appliance.run_guard();
    appliance.wait_running();
    appliance.settled("1.1.0");
}

#[test]
fn a_release_whose_description_is_damaged_is_left_for_the_last_good_one() {
    assert_left(&[
        ("the manifest is empty", |dir| empty(&dir.join(".refit/manifest.json"))),
        ("the manifest is cut", |dir| cut(&dir.join(".refit/manifest.json"))),
        ("the manifest is gone", |dir| fs::remove_file(dir.join(".refit/manifest.json")).expect("removed")),
        ("appliance.toml is empty", |dir| empty(&dir.join("appliance.toml"))),
        ("the directory is gone", |dir| fs::remove_dir_all(dir).expect("removed")),
    ]);
}

#[test]
fn a_release_whose_programs_are_damaged_is_left_for_the_last_good_one() {
    assert_left(&[
        ("the runtime is cut", |dir| cut(&dir.join("bin/refit"))),
        ("the runtime is empty", |dir| empty(&dir.join("bin/refit"))),
        ("the runtime is gone", |dir| fs::remove_file(dir.join("bin/refit")).expect("removed")),
        ("a component's program is cut", |dir| cut(&dir.join("bin/shop"))),
        ("a component's program is gone", |dir| fs::remove_file(dir.join("bin/stock")).expect("removed")),
    ]);
}

#[test]
fn a_release_that_is_damaged_too_is_passed_over_and_so_is_one_that_was_never_good() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.install(&Release::shop("1.2.0"), &[]).ends_with(0);
    appliance.install(&Release::crashing("1.3.0"), &[]).ends_with(70);
    appliance.settled("1.2.0");
    appliance.stop();
    damage(&appliance, "1.2.0", |dir| fs::remove_file(dir.join("bin/shop")).expect("removed"));
    damage(&appliance, "1.1.0", |dir| fs::remove_file(dir.join("share/style.css")).expect("removed"));
    appliance.run_guard();
    appliance.wait_running();
    appliance.settled("1.0.0");
    // The edits of those that it left are there.
    assert!(appliance.home().join("config/1.2.0/shop.toml").exists());
}

#[test]
fn a_runtime_that_cannot_be_started_again_because_of_damage_is_one_of_the_last_good_release() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    let guard = appliance.guard_pid();
    let load = appliance.load(LoadOptions::default());
    damage(&appliance, "1.1.0", |dir| empty(&dir.join(".refit/manifest.json")));
    process::send(appliance.runtime_pid(), Signal::SIGKILL);
    appliance.settled("1.0.0");
    load.wait_for_ok(100, LIMIT).expect("the shop goes on");
    assert_eq!(appliance.guard_pid(), guard);
    assert_eq!(appliance.history()[0]["from"], "1.1.0");
}

#[test]
fn what_is_no_damage_of_the_release_leads_to_no_other() {
    let mut appliance = Appliance::new(&Release::voyage("1.0.0")).start();
    appliance.install(&Release::voyage("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    let attempts = appliance.history().len();
    appliance.stop();
    let home = appliance.home().to_owned();
    let local = home.join("local.toml");
    let settings = fs::read_to_string(&local).expect("read");
    let ends = |appliance: &mut Appliance, name: &str, status: i32| {
        appliance.run_guard();
        assert_eq!(appliance.wait_guard(LIMIT).code(), Some(status), "{name}: {}", appliance.log());
        assert!(!appliance.log().contains("going back"), "{name}: {}", appliance.log());
    };

    let taken = TcpListener::bind(appliance.address("http")).expect("bound");
    appliance.run_guard();
    appliance.wait_running();
    assert_eq!(component(&appliance.status(), "shop")["state"], "backoff", "an address is taken");
    assert!(!appliance.log().contains("going back"), "{}", appliance.log());
    appliance.stop();
    drop(taken);
    fs::write(&local, format!("{settings}\n[what")).expect("written");
    ends(&mut appliance, "a mistake in local.toml", 78);
    fs::write(&local, format!("{settings}\n[[component]]\nname = \"stock\"\nuser = \"no-such-account\"\n"))
        .expect("written");
    ends(&mut appliance, "a missing account", 70);
    fs::write(&local, &settings).expect("written");
    // A disk that is not mounted has none of the releases.
    fs::rename(home.join("releases"), home.join("elsewhere")).expect("unmounted");
    ends(&mut appliance, "a disk that is not mounted", 70);
    fs::remove_dir(home.join("releases")).expect("removed");
    fs::rename(home.join("elsewhere"), home.join("releases")).expect("mounted");

    // What starts all the same.
    damage(&appliance, "1.1.0", |dir| {
        fs::set_permissions(dir.join("bin/refit"), Permissions::from_mode(0o644)).expect("changed");
        fs::set_permissions(dir.join("bin/shop"), Permissions::from_mode(0o444)).expect("changed");
        fs::create_dir(dir.join("lib/__pycache__")).expect("made");
        fs::write(dir.join("lib/__pycache__/x.pyc"), "x").expect("written");
    });
    fs::write(home.join("config/1.1.0/shop.toml"), "greeting = \"Hello.\"\n").expect("written");
    fs::write(home.join("config/1.1.0/more.toml"), "").expect("written");
    appliance.run_guard();
    appliance.wait_running();
    appliance.settled("1.1.0");
    assert!(!appliance.log().contains("the installed refit runs it instead"), "{}", appliance.log());
    assert_eq!(appliance.history().len(), attempts);
}
