//! Manifests that must never be believed, whoever signed them.

use refit_updater::Manifest;
use serde_json::{Value, json};

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ONE: &str = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"; // of "1"
const TWO: &str = "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"; // of "2"

fn base() -> Value {
    json!({
        "format": 1, "appliance": "shop", "version": "1.0.0", "arch": "x86_64", "codec": "zstd",
        "payload_bytes": 20, "installed_bytes": 2,
        "directories": [{"path": "bin", "mode": "0755"}, {"path": "share", "mode": "0755"}],
        "files": [
            {"path": "bin/a", "kind": "binary", "mode": "0755", "size": 1, "sha256": ONE,
             "frames": [{"offset": 0, "stored": 10, "stored_sha256": TWO, "size": 1}]},
            {"path": "share/b", "kind": "asset", "mode": "0644", "size": 1, "sha256": TWO,
             "frames": [{"offset": 10, "stored": 10, "stored_sha256": TWO, "size": 1}]},
            {"path": "share/c", "kind": "asset", "link": "b"},
        ],
    })
}

/// Asserts that the manifest is refused, and why, once it has `value` at `pointer`.
fn check(pointer: &str, value: Value, expected: &str) {
    let mut manifest = base();
    match manifest.pointer_mut(pointer) {
        Some(place) => *place = value.clone(),
        None => {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            manifest.pointer_mut(parent).unwrap()[name] = value.clone();
        }
    }
    let error = Manifest::parse(manifest.to_string().as_bytes()).unwrap_err();
    let message = refit_fixtures_vendor::chain(&error);
    assert!(message.contains(expected), "{pointer} = {value}: {message}");
}

#[test]
fn every_refusal_has_its_message() {
    Manifest::parse(base().to_string().as_bytes()).unwrap();
    check("/format", json!(2), "the manifest has format 2, this refit knows format 1");
    check("/format", json!("1"), "the manifest cannot be read");
    check("/news", json!(1), "unknown field `news`");
    check("/files/0/news", json!(1), "unknown field `news`");
    check("/appliance", json!("Shop"), "appliance name \"Shop\"");
    check("/appliance", json!("../shop"), "appliance name");
    check("/arch", json!(""), "architecture \"\"");
    check("/version", json!("1.0"), "the manifest cannot be read");
    check("/codec", json!("xz"), "unknown variant `xz`");
}

#[test]
fn every_refusal_of_a_path_has_its_message() {
    for (path, expected) in [
        ("", "is empty"),
        ("/bin/a", "is absolute"),
        ("//a", "is absolute"),
        ("../a", "climbs"),
        ("bin/../../a", "climbs"),
        ("bin/..", "climbs"),
        ("bin/./a", "shortest form"),
        ("bin//a", "shortest form"),
        ("bin/a/", "shortest form"),
        (".", "shortest form"),
        ("bin\\..\\a", "backslash"),
        ("bin/a\u{0}b", "control character"),
        ("bin/a\nb", "control character"),
        (".refit/manifest.json", "reserved"),
        (".Refit/x", "reserved"),
        ("lib/a", "no directory of the release"),
        ("bin/a/b", "no directory of the release"),
    ] {
        check("/files/0/path", json!(path), expected);
    }
    check("/files/0/path", json!(format!("bin/{}", "x".repeat(256))), "is too long");
    check("/files/0/path", json!(format!("bin/{}", "x/".repeat(600))), "is too long");
    check("/files/0/path", json!(format!("bin/{}a", "x/".repeat(40))), "is too deep");
    check("/files/2/path", json!("share/b"), "not in order, or is there twice");
    check("/files/2/path", json!("share/B"), "not in order");
    check("/files/1/path", json!("share/C"), "upper and lower case");
    check("/files/0/path", json!("bin"), "not in order, or is there twice");
    check("/files/0/path", json!("BIN"), "upper and lower case");
    check("/directories/1/path", json!("share/x"), "no directory of the release");
    check("/directories/1/path", json!("bin"), "not in order, or is there twice");
    check("/directories/1/path", json!("Bin"), "not in order");
    check("/files/0/kind", json!("asset"), "its directory says Binary");
}

