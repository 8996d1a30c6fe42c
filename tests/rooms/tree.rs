//! The modules of a crate, and where a path in one of them leads.

use std::collections::BTreeMap;

use crate::parser::{Import, Module, Use, parse};

/// The modules of a crate, by their paths.
#[derive(Default)]
pub(crate) struct Tree {
    pub(crate) modules: BTreeMap<Vec<String>, Module>,
}

/// Where a path leads.
pub(crate) enum Found {
    /// To something that this module defines.
    Item(Vec<String>),
    Module(Vec<String>),
    /// Into another crate.
    Outside,
    Nowhere,
}

/// Re-exports on the way to a definition; more is a circle of them.
const STEPS_MAX: usize = 16;

impl Tree {
    /// Returns the modules of the crate whose `lib.rs` is in `dir`.
    pub(crate) fn read(dir: &str, sources: &BTreeMap<String, String>) -> Self {
        let mut tree = Self::default();
        let mut files = vec![(Vec::new(), format!("{dir}/lib.rs"))];
        while let Some((path, file)) = files.pop() {
            let text = sources.get(&file).unwrap_or_else(|| panic!("there is no {file}"));
            let (modules, children) = parse(&file, text, &path);
            tree.modules.extend(modules);
            for child in children {
                let inside = match file.strip_suffix("/mod.rs").or_else(|| file.strip_suffix("/lib.rs")) {
                    Some(dir) => dir,
                    None => file.trim_end_matches(".rs"),
                };
                let name = format!("{inside}/{}", child[path.len()..].join("/"));
                let places = [format!("{name}.rs"), format!("{name}/mod.rs")];
                let place = places.into_iter().find(|place| sources.contains_key(place));
                files.push((child, place.unwrap_or_else(|| panic!("there is no module {name}"))));
            }
        }
        tree
    }

    /// Returns what each module imports.
    pub(crate) fn imports(&self) -> impl Iterator<Item = (&Vec<String>, &Import)> {
        self.modules.iter().flat_map(|(path, module)| {
            let used = module.uses.iter().filter(|used| {
                let is_needed = used.name.as_ref().is_none_or(|name| module.words.contains(name));
                !used.is_public || is_needed
            });
            used.map(|used| &used.import).chain(&module.paths).map(move |import| (path, import))
        })
    }

    /// Returns a line for each path within the crate that leads nowhere: this file reads something wrong then.
    pub(crate) fn lost(&self) -> Vec<String> {
        let lost = self.imports().filter(|(module, import)| {
            let path = self.absolute(module, &import.path, 0);
            path.is_some_and(|path| matches!(self.find(&path, 0), Found::Nowhere))
        });
        lost.map(|(module, import)| {
            format!("{}:{}: {}", self.modules[module].file, import.line, import.path.join("::"))
        })
        .collect()
    }

    /// Returns the room that `path` from the root of the crate leads to, if it leads to one.
    pub(crate) fn room(&self, path: &[String]) -> Option<String> {
        let rooms = &self.modules[&Vec::new()].children;
        let first = path.first().filter(|first| rooms.contains(*first)).cloned();
        first.or_else(|| match self.find(path, 0) {
            Found::Item(module) | Found::Module(module) => module.first().cloned(),
            Found::Outside | Found::Nowhere => None,
        })
    }

    /// Returns `path`, as it is written in `module`, from the root of the crate; `None` if it leads out of the crate, or is a
    /// type of the module itself.
    pub(crate) fn absolute(&self, module: &[String], path: &[String], steps: usize) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let joined = |base: &[String], rest: &[String]| Some([base, rest].concat());
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => joined(module, rest),
            "super" => {
                let (_, parent) = module.split_last()?;
                match rest.first().map(String::as_str) {
                    Some("super") => self.absolute(parent, rest, steps),
                    _ => joined(parent, rest),
                }
            }
            name => {
                let here = &self.modules[module];
                if here.children.contains(name) {
                    return joined(module, path);
                }
                let used = here.uses.iter().find(|used| used.name.as_deref() == Some(name))?;
                if steps == STEPS_MAX || used.import.path.first() == Some(first) {
                    return None;
                }
                joined(&self.absolute(module, &used.import.path, steps + 1)?, rest)
            }
        }
    }

    /// Returns where `path` from the root of the crate leads.
    pub(crate) fn find(&self, path: &[String], steps: usize) -> Found {
        if steps == STEPS_MAX {
            return Found::Nowhere;
        }
        let mut at = Vec::new();
        for (depth, name) in path.iter().enumerate() {
            let module = &self.modules[&at];
            let follow = |used: &Use, rest: &[String]| match self.absolute(&at, &used.import.path, steps) {
                Some(base) => self.find(&[base, rest.to_vec()].concat(), steps + 1),
                None => Found::Outside,
            };
            if module.children.contains(name) {
                at.push(name.clone());
                continue;
            }
            if module.items.contains(name) {
                return Found::Item(at);
            }
            if let Some(used) = module.uses.iter().find(|used| used.name.as_ref() == Some(name)) {
                return follow(used, &path[depth + 1..]);
            }
            let globs = module.uses.iter().filter(|used| used.name.is_none());
            let found = globs.map(|used| follow(used, &path[depth..])).find(|found| !matches!(found, Found::Nowhere));
            return found.unwrap_or(Found::Nowhere);
        }
        Found::Module(at)
    }
}
