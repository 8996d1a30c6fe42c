//! The configuration: every mistake in it is named before anything starts; what an admin wrote survives updates, and a rollback
//! finds the old one as it was.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::appliance::{Appliance, Ran, refit};
use crate::http::{At, Request};
use crate::release::Release;

fn live(appliance: &Appliance, version: &str) -> PathBuf {
    appliance.home().join("config").join(version).join("shop.toml")
}

fn read(appliance: &Appliance, version: &str) -> String {
    fs::read_to_string(live(appliance, version)).expect("read the live configuration")
}

fn first_page(appliance: &Appliance) -> String {
    Request::new(&At::Tcp(appliance.address("http")), "GET", "/").send().text()
}

#[test]
fn an_admins_edit_is_merged_into_the_next_release_and_a_rollback_finds_the_old_file() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    assert!(first_page(&appliance).contains("Welcome to 1.0.0."));
    let edited = read(&appliance, "1.0.0").replace("unit = \"m\"", "unit = \"ft\" # as my customers want it");
    fs::write(live(&appliance, "1.0.0"), &edited).expect("edit it");

    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    let merged = read(&appliance, "1.1.0");
    assert!(merged.contains("unit = \"ft\" # as my customers want it"), "the admin's line: {merged}");
    assert!(merged.contains("Welcome to 1.1.0."), "the vendor's line: {merged}");
    assert!(first_page(&appliance).contains("Welcome to 1.1.0."));
    assert_eq!(read(&appliance, "1.0.0"), edited, "the old file is untouched");

    let later = merged.replace("unit = \"ft\"", "unit = \"yd\"");
    fs::write(live(&appliance, "1.1.0"), later).expect("edit it");
    appliance.refit(&["rollback"]).ends_with(0);
    assert_eq!(read(&appliance, "1.0.0"), edited, "as it was");
    assert!(first_page(&appliance).contains("Welcome to 1.0.0."));
}

#[test]
fn an_edit_of_the_same_line_wins_over_the_vendors() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let edited = read(&appliance, "1.0.0").replace("Welcome to 1.0.0.", "Ahoy.");
    fs::write(live(&appliance, "1.0.0"), edited).expect("edit it");
    assert_eq!(appliance.status()["config"]["unmerged"], json!([]));
    let installed = appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0).stdout;
    let merged = read(&appliance, "1.1.0");
    assert!(merged.contains("greeting = \"Ahoy.\"") && !merged.contains("<<<<"), "{merged}");
    assert!(first_page(&appliance).contains("Ahoy."));

    // The admin hears of it, until it is seen to.
    let told = "config/1.1.0/shop.toml is as you left it; the release's default, which changed the same lines, is \
                config/1.1.0/shop.toml.new";
    assert!(installed.contains(told), "{installed}");
    let shown = || appliance.refit(&["status"]).ends_with(0).stdout;
    assert!(shown().contains(&format!("warning: {told}")), "{}", shown());
    let unmerged = json!([{ "path": "shop.toml", "new_default": "shop.toml.new", "because": "lines" }]);
    assert_eq!(appliance.status()["config"]["unmerged"], unmerged);
    fs::remove_file(live(&appliance, "1.1.0").with_extension("toml.new")).expect("the default lies there");
    assert_eq!(appliance.status()["config"]["unmerged"], json!([]));
    assert!(!shown().contains("warning:"), "{}", shown());
}

#[test]
fn a_failed_update_leaves_the_live_configuration_alone() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let edited = read(&appliance, "1.0.0").replace("unit = \"m\"", "unit = \"ft\"");
    fs::write(live(&appliance, "1.0.0"), &edited).expect("edit it");
    let bad = Release::shop_with("1.2.0", ", \"--fault\", \"exit-at-start\"");
    appliance.install(&bad, &[]).complains_with(70);
    appliance.settled("1.0.0");
    assert_eq!(read(&appliance, "1.0.0"), edited);
    // And the next good one gets the edit all the same.
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    assert!(read(&appliance, "1.1.0").contains("unit = \"ft\""));
}

#[test]
fn the_machines_own_settings_hold_for_every_release() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let listeners = appliance.status()["listeners"].clone();
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    let status = appliance.settled("1.1.0");
    assert_eq!(status["listeners"], listeners, "local.toml names the addresses, whatever the release says");
    assert!(listeners.to_string().contains(&appliance.address("http").to_string()), "{listeners}");
}

