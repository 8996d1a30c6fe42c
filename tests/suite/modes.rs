//! Accounts and modes: what Refit makes has the mode of its place under every umask, is put right at a start, and lets no other
//! account in; what a component's account does not reach is found before anything stops.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::User;
use refit_fixtures::tools::as_root;
use refit_updater::modes::{Kind, PLACES, Place};

use crate::appliance::{Appliance, Ran, refit};
use crate::http::Request;
use crate::release::{Release, Vendor};
use crate::wait::{LIMIT, until};

/// Every umask that a machine may have.
const UMASKS: [u32; 4] = [0o000, 0o022, 0o027, 0o077];
/// An account that no file of these tests belongs to.
const STRANGER: u32 = 65_534;

/// Says who it is and what it reaches.
const WHO: &str =
    "echo \"as $(id -u): $(cat \"$REFIT_CONFIG/who.toml\")\"\ncd \"$REFIT_DATA\" && echo entered\nexec sleep 1000\n";

/// A release whose component says who it is and what it reaches.
fn who(version: &str, keys: &str) -> Release {
    Release::bare(version)
        .component("who", &format!("command = [\"sh\", \"lib/who.sh\"]\nready = \"exec\"\n{keys}"))
        .file("lib/who.sh", WHO)
        .file("config/who.toml", "secret = 7\n")
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set its mode");
}

/// Returns a path below the home, or the home itself.
fn below(home: &Path, path: &str) -> PathBuf {
    if path.is_empty() { home.to_owned() } else { home.join(path) }
}

/// Returns the place in the table of what lies at `path` below a home.
fn place_of(path: &Path) -> Option<&'static Place> {
    let names: Vec<&str> = path.iter().map(|name| name.to_str().expect("text")).collect();
    PLACES.iter().find(|place| {
        let patterns: Vec<&str> = place.path.split('/').filter(|name| !name.is_empty()).collect();
        let fits = |(pattern, name): (&&str, &&str)| match *pattern {
            "*" => true,
            "VERSION" => semver::Version::parse(name).is_ok(),
            literal => literal == *name,
        };
        patterns.len() == names.len() && patterns.iter().zip(&names).all(fits)
    })
}

/// Returns what in a home has not the mode that it is made with, or no place; below a release and below `data/` others decide.
fn wrong_modes(home: &Path) -> Vec<String> {
    let (mut wrong, mut open) = (Vec::new(), vec![home.to_owned()]);
    while let Some(path) = open.pop() {
        let below = path.strip_prefix(home).expect("below the home");
        let looks = fs::symlink_metadata(&path).expect("look at it");
        let Some(place) = place_of(below) else {
            let is_known = below == Path::new("current") || below.starts_with("run/notify");
            let elsewhere = ["releases", "config", "data"].iter().any(|dir| below.starts_with(dir));
            if !is_known && !elsewhere {
                wrong.push(format!("{} has no place", below.display()));
            }
            continue;
        };
        // The test writes that one itself.
        if below != Path::new("local.toml") && looks.mode() & 0o777 != place.mode {
            wrong.push(format!("{} has {:04o}, not {:04o}", below.display(), looks.mode() & 0o7777, place.mode));
        }
        assert_eq!(looks.is_dir(), place.kind == Kind::Directory, "{}", below.display());
        if looks.is_dir() {
            open.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("an entry").path()));
        }
    }
    wrong
}

/// Opens the way to a home whose directory tempfile has closed.
fn open_way(appliance: &Appliance) {
    chmod(appliance.scratch(), 0o755);
}

/// Returns what the component `who` has said, when it has.
fn said(appliance: &Appliance) -> String {
    until(LIMIT, "it has said who it is", || {
        let text = appliance.refit(&["component", "logs", "who"]).ends_with(0).stdout;
        text.contains("entered").then_some(text)
    })
}