#[test]
fn every_refusal_of_permissions_and_links_has_its_message() {
    for mode in ["4755", "1755", "755", "00755", "0o755", "+755", "0789", ""] {
        check("/files/0/mode", json!(mode), "\"0000\" to \"0777\" expected");
    }
    check("/files/0/mode", json!(493), "the manifest cannot be read");
    for target in ["", "/etc/passwd", "..", "../..", "../../share/b", "../share/../..", "b\u{0}", "b\\c"] {
        check("/files/2/link", json!(target), "is not inside the release");
    }
    check("/files/2/link", json!("c"), "is not inside the release"); // forever
    check("/files/2/mode", json!("0644"), "neither a whole file nor a link");
    check("/files/0/link", json!("b"), "neither a whole file nor a link");
    check("/files/0/size", Value::Null, "neither a whole file nor a link");
}

#[test]
fn every_refusal_of_contents_has_its_message() {
    check("/files/0/sha256", json!(ONE.to_uppercase()), "not a digest");
    check("/files/0/holes", json!(2), "more holes than bytes");
    check("/files/2/holes", json!(1), "neither a whole file nor a link");
    check("/files/0/size", json!(2), "do not add up to its size");
    check("/files/0/frames", json!([]), "no earlier file has its content");
    check("/files/0/frames/0/offset", json!(1), "does not begin where");
    check("/files/1/frames/0/offset", json!(0), "does not begin where");
    check("/files/1/frames/0/offset", json!(11), "does not begin where");
    check("/files/0/frames/0/stored", json!(0), "empty or larger");
    check("/files/0/frames/0/stored", json!(u64::MAX), "empty or larger");
    check("/files/0/frames/0/size", json!(0), "empty or larger");
    check("/files/0/frames/0/size", json!(5 << 20), "empty or larger");
    check("/files/0/frames/0/size", json!(-1), "the manifest cannot be read");
    check("/payload_bytes", json!(21), "its parts are 20");
    check("/installed_bytes", json!(1), "its parts are 2");
    check("/files/1/sha256", json!(ONE), "an earlier file already brought its content");
    let empty = json!({"path": "share/b", "kind": "asset", "mode": "0644", "size": 0, "sha256": ONE});
    check("/files/1", empty, "another file has the same digest and another size");
    let empty = json!({"path": "share/b", "kind": "asset", "mode": "0644", "size": 0, "sha256": TWO});
    check("/files/1", empty, "its digest is that of something");
}

#[test]
fn links_are_followed_before_they_are_believed() {
    fn check(links: &[(&str, &str)], inside: bool) {
        let mut manifest = base();
        manifest["directories"] = json!([
            {"path": "p", "mode": "0755"}, {"path": "p/q", "mode": "0755"}, {"path": "p/q/r", "mode": "0755"},
        ]);
        let files: Vec<_> =
            links.iter().map(|(path, link)| json!({"path": path, "kind": "asset", "link": link})).collect();
        manifest["files"] = json!(files);
        manifest["payload_bytes"] = json!(0);
        manifest["installed_bytes"] = json!(0);
        let result = Manifest::parse(manifest.to_string().as_bytes());
        assert_eq!(result.is_ok(), inside, "{links:?}: {result:?}");
    }
    check(&[("p/q/r/up", "../../../p")], true);
    check(&[("z", "p/q/r")], true);
    check(&[("z", "nowhere/yet")], true);
    // By its text this stays inside; by what it follows it does not.
    check(&[("p/q/r/up", "../../../p"), ("z", "p/q/r/up/../../x")], false);
    check(&[("p/q/r/up", "../../../p"), ("z", "p/q/r/up/../p")], true);
    check(&[("y", "z"), ("z", "y")], false);
    check(&[("z", "z/z")], false);
}

#[test]
fn a_manifest_is_the_same_after_it_was_written() {
    let manifest = Manifest::parse(base().to_string().as_bytes()).unwrap();
    let bytes = manifest.to_bytes().unwrap();
    assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
    assert_eq!(Manifest::parse(&bytes).unwrap().to_bytes().unwrap(), bytes);
    let mut empty = base();
    empty["files"][1] = json!({"path": "share/b", "kind": "asset", "mode": "0644", "size": 0, "sha256": EMPTY});
    empty["payload_bytes"] = json!(10);
    empty["installed_bytes"] = json!(1);
    Manifest::parse(empty.to_string().as_bytes()).unwrap();
}
