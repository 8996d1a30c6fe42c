//! Whom an appliance trusts, seen from outside: dates, the clock, approval by digest, damaged trust.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::appliance::{Appliance, Ran, refit};
use crate::http::Request;
use crate::release::{Release, Vendor};
use crate::repository::with_update_key;

/// Packs `release` in `dir` as if it was made at this time, in seconds since 1970, good for a day.
fn packed_at(release: &Release, dir: &Path, seconds: &str) -> PathBuf {
    let tree = dir.join(format!("tree-{}-{seconds}", release.version()));
    release.write(&tree);
    let out = dir.join(format!("{}-{seconds}.refit", release.version()));
    let mut pack = refit();
    pack.arg("pack").arg(&tree).arg("-o").arg(&out).arg("--keys").arg(Vendor::get().keys());
    Ran::of(pack.args(["--expires-days", "1", "--level", "1"]).env("SOURCE_DATE_EPOCH", seconds)).ends_with(0);
    out
}

#[test]
fn an_expired_package_is_installed_or_refused_by_policy() {
    let old = "1000000000"; // 2001
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let package = packed_at(&Release::bare("1.1.0"), appliance.scratch(), old);
    let ran = appliance.install_package(&package, &[]).ends_with(0);
    assert!(ran.stdout.contains("its signatures are past their date"), "{}", ran.stdout);
    appliance.settled("1.1.0");

    let appliance = with_update_key(Appliance::new(&Release::bare("1.0.0")), "expired_offline = \"refuse\"").start();
    let line = appliance.install_package(&package, &[]).complains_with(65);
    assert!(line.contains("metadata expired at 2001-09-10"), "{line}");
    appliance.settled("1.0.0");
}

#[test]
fn a_first_package_past_its_date_is_said_or_refused_by_its_own_policy() {
    let dir = tempfile::tempdir().expect("a directory");
    let init = |package: &Path, home: &Path, json: bool| {
        let mut init = refit();
        init.arg("init").arg(package).arg("--root").arg(Vendor::get().root()).arg("--home").arg(home);
        Ran::of(if json { init.arg("--json") } else { &mut init })
    };
    let package = packed_at(&Release::bare("1.0.0"), dir.path(), "1000000000"); // 2001
    let ran = init(&package, &dir.path().join("text"), false).ends_with(0);
    assert!(ran.stdout.contains("the package's signatures are past their date"), "{}", ran.stdout);
    let made = init(&package, &dir.path().join("json"), true).ends_with(0).objects().remove(0);
    assert_eq!((&made["expired"], &made["clock_behind"]), (&json!(true), &Value::Null), "{made}");
    let fresh = init(&Release::bare("1.0.0").package(), &dir.path().join("fresh"), true).ends_with(0);
    assert_eq!(fresh.objects()[0]["expired"], false);

    let tree = dir.path().join("strict");
    Release::bare("1.1.0").write(&tree);
    let description = fs::read_to_string(tree.join("appliance.toml")).expect("read");
    let strict = format!("{description}\n[update]\nexpired_offline = \"refuse\"\n");
    fs::write(tree.join("appliance.toml"), strict).expect("write");
    let pack = |seconds: &str| {
        let out = dir.path().join(format!("strict-{seconds}.refit"));
        let mut pack = refit();
        pack.arg("pack").arg(&tree).arg("-o").arg(&out).arg("--keys").arg(Vendor::get().keys());
        Ran::of(pack.args(["--level", "1"]).env("SOURCE_DATE_EPOCH", seconds)).ends_with(0);
        out
    };
    let home = dir.path().join("home");
    let line = init(&pack("1000000000"), &home, false).complains_with(65);
    assert!(line.contains("metadata expired at 2002-09-09") && line.contains("nothing was changed"), "{line}");
    assert!(!home.exists());
    let now = seconds_now();
    init(&pack(&now), &home, false).ends_with(0);
}

/// The time, in seconds since 1970.
fn seconds_now() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    now.as_secs().to_string()
}

#[test]
fn a_root_past_its_date_is_said_when_packing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (keys, tree, out) = (dir.path().join("keys"), dir.path().join("tree"), dir.path().join("out.refit"));
    let expires = "2020-01-01T00:00:00Z".parse().expect("a time");
    refit_author::keys::Keys::init(&keys, expires).expect("make keys");
    Release::bare("1.0.0").write(&tree);
    let mut pack = refit();
    pack.arg("pack").arg(&tree).arg("-o").arg(&out).arg("--keys").arg(&keys);
    let line = Ran::of(&mut pack).complains_with(0);
    assert!(line.contains("root 1 of these keys expired at 2020-01-01") && line.contains("keys renew"), "{line}");
}

