//! The way from the registry to the guard: what is reported is with the guard when the report returns, or is kept until the guard reads.
//!
//! A guard reads at once, so that a report is usually sent without waiting. One that does not read (it is stopped, or its machine is) holds
//! up one report for a moment and none after it: they are kept, in order, and a thread of their own sends them when there is room.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use refit_base::lock;

use crate::handover::notify;
use crate::handover::outbox::{Flushed, Outbox, passes};

/// How long a report waits for a guard that has no room: one that works makes some at once.
const PATIENCE: Duration = Duration::from_millis(200);
/// The pause after a report that the system refuses for now, although there is room.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// The way to the guard.
#[derive(Debug)]
pub(super) struct Reporter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    state: Mutex<State>,
    /// Told when everything was sent.
    sent: Condvar,
}

#[derive(Debug, Default)]
struct State {
    outbox: Outbox,
    worker: Option<Worker>,
    /// Whether the thread will look once more.
    is_working: bool,
    /// The guard does not read: nobody waits for it.
    is_stuck: bool,
    /// Nothing is sent any more.
    is_closed: bool,
}

/// The thread that sends what was kept.
#[derive(Debug)]
struct Worker {
    thread: JoinHandle<()>,
    /// Dropped, it ends the thread.
    alive: UnixStream,
}

impl Reporter {
    /// Returns the way to the guard at the other end of `socket`.
    pub(super) fn new(socket: OwnedFd) -> Self {
        let state = Mutex::new(State::default());
        Self { shared: Arc::new(Shared { socket, state, sent: Condvar::new() }) }
    }

    /// Reports `text` with `descriptors`. A guard that is gone is noticed elsewhere.
    pub(super) fn tell(&self, text: &str, descriptors: &[&OwnedFd]) {
        let mut state = lock(&self.shared.state);
        if state.outbox.is_empty() && !state.is_closed {
            let borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
            match notify::try_send(&self.shared.socket, text, &borrowed) {
                Ok(()) => return,
                Err(error) if passes(&error) => {}
                Err(error) => return tracing::warn!(%error, "cannot report to the guard"),
            }
        }
        let kept: io::Result<Vec<OwnedFd>> = descriptors.iter().map(|descriptor| descriptor.try_clone()).collect();
        match kept.map(|kept| state.outbox.push(text, kept)) {
            Ok(true) => {}
            Ok(false) => return tracing::warn!("the guard takes no reports, and no more of them are kept"),
            Err(error) => return tracing::warn!(%error, "cannot keep a report to the guard"),
        }
        if state.is_closed {
            return;
        }
        if !state.is_working {
            if let Some(worker) = state.worker.take() {
                worker.end(); // it is ending
            }
            match Worker::start(&self.shared) {
                Ok(worker) => (state.worker, state.is_working) = (Some(worker), true),
                // The next report tries again.
                Err(error) => return tracing::warn!(%error, "cannot start the thread that reports to the guard"),
            }
        }
        if !state.is_stuck {
            let waited = self.shared.sent.wait_timeout_while(state, PATIENCE, |state| !state.outbox.is_empty());
            let (mut state, waited) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
            if waited.timed_out() && !state.is_stuck {
                state.is_stuck = true;
                tracing::warn!(
                    "the guard does not read what it is told; a crash of the runtime now would lose what has changed since"
                );
            }
        }
    }

    /// Sends nothing any more, after a last moment for what is kept. Returns the names of the descriptors that the guard was not
    /// given.
    pub(super) fn close(&self) -> Vec<String> {
        let mut state = lock(&self.shared.state);
        if !state.is_stuck {
            let waited = self.shared.sent.wait_timeout_while(state, PATIENCE, |state| !state.outbox.is_empty());
            (state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        state.is_closed = true;
        let worker = state.worker.take();
        drop(state);
        if let Some(worker) = worker {
            worker.end();
        }
        lock(&self.shared.state).outbox.stored()
    }
}

impl Worker {
    fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let (alive, ended) = UnixStream::pair()?;
        let shared = Arc::clone(shared);
        let work = move || while shared.send_rest(&ended) {};
        let thread = std::thread::Builder::new().name("reports".to_owned()).spawn(work)?;
        Ok(Self { thread, alive })
    }

    /// Ends the thread, with its descriptors: their numbers may be others' soon.
    fn end(self) {
        drop(self.alive);
        drop(self.thread.join()); // one that panicked has said so
    }
}

impl Shared {
    /// Sends what there is room for, and waits for more. Returns whether there is more to do; when `ended` says so, nothing is.
    fn send_rest(&self, ended: &UnixStream) -> bool {
        let flushed = {
            let mut state = lock(&self.state);
            let flushed = loop {
                match state.outbox.flush(&self.socket) {
                    Ok(flushed) => break flushed,
                    Err(error) => tracing::warn!(%error, "cannot report to the guard"),
                }
            };
            if flushed == Flushed::All {
                if std::mem::take(&mut state.is_stuck) {
                    tracing::info!("the guard reads again, and was told everything");
                }
                state.is_working = false;
                self.sent.notify_all();
                return false;
            }
            flushed
        };
        let end = PollFd::new(ended.as_fd(), PollFlags::POLLIN);
        let room = PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT);
        // A guard that goes on makes room, and one that is gone hangs up.
        let (mut polled, limit) = match flushed {
            Flushed::All | Flushed::NoRoom => (vec![end, room], PollTimeout::NONE),
            Flushed::NotNow => (vec![end], PollTimeout::try_from(TRY_AGAIN).unwrap_or(PollTimeout::MAX)),
        };
        let waited = poll(&mut polled, limit);
        waited.is_err() || polled[0].revents().is_none_or(|events| events.is_empty())
    }
}
