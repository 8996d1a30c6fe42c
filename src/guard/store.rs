//! The descriptors that the guard keeps for the runtime, by name, in the order in which they came, and what was told of single processes
//! since the last document of everything.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::ioctl_fionread;

use crate::handover::fd::HANDED_OVER_MAX;
use crate::handover::{Named, memfd, names};

/// So much may wait in the pipe of a component's output while no runtime reads it: half of what fits.
const OUTPUT_BYTES_MAX: u64 = 32 << 10;

/// Of so many processes a word is kept: more than a runtime can have descriptors of.
const PROCESSES_MAX: usize = 4096;

/// The descriptors kept over a crash of the runtime.
#[derive(Debug, Default)]
pub(super) struct Store {
    kept: Vec<Named>,
    /// The last word on each process, with its number.
    processes: BTreeMap<String, (u64, String)>,
}

impl Store {
    /// Returns a store of what the guard itself was given.
    pub(super) fn new(kept: Vec<Named>) -> Self {
        Self { kept, processes: BTreeMap::new() }
    }

    /// Keeps a descriptor. Returns false when the store is full; then it is closed.
    pub(super) fn keep(&mut self, name: &str, descriptor: OwnedFd) -> bool {
        if self.kept.len() >= HANDED_OVER_MAX {
            return false;
        }
        self.kept.push(Named { name: name.to_owned(), descriptor });
        true
    }

    /// Keeps the last word on a process: its name, the number of the word, the word. Returns false if it is not kept.
    pub(super) fn note_process(&mut self, told: &str) -> bool {
        let mut parts = told.splitn(3, ' ');
        let (Some(name), Some(number), Some(word)) = (parts.next(), parts.next(), parts.next()) else { return false };
        let Ok(number) = number.parse::<u64>() else { return false };
        let is_known = self.processes.get(name).map(|(last, _)| *last);
        if is_known.is_none() && self.processes.len() >= PROCESSES_MAX {
            return false;
        }
        // Two that were told at the same time come in any order.
        if is_known.is_none_or(|last| last < number) {
            self.processes.insert(name.to_owned(), (number, word.to_owned()));
        }
        true
    }

    /// Forgets the words on processes up to the number `until`, or all: a document has come that knows better.
    pub(super) fn forget_processes(&mut self, until: Option<u64>) {
        self.processes.retain(|_, (number, _)| until.is_some_and(|until| *number > until));
    }

    /// Returns the words on processes, if there are any, as a file for the next runtime.
    ///
    /// # Errors
    /// There is no memory or no descriptor left.
    pub(super) fn processes(&self) -> io::Result<Option<Named>> {
        if self.processes.is_empty() {
            return Ok(None);
        }
        let lines: String = self.processes.values().flat_map(|(_, word)| [word, "\n"]).collect();
        let descriptor = memfd::seal("refit-processes", lines.as_bytes())?;
        Ok(Some(Named { name: names::PROCESSES.to_owned(), descriptor }))
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
    fn the_last_word_on_a_process_is_kept_until_a_document_comes_after_it() {
        let words = |store: &Store| {
            let file = store.processes().expect("sealed")?.descriptor;
            Some(String::from_utf8(memfd::read(&file).expect("read")).expect("text"))
        };
        let mut store = Store::default();
        for told in ["web-1 4 {a b}", "db-1 6 {c}", "web-1 7 {d}", "web-1 5 {e}"] {
            assert!(store.note_process(told), "{told}");
        }
        for wrong in ["", "web-1", "web-1 x {f}", "web-1 9"] {
            assert!(!store.note_process(wrong), "{wrong}");
        }
        assert_eq!(words(&store).as_deref(), Some("{c}\n{d}\n"));
        store.forget_processes(Some(6));
        assert_eq!(words(&store).as_deref(), Some("{d}\n"));
        store.forget_processes(None);
        assert_eq!(words(&store), None, "a runtime that tells of none has written the document");
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
