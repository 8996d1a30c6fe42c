//! What a component's process is made of, as one digest: its definition, its files, its configuration.
//!
//! Two releases with the same fingerprint want the same process, so an update leaves it alone. Which files are a component's
//! own is said by `files = [...]`; without it, all are that belong to nobody else: everything but the runtime's program, the
//! hooks, the definition of the appliance, and the programs of other components.

use std::collections::BTreeSet;
use std::io;

use refit_updater::Manifest;
use refit_updater::config::{Live, LiveFile};
use refit_updater::manifest::{Body, Kind};
use sha2::{Digest, Sha256};

use crate::config::{self, Component, Config};

/// Returns the fingerprint of `component` in the release that `manifest` describes, with the live configuration `live`. What cannot be
/// read there does not count.
///
/// # Errors
/// The definition of the component cannot be written down.
pub fn of(component: &Component, config: &Config, manifest: &Manifest, live: &Live) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(&serde_json::to_string(component)?);
    for name in &component.listeners {
        add(&config.listeners.get(name).map_or_else(String::new, ToString::to_string));
    }
    let program = |component: &Component| config::packed_program(&component.command[0]).into_owned();
    let own_program = program(component);
    let others = config.components.iter().filter(|other| other.name != component.name).map(program);
    let programs: BTreeSet<String> =
        others.filter(|other| *other != own_program).chain(config.runtime.clone()).collect();
    for file in manifest.files() {
        let path = file.path.as_str();
        let own = match &component.files {
            Some(patterns) => patterns.iter().any(|pattern| matches(pattern, path)),
            None => {
                path != config::FILE
                    && !programs.contains(path)
                    && match file.kind {
                        Kind::Binary | Kind::Library | Kind::Asset => true,
                        Kind::Hook | Kind::Config => false,
                    }
            }
        };
        if own {
            add(path);
            // Where the content lies in the package says nothing about the content.
            match &file.body {
                Body::Regular { mode, sha256, .. } => add(&format!("{mode:?} {sha256}")),
                Body::Link { target } => add(target),
            }
        }
    }
    for LiveFile { path, content } in &live.files {
        let path = path.to_string_lossy();
        let own = component
            .files
            .as_ref()
            .is_none_or(|patterns| patterns.iter().any(|pattern| matches(pattern, &format!("config/{path}"))));
        if own {
            add(&path);
            add(content);
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// Returns the fingerprint of each component of the release that `config` and `manifest` describe.
///
/// # Errors
/// As [`of`].
pub fn of_all(config: &Config, manifest: &Manifest, live: &Live) -> io::Result<Vec<String>> {
    config.components.iter().map(|component| of(component, config, manifest, live)).collect()
}

/// Returns whether `path` fits `pattern`: `*` is anything within a name, `**` anything at all.
fn matches(pattern: &str, path: &str) -> bool {
    fn rest(pattern: &[u8], path: &[u8]) -> bool {
        match pattern {
            [] => path.is_empty(),
            [b'*', b'*', tail @ ..] => (0..=path.len()).any(|skip| rest(tail, &path[skip..])),
            [b'*', tail @ ..] => {
                let name = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
                (0..=name).any(|skip| rest(tail, &path[skip..]))
            }
            [byte, tail @ ..] => path.first() == Some(byte) && rest(tail, &path[1..]),
        }
    }
    rest(pattern.as_bytes(), path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let rows = [
            ("bin/web", "bin/web", true),
            ("bin/*", "bin/web", true),
            ("bin/*", "bin/a/web", false),
            ("lib/**", "lib/a/b.so", true),
            ("**.so", "lib/a/b.so", true),
            ("lib/*.so", "lib/a.sox", false),
        ];
        for (pattern, path, expected) in rows {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }
}
