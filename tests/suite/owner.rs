//! Root works on the home of another account, which goes on owning it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use refit_fixtures::tools::{as_root, copy_program};

use crate::appliance::{Appliance, Ran};
use crate::release::{REFIT, Release, Vendor};

/// An account and a group that no machine needs to know.
const OWNER: (u32, u32) = (4_711, 4_712);

#[test]
fn the_home_of_another_account_is_said_to_be_that() {
    if !as_root() {
        return;
    }
    let appliance = Appliance::new(&Release::bare("1.0.0"));
    fs::set_permissions(appliance.scratch(), fs::Permissions::from_mode(0o755)).expect("opened");
    let program = appliance.scratch().join("refit");
    copy_program(Path::new(REFIT), &program);
    let package = Release::bare("1.1.0").package().display().to_string();
    let root = Vendor::get().root().display().to_string();
    let reads = [["history"].as_slice(), &["releases"], &["recover"], &["verify"], &["config", "check"]];
    let writes = [
        ["run"].as_slice(),
        &["rollback"],
        &["recover", "1.0.0"],
        &["install", &package],
        &["user", "passwd", "--generate"],
        &["trust", "reset", &root],
    ];
    let refused = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(words).arg("--home").arg(appliance.home()).env_clear().uid(OWNER.0).gid(OWNER.1);
        let line = Ran::of(&mut command).complains_with(69);
        assert!(line.contains("belongs to the account root, and is closed to this account"), "{words:?}: {line}");
        assert!(line.contains("`sudo refit ...`"), "{words:?}: {line}");
    };
    fs::set_permissions(appliance.home(), fs::Permissions::from_mode(0o755)).expect("opened");
    let journal = appliance.home().join("state.json");
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o644)).expect("opened");
    writes.iter().for_each(|words| refused(words));
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o640)).expect("closed");
    writes.iter().chain(&reads).for_each(|words| refused(words));
}

/// Returns what below `dir` does not belong to [`OWNER`].
fn others(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("list").flatten() {
        let metadata = fs::symlink_metadata(entry.path()).expect("look at it");
        if (metadata.uid(), metadata.gid()) != OWNER {
            found.push(entry.path().display().to_string());
        }
        if metadata.is_dir() {
            found.extend(others(&entry.path()));
        }
    }
    found
}

#[test]
fn what_root_replaces_belongs_to_whom_it_belonged() {
    if !as_root() {
        return;
    }
    let appliance = Appliance::new(&Release::bare("1.0.0"));
    let owner = format!("{}:{}", OWNER.0, OWNER.1);
    let chown = Command::new("chown").args(["-hR", &owner]).arg(appliance.home()).output().expect("run chown");
    assert!(chown.status.success(), "{}", String::from_utf8_lossy(&chown.stderr));
    let root = Vendor::get().root();
    let root = root.to_str().expect("text");
    for words in [&["user", "passwd", "--generate"][..], &["trust", "reset", root]] {
        appliance.refit(words).ends_with(0);
        assert_eq!(others(appliance.home()), [""; 0], "{words:?}");
    }
    let users = fs::metadata(appliance.home().join("auth/users.json")).expect("it is there");
    assert_eq!(users.mode() & 0o7777, 0o600);
    // One that is new belongs to whom its directory belongs.
    fs::remove_file(appliance.home().join("auth/users.json")).expect("remove");
    fs::remove_dir(appliance.home().join("auth")).expect("remove");
    appliance.refit(&["user", "passwd", "--generate"]).ends_with(0);
    assert_eq!(others(appliance.home()), [""; 0]);
}
