//! Components that run and end: once at each start of the site, or every so often; and the directories that a component is given.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::User;
use refit_fixtures::tools::as_root;
use serde_json::Value;

use crate::appliance::{Appliance, component, text};
use crate::components::{data, with_odd};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

/// A run: says that it has begun, goes on while there is a file `hold-NAME`, and ends with the status in `status-NAME`.
const RUN: &str = "#!/bin/sh\n\
    echo $$ >> \"$REFIT_DATA/runs-$1\"\n\
    while [ -e \"$REFIT_DATA/hold-$1\" ]; do sleep 0.01; done\n\
    echo \"last words of $1\" >&2\n\
    echo $$ >> \"$REFIT_DATA/ends-$1\"\n\
    exit \"$(cat \"$REFIT_DATA/status-$1\" 2>/dev/null || echo 0)\"\n";

/// Adds a component that runs and ends, with these keys.
fn with_run(release: Release, name: &str, keys: &str) -> Release {
    let command = format!("command = [\"bin/run\", \"{name}\"]\n{keys}");
    release.component(name, &command).program_text("bin/run", RUN)
}

/// Returns a release with `init`, which runs once, and `web`, which comes after it.
fn with_init(version: &str, keys: &str) -> Release {
    let release = with_run(Release::bare(version), "init", &format!("kind = \"once\"\n{keys}"));
    with_odd(release, "web", &["plain"], "ready = \"notify\"\nafter = [\"init\"]")
}

/// Returns a release with `job`, which runs every so often.
fn with_job(version: &str, every: &str, keys: &str) -> Release {
    with_run(Release::bare(version), "job", &format!("every = \"{every}\"\n{keys}"))
}

fn put(appliance: &Appliance, name: &str, text: &str) {
    fs::create_dir_all(appliance.home().join("data")).expect("the directory of data");
    fs::write(appliance.home().join("data").join(name), text).expect("written");
}

fn take(appliance: &Appliance, name: &str) {
    fs::remove_file(appliance.home().join("data").join(name)).expect("removed");
}

/// Returns the processes that have said that they began (`runs`) or ended (`ends`).
fn pids(appliance: &Appliance, what: &str, name: &str) -> Vec<i32> {
    let path = appliance.home().join("data").join(format!("{what}-{name}"));
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
}

/// Waits until so many runs have begun, and returns the last one's process.
fn begun(appliance: &Appliance, name: &str, count: usize) -> i32 {
    until(LIMIT, &format!("{count} runs of {name} have begun"), || {
        let pids = pids(appliance, "runs", name);
        (pids.len() >= count).then(|| pids[count - 1])
    })
}

/// Waits until a component is in `state`, and returns what the status says of it.
fn is(appliance: &Appliance, name: &str, state: &str) -> Value {
    until(LIMIT, &format!("the component {name} is {state}"), || {
        let found = component(&appliance.try_status()?, name);
        (found["state"] == state).then_some(found)
    })
}

#[test]
fn one_that_runs_once_has_ended_before_others_begin_and_runs_again_with_the_site_but_not_after_a_crash() {
    let mut appliance = Appliance::new(&with_init("1.0.0", ""));
    put(&appliance, "hold-init", "");
    appliance.run_guard();
    let pid = begun(&appliance, "init", 1);
    let found = is(&appliance, "init", "starting");
    assert_eq!((&found["pid"], &found["kind"]), (&pid.into(), &"once".into()), "{found}");
    assert_eq!(component(&appliance.status(), "web")["state"], "stopped", "it waits");
    take(&appliance, "hold-init");
    appliance.wait_running();
    let done = |count: usize| {
        let found = is(&appliance, "init", "done");
        assert_eq!((&found["pid"], &found["reason"]), (&Value::Null, &Value::Null), "{found}");
        assert!(found["last_run"]["ended_at"].is_string() && found["last_run"]["failure"].is_null(), "{found}");
        assert_eq!(component(&appliance.status(), "web")["state"], "running");
        assert_eq!(pids(&appliance, "runs", "init").len(), count);
    };
    done(1);
    let shown = appliance.refit(&["status"]).ends_with(0).stdout;
    assert!(
        shown.lines().any(|line| line.starts_with("init") && line.contains("done") && line.contains("ran at")),
        "{shown}"
    );
    appliance.kill_runtime();
    done(1);
    appliance.refit(&["component", "start", "init"]).ends_with(0);
    done(1);
    assert_eq!(appliance.refit(&["component", "restart", "init"]).ends_with(0).stdout, "init: done\n");
    done(2);
    for words in [&["stop", "start"][..], &["restart"]] {
        for word in words {
            appliance.refit(&["bus", "request", word]).ends_with(0);
        }
    }
    done(4);
    put(&appliance, "status-init", "3");
    let said = appliance.refit(&["component", "restart", "init"]).complains_with(70);
    assert!(said.contains("ended with status 3"), "{said}");
    assert_eq!(text(&is(&appliance, "init", "failed")["reason"]), "ended with status 3");
    assert_eq!(component(&appliance.status(), "web")["state"], "running");
}

