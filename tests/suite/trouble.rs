//! A guard whose runtime does not start: commands say so at once, and what they offer can be done while the components serve.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use refit_updater::durable;

use crate::appliance::{Appliance, Ran, refit};
use crate::load::LoadOptions;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// What a command may take that once took 15 s, on a machine that does other things.
const SOON: Duration = Duration::from_secs(8);

/// Returns an appliance whose releases are 1.0.0 and 1.1.0, of which the second is the current one.
fn appliance() -> Appliance {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    appliance
}

/// Makes a mistake in the settings, and kills the runtime. Returns the settings.
fn spoil_settings(appliance: &Appliance) -> (PathBuf, String) {
    let local = appliance.home().join("local.toml");
    let settings = fs::read_to_string(&local).expect("read");
    fs::write(&local, "[what").expect("written");
    process::send(appliance.runtime_pid(), Signal::SIGKILL);
    (local, settings)
}

fn soon(appliance: &Appliance, words: &[&str]) -> Ran {
    let begun = Instant::now();
    let ran = appliance.refit(words);
    assert!(begun.elapsed() < SOON, "{words:?} took {:?}", begun.elapsed());
    ran
}

#[test]
fn while_no_runtime_starts_commands_say_at_once_who_tries_again_and_why() {
    let appliance = appliance();
    let guard = appliance.guard_pid();
    let shop = appliance.component_pid("shop");
    let load = appliance.load(LoadOptions::default());
    let (local, settings) = spoil_settings(&appliance);
    for words in [
        ["status"].as_slice(),
        &["component", "list"],
        &["component", "restart", "shop"],
        &["bus", "state"],
        &["bus", "request", "restart"],
        &["check"],
        &["install", "https://127.0.0.1:1/x.refit"],
    ] {
        let line = soon(&appliance, words).complains_with(69);
        assert!(line.contains(&format!("its guard, process {guard}, tries again")), "{words:?}: {line}");
        assert!(line.contains(&local.display().to_string()), "{words:?} does not say why: {line}");
        for remedy in ["`refit rollback`", "`refit install PACKAGE`", &format!("`kill -HUP {guard}`")] {
            assert!(line.contains(remedy), "{words:?}: {line}");
        }
    }
    for words in [["releases"].as_slice(), &["history"], &["verify"], &["recover"]] {
        assert!(soon(&appliance, words).ends_with(0).stdout.contains("1.1.0"), "{words:?}");
    }
    // What changes something is done with the files, and the guard goes by it.
    soon(&appliance, &["install", "9.0.0"]).complains_with(64);
    let said = soon(&appliance, &["rollback"]).ends_with(0).stdout;
    assert!(said.contains(&format!("the guard, process {guard}, starts it now")), "{said}");
    fs::write(&local, settings).expect("written");
    process::send(guard, Signal::SIGHUP);
    appliance.settled("1.0.0");
    assert_eq!(appliance.history()[0]["kind"], "rollback");
    assert_eq!(appliance.guard_pid(), guard);
    assert_ne!(appliance.component_pid("shop"), shop, "it is another release's");
    load.finish().assert_clean();
    // It is over: nothing is said of it any more.
    assert!(!appliance.home().join("run/trouble.json").exists());
    let (local, settings) = spoil_settings(&appliance);
    soon(&appliance, &["releases", "remove", "1.1.0"]).complains_with(70);
    appliance.install(&Release::shop("1.2.0"), &[]).complains_with(78);
    fs::write(&local, settings).expect("written");
    appliance.settled("1.0.0");
}

#[test]
fn the_only_release_is_made_whole_while_its_components_serve() {
    let release = Release::shop("1.0.0");
    let appliance = Appliance::new(&release).start();
    let (guard, shop) = (appliance.guard_pid(), appliance.component_pid("shop"));
    let load = appliance.load(LoadOptions::default());
    for path in ["appliance.toml", ".refit/manifest.json", ""] {
        appliance.settled("1.0.0");
        let runtime = appliance.runtime_pid();
        let dir = appliance.home().join("releases/1.0.0");
        durable::make_dirs_writable(&dir).expect("made writable");
        if path.is_empty() {
            fs::remove_dir_all(&dir).expect("removed");
        } else {
            fs::remove_file(dir.join(path)).expect("removed");
        }
        process::send(runtime, Signal::SIGKILL);
        let line = soon(&appliance, &["status"]).complains_with(69);
        assert!(line.contains("`refit install PACKAGE`"), "{path}: {line}");
        let said = appliance.install(&release, &[]).ends_with(0).stdout;
        assert!(said.contains("whole again"), "{path}: {said}");
        appliance.settled("1.0.0");
        appliance.refit(&["verify"]).ends_with(0);
        if !path.is_empty() {
            assert_eq!((appliance.guard_pid(), appliance.component_pid("shop")), (guard, shop), "{path}: it was kept");
        }
    }
    assert!(appliance.log().contains("no other good release is whole; `refit install PACKAGE`"), "{}", appliance.log());
    // Another one may take its place, and goes on with what the admin has edited.
    let config = |version: &str| appliance.home().join("config").join(version).join("shop.toml");
    fs::write(config("1.0.0"), "greeting = \"Mine.\"\n").expect("edited");
    let dir = appliance.home().join("releases/1.0.0");
    durable::make_dirs_writable(&dir).expect("made writable");
    fs::remove_file(dir.join("appliance.toml")).expect("removed");
    process::send(appliance.runtime_pid(), Signal::SIGKILL);
    soon(&appliance, &["status"]).complains_with(69);
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    assert_eq!(appliance.guard_pid(), guard);
    assert_eq!(fs::read_to_string(config("1.1.0")).expect("read"), "greeting = \"Mine.\"\n");
    load.finish().assert_clean();
}

#[test]
fn a_guard_starts_nothing_while_a_command_works_and_goes_on_when_that_is_killed() {
    let appliance = appliance();
    let (local, settings) = spoil_settings(&appliance);
    soon(&appliance, &["status"]).complains_with(69);
    let mut command = refit();
    command.args(["install", "-", "--home"]).arg(appliance.home()).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut install = command.spawn().expect("run refit");
    eventually(LIMIT, "the guard waits for it", || {
        process::send(appliance.guard_pid(), Signal::SIGHUP);
        appliance.log().contains("a command works with the releases")
    });
    fs::write(&local, settings).expect("written");
    assert!(appliance.try_status().is_none(), "no runtime");
    install.kill().expect("killed");
    install.wait().expect("collected");
    appliance.settled("1.1.0");
}
