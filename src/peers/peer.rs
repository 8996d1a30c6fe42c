//! [`Peer`]: one connection with a name, which is called by message and answers by message.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use refit_base::{Bucket, lock};
use refit_bus::{self as bus, Call, Failure, LogEntry};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::limits::{CALLS_MAX, LOGS, MISTAKES, REQUESTS, WORK_MAX};
use super::line::{NotSent, Outgoing};
use super::messages::{CallMessage, Notice, notification};
use super::protocol::Broken;
use crate::access::principal::Principal;
use crate::handover::fd;
use crate::wire::{self, Place};

/// A call that waits for its answer.
struct Open {
    answer: oneshot::Sender<Result<Value, Failure>>,
    depth: u32,
    in_transition: bool,
}

#[derive(Default)]
struct Calls {
    open: HashMap<u64, Open>,
    newest: u64,
    /// Why nobody answers any more.
    lost: Option<String>,
}

/// What a peer may still do of what is limited.
pub(super) struct Budget {
    pub(super) requests: Bucket,
    pub(super) logs: Bucket,
    pub(super) mistakes: Bucket,
    /// Log entries that were dropped and not reported yet.
    pub(super) logs_dropped: u64,
}

/// A peer's whole name, and the generation of the process that has it: names belong to generations.
pub(super) type Key = (String, u32);

/// One connection with a name.
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) principal: Principal,
    pub(super) pid: Option<i32>,
    pub(super) uid: u32,
    pub(super) since: String,
    pub(super) out: Outgoing,
    /// A duplicate of its connection, where it is looked whether it reads.
    socket: Option<OwnedFd>,
    /// Counts what was heard of it.
    heard: AtomicU64,
    /// Whether it is called on its channels, or another generation of its component's processes is.
    pub(super) called: AtomicBool,
    /// Whether its connection has ended: nobody calls it any more.
    pub(super) has_left: AtomicBool,
    /// Whether its process served before this process image began, and was not started by it yet.
    pub(super) resumes: AtomicBool,
    pub(super) channels: Mutex<BTreeMap<String, Place>>,
    /// Where it is subscribed, and after which others of its component.
    pub(super) placed: Mutex<BTreeMap<String, Vec<String>>>,
    pub(super) budget: Mutex<Budget>,
    /// Cancelled when the connection is to end.
    pub(super) ending: CancellationToken,
    /// Publications, waits and requests under way.
    pub(super) work: Arc<Semaphore>,
    calls: Mutex<Calls>,
    why: OnceLock<String>,
    log_dropped: Mutex<u64>,
}

impl Peer {
    pub(super) fn new(
        name: String,
        principal: Principal,
        (pid, uid): (Option<i32>, u32),
        socket: Option<OwnedFd>,
        called: bool,
    ) -> Self {
        Self {
            socket,
            heard: AtomicU64::new(0),
            placed: Mutex::default(),
            called: AtomicBool::new(called),
            has_left: AtomicBool::new(false),
            resumes: AtomicBool::new(false),
            name,
            principal,
            pid,
            uid,
            since: refit_base::clock::stamp(),
            out: Outgoing::default(),
            channels: Mutex::default(),
            budget: Mutex::new(Budget {
                requests: Bucket::new(REQUESTS),
                logs: Bucket::new(LOGS),
                mistakes: Bucket::new(MISTAKES),
                logs_dropped: 0,
            }),
            ending: CancellationToken::new(),
            work: Arc::new(Semaphore::new(WORK_MAX)),
            calls: Mutex::default(),
            why: OnceLock::new(),
            log_dropped: Mutex::new(0),
        }
    }

    pub(super) fn view(&self) -> wire::Peer {
        wire::Peer {
            name: self.name.clone(),
            component: self.principal.component_name().map(str::to_owned),
            pid: self.pid,
            generation: self.principal.component_name().map(|_| self.principal.generation()),
            called: self.is_called(),
            uid: self.uid,
            since: self.since.clone(),
            channels: lock(&self.channels).clone(),
        }
    }

    /// Returns the name, and which process of the component has it: what makes it unique.
    pub(super) fn key(&self) -> Key {
        (self.name.clone(), self.principal.generation())
    }

    /// Returns whether it is called on its channels.
    pub(super) fn is_called(&self) -> bool {
        self.called.load(Ordering::Relaxed)
    }

    /// Counts a message of it.
    pub(super) fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many messages of it there were.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Returns whether something was sent that nothing of it has read. One whose connection has ended reads nothing, and need not.
    pub(super) fn has_unread(&self) -> bool {
        let is_there = !self.has_left.load(Ordering::Relaxed);
        is_there && self.socket.as_ref().is_some_and(|socket| fd::has_unread(socket).unwrap_or(false))
    }

    /// Ends the connection for this reason; the first one stands.
    pub(super) fn cut(&self, why: impl Into<String>) {
        drop(self.why.set(why.into()));
        self.ending.cancel();
    }

