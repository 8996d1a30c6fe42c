//! What differs between two releases.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Body, Manifest};

/// The difference between two releases, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// New files.
    pub added: Vec<String>,
    /// Files with other content or permissions.
    pub changed: Vec<String>,
    /// Files that are gone.
    pub removed: Vec<String>,
}

impl Changes {
    /// Returns what differs between two releases.
    #[must_use]
    pub fn between(from: &Manifest, to: &Manifest) -> Self {
        let content = |body: &Body| match body {
            Body::Regular { mode, sha256, .. } => format!("{mode:?} {sha256}"),
            Body::Link { target } => target.clone(),
        };
        let of = |manifest: &Manifest| -> BTreeMap<String, String> {
            manifest.files().iter().map(|file| (file.path.clone(), content(&file.body))).collect()
        };
        let (old, new) = (of(from), of(to));
        Self {
            added: new.keys().filter(|path| !old.contains_key(*path)).cloned().collect(),
            changed: new
                .iter()
                .filter(|(path, content)| old.get(*path).is_some_and(|before| before != *content))
                .map(|(path, _)| path.clone())
                .collect(),
            removed: old.keys().filter(|path| !new.contains_key(*path)).cloned().collect(),
        }
    }
}
