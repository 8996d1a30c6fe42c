//! The vendor's commands: keys, repositories, and what they refuse.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use refit_fixtures::tools::{missing, put_program};
use serde_json::Value;

use crate::appliance::{Appliance, Ran, refit};
use crate::release::{Release, Vendor};

fn run(words: &[&str], dir: &Path) -> Ran {
    Ran::of(refit().args(words).current_dir(dir))
}

fn object(ran: &Ran) -> Value {
    ran.objects().pop().expect("an object")
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("list")
        .flatten()
        .map(|entry| entry.file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

#[test]
fn keys_with_a_threshold_an_offline_root_and_a_rotation() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    let init = ["keys", "init", "keys", "--threshold", "2", "--separate-roles", "--offline-root", "stick"];
    run(&init, at).ends_with(0);
    assert_eq!(names(&at.join("keys")), ["1.root.json", "snapshot.key.pem", "targets.key.pem", "timestamp.key.pem"]);
    assert_eq!(names(&at.join("stick")), ["root-1.key.pem", "root-2.key.pem", "root-3.key.pem"], "one may be lost");
    let line = run(&init, at).complains_with(78);
    assert!(line.contains("holds keys already"), "{line}");

    let line = run(&["keys", "rotate", "keys", "--role", "targets"], at).complains_with(78);
    assert!(line.contains("role root needs 2 signatures, 0 of its keys are here") && line.contains("--with"), "{line}");
    let rotated =
        object(&run(&["keys", "rotate", "keys", "--role", "targets", "--with", "stick", "--json"], at).ends_with(0));
    assert_eq!(rotated["version"], 2);
    let found = names(&at.join("keys"));
    let expected =
        ["1.root.json", "2.root.json", "retired", "snapshot.key.pem", "targets-v2.key.pem", "timestamp.key.pem"];
    assert_eq!(found, expected);
    run(&["keys", "renew", "keys", "--with", "stick", "--expires-days", "30"], at).ends_with(0);
    let shown = object(&run(&["keys", "show", "keys", "--json"], at).ends_with(0));
    assert_eq!(shown["root"]["version"], 3);
    let root = shown["roles"].as_array().expect("a list").iter().find(|role| role["role"] == "root").expect("root");
    assert_eq!((&root["threshold"], root["keys"].as_array().map(Vec::len)), (&2.into(), Some(3)), "{root}");
    // What was put away stays away, whether or not anybody says so again.
    run(&["keys", "rotate", "keys", "--role", "root", "--with", "stick"], at).ends_with(0);
    assert_eq!(names(&at.join("stick")), ["retired", "root-v4-1.key.pem", "root-v4-2.key.pem", "root-v4-3.key.pem"]);
    assert!(!names(&at.join("keys")).iter().any(|name| name.starts_with("root-")), "{:?}", names(&at.join("keys")));
    for words in [["keys", "rotate", "keys", "--role", "tea"].as_slice(), &["keys", "init", "x", "--external", "tea=x"]]
    {
        run(words, at).complains_with(64);
    }
}

#[test]
fn what_no_keys_can_meet_is_wrong_usage_and_a_disk_that_fails_is_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    let days = "a whole number from 1 to 36500 is wanted";
    let keys = "a whole number from 1 to 16 is wanted";
    let rows: [(&[&str], &str); 7] = [
        (&["init", "keys", "--threshold", "2", "--root-keys", "1"], "a threshold of 2 cannot be met with 1 keys"),
        (&["init", "keys", "--threshold", "0"], keys),
        (&["init", "keys", "--root-keys", "17"], keys),
        (&["init", "keys", "--expires-days", "0"], days),
        (&["rotate", "keys", "--expires-days", "36501"], days),
        (&["rotate", "keys", "--threshold", "many"], keys),
        (&["renew", "keys", "--expires-days", "x"], days),
    ];
    for (words, expected) in rows {
        let line = run(&[&["keys"], words].concat(), at).complains_with(64);
        assert!(line.contains(expected), "{line}");
        assert!(!at.join("keys/1.root.json").exists());
    }
    run(&["keys", "init", "keys", "--expires-days", "36500", "--threshold", "1"], at).ends_with(0);
    let line = run(&["keys", "rotate", "keys", "--threshold", "2"], at).complains_with(64);
    assert!(line.contains("a threshold of 2 cannot be met with 1 keys"), "{line}");

    // A file that must not grow is to a program what a full disk is; a root is larger than that, a message is not.
    let before = names(&at.join("keys"));
    let script = format!("trap '' XFSZ; ulimit -f 1; exec '{}' keys rotate keys", env!("CARGO_BIN_EXE_refit"));
    let line = Ran::of(Command::new("sh").args(["-c", &script]).current_dir(at)).complains_with(74);
    assert!(line.contains("cannot write") && line.contains("free space"), "{line}");
    assert_eq!(names(&at.join("keys")), before);
    run(&["keys", "rotate", "keys"], at).ends_with(0);
    run(&["keys", "show", "nowhere"], at).complains_with(64);
}

