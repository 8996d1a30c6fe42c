//! The history on the disk: bounded, and whole where it was put aside.

use std::fs::{self, File};
use std::io::Read;

use serde_json::{Value, json};

use crate::appliance::{Appliance, text};
use crate::release::Release;

/// The most that both files may have together, with room for an entry.
const BYTES_MAX: u64 = 7 << 20;

/// Returns the line of an old attempt, which is some kilobytes long.
fn line(number: usize) -> String {
    let entry = json!({
        "id": format!("old-{number}"), "at": "2026-01-01T00:00:00.000Z", "who": "cli", "kind": "update", "from": "0.1.0",
        "to": format!("0.{number}.0"), "outcome": "failed", "step": "preflight", "reason": "it was so", "component": null,
        "output": ["x".repeat(4000)], "duration_ms": 1, "durations": {},
    });
    format!("{entry}\n")
}

#[test]
fn a_history_that_has_grown_is_put_aside_and_read_on() {
    let mut appliance = Appliance::new(&Release::bare("1.0.0"));
    let path = appliance.home().join("history.jsonl");
    // Nearly 12 MiB, as older programs let it grow; its last line was torn by a power cut.
    let old: String = (0..2_800).map(line).collect::<String>() + "{\"id\": \"torn";
    fs::write(&path, &old).expect("write a history");
    let mut held = File::open(&path).expect("open it");
    appliance.run_guard();
    appliance.wait_running();
    for version in ["1.1.0", "1.2.0"] {
        appliance.install(&Release::bare(version), &[]).ends_with(0);
        appliance.settled(version);
    }
    let sizes = ["history.jsonl", "history.jsonl.1"]
        .map(|name| fs::metadata(appliance.home().join(name)).map_or(0, |found| found.len()));
    assert!(sizes[0] > 0 && sizes[1] > 0 && sizes[0] + sizes[1] < BYTES_MAX, "{sizes:?}");
    // The newest first: what was put aside follows, without a gap.
    let history = appliance.history();
    let to: Vec<String> = history.iter().map(|entry| text(&entry["to"])).collect();
    let expected: Vec<String> = ["1.2.0".to_owned(), "1.1.0".to_owned()]
        .into_iter()
        .chain((2_400..2_800).rev().map(|number| format!("0.{number}.0")))
        .collect();
    assert_eq!(to[..expected.len()], expected);
    let printed = appliance.refit(&["history", "--json"]).ends_with(0).objects();
    assert_eq!(printed[0]["history"].as_array().map(Vec::len), Some(history.len()));
    // Who had it open reads it to its end, and finds it as it was.
    let mut text = String::new();
    held.read_to_string(&mut text).expect("read on");
    assert!(text == old, "{} bytes of {}", text.len(), old.len());

    // And once more, by a rename: a file that this program wrote.
    let grown: String = fs::read_to_string(&path).expect("read") + &(3_000..3_600).map(line).collect::<String>();
    fs::write(&path, grown).expect("write it");
    appliance.refit(&["rollback"]).ends_with(0);
    appliance.settled("1.1.0");
    let to: Vec<Value> = appliance.history().iter().map(|entry| entry["to"].clone()).collect();
    assert_eq!(to.len(), 1 + 600 + 2, "what was put aside first is gone");
    assert_eq!((&to[0], &to[1], &to[602]), (&json!("1.1.0"), &json!("0.3599.0"), &json!("1.1.0")));
}
