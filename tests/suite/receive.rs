//! Packages that arrive in circumstances: senders that fall silent, releases that are there already or damaged.

use std::fs::{self, File, Permissions};
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use serde_json::Value;

use crate::appliance::{Appliance, Ran, refit};
use crate::http::Request;
use crate::release::{Release, Vendor};
use crate::repository::with_update_key;
use crate::wait::{LIMIT, eventually, until};

/// Returns a pipe into which somebody writes these bytes, and closes it.
fn piped(bytes: Vec<u8>) -> PipeReader {
    let (reader, mut writer) = io::pipe().expect("a pipe");
    // One that is not read to its end breaks.
    std::thread::spawn(move || writer.write_all(&bytes).ok());
    reader
}

#[test]
fn a_package_may_come_through_a_pipe() {
    let first = Release::bare("1.0.0");
    let appliance = Appliance::new(&first).start();
    let read = |version: &str| fs::read(Release::bare(version).package()).expect("read");
    for (version, name) in [("1.1.0", "-"), ("1.2.0", "/dev/stdin")] {
        let ran = appliance.run(refit().args(["install", name]).stdin(piped(read(version)))).ends_with(0);
        assert!(ran.stdout.contains(&format!("-> {version}:")), "{}", ran.stdout);
        appliance.settled(version);
    }
    let fifo = appliance.scratch().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("make a pipe");
    let (writing, bytes) = (fifo.clone(), read("1.3.0"));
    let writer = std::thread::spawn(move || fs::write(writing, bytes).expect("it is read"));
    appliance.install_package(&fifo, &[]).ends_with(0);
    writer.join().expect("no panic");
    appliance.settled("1.3.0");
    let file = File::open(Release::bare("1.4.0").package()).expect("open");
    appliance.run(refit().args(["install", "-"]).stdin(file)).ends_with(0);
    appliance.settled("1.4.0");

    let home = appliance.scratch().join("second");
    let mut init = refit();
    init.args(["init", "-", "--root"]).arg(Vendor::get().root()).arg("--home").arg(&home);
    Ran::of(init.stdin(piped(read("1.0.0")))).ends_with(0);
    let inspect = |word: &str| {
        let mut inspect = refit();
        inspect.args(["inspect", "--json", word]).stdin(piped(read("1.0.0")));
        Ran::of(&mut inspect).ends_with(0).objects().remove(0)
    };
    let from_file = inspect(first.package().to_str().expect("text"));
    assert_eq!(from_file["package_bytes"], read("1.0.0").len(), "{from_file}");
    assert_eq!((inspect("-"), inspect("/dev/stdin")), (from_file.clone(), from_file));
}

#[test]
fn what_is_refused_from_a_pipe_is_refused_while_somebody_holds_it_open() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let (reader, mut writer) = io::pipe().expect("a pipe");
    writer.write_all(&[7; 5000]).expect("a pipe has room for it");
    let line = appliance.run(refit().args(["install", "-"]).stdin(reader)).complains_with(65);
    assert!(line.contains("this is no package of refit"), "{line}");
    drop(writer);
    let line = appliance.run(refit().args(["install", "-"]).stdin(piped(Vec::new()))).complains_with(65);
    assert!(line.contains("this is no package of refit"), "{line}");
}