#[test]
fn a_run_that_a_crash_leaves_alone_counts_whether_it_ends_before_the_next_runtime_or_after() {
    let appliance = Appliance::new(&with_init("1.0.0", "")).start();
    for ends_alone in [false, true] {
        let before = pids(&appliance, "runs", "init").len();
        put(&appliance, "hold-init", "");
        let restarting = std::thread::scope(|scope| {
            let restart = scope.spawn(|| appliance.refit(&["component", "restart", "init"]));
            let pid = begun(&appliance, "init", before + 1);
            let (guard, runtime) = (appliance.guard_pid(), appliance.runtime_pid());
            process::send(guard, Signal::SIGSTOP);
            process::send(runtime, Signal::SIGKILL);
            if ends_alone {
                take(&appliance, "hold-init");
                eventually(LIMIT, "the run has ended", || pids(&appliance, "ends", "init").contains(&pid));
            }
            process::send(guard, Signal::SIGCONT);
            if !ends_alone {
                assert_eq!(is(&appliance, "init", "starting")["pid"], pid, "the same run goes on");
                take(&appliance, "hold-init");
            }
            is(&appliance, "init", "done");
            assert_eq!(pids(&appliance, "runs", "init").len(), before + 1, "it does not run again");
            restart.join().expect("the command ends")
        });
        assert_eq!((restarting.code, restarting.stdout.as_str()), (0, "init: done\n"), "{restarting:?}");
    }
}

#[test]
fn one_that_fails_or_hangs_at_the_first_start_ends_it_with_the_reason() {
    for (file, keys, expected) in [
        ("status-init", "", "component init failed to start: ended with status 3"),
        (
            "hold-init",
            "start_timeout = \"300ms\"",
            "component init failed to start: did not end within 0.3 s, and was ended",
        ),
    ] {
        let mut appliance = Appliance::new(&with_init("1.0.0", keys));
        put(&appliance, file, "3");
        appliance.run_guard();
        assert_eq!(appliance.wait_guard(LIMIT).code(), Some(70));
        assert!(appliance.log().contains(expected), "{}", appliance.log());
        assert_eq!(appliance.processes(), Vec::<i32>::new(), "nothing is left");
    }
}

#[test]
fn one_that_fails_or_hangs_on_trial_ends_the_trial() {
    let appliance = Appliance::new(&with_init("1.0.0", "")).start();
    put(&appliance, "status-fails", "3");
    put(&appliance, "hold-hangs", "");
    for (version, name, keys, expected) in [
        ("1.1.0", "fails", "", "component fails did not start: ended with status 3"),
        ("1.2.0", "hangs", "start_timeout = \"300ms\"", "component hangs did not start: did not end within 0.3 s"),
    ] {
        let release = with_run(with_init(version, ""), name, &format!("kind = \"once\"\n{keys}"));
        let said = appliance.install(&release, &[]).complains_with(70);
        assert!(said.contains(expected), "{said}");
        appliance.settled("1.0.0");
        is(&appliance, "init", "done");
        if name == "fails" {
            assert_eq!(text(&appliance.history()[0]["output"][0]), "last words of fails");
        }
    }
    assert_eq!(component(&appliance.status(), "web")["state"], "running");
}

