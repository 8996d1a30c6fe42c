//! What an interrupted write, update or removal has left is gone after the next start, and nothing else is.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use refit_updater::durable;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::release::Release;

/// Returns a release with a configuration.
fn configured(version: &str) -> Release {
    Release::bare(version).file("config/a.conf", &format!("a of {version}\n")).file("config/sub/b.conf", "b\n")
}

/// Returns what the journal says of the good releases.
fn good(appliance: &Appliance) -> Value {
    let text = fs::read(appliance.home().join("state.json")).expect("read the journal");
    serde_json::from_slice::<Value>(&text).expect("JSON")["good"].clone()
}

fn restart(appliance: &mut Appliance) {
    appliance.run_guard();
    appliance.wait_running();
}

#[test]
fn what_interrupted_writes_left_is_gone_after_a_start() {
    let mut appliance = Appliance::new(&configured("1.0.0")).start();
    appliance.install(&configured("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    appliance.stop();
    let at = |path: &str| appliance.home().join(path);
    let left = ["", "run/", "auth/", "trust/", "releases/", "config/", "config/.merged/"]
        .map(|dir| format!("{dir}.tmpaB3dE6"));
    // Those of others, and one that is being written.
    let kept = ["data/.tmpaB3dE6", "config/1.1.0/.tmpaB3dE6", ".tmp-notes", "auth/.tmpheld00"];
    for path in left.iter().map(String::as_str).chain(kept) {
        fs::write(at(path), "half").expect("write a file");
    }
    symlink("releases/1.0.0", at(".linkaB3dE6")).expect("make a link");
    symlink("nowhere", at("run/.linkaB3dE6")).expect("make a link");
    fs::create_dir_all(at(".tmpfulldir/below")).expect("make a directory");
    let held = File::open(at("auth/.tmpheld00")).expect("open it");
    flock(&held, FlockOperation::LockExclusive).expect("hold it");
    let (left, kept) = (left.map(|path| at(&path)), kept.map(at));
    let others = [".linkaB3dE6", "run/.linkaB3dE6", ".tmpfulldir"].map(at);
    restart(&mut appliance);
    for path in left.iter().chain(&others) {
        assert!(fs::symlink_metadata(path).is_err(), "{} is left", path.display());
    }
    for path in &kept {
        assert_eq!(fs::read_to_string(path).expect("it is there"), "half", "{}", path.display());
    }
    assert_eq!(appliance.status()["release"]["version"], "1.1.0");
}

#[test]
fn configurations_without_a_release_go_unless_they_are_edited() {
    let mut appliance =
        Appliance::new(&configured("1.0.0")).local(|text| text.replace("[update]", "[update]\nkeep = 9"));
    appliance.run_guard();
    appliance.wait_running();
    for version in ["1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0"] {
        appliance.install(&configured(version), &[]).ends_with(0);
        appliance.settled(version);
    }
    appliance.stop();
    let at = |path: &str| appliance.home().join(path);
    // Each way of editing, and none.
    fs::write(at("config/1.1.0/sub/b.conf"), "mine\n").expect("edit a file");
    fs::write(at("config/1.2.0/sub/mine"), "mine\n").expect("add a file");
    fs::remove_file(at("config/1.3.0/a.conf")).expect("remove a file");
    for version in ["1.0.0", "1.1.0", "1.2.0", "1.3.0"] {
        durable::remove_tree(&at(&format!("releases/{version}"))).expect("remove a release");
    }
    // One that Refit knows nothing of may be anything; one that is empty is nothing.
    fs::create_dir_all(at("config/9.0.0")).expect("make a directory");
    fs::write(at("config/9.0.0/mine"), "mine\n").expect("write a file");
    fs::create_dir_all(at("config/9.1.0")).expect("make a directory");
    fs::create_dir_all(at("config/notes")).expect("make a directory");
    assert_eq!(good(&appliance), json!(["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0"]));
    restart(&mut appliance);
    let at = |path: &str| appliance.home().join(path);
    for (path, stays) in [
        ("config/1.0.0", false),
        ("config/.merged/1.0.0", false),
        ("config/1.1.0/sub/b.conf", true),
        ("config/1.2.0/sub/mine", true),
        ("config/1.3.0/sub/b.conf", true),
        ("config/1.4.0/a.conf", true),
        ("config/1.5.0/a.conf", true),
        ("config/9.0.0/mine", true),
        ("config/9.1.0", false),
        ("config/notes", true),
    ] {
        assert_eq!(at(path).exists(), stays, "{path}");
    }
    assert_eq!(fs::read_to_string(at("config/1.1.0/sub/b.conf")).expect("read"), "mine\n");
    assert_eq!(good(&appliance), json!(["1.4.0", "1.5.0"]));
    // What is gone is not offered, and what is there works.
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.4.0");
    appliance.refit(&["rollback", "1.1.0"]).ends_with(64);
}