#[test]
fn a_passphrase_comes_from_a_file_and_never_from_the_command_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    Release::bare("1.0.0").write(&at.join("tree"));
    fs::write(at.join("secret"), "plank and nail\n").expect("write");
    fs::write(at.join("wrong"), "plank and screw\n").expect("write");
    let with = |file: Option<&str>, words: &[&str]| {
        let mut command = refit();
        command.args(words).current_dir(at);
        if let Some(file) = file {
            command.env("REFIT_KEY_PASSPHRASE_FILE", file);
        }
        Ran::of(&mut command)
    };
    let line = with(None, &["keys", "init", "keys", "--encrypt"]).complains_with(78);
    assert!(line.contains("no passphrase") && line.contains("REFIT_KEY_PASSPHRASE_FILE"), "{line}");
    with(Some("secret"), &["keys", "init", "keys", "--encrypt"]).ends_with(0);
    let pack = ["pack", "tree", "--keys", "keys", "-o", "out.refit"];
    for (file, expected) in
        [(None, "is protected by a passphrase"), (Some("wrong"), "cannot be opened"), (Some("nowhere"), "cannot read")]
    {
        let line = with(file, &pack).complains_with(65);
        assert!(line.contains(expected), "{line}");
        assert!(!at.join("out.refit").exists());
        assert_eq!(line.contains("/nowhere: No such file"), file == Some("nowhere"), "{line}");
    }
    let line = with(Some("nowhere"), &["keys", "init", "others", "--encrypt"]).complains_with(78);
    assert!(line.contains("/nowhere: No such file"), "{line}");
    with(Some("secret"), &pack).ends_with(0);
    // Keys that follow protected ones are protected, whether or not anybody says so again.
    let line = with(None, &["keys", "rotate", "keys"]).complains_with(78);
    assert!(line.contains("no passphrase"), "{line}");
    with(Some("secret"), &["keys", "rotate", "keys"]).ends_with(0);
    let key = fs::read_to_string(at.join("keys/refit-v2.key.pem")).expect("read the key");
    assert!(key.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{key}");
}

