//! What is known of the requests of one connection: how many are answered, what it waits for, and how long it may.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::clock::monotonic_ns;
use refit_base::lock;

/// How long the head of a request may take from its first byte on.
pub(super) const HEAD_MAX: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long nothing may get through to a client that is being answered.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What is known of the requests of one connection.
#[derive(Debug)]
pub(super) struct Traffic {
    /// Requests being answered.
    pub(super) under_way: AtomicUsize,
    /// Requests whose bodies were not read to their ends: what comes next on the connection is no request.
    pub(super) unread: Arc<AtomicUsize>,
    /// Since when the last write does not get through, in nanoseconds of the monotonic clock; 0 if it does.
    pub(super) blocked_ns: AtomicU64,
    /// Since when it waits for a request, or for the rest of one's head.
    waits_ns: AtomicU64,
    /// Since when the body of the request that is being answered is waited for; 0 while it is not.
    body_waits_ns: AtomicU64,
    /// Whether a part of a head has come.
    head_began: AtomicBool,
    /// Looks at the heads as they come.
    scan: Mutex<Scan>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            unread: Arc::default(),
            blocked_ns: AtomicU64::new(0),
            waits_ns: AtomicU64::new(monotonic_ns()),
            body_waits_ns: AtomicU64::new(0),
            head_began: AtomicBool::new(false),
            scan: Mutex::default(),
        }
    }
}

impl Traffic {
    pub(super) fn is_at_boundary(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0 && self.blocked_ns.load(Ordering::Acquire) == 0
    }

    /// Returns since when it waits for a request, or for more of one, on the monotonic clock; `None` while one is being answered.
    pub(super) fn idle_since(&self) -> Option<u64> {
        let body = self.body_waits_ns.load(Ordering::Acquire);
        let waits = if body == 0 { self.waits_ns.load(Ordering::Acquire) } else { body };
        (body != 0 || self.under_way.load(Ordering::Acquire) == 0).then_some(waits)
    }

    /// Notes whether the body of the request that is being answered is waited for.
    pub(super) fn note_body(&self, is_awaited: bool) {
        if !is_awaited {
            self.body_waits_ns.store(0, Ordering::Release);
        } else if self.body_waits_ns.load(Ordering::Acquire) == 0 {
            self.body_waits_ns.store(monotonic_ns(), Ordering::Release);
        }
    }

    /// Returns when it is given up, on the monotonic clock; `None` while nothing is waited for, or something that has its own time.
    pub(super) fn gives_up_ns(&self) -> Option<u64> {
        let after = |since: u64, limit: Duration| since + u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let blocked = self.blocked_ns.load(Ordering::Acquire);
        if blocked != 0 {
            return Some(after(blocked, STALL_MAX));
        }
        let has_own_time = self.under_way.load(Ordering::Acquire) > 0 || self.unread.load(Ordering::Acquire) > 0;
        if has_own_time {
            return None; // an answer, or the rest of a body
        }
        let since = self.waits_ns.load(Ordering::Acquire);
        let limit = if self.head_began.load(Ordering::Acquire) { HEAD_MAX } else { IDLE_MAX };
        Some(after(since, limit))
    }

    /// Notes that bytes of a head have come.
    pub(super) fn note_head(&self, bytes: &[u8]) {
        lock(&self.scan).look(bytes);
        if !self.head_began.swap(true, Ordering::AcqRel) {
            self.waits_ns.store(monotonic_ns(), Ordering::Release);
        }
    }

    /// Returns whether a line of the head that was read ended without a carriage return. What came with it is the next head, if the request
    /// `has_body` not.
    pub(super) fn end_head(&self, has_body: bool) -> bool {
        let mut scan = lock(&self.scan);
        let Scan { has_bare_feed, rest, .. } = std::mem::take(&mut *scan);
        if !has_body {
            scan.look(&rest);
        }
        has_bare_feed
    }

    /// Counts a request that is being answered, for tests.
    #[cfg(test)]
    pub(super) fn busy(traffic: &Arc<Self>) -> impl Sized + use<> {
        Counted::new(traffic)
    }
}

/// Looks at the lines of a head as they come.
#[derive(Debug, Default)]
struct Scan {
    /// The last four bytes.
    last: [u8; 4],
    /// The head has ended.
    ended: bool,
    /// A line ended without a carriage return: others may read such a head as another one (RFC 9112, 2.2).
    has_bare_feed: bool,
    /// What came with the head and is not of it.
    rest: Vec<u8>,
}

impl Scan {
    fn look(&mut self, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            if self.ended {
                self.rest.extend_from_slice(&bytes[index..]);
                return;
            }
            self.has_bare_feed |= *byte == b'\n' && self.last[3] != b'\r';
            self.last.rotate_left(1);
            self.last[3] = *byte;
            self.ended = self.last == *b"\r\n\r\n" || self.last[2..] == *b"\n\n";
        }
    }
}

/// Counts a request as long as it lives.
pub(super) struct Counted(Arc<Traffic>);

impl Counted {
    pub(super) fn new(traffic: &Arc<Traffic>) -> Self {
        traffic.under_way.fetch_add(1, Ordering::AcqRel);
        traffic.head_began.store(false, Ordering::Release);
        Self(Arc::clone(traffic))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.waits_ns.store(monotonic_ns(), Ordering::Release);
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}
