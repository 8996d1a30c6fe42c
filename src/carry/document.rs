//! What one process image leaves to the next besides its descriptors: one document, in a sealed file in memory.
//!
//! The same document is in the guard's store, so that a start after a crash finds what a start after an exec finds. Another
//! version of this program may read it: the number of the format is checked, and what is unknown is passed over.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use refit_bus::Unconfirmed;
use semver::Version;
use serde::{Deserialize, Serialize};

use super::instance::{CarriedInstance, CarriedRun};
use super::single::Single;
use crate::auth::CarriedSession;
use crate::handover::memfd;
use crate::logs;
use crate::wire::{EventRecord, LogLine, Ticket};

/// The format of the document. It grows by optional fields only: an older release reads what a newer one wrote.
pub const CARRY_FORMAT: u32 = 1;

/// The document.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Carry {
    /// [`CARRY_FORMAT`].
    pub format: u32,
    /// Counts the documents of one appliance's life; the highest is the newest.
    pub sequence: u64,
    /// Counts the process images.
    pub generation: u32,
    /// The components' processes.
    #[serde(default)]
    pub instances: Vec<CarriedInstance>,
    /// The tickets that somebody may ask for.
    #[serde(default)]
    pub tickets: Vec<Ticket>,
    /// The last events, for a reader that connects again.
    #[serde(default)]
    pub events: Vec<EventRecord>,
    /// The components' last output.
    #[serde(default)]
    pub logs: BTreeMap<String, Vec<LogLine>>,
    /// Lines of output that have begun, in base64, by process and stream.
    #[serde(default)]
    pub partial_lines: BTreeMap<String, String>,
    /// Whether that output is all that was read from the components' pipes.
    #[serde(default)]
    pub logs_complete: bool,
    /// Who is logged in.
    #[serde(default)]
    pub sessions: Vec<CarriedSession>,
    /// When the image before stopped accepting, in nanoseconds of the monotonic clock, by listener of its own.
    #[serde(default)]
    pub stopped_accepting_ns: Option<u64>,
    /// When it was about to execute the next image.
    #[serde(default)]
    pub exec_ns: Option<u64>,
    /// When the trial was journaled and the stop began.
    #[serde(default)]
    pub trial_ns: Option<u64>,
    /// The descriptors that the guard could not be given yet, by name.
    #[serde(default)]
    pub guard_lacks: Vec<String>,
    /// What was read of the next request on each parked connection, in base64, by the rest of its name.
    #[serde(default)]
    pub parked: BTreeMap<String, String>,
    /// The highest generation of each component's processes.
    #[serde(default)]
    pub component_generations: BTreeMap<String, u32>,
    /// The release in which somebody asked the site to stop, and for nothing else since.
    #[serde(default)]
    pub site_stopped: Option<Version>,
    /// Whether somebody asked the appliance to end.
    #[serde(default)]
    pub site_ends: bool,
    /// The components that an operator has stopped, and in which release: its next image does not start them.
    #[serde(default)]
    pub stopped: BTreeMap<String, Version>,
    /// The last attempt to go to another release.
    #[serde(default)]
    pub attempt: Option<CarriedAttempt>,
    /// The last run of each component that runs and ends.
    #[serde(default)]
    pub runs: BTreeMap<String, CarriedRun>,
    /// How the files looked that a reload was last asked for.
    #[serde(default)]
    pub watched: BTreeMap<String, String>,
    /// The reload that waits to be confirmed.
    #[serde(default)]
    pub unconfirmed: Option<Unconfirmed>,
    /// Whether the image that wrote it also reads what is told of single processes.
    #[serde(default)]
    pub reads_processes: bool,
    /// The highest number of a document or a word on one process; at least [`sequence`](Self::sequence). Not written.
    #[serde(skip)]
    pub counted: u64,
}

/// When an attempt to go to another release began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedAttempt {
    /// Its ticket's name.
    pub id: String,
    /// When, in nanoseconds of the monotonic clock.
    pub begun_ns: u64,
}

impl Carry {
    /// Returns what was read of the components' output.
    pub fn output(&self) -> logs::Carried {
        let decoded = |(name, text): (&String, &String)| Some((name.clone(), BASE64.decode(text).ok()?));
        logs::Carried {
            lines: self.logs.clone(),
            partial: self.partial_lines.iter().filter_map(decoded).collect(),
            complete: self.logs_complete,
        }
    }