#[test]
fn a_clock_before_the_release_date_is_said_by_status_and_at_receive() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let trust = appliance.status()["trust"].clone();
    assert_eq!((&trust["warning"], &trust["clock_behind"]), (&Value::Null, &json!(false)), "{trust}");
    assert_eq!(trust["roles"][0]["role"], "root");
    assert!(trust["roles"][0]["expires_in_days"].as_i64().is_some_and(|days| days > 3000), "{trust}");
    let package = packed_at(&Release::bare("1.1.0"), appliance.scratch(), "4102444800"); // 2100
    let ran = appliance.install_package(&package, &[]).ends_with(0);
    assert!(ran.stdout.contains("the clock is before the date of a signed release"), "{}", ran.stdout);
    let trust = appliance.settled("1.1.0")["trust"].clone();
    assert_eq!(trust["clock_behind"], true);
    let text = appliance.refit(&["status"]).ends_with(0).stdout;
    assert!(text.contains("warning: the clock says") && text.contains("2100-01-01"), "{text}");
}

#[test]
fn what_was_approved_is_what_is_installed() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let shown = Release::bare("1.1.0").package();
    let swapped = Release::bare("1.1.0").file("share/other", "another release of the same version\n").package();
    let inspect = |package: &Path| -> String {
        let mut inspect = refit();
        let object = Ran::of(inspect.arg("inspect").arg(package).arg("--json")).ends_with(0).objects().remove(0);
        object["digest"].as_str().expect("a digest").to_owned()
    };
    let (approved, other) = (inspect(&shown), inspect(&swapped));
    assert_ne!(approved, other);
    // By the command line: the file was swapped after somebody looked at it.
    let line = appliance.install_package(&swapped, &["--digest", &approved]).complains_with(65);
    assert!(line.contains(&approved) && line.contains(&other) && line.contains("was approved"), "{line}");
    assert_eq!(fs::read_dir(appliance.home().join("staging")).expect("list").count(), 0, "nothing of it is left");
    // By the API, as the page does it: another package came in between what was shown and the click.
    let put = |package: &Path, query: &str| {
        let path = format!("/api/v1/packages{query}");
        Request::new(&appliance.socket(), "PUT", &path).body(fs::read(package).expect("read")).send()
    };
    assert_eq!(put(&shown, "").json()["digest"], json!(approved));
    assert_eq!(put(&swapped, &format!("?digest={approved}")).status, 422);
    let update = |digest: &str| {
        Request::new(&appliance.socket(), "POST", "/api/v1/updates").json(&json!({ "digest": digest })).send()
    };
    assert_eq!(update(&other).status, 404, "what nobody was shown");
    assert_eq!(put(&swapped, "").json()["digest"], json!(other));
    assert_eq!(update(&approved).status, 202);
    appliance.settled("1.1.0");
    let releases = appliance.refit(&["releases", "--json"]).ends_with(0).objects().remove(0);
    let installed = releases["releases"].as_array().expect("a list").iter().find(|it| it["version"] == "1.1.0");
    assert_eq!(installed.expect("it is there")["digest"], json!(approved));
    assert!(!appliance.home().join("releases/1.1.0/share/other").exists());
}

#[test]
fn a_damaged_trust_stops_updates_and_not_the_appliance() {
    let mut appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let trust = appliance.home().join("trust");
    let package = Release::bare("1.1.0").package();
    fs::write(trust.join("packages.json"), "{\"format\":2,").expect("write");
    let line = appliance.install_package(&package, &[]).complains_with(74);
    assert!(line.contains("packages.json is damaged") && line.contains("refit trust reset"), "{line}");
    let warning = appliance.status()["trust"]["warning"].clone();
    assert!(warning.as_str().is_some_and(|text| text.contains("refit trust reset")), "{warning}");
    fs::remove_file(trust.join("root.json")).expect("remove");
    appliance.kill_guard();
    crate::appliance::end_all(appliance.home());
    let appliance = appliance.start();
    let line = appliance.install_package(&package, &[]).complains_with(65);
    assert!(line.contains("no root is trusted"), "{line}");

    let stranger = Vendor::get().keys().with_file_name("nowhere.json");
    appliance.run(refit().args(["trust", "reset"]).arg(stranger)).complains_with(64);
    appliance.run(refit().args(["trust", "reset"]).arg(Vendor::get().root())).ends_with(0);
    let shown = appliance.refit(&["trust", "show", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!((&shown["roles"][0]["role"], &shown["warning"]), (&json!("root"), &Value::Null), "{shown}");
    appliance.install_package(&package, &[]).ends_with(0);
    appliance.settled("1.1.0");
}
