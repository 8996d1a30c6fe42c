//! A repository, seen from an appliance: what it offers, what is fetched of it, and servers of every manner.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::appliance::{Appliance, Ran, refit};
use crate::http::Request;
use crate::release::{Release, Vendor};
use crate::wait::{LIMIT, eventually};
use crate::web::{Manner, Web};

/// Makes a repository in `dir` with these releases.
fn repository(dir: &Path, releases: &[&Release]) {
    let refit_repo = |words: &[&str], packages: &[PathBuf]| {
        let mut command = refit();
        command.args(words).arg(dir).args(packages).env("REFIT_KEYS", Vendor::get().keys());
        Ran::of(&mut command).ends_with(0);
    };
    if !dir.exists() {
        refit_repo(&["repo", "init"], &[]);
    }
    refit_repo(&["repo", "add"], &releases.iter().map(|release| release.package()).collect::<Vec<_>>());
}

/// Adds a line below `[update]` to the machine's own settings.
pub(crate) fn with_update_key(appliance: Appliance, line: &str) -> Appliance {
    appliance.local(|text| text.replacen("[update]\n", &format!("[update]\n{line}\n"), 1))
}

/// An appliance of this release whose repository is at `address`.
fn asking(release: &Release, address: &str) -> Appliance {
    with_update_key(Appliance::new(release), &format!("repository = \"{address}\"")).start()
}

/// What `refit check` answers.
fn check(appliance: &Appliance) -> Value {
    appliance.refit(&["check", "--json"]).ends_with(0).objects().remove(0)
}

