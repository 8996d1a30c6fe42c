//! Circles of files that import each other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::tree::{Found, Tree};

/// Returns each circle of files, an import a line.
///
/// A module in files of its own is one with the module that declares it: what they take from its file ties no circle, and what
/// they take from each other does.
pub(crate) fn circles(house: &Tree) -> Vec<String> {
    // From a file to each that it imports, with the line of the first import.
    let mut edges: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
    for (module, import) in house.imports() {
        let Some(path) = house.absolute(module, &import.path, 0) else { continue };
        let Found::Item(defining) = house.find(&path, 0) else { continue };
        let (from, to) = (house.modules[module].file.as_str(), house.modules[&defining].file.as_str());
        let is_inside = module.len() > defining.len() && module.starts_with(&defining);
        if from != to && !is_inside {
            let text = || format!("{from}:{} imports {} of {to}", import.line, import.path.join("::"));
            edges.entry(from).or_default().entry(to).or_insert_with(text);
        }
    }
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for start in edges.keys() {
        if seen.contains(start) {
            continue;
        }
        let Some(files) = shortest_way_back(&edges, start) else { continue };
        let next = files.iter().cycle().skip(1);
        let lines: Vec<&str> = files.iter().zip(next).map(|(from, to)| edges[from][to].as_str()).collect();
        found.push(lines.join("\n"));
        seen.extend(files);
    }
    found
}

/// Returns the files on the shortest way from `start` to itself, if there is one.
fn shortest_way_back<'a>(edges: &BTreeMap<&'a str, BTreeMap<&'a str, String>>, start: &'a str) -> Option<Vec<&'a str>> {
    let mut before = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for to in edges.get(file).into_iter().flat_map(BTreeMap::keys).copied() {
            if to == start {
                let mut files = vec![file];
                while let Some(previous) = before.get(files[files.len() - 1]) {
                    files.push(*previous);
                }
                files.reverse();
                return Some(files);
            }
            if !before.contains_key(to) {
                before.insert(to, file);
                queue.push_back(to);
            }
        }
    }
    None
}