#[test]
fn what_is_made_has_the_mode_of_its_place_under_every_umask() {
    for umask in UMASKS {
        let appliance = Appliance::new_under(&who("1.0.0", ""), umask).start();
        said(&appliance);
        appliance.install(&who("1.1.0", ""), &[]).ends_with(0);
        appliance.settled("1.1.0");
        appliance.refit(&["user", "passwd", "--generate"]).ends_with(0);
        let mut inhibit = refit();
        inhibit.args(["bus", "inhibit", "--home"]).arg(appliance.home()).args(["--", "true"]);
        Ran::of(&mut appliance.under_umask(&inhibit)).ends_with(0);
        assert_eq!(wrong_modes(appliance.home()), [""; 0], "umask {umask:04o}");
        for version in ["1.0.0", "1.1.0"] {
            appliance.refit(&["verify", version]).ends_with(0);
        }
        let config = appliance.home().join("config/1.1.0/who.toml");
        assert_eq!(mode(&config), 0o644, "the modes of its files are content");
        let log = appliance.log();
        assert!(!log.contains("had the mode") || log.matches("had the mode").count() == 1, "only local.toml: {log}");
    }
}

#[test]
fn a_component_with_an_account_runs_under_every_umask() {
    if !as_root() {
        return;
    }
    for umask in UMASKS {
        let appliance = Appliance::new_under(&who("1.0.0", "user = \"nobody\"\nsupplementary_groups = []"), umask);
        open_way(&appliance);
        let appliance = appliance.start();
        let nobody = User::from_name("nobody").expect("look it up").expect("every machine has it").uid;
        let text = said(&appliance);
        assert!(text.contains(&format!("as {nobody}: secret = 7")), "umask {umask:04o}: {text}");
        appliance.refit(&["config", "check"]).ends_with(0);
        appliance.install(&who("1.1.0", "user = \"daemon\""), &[]).ends_with(0);
        appliance.settled("1.1.0");
        let daemon = User::from_name("daemon").expect("look it up").expect("every machine has it").uid;
        until(LIMIT, "the next one has said who it is", || {
            said(&appliance).contains(&format!("as {daemon}: secret = 7")).then_some(())
        });
        assert_eq!(wrong_modes(appliance.home()), [""; 0], "umask {umask:04o}");
        // The configuration is for those accounts, and for no other.
        for (version, account, code) in [("1.0.0", nobody, 0), ("1.1.0", daemon, 0), ("1.1.0", nobody, 1)] {
            let file = appliance.home().join("config").join(version).join("who.toml");
            let ran = as_account(account.as_raw(), "cat \"$0\"", &file);
            assert_eq!(ran.code, code, "{account} and {version}: {}", ran.stderr);
        }
    }
}

/// Runs a shell's command as another account.
fn as_account(uid: u32, script: &str, path: &Path) -> Ran {
    let mut shell = Command::new("sh");
    Ran::of(shell.args(["-c", script]).arg(path).uid(uid).gid(uid).current_dir("/"))
}

#[test]
fn no_other_account_becomes_admin_or_reads_what_is_secret() {
    if !as_root() {
        return;
    }
    let appliance = Appliance::new_under(&who("1.0.0", ""), 0o000);
    open_way(&appliance);
    let appliance = appliance.start();
    said(&appliance);
    appliance.install(&who("1.1.0", ""), &[]).ends_with(0);
    appliance.settled("1.1.0");
    let home = appliance.home();
    for (script, path) in [
        ("cat \"$0\"", "auth/users.json"),
        ("ls \"$0\"", "auth"),
        ("echo '{}' >\"$0\"", "auth/users.json"),
        ("touch \"$0\"", "auth/another.json"),
        ("mv \"$0\" \"$0.old\"", "auth"),
        ("mv \"$0\" \"$0.old\"", "trust"),
        ("echo >>\"$0\"", "trust/root.json"),
        ("touch \"$0\"", "trust/another.json"),
        ("cat \"$0\"", "history.jsonl"),
        ("cat \"$0\"", "state.json"),
        ("echo >>\"$0\"", "state.json"),
        ("cat \"$0\"", "local.toml"),
        ("echo >>\"$0\"", "local.toml"),
        ("touch \"$0\"", "another"),
        ("touch \"$0\"", "run/another"),
        ("rm -f \"$0\"", "run/refit.sock"),
        ("cat \"$0\"", "run/lock"),
        ("ls \"$0\"", "config/1.1.0"),
        ("cat \"$0\"", "config/1.1.0/who.toml"),
        ("touch \"$0\"", "config/another"),
        ("ls \"$0\"", "log"),
        ("ls \"$0\"", "staging"),
        ("touch \"$0\"", "releases/another"),
        ("curl -sf --unix-socket \"$0\" http://x/api/v1/status", "run/refit.sock"),
    ] {
        let ran = as_account(STRANGER, script, &home.join(path));
        assert_ne!(ran.code, 0, "{script} {path}: {}", ran.stdout);
    }
    let login = |password: &str| {
        let body = serde_json::json!({ "user": "admin", "password": password });
        Request::new(&appliance.admin(), "POST", "/api/v1/session").json(&body).send().status
    };
    assert_eq!((login("a password of the stranger"), login(appliance.password())), (401, 200));
    // What everybody needs is open all the same.
    for path in ["releases/1.1.0/lib/who.sh", "trust/root.json", "run/pid"] {
        as_account(STRANGER, "cat \"$0\"", &home.join(path)).ends_with(0);
    }
}