#[test]
fn a_command_signs() {
    if missing(&["openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    Release::bare("1.0.0").write(&at.join("tree"));
    let openssl = |words: &[&str]| {
        let output = Command::new("openssl").args(words).current_dir(at).output().expect("run openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    fs::create_dir(at.join("keys")).expect("make a directory");
    let curve = "ec_paramgen_curve:P-256";
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", "module.pem"]);
    openssl(&["pkey", "-in", "module.pem", "-pubout", "-out", "keys/module.pem"]);
    let script = "#!/bin/sh\nexec openssl dgst -sha256 -sign ../module.pem\n";
    put_program(&at.join("keys/sign"), script);
    fs::write(at.join("keys/module.key.toml"), "public = \"module.pem\"\ncommand = [\"./sign\"]\n").expect("write");
    let module = "targets=keys/module.key.toml";
    let shown = object(&run(&["keys", "init", "keys", "--external", module, "--json"], at).ends_with(0));
    let signs = |shown: &Value, file: &str| -> Vec<String> {
        let roles = shown["roles"].as_array().expect("a list").iter();
        roles.filter(|role| role["keys"].to_string().contains(file)).map(|role| role["role"].to_string()).collect()
    };
    assert_eq!(signs(&shown, "module.key.toml"), ["\"targets\""], "{shown}");
    assert_eq!(signs(&shown, "root.key.pem"), ["\"root\""], "{shown}");
    run(&["keys", "rotate", "keys", "--role", "root", "--external", module], at).complains_with(64);
    // What is outside is not followed by a file because nobody said anything.
    let before = names(&at.join("keys"));
    let line = run(&["keys", "rotate", "keys"], at).complains_with(78);
    for word in
        ["role targets is outside", "keys/module.key.toml", "--external ROLE=FILE", "--role", "--external ROLE=none"]
    {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
    assert_eq!(names(&at.join("keys")), before);
    run(&["keys", "rotate", "keys", "--external", module, "--external", "targets=none"], at).complains_with(64);
    run(&["keys", "init", "other", "--external", "targets=none"], at).complains_with(64);
    assert!(!at.join("other").exists());
    let shown = object(&run(&["keys", "rotate", "keys", "--external", module, "--json"], at).ends_with(0));
    assert_eq!(signs(&shown, "module.key.toml"), ["\"targets\""], "{shown}");
    run(&["pack", "tree", "--keys", "keys", "-o", "out.refit"], at).ends_with(0);
    run(&["inspect", "out.refit", "--root", "keys/1.root.json", "--check"], at).ends_with(0);
    fs::write(at.join("keys/sign"), "#!/bin/sh\necho the token is locked >&2\nexit 1\n").expect("write");
    let line = run(&["pack", "tree", "--keys", "keys", "-o", "again.refit"], at).complains_with(65);
    assert!(line.contains("the token is locked"), "{line}");
    let made = object(
        &run(&["keys", "rotate", "keys", "--role", "targets", "--external", "targets=none", "--json"], at).ends_with(0),
    );
    assert_eq!(signs(&made, "targets-v3.key.pem"), ["\"targets\""], "{made}");
    assert_eq!(names(&at.join("keys/retired")), ["module.key.toml", "module.pem", "online.key.pem", "root.key.pem"]);
}

#[test]
fn a_repository_is_made_filled_shown_and_refreshed() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    let keys = Vendor::get().keys();
    let repo = |words: &[&str]| Ran::of(refit().args(words).env("REFIT_KEYS", &keys).current_dir(at));
    let line = repo(&["repo", "add", "repo", "x.refit"]).complains_with(65);
    assert!(line.contains("is no repository") && line.contains("refit repo init"), "{line}");
    repo(&["repo", "init", "repo"]).ends_with(0);
    repo(&["repo", "init", "repo"]).complains_with(65);
    let package = Release::bare("1.0.0").package();
    repo(&["repo", "add", "repo", package.to_str().expect("text")]).ends_with(0);
    Release::bare("1.1.0").write(&at.join("tree"));
    let packed = repo(&["pack", "tree", "--repo", "repo", "--json"]).ends_with(0);
    let report = &object(&packed)["report"];
    assert_eq!(report["version"], "1.1.0");
    assert_eq!(names(at), ["repo", "tree"], "no package is left beside it");
    assert_eq!(names(&at.join("repo")), [".lock", "metadata", "targets"]);

    let shown = object(&repo(&["repo", "show", "repo", "--json"]).ends_with(0));
    let versions: Vec<&Value> =
        shown["releases"].as_array().expect("a list").iter().map(|release| &release["version"]).collect();
    assert_eq!(versions, ["1.0.0", "1.1.0"]);
    let root = Vendor::get().root();
    let checked =
        object(&repo(&["repo", "check", "repo", "--json", "--root", root.to_str().expect("text")]).ends_with(0));
    for releases in [&shown["releases"], &checked["releases"]] {
        assert_eq!(releases[1]["digest"], report["digest"]);
    }
    let digest = report["digest"].as_str().expect("a digest");
    assert!(repo(&["repo", "show", "repo"]).ends_with(0).stdout.contains(&digest[..12]));
    assert_eq!(shown["versions"], serde_json::json!([1, 3, 3, 3]));
    let refreshed = object(&repo(&["repo", "refresh", "repo", "--json"]).ends_with(0));
    assert_eq!(refreshed["versions"], serde_json::json!([1, 4, 3, 3]));
    let stranger = Release::bare("1.2.0").by_a_stranger().package();
    let line = repo(&["repo", "add", "repo", stranger.to_str().expect("text")]).complains_with(65);
    assert!(line.contains("is refused") && line.contains("trust"), "{line}");
}

#[test]
fn keys_are_rotated_and_what_a_stolen_one_signs_is_not_signed_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    let copy = |from: &str, to: &str| {
        let status = Command::new("cp").args(["-r", from, to]).current_dir(at).status().expect("run cp");
        assert!(status.success());
    };
    let quietly = |words: &[&str]| {
        let ran = run(words, at).ends_with(0);
        assert_eq!(ran.stderr, "", "{words:?}");
        ran
    };
    Release::bare("1.0.0").write(&at.join("tree"));
    Release::bare("6.6.6").write(&at.join("trap"));
    quietly(&["keys", "init", "keys"]);
    quietly(&["repo", "init", "repo", "--keys", "keys"]);
    quietly(&["pack", "tree", "--repo", "repo", "-o", "one.refit", "--keys", "keys"]);
    copy("repo", "forged");
    copy("keys", "stolen");
    quietly(&["keys", "rotate", "keys"]);
    let shown = object(&quietly(&["repo", "refresh", "repo", "--keys", "keys", "--json"]));
    assert_eq!(shown["versions"], serde_json::json!([2, 3, 3, 3]));
    let expected = ["1.root.json", "2.root.json", "published.json", "refit-v2.key.pem", "retired"];
    assert_eq!(names(&at.join("keys")), expected);
    let shown = object(&quietly(&["keys", "show", "keys", "--json"]));
    assert_eq!(shown["roles"][0]["keys"].as_array().map(Vec::len), Some(1), "what was published is no key: {shown}");
    quietly(&["keys", "rotate", "keys"]);
    quietly(&["pack", "tree", "--arch", "any", "--repo", "repo", "--keys", "keys"]);

    run(&["pack", "trap", "--repo", "forged", "-o", "trap.refit", "--keys", "stolen"], at).ends_with(0);
    fs::remove_dir_all(at.join("repo")).expect("remove the repository");
    copy("forged", "repo");
    for words in [
        ["repo", "refresh", "repo", "--keys", "keys"].as_slice(),
        &["repo", "show", "repo", "--keys", "keys"],
        &["repo", "add", "repo", "one.refit", "--keys", "keys"],
        &["pack", "tree", "--repo", "repo", "--keys", "keys"],
    ] {
        let line = run(words, at).complains_with(65);
        for word in ["signed with keys of root 1, which root 3 retired", "--accept-retired", "restore metadata/"] {
            assert!(line.contains(word), "{word:?} is not in: {line}");
        }
    }
    // Who looks sees what would be signed, by its digest.
    let digest = |package: &str| object(&quietly(&["inspect", package, "--json"]))["digest"].clone();
    let shown = object(&quietly(&["repo", "show", "repo", "--accept-retired", "--keys", "keys", "--json"]));
    let listed: Vec<[&Value; 2]> = shown["accepted_retired"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|release| [&release["version"], &release["digest"]])
        .collect();
    assert_eq!(listed, [[&"1.0.0".into(), &digest("one.refit")], [&"6.6.6".into(), &digest("trap.refit")]]);
    let ran = quietly(&["repo", "refresh", "repo", "--accept-retired", "--keys", "keys"]);
    assert!(ran.stdout.contains("6.6.6") && ran.stdout.contains("which retired keys signed"), "{}", ran.stdout);
    let shown = object(&quietly(&["repo", "refresh", "repo", "--accept-retired", "--keys", "keys", "--json"]));
    assert_eq!(shown["accepted_retired"], serde_json::json!([]), "the new keys have signed it: {shown}");
}

#[test]
fn keys_that_cannot_remember_publish_and_say_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    Release::bare("1.0.0").write(&at.join("tree"));
    run(&["keys", "init", "keys"], at).ends_with(0);
    fs::create_dir(at.join("keys/published.json")).expect("be in the way");
    for words in [
        ["repo", "init", "repo", "--keys", "keys"].as_slice(),
        &["pack", "tree", "--repo", "repo", "--keys", "keys"],
        &["repo", "refresh", "repo", "--keys", "keys"],
    ] {
        let line = run(words, at).complains_with(0);
        assert!(line.contains("not remembered") && line.contains("--accept-retired"), "{line}");
    }
    run(&["keys", "rotate", "keys"], at).ends_with(0);
    let line = run(&["repo", "refresh", "repo", "--keys", "keys"], at).complains_with(65);
    assert!(line.contains("published.json"), "{line}");
    run(&["repo", "refresh", "repo", "--keys", "keys", "--accept-retired"], at).ends_with(0);
}

#[test]
fn an_older_copy_of_the_keys_is_told_and_nothing_is_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    Release::bare("1.0.0").write(&at.join("one"));
    Release::bare("1.1.0").write(&at.join("two"));
    let quietly = |words: &[&str]| run(words, at).ends_with(0);
    quietly(&["keys", "init", "keys"]);
    assert!(Command::new("cp").args(["-r", "keys", "stale"]).current_dir(at).status().expect("run cp").success());
    quietly(&["repo", "init", "repo", "--keys", "keys"]);
    quietly(&["pack", "one", "--repo", "repo", "--keys", "keys"]);
    quietly(&["keys", "rotate", "keys"]);
    quietly(&["repo", "refresh", "repo", "--keys", "keys"]);
    quietly(&["pack", "two", "-o", "two.refit", "--keys", "stale"]);
    let files = || {
        let found =
            Command::new("sh").args(["-c", "find repo -type f -exec sha256sum {} + | sort"]).current_dir(at).output();
        String::from_utf8(found.expect("run find").stdout).expect("text")
    };
    let before = files();
    for words in [
        ["repo", "refresh", "repo", "--keys", "stale"].as_slice(),
        &["repo", "add", "repo", "two.refit", "--keys", "stale"],
        &["pack", "two", "--repo", "repo", "--keys", "stale"],
    ] {
        let line = run(words, at).complains_with(65);
        assert!(line.contains("an older copy") && line.contains("root 2") && line.contains("rotated last"), "{line}");
        assert_eq!(files(), before);
    }
    quietly(&["repo", "refresh", "repo", "--keys", "keys"]);
    quietly(&["repo", "check", "repo", "--root", "stale/1.root.json"]);
}

#[test]
fn a_repository_is_checked_and_put_right() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    Release::bare("1.0.0").write(&at.join("tree"));
    run(&["keys", "init", "keys"], at).ends_with(0);
    run(&["repo", "init", "repo", "--keys", "keys"], at).ends_with(0);
    let packed = ["pack", "tree", "--arch", "any", "--repo", "repo", "-o", "one.refit", "--keys", "keys", "--json"];
    assert_eq!(object(&run(&packed, at).ends_with(0))["outcome"], "added");
    fs::copy(at.join("keys/1.root.json"), at.join("root.json")).expect("copy the root");
    let check = |json: bool| {
        let mut words = vec!["repo", "check", "repo", "--root", "root.json"];
        words.extend(json.then_some("--json"));
        run(&words, at)
    };
    let found = check(false).ends_with(0);
    assert!(found.stdout.starts_with("in order: 1 releases, "), "{}", found.stdout);
    let found = object(&check(true).ends_with(0));
    assert_eq!((&found["problems"], &found["versions"]), (&serde_json::json!([]), &serde_json::json!([1, 2, 2, 2])));
    // Neither takes keys: who has the root may look.
    let by = |words: &[&str]| object(&run(&[&["repo", "show", "repo", "--json"], words].concat(), at).ends_with(0));
    assert_eq!(by(&["--root", "root.json"]), by(&["--keys", "keys"]));
    let line = run(&["repo", "show", "repo"], at).complains_with(64);
    assert!(line.contains("--keys"), "{line}");
    let line = run(&["repo", "check", "repo", "--root", "one.refit"], at).complains_with(65);
    assert!(line.contains("is no root"), "{line}");
    run(&["repo", "check", "repo", "--root", "nowhere"], at).complains_with(64);

    let add = ["repo", "add", "repo", "one.refit", "--keys", "keys"];
    let files = at.join("repo/targets");
    let payload = Command::new("find").arg(&files).args(["-name", "*.payload"]).output().expect("run find").stdout;
    let payload = std::path::PathBuf::from(String::from_utf8(payload).expect("text").trim_end());
    let whole = fs::read(&payload).expect("read");
    fs::remove_file(&payload).expect("remove");
    let ran = check(false);
    assert!(ran.stdout.contains(".payload is missing"), "{}", ran.stdout);
    let line = ran.complains_with(65);
    assert!(line.contains("(problem 1 of 1)") && line.contains("refit repo add"), "{line}");
    let objects = check(true).ends_with(65).objects();
    assert_eq!(objects[0]["problems"][0]["why"], "is missing");
    assert_eq!(objects[1]["error"]["code"], "repository_damaged");
    let ran = run(&add, at).ends_with(0);
    assert!(ran.stdout.starts_with("restored "), "{}", ran.stdout);
    assert!(fs::read(&payload).expect("it is back") == whole);
    let ran = run(&add, at).ends_with(0);
    assert!(ran.stdout.contains("is there already"), "{}", ran.stdout);
    let shown = object(&run(&[&add[..], &["--json"]].concat(), at).ends_with(0));
    assert_eq!((&shown["added"][0]["outcome"], &shown["added"][0]["version"]), (&"present".into(), &"1.0.0".into()));
    assert_eq!(shown["releases"].as_array().map(Vec::len), Some(1));
    check(false).ends_with(0);

    fs::remove_file(at.join("repo/metadata/timestamp.json")).expect("lose it");
    for words in [["repo", "refresh"], ["repo", "init"]] {
        let line = run(&[&words[..], &["repo", "--keys", "keys"]].concat(), at).complains_with(65);
        assert!(line.contains("timestamp.json is missing") && line.contains("restore metadata/"), "{line}");
    }
}

