//! Wrong usage: one line on standard error that says what and what to do, the right exit status, and nothing changed.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use refit_fixtures::hostile::Workshop;
use refit_fixtures::tools::copy_program;
use refit_updater::durable::make_dirs_writable;
use refit_updater::package::Package;

use crate::appliance::{Appliance, Ran, refit};
use crate::http::Request;
use crate::release::{Release, Vendor, truncated, with_a_signature_changed};
use crate::wait::{LIMIT, eventually};

/// What a file is: how long, how changed, when.
type Files = BTreeMap<String, (u64, u32, SystemTime, Option<Vec<u8>>)>;

/// Returns every file below `home` that only an update may change; the content only of small ones.
fn snapshot(home: &Path) -> Files {
    /// Sockets and locks; what components write and print; what each start empties.
    const PASSED_OVER: [&str; 4] = ["run", "data", "log", "staging"];
    const SMALL_BYTES: u64 = 1 << 16;
    let mut files = Files::new();
    let mut dirs = vec![home.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = path.strip_prefix(home).expect("below the home").to_string_lossy().into_owned();
            if PASSED_OVER.contains(&name.as_str()) {
                continue;
            }
            let metadata = path.symlink_metadata().expect("it is there");
            if metadata.is_dir() {
                dirs.push(path);
                continue;
            }
            let content = (metadata.is_file() && metadata.len() <= SMALL_BYTES).then(|| fs::read(&path).expect("read"));
            let modified = metadata.modified().expect("a time");
            files.insert(name, (metadata.len(), metadata.mode(), modified, content));
        }
    }
    files
}

/// Runs the guard until it ends by itself.
fn run(home: &Path) -> Ran {
    Ran::of(refit().args(["run", "--with-parent", "--home"]).arg(home))
}

/// Asserts that `command` is refused with `code` and that the home is as it was; returns the line.
fn refused(appliance: &Appliance, command: &mut Command, code: i32) -> String {
    let before = (snapshot(appliance.home()), appliance.runtime_pid(), appliance.component_pid("shop"));
    let line = appliance.run(command).complains_with(code);
    let status = appliance.settled("1.0.0");
    assert_eq!(status["update"], serde_json::Value::Null);
    let after = (snapshot(appliance.home()), appliance.runtime_pid(), appliance.component_pid("shop"));
    assert_eq!(before.0.keys().collect::<Vec<_>>(), after.0.keys().collect::<Vec<_>>(), "files");
    assert!(before == after, "a file or a process has changed");
    assert!(line.starts_with("refit: ") && line.contains("; "), "what failed; what to do: {line}");
    line
}

#[test]
fn a_home_that_is_not_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = dir.path().join("nowhere");
    let line = run(&home).complains_with(78);
    assert!(line.contains("there is no home") && line.contains(home.to_str().expect("text")), "{line}");
    Ran::of(refit().args(["bus", "inhibit", "--home"]).arg(&home).args(["--", "true"])).complains_with(69);
    assert!(!home.exists());
}

#[test]
fn a_home_without_an_appliance() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = run(dir.path()).complains_with(78);
    assert!(line.contains("no appliance is installed"), "{line}");
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0, "nothing was made");
}

#[test]
fn b101_a_home_that_another_guard_uses() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let guard = appliance.guard_pid();
    let line = refused(&appliance, refit().args(["run", "--with-parent"]), 75);
    assert!(line.contains("in use by another guard") && line.contains(&guard.to_string()), "{line}");
    assert_eq!(appliance.guard_pid(), guard);
}

#[test]
fn b101_the_pid_file_is_whole_at_every_moment_and_only_its_owner_removes_it() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0"));
    let path = appliance.home().join("run/pid");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                if let Ok(text) = fs::read_to_string(&path) {
                    let number = text.strip_suffix('\n').and_then(|text| text.parse::<i32>().ok());
                    assert!(number.is_some(), "somebody reads {text:?}");
                }
            }
        });
        for _ in 0..3 {
            appliance.run_guard();
            appliance.wait_running();
            assert_eq!(fs::read_to_string(&path).expect("there"), format!("{}\n", appliance.guard_pid()));
            refused(&appliance, refit().args(["run", "--with-parent"]), 75);
            assert_eq!(fs::read_to_string(&path).expect("still there"), format!("{}\n", appliance.guard_pid()));
            appliance.stop();
            assert!(!path.exists(), "it goes with its owner");
        }
        over.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    fs::write(&path, "1\n").expect("left by somebody who was killed");
    appliance.run_guard();
    appliance.wait_running();
    assert_eq!(fs::read_to_string(&path).expect("replaced"), format!("{}\n", appliance.guard_pid()));
    fs::write(&path, "1\n").expect("somebody else's");
    appliance.stop();
    assert_eq!(fs::read_to_string(&path).expect("left alone"), "1\n");
}