/// Mistakes of every kind, and where each is.
const MISTAKES: [(&str, &[&str]); 13] = [
    ("[appliance]", &[]),
    ("name = \"shop\"", &[]),
    ("version = \"1.0.0\"", &[]),
    ("colour = \"red\"", &["1: unknown field `colour`"]),
    ("[listeners]", &[]),
    ("admin = \"0.0.0.0:8080\"", &[]),
    ("http = \"127.0.0.1:8080\"", &["8: the listener http cannot have 127.0.0.1:8080 beside admin"]),
    ("[[component]]", &[]),
    ("name = \"web\"", &[]),
    ("command = [\"bin/nothing\"]", &["11: there is no program \"bin/nothing\" in the release"]),
    ("needs = [\"web\", \"db\"]", &["10: the component web waits for itself", "17: there is no component \"db\""]),
    ("listeners = [\"https\"]", &["14: there is no listener \"https\""]),
    ("stop_timeout = 5", &["16: invalid type: integer `5`"]),
];

/// Returns a release with all of them, and what is to be said of it.
fn mistaken(dir: &std::path::Path) -> Vec<String> {
    let text: String = MISTAKES.iter().map(|(line, _)| format!("{line}\n")).collect();
    fs::write(dir.join("appliance.toml"), text).expect("written");
    let each = MISTAKES.iter().enumerate();
    each.flat_map(|(index, (_, said))| said.iter().map(move |said| format!("appliance.toml:{}:{said}", index + 1)))
        .collect()
}

#[test]
fn every_mistake_is_named_at_once_before_a_release_is_packed() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected = mistaken(dir.path());
    let check = Ran::of(refit().args(["config", "check"]).arg(dir.path())).ends_with(78);
    let lines: Vec<&str> = check.stdout.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{}", check.stdout);
    for (line, expected) in lines.iter().zip(&expected) {
        assert!(line.contains(expected.as_str()), "{expected} is not in: {line}");
    }
    assert_eq!(check.stderr.lines().count(), 1, "{}", check.stderr);
    let check = Ran::of(refit().args(["config", "check", "--json"]).arg(dir.path())).ends_with(78).objects();
    let first = &check[0]["mistakes"][0];
    assert_eq!((&first["line"], &first["column"]), (&4.into(), &1.into()), "{first}");
    assert_eq!(check[1]["error"]["exit"], 78);

    let keys = crate::release::Vendor::get().root().with_file_name("");
    let mut pack = refit();
    pack.arg("pack").arg(dir.path()).arg("--keys").arg(keys).arg("-o").arg(dir.path().join("out.refit"));
    let said = Ran::of(&mut pack).complains_with(78);
    assert!(expected.iter().all(|expected| said.contains(expected.as_str())), "{said}");
    assert!(!dir.path().join("out.refit").exists());
}

#[test]
fn with_any_mistake_nothing_is_started() {
    const LOCAL: &str = "[log]\nfiles = 0\n[[component]]\nname = \"shop\"\nlisteners = [\"htp\"]\n\
                         command = [\"no-such-program\"]\n[[component]]\nname = \"stock\"\nafter = [\"shop\"]\n";
    let appliance = Appliance::new(&Release::shop("1.0.0")).local(|_| LOCAL.to_owned());
    let said = appliance.refit(&["run", "--with-parent"]).complains_with(78);
    let checked = appliance.refit(&["config", "check"]).ends_with(78).stdout;
    let expected = [
        "local.toml:2:9: 0 log files are not between",
        "local.toml:5:14: there is no listener \"htp\"",
        "local.toml:6:11: there is no program \"no-such-program\" on PATH",
        "local.toml:9:10: the components wait for each other: ",
    ];
    for text in [&said, &checked] {
        for expected in expected {
            assert!(text.contains(expected), "{expected} is not in: {text}");
        }
    }
    assert!(!appliance.home().join("data/order").exists() && appliance.processes().is_empty(), "nothing was started");
    let appliance = appliance.local(|_| String::new());
    assert_eq!(appliance.refit(&["config", "check"]).ends_with(0).stdout, "no mistakes\n");
}