#[test]
fn slips_are_called_by_their_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    run(&["keys", "init", "keys", "--expires-days", "36500"], at).ends_with(0);
    fs::create_dir(at.join("empty")).expect("make a directory");
    Release::bare("1.0.0").write(&at.join("tree"));
    run(&["pack", "tree", "-o", "one.refit", "--keys", "keys"], at).ends_with(0);
    run(&["repo", "init", "repo", "--keys", "keys"], at).ends_with(0);
    Release::bare("1.0.0").file("lib/text", "").write(&at.join("set-gid"));
    fs::set_permissions(at.join("set-gid/lib"), PermissionsExt::from_mode(0o2755)).expect("set its mode");
    nix::unistd::mkfifo(&at.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("make a pipe");
    for (words, code, expected) in [
        (["pack", "nowhere", "--keys", "keys"].as_slice(), 64, "there is no directory"),
        (&["pack", "empty", "--keys", "keys"], 65, "has no appliance.toml"),
        (&["pack", "tree", "-o", "pipe", "--keys", "keys"], 65, "is there and is no file"),
        (&["inspect", "tree"], 64, "is a directory, and no package"),
        (&["inspect", "nowhere"], 64, "No such file"),
        (&["inspect", "one.refit", "nowhere"], 64, "No such file"),
        (&["repo", "add", "repo", "one.refit", "nowhere", "--keys", "keys"], 64, "No such file"),
        (&["config", "check", "nowhere"], 64, "there is no directory"),
        (&["pack", "set-gid", "--keys", "keys"], 65, "chmod u-s,g-s,-t"),
        (&["pack", "tree", "--keys", "keys", "--arch", "amd64"], 64, "it is called x86_64 here"),
        (&["pack", "tree", "--keys", "keys", "--arch", "bogus"], 64, "use one of any, x86_64, aarch64"),
        (&["inspect", "one.refit", "--root", "one.refit"], 65, "is no root"),
        (
            &["pack", "tree", "--keys", "keys", "--expires-days", "36501"],
            64,
            "a whole number from 1 to 36500 is wanted",
        ),
        (&["pack", "tree", "--keys", "keys", "--expires-days", "0"], 64, "a whole number from 1 to 36500 is wanted"),
        (&["keys", "init", "x", "--threshold", "many"], 64, "a whole number from 1 to 16 is wanted"),
    ] {
        let line = run(words, at).complains_with(code);
        assert!(line.contains(expected), "{expected:?} is not in: {line}");
    }
}

