//! The rooms of the house: which module may import which, and no two files in a circle.
//!
//! The sources are read as text: `use` lines and paths in the code, each followed through re-exports to the file that defines
//! the name. What only tests import does not count, and neither does a `pub use` whose name the file itself does not use.
//! Between crates Cargo keeps the direction.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod circles;
mod directions;
mod parser;
mod samples;
mod tokens;
mod tree;
mod untyped;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use circles::circles;
use directions::misdirected;
use tree::Tree;

/// The rooms of `src/`, the lowest first, each with those that it may import: all of them have rows above its own, so that no
/// two rooms need each other.
const ROOMS: &[(&str, &str)] = &[
    ("wire", ""),
    ("events", "wire"),
    ("tickets", "wire"),
    ("awake", ""),
    ("handover", "awake"),
    ("process", "handover"),
    ("home", "process"),
    ("probe", "awake handover"),
    ("config", "handover"),
    ("auth", "home"),
    ("logs", "wire config"),
    ("carry", "wire handover events tickets config auth logs"),
    ("http", "process handover"),
    ("component", "wire awake handover home process probe config logs carry"),
    ("access", "process config carry"),
    ("update", "wire home tickets awake handover process probe config carry http component"),
    ("requests", "wire tickets config carry update"),
    ("peers", "wire awake handover tickets process config carry component access requests"),
    ("web", "wire"),
    ("api", "wire events tickets process config auth logs carry http component access update requests peers web"),
    ("guard", "home handover process logs"),
    (
        "runtime",
        "wire home events tickets handover process probe config auth logs carry http component access update requests peers api",
    ),
    ("cli", "wire home handover process probe config auth logs component api guard runtime"),
];

#[test]
fn rooms_import_only_those_that_the_table_allows() {
    assert_none("imports against the table ROOMS in tests/rooms/main.rs", &misdirected(&read("src"), ROOMS));
}

#[test]
fn the_table_names_every_room_once_and_allows_only_those_above() {
    let rooms: Vec<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    let modules = read("src").modules[&Vec::new()].children.clone();
    assert_eq!(
        rooms.iter().map(|room| (*room).to_owned()).collect::<BTreeSet<_>>(),
        modules,
        "the modules of src/lib.rs"
    );
    assert_eq!(rooms.len(), modules.len(), "a room has two rows");
    for (row, (room, allowed)) in ROOMS.iter().enumerate() {
        for other in allowed.split_whitespace() {
            assert!(rooms[..row].contains(&other), "{room} may not import {other}, which is not above it in the table");
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for dir in crates() {
        assert_none("files that import each other in a circle", &circles(&read(&dir)));
    }
}

#[test]
fn every_path_leads_to_a_file() {
    for dir in crates() {
        assert_none("paths that this test cannot follow", &read(&dir).lost());
    }
}

/// What goes over a wire has a type in `src/wire/`: an object literal is a second description of it, and a lookup by text a third.
#[test]
fn what_goes_over_a_wire_has_a_type() {
    // Files that only tests have.
    let is_program = |file: &&String| !file.ends_with("tests.rs");
    let all = sources("src");
    let of = |find: fn(&str, &str) -> Vec<String>, dir: &str| -> Vec<String> {
        let files = all.keys().filter(is_program).filter(|file| file.starts_with(dir));
        files.flat_map(|file| find(file, &all[file])).collect()
    };
    assert_none("JSON that is written without a type", &of(untyped::literals, "src/"));
    assert_none("JSON that a command looks up by a text", &of(untyped::lookups, "src/cli/"));
}

fn assert_none(what: &str, lines: &[String]) {
    assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
}

/// Returns the directories with the sources of the crates.
fn crates() -> Vec<String> {
    let beside = std::fs::read_dir(root().join("crates")).unwrap();
    let beside = beside.map(|entry| format!("crates/{}/src", entry.unwrap().file_name().to_str().unwrap()));
    ["src".to_owned(), "updater/src".to_owned()].into_iter().chain(beside).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the modules of the crate whose `lib.rs` is in `dir`.
fn read(dir: &str) -> Tree {
    Tree::read(dir, &sources(dir))
}

/// Returns the text of every source file below `dir`, by its path from the root of the workspace.
fn sources(dir: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}
