//! The hostile corpus against a running appliance: every package is refused with its own words, and the home is as it
//! was.
//!
//! One appliance meets all of them, as one would in its life. What it does after that proves the test: the same package
//! without an attack is installed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use refit_fixtures::hostile::{Workshop, corpus};
use serde_json::{Value, json};

use crate::appliance::{Appliance, refit};
use crate::http::Request;
use crate::release::Release;
use crate::wait::{LIMIT, until};

/// Versions of the metadata: that of the first release, which the appliance has seen, and that of the packages that
/// come later.
const SEEN: u64 = 5;
const NEXT: u64 = 6;

/// Attacks that there are at least.
const ATTACKS_MIN: usize = 80;

/// What the runtime may take of the machine's memory at its highest, bombs included: a manifest of 16 MiB in the form it
/// is read in, four times its size, and the program.
const MEMORY_BYTES_MAX: u64 = 96 << 20;

/// A message that a person can still read, with the two longest causes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What lies at a path: permissions, and content, target or nothing.
type Home = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// Returns everything in the home but what a running appliance writes by itself: its sockets and its lock (`run`), what
/// its components print (`log`) and what they keep (`data`). Staging is looked into, too: nothing of a refused package
/// stays there.
fn snapshot(home: &Path) -> Home {
    const PASSED_OVER: [&str; 3] = ["run", "log", "data"];
    let (mut found, mut open) = (Home::new(), vec![home.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("list a directory") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(home).expect("below the home").to_owned();
            if PASSED_OVER.iter().any(|passed| name == Path::new(passed)) {
                continue;
            }
            let metadata = path.symlink_metadata().expect("it is there");
            let content = if metadata.is_symlink() {
                fs::read_link(&path).expect("read a link").into_os_string().into_encoded_bytes()
            } else if metadata.is_dir() {
                open.push(path);
                Vec::new()
            } else {
                fs::read(&path).expect("read a file")
            };
            found.insert(name, (metadata.permissions().mode(), content));
        }
    }
    found
}

/// Asserts that the home is as it was.
fn assert_unchanged(before: &Home, home: &Path, what: &str) {
    let after = snapshot(home);
    let differ: Vec<_> =
        before.iter().filter(|(path, was)| after.get(*path) != Some(was)).map(|(path, _)| path).collect();
    let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(differ.is_empty() && new.is_empty(), "{what}: changed or gone: {differ:?}, new: {new:?}");
}

/// A small release.
fn release(version: &str) -> Release {
    Release::bare(version)
        .file("bin/tool", "#!/bin/sh\nexit 0\n")
        .file("config/tool.toml", "colour = \"green\"\n")
        .file("lib/data.txt", &format!("the data of {version}\n"))
        .file("share/one.txt", &format!("one of {version}\n"))
        .file("share/two.txt", &format!("two of {version}\n"))
}

/// An appliance that trusts the vendor of the corpus, and where the next packages are made.
fn attacked() -> (Appliance, Workshop) {
    let first = release("1.0.0");
    let workshop = Workshop::new(&fs::read(first.package()).expect("read the package"), SEEN);
    let dir = tempfile::tempdir().expect("a directory");
    let (root, package) = (dir.path().join("1.root.json"), dir.path().join("first.refit"));
    fs::write(&root, workshop.root()).expect("write the root");
    fs::write(&package, workshop.honest()).expect("write the package");
    let appliance = Appliance::of_package(&first, &package, &root)
        .local(|text| text.replacen("[update]\n", "[update]\nexpired_offline = \"refuse\"\n", 1))
        .start();
    let next = fs::read(release("1.1.0").package()).expect("read the package");
    (appliance, Workshop::new(&next, NEXT))
}