#[test]
fn all_that_fail_on_trial_are_named_one_line_each() {
    let appliance = Appliance::new(&with_init("1.0.0", "")).start();
    put(&appliance, "status-first", "3");
    put(&appliance, "status-second", "4");
    let first = with_run(with_init("1.1.0", ""), "first", "kind = \"once\"\npriority = 60");
    let release = with_run(first, "second", "kind = \"once\"\npriority = 70");
    let said = appliance.install(&release, &[]).ends_with(70).stderr;
    let expected = ["first: ended with status 3 (priority 60)", "second: ended with status 4 (priority 70)"];
    let named = |text: &str| -> Vec<String> {
        text.lines().map(str::trim).filter(|line| line.contains("ended with status")).map(str::to_owned).collect()
    };
    assert!(said.contains("2 components did not start:"), "{said}");
    let lines = named(&said);
    assert!(lines[0] == expected[0] && lines[1].starts_with(expected[1]), "{said}");
    appliance.settled("1.0.0");
    assert_eq!(named(&text(&appliance.history()[0]["reason"])), expected);
    let shown = appliance.refit(&["history"]).ends_with(0).stdout;
    assert_eq!(named(&shown), expected, "{shown}");
}

#[test]
fn an_old_process_serves_until_the_run_before_the_new_one_has_ended() {
    let release = |version: &str| {
        let release = with_run(Release::bare(version), "init", "kind = \"once\"");
        let keys = "ready = \"notify\"\nafter = [\"init\"]\nhandover = \"overlap\"";
        with_odd(release, "web", &["plain", version], keys)
    };
    let appliance = Appliance::new(&release("1.0.0")).start();
    let old = appliance.component_pid("web");
    put(&appliance, "hold-init", "");
    std::thread::scope(|scope| {
        let install = scope.spawn(|| appliance.install(&release("1.1.0"), &[]));
        begun(&appliance, "init", 2);
        is(&appliance, "init", "starting");
        assert_eq!(component(&appliance.status(), "web")["pid"], old, "the new one has not begun");
        take(&appliance, "hold-init");
        install.join().expect("the command ends").ends_with(0);
    });
    let found = is(&appliance, "web", "running");
    assert_eq!((&found["status"], &found["generation"]), (&"1.1.0".into(), &2.into()), "{found}");
    appliance.refit(&["rollback"]).ends_with(0);
    begun(&appliance, "init", 3);
    is(&appliance, "init", "done");
}

#[test]
fn one_that_did_not_start_after_a_restart_is_tried_again_and_what_needs_it_starts_then() {
    let keys = "kind = \"once\"\nrestart = { backoff = \"10ms..10ms\", limit = \"1000/1m\" }";
    let release = with_run(Release::bare("1.0.0"), "init", keys);
    let release = with_odd(release, "web", &["plain"], "ready = \"notify\"\nneeds = [\"init\"]");
    let appliance = Appliance::new(&release).start();
    put(&appliance, "status-init", "3");
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    appliance.refit(&["bus", "request", "start"]).ends_with(70);
    begun(&appliance, "init", 4);
    assert_eq!(component(&appliance.status(), "web")["state"], "stopped");
    take(&appliance, "status-init");
    is(&appliance, "init", "done");
    is(&appliance, "web", "running");
}

#[test]
fn a_job_runs_while_the_site_runs_and_its_failures_are_its_health() {
    let appliance = Appliance::new(&with_job("1.0.0", "1s", "")).start();
    begun(&appliance, "job", 2);
    let health = |expected: &str| {
        until(LIMIT, &format!("the job is {expected}"), || {
            let found = component(&appliance.try_status()?, "job");
            (found["health"] == expected).then_some(found)
        })
    };
    let found = health("healthy");
    assert_eq!((&found["kind"], &found["reason"]), (&"every".into(), &Value::Null), "{found}");
    put(&appliance, "status-job", "7");
    assert_eq!(text(&health("unhealthy")["reason"]), "ended with status 7");
    let logs = appliance.refit(&["component", "logs", "job"]).ends_with(0).stdout;
    assert!(logs.contains("last words of job"), "{logs}");
    take(&appliance, "status-job");
    health("healthy");
    // One that outlasts its period is waited for.
    put(&appliance, "hold-job", "");
    let pid = until(LIMIT, "a run is held", || component(&appliance.try_status()?, "job")["pid"].as_i64());
    let at = |found: &Value| text(&found["started_at"]);
    let (began, count) = (at(&is(&appliance, "job", "running")), pids(&appliance, "runs", "job").len());
    eventually(LIMIT, "two periods have passed", || {
        let time: jiff::Timestamp = text(&appliance.status()["time"]).parse().expect("a time");
        let began: jiff::Timestamp = began.parse().expect("a time");
        time.duration_since(began).as_secs() >= 2
    });
    assert_eq!(pids(&appliance, "runs", "job").len(), count, "no run beside it");
    assert_eq!(component(&appliance.status(), "job")["pid"], pid);
    // A stop ends it, and nothing is due any more.
    appliance.refit(&["bus", "request", "stop"]).ends_with(0);
    let found = is(&appliance, "job", "stopped");
    assert_eq!((&found["next_run_at"], &found["pid"]), (&Value::Null, &Value::Null), "{found}");
    take(&appliance, "hold-job");
    appliance.refit(&["bus", "request", "start"]).ends_with(0);
    begun(&appliance, "job", count + 1);
}