#[test]
fn a_higher_metadata_version_shuts_older_packages_out() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let (tree, package) = (appliance.scratch().join("tree"), appliance.scratch().join("next.refit"));
    Release::shop("1.1.0").write(&tree);
    let pack = |version: &str| {
        let mut pack = refit();
        pack.arg("pack").arg(&tree).arg("-o").arg(&package).arg("--keys").arg(Vendor::get().keys());
        Ran::of(pack.args(["--level", "1", "--metadata-version", version]))
    };
    pack("0").complains_with(64);
    pack("2").ends_with(0);
    appliance.install_package(&package, &[]).ends_with(0);
    appliance.settled("1.1.0");
    let line = appliance.install(&Release::shop("0.9.0"), &["--allow-downgrade"]).complains_with(65);
    assert!(line.contains("timestamp.json has version 1, and 2 was seen before"), "{line}");
    appliance.settled("1.1.0");
    // What is installed already is no package.
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.0.0");
}

#[test]
fn the_same_input_and_date_give_the_same_package() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    Release::bare("1.0.0").write(&at.join("tree"));
    let keys = Vendor::get().keys();
    let pack = |name: &str, date: &str| {
        let mut pack = refit();
        pack.args(["pack", "tree", "-o", name, "--keys"]).arg(&keys).env("SOURCE_DATE_EPOCH", date);
        Ran::of(pack.current_dir(at))
    };
    let mut packages = Vec::new();
    for name in ["one.refit", "other.refit"] {
        pack(name, "1900000000").ends_with(0);
        packages.push(fs::read(at.join(name)).expect("read"));
    }
    assert!(packages[0] == packages[1]);
    let line = pack("third.refit", "yesterday").complains_with(64);
    assert!(line.contains("SOURCE_DATE_EPOCH is \"yesterday\""), "{line}");
    assert!(!at.join("third.refit").exists());
}

