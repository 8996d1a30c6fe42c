//! Reports that the other end has no room for yet: kept in order, without those that a later one makes superfluous.
//!
//! Who keeps a descriptor for somebody is told so once. A report of that which got lost would be missed at the next crash, when it is
//! too late, and one that is waited for holds up what has nothing to do with it. So it is sent without waiting, and kept until there is room.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::channel;
use super::notify::{self, Notification};

/// So many are kept: a place for everything that a store holds, given and taken back, is far less.
const KEPT_MAX: usize = 4096;

/// A sign of life: one is as good as many.
const ALIVE: &str = "WATCHDOG=1";

/// How much was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// All.
    All,
    /// What there was room for.
    NoRoom,
    /// What the system allowed: it has no memory, or too many descriptors are on their way.
    NotNow,
}

/// One report.
#[derive(Debug)]
struct Report {
    text: String,
    descriptors: Vec<OwnedFd>,
    about: About,
}

/// What a report is about.
#[derive(Debug, PartialEq, Eq)]
enum About {
    /// The descriptor of this name has to be kept.
    Stored(String),
    /// That of this name is not wanted any more.
    Removed(String),
    /// What is known of the process of this name.
    Process(String),
    /// Nothing that a later report changes.
    Other,
}

impl About {
    fn of(text: &str) -> Self {
        let fields = Notification::of(text.as_bytes());
        let is_set = |key| fields.get(key) == Some("1");
        match fields.get("FDNAME") {
            Some(name) if is_set("FDSTORE") => Self::Stored(name.to_owned()),
            Some(name) if is_set("FDSTOREREMOVE") => Self::Removed(name.to_owned()),
            Some(_) | None => {
                let process = fields.get(channel::PROCESS).and_then(|told| told.split(' ').next());
                process.map_or(Self::Other, |process| Self::Process(process.to_owned()))
            }
        }
    }
}

/// What has to be sent.
#[derive(Debug, Default)]
pub struct Outbox {
    kept: VecDeque<Report>,
}

impl Outbox {
    /// Returns whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Keeps a report. A descriptor that is taken back before it was given is not given, and what is not wanted any more is said once.
    /// Returns whether there was room.
    pub fn push(&mut self, text: &str, descriptors: Vec<OwnedFd>) -> bool {
        let about = About::of(text);
        if let About::Removed(name) = &about {
            let before = self.kept.len();
            self.kept.retain(|report| !matches!(&report.about, About::Stored(other) if other == name));
            // An older one of that name was taken back before the one that has just gone.
            if self.kept.len() < before {
                return true;
            }
        }
        if matches!(about, About::Process(_)) {
            self.kept.retain(|report| report.about != about); // the last word counts
        }
        let says_it_once = matches!(about, About::Removed(_)) || text == ALIVE;
        if says_it_once && self.kept.iter().any(|report| report.text == text) {
            return true;
        }
        if self.kept.len() >= KEPT_MAX {
            return false;
        }
        self.kept.push_back(Report { text: text.to_owned(), descriptors, about });
        true
    }

    /// Sends as much as `socket` has room for, and does not wait.
    ///
    /// # Errors
    /// The other end is gone, or the system refuses a report for good; that report is dropped.
    pub fn flush(&mut self, socket: impl AsFd) -> io::Result<Flushed> {
        while let Some(report) = self.kept.front() {
            let borrowed: Vec<_> = report.descriptors.iter().map(AsFd::as_fd).collect();
            let sent = notify::try_send(&socket, &report.text, &borrowed);
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::NoRoom),
                Err(error) if passes(&error) => return Ok(Flushed::NotNow),
                sent => {
                    self.kept.pop_front();
                    sent?;
                }
            }
        }
        Ok(Flushed::All)
    }

    /// Returns the names of the descriptors that have not been given yet.
    pub fn stored(&self) -> Vec<String> {
        let name = |report: &Report| if let About::Stored(name) = &report.about { Some(name.clone()) } else { None };
        self.kept.iter().filter_map(name).collect()
    }
}

/// Returns whether a report that was not sent because of `error` can be sent later: there is no room now, or there are too many
/// descriptors on their way.
pub fn passes(error: &io::Error) -> bool {
    const PASSING: [Errno; 5] = [Errno::AGAIN, Errno::NOBUFS, Errno::NOMEM, Errno::TOOMANYREFS, Errno::INTR];
    PASSING.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().expect("a file").into()
    }

    fn stored(name: &str) -> String {
        format!("FDSTORE=1\nFDNAME={name}")
    }

    fn removed(name: &str) -> String {
        format!("FDSTOREREMOVE=1\nFDNAME={name}")
    }

    #[test]
    fn what_there_is_no_room_for_is_kept_and_comes_in_order() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        let mut outbox = Outbox::default();
        for number in 0..2000 {
            assert!(outbox.push(&stored(&number.to_string()), vec![file()]));
        }
        let mut taken = 0;
        while outbox.flush(&ours).expect("it lives") != Flushed::All {
            for _ in 0..5 {
                let report = notify::receive(theirs.as_fd()).expect("received");
                assert_eq!((report.get("FDNAME"), report.descriptors.len()), (Some(taken.to_string().as_str()), 1));
                taken += 1;
            }
            assert_eq!(outbox.stored().last().map(String::as_str), Some("1999"));
        }
        assert!(taken > 1000, "a queue holds far fewer");
        drop(theirs);
        outbox.push("READY=1", Vec::new());
        assert!(outbox.flush(&ours).is_err() && outbox.is_empty(), "nobody is there any more");
    }

    #[test]
    fn what_does_not_matter_any_more_is_not_sent() {
        let mut outbox = Outbox::default();
        for number in 0..10_000 {
            assert!(outbox.push(&stored(&format!("state.{number}")), vec![file()]));
            assert!(outbox.push(&removed(&format!("state.{}", number - 1)), Vec::new()));
            assert!(outbox.push("WATCHDOG=1", Vec::new()));
        }
        assert_eq!(outbox.stored(), ["state.9999"]);
        assert_eq!(outbox.kept.len(), 3, "{:?}", outbox.kept); // the removal of the one that was there before, too
        for number in 0..10_000 {
            assert!(outbox.push(&format!("{}=web-{} {number} {{}}", channel::PROCESS, number % 3), Vec::new()));
        }
        assert_eq!(outbox.kept.len(), 6, "one for each process");
        let mut outbox = Outbox::default();
        outbox.push(&removed("http"), Vec::new());
        outbox.push(&stored("http"), vec![file()]);
        outbox.push(&removed("http"), Vec::new());
        assert_eq!((outbox.stored().len(), outbox.kept.len()), (0, 1), "the first of that name is taken back");
    }
}
