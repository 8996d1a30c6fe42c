//! An appliance at rest: the commands that work with its files, and every remedy that a damaged home is given, carried out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use refit_updater::durable;
use serde_json::Value;

use crate::appliance::{Appliance, Ran, refit};
use crate::process;
use crate::release::{Release, Vendor};
use crate::wait::{LIMIT, eventually};

/// Returns an appliance at rest whose releases are 1.0.0 and 1.1.0, of which the second is the current one.
fn at_rest() -> Appliance {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    appliance.stop();
    appliance
}

/// Removes a program of release `version`, or empties its manifest.
fn damage(appliance: &Appliance, version: &str, path: &str) {
    let dir = appliance.home().join("releases").join(version);
    durable::make_dirs_writable(&dir).expect("made writable");
    let path = dir.join(path);
    fs::remove_file(&path).expect("removed");
    if path.ends_with("manifest.json") {
        fs::write(&path, "").expect("written");
    }
}

/// Starts an appliance that is to run `version`.
fn starts(appliance: &mut Appliance, version: &str) {
    appliance.run_guard();
    appliance.wait_running();
    appliance.settled(version);
}

/// Starts an appliance that cannot start. Returns what it says.
fn fails(appliance: &mut Appliance) -> String {
    appliance.run_guard();
    assert_ne!(appliance.wait_guard(LIMIT).code(), Some(0));
    appliance.log()
}

fn remedied(line: &str, remedy: &str) {
    assert!(line.contains(&format!("`{remedy}`")), "{remedy}: {line}");
}

/// Returns what `refit recover` says of release `version`.
fn is_whole(appliance: &Appliance, version: &str) -> Value {
    let list = appliance.refit(&["recover", "--json"]).ends_with(0).objects().remove(0);
    let mut releases = list["releases"].as_array().expect("a list").iter();
    releases.find(|release| release["version"] == version).expect("the release")["whole"].clone()
}

#[test]
fn what_can_be_seen_while_it_runs_can_be_seen_at_rest() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.install(&Release::crashing("1.3.0"), &[]).ends_with(70);
    appliance.settled("1.1.0");
    let commands = [["releases", "--json"], ["history", "--json"], ["recover", "--json"], ["verify", "--json"]];
    let see = |appliance: &Appliance| commands.map(|words| appliance.refit(&words).ends_with(0).objects());
    let running = see(&appliance);
    appliance.stop();
    assert_eq!(see(&appliance), running);
    assert!(appliance.refit(&["releases"]).ends_with(0).stdout.contains("1.3.0"));
    assert!(appliance.refit(&["recover"]).ends_with(0).stdout.contains("not tried, or failed"));
    // What takes a runtime says so.
    for words in [["status"].as_slice(), &["check"], &["component", "list"]] {
        remedied(&appliance.refit(words).complains_with(69), "refit run");
    }
}

#[test]
fn a_rollback_at_rest_is_there_at_the_next_start() {
    let mut appliance = at_rest();
    let last = appliance.refit(&["rollback", "--json"]).ends_with(0).objects().pop().expect("a line");
    assert_eq!((&last["ticket"]["state"], &last["version"]), (&"done".into(), &"1.0.0".into()), "{last}");
    assert_eq!(last["trial"], false);
    assert!(appliance.refit(&["history"]).ends_with(0).stdout.contains("`refit rollback`"));
    starts(&mut appliance, "1.0.0");
    let newest = &appliance.history()[0];
    assert_eq!(
        (&newest["kind"], &newest["from"], &newest["to"]),
        (&"rollback".into(), &"1.1.0".into(), &"1.0.0".into())
    );
    appliance.stop();
    appliance.refit(&["rollback", "1.1.0"]).ends_with(0);
    appliance.refit(&["rollback", "7.0.0"]).complains_with(64);
    starts(&mut appliance, "1.1.0");
    appliance.stop();
    appliance.refit(&["install", "1.0.0"]).ends_with(0);
    starts(&mut appliance, "1.0.0");
}