/// A job that is made of its own program alone.
const JOB: &str = "stop_signal = \"INT\"\nfiles = [\"bin/run\"]";

#[test]
fn the_time_of_the_next_run_outlives_the_runtime_and_so_does_a_run() {
    let appliance = Appliance::new(&with_job("1.0.0", "1h", JOB)).start();
    let first = until(LIMIT, "the first run has ended", || {
        let found = component(&appliance.try_status()?, "job");
        (found["state"] == "waiting" && found["last_run"]["ended_at"].is_string()).then_some(found)
    });
    let next = |found: &Value| text(&found["next_run_at"])[..18].to_owned();
    let again = |how: &str| {
        let found = is(&appliance, "job", "waiting");
        assert_eq!(pids(&appliance, "runs", "job").len(), 1, "{how}");
        assert_eq!(found["last_run"]["started_at"], first["last_run"]["started_at"], "{how}");
        let seconds =
            |found: &Value| text(&found["next_run_at"]).parse::<jiff::Timestamp>().expect("a time").as_second();
        assert!((seconds(&found) - seconds(&first)).abs() <= 1, "{how}: {} {}", next(&found), next(&first));
    };
    appliance.kill_runtime();
    again("after a crash");
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    again("after a restart in place");
    let other = |version| with_odd(with_job(version, "1h", JOB), "web", &["plain"], "ready = \"notify\"");
    appliance.install(&other("1.1.0"), &[]).ends_with(0);
    again("after an update that leaves it as it is");

    // Somebody asks for a run; it goes on under whatever runtime.
    put(&appliance, "hold-job", "");
    appliance.refit(&["component", "restart", "job"]).ends_with(0);
    let pid = begun(&appliance, "job", 2);
    let goes_on = |how: &str| {
        assert_eq!(is(&appliance, "job", "running")["pid"], pid, "{how}");
        assert_eq!(pids(&appliance, "runs", "job").len(), 2, "{how}");
    };
    appliance.kill_runtime();
    goes_on("after a crash");
    appliance.install(&other("1.2.0"), &[]).ends_with(0);
    goes_on("after an update");
    appliance.refit(&["rollback"]).ends_with(0);
    goes_on("after a rollback");
    take(&appliance, "hold-job");
    let found = is(&appliance, "job", "waiting");
    assert_eq!(found["health"], "healthy", "{found}");
}

#[test]
fn a_job_that_fails_on_trial_or_takes_too_long_ends_the_trial() {
    let appliance = Appliance::new(&with_job("1.0.0", "1h", "")).start();
    begun(&appliance, "job", 1);
    put(&appliance, "status-bad", "3");
    put(&appliance, "hold-slow", "");
    let appliance = appliance.local(|local| local.replace("300ms", "2s"));
    for (version, name, keys, expected) in [
        ("1.1.0", "bad", "", "component bad is unhealthy: ended with status 3"),
        (
            "1.2.0",
            "slow",
            "start_timeout = \"300ms\"",
            "component slow is unhealthy: did not end within 0.3 s, and was ended",
        ),
    ] {
        let release = with_run(with_job(version, "1h", ""), name, &format!("every = \"1h\"\n{keys}"));
        let said = appliance.install(&release, &[]).complains_with(70);
        assert!(said.contains(expected), "{said}");
        appliance.settled("1.0.0");
    }
    assert_eq!(pids(&appliance, "runs", "job").len(), 1, "it is left as it was");
}

/// Returns who owns what lies at `path`, and its permissions.
fn looks(path: &Path) -> (u32, u32, u32) {
    let found = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (found.uid(), found.gid(), found.permissions().mode() & 0o7777)
}

