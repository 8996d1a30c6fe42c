//! Other ways to the same file: the installed program behind links that change, and the home by another spelling.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::signal::Signal;
use refit_fixtures::tools::{copy_program, put_program};
use serde_json::Value;

use crate::appliance::{Appliance, Ran, refit};
use crate::process;
use crate::release::{REFIT, Release};
use crate::wait::{LIMIT, eventually};

fn idle(version: &str) -> Release {
    Release::bare(version).component("idle", "command = [\"sleep\", \"600\"]")
}

/// Has the guard begin by the program at `program`.
fn run_by(appliance: &mut Appliance, program: &Path) {
    let script = "program=$1; shift 2; exec \"$program\" \"$@\"";
    appliance.run_guard_through(&["sh", "-c", script, "sh", program.to_str().expect("text")]);
    appliance.wait_running();
}

#[test]
fn the_installed_program_may_be_replaced_and_removed_while_it_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let version = |name: &str| dir.path().join(name).join("refit");
    for name in ["one", "two"] {
        fs::create_dir(dir.path().join(name)).expect("made");
        copy_program(Path::new(REFIT), &version(name));
    }
    let link = dir.path().join("refit");
    symlink(version("one"), &link).expect("linked");
    let mut appliance = Appliance::new(&idle("1.0.0"));
    run_by(&mut appliance, &link);
    let pid = appliance.component_pid("idle");
    // Another version is installed.
    fs::remove_file(&link).expect("removed");
    symlink(version("two"), &link).expect("linked");
    fs::remove_dir_all(dir.path().join("one")).expect("removed");
    appliance.kill_runtime();
    appliance.install(&idle("1.1.0"), &[]).ends_with(0);
    let runs = |appliance: &Appliance| fs::read_link(format!("/proc/{}/exe", appliance.runtime_pid())).expect("a link");
    assert_eq!(runs(&appliance), version("two"));
    // It is taken away; then there is a file that cannot be executed.
    for _ in 0..2 {
        fs::remove_file(version("two")).expect("removed");
        appliance.kill_runtime();
        appliance.refit(&["rollback"]).ends_with(0);
        appliance.refit(&["bus", "request", "restart"]).ends_with(0);
        assert!(runs(&appliance).starts_with(dir.path().join("one")), "what the guard was started from");
        fs::write(version("two"), "").expect("written");
    }
    assert_eq!(appliance.component_pid("idle"), pid, "it was kept all the time");
}

/// Something that an interrupted or mistaken upgrade leaves in the place of the program: an executable file.
fn spoil(what: &str, file: &Path, mark: &Path) {
    drop(fs::remove_file(file)); // the first time it is a link to nothing
    let cut = |length| {
        copy_program(Path::new(REFIT), file);
        File::options().write(true).open(file).expect("opened").set_len(length).expect("cut");
    };
    match what {
        "a text" => put_program(file, &format!("echo >{}\n", mark.display())),
        "64 bytes" => cut(64),
        "a part" => cut(5 << 20),
        "a missing interpreter" => put_program(file, "#!/nonexistent\n"),
        "another program" => put_program(file, "#!/bin/sh\nexit 3\n"),
        "one that is ended by a signal" => put_program(file, "#!/bin/sh\nkill -SEGV $$\n"),
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_installed_may_be_executable_and_no_refit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, mark) = (dir.path().join("refit"), dir.path().join("mark"));
    copy_program(Path::new(REFIT), &file);
    let mut appliance = Appliance::new(&idle("1.0.0"));
    run_by(&mut appliance, &file);
    let pid = appliance.component_pid("idle");
    for what in
        ["a text", "64 bytes", "a part", "a missing interpreter", "another program", "one that is ended by a signal"]
    {
        spoil(what, &file, &mark);
        // The same words as for one that is gone, and the release is not blamed: neither by a preflight nor by the guard.
        appliance.install(&idle("1.1.0"), &["--allow-downgrade"]).ends_with(0);
        appliance.kill_runtime();
        let installed = fs::canonicalize(&file).expect("a path").display().to_string();
        assert!(appliance.log().contains(&format!("cannot use {installed}, the installed refit: ")), "{what}");
        appliance.refit(&["rollback"]).ends_with(0);
        appliance.refit(&["bus", "request", "restart"]).ends_with(0);
        appliance.settled("1.0.0");
    }
    assert!(!mark.exists(), "no shell runs it");
    assert_eq!(appliance.component_pid("idle"), pid, "it was kept all the time");
    // That the runtime was killed again and again is in the history as well.
    let blames = |entry: &&Value| entry["kind"] != "crash" && entry["outcome"] == "failed";
    assert!(!appliance.history().iter().any(|entry| blames(&entry)), "{:?}", appliance.history());
    // The next one that is one is used.
    drop(fs::remove_file(&file));
    copy_program(Path::new(REFIT), &file);
    appliance.kill_runtime();
    let runs = fs::read_link(format!("/proc/{}/exe", appliance.runtime_pid())).expect("a link");
    assert_eq!(runs, fs::canonicalize(&file).expect("a path"));
}

