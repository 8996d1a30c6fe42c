//! What the runtime reports to the guard, and what a service manager above hears of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{Guard, Image, Phase};
use crate::handover::notify;

/// So many reports are read at once: more than the kernel queues, and the guard has others to look after.
const REPORTS_MAX: u32 = 1024;

impl Guard {
    /// Takes what the runtime has reported.
    pub(super) fn read_reports(&mut self, phase: &mut Phase) {
        for _ in 0..REPORTS_MAX {
            match self.inbox.receive() {
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
        self.pass_on(&report, &descriptors);
        let name = report.get("FDNAME").unwrap_or("stored").to_owned();
        if report.get("FDSTORE") == Some("1") {
            if descriptors.is_empty() {
                let text = format!("the descriptor {name} did not arrive: this process may have no more of them");
                self.complaints.say("descriptor", &text);
            }
            for descriptor in descriptors {
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
            self.image = Image::Ready;
        }
        if report.get("RELOADING") == Some("1") {
            self.image = Image::Silent;
        }
        if let Some(errno) = report.get("ERRNO").and_then(|text| text.parse().ok()) {
            self.errno = Some(errno);
        }
        if report.get("STOPPING") == Some("1") {
            self.ends_as_asked = true;
        }
        if let Phase::Up { deadlines, .. } = phase {
            if let Some(limit) = limit {
                deadlines.set_limit(limit);
            }
            if limit.is_some() || report.get("WATCHDOG") == Some("1") {
                deadlines.reported(Instant::now());
            }
        }
    }

    /// Passes on what a service manager above is to know: readiness, status, watchdog, and the descriptors to keep.
    fn pass_on(&mut self, report: &notify::Notification, descriptors: &[OwnedFd]) {
        let Some(manager) = &self.manager else { return };
        let lines: Vec<String> = report
            .fields
            .iter()
            // What is between the guard and the runtime means nothing, or something else, above.
            .filter(|(key, _)| key != "WATCHDOG_USEC" && key != "RELOADING")
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if lines.is_empty() {
            return;
        }
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if let Err(error) = notify::send(manager, &lines.join("\n"), &borrowed) {
            self.complaints.say("manager", &format!("cannot report to the service manager: {error}"));
        }
    }

    /// Tells the service manager something of the guard's own.
    pub(super) fn tell_manager(&mut self, text: &str) {
        if let Some(manager) = &self.manager
            && let Err(error) = notify::send(manager, text, &[])
        {
            self.complaints.say("manager", &format!("cannot report to the service manager: {error}"));
        }
    }
}
