//! The live configuration is the admin's directory and may hold anything: nothing in it stops the appliance, nothing is lost, and what
//! cannot be read or merged is named.

use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use refit_fixtures::tools::as_root;
use serde_json::{Value, json};

use crate::appliance::{Appliance, Ran, refit};
use crate::release::{Release, Vendor};

/// What cannot be read of what [`fill`] makes, in order.
const UNREAD: [&str; 5] = [".#shop.toml", "loop", "pipe", "socket", "zero"];

fn live(appliance: &Appliance, version: &str) -> PathBuf {
    appliance.home().join("config").join(version)
}

fn read(appliance: &Appliance, version: &str, name: &str) -> String {
    fs::read_to_string(live(appliance, version).join(name)).unwrap_or_else(|error| panic!("{version} {name}: {error}"))
}

/// Puts one of everything into the directory `dir`.
fn fill(dir: &Path) {
    symlink("admin@desk.4711:17", dir.join(".#shop.toml")).expect("an editor's lock");
    symlink("loop", dir.join("loop")).expect("a link to itself");
    symlink("/dev/zero", dir.join("zero")).expect("a link to a device");
    symlink("sub", dir.join("dir")).expect("a link to a directory");
    symlink("..", dir.join("up")).expect("a link upwards");
    nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    drop(UnixListener::bind(dir.join("socket")).expect("a socket"));
    fs::create_dir(dir.join("sub")).expect("a directory");
    fs::write(dir.join("sub/own.conf"), "mine").expect("a file");
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"odd\xff")), "mine").expect("a name that is not UTF-8");
    File::create(dir.join("huge")).and_then(|file| file.set_len(1 << 40)).expect("a file of 1 TiB, which is one hole");
}

fn unread(status: &Value) -> Vec<&str> {
    let found = status["config"]["unread"].as_array().expect("a list");
    found.iter().map(|unread| unread["path"].as_str().expect("a path")).collect()
}

#[test]
fn whatever_lies_in_it_the_appliance_starts_updates_goes_back_and_names_it() {
    let appliance = Appliance::new(&Release::shop("1.0.0"));
    fill(&live(&appliance, "1.0.0"));
    let check = || appliance.refit(&["config", "check"]).ends_with(0).stdout;
    for name in UNREAD {
        assert!(check().contains(&format!("warning: config/1.0.0/{name} cannot be read: ")), "{}", check());
    }
    let checked = appliance.refit(&["config", "check", "--json"]).ends_with(0).objects();
    assert_eq!(unread(&json!({ "config": checked[0] })), UNREAD);
    let mut appliance = appliance.start();
    assert_eq!(unread(&appliance.status()), UNREAD);
    let shown = appliance.refit(&["status"]).ends_with(0).stdout;
    assert!(shown.contains("warning: config/1.0.0/pipe cannot be read: it is a named pipe\n"), "{shown}");

    let installed = appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0).stdout;
    let told = "config/1.0.0/pipe was not carried over to config/1.1.0: it is a named pipe";
    assert!(installed.contains(told), "{installed}");
    appliance.settled("1.1.0");
    let next = live(&appliance, "1.1.0");
    assert_eq!(
        (read(&appliance, "1.1.0", "dir/own.conf"), read(&appliance, "1.1.0", "sub/own.conf")),
        ("mine".into(), "mine".into())
    );
    assert_eq!(fs::read_link(next.join(".#shop.toml")).expect("the lock"), Path::new("admin@desk.4711:17"));
    assert!(next.join(std::ffi::OsStr::from_bytes(b"odd\xff")).exists() && next.join("huge").exists());
    assert_eq!(unread(&appliance.status()), [".#shop.toml", "loop", "zero"]);
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.0.0");
    appliance.kill_guard();
    appliance.run_guard();
    appliance.wait_running();
    assert_eq!(unread(&appliance.status()), UNREAD);
}

