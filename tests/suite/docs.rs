//! What the documentation says about the tests, held against them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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
