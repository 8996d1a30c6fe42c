//! Packages by their files: what the page about the format says can be done with them, done; and what `refit inspect` shows.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use refit_fixtures::tools::missing;
use serde_json::Value;

use crate::release::REFIT;
use crate::wait::{LIMIT, until};

/// The page that is taken at its word.
const PAGE: &str = include_str!("../../docs/formats/package.md");
/// What the page names, besides what every system has.
const TOOLS: [&str; 5] = ["tar", "zstd", "gunzip", "jq", "sha256sum"];

/// Returns the blocks of the page in this language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let begin = format!("```{language}\n");
    PAGE.split(begin.as_str()).skip(1).map(|rest| rest.split("```").next().expect("an end of the block")).collect()
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("start the command");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}: {text}\n{errors}", output.status);
    text
}

fn refit_in(dir: &Path, words: &[&str]) -> String {
    run(Command::new(REFIT).current_dir(dir).args(words).env_remove("REFIT_KEYS"))
}

/// Writes a file; its directories are made.
fn put(dir: &Path, name: &str, bytes: &[u8], mode: u32) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
    fs::write(&path, bytes).expect("write a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set permissions");
}

/// Bytes that no codec makes smaller.
fn noise(mut state: u64, length: usize) -> Vec<u8> {
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

#[test]
fn the_page_takes_a_package_apart() {
    if missing(&TOOLS) {
        return;
    }
    let script = blocks("sh").concat();
    for (codec, pack, decode) in [("zstd", "refit pack", "zstd -dcq"), ("gzip", "refit pack --codec gzip", "gunzip -c")]
    {
        let dir = tempfile::tempdir().expect("make a directory");
        let bin = dir.path().join("tools");
        fs::create_dir(&bin).expect("make a directory");
        symlink(REFIT, bin.join("refit")).expect("link the program");
        let path = std::env::var("PATH").expect("a path");
        let script = script.replace("refit pack", pack).replace("zstd -dcq", decode);
        let text = run(Command::new("sh")
            .args(["-eu", "-c", &script])
            .current_dir(dir.path())
            .env("PATH", format!("{}:{path}", bin.display())));
        assert_eq!(text.lines().filter(|line| line.ends_with(": OK")).count(), 3 + 3 + 4, "{text}");
        assert!(text.contains("binary\t0755\t35\tbin/shop") && text.contains("binary\tlink\t0\tbin/till"), "{text}");
        if codec == "zstd" {
            let found = fs::read(dir.path().join("parts/manifest.json")).expect("read the manifest");
            let shown: Vec<&str> = blocks("json");
            assert_eq!(shown, [String::from_utf8_lossy(&found)], "the page shows another manifest");
        }
    }
}

/// What a release with these bytes of noise in one file takes to install, at most: the kernel's own account.
fn peak_kib(bytes: usize) -> u64 {
    let dir = tempfile::tempdir().expect("make a directory");
    let dir = dir.path();
    refit_in(dir, &["keys", "init", "keys"]);
    put(&dir.join("tree"), "appliance.toml", b"[appliance]\nname = \"shop\"\nversion = \"1.0.0\"\n", 0o644);
    put(&dir.join("tree"), "share/noise", &noise(1, bytes), 0o644);
    refit_in(dir, &["pack", "tree", "--keys", "keys", "--level", "1", "-o", "shop.refit"]);
    let mut init = Command::new(REFIT);
    init.current_dir(dir).args(["--home", "home", "init", "shop.refit", "--root", "keys/1.root.json"]);
    let mut child = init.stdout(Stdio::null()).spawn().expect("start the command");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = until(LIMIT, "the installation ends", || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(peak);
        child.try_wait().expect("ask for its end")
    });
    assert!(ended.success(), "{ended}");
    refit_updater::durable::remove_tree(&dir.join("home")).expect("remove the home");
    peak
}

#[test]
fn memory_stays_small_however_large_the_package_is() {
    let peak = peak_kib(160 << 20);
    assert!((1 << 10..32 << 10).contains(&peak), "{peak} KiB");
}