#[test]
fn a_package_with_links_below_its_configuration_packs_starts_and_is_updated_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let pack = |version: &str| {
        let tree = dir.path().join(version);
        Release::shop(version).file("config/sites/a.conf", version).write(&tree);
        symlink("sites", tree.join("config/enabled")).expect("a link to a directory");
        symlink("../shop.toml", tree.join("config/sites/shop.toml")).expect("a link to a file");
        let checked = Ran::of(refit().args(["config", "check"]).arg(&tree)).ends_with(0);
        assert_eq!(checked.stdout, "no mistakes\n");
        let out = dir.path().join(format!("{version}.refit"));
        Ran::of(refit().arg("pack").arg(&tree).arg("--keys").arg(Vendor::get().keys()).arg("-o").arg(&out))
            .ends_with(0);
        out
    };
    let (first, next) = (pack("1.0.0"), pack("1.1.0"));
    let appliance = Appliance::of_package(&Release::shop("1.0.0"), &first, &Vendor::get().root()).start();
    assert_eq!(read(&appliance, "1.0.0", "enabled/a.conf"), "1.0.0");
    appliance.install_package(&next, &[]).ends_with(0);
    assert_eq!(read(&appliance, "1.1.0", "enabled/a.conf"), "1.1.0");
    assert_eq!(unread(&appliance.settled("1.1.0")), Vec::<&str>::new());
}

#[test]
fn an_entry_that_changes_its_kind_stops_no_update_and_the_admins_stays() {
    let appliance = Appliance::new(
        &Release::shop("1.0.0").file("config/a/in.conf", "1").file("config/b", "1").file("config/c/in.conf", "1"),
    )
    .start();
    let at = live(&appliance, "1.0.0");
    fs::write(at.join("a/in.conf"), "mine").expect("edit a file of a directory that becomes a file");
    fs::write(at.join("b"), "mine").expect("edit a file that becomes a directory");
    fs::write(at.join("d"), "mine").expect("make a file where the release will have a directory");
    fs::write(at.join("d.new"), "mine, too").expect("take the name beside it");
    fs::write(at.join("c/own.conf"), "mine").expect("make a file in a directory that is dropped");
    let next = Release::shop("1.1.0").file("config/a", "2").file("config/b/in.conf", "2").file("config/d/in.conf", "2");
    let installed = appliance.install(&next, &[]).ends_with(0).stdout;
    let is = |name: &str| read(&appliance, "1.1.0", name);
    for name in ["a/in.conf", "b", "d", "c/own.conf"] {
        assert_eq!(is(name), "mine", "{name}");
    }
    assert_eq!(
        (is("a.new"), is("b.new/in.conf"), is("d.new"), is("d.new.1/in.conf")),
        ("2".into(), "2".into(), "mine, too".into(), "2".into())
    );
    assert!(!live(&appliance, "1.1.0").join("c/in.conf").exists());
    let status = appliance.settled("1.1.0");
    let waiting = ["a", "b", "d"].map(|path| {
        let new_default = if path == "d" { "d.new.1".to_owned() } else { format!("{path}.new") };
        json!({ "path": path, "new_default": new_default, "because": "kind" })
    });
    for file in &waiting {
        let told = format!(
            "config/1.1.0/{} is as you left it; the release's default, which is of another kind",
            file["path"].as_str().expect("a path")
        );
        assert!(installed.contains(&told), "{told}: {installed}");
        assert!(status["config"]["unmerged"].as_array().is_some_and(|found| found.contains(file)), "{status}");
    }
}

#[test]
fn edits_come_back_with_the_release_that_they_were_made_in() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let next = Release::shop("2.1.0").file("config/extra.conf", "default");
    appliance.install(&next, &[]).ends_with(0);
    appliance.settled("2.1.0");
    let edited = read(&appliance, "2.1.0", "shop.toml").replace("unit = \"m\"", "unit = \"ft\"");
    fs::write(live(&appliance, "2.1.0").join("shop.toml"), edited).expect("edit it");
    fs::write(live(&appliance, "2.1.0").join("extra.conf"), "edited in 2.1.0").expect("edit it");
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.0.0");
    assert!(read(&appliance, "1.0.0", "shop.toml").contains("unit = \"m\""));
    fs::write(live(&appliance, "1.0.0").join("extra.conf"), "made in 1.0.0").expect("make it");

    let installed = appliance.install(&next, &[]).ends_with(0).stdout;
    assert!(read(&appliance, "2.1.0", "shop.toml").contains("unit = \"ft\""), "the edit is back");
    assert!(installed.contains("config/2.1.0/shop.toml is as you left it when this release ran before"), "{installed}");
    let both = ["extra.conf", "extra.conf.old"].map(|name| read(&appliance, "2.1.0", name));
    assert_eq!(both, ["made in 1.0.0", "edited in 2.1.0"]);
    assert!(installed.contains("config/2.1.0/extra.conf.old is what you had made of extra.conf"), "{installed}");
}