#[test]
fn an_update_at_rest_is_tried_at_the_next_start() {
    let mut appliance = at_rest();
    let bad = Release::crashing("1.3.0");
    appliance.install(&bad, &[]).ends_with(0);
    starts(&mut appliance, "1.1.0");
    let newest = &appliance.history()[0];
    assert_eq!((&newest["to"], &newest["outcome"]), (&"1.3.0".into(), &"rolled-back".into()), "{newest}");
    appliance.stop();
    appliance.install(&Release::shop("1.0.0"), &[]).complains_with(65);
    appliance.install(&Release::shop("1.2.0").by_a_stranger(), &[]).complains_with(65);
    appliance.install(&Release::shop("1.2.0").of_appliance("other"), &[]).complains_with(65);
    let digest = "0".repeat(64);
    appliance.install(&Release::shop("1.2.0"), &["--digest", &digest]).complains_with(65);
    let local = appliance.home().join("local.toml");
    let settings = fs::read_to_string(&local).expect("read");
    fs::write(&local, "[what").expect("written");
    appliance.install(&Release::shop("1.2.0"), &[]).complains_with(78);
    fs::write(&local, settings).expect("written");
    // What is no package is said as it is while the appliance runs.
    for nothing in ["nope.refit", "/", ""] {
        let line = appliance.refit(&["install", nothing]).complains_with(64);
        assert!(line.contains("check the name and the permissions"), "{nothing}: {line}");
        let ran = appliance.refit(&["install", nothing, "--json"]).ends_with(64);
        assert_eq!(ran.objects()[0]["error"]["code"], "file_unreadable", "{nothing}");
    }
    appliance.refit(&["install", "https://127.0.0.1:1/x.refit"]).complains_with(69);
    remedied(&appliance.install(&Release::shop("1.2.0"), &["--stage-only"]).complains_with(69), "refit run");
    let last = appliance.install(&Release::shop("1.2.0"), &["--json"]).ends_with(0).objects().pop().expect("a line");
    assert_eq!((&last["version"], &last["trial"]), (&"1.2.0".into(), &true.into()), "{last}");
    // One that was never started has not been rolled back.
    appliance.refit(&["rollback", "1.1.0"]).ends_with(0);
    let newest = appliance.refit(&["history", "--json"]).ends_with(0).objects().remove(0)["history"][0].clone();
    assert_eq!((&newest["to"], &newest["outcome"]), (&"1.2.0".into(), &"failed".into()), "{newest}");
    assert!(newest["reason"].as_str().is_some_and(|why| why.starts_with("it was never started: ")), "{newest}");
    appliance.install(&Release::shop("1.2.0"), &[]).ends_with(0);
    starts(&mut appliance, "1.2.0");
    let newest = &appliance.history()[0];
    assert_eq!((&newest["to"], &newest["outcome"]), (&"1.2.0".into(), &"done".into()), "{newest}");
}

#[test]
fn one_that_failed_here_is_tried_again_and_is_not_good_for_having_been_chosen() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.install(&Release::crashing("1.3.0"), &[]).ends_with(70);
    appliance.settled("1.1.0");
    appliance.stop();
    for command in ["install", "rollback", "recover"] {
        let said = appliance.refit(&[command, "1.3.0"]).ends_with(0).stdout;
        assert!(said.contains("1.3.0") && said.contains("is tried next"), "{command}: {said}");
        starts(&mut appliance, "1.1.0");
        let newest = &appliance.history()[0];
        assert_eq!((&newest["to"], &newest["outcome"]), (&"1.3.0".into(), &"rolled-back".into()), "{newest}");
        let list = appliance.refit(&["recover", "--json"]).ends_with(0).objects().remove(0);
        let mut releases = list["releases"].as_array().expect("a list").iter();
        let failed = releases.find(|release| release["version"] == "1.3.0").expect("it is there");
        assert_eq!(failed["good"], false, "{command}: {failed}");
        appliance.stop();
    }
    // One that was good is gone back to at once, as before.
    let said = appliance.refit(&["recover", "1.0.0", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!((&said["version"], &said["trial"]), (&"1.0.0".into(), &false.into()), "{said}");
    starts(&mut appliance, "1.0.0");
}

#[test]
fn files_that_a_program_left_in_its_release_refuse_nothing() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    for version in ["1.0.0", "1.1.0"] {
        // As root or as an account that its directory is writable to, a program leaves what it likes beside itself.
        let lib = appliance.home().join("releases").join(version).join("lib");
        let mode = fs::metadata(&lib).expect("it is there").permissions();
        fs::set_permissions(&lib, fs::Permissions::from_mode(0o755)).expect("made writable");
        fs::create_dir(lib.join("__pycache__")).expect("made");
        fs::write(lib.join("__pycache__/helper.pyc"), "cached").expect("written");
        fs::set_permissions(&lib, mode).expect("as it was");
        let said = appliance.refit(&["verify", version]).ends_with(0).stdout;
        assert!(said.contains("__pycache__") && said.contains("is as signed"), "{said}");
    }
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.0.0");
    appliance.refit(&["install", "1.1.0"]).ends_with(0);
    appliance.settled("1.1.0");
    appliance.refit(&["bus", "request", "rollback"]).ends_with(0);
    appliance.settled("1.0.0");
    // Sockets of processes that end in order are no loss.
    assert!(!appliance.log().contains("the name of a socket was gone"), "{}", appliance.log());
    appliance.stop();
    // A program that may not be executed is damage, which is put right where the release is chosen.
    let program = appliance.home().join("releases/1.1.0/bin/shop");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o444)).expect("closed");
    assert!(appliance.refit(&["verify", "1.1.0"]).ends_with(70).stdout.contains("bin/shop: not executable"));
    assert_eq!(is_whole(&appliance, "1.1.0"), false);
    appliance.refit(&["rollback", "1.1.0"]).ends_with(0);
    assert_eq!(is_whole(&appliance, "1.1.0"), true);
    starts(&mut appliance, "1.1.0");
}