#[test]
fn damaged_modes_are_repaired_at_a_start_and_said() {
    let mut appliance = Appliance::new(&who("1.0.0", ""));
    let home = appliance.home().to_owned();
    appliance.run_guard();
    appliance.wait_running();
    appliance.install(&who("1.1.0", ""), &[]).ends_with(0);
    appliance.settled("1.1.0");
    let damage = [
        ("releases/1.1.0/lib/who.sh", 0o000, 0o444),
        ("releases/1.1.0/lib", 0o700, 0o555),
        ("releases/1.1.0/.refit", 0o700, 0o555),
        ("releases/1.1.0", 0o700, 0o555),
        ("releases/1.0.0", 0o777, 0o555),
        ("releases", 0o700, 0o711),
        ("config/1.1.0", 0o777, 0o750),
        ("config/1.0.0", 0o000, 0o750),
        ("config", 0o775, 0o755),
        ("auth/users.json", 0o666, 0o600),
        ("auth", 0o777, 0o700),
        ("trust/root.json", 0o664, 0o644),
        ("trust", 0o775, 0o755),
        ("history.jsonl", 0o644, 0o640),
        ("state.json", 0o666, 0o640),
        ("local.toml", 0o666, 0o640),
        ("staging", 0o755, 0o700),
        ("data", 0o700, 0o711),
        ("log", 0o755, 0o750),
        ("run/lock", 0o666, 0o600),
        ("run", 0o000, 0o711),
        ("", 0o777, 0o755),
    ];
    let spoil = || damage.iter().for_each(|(path, spoilt, _)| chmod(&home.join(path), *spoilt));
    let check = |log: &str, when: &str| {
        for (path, spoilt, repaired) in damage {
            let path = below(&home, path);
            let found = mode(&path);
            assert_eq!(found, repaired, "{when}: {} has {found:04o}", path.display());
            let line = format!("{} had the mode {spoilt:04o}, which is ", path.display());
            assert!(log.contains(&line), "{when}: {line:?} is not in: {log}");
        }
    };
    // Before a start.
    appliance.stop();
    spoil();
    appliance.run_guard();
    appliance.wait_running();
    check(&appliance.log(), "before a start");
    said(&appliance);
    // Or where this account cannot even look into its own home.
    appliance.stop();
    chmod(&home, 0o000);
    appliance.run_guard();
    appliance.wait_running();
    assert_eq!(mode(&home) & 0o711, 0o711);
}

#[test]
fn modes_that_are_damaged_while_it_runs_are_repaired_by_the_next_runtime() {
    let appliance = Appliance::new(&who("1.0.0", "")).start();
    let home = appliance.home();
    let pid = appliance.component_pid("who");
    chmod(&home.join("auth"), 0o777);
    chmod(&home.join("trust"), 0o775);
    chmod(&home.join("releases/1.0.0"), 0o700);
    appliance.kill_runtime();
    assert_eq!(
        [mode(&home.join("auth")), mode(&home.join("trust")), mode(&home.join("releases/1.0.0"))],
        [0o700, 0o755, 0o555]
    );
    assert!(
        appliance.log().contains("auth had the mode 0777, which is too open; it has 0700 now"),
        "{}",
        appliance.log()
    );
    assert_eq!(appliance.component_pid("who"), pid, "nothing was restarted");
}