#[test]
fn a_sender_that_falls_silent_makes_room_for_the_next() {
    let appliance = with_update_key(Appliance::new(&Release::bare("1.0.0")), "receive_timeout = \"3s\"").start();
    let package = fs::read(Release::bare("1.1.0").package()).expect("read");
    let mut stream = UnixStream::connect(appliance.home().join("run/refit.sock")).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    let head = format!(
        "PUT /api/v1/packages HTTP/1.1\r\nHost: appliance\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        package.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&package[..package.len() / 2])).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    assert!(answer.contains("\"package_interrupted\"") && answer.contains("bytes came in 3 s"), "{answer}");
    appliance.install(&Release::bare("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
}

#[test]
fn what_is_being_received_is_shown() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    assert_eq!(appliance.status()["receiving"], Value::Null);
    let package = fs::read(Release::bare("1.1.0").package()).expect("read");
    let mut stream = UnixStream::connect(appliance.home().join("run/refit.sock")).expect("connect");
    let head = format!("PUT /api/v1/packages HTTP/1.1\r\nHost: appliance\r\nContent-Length: {}\r\n\r\n", package.len());
    stream.write_all(head.as_bytes()).expect("send");
    let receiving = |step: &str| {
        until(LIMIT, &format!("it is at {step}"), || {
            Some(appliance.status()["receiving"].clone()).filter(|receiving| receiving["step"] == step)
        })
    };
    let unknown = receiving("metadata");
    assert_eq!((&unknown["version"], &unknown["total_bytes"]), (&Value::Null, &package.len().into()), "{unknown}");
    stream.write_all(&package[..package.len() - 1]).expect("send");
    let known = receiving("unpacking");
    assert_eq!((&known["version"], &known["digest"].is_string()), (&"1.1.0".into(), &true), "{known}");
    let shown = appliance.refit(&["status"]).ends_with(0).stdout;
    assert!(shown.contains("\nreceiving release 1.1.0 since 20"), "{shown}");
    drop(stream);
    until(LIMIT, "nothing is being received", || appliance.status()["receiving"].is_null().then_some(()));
}

#[test]
fn a_release_that_is_kept_is_staged_and_approved_like_any_other() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    appliance.install(&Release::bare("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    let staged = appliance.refit(&["install", "1.0.0", "--stage-only"]).ends_with(0).stdout;
    assert!(staged.contains("release 1.0.0 is complete on disk"), "{staged}");
    let other = "1".repeat(64);
    let line = appliance.refit(&["install", "1.0.0", "--digest", &other]).complains_with(65);
    assert!(line.contains(&other) && line.contains("was approved"), "{line}");
    assert_eq!(appliance.settled("1.1.0")["release"]["version"], "1.1.0");
    let releases = appliance.refit(&["releases", "--json"]).ends_with(0).objects().remove(0);
    let kept = releases["releases"].as_array().expect("a list").iter().find(|it| it["version"] == "1.0.0");
    let digest = kept.expect("it is kept")["digest"].as_str().expect("a digest").to_owned();
    appliance.refit(&["install", "1.0.0", "--digest", &digest]).ends_with(0);
    appliance.settled("1.0.0");
}

#[test]
fn a_package_that_was_staged_is_installed_by_its_digest() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let staged = appliance.install(&Release::bare("1.1.0"), &["--stage-only"]).ends_with(0).stdout;
    let digest = staged.lines().find_map(|line| line.strip_prefix("digest ")).expect("a digest").trim().to_owned();
    let line = appliance.refit(&["install", &"1".repeat(64)]).complains_with(64);
    assert!(line.contains("no package with the digest"), "{line}");
    appliance.refit(&["install", &digest]).ends_with(0);
    appliance.settled("1.1.0");
}

