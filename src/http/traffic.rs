//! What is known of the requests of one connection: how many are answered, what it waits for, and how long it may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use refit_base::clock::monotonic_ns;

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
    /// How many there were.
    requests: AtomicUsize,
    /// Since when the last write does not get through, in nanoseconds of the monotonic clock; 0 if it does.
    pub(super) blocked_ns: AtomicU64,
    /// Since when it waits for a request, or for the rest of one's head.
    waits_ns: AtomicU64,
    /// Whether a part of a head has come.
    head_began: AtomicBool,
    /// Whether a line of a head ended without a carriage return.
    pub(super) bare_feed: AtomicBool,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            unread: Arc::default(),
            requests: AtomicUsize::new(0),
            blocked_ns: AtomicU64::new(0),
            waits_ns: AtomicU64::new(monotonic_ns()),
            head_began: AtomicBool::new(false),
            bare_feed: AtomicBool::new(false),
        }
    }
}

impl Traffic {
    pub(super) fn is_at_boundary(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0 && self.blocked_ns.load(Ordering::Acquire) == 0
    }

    /// Returns since when it waits for a request, on the monotonic clock; `None` while one is being answered.
    pub(super) fn idle_since(&self) -> Option<u64> {
        (self.under_way.load(Ordering::Acquire) == 0).then(|| self.waits_ns.load(Ordering::Acquire))
    }

    /// Returns when it is given up, on the monotonic clock; `None` while nothing is waited for, or something that has its own time.
    pub(super) fn gives_up_ns(&self) -> Option<u64> {
        let after = |since: u64, limit: Duration| since + u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let blocked = self.blocked_ns.load(Ordering::Acquire);
        if blocked != 0 {
            return Some(after(blocked, STALL_MAX));
        }
        let since = self.idle_since()?;
        if self.unread.load(Ordering::Acquire) > 0 {
            return None; // the rest of a body
        }
        let limit = if self.head_began.load(Ordering::Acquire) { HEAD_MAX } else { IDLE_MAX };
        Some(after(since, limit))
    }

    /// Notes that bytes of a head have come.
    pub(super) fn note_head(&self, bytes: &[u8], scan: &mut Scan) {
        let request = self.requests.load(Ordering::Acquire);
        if scan.request != request {
            *scan = Scan { request, ..Scan::default() };
        }
        if scan.has_bare_feed(bytes) {
            self.bare_feed.store(true, Ordering::Release);
        }
        if !self.head_began.swap(true, Ordering::AcqRel) {
            self.waits_ns.store(monotonic_ns(), Ordering::Release);
        }
    }

    /// Counts a request that is being answered, for tests.
    #[cfg(test)]
    pub(super) fn busy(traffic: &Arc<Self>) -> impl Sized + use<> {
        Counted::new(traffic)
    }
}

/// Looks at the lines of a head as they come.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The number of the request.
    request: usize,
    /// The last four bytes.
    last: [u8; 4],
    /// What follows is a body.
    ended: bool,
}

impl Scan {
    /// Returns whether a line ends without a carriage return: others may read such a head as another one (RFC 9112, 2.2).
    fn has_bare_feed(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if self.ended {
                return false;
            }
            if *byte == b'\n' && self.last[3] != b'\r' {
                self.ended = true;
                return true;
            }
            self.last.rotate_left(1);
            self.last[3] = *byte;
            self.ended = self.last == *b"\r\n\r\n";
        }
        false
    }
}

/// Counts a request as long as it lives.
pub(super) struct Counted(Arc<Traffic>);

impl Counted {
    pub(super) fn new(traffic: &Arc<Traffic>) -> Self {
        traffic.under_way.fetch_add(1, Ordering::AcqRel);
        traffic.requests.fetch_add(1, Ordering::AcqRel);
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