/// Returns the most memory that a process ever had.
fn memory_max(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel counts");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn every_package_of_the_corpus_is_refused_and_changes_nothing() {
    let (appliance, workshop) = attacked();
    let attacks = corpus();
    assert!(attacks.len() >= ATTACKS_MIN, "{} attacks", attacks.len());
    let pids = (appliance.guard_pid(), appliance.runtime_pid());
    let before = snapshot(appliance.home());
    let file = appliance.scratch().join("attack.refit");
    let mut messages = HashMap::new();
    let mut wrong = Vec::new();
    for attack in &attacks {
        fs::write(&file, attack.package(&workshop)).expect("write the package");
        let ran = appliance.install_package(&file, &[]);
        let (name, message) = (attack.name, ran.stderr.trim_end().to_owned());
        if ran.code != 65 || message.lines().count() != 1 || message.len() > MESSAGE_BYTES_MAX {
            wrong.push(format!("{name}: exit status {}: {message:.300}", ran.code));
        }
        if let Some(word) = attack.says.iter().find(|word| !message.contains(word.as_str())) {
            wrong.push(format!("{name}: {word:?} is not in: {message:.600}"));
        }
        if !message.contains("nothing was changed") {
            wrong.push(format!("{name}: does not say that nothing was changed: {message:.600}"));
        }
        assert_unchanged(&before, appliance.home(), name);
        match attack.same_as {
            Some(other) => assert!(attacks.iter().any(|attack| attack.name == other), "{name}: there is no {other}"),
            None => {
                if let Some(other) = messages.insert(message, name) {
                    wrong.push(format!("{name} and {other} have the same message, and not the same cause"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    let memory = memory_max(pids.1);
    assert!(memory <= MEMORY_BYTES_MAX, "the runtime had {} MiB", memory >> 20);
    assert_eq!((appliance.guard_pid(), appliance.runtime_pid()), pids, "nothing was restarted");
    assert!(appliance.history().is_empty(), "nothing was tried");

    fs::write(&file, workshop.honest()).expect("write the package");
    appliance.install_package(&file, &[]).ends_with(0);
    appliance.settled("1.1.0");
}

#[test]
fn a_package_exchanged_after_it_was_shown_is_not_installed() {
    let (appliance, workshop) = attacked();
    let put = |package: Vec<u8>| {
        let answer = Request::new(&appliance.socket(), "PUT", "/api/v1/packages").body(package).send();
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["digest"].as_str().expect("a digest").to_owned()
    };
    let ask = |digest: &str| {
        Request::new(&appliance.socket(), "POST", "/api/v1/updates").json(&json!({ "digest": digest })).send()
    };
    let shown = put(workshop.honest());
    // Of the same version, as good as signed, and with other content.
    let exchanged = put(workshop.with_release(|release| release.add_empty("share/another")));
    assert_ne!(shown, exchanged);
    // What was shown is gone; what came in its place was never asked for.
    let gone = Request::new(&appliance.socket(), "DELETE", &format!("/api/v1/packages/{shown}")).send();
    assert_eq!(gone.status, 204, "{}", gone.text());
    let before = snapshot(appliance.home());
    let refused = ask(&shown);
    let problem = refused.json();
    assert_eq!(problem["code"], "package_unknown", "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(&shown)), "{problem}");
    assert_unchanged(&before, appliance.home(), "a digest that nothing has");

    // Somebody writes another manifest into staging: its digest is no longer its name.
    let manifest = appliance.home().join("staging").join(&exchanged).join(".refit/manifest.json");
    let text = fs::read_to_string(&manifest).expect("read the manifest");
    fs::set_permissions(&manifest, fs::Permissions::from_mode(0o644)).expect("set its mode");
    fs::write(&manifest, text.replace("share/another", "share/anothes")).expect("write the manifest");
    let before = snapshot(appliance.home());
    assert_eq!(ask(&exchanged).json()["code"], "package_unknown");
    assert_unchanged(&before, appliance.home(), "a manifest that was exchanged");
    let status = appliance.settled("1.0.0");
    assert_eq!(status["update"], Value::Null);
    assert!(appliance.history().is_empty(), "nothing was tried");
}

#[test]
fn an_upload_without_end_is_refused_and_ends() {
    let (appliance, workshop) = attacked();
    let before = snapshot(appliance.home());
    let line = appliance.run(refit().args(["install", "/dev/zero"])).complains_with(65);
    assert!(line.contains("this is no package of refit"), "{line}");
    assert_unchanged(&before, appliance.home(), "zeros without end");

    // The same over the API, behind a beginning that is in order.
    let beginning = workshop.honest();
    let (head, _) = beginning.split_at(beginning.len() - 1024);
    let mut stream = connect(&appliance);
    let request = "PUT /api/v1/packages HTTP/1.1\r\nHost: appliance\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("send the request");
    stream.write_all(format!("{:x}\r\n", head.len()).as_bytes()).expect("send a length");
    stream.write_all(head).and_then(|()| stream.write_all(b"\r\n")).expect("send the beginning");
    let answer = thread::scope(|scope| {
        let mut sender = stream.try_clone().expect("a descriptor");
        scope.spawn(move || {
            let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
            let begun = Instant::now();
            // Until nobody takes it any more.
            while sender.write_all(&chunk).is_ok() {
                assert!(begun.elapsed() < 2 * LIMIT, "the appliance goes on reading");
            }
        });
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("{error}"),
            }
        }
        String::from_utf8(answer).expect("text")
    });
    assert!(answer.contains("does not end behind its payload"), "{answer}");
    assert_unchanged(&before, appliance.home(), "an upload without end");
}

#[test]
fn a_sender_that_goes_away_leaves_nothing() {
    let (appliance, workshop) = attacked();
    let before = snapshot(appliance.home());
    let package = workshop.honest();
    let sent_another = || {
        let answer = Request::new(&appliance.socket(), "PUT", "/api/v1/packages").body(b"no package".to_vec()).send();
        answer.json()["code"].clone()
    };
    for length in [1, 511, 513, 4096, package.len() / 2, package.len() - 1] {
        let begin = || {
            let mut stream = connect(&appliance);
            let length_all = package.len();
            let head =
                format!("PUT /api/v1/packages HTTP/1.1\r\nHost: appliance\r\nContent-Length: {length_all}\r\n\r\n");
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&package[..length])).expect("send a part");
            stream.set_nonblocking(true).expect("a socket");
            stream
        };
        let mut stream = begin();
        // It is being received, so what is looked at below is what it left.
        until(LIMIT, "the package is being received", || {
            if sent_another() == "package_being_received" {
                return Some(());
            }
            // The other one may have come first: then this one was refused.
            let is_refused = stream.read(&mut [0]).map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |_| true);
            if is_refused {
                stream = begin();
            }
            None
        });
        drop(stream);
        until(LIMIT, "another package can be sent", || (sent_another() == "package_refused").then_some(()));
        assert_unchanged(&before, appliance.home(), &format!("{length} bytes of a package"));
    }
}

fn connect(appliance: &Appliance) -> UnixStream {
    let stream = UnixStream::connect(appliance.home().join("run/refit.sock")).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
    stream.set_write_timeout(Some(Duration::from_secs(20))).expect("set a limit");
    stream
}