#[test]
fn links_are_not_followed_and_what_components_keep_is_left_alone() {
    let appliance = Appliance::new(&who("1.0.0", ""));
    let home = appliance.home();
    let outside = appliance.scratch().join("outside");
    fs::create_dir(&outside).expect("make a directory");
    fs::write(outside.join("file"), "").expect("write");
    chmod(&outside, 0o777);
    chmod(&outside.join("file"), 0o666);
    std::os::unix::fs::symlink(&outside, home.join("log")).expect("link");
    std::os::unix::fs::symlink(outside.join("file"), home.join("auth/linked")).expect("link");
    fs::create_dir(home.join("data/own")).expect("make a directory");
    chmod(&home.join("data/own"), 0o707);
    chmod(&home.join("data"), 0o777);
    let appliance = appliance.start();
    said(&appliance);
    assert_eq!((mode(&outside), mode(&outside.join("file"))), (0o777, 0o666));
    assert_eq!((mode(&appliance.home().join("data/own")), mode(&appliance.home().join("data"))), (0o707, 0o777));
}

#[test]
fn what_belongs_to_another_account_is_refused_and_named() {
    if !as_root() {
        return;
    }
    let appliance = Appliance::new(&who("1.0.0", ""));
    let name = User::from_uid(STRANGER.into()).expect("look it up").map_or(STRANGER.to_string(), |user| user.name);
    for path in ["", "auth", "auth/users.json", "trust", "trust/root.json"] {
        let path = below(appliance.home(), path);
        chown(&path, Some(STRANGER), None).expect("give it away");
        let line = appliance.run(refit().args(["run", "--with-parent"])).ends_with(78).stderr;
        let line = line.lines().last().expect("it says why").to_owned();
        assert!(line.contains(&format!("{} belongs to the account {name}", path.display())), "{line}");
        assert!(line.contains("chown") && line.contains("nothing was started"), "{line}");
        chown(&path, Some(0), None).expect("take it back");
    }
    // The group may be any, and what belongs to neither of the three is nobody's way to more rights.
    chown(appliance.home(), None, Some(STRANGER)).expect("give it a group");
    fs::write(appliance.home().join("data/own"), "").expect("write");
    chown(appliance.home().join("data/own"), Some(STRANGER), None).expect("give it away");
    appliance.start();
}

#[test]
fn a_check_names_what_an_account_does_not_reach() {
    if !as_root() {
        return;
    }
    let keys = "command = [\"bin/tool\"]\nready = \"exec\"\nuser = \"daemon\"";
    let release =
        Release::bare("1.0.0").component("tool", keys).program_text("bin/tool", "#!/bin/sh\nexec sleep 1000\n");
    let appliance = Appliance::new(&release);
    let check = || {
        let ran = appliance.refit(&["config", "check"]);
        assert!(ran.code == 0 || ran.code == 78, "{}", ran.stderr);
        (ran.code, ran.stdout)
    };
    // The directory above the home is closed to others.
    chmod(appliance.scratch(), 0o700);
    let scratch = appliance.scratch().display().to_string();
    let (code, text) = check();
    assert_eq!(code, 78, "{text}");
    let program = appliance.home().join("releases/1.0.0/bin/tool");
    let begin = format!("component tool: the account daemon cannot execute its program {}", program.display());
    assert!(text.contains(&begin), "{text}");
    assert!(
        text.contains(&format!("{scratch} has the mode 0700 and belongs to root:root; `chmod o+x {scratch}`")),
        "{text}"
    );
    for what in ["its working directory", "its data", "its configuration"] {
        assert!(text.contains(&format!("cannot enter {what} ")), "{text}");
    }
    let json = appliance.refit(&["config", "check", "--json"]).ends_with(78).objects();
    assert_eq!(json[0]["unreachable"][0]["component"], "tool", "{json:?}");
    assert_eq!(json[0]["mistakes"], serde_json::json!([]));
    chmod(appliance.scratch(), 0o711);
    assert_eq!(check(), (0, "no mistakes\n".to_owned()));

    // Each alone: a directory of the release, the program, the interpreter of a script, data that is closed.
    for (path, spoilt, right, says) in [
        ("releases/1.0.0/bin", 0o500, 0o555, "chmod o+x"),
        ("releases/1.0.0/bin/tool", 0o544, 0o555, "chmod o+x"),
        ("releases/1.0.0/bin/tool", 0o551, 0o555, "chmod o+r"),
        ("data", 0o750, 0o755, "cannot enter its data"),
        ("config", 0o700, 0o755, "cannot enter its configuration"),
    ] {
        let path = appliance.home().join(path);
        chmod(&path, spoilt);
        let (code, text) = check();
        assert_eq!(code, 78, "{}: {text}", path.display());
        assert!(text.contains(says) && text.contains(path.to_str().expect("text")), "{text}");
        chmod(&path, right);
    }
    // An access list counts: the mode alone would say no.
    let list = |what: &str, path: &Path| {
        let mut setfacl = Command::new("setfacl");
        setfacl.args(["-m", what]).arg(path).status().is_ok_and(|status| status.success())
    };
    chmod(&appliance.home().join("data"), 0o700);
    if list("u:daemon:x", &appliance.home().join("data")) {
        assert_eq!(check().0, 0);
    }
    assert_eq!(fs::read_dir(appliance.home().join("run")).expect("list").count(), 0, "nothing was started");
}

