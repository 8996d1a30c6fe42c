//! Releases that are no longer needed leave the disk: by themselves, and when an operator says so.

use std::fs;
use std::net::TcpListener;

use refit_updater::durable;

use crate::appliance::{Appliance, text};
use crate::http::Request;
use crate::mounting::{assert_may_mount, assert_passes_where_it_may_mount, end_at_once, onto_a_small_disk, unmount};
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// Returns a release whose component fails in its trial.
fn failing(version: &str) -> Release {
    Release::bare(version).component("faulty", "command = [\"sh\", \"-c\", \"exit 3\"]")
}

/// Returns a release that fails before its trial while `held` is there: it wants that address.
fn not_startable(version: &str, held: &TcpListener) -> Release {
    let address = held.local_addr().expect("an address");
    let toml = format!(
        "[appliance]\nname = \"shop\"\nversion = \"{version}\"\n\n[listeners]\nadmin = \"127.0.0.1:0\"\nheld = \"{address}\"\n"
    );
    Release::bare(version).written_as(&toml)
}

/// Returns what lies in a directory of the home, in order, without hidden entries.
fn in_dir(appliance: &Appliance, dir: &str) -> Vec<String> {
    let entries = fs::read_dir(appliance.home().join(dir)).expect("read a directory").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}

fn wait_releases(appliance: &Appliance, expected: &[&str]) {
    eventually(LIMIT, &format!("the releases are {expected:?}"), || in_dir(appliance, "releases") == expected);
    eventually(LIMIT, "and their configurations", || {
        in_dir(appliance, "config").iter().all(|name| expected.contains(&name.as_str()))
    });
}

/// Asks for the removal of a release that has to stay; returns code and line.
fn refused(appliance: &Appliance, version: &str, exit: i32) -> (String, String) {
    let line = appliance.refit(&["releases", "remove", version]).complains_with(exit);
    let ran = appliance.refit(&["releases", "remove", version, "--json"]).ends_with(exit);
    let error = &ran.objects()[0]["error"];
    assert!(!text(&error["remedy"]).is_empty(), "{error}");
    (text(&error["code"]), line)
}

/// Whatever an attempt failed at, and however often: only the release of the last one is left.
#[test]
fn failed_attempts_leave_one_release_at_most() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    appliance.install(&failing("2.0.0"), &[]).ends_with(70);
    appliance.settled("1.0.0");
    wait_releases(&appliance, &["1.0.0", "2.0.0"]);
    // It may be tried again by its version, and fails again.
    appliance.refit(&["install", "2.0.0"]).ends_with(70);
    appliance.settled("1.0.0");
    let held = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    appliance.install(&not_startable("2.1.0", &held), &[]).ends_with(70);
    wait_releases(&appliance, &["1.0.0", "2.1.0"]);
    appliance.install(&failing("2.2.0"), &[]).ends_with(70);
    appliance.settled("1.0.0");
    wait_releases(&appliance, &["1.0.0", "2.2.0"]);
    // Why they failed stays known.
    let reasons: Vec<bool> = appliance.history().iter().map(|entry| entry["reason"].is_string()).collect();
    assert_eq!(reasons, [true; 4]);
    appliance.install(&Release::bare("2.3.0"), &[]).ends_with(0);
    wait_releases(&appliance, &["1.0.0", "2.3.0"]);
}

/// A smaller `keep` counts from the next start on.
#[test]
fn a_start_removes_what_is_not_kept_any_more() {
    let mut appliance = Appliance::new(&Release::bare("1.0.0")).start();
    for version in ["1.1.0", "1.2.0"] {
        appliance.install(&Release::bare(version), &[]).ends_with(0);
    }
    wait_releases(&appliance, &["1.0.0", "1.1.0", "1.2.0"]);
    appliance.stop();
    let mut appliance = appliance.local(|text| text.replace("[update]", "[update]\nkeep = 1"));
    appliance.run_guard();
    appliance.wait_running();
    wait_releases(&appliance, &["1.1.0", "1.2.0"]);
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.1.0");
}

/// What a start cannot put in order does not keep it from the rest.
#[test]
fn a_start_tidies_on_after_a_failure() {
    let mut appliance = Appliance::new(&Release::bare("1.0.0"));
    let (current, left) = (appliance.home().join("current"), appliance.home().join("staging/left"));
    durable::remove_tree(&current).expect("remove the link");
    fs::create_dir_all(current.join("something")).expect("put a directory there");
    fs::create_dir_all(left.join("below")).expect("leave something");
    appliance.run_guard();
    appliance.wait_running();
    eventually(LIMIT, "staging is empty", || !left.exists());
    // The line comes after the deed, and by way of the guard.
    eventually(LIMIT, "it is said", || appliance.log().contains("cannot tidy the home"));
    assert!(current.join("something").is_dir());
}