/// Returns what waits in staging, which everybody who lists it agrees on.
fn staged(appliance: &Appliance) -> Vec<Value> {
    let listed = Request::new(&appliance.socket(), "GET", "/api/v1/packages").send().json()["packages"].clone();
    let releases = appliance.refit(&["releases", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!((&appliance.status()["staged"], &releases["staged"]), (&listed, &listed));
    let text = appliance.refit(&["status"]).ends_with(0).stdout + &appliance.refit(&["releases"]).ends_with(0).stdout;
    let staged = listed.as_array().expect("a list").clone();
    for package in &staged {
        let digest = package["digest"].as_str().expect("a digest");
        assert_eq!(text.matches(digest).count(), 2, "status and releases say how to install it: {text}");
    }
    staged
}

#[test]
fn what_was_staged_is_listed_until_it_is_installed_or_gone() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    assert_eq!(staged(&appliance), [] as [Value; 0]);
    for version in ["1.1.0", "1.2.0", "1.1.0"] {
        appliance.install(&Release::bare(version), &["--stage-only"]).ends_with(0);
    }
    let waiting = staged(&appliance);
    let versions: Vec<&Value> = waiting.iter().map(|package| &package["version"]).collect();
    assert_eq!(versions, ["1.2.0", "1.1.0"]);
    assert!(waiting.iter().all(|package| package["received_at"].is_string() && package["installed_bytes"].is_u64()));
    let path = format!("/api/v1/packages/{}", waiting[0]["digest"].as_str().expect("a digest"));
    assert_eq!(Request::new(&appliance.socket(), "DELETE", &path).send().status, 204);
    assert_eq!(staged(&appliance), waiting[1..]);
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    eventually(LIMIT, "another image runs", || {
        let status = appliance.settled("1.0.0");
        status["runtime"]["generation"] == 2
    });
    assert_eq!(staged(&appliance), [] as [Value; 0], "staging is emptied at every start");
    let package =
        appliance.install(&Release::bare("1.1.0"), &["--stage-only", "--json"]).ends_with(0).objects().remove(0);
    let digest = package["data"]["digest"].as_str().expect("a digest").to_owned();
    assert_eq!(staged(&appliance).len(), 1);
    appliance.refit(&["install", &digest]).ends_with(0);
    appliance.settled("1.1.0");
    assert_eq!(staged(&appliance), [] as [Value; 0]);
}

#[test]
fn who_follows_an_update_is_told_that_the_appliance_is_silent() {
    let appliance = Appliance::new(&Release::bare("1.0.0"));
    let mut appliance = appliance.local(|text| text.replace("300ms", "10m")).start();
    let said = appliance.scratch().join("said");
    let mut install = refit();
    install.arg("install").arg(Release::bare("1.1.0").package()).arg("--home").arg(appliance.home());
    install.stdout(Stdio::null()).stderr(File::create(&said).expect("make a file"));
    let mut install = install.spawn().expect("start refit");
    eventually(LIMIT, "the release is on trial", || appliance.status()["update"]["phase"] == "probation");
    appliance.kill_guard();
    let line = until(LIMIT, "it is said", || fs::read_to_string(&said).ok().filter(|line| line.ends_with('\n')));
    install.kill().expect("end it");
    install.wait().expect("collect it");
    assert!(line.starts_with("refit: the appliance does not answer; it is waited for 1"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[test]
fn a_running_release_with_a_damaged_manifest_is_updated() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let manifest = appliance.home().join("releases/1.0.0/.refit/manifest.json");
    fs::set_permissions(&manifest, Permissions::from_mode(0o644)).expect("chmod");
    fs::write(&manifest, "{\"format\":").expect("write");
    let ran = appliance.install(&Release::bare("1.1.0"), &[]).ends_with(0);
    assert!(ran.stdout.contains("what changes is unknown"), "{}", ran.stdout);
    appliance.settled("1.1.0");
}

#[test]
fn a_home_that_cannot_be_made_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let package = Release::bare("1.0.0").package();
    let stranger = Release::bare("1.0.0").by_a_stranger().package();
    let init = |home: &std::path::Path, package: &std::path::Path| {
        let mut command = refit();
        command.arg("init").arg(package).arg("--root").arg(Vendor::get().root()).arg("--home").arg(home);
        Ran::of(&mut command)
    };
    let (missing, empty) = (dir.path().join("missing"), dir.path().join("empty"));
    fs::create_dir(&empty).expect("make");
    for home in [&missing, &empty] {
        let line = init(home, &stranger).complains_with(65);
        assert!(line.contains("nothing was changed"), "{line}");
    }
    assert!(!missing.exists());
    assert_eq!(fs::read_dir(&empty).expect("list").count(), 0);
    for home in [&missing, &empty] {
        init(home, &package).ends_with(0);
    }
    // Somebody else's directory is left alone.
    let other = dir.path().join("other");
    fs::create_dir(&other).and_then(|()| fs::write(other.join("mine"), "mine")).expect("make");
    init(&other, &stranger).complains_with(65);
    assert_eq!(fs::read(other.join("mine")).expect("it is there"), b"mine");
}

#[test]
fn answers_that_cannot_be_written_are_a_failure() {
    let package = Release::bare("1.0.0").package();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("open");
    let mut inspect = refit();
    inspect.arg("inspect").arg(package).arg("--json").stdout(full);
    let ran = inspect.output().expect("run refit");
    let line = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(74), "{line}");
    assert!(line.contains("cannot write the answer"), "{line}");
}
