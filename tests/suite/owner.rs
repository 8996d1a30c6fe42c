//! Root works on the home of another account, which goes on owning it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use refit_fixtures::tools::as_root;

use crate::appliance::Appliance;
use crate::release::{Release, Vendor};

/// An account and a group that no machine needs to know.
const OWNER: (u32, u32) = (4_711, 4_712);

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