#[test]
fn a_component_has_its_directories_before_it_begins_also_after_an_update() {
    let keys = |dirs: &str| format!("ready = \"notify\"\nworking_directory = \"${{REFIT_DATA}}/shop\"\ndata = {dirs}");
    let release = |version: &str, dirs: &str| {
        let command =
            format!("command = [\"python3\", \"${{REFIT_RELEASE}}/lib/odd.py\", \"describe\"]\n{}", keys(dirs));
        with_odd(Release::bare(version), "other", &["plain"], "ready = \"notify\"").component("odd", &command)
    };
    let appliance = Appliance::new_under(&release("1.0.0", "[\"shop\"]"), 0o077).start();
    let home = appliance.home().join("data");
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw(), 0o750);
    assert_eq!(looks(&home.join("shop")), own);
    let found: Value = serde_json::from_str(&data(&appliance, "found")).expect("JSON");
    assert_eq!(text(&found["cwd"]), home.join("shop").to_str().expect("text"));
    // What is there stays as it is; a link to another place below data/ is the admin's.
    fs::set_permissions(home.join("shop"), fs::Permissions::from_mode(0o700)).expect("its mode");
    fs::create_dir(home.join("disk")).expect("a directory");
    symlink("disk", home.join("linked")).expect("a link");
    appliance.install(&release("1.1.0", "[\"shop\", \"a/b/c\", \"linked/below\"]"), &[]).complains_with(70);
    fs::create_dir(home.join("disk/below")).expect("a directory");
    appliance.settled("1.0.0");
    appliance.install(&release("1.2.0", "[\"shop\", \"a/b/c\", \"linked/below\"]"), &[]).ends_with(0);
    for dir in ["a", "a/b", "a/b/c"] {
        assert_eq!(looks(&home.join(dir)), own, "{dir}");
    }
    assert_eq!(looks(&home.join("shop")).2, 0o700);
    // A link that leads out of data/ is refused, whoever made it.
    symlink("/tmp", home.join("out")).expect("a link");
    symlink("../run", home.join("a/b/up")).expect("a link");
    for (version, dir) in [("1.3.0", "out/x"), ("1.4.0", "out"), ("1.5.0", "a/b/up")] {
        let said = appliance.install(&release(version, &format!("[\"shop\", \"{dir}\"]")), &[]).complains_with(70);
        assert!(
            said.contains(&format!("cannot use data/{dir}")) || said.contains(&format!("cannot make data/{dir}")),
            "{said}"
        );
        appliance.settled("1.2.0");
    }
}

#[test]
fn the_directories_of_a_component_belong_to_its_account() {
    if !as_root() {
        return;
    }
    let account = |name: &str| User::from_name(name).expect("accounts are there").expect("the account is there");
    let (nobody, daemon) = (account("nobody"), account("daemon"));
    let release = |version: &str, user: &str, dirs: &str| {
        let keys = format!("user = \"{user}\"\nready = \"exec\"\ndata = {dirs}");
        let write = "echo written > \"$REFIT_DATA/redis/dump\"; exec sleep infinity";
        let command = format!("command = [\"sh\", \"-c\", '''{write}''']\n{keys}");
        Release::bare(version).component("redis", &command)
    };
    let appliance = Appliance::new(&release("1.0.0", "nobody", "[\"redis\"]"));
    for dir in [appliance.scratch(), appliance.home()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("open the way to the release");
    }
    let appliance = appliance.start();
    let dir = appliance.home().join("data/redis");
    assert_eq!(looks(&dir), (nobody.uid.as_raw(), nobody.gid.as_raw(), 0o750));
    assert_eq!(data(&appliance, "redis/dump"), "written\n");
    // A release with another account, and one with another directory.
    appliance.install(&release("1.1.0", "daemon", "[\"redis\", \"redis/more\"]"), &[]).ends_with(0);
    assert_eq!(looks(&dir), (daemon.uid.as_raw(), daemon.gid.as_raw(), 0o750));
    assert_eq!(looks(&dir.join("more")), (daemon.uid.as_raw(), daemon.gid.as_raw(), 0o750));
    assert_eq!(looks(&dir.join("dump")).0, nobody.uid.as_raw(), "what is in it was left as it is");
    assert!(appliance.log().contains("belonged to another account"), "{}", appliance.log());
    appliance.refit(&["rollback"]).ends_with(0);
    assert_eq!(looks(&dir).0, nobody.uid.as_raw());
}
