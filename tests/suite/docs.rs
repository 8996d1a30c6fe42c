//! What the documentation says about the tests, held against them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use refit_updater::modes::{PLACES, Place};

/// Adds the numbers of the cases after which tests below `dir` are named.
fn tested_below(dir: &Path, numbers: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("list").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("node_modules") {
            tested_below(&path, numbers);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let named = text.lines().filter_map(|line| line.strip_prefix("fn b")?.get(..4)?.strip_suffix('_'));
            numbers
                .extend(named.filter(|number| number.bytes().all(|digit| digit.is_ascii_digit())).map(str::to_owned));
        }
    }
}

#[test]
fn every_case_of_the_bus_is_a_test_and_every_number_a_case() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/bus-cases.md")).expect("the page");
    let listed: BTreeSet<String> =
        page.lines().filter_map(|line| Some(line.strip_prefix("**B")?.get(..3)?.to_owned())).collect();
    let mut tested = BTreeSet::new();
    for dir in ["tests", "crates"].map(|dir| root.join(dir)).into_iter().filter(|dir| dir.is_dir()) {
        tested_below(&dir, &mut tested);
    }
    assert_eq!(tested, listed);
    assert!(listed.len() > 90 && page.contains(&format!("\n{} cases ", listed.len())), "{}", listed.len());
}

/// Returns the row of the table about modes.
fn row(place: &Place) -> String {
    let name = if place.path.is_empty() { "the home".to_owned() } else { format!("`{}`", place.path) };
    let (mode, least, most) = (place.mode, place.least, place.most);
    let range = if least == most { String::new() } else { format!(", {least:04o} to {most:04o} stays") };
    format!("| {name} | {mode:04o}{range} | {} |", place.why)
}

#[test]
fn the_page_about_security_has_the_mode_of_every_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/security.md")).expect("the page");
    let begin = "| below the home | mode | why |\n|---|---|---|\n";
    let (_, rest) = page.split_once(begin).expect("the table");
    let shown: Vec<&str> = rest.lines().take_while(|line| line.starts_with('|')).collect();
    assert_eq!(shown, PLACES.iter().map(row).collect::<Vec<_>>());
}