#[test]
fn b038_a_port_that_somebody_else_uses_is_named_and_nothing_starts() {
    let appliance = Appliance::new(&Release::shop("1.0.0"));
    let address = appliance.address("http");
    let _somebody = TcpListener::bind(address).expect("the port is free");
    let before = snapshot(appliance.home());
    let line = run(appliance.home()).complains_with(70);
    assert!(line.contains(&address.to_string()) && line.to_lowercase().contains("address already in use"), "{line}");
    assert!(before == snapshot(appliance.home()), "nothing was changed");
    assert!(appliance.processes().is_empty());
}

#[test]
fn settings_with_a_mistake_are_named_by_line_and_column() {
    let appliance = Appliance::new(&Release::shop("1.0.0"))
        .local(|text| format!("[update]\nkeep = \"many\"\n{}", text.replacen("[update]\n", "", 1)));
    let before = snapshot(appliance.home());
    let line = run(appliance.home()).complains_with(78);
    assert!(line.contains("local.toml:2:8"), "{line}");
    assert!(before == snapshot(appliance.home()), "nothing was changed");
}

#[test]
fn settings_that_are_no_toml_are_named_by_line_and_column() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).local(|text| format!("{text}\nnot toml at all\n"));
    let line = run(appliance.home()).complains_with(78);
    let last = fs::read_to_string(appliance.home().join("local.toml")).expect("read").lines().count();
    assert!(line.contains(&format!("local.toml:{last}:")), "{line}");
}

#[test]
fn a_release_with_a_mistake_is_not_packed() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "[appliance]\nname = \"shop\"\nversion = \"1.0.0\"\n\n[listeners]\nhttp = \"nowhere\"\n";
    fs::write(dir.path().join("appliance.toml"), text).expect("write");
    let keys = crate::release::Vendor::get().root().with_file_name("");
    let mut pack = refit();
    pack.arg("pack").arg(dir.path()).arg("--keys").arg(keys).arg("-o").arg(dir.path().join("out.refit"));
    let line = Ran::of(&mut pack).complains_with(78);
    assert!(line.contains("appliance.toml:6:8"), "{line}");
    assert!(!dir.path().join("out.refit").exists());
}

#[test]
fn packages_that_are_refused() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let text = appliance.scratch().join("letter.txt");
    fs::write(&text, "Dear customer, this is not a package.\n".repeat(100)).expect("write");
    let half = truncated(&Release::shop("1.1.0").package(), appliance.scratch());
    let foreign = Release::shop("1.1.0").of_appliance("lighthouse").package();
    let stranger = Release::shop("1.1.0").by_a_stranger().package();
    let forged = with_a_signature_changed(&Release::shop("1.1.0").package(), appliance.scratch());
    let older = Release::shop("0.9.0").package();
    for (package, words) in [
        (&text, ["package"].as_slice()),
        (&half, &[]),
        (&foreign, &["lighthouse", "shop"]),
        (&stranger, &["trust"]),
        (&forged, &["sign"]),
        (&older, &["0.9.0", "1.0.0", "--allow-downgrade"]),
    ] {
        let line = refused(&appliance, refit().arg("install").arg(package), 65);
        for word in words {
            assert!(line.contains(word), "{word:?} is not in: {line}");
        }
    }
    assert!(appliance.history().is_empty(), "nothing was tried");
}

#[test]
fn an_older_release_is_installed_when_somebody_says_so() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("0.9.0"), &["--allow-downgrade"]).ends_with(0);
    appliance.settled("0.9.0");
    assert_eq!(appliance.history()[0]["outcome"], "done");
}

#[test]
fn words_that_are_no_command() {
    for (words, command) in [
        (["frobnicate"].as_slice(), "refit"),
        (&["install"], "refit install"),
        (&["init"], "refit init"),
        (&["status", "--fast"], "refit status"),
        (&["component", "paint", "shop"], "refit component"),
        (&["component", "restart"], "refit component restart"),
    ] {
        let line = Ran::of(refit().args(words)).complains_with(64);
        assert!(line.starts_with("refit: ") && line.ends_with(&format!("; see `{command} --help`")), "{line}");
    }
    let line = Ran::of(refit().arg("lunch")).complains_with(64);
    assert!(!line.contains("launch"), "what is hidden is not proposed: {line}");
    let line = Ran::of(refit().arg("instal")).complains_with(64);
    assert!(line.contains("'instal'; some similar subcommands exist: 'init', 'install'; see"), "{line}");
    let help = Ran::of(&mut refit()).ends_with(64);
    assert!(help.stderr.contains("Usage: refit"), "without a word there is the help: {}", help.stderr);
}