#[test]
fn a_release_that_is_to_be_packed_is_checked_for_the_accounts_of_its_components() {
    let dir = tempfile::tempdir().expect("a directory");
    let keys = "command = [\"bin/tool\"]\nuser = \"daemon\"";
    let tree = dir.path().join("tree");
    let release = Release::bare("1.0.0").component("tool", keys).program_text("bin/tool", "#!/bin/sh\n");
    release.write(&tree);
    chmod(&tree.join("bin"), 0o755);
    let check = || Ran::of(refit().args(["config", "check"]).arg(&tree));
    check().ends_with(0);
    for (path, spoilt, right, bits) in [("bin", 0o700, 0o755, "o+x"), ("bin/tool", 0o711, 0o755, "o+rx")] {
        chmod(&tree.join(path), spoilt);
        let text = check().ends_with(78).stdout;
        assert!(text.contains("component tool: the account daemon cannot execute bin/tool"), "{text}");
        assert!(text.contains(&format!("chmod {bits} {}", tree.join(path).display())), "{text}");
        chmod(&tree.join(path), right);
    }
}

#[test]
fn an_update_whose_component_does_not_reach_its_program_is_refused_before_anything_stops() {
    if !as_root() {
        return;
    }
    let keys = "command = [\"bin/tool\"]\nready = \"exec\"\nuser = \"daemon\"";
    let release = |version: &str| {
        let script = "#!/bin/sh\nexec sleep 1000\n";
        Release::bare(version).component("tool", keys).program_text("bin/tool", script)
    };
    let appliance = Appliance::new(&release("1.0.0"));
    open_way(&appliance);
    let appliance = appliance.start();
    let (tree, package) = (appliance.scratch().join("tree"), appliance.scratch().join("next.refit"));
    release("1.1.0").write(&tree);
    let pack = || {
        let mut pack = refit();
        pack.arg("pack").arg(&tree).arg("-o").arg(&package).arg("--keys").arg(Vendor::get().keys());
        Ran::of(pack.args(["--level", "1"])).ends_with(0);
    };
    chmod(&tree.join("bin"), 0o700);
    pack();
    let before = (appliance.runtime_pid(), appliance.component_pid("tool"));
    let ran = appliance.install_package(&package, &[]).ends_with(70);
    let text = format!("{}{}", ran.stdout, ran.stderr);
    assert!(text.contains("component tool: the account daemon cannot execute its program"), "{text}");
    assert!(text.contains("bin has the mode 0500") && text.contains("chmod o+x"), "{text}");
    appliance.settled("1.0.0");
    assert_eq!((appliance.runtime_pid(), appliance.component_pid("tool")), before, "nothing was stopped");
    let history = appliance.history();
    assert_eq!((&history[0]["outcome"], &history[0]["step"]), (&"failed".into(), &"preflight".into()), "{history:?}");

    chmod(&tree.join("bin"), 0o755);
    fs::write(tree.join("appliance.toml"), {
        let text = fs::read_to_string(tree.join("appliance.toml")).expect("read");
        text.replace("1.1.0", "1.1.1")
    })
    .expect("write");
    pack();
    appliance.install_package(&package, &[]).ends_with(0);
    appliance.settled("1.1.1");
}