    /// Returns the document as a sealed file.
    ///
    /// # Errors
    /// There is no memory or no descriptor left.
    pub fn seal(&self) -> io::Result<OwnedFd> {
        memfd::seal("refit-state", &serde_json::to_vec(self)?)
    }

    /// Returns the newest of the documents in `files`; a fresh one if there is none.
    ///
    /// # Errors
    /// One of them is damaged or has another format.
    pub fn newest(files: &[OwnedFd]) -> io::Result<Self> {
        let mut newest = Self { format: CARRY_FORMAT, ..Self::default() };
        let counted = |document: Self| Self { counted: document.sequence, ..document };
        for file in files {
            let document: Self = serde_json::from_slice(&memfd::read(file)?)?;
            if document.format != CARRY_FORMAT {
                let text = format!("the runtime's state has the format {}, not {CARRY_FORMAT}", document.format);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if document.sequence >= newest.sequence {
                newest = counted(document);
            }
        }
        Ok(newest)
    }

    /// Adds what was told of single processes after this document: a line each, in a sealed file.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it cannot be understood.
    pub fn add_processes(&mut self, file: &OwnedFd) -> io::Result<()> {
        for line in memfd::read(file)?.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let single: Single = serde_json::from_slice(line)?;
            self.counted = self.counted.max(single.sequence);
            if single.sequence <= self.sequence {
                continue;
            }
            let newest = self.component_generations.entry(single.component).or_default();
            *newest = single.generation.max(*newest);
            self.instances.retain(|instance| instance.id != single.id);
            self.instances.extend(single.instance);
        }
        self.instances.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, generation: u32, ready: bool) -> CarriedInstance {
        serde_json::from_value(serde_json::json!({
            "id": id, "component": "web", "generation": generation, "pid": 1, "start_ticks": 1, "token": "t", "release": "1.0.0",
            "fingerprint": "f", "started_at": "now", "ready": ready, "status": null, "role": "current",
        }))
        .expect("it is read")
    }

    #[test]
    fn a_later_word_on_a_process_holds_and_an_earlier_one_does_not() {
        let mut carry = Carry { sequence: 5, counted: 5, ..Carry::default() };
        carry.instances = vec![instance("web-1", 1, true), instance("web-2", 2, true), instance("web-3", 3, true)];
        let single = |sequence, id: &str, generation, instance| Single {
            sequence,
            id: id.to_owned(),
            component: "web".to_owned(),
            generation,
            instance,
        };
        let told = [
            single(4, "web-1", 1, None),
            single(6, "web-2", 2, Some(instance("web-2", 2, false))),
            single(7, "web-3", 3, None),
            single(9, "web-5", 5, None),
            single(8, "web-4", 4, Some(instance("web-4", 4, false))),
        ];
        let lines: String = told.iter().map(|single| serde_json::to_string(single).expect("text") + "\n").collect();
        carry.add_processes(&memfd::seal("test", lines.as_bytes()).expect("sealed")).expect("read");
        let seen: Vec<(&str, bool)> = carry.instances.iter().map(|found| (&*found.id, found.ready)).collect();
        assert_eq!(seen, [("web-1", true), ("web-2", false), ("web-4", false)]);
        assert_eq!((carry.sequence, carry.counted, carry.component_generations["web"]), (5, 9, 5));
        let broken = memfd::seal("test", b"{").expect("sealed");
        assert!(carry.add_processes(&broken).is_err());
    }

    #[test]
    fn the_newest_document_counts() {
        let document = |sequence, generation| Carry { format: CARRY_FORMAT, sequence, generation, ..Carry::default() };
        let files: Vec<OwnedFd> =
            [document(3, 1), document(5, 2), document(4, 9)].iter().map(|d| d.seal().expect("sealed")).collect();
        assert_eq!(Carry::newest(&files).expect("read").generation, 2);
        assert_eq!(Carry::newest(&[]).expect("none").generation, 0);
        assert_eq!(Carry::newest(&files).expect("read").counted, 5);
        let other = Carry { format: 9, ..Carry::default() }.seal().expect("sealed");
        assert!(Carry::newest(&[other]).expect_err("another format").to_string().contains("format 9"));
    }
}