#[test]
fn commands_for_an_appliance_that_does_not_run() {
    let appliance = Appliance::new(&Release::shop("1.0.0"));
    let before = snapshot(appliance.home());
    for words in [["status"].as_slice(), &["check"], &["bus", "state"], &["component", "list"]] {
        let line = appliance.refit(words).complains_with(69);
        assert!(line.contains("no running appliance") && line.contains("refit run"), "{line}");
    }
    for words in [["releases"], ["history"], ["recover"]] {
        appliance.refit(&words).ends_with(0);
    }
    assert!(before == snapshot(appliance.home()), "nothing was changed");
}

#[test]
fn an_account_that_may_not_use_the_socket_is_told_which_one_may() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let mut command = refit();
    if nix::unistd::geteuid().is_root() {
        // Somebody else must get as far as the socket, and to a program.
        for dir in [appliance.scratch(), appliance.home(), &appliance.home().join("run")] {
            fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).expect("set its mode");
        }
        let program = appliance.scratch().join("refit");
        copy_program(Path::new(crate::release::REFIT), &program);
        command = Command::new(program);
        command.env_clear().uid(65534).gid(65534).current_dir("/");
    } else {
        fs::set_permissions(appliance.home().join("run/refit.sock"), PermissionsExt::from_mode(0o000)).expect("chmod");
    }
    let line = appliance.run(command.arg("status")).complains_with(69);
    assert!(line.contains("may not use") && line.contains("Permission denied"), "{line}");
    let owner = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().expect("an account").name;
    assert!(line.contains(&format!("run it as {owner}")) && !line.contains("refit run"), "{line}");
}

#[test]
fn what_is_not_there_cannot_be_installed_or_gone_back_to() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let line = refused(&appliance, refit().args(["install", "nowhere.refit"]), 64);
    assert!(line.contains("nowhere.refit"), "{line}");
    let line = refused(&appliance, refit().args(["rollback", "7.0.0"]), 64);
    assert!(line.contains("7.0.0"), "{line}");
    let line = refused(&appliance, refit().args(["rollback"]), 64);
    assert!(line.contains("no release to go back to"), "{line}");
    let line = refused(&appliance, refit().args(["component", "stop", "nobody"]), 64);
    assert!(line.contains("nobody"), "{line}");
}

#[test]
fn a_second_update_while_one_runs() {
    let appliance = Appliance::new(&Release::shop("1.0.0"))
        .local(|text| text.replace("probation = \"300ms\"", "probation = \"10m\""))
        .start();
    let next = Release::shop("1.1.0");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| appliance.install(&next, &[]));
        eventually(LIMIT, "the first is on trial", || {
            appliance.try_status().is_some_and(|status| status["update"]["phase"] == "probation")
        });
        for words in [["rollback"].as_slice(), &["install", "1.0.0"]] {
            let line = appliance.refit(words).complains_with(75);
            assert!(line.contains("another update"), "{line}");
        }
        let second = appliance.install(&Release::shop("1.2.0"), &[]);
        assert!(second.complains_with(75).contains("another update"));
        let status = appliance.status();
        assert_eq!((&status["release"]["version"], &status["release"]["state"]), (&"1.1.0".into(), &"trial".into()));
        // Nothing waits for ten minutes: the trial is lost with its runtime.
        crate::process::send(appliance.runtime_pid(), nix::sys::signal::Signal::SIGKILL);
        first.join().expect("no panic").complains_with(70);
    });
    appliance.settled("1.0.0");
    assert_eq!(appliance.history().len(), 1, "only the first was tried");
}

#[test]
fn a_kept_release_that_is_damaged_is_not_gone_back_to() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    let pids = (appliance.runtime_pid(), appliance.component_pid("shop"));
    let generation = appliance.status()["runtime"]["generation"].clone();
    let file = appliance.home().join("releases/1.0.0/lib/prices.txt");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set the mode");
    let text = fs::read_to_string(&file).expect("read").replace("8.50", "0.50");
    fs::write(&file, text).expect("write");

    let line = appliance.refit(&["rollback"]).complains_with(70);
    assert!(line.contains("lib/prices.txt") && line.contains("1.0.0"), "{line}");
    let status = appliance.settled("1.1.0");
    assert_eq!((appliance.runtime_pid(), appliance.component_pid("shop")), pids, "the running release is untouched");
    assert_eq!(status["runtime"]["generation"], generation);
    let entry = &appliance.history()[0];
    assert_eq!((&entry["kind"], &entry["outcome"]), (&"rollback".into(), &"failed".into()), "{entry}");
    appliance.refit(&["verify"]).ends_with(0);
    let verified = appliance.refit(&["verify", "1.0.0", "--json"]).ends_with(70);
    assert!(verified.stderr.contains("lib/prices.txt"), "{}", verified.stderr);
}