#[test]
fn a_release_comes_from_a_web_server_in_the_parts_that_are_missing() {
    let served = tempfile::tempdir().expect("a directory");
    let dir = served.path().join("repo");
    let (old, new) = (Release::shop("1.0.0"), Release::shop("1.1.0"));
    repository(&dir, &[&old]);
    let web = Web::serve(&dir);
    let appliance = asking(&old, &web.url());
    assert_eq!(appliance.status()["repository"], json!(web.url()));

    let checked = appliance.refit(&["check", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!((&checked["newer"], &checked["current"]), (&Value::Null, &json!("1.0.0")));
    let line = appliance.refit(&["install", "1.1.0"]).complains_with(65);
    assert!(line.contains("no release 1.1.0"), "{line}");
    repository(&dir, &[&new]);
    let checked = appliance.refit(&["check", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!(checked["newer"], "1.1.0");
    let payload_bytes = checked["releases"][1]["payload_bytes"].as_u64().expect("a number");
    let text = appliance.refit(&["check"]).ends_with(0).stdout;
    assert!(text.contains("refit install 1.1.0"), "{text}");
    // What a script approves is what `install` compares.
    let digest = checked["releases"][1]["digest"].as_str().expect("a digest");
    assert!(text.contains(&digest[..12]) && !text.contains(digest), "{text}");
    appliance.refit(&["install", "1.1.0", "--digest", &"1".repeat(64)]).complains_with(65);

    web.asked();
    appliance.refit(&["install", "1.1.0", "--digest", digest]).ends_with(0);
    appliance.settled("1.1.0");
    appliance.refit(&["verify"]).ends_with(0);
    let fetched: u64 = web.asked().iter().filter(|(path, _)| path.ends_with("payload")).map(|(_, bytes)| bytes).sum();
    // The stock's program and the style are those of 1.0.0.
    assert!(fetched > 0 && fetched < payload_bytes * 4 / 5, "{fetched} of {payload_bytes}");
    // An installed release is gone back to without the repository.
    let address = web.url();
    drop(web);
    appliance.refit(&["install", "1.0.0"]).ends_with(0);
    appliance.settled("1.0.0");
    let line = appliance.refit(&["check"]).complains_with(75);
    assert!(line.contains(&format!("the repository {address} cannot be read")), "{line}");
}

#[test]
fn parts_of_a_release_are_asked_for_by_every_worker() {
    const PARTS: u32 = 12;
    let served = tempfile::tempdir().expect("a directory");
    let dir = served.path().join("repo");
    let release = |version: &str, label: &str| {
        (0..PARTS).fold(Release::shop(version), |release, number| {
            let (kept, new) = (format!("share/{number:02}-kept"), format!("share/{number:02}-new"));
            release.file(&kept, &noise(&format!("kept {number}"))).file(&new, &noise(&format!("{label} {number}")))
        })
    };
    let (old, new) = (release("1.0.0", "old"), release("1.1.0", "new"));
    repository(&dir, &[&old, &new]);
    let web = Web::serve(&dir);
    let appliance = asking(&old, &web.url());
    appliance.refit(&["install", "1.1.0"]).ends_with(0);
    appliance.settled("1.1.0");
    appliance.refit(&["verify"]).ends_with(0);
    let payloads = web.asked().iter().filter(|(path, _)| path.ends_with("payload")).count();
    assert!(payloads >= PARTS as usize, "{payloads} requests");
}

/// Returns text that no codec makes smaller than the gap for which nobody asks anew; each label has its own.
fn noise(label: &str) -> String {
    (0..2_000).map(|number| hex::encode(Sha256::digest(format!("{label} {number}")))).collect()
}

#[test]
fn a_web_server_need_not_know_ranges() {
    let served = tempfile::tempdir().expect("a directory");
    let dir = served.path().join("repo");
    let (old, new) = (Release::shop("1.0.0"), Release::shop("1.1.0"));
    repository(&dir, &[&old, &new]);
    let web = Web::serve_as(&dir, Manner::Whole);
    let appliance = asking(&old, &web.url());
    appliance.refit(&["install", "1.1.0"]).ends_with(0);
    appliance.settled("1.1.0");
    appliance.refit(&["verify"]).ends_with(0);
    let payloads = web.asked().iter().filter(|(path, _)| path.ends_with("payload")).count();
    assert_eq!(payloads, 1, "one answer has all that is wanted");
}

#[test]
fn a_server_without_keys_can_give_nothing_else() {
    let served = tempfile::tempdir().expect("a directory");
    let dir = served.path().join("repo");
    repository(&dir, &[&Release::shop("1.1.0")]);
    let appliance = asking(&Release::shop("1.0.0"), &dir.display().to_string());
    appliance.refit(&["check"]).ends_with(0);
    let older = served.path().join("older.json");
    let timestamp = dir.join("metadata/timestamp.json");
    fs::copy(&timestamp, &older).expect("copy");
    repository(&dir, &[&Release::shop("1.2.0")]);
    appliance.refit(&["check"]).ends_with(0);
    // The list of yesterday again.
    fs::copy(&older, &timestamp).expect("copy");
    let line = appliance.refit(&["check"]).complains_with(65);
    assert!(line.contains("timestamp.json has version 2, and 3 was seen before"), "{line}");
    let pids = (appliance.runtime_pid(), appliance.component_pid("shop"));
    appliance.refit(&["install", "1.1.0"]).complains_with(65);
    assert_eq!((appliance.runtime_pid(), appliance.component_pid("shop")), pids);
    assert!(appliance.history().is_empty());
}

#[test]
fn no_repository_is_said() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let line = appliance.refit(&["check"]).complains_with(78);
    assert!(line.contains("has no repository") && line.contains("local.toml"), "{line}");
}

#[test]
fn a_release_that_failed_here_is_not_offered_again() {
    let served = tempfile::tempdir().expect("a directory");
    let dir = served.path().join("repo");
    let (first, bad) = (Release::shop("1.0.0"), Release::shop_with("1.1.0", ", \"--fault\", \"exit-at-start\""));
    repository(&dir, &[&bad]);
    let appliance = asking(&first, &dir.display().to_string());
    assert_eq!(check(&appliance)["newer"], "1.1.0");
    appliance.refit(&["install", "1.1.0"]).ends_with(70);
    appliance.settled("1.0.0");
    let checked = check(&appliance);
    assert_eq!(checked["newer"], Value::Null);
    assert!(checked["releases"][0]["failed_before"].is_string(), "{checked}");
    let text = appliance.refit(&["check"]).ends_with(0).stdout;
    assert!(text.contains("release 1.1.0 failed here; refit install 1.1.0 tries it again"), "{text}");
    repository(&dir, &[&Release::shop("1.2.0")]);
    assert_eq!(check(&appliance)["newer"], "1.2.0");
}

#[test]
fn a_server_may_forbid_what_is_not_there_and_move_within_http() {
    let served = tempfile::tempdir().expect("a directory");
    let dir = served.path().join("repo");
    repository(&dir, &[&Release::shop("1.1.0")]);
    let forbidding = Web::serve_as(&dir, Manner::Forbids);
    let moved = Web::serve_as(&dir, Manner::Moved(forbidding.url()));
    let appliance = asking(&Release::shop("1.0.0"), &moved.url());
    assert_eq!(check(&appliance)["newer"], "1.1.0");
    appliance.refit(&["install", "1.1.0"]).ends_with(0);
    appliance.settled("1.1.0");
}

#[test]
fn a_repository_that_is_elsewhere_is_no_question_of_trust() {
    let served = tempfile::tempdir().expect("a directory");
    let moved = Web::serve_as(served.path(), Manner::Moved("https://updates.example.com".to_owned()));
    let empty = Web::serve(served.path());
    let directory = served.path().join("not-mounted").display().to_string();
    for (address, says) in [
        (moved.url(), "elsewhere: https://updates.example.com/metadata"),
        (empty.url(), "timestamp.json is missing"),
        (directory, "timestamp.json is missing"),
    ] {
        let line = asking(&Release::bare("1.0.0"), &address).refit(&["check"]).complains_with(75);
        assert!(line.contains(&format!("{address} cannot be read")) && line.contains(says), "{line}");
    }
}

#[test]
fn a_server_that_brings_next_to_nothing_is_given_up() {
    let served = tempfile::tempdir().expect("a directory");
    let web = Web::serve_as(served.path(), Manner::Drips);
    let keys = format!("repository = \"{}\"\nreceive_timeout = \"3s\"", web.url());
    let appliance = with_update_key(Appliance::new(&Release::bare("1.0.0")), &keys).start();
    let line = appliance.refit(&["check"]).complains_with(75);
    assert!(line.contains("bytes came in"), "{line}");
    appliance.install(&Release::bare("1.1.0"), &[]).ends_with(0);
}

#[test]
fn whoever_stops_waiting_for_a_server_lets_others_install() {
    let served = tempfile::tempdir().expect("a directory");
    let web = Web::serve_as(served.path(), Manner::Drips);
    let appliance = asking(&Release::bare("1.0.0"), &web.url());
    let mut command = refit();
    command.args(["check", "--home"]).arg(appliance.home()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut waiting = command.spawn().expect("start refit");
    eventually(LIMIT, "the server is asked", || !web.asked().is_empty());
    let line = appliance.install(&Release::bare("1.1.0"), &[]).complains_with(75);
    assert!(line.contains("another package is being received"), "{line}");
    waiting.kill().and_then(|()| waiting.wait()).expect("end it");
    eventually(LIMIT, "others may install", || appliance.install(&Release::bare("1.1.0"), &[]).code == 0);
}

#[test]
fn a_url_that_breaks_off_is_not_the_appliances_fault() {
    let served = tempfile::tempdir().expect("a directory");
    let package = Release::shop("1.1.0").package();
    fs::copy(package, served.path().join("next.refit")).expect("copy");
    let web = Web::serve_as(served.path(), Manner::Cuts);
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let url = format!("{}/next.refit", web.url());
    let line = appliance.refit(&["install", &url]).complains_with(75);
    assert!(line.contains(&format!("cannot fetch {url}")), "{line}");
    // What is not there is not there later, either; the case of a scheme says nothing.
    let url = format!("{}/nowhere.refit", web.url().replace("http://", "HTTP://"));
    let line = appliance.refit(&["install", &url]).complains_with(64);
    assert!(line.contains(&format!("cannot fetch {url}")) && line.contains("404"), "{line}");
    assert_eq!(appliance.status()["release"]["version"], "1.0.0");
}

#[test]
fn a_password_in_the_address_is_not_shown() {
    let appliance = asking(&Release::bare("1.0.0"), "http://depot:secret@127.0.0.1:1/gateway");
    assert_eq!(appliance.status()["repository"], "http://depot:***@127.0.0.1:1/gateway");
    let line = appliance.refit(&["check"]).complains_with(75);
    assert!(!line.contains("secret"), "{line}");
}

#[test]
fn an_update_that_is_asked_of_the_bus_fetches_its_release() {
    let served = tempfile::tempdir().expect("a directory");
    let dir = served.path().join("repo");
    let old = Release::bare("1.0.0").member("site", &["a"], "allow = [\"update\"]");
    let newer = |version: &str| Release::bare(version).member("site", &["a"], "allow = [\"update\"]");
    repository(&dir, &[&old]);
    let appliance = asking(&old, dir.to_str().expect("text"));
    let request = |words: &[&str]| appliance.refit(&[&["bus", "request"], words].concat());
    // Nothing is newer; nothing has that version; and nothing else has one.
    request(&["update"]).ends_with(0);
    let line = request(&["update", "1.1.0"]).complains_with(65);
    assert!(line.contains("no release 1.1.0"), "{line}");
    let line = request(&["reload", "1.1.0"]).complains_with(64);
    assert!(line.contains("only update and rollback go to one"), "{line}");
    assert_eq!(appliance.status()["release"]["version"], "1.0.0");

    repository(&dir, &[&newer("1.1.0"), &newer("1.2.0"), &newer("1.3.0")]);
    request(&["update", "1.1.0"]).ends_with(0);
    appliance.settled("1.1.0");
    request(&["update"]).ends_with(0);
    appliance.settled("1.3.0");
    // One that is here needs no repository.
    fs::rename(&dir, served.path().join("away")).expect("moved");
    request(&["update", "1.1.0"]).ends_with(0);
    appliance.settled("1.1.0");
    request(&["rollback", "1.3.0"]).ends_with(0);
    appliance.settled("1.3.0");
    let line = request(&["update"]).complains_with(75);
    assert!(line.contains("cannot be read"), "{line}");
    fs::rename(served.path().join("away"), &dir).expect("moved back");
    // Who asks over HTTP gets the same ticket.
    repository(&dir, &[&newer("1.4.0")]);
    let body = json!({ "request": "update", "version": "1.4.0" });
    let answer = Request::new(&appliance.socket(), "POST", "/api/v1/bus/requests").json(&body).send();
    assert_eq!(answer.status, 202, "{}", answer.text());
    appliance.settled("1.4.0");
    let ticket = answer.json()["ticket"]["id"].as_str().expect("a name").to_owned();
    let path = format!("/api/v1/bus/requests/{ticket}");
    let found = Request::new(&appliance.socket(), "GET", &path).send().json();
    assert_eq!(found["ticket"]["state"], "done", "{found}");
}