#[test]
fn a_command_that_waits_hears_that_the_appliance_has_ended() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0"))
        .local(|text| text.replace("probation = \"300ms\"", "probation = \"30s\""))
        .start();
    let package = Release::shop("1.1.0").package();
    let home = appliance.home().to_owned();
    let install = std::thread::spawn(move || {
        let mut command = refit();
        Ran::of(command.arg("install").arg(package).arg("--home").arg(home))
    });
    eventually(LIMIT, "it is on trial", || !appliance.status()["release"]["probation_ends_at"].is_null());
    let begun = Instant::now();
    appliance.stop();
    // What became of it is in the history, and it is said although no appliance is left to say it.
    let line = install.join().expect("it ended").complains_with(70);
    assert!(line.contains("rolled back to 1.0.0: it was cut short"), "{line}");
    assert!(appliance.refit(&["history"]).ends_with(0).stdout.contains("it was cut short"));
    assert!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
}

#[test]
fn the_only_release_is_made_whole_by_its_package() {
    let release = Release::shop("1.0.0");
    let mut appliance = Appliance::new(&release).start();
    appliance.stop();
    let config = appliance.home().join("config/1.0.0/shop.toml");
    fs::write(&config, "greeting = \"Mine.\"\n").expect("edited");
    let accounts = fs::read(appliance.home().join("auth/users.json")).expect("read");
    for path in [".refit/manifest.json", "appliance.toml", "bin/shop", "a digit", "all"] {
        if path == "a digit" {
            // It is a manifest, and another one.
            let path = appliance.home().join("releases/1.0.0/.refit/manifest.json");
            let text = fs::read_to_string(&path).expect("read");
            let at = text.find("\"sha256\"").expect("a digest") + "\"sha256\":\"".len();
            let digit = if text[at..].starts_with('0') { "1" } else { "0" };
            damage(&appliance, "1.0.0", ".refit/manifest.json");
            damage(&appliance, "1.0.0", "bin/shop");
            fs::write(&path, format!("{}{digit}{}", &text[..at], &text[at + 1..])).expect("written");
        } else if path == "all" {
            let releases = appliance.home().join("releases");
            durable::make_dirs_writable(&releases).expect("made writable");
            fs::remove_dir_all(&releases).expect("removed");
            for words in [["verify"].as_slice(), &["verify", "1.0.0"], &["config", "check"], &["recover", "1.0.0"]] {
                let line = appliance.refit(words).complains_with(70);
                assert!(line.contains("is damaged: ") && line.contains("1.0.0 is missing"), "{words:?}: {line}");
                remedied(&line, "refit install PACKAGE --allow-downgrade");
            }
            remedied(&appliance.refit(&["recover"]).ends_with(0).stdout, "refit install PACKAGE --allow-downgrade");
            appliance.refit(&["history"]).ends_with(0);
        } else {
            damage(&appliance, "1.0.0", path);
        }
        let log = fails(&mut appliance);
        assert!(log.contains("no other good release is whole"), "{path}: {log}");
        if path == "appliance.toml" {
            // Nothing that was signed is presented as something to edit.
            assert!(log.contains("refit: release 1.0.0 is damaged: appliance.toml: missing; `refit recover`"), "{log}");
            assert!(!log.contains("restore the file"), "{log}");
        }
        if path == ".refit/manifest.json" {
            assert!(log.contains("the manifest is empty") && !log.contains("EOF"), "{log}");
        }
        remedied(&log, "refit install PACKAGE");
        assert_eq!(is_whole(&appliance, "1.0.0"), false, "{path}");
        let row = appliance.refit(&["releases", "--json"]).ends_with(0).objects().remove(0)["releases"][0].clone();
        let is_seen = [".refit/manifest.json", "a digit", "all"].contains(&path);
        assert_eq!(row["state"], if is_seen { "damaged" } else { "current" }, "{path}: {row}");
        if path != "bin/shop" {
            let line = appliance.refit(&["config", "check"]).complains_with(70);
            assert!(line.contains("release 1.0.0 is damaged"), "{path}: {line}");
        }
        appliance.install(&release, &[]).ends_with(0);
        assert_eq!(is_whole(&appliance, "1.0.0"), true, "{path}");
        starts(&mut appliance, "1.0.0");
        appliance.stop();
        assert_eq!(fs::read_to_string(&config).expect("read"), "greeting = \"Mine.\"\n", "{path}");
    }
    assert_eq!(fs::read(appliance.home().join("auth/users.json")).expect("read"), accounts);
    // Where only a newer one is at hand, that will do.
    damage(&appliance, "1.0.0", "bin/shop");
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    starts(&mut appliance, "1.1.0");
}