#[test]
fn a_refusal_has_a_code_and_a_remedy_for_programs() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let ran = appliance.install(&Release::shop("0.9.0"), &["--json"]).ends_with(65);
    let objects = ran.objects();
    let error = &objects.last().expect("an object")["error"];
    assert_eq!((&error["exit"], &error["code"]), (&65.into(), &"package_refused".into()), "{error}");
    assert_eq!(error["reason_code"], "not_newer", "{error}");
    assert!(error["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{error}");
    let answer = Request::new(&appliance.socket(), "POST", "/api/v1/bus/requests")
        .json(&serde_json::json!({ "request": "dance" }))
        .send();
    assert_eq!((answer.status, answer.header("content-type")), (400, "application/problem+json"));
    assert!(answer.json()["detail"].to_string().contains("dance"), "{}", answer.text());
}

#[test]
fn a_release_with_hooks_is_not_taken_in_and_one_that_is_installed_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    Release::bare("1.0.0").file("hooks/migrate", "#!/bin/sh\n").write(&at.join("tree"));
    let keys = Vendor::get().keys();
    let run = |words: &[&str]| {
        let mut command = refit();
        Ran::of(command.args(words).env("REFIT_KEYS", &keys).current_dir(at))
    };
    run(&["repo", "init", "repo"]).ends_with(0);
    for words in [["pack", "tree", "-o", "it.refit"].as_slice(), &["pack", "tree", "--repo", "repo"]] {
        let line = run(words).complains_with(65);
        assert!(line.contains("tree has \"hooks/migrate\"") && line.contains("take hooks/ out"), "{line}");
    }
    assert!(!at.join("it.refit").exists());

    let first = Release::bare("1.0.0");
    let workshop = Workshop::new(&fs::read(first.package()).expect("read"), 1);
    let with_hook = workshop.with_release(|release| {
        release.add_directory("hooks");
        release.add_empty("hooks/migrate");
    });
    let [root, hook, honest] = ["root.json", "hook.refit", "honest.refit"].map(|name| at.join(name));
    fs::write(&root, workshop.root()).expect("write");
    fs::write(&hook, &with_hook).expect("write");
    fs::write(&honest, workshop.honest()).expect("write");
    let mut init = refit();
    init.args(["init", "hook.refit", "--root", "root.json", "--home", "home"]).current_dir(at);
    let line = Ran::of(&mut init).complains_with(65);
    assert!(line.contains("does not run hooks") && line.contains("nothing was changed"), "{line}");
    assert!(!at.join("home").exists());
    run(&["inspect", "hook.refit"]).ends_with(0);

    // As an earlier Refit installed it.
    let mut appliance = Appliance::of_package(&first, &honest, &root);
    let release = appliance.home().join("releases/1.0.0");
    make_dirs_writable(&release).expect("make it writable");
    fs::create_dir(release.join("hooks")).expect("make a directory");
    fs::write(release.join("hooks/migrate"), "").expect("write");
    fs::set_permissions(release.join("hooks/migrate"), fs::Permissions::from_mode(0o444)).expect("set its mode");
    fs::set_permissions(release.join("hooks"), fs::Permissions::from_mode(0o555)).expect("set its mode");
    let package = Package::open(&with_hook[..]).expect("a package");
    let manifest = release.join(".refit/manifest.json");
    fs::remove_file(&manifest).expect("remove");
    fs::write(&manifest, package.manifest()).expect("write");
    appliance.run_guard();
    appliance.wait_running();
    let next = workshop.with_release(|release| {
        release.manifest["version"] = serde_json::json!("1.1.0");
        release.add_empty("hooks");
    });
    fs::write(&hook, &next).expect("write");
    for options in [[].as_slice(), &["--stage-only"], &["--allow-downgrade"]] {
        let line = appliance.install_package(&hook, options).complains_with(65);
        assert!(line.contains("\"hooks\"") && line.contains("get a release without hooks/"), "{line}");
    }
    let answer = Request::new(&appliance.socket(), "PUT", "/api/v1/packages").body(next).send();
    assert_eq!((answer.status, answer.json()["code"].as_str()), (422, Some("package_refused")), "{}", answer.text());
    assert_eq!(fs::read_dir(appliance.home().join("staging")).expect("read").count(), 0);
    appliance.settled("1.0.0");
}