#[test]
fn modes_owners_and_attributes_come_back_as_other_edits_do() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let next = Release::shop("2.1.0").file("config/secret.conf", "default").file("config/plain.conf", "default");
    appliance.install(&next, &[]).ends_with(0);
    appliance.settled("2.1.0");
    let secret = live(&appliance, "2.1.0").join("secret.conf");
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("chmod");
    if as_root() {
        chown(&secret, Some(1_234), Some(1_234)).expect("chown");
    }
    let looks = || {
        let found = fs::metadata(&secret).expect("it is there");
        (found.permissions().mode() & 0o7777, found.uid())
    };
    let edited = looks();
    assert_eq!(edited.0, 0o600);
    for way in ["version", "package"] {
        appliance.refit(&["rollback"]).ends_with(0);
        appliance.settled("1.0.0");
        let installed = match way {
            "version" => appliance.refit(&["install", "2.1.0"]),
            _ => appliance.install(&next, &[]),
        };
        let text = installed.ends_with(0).stdout;
        appliance.settled("2.1.0");
        assert_eq!(looks(), edited, "{way}");
        assert!(
            text.contains("config/2.1.0/secret.conf is as you left it when this release ran before"),
            "{way}: {text}"
        );
        assert!(!text.contains("plain.conf"), "{way}: {text}");
    }
}

#[test]
fn a_conflict_that_is_over_is_not_spoken_of() {
    let release = |version: &str, held: &str| Release::shop(version).file("config/x.conf", held);
    let appliance = Appliance::new(&release("1.0.0", "x = 1\n")).start();
    let waits = |version: &str| {
        let status = appliance.settled(version);
        let list = status["config"]["unmerged"].as_array().expect("a list");
        list.iter().map(|file| file["path"].as_str().expect("a path").to_owned()).collect::<Vec<_>>()
    };
    let edit = |version: &str, held: &str| fs::write(live(&appliance, version).join("x.conf"), held).expect("edited");
    let left = |version: &str| live(&appliance, version).join("x.conf.new").exists();
    edit("1.0.0", "x = 2\n");
    appliance.install(&release("1.1.0", "x = 3\n"), &[]).ends_with(0);
    assert_eq!((waits("1.1.0"), left("1.1.0")), (vec!["x.conf".to_owned()], true));
    // It waits as long as the default stays.
    appliance.install(&release("1.2.0", "x = 3\n"), &[]).ends_with(0);
    assert_eq!((waits("1.2.0"), left("1.2.0")), (vec!["x.conf".to_owned()], true));
    // The release has what the admin has.
    appliance.install(&release("1.3.0", "x = 2\n"), &[]).ends_with(0);
    assert_eq!((waits("1.3.0"), left("1.3.0")), (Vec::new(), false));
    // The admin takes the default.
    edit("1.3.0", "x = 4\n");
    appliance.install(&release("1.4.0", "x = 5\n"), &[]).ends_with(0);
    assert_eq!(waits("1.4.0"), ["x.conf"]);
    edit("1.4.0", "x = 5\n");
    assert_eq!((waits("1.4.0"), left("1.4.0")), (Vec::new(), true));
    appliance.install(&release("1.5.0", "x = 6\n"), &[]).ends_with(0);
    assert_eq!((waits("1.5.0"), left("1.5.0")), (Vec::new(), false));
    assert_eq!(read(&appliance, "1.5.0", "x.conf"), "x = 6\n");
}