#[test]
fn an_operator_removes_what_is_not_needed() {
    let mut appliance = Appliance::new(&Release::bare("1.0.0")).start();
    for version in ["1.1.0", "1.2.0"] {
        appliance.install(&Release::bare(version), &[]).ends_with(0);
    }
    appliance.install(&failing("2.0.0"), &[]).ends_with(70);
    appliance.settled("1.2.0");
    let [running, last, unknown] =
        [("1.2.0", 70), ("1.1.0", 70), ("9.9.9", 64)].map(|(version, exit)| refused(&appliance, version, exit));
    assert_eq!(running.0, "release_runs", "{running:?}");
    assert!(running.1.contains("release 1.2.0 is the running one; update or roll back"), "{running:?}");
    assert_eq!(last.0, "release_needed", "{last:?}");
    assert!(last.1.contains("`refit rollback` goes back to; it can be removed after the next update"), "{last:?}");
    assert_eq!(unknown.0, "release_unknown", "{unknown:?}");
    let address = "/api/v1/releases/1.2.0";
    assert_eq!(Request::new(&appliance.socket(), "DELETE", address).send().status, 409);
    wait_releases(&appliance, &["1.0.0", "1.1.0", "1.2.0", "2.0.0"]);

    let removed = appliance.refit(&["releases", "remove", "2.0.0", "--json"]).ends_with(0).objects();
    assert_eq!(removed[0]["removed"], "2.0.0");
    assert!(removed[0]["installed_bytes"].is_u64(), "{removed:?}");
    // One that is damaged goes, too.
    let manifest = appliance.home().join("releases/1.0.0/.refit/manifest.json");
    durable::set_owner_write(manifest.parent().expect("a directory")).expect("make it writable");
    durable::remove_tree(&manifest).expect("damage it");
    appliance.refit(&["releases", "remove", "1.0.0"]).ends_with(0);
    wait_releases(&appliance, &["1.1.0", "1.2.0"]);

    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.1.0");
    appliance.stop();
    assert_eq!(refused(&appliance, "1.1.0", 70).0, "release_runs");
    assert_eq!(refused(&appliance, "1.2.0", 70).0, "release_needed");
    assert_eq!(refused(&appliance, "1.0.0", 64).0, "release_unknown");
    appliance.run_guard();
    appliance.wait_running();
}

#[test]
fn a_release_on_trial_is_not_removed() {
    let appliance = Appliance::new(&Release::bare("1.0.0"));
    let appliance = appliance.local(|text| text.replace("300ms", "1h")).start();
    let package = Release::bare("1.1.0").package();
    let mut install = crate::appliance::refit();
    install.arg("install").arg(package).arg("--home").arg(appliance.home());
    let mut install =
        install.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("install");
    eventually(LIMIT, "it is on trial", || {
        appliance
            .try_status()
            .is_some_and(|status| status["bus"]["state"] == "Running" && status["update"]["phase"] == "probation")
    });
    for version in ["1.0.0", "1.1.0"] {
        let (code, line) = refused(&appliance, version, 75);
        assert_eq!(code, "update_running", "{line}");
        assert!(line.contains("1.0.0 -> 1.1.0"), "{line}");
    }
    install.kill().expect("end the command");
    install.wait().expect("collect it");
    assert_eq!(in_dir(&appliance, "releases"), ["1.0.0", "1.1.0"]);
}

/// Returns `release` with a file of 20 MiB that no codec makes smaller, another one for each `seed`.
fn large(release: Release, seed: u32) -> Release {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + u8::try_from((state >> 33) % 95).expect("a small number"))
    };
    let noise: String = std::iter::repeat_with(&mut next).take(20 << 20).collect();
    release.file("share/noise", &noise)
}

/// Not a test by itself: what the child of the next one does.
#[test]
#[ignore = "run by the next test, where it may mount"]
fn child_makes_room_for_a_good_update() {
    assert_may_mount();
    let appliance = Appliance::new(&Release::bare("1.0.0"));
    onto_a_small_disk(appliance.home());
    let mut appliance = appliance.start();
    for (version, seed) in [("2.0.0", 0), ("2.1.0", 1), ("2.2.0", 2)] {
        appliance.install(&large(failing(version), seed), &[]).ends_with(70);
        appliance.settled("1.0.0");
    }
    // 20 of 64 MiB are those of 2.2.0; with 30 more in data/ no other such release fits beside it.
    fs::write(appliance.home().join("data/stored"), vec![1; 30 << 20]).expect("store something");
    appliance.install(&large(Release::bare("2.3.0"), 3), &[]).ends_with(0);
    wait_releases(&appliance, &["1.0.0", "2.3.0"]);
    // Nothing is left that could go: the refusal says what to do.
    let line = appliance.install(&large(Release::bare("2.4.0"), 4), &[]).complains_with(74);
    assert!(line.contains("refit releases remove VERSION"), "{line}");
    wait_releases(&appliance, &["1.0.0", "2.3.0"]);
    end_at_once(&mut appliance);
    unmount(appliance.home());
}

#[test]
fn failed_releases_make_room_for_a_good_update() {
    assert_passes_where_it_may_mount("tidy::child_makes_room_for_a_good_update");
}

#[test]
fn a_package_that_is_staged_can_be_removed() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let staged = || {
        let list = appliance.refit(&["releases", "--json"]).ends_with(0).objects().remove(0);
        let packages = list["staged"].as_array().expect("a list");
        packages.iter().map(|package| package["digest"].as_str().expect("a digest").to_owned()).collect::<Vec<_>>()
    };
    for version in ["1.1.0", "1.2.0"] {
        appliance.install(&Release::shop(version), &["--stage-only"]).ends_with(0);
    }
    appliance.refit(&["releases", "remove", "1.1.0"]).ends_with(0);
    let left = staged();
    assert_eq!(left.len(), 1);
    appliance.refit(&["releases", "remove", &left[0]]).ends_with(0);
    assert!(staged().is_empty());
    for gone in ["1.1.0", &left[0]] {
        appliance.refit(&["releases", "remove", gone]).complains_with(64);
    }
    appliance.refit(&["releases", "remove", "1.0.0"]).complains_with(70);
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
}