/// Writes a file that can be executed.
fn put_executable(tree: &Path, name: &str, bytes: &[u8]) {
    let path = tree.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
    fs::write(&path, bytes).expect("write a file");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("set its mode");
}

/// Returns the header of a program for a machine by its number in ELF.
fn elf(machine: u8) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(18, 0);
    header.extend([machine, 0]);
    header.resize(64, 0);
    header
}

#[test]
fn the_machine_of_a_release_is_told_by_its_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    let tree = at.join("tree");
    Release::bare("1.0.0").program_text("bin/tool", "#!/bin/sh\nexit 0\n").write(&tree);
    let keys = Vendor::get().keys();
    let keys = keys.to_str().expect("text");
    let pack = |more: &[&str]| {
        let words = [&["pack", "tree", "-o", "one.refit", "--keys", keys, "--level", "1", "--json"], more].concat();
        run(&words, at)
    };
    let arch = |more: &[&str]| object(&pack(more).ends_with(0))["report"]["arch"].clone();
    assert_eq!(arch(&[]), "any", "scripts run everywhere");
    assert_eq!(arch(&["--arch", "riscv64"]), "riscv64");
    put_executable(&tree, "lib/other.so", &elf(183));
    assert_eq!(arch(&[]), "aarch64");
    let contradicted = object(&pack(&["--arch", "any"]).ends_with(0));
    let warning = contradicted["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("packed for any, and has machine code for aarch64 only"), "{warning}");
    put_executable(&tree, "lib/third.so", &elf(243));
    // In JSON an error is an object.
    let refused = run(&["pack", "tree", "-o", "two.refit", "--keys", keys], at).complains_with(65);
    assert!(refused.contains("aarch64, riscv64") && refused.contains("--arch"), "{refused}");
    assert!(!at.join("two.refit").exists());
    fs::copy(crate::release::REFIT, tree.join("bin/refit")).expect("copy a program of this machine");
    assert_eq!(arch(&[]), std::env::consts::ARCH, "others are brought for other devices");
}