#[test]
fn a_journal_that_is_lost_with_its_copy_is_made_again_by_recover() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 2] = [
        ("damaged", |path| fs::write(path, "{").expect("written")),
        ("gone", |path| fs::remove_file(path).expect("removed")),
    ];
    for (name, how) in damages {
        let mut appliance = at_rest();
        let edited = appliance.home().join("config/1.1.0/shop.toml");
        fs::write(&edited, "greeting = \"Mine.\"\n").expect("edited");
        let accounts = fs::read(appliance.home().join("auth/users.json")).expect("read");
        how(&appliance.home().join("state.json"));
        how(&appliance.home().join("state.json.copy"));
        for words in [["run"].as_slice(), &["verify"], &["config", "check"], &["releases"], &["install", "1.0.0"]] {
            let line = appliance.refit(words).complains_with(78);
            assert!(line.contains("is lost: neither state.json nor its copy can be read"), "{name}, {words:?}: {line}");
            remedied(&line, "refit recover");
            remedied(&line, "refit recover VERSION");
        }
        // What would overwrite the configuration and the password.
        let mut init = refit();
        init.arg("init").arg(Release::shop("1.1.0").package()).arg("--root").arg(Vendor::get().root());
        let line = Ran::of(init.arg("--home").arg(appliance.home())).complains_with(78);
        assert!(line.contains("nothing was changed"), "{name}: {line}");
        assert!(appliance.refit(&["recover"]).ends_with(0).stdout.contains("refit recover VERSION"), "{name}");
        assert_eq!(is_whole(&appliance, "1.1.0"), true, "{name}");
        appliance.refit(&["recover", "1.1.0"]).ends_with(0);
        starts(&mut appliance, "1.1.0");
        appliance.refit(&["rollback"]).ends_with(0);
        appliance.settled("1.0.0");
        assert_eq!(fs::read_to_string(&edited).expect("read"), "greeting = \"Mine.\"\n", "{name}");
        assert_eq!(fs::read(appliance.home().join("auth/users.json")).expect("read"), accounts, "{name}");
    }
}