    /// Returns why the connection was ended from here.
    pub(super) fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }

    /// Sends a message that has to arrive. A peer that does not read is cut off.
    pub(super) fn send(&self, message: &impl Serialize) -> Result<(), NotSent> {
        let sent = self.out.push(message);
        if let Err(NotSent::Full { bytes, .. }) = &sent {
            self.too_slow(*bytes);
        }
        sent
    }

    fn too_slow(&self, bytes: usize) {
        self.cut(format!("it reads too slowly: {bytes} bytes wait for it"));
    }

    /// Counts a mistake. Whoever makes too many is cut off.
    pub(super) fn mistake(&self) {
        if lock(&self.budget).mistakes.take().is_err() {
            self.cut(format!("it floods: more than {} mistakes a second", MISTAKES.per_second));
        }
    }

    /// Takes the answer to a call; one that nobody waits for any more is dropped.
    pub(super) fn answered(&self, id: &Value, answer: Result<Value, Broken>) -> bool {
        let Some(open) = id.as_u64().and_then(|id| lock(&self.calls).open.remove(&id)) else { return false };
        let answer = answer.map_err(|Broken { message, output }| Failure { output, ..Failure::new(message) });
        drop(open.answer.send(answer)); // its time was over at this very moment
        true
    }

    /// Returns whether it was called before.
    pub(super) fn was_called(&self, id: &Value) -> bool {
        id.as_u64().is_some_and(|id| id > 0 && id <= lock(&self.calls).newest)
    }

    /// Returns how deep it is in calls of itself, and whether a transition waits for one of them.
    pub(super) fn inside(&self) -> (u32, bool) {
        let calls = lock(&self.calls);
        let depth = calls.open.values().map(|open| open.depth).max().unwrap_or(0);
        (depth, calls.open.values().any(|open| open.in_transition))
    }

    /// Fails every call that waits, and all that follow.
    pub(super) fn lose(&self, why: &str) {
        let open = {
            let mut calls = lock(&self.calls);
            calls.lost = Some(why.to_owned());
            std::mem::take(&mut calls.open)
        };
        for call in open.into_values() {
            drop(call.answer.send(Err(Failure::lost(why)))); // its time was over at this very moment
        }
    }

    /// Sends a call. Returns what waits for its answer.
    pub(super) fn begin(self: &Arc<Self>, call: &Call) -> Result<Waiting, Failure> {
        let in_transition = bus::BUILT_IN.contains(&&*call.channel);
        let (answer, receiver) = oneshot::channel();
        let id = {
            let mut calls = lock(&self.calls);
            if let Some(why) = &calls.lost {
                return Err(Failure::lost(why.clone()));
            }
            if calls.open.len() >= CALLS_MAX {
                return Err(Failure::new(format!("busy: it has not answered {CALLS_MAX} calls")));
            }
            calls.newest += 1;
            let id = calls.newest;
            calls.open.insert(id, Open { answer, depth: call.depth, in_transition });
            id
        };
        let waiting = Waiting { peer: Arc::clone(self), id, told: false, receiver };
        match self.out.push_call(&CallMessage::new(id, call)) {
            Ok(()) => Ok(waiting),
            Err(NotSent::Long(bytes)) => Err(waiting.unsent(format!("the call would be a line of {bytes} bytes"))),
            Err(NotSent::Full { bytes, stuck }) => {
                if stuck {
                    self.too_slow(bytes);
                }
                Err(waiting.unsent(format!("busy: {bytes} bytes wait for it to read them")))
            }
            Err(NotSent::Closed) => {
                let unsent = waiting.unsent("lost: its connection is closed".to_owned());
                Err(Failure { lost: true, ..unsent })
            }
        }
    }

    /// Tells an entry of the log, if there is room: it is no call, and waits for nothing.
    pub(super) fn send_log(&self, entry: LogEntry) {
        let mut dropped = lock(&self.log_dropped);
        match self.out.push_lossy(&notification(Notice::Log { entry, dropped: *dropped })) {
            Ok(()) => *dropped = 0,
            Err(NotSent::Long(_) | NotSent::Full { .. } | NotSent::Closed) => *dropped += 1,
        }
    }
}

/// Waits for the answer to a call; the peer is told when nobody does any more.
pub(super) struct Waiting {
    peer: Arc<Peer>,
    id: u64,
    told: bool,
    receiver: oneshot::Receiver<Result<Value, Failure>>,
}

impl Waiting {
    pub(super) async fn answer(mut self, cancelled: CancellationToken) -> Result<Value, Failure> {
        // Cancel-safe: the answer is waited for again below.
        tokio::select! {
            biased;
            answer = &mut self.receiver => return answer.unwrap_or_else(|_| Err(Failure::lost("lost"))),
            () = cancelled.cancelled() => {}
        }
        self.send_cancel("the time is over, or the answer is not wanted any more");
        (&mut self.receiver).await.unwrap_or_else(|_| Err(Failure::lost("lost")))
    }

    /// Returns the failure of a call that the peer never got.
    fn unsent(mut self, why: String) -> Failure {
        self.told = true;
        Failure::new(why)
    }

    /// Tells the peer that the call is not wanted any more, once.
    fn send_cancel(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.told, true) {
            // One that cannot be told is being cut off.
            let cancel = Notice::Cancel { id: self.id, reason: reason.to_owned() };
            drop(self.peer.send(&notification(cancel)));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let was_open = lock(&self.peer.calls).open.remove(&self.id).is_some();
        if was_open {
            self.send_cancel("nobody waits any longer");
        }
    }
}

impl Place {
    /// Returns its limit.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit_ms.map(Duration::from_millis)
    }
}