#[test]
fn inspect_shows_what_an_update_changes_and_what_must_be_transferred() {
    let dir = tempfile::tempdir().expect("make a directory");
    let dir = dir.path();
    refit_in(dir, &["keys", "init", "keys"]);
    let (kept, news) = (noise(1, 300_000), noise(2, 200_000));
    let write = |version: &str| {
        let tree = dir.join(version);
        let text = format!("[appliance]\nname = \"shop\"\nversion = \"{version}\"\n");
        put(&tree, "appliance.toml", text.as_bytes(), 0o644);
        put(&tree, "bin/shop", version.as_bytes(), 0o755);
        put(&tree, "lib/same", b"the same", 0o644);
        tree
    };
    let old = write("1.0.0");
    put(&old, "lib/moved", &kept, 0o644);
    put(&old, "lib/mode", b"mode", 0o644);
    put(&old, "share/gone", b"gone", 0o644);
    let new = write("1.1.0");
    put(&new, "lib/elsewhere", &kept, 0o644);
    put(&new, "lib/mode", b"mode", 0o755);
    put(&new, "lib/news", &news, 0o644);
    put(&new, "lib/news-again", &news, 0o644);
    symlink("shop", new.join("bin/till")).expect("make a link");
    for version in ["1.0.0", "1.1.0"] {
        let out = format!("{version}.refit");
        let text = refit_in(dir, &["--json", "pack", version, "--keys", "keys", "-o", &out]);
        let packed: Value = serde_json::from_str(&text).expect("an object");
        let (report, bytes) = (&packed["report"], fs::metadata(dir.join(&out)).expect("the package").len());
        assert_eq!(report["package_bytes"], bytes);
        let kinds = report["totals"]["kinds"].as_array().expect("kinds");
        let sum = |name: &str| kinds.iter().map(|kind| kind[name].as_u64().expect("a number")).sum::<u64>();
        assert_eq!(sum("stored_bytes"), report["payload_bytes"]);
        assert_eq!(sum("installed_bytes"), report["installed_bytes"]);
        assert_eq!(sum("files") + sum("links"), report["files"]);
    }
    let text = refit_in(dir, &["--json", "inspect", "1.0.0.refit", "1.1.0.refit"]);
    let found: Value = serde_json::from_str(&text).expect("an object");
    let changes: Vec<String> = found["changes"]
        .as_array()
        .expect("changes")
        .iter()
        .map(|change| {
            let large = change["transfer_bytes"].as_u64().expect("a number") > 100_000;
            let field = |name: &str| change[name].as_str().unwrap_or("-").to_owned();
            format!("{} {} {} {large}", field("change"), field("path"), field("from"))
        })
        .collect();
    assert_eq!(
        changes,
        [
            "changed appliance.toml - false",
            "changed bin/shop - false",
            "added bin/till - false",
            "added lib/elsewhere lib/moved false",
            "mode lib/mode - false",
            "removed lib/moved - false",
            "added lib/news - true",
            "added lib/news-again - false",
            "removed share/ - false",
            "removed share/gone - false",
        ]
    );
    assert_eq!(found["unchanged"], 1);
    // What must come: the news once, two small files, and what is not payload.
    let bytes = |name: &str| found[name].as_u64().expect("a number");
    let package = found["new"]["package_bytes"].as_u64().expect("a number");
    assert!((200_000..203_000).contains(&bytes("transfer_payload_bytes")), "{found}");
    assert!(bytes("transfer_bytes") + 290_000 < package && bytes("transfer_bytes") > bytes("transfer_payload_bytes"));

    let text = refit_in(dir, &["inspect", "1.0.0.refit", "1.1.0.refit"]);
    assert!(text.contains("1.0.0 -> 1.1.0") && text.contains("as lib/moved"), "{text}");
    let text = refit_in(dir, &["inspect", "--check", "1.1.0.refit"]);
    for line in ["library  5      0", "all      7      1", "as above", "every byte is as signed", "-> shop"] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
}
