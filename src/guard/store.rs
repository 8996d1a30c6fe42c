//! The descriptors that the guard keeps for the runtime, by name, in the order in which they came.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::ioctl_fionread;

use crate::handover::fd::HANDED_OVER_MAX;
use crate::handover::{Named, names};

/// So much may wait in the pipe of a component's output while no runtime reads it: half of what fits.
const OUTPUT_BYTES_MAX: u64 = 32 << 10;

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

    /// Closes every descriptor of that name. The only document about what runs stays until there is another: the newer one may
    /// have got lost on its way.
    pub(super) fn remove(&mut self, name: &str) {
        let is_document = |part: &&Named| part.name.starts_with(names::STATE);
        if name.starts_with(names::STATE) && self.kept.iter().filter(is_document).all(|part| part.name == name) {
            return;
        }
        self.kept.retain(|part| part.name != name);
    }

    /// Reads and drops what components have printed, where so much of it waits that they could soon print no more, and would
    /// hang. For the time when no runtime reads. Returns how many bytes were dropped.
    pub(super) fn relieve_outputs(&self) -> u64 {
        let outputs = self.kept.iter().filter(|part| {
            part.name.starts_with(names::INSTANCE) && (part.name.ends_with(".out") || part.name.ends_with(".err"))
        });
        let (mut dropped, mut bytes) = (0, [0_u8; 4096]);
        for part in outputs {
            let waiting = ioctl_fionread(&part.descriptor).unwrap_or(0);
            if waiting < OUTPUT_BYTES_MAX {
                continue;
            }
            // No more than what waits, so that no read blocks; and without another descriptor, of which there may be none.
            let mut left = usize::try_from(waiting).unwrap_or(usize::MAX);
            while left > 0 {
                let part_max = left.min(bytes.len());
                let Ok(count @ 1..) = rustix::io::read(&part.descriptor, &mut bytes[..part_max]) else { break };
                left -= count;
                dropped += count as u64;
            }
        }
        dropped
    }

    /// Returns whether it keeps a descriptor whose name begins so.
    pub(super) fn has(&self, prefix: &str) -> bool {
        self.kept.iter().any(|part| part.name.starts_with(prefix))
    }

    /// Returns a duplicate of everything kept.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn duplicate(&self) -> io::Result<Vec<Named>> {
        self.kept
            .iter()
            .map(|part| {
                Ok(Named { name: part.name.clone(), descriptor: part.descriptor.as_fd().try_clone_to_owned()? })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn descriptor() -> OwnedFd {
        tempfile::tempfile().expect("a file").into()
    }

    #[test]
    fn the_only_document_stays_until_there_is_another() {
        let mut store = Store::default();
        let document = |number: u32| format!("{}{number}", names::STATE);
        store.keep(&document(1), descriptor());
        store.remove(&document(1));
        assert!(store.has(names::STATE), "the one after it got lost");
        store.keep(&document(3), descriptor());
        store.remove(&document(1));
        assert!(store.has(&document(3)) && !store.has(&document(1)));
        store.keep("http", descriptor());
        store.remove("http");
        assert!(!store.has("http"));
    }

    #[test]
    fn a_pipe_is_emptied_before_it_is_full() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let mut writer = std::fs::File::from(writer);
        let mut store = Store::default();
        store.keep(&format!("{}shop-1.out", names::INSTANCE), reader);
        writer.write_all(&[1; 1000]).expect("written");
        assert_eq!(store.relieve_outputs(), 0, "the next runtime reads it");
        for _ in 0..10 {
            writer.write_all(&[1; 40_000]).expect("written");
            assert!(store.relieve_outputs() >= 40_000);
        }
    }
}