#[test]
fn what_is_said_of_a_damaged_release_can_be_done_at_rest_and_while_it_runs() {
    let mut appliance = at_rest();
    for path in ["bin/shop", ".refit/manifest.json"] {
        damage(&appliance, "1.0.0", path);
        let line = appliance.refit(&["recover", "1.0.0"]).complains_with(70);
        remedied(&line, "refit install PACKAGE --allow-downgrade");
        remedied(&appliance.refit(&["rollback"]).complains_with(70), "refit recover");
        appliance.install(&Release::shop("1.0.0"), &["--allow-downgrade"]).ends_with(0);
        appliance.refit(&["rollback", "1.1.0"]).ends_with(0);
        damage(&appliance, "1.0.0", path);
        assert_eq!(is_whole(&appliance, "1.0.0"), false);
        starts(&mut appliance, "1.1.0");
        let line = appliance.refit(&["rollback"]).ends_with(70).stderr;
        remedied(&line, "refit install PACKAGE --allow-downgrade");
        appliance.settled("1.1.0");
        appliance.install(&Release::shop("1.0.0"), &["--allow-downgrade"]).ends_with(0);
        appliance.settled("1.0.0");
        appliance.refit(&["rollback"]).ends_with(0);
        appliance.settled("1.1.0");
        assert_eq!(is_whole(&appliance, "1.0.0"), true);
        appliance.stop();
    }
    // The current one, by its very package.
    damage(&appliance, "1.1.0", "config/shop.toml");
    starts(&mut appliance, "1.1.0");
    let line = appliance.refit(&["verify"]).complains_with(70);
    remedied(&line, "refit install PACKAGE --allow-downgrade");
    appliance.install(&Release::shop("1.1.0"), &["--allow-downgrade"]).ends_with(0);
    appliance.refit(&["verify"]).ends_with(0);
}

#[test]
fn recover_leaves_a_guard_alone_and_says_what_ends_it() {
    let mut appliance = at_rest();
    starts(&mut appliance, "1.1.0");
    let guard = appliance.guard_pid();
    let line = appliance.refit(&["recover", "1.0.0"]).complains_with(75);
    remedied(&line, "refit rollback 1.0.0");
    appliance.refit(&["rollback", "1.0.0"]).ends_with(0);
    appliance.settled("1.0.0");
    // A guard that finds no way to start a runtime: its socket is gone, too.
    let local = appliance.home().join("local.toml");
    let settings = fs::read_to_string(&local).expect("read");
    fs::write(&local, "[what").expect("written");
    process::send(appliance.runtime_pid(), Signal::SIGKILL);
    fs::remove_file(appliance.home().join("run/refit.sock")).expect("removed");
    let line = appliance.refit(&["status"]).complains_with(69);
    assert!(line.contains(&format!("process {guard}")) && line.contains("local.toml"), "{line}");
    remedied(&line, &format!("kill -HUP {guard}"));
    assert!(appliance.refit(&["history"]).ends_with(0).stdout.contains("1.1.0"));
    assert!(
        appliance.refit(&["recover", "1.1.0"]).ends_with(0).stdout.contains(&format!("process {guard}, starts it"))
    );
    fs::write(&local, settings).expect("written");
    appliance.settled("1.1.0");
    assert_eq!(appliance.guard_pid(), guard);
    appliance.stop();
    appliance.refit(&["recover", "1.0.0"]).ends_with(0);
    starts(&mut appliance, "1.0.0");
}

#[test]
fn a_journal_that_is_no_file_is_replaced_by_its_copy() {
    let mut appliance = at_rest();
    let journal = appliance.home().join("state.json");
    for (name, version) in [("directory", "1.0.0"), ("pipe", "1.1.0")] {
        fs::remove_file(&journal).expect("removed");
        match name {
            "directory" => {
                fs::create_dir(&journal).and_then(|()| fs::write(journal.join("mine"), "mine")).expect("made")
            }
            _pipe => mkfifo(&journal, Mode::S_IRWXU).expect("made"),
        }
        for words in [["recover"].as_slice(), &["verify"], &["releases"], &["history"]] {
            appliance.refit(words).ends_with(0);
        }
        appliance.refit(&["rollback", version]).ends_with(0);
        assert!(journal.is_file(), "{name}");
        starts(&mut appliance, version);
        appliance.stop();
        // A guard alone puts it right, too.
        fs::remove_file(&journal).expect("removed");
        fs::create_dir(&journal).expect("made");
        starts(&mut appliance, version);
        assert!(appliance.log().contains("it was replaced by its copy"), "{}", appliance.log());
        assert!(journal.is_file(), "{name}");
        appliance.stop();
    }
    // With its copy, it is lost.
    fs::remove_file(&journal).expect("removed");
    fs::create_dir(&journal).expect("made");
    fs::remove_file(appliance.home().join("state.json.copy")).expect("removed");
    remedied(&appliance.refit(&["verify"]).complains_with(78), "refit recover");
    remedied(&fails(&mut appliance), "refit recover VERSION");
    appliance.refit(&["recover", "1.1.0"]).ends_with(0);
    starts(&mut appliance, "1.1.0");
}
