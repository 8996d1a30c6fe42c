//! What the runtime reports to the guard.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::{Guard, Image, Phase};
use crate::handover::channel::{self, ToRuntime};
use crate::handover::{names, notify};

/// So many reports are read at once: more than the kernel queues, and the guard has others to look after.
const REPORTS_MAX: u32 = 1024;

impl Guard {
    /// Takes what the runtime has reported, on the channel or, if it is older, on the socket.
    pub(super) fn read_reports(&mut self, phase: &mut Phase) {
        self.read_from(phase, |guard| guard.inbox.receive());
        self.read_from(phase, |guard| notify::receive(guard.channel.0.as_fd()));
    }

    fn read_from(&mut self, phase: &mut Phase, receive: impl Fn(&Self) -> io::Result<notify::Notification>) {
        for _ in 0..REPORTS_MAX {
            match receive(self) {
                Ok(report) => self.take(report, phase),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    return self.complaints.say("report", &format!("cannot read the runtime's report: {error}"));
                }
            }
        }
    }

    fn take(&mut self, mut report: notify::Notification, phase: &mut Phase) {
        let runtime = match phase {
            Phase::Up { pid, .. } => Some(pid.as_raw()),
            Phase::Pausing { .. } => None,
        };
        let sender = report.sender.map(|sender| sender.pid);
        if runtime.is_none() || sender != runtime {
            let who = sender.map_or_else(|| "somebody".to_owned(), |pid| format!("process {pid}"));
            let text = format!("{who} reports to the guard and is not the runtime; what it says is passed over");
            return self.complaints.say("stranger", &text);
        }
        let descriptors = std::mem::take(&mut report.descriptors);
        self.manager.pass_on(&report, &descriptors);
        if let Some(word) = report.get(channel::PROCESS)
            && !self.store.note_process(word)
        {
            self.complaints
                .say("process", "too much is told of single processes; some of it would not survive a crash");
        }
        let name = report.get("FDNAME").unwrap_or("stored").to_owned();
        if report.get("FDSTORE") == Some("1") {
            if descriptors.is_empty() {
                let text = format!("the descriptor {name} did not arrive: this process may have no more of them");
                self.complaints.say("descriptor", &text);
                // It gives it once more, later.
                self.tell_runtime(&ToRuntime::Missing { missing: name.clone() });
            }
            for descriptor in descriptors {
                if name.starts_with(names::STATE) {
                    let until = report.get(channel::REPLACES).and_then(|number| number.parse().ok());
                    self.store.forget_processes(until);
                }
                if !self.store.keep(&name, descriptor) {
                    let text = format!("the descriptor store is full; {name} would not survive a crash");
                    self.complaints.say("store", &text);
                }
            }
        }
        if report.get("FDSTOREREMOVE") == Some("1") {
            self.store.remove(&name);
        }
        let limit = report.get("WATCHDOG_USEC").and_then(|text| text.parse().ok()).map(Duration::from_micros);
        if limit.is_some() {
            self.image = Image::Starting; // the first thing that an image says
        }
        if report.get("READY") == Some("1") {
            self.was_ready = true;
            self.backoff.ready();
            self.trouble_is_over();
            self.image = Image::Ready;
            if !self.decisions.is_trial() {
                self.tried = None;
            }
            self.examined = None; // what is damaged from now on is another matter
        }
        if report.get("RELOADING") == Some("1") {
            self.image = Image::Silent;
        }
        if let Some(errno) = report.get("ERRNO").and_then(|text| text.parse().ok()) {
            self.errno = Some(errno);
        }
        if let Some(attempt) = report.get(channel::ATTEMPT) {
            self.decisions.note_attempt(attempt);
        }
        if report.get("STOPPING") == Some("1") {
            self.ends_as_asked = true;
        }
        if let Phase::Up { deadlines, .. } = phase {
            if let Some(limit) = limit {
                deadlines.set_limit(limit);
            }
            if let Some(micros) = report.get(channel::END).and_then(|text| text.parse().ok()) {
                deadlines.set_end(Duration::from_micros(micros));
            }
            if limit.is_some() || report.get("WATCHDOG") == Some("1") {
                deadlines.reported(Instant::now());
            }
        }
    }
}
