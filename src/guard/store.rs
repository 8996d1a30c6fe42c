//! The descriptors that the guard keeps for the runtime, by name, in the order in which they came.

use std::os::fd::{AsFd, OwnedFd};

use crate::handover::Named;
use crate::handover::fd::HANDED_OVER_MAX;

/// The descriptors kept over a crash of the runtime.
#[derive(Debug, Default)]
pub(super) struct Store {
    kept: Vec<Named>,
}

impl Store {
    /// Returns a store of what the guard itself was given.
    pub(super) fn new(kept: Vec<Named>) -> Self {
        Self { kept }
    }

    /// Keeps a descriptor. Returns false when the store is full; then it is closed.
    pub(super) fn keep(&mut self, name: &str, descriptor: OwnedFd) -> bool {
        if self.kept.len() >= HANDED_OVER_MAX {
            return false;
        }
        self.kept.push(Named { name: name.to_owned(), descriptor });
        true
    }

    /// Closes every descriptor of that name.
    pub(super) fn remove(&mut self, name: &str) {
        self.kept.retain(|part| part.name != name);
    }

    /// Returns whether it keeps a descriptor whose name begins so.
    pub(super) fn has(&self, prefix: &str) -> bool {
        self.kept.iter().any(|part| part.name.starts_with(prefix))
    }

    /// Returns a duplicate of everything kept.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn duplicate(&self) -> std::io::Result<Vec<Named>> {
        self.kept
            .iter()
            .map(|part| {
                Ok(Named { name: part.name.clone(), descriptor: part.descriptor.as_fd().try_clone_to_owned()? })
            })
            .collect()
    }
}