#[test]
fn a_home_is_the_same_by_every_spelling() {
    let mut appliance = Appliance::new(&idle("1.0.0"));
    let home = appliance.home().to_owned();
    let link = home.with_file_name("link");
    symlink(&home, &link).expect("linked");
    let spelled = [home.join("."), home.join("data/.."), link.clone(), link.join("")];
    appliance.run_guard();
    appliance.wait_running();
    for spelling in &spelled {
        let status = refit().args(["status", "--home"]).arg(spelling).output().expect("run refit");
        assert!(status.status.success(), "{}", spelling.display());
        let left = appliance.component_pid("idle");
        // Everything but the component ends at once: the next guard finds and ends it.
        let runtime = appliance.runtime_pid();
        process::send(runtime, Signal::SIGSTOP);
        appliance.kill_guard();
        process::send(runtime, Signal::SIGKILL);
        appliance.run_guard_in(spelling);
        appliance.wait_running();
        assert!(!process::is_alive(left), "{}", spelling.display());
        assert_ne!(appliance.component_pid("idle"), left);
    }
}

#[test]
fn a_guard_that_ended_and_was_not_collected_holds_nobody_up() {
    let mut appliance = Appliance::new(&idle("1.0.0")).start();
    let guard = appliance.guard_pid();
    process::send(guard, Signal::SIGKILL);
    eventually(LIMIT, "it has ended", || !process::is_alive(guard));
    // Its parent, this test, collects it later.
    let uncollected = appliance.leave_guard();
    appliance.run_guard();
    appliance.wait_running();
    drop(uncollected);
}

#[test]
fn a_home_that_is_moved_while_it_runs_is_said_to_be_moved() {
    let mut appliance = Appliance::new(&idle("1.0.0")).start();
    let (home, elsewhere) = (appliance.home().to_owned(), appliance.home().with_file_name("elsewhere"));
    fs::rename(&home, &elsewhere).expect("moved");
    let package = idle("1.1.0").package().display().to_string();
    let line = Ran::of(refit().args(["status", "--home"]).arg(&home)).complains_with(69);
    assert!(line.contains("there is no home") && line.contains("--home: where it was moved to"), "{line}");
    for words in [&["install", &package][..], &["rollback"], &["releases"], &["history"]] {
        let line = Ran::of(refit().args(words).arg("--home").arg(&elsewhere)).complains_with(78);
        assert!(line.contains(&format!("the home {} is not there any more", home.display())), "{line}");
        assert!(line.contains("move it back"), "{line}");
    }
    let shown = Ran::of(refit().args(["status", "--home"]).arg(&elsewhere)).ends_with(0).stdout;
    assert!(shown.contains("is not there any more") && !shown.contains("trust reset"), "{shown}");
    // As the remedy says.
    fs::rename(&elsewhere, &home).expect("moved back");
    appliance.install(&idle("1.1.0"), &[]).ends_with(0);
    fs::rename(&home, &elsewhere).expect("moved");
    appliance.stop();
    appliance.run_guard_in(&elsewhere);
    let runs = || Ran::of(refit().args(["status", "--json", "--home"]).arg(&elsewhere)).stdout.contains("\"Running\"");
    eventually(LIMIT, "it runs where it is", runs);
    process::send(appliance.guard_pid(), Signal::SIGTERM);
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0));
    fs::rename(&elsewhere, &home).expect("moved back");
}
