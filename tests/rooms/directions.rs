//! Imports from one room to another.

use std::collections::BTreeSet;

use crate::tree::Tree;

/// Returns a line for each import that `rooms` does not allow.
pub(crate) fn misdirected(house: &Tree, rooms: &[(&str, &str)]) -> Vec<String> {
    let mut lines = BTreeSet::new();
    for (module, import) in house.imports() {
        let (Some(room), Some(path)) = (module.first(), house.absolute(module, &import.path, 0)) else { continue };
        let Some(other) = house.room(&path) else { continue };
        let allowed = rooms.iter().find(|(name, _)| name == room).map_or("", |(_, allowed)| allowed);
        if other != *room && !allowed.split_whitespace().any(|name| name == other) {
            let (file, line) = (&house.modules[module].file, import.line);
            lines.insert(format!("{file}:{line}: {room} must not import {}, only {allowed:?}", import.path.join("::")));
        }
    }
    lines.into_iter().collect()
}