#[test]
fn pack_warns_of_what_works_on_the_build_machine_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().canonicalize().expect("a path");
    let tree = at.join("tree");
    Release::bare("1.0.0")
        .component("web", "command = [\"bin/closed\"]\nuser = \"daemon\"")
        .file("venv/pyvenv.cfg", "home = /home/builder/python\n")
        .file("lib/no_program.py", "#!/home/builder/python/bin/python3\n")
        .write(&tree);
    put_executable(&tree, "venv/bin/gunicorn", format!("#!{}/venv/bin/python3\n", tree.display()).as_bytes());
    put_executable(&tree, "bin/tool", b"#!/home/builder/python/bin/python3 -E\n");
    put_executable(&tree, "bin/relative", b"#!bin/python3\n");
    for fine in ["#!/bin/sh\n", "#! /usr/bin/env python3\n", "no script\n", "#!", ""] {
        put_executable(&tree, &format!("bin/fine-{}", fine.len()), fine.as_bytes());
    }
    let behind_env = format!("#!/usr/bin/env -S A=b {}/venv/bin/python3 -I\n", tree.display());
    put_executable(&tree, "bin/behind_env", behind_env.as_bytes());
    put_executable(&tree, "bin/long", b"#!/bin/sh\n'''exec' /home/builder/python/bin/python3 \"$0\" \"$@\"\n' '''\n");
    put_executable(&tree, "bin/closed", b"#!/bin/sh\n");
    put_executable(&tree, "lib/private/module", b"#!/bin/sh\n");
    for path in ["lib/private/other", "share-secret"] {
        fs::write(tree.join(path), "text").expect("write a file");
    }
    for (path, mode) in
        [("bin/closed", 0o700), ("lib/private/other", 0o600), ("lib/private", 0o700), ("share-secret", 0o640)]
    {
        fs::set_permissions(tree.join(path), PermissionsExt::from_mode(mode)).expect("close it");
    }
    let keys = Vendor::get().keys();
    let packed = run(&["pack", "tree", "-o", "one.refit", "--keys", keys.to_str().expect("text"), "--json"], &at);
    let packed = packed.ends_with(0);
    let object = object(&packed);
    let warnings: Vec<&str> = object["warnings"].as_array().expect("a list").iter().flat_map(Value::as_str).collect();
    for (path, word) in [
        ("venv/bin/gunicorn", "a path in the directory that is packed"),
        ("venv/pyvenv.cfg", "virtual environment"),
        ("bin/tool", "a path of this machine"),
        ("bin/relative", "working directory"),
        ("bin/behind_env", "a path in the directory that is packed"),
        ("bin/long", "exec /home/builder/python/bin/python3, a path of this machine"),
        ("bin/closed", "daemon"),
        ("lib/private", "closed to daemon: it has the mode 0700"),
        ("share-secret", "closed to daemon: it has the mode 0640"),
    ] {
        assert!(warnings.iter().any(|line| line.contains(path) && line.contains(word)), "{path}: {warnings:#?}");
        assert!(packed.stderr.contains(path), "{}", packed.stderr);
    }
    assert_eq!(warnings.len(), 9, "{warnings:#?}");
}
