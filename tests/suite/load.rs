//! Load on one loopback address while the server behind it is replaced: what was lost, how, and for how long.
//!
//! Three classes of requests, each on its own threads: *new* (one connection per request, on a fixed schedule),
//! *keep-alive* (the same connections again and again, left only after an announced close) and *slow* (answers that
//! take a while, always some of them under way). Nothing is ever retried: a request without a whole 2xx answer has
//! failed. A connection that was closed while idle and unannounced is no failed request, and is counted by itself.
//! The answers are counted, not timed: for latencies there are the benches.

mod answer;
mod checks;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use answer::{Answer, Failure};

/// New connections in a second: twice that for a minute uses up the client ports of one address.
const NEW_PER_SECOND_MAX: u32 = 250;

/// Threads that share the schedule of new connections: so many may wait for an answer before the schedule slips.
const NEW_THREADS: u32 = 8;

/// How long a request may take, its connect included: above the longest pause that a restart may make.
const REQUEST_MAX: Duration = Duration::from_secs(15);

/// How long the slow class rests after a failure: nothing else would hold it back from failing all the time.
const SLOW_PAUSE: Duration = Duration::from_millis(100);

/// Failures that are kept word for word: the first ones tell why, all of them are counted.
const FAILURES_MAX: usize = 20;

/// What to send.
#[derive(Clone, Debug)]
pub(crate) struct LoadOptions {
    /// Requests per second on a connection of their own, at most [`NEW_PER_SECOND_MAX`].
    pub(crate) new_per_second: u32,
    /// Connections that are kept.
    pub(crate) keepalive_connections: u32,
    /// Time from one request of a kept connection to its next.
    pub(crate) keepalive_period: Duration,
    /// Path of the new and the keep-alive requests.
    pub(crate) path: String,
    /// Slow requests under way at any time.
    pub(crate) slow_connections: u32,
    /// Path of the slow requests.
    pub(crate) slow_path: String,
    /// Header that says which version answered.
    pub(crate) version_header: String,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            new_per_second: 100,
            keepalive_connections: 10,
            keepalive_period: Duration::from_millis(50),
            path: "/version".to_owned(),
            slow_connections: 3,
            slow_path: "/slow?ms=300".to_owned(),
            version_header: "x-version".to_owned(),
        }
    }
}

/// Load that is running; [`Load::finish`] ends it. Dropped, it ends as well.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the load has met so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadReport {
    /// Requests with a whole 2xx answer.
    pub(crate) ok: u64,
    /// Slow ones among [`LoadReport::ok`].
    pub(crate) slow_ok: u64,
    /// Requests without one.
    pub(crate) failed: u64,
    /// The first failures: time since the start, class, kind.
    pub(crate) failures: Vec<String>,
    /// Kept connections that were closed after an answer had said so.
    pub(crate) closed_announced: u64,
    /// Kept connections that were closed or reset while idle, without a word.
    pub(crate) closed_unannounced: u64,
    /// Versions that answered, in the order of their first answer.
    pub(crate) versions_seen: Vec<String>,
    /// Longest time without the end of a good new or keep-alive answer.
    pub(crate) longest_gap: Duration,
    /// How long the load ran.
    pub(crate) elapsed: Duration,
}

impl LoadReport {
    /// Asserts that clients noticed nothing.
    pub(crate) fn assert_clean(&self) {
        assert!(self.ok > 0 && self.failed == 0 && self.closed_unannounced == 0, "not clean: {self}");
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ok ({} slow), {} failed, closes: {} announced, {} unannounced, versions {:?}, longest gap {:?}, in {:?}",
            self.ok,
            self.slow_ok,
            self.failed,
            self.closed_announced,
            self.closed_unannounced,
            self.versions_seen,
            self.longest_gap,
            self.elapsed,
        )?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

impl Load {
    /// Starts to send; returns at once.
    pub(crate) fn start(addr: SocketAddr, options: LoadOptions) -> Self {
        assert!(addr.ip().is_loopback(), "{addr} is not a loopback address");
        assert!(options.new_per_second <= NEW_PER_SECOND_MAX, "at most {NEW_PER_SECOND_MAX} new connections a second");
        let now = Instant::now();
        let (keepalive, slow) = (options.keepalive_connections, options.slow_connections);
        let new = if options.new_per_second == 0 { 0 } else { NEW_THREADS };
        let shared = Arc::new(Shared {
            addr,
            options,
            started: now,
            next_new: AtomicU64::new(0),
            log: Mutex::new(Log {
                report: LoadReport::default(),
                answers: BTreeMap::new(),
                last_ok: now,
                ended: false,
            }),
            changed: Condvar::new(),
        });
        let mut threads = Vec::new();
        let mut spawn = |count: u32, work: fn(&Shared, u32)| {
            for index in 0..count {
                let shared = Arc::clone(&shared);
                threads.push(thread::spawn(move || work(&shared, index)));
            }
        };
        spawn(new, |shared, _| new_connections(shared));
        spawn(keepalive, keepalive_connection);
        spawn(slow, |shared, _| slow_requests(shared));
        Self { shared, threads }
    }

    /// Returns what has been counted so far.
    pub(crate) fn report(&self) -> LoadReport {
        let log = self.shared.log();
        LoadReport { elapsed: self.shared.started.elapsed(), ..log.report.clone() }
    }

    /// Waits until `version` gives an answer that ends from now on; returns how long that took.
    ///
    /// # Errors
    /// It gave none within `limit`; the text says what was seen instead.
    pub(crate) fn wait_for_version(&self, version: &str, limit: Duration) -> Result<Duration, String> {
        let answers = |log: &Log| log.answers.get(version).copied().unwrap_or(0);
        let before = answers(&self.shared.log());
        self.wait(limit, |log| answers(log) > before)
            .map_err(|report| format!("no answer from version {version} in {limit:?}: {report}"))
    }

    /// Waits for `count` more good answers; returns how long that took.
    ///
    /// # Errors
    /// There were fewer within `limit`; the text says what was seen instead.
    pub(crate) fn wait_for_ok(&self, count: u64, limit: Duration) -> Result<Duration, String> {
        let wanted = self.shared.log().report.ok + count;
        self.wait(limit, |log| log.report.ok >= wanted)
            .map_err(|report| format!("fewer than {count} good answers in {limit:?}: {report}"))
    }

    /// Stops sending, waits for the answers under way, and returns what was counted.
    pub(crate) fn finish(mut self) -> LoadReport {
        let now = Instant::now(); // before the wait for slow answers: it is no gap
        self.end();
        let mut log = self.shared.log();
        let elapsed = now.duration_since(self.shared.started);
        if self.shared.options.new_per_second + self.shared.options.keepalive_connections > 0 {
            log.report.longest_gap = log.report.longest_gap.max(now.duration_since(log.last_ok));
        }
        LoadReport { elapsed, ..log.report.clone() }
    }

    fn wait(&self, limit: Duration, met: impl Fn(&Log) -> bool) -> Result<Duration, LoadReport> {
        let begin = Instant::now();
        let log = self.shared.log();
        let (log, timeout) =
            self.shared.changed.wait_timeout_while(log, limit, |log| !met(log)).unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() { Err(log.report.clone()) } else { Ok(begin.elapsed()) }
    }

    fn end(&mut self) {
        self.shared.log().ended = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.shared.failed("generator", &Failure::Generator);
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

/// What all threads of one load share.
struct Shared {
    addr: SocketAddr,
    options: LoadOptions,
    started: Instant,
    /// The next place in the schedule of new connections.
    next_new: AtomicU64,
    log: Mutex<Log>,
    /// An answer was counted, or the load ends.
    changed: Condvar,
}

struct Log {
    report: LoadReport,
    /// Good new and keep-alive answers by version.
    answers: BTreeMap<String, u64>,
    last_ok: Instant,
    ended: bool,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `due`; returns whether the load still goes on then.
    fn goes_on_at(&self, due: Instant) -> bool {
        let mut log = self.log();
        while !log.ended {
            let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return true;
            };
            log = self.changed.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    fn answered(&self, answer: &Answer) {
        let now = Instant::now();
        let mut log = self.log();
        log.report.ok += 1;
        log.report.longest_gap = log.report.longest_gap.max(now.duration_since(log.last_ok));
        log.last_ok = now;
        if let Some(version) = &answer.version {
            if !log.answers.contains_key(version) {
                log.report.versions_seen.push(version.clone());
            }
            *log.answers.entry(version.clone()).or_default() += 1;
        }
        drop(log);
        self.changed.notify_all();
    }

    fn answered_slowly(&self) {
        let mut log = self.log();
        log.report.ok += 1;
        log.report.slow_ok += 1;
        drop(log);
        self.changed.notify_all();
    }

    fn failed(&self, class: &str, failure: &Failure) {
        let mut log = self.log();
        log.report.failed += 1;
        if log.report.failures.len() < FAILURES_MAX {
            let at = self.started.elapsed().as_secs_f64();
            log.report.failures.push(format!("{at:.3} s: {class}: {failure}"));
        }
        drop(log);
        self.changed.notify_all();
    }

    fn closed(&self, announced: bool) {
        let mut log = self.log();
        if announced {
            log.report.closed_announced += 1;
        } else {
            log.report.closed_unannounced += 1;
        }
    }

    fn one_request(&self, path: &str) -> Result<Answer, Failure> {
        let deadline = Instant::now() + REQUEST_MAX;
        let mut stream = connect(self.addr)?;
        self.request(&mut stream, path, true, deadline)
    }

    fn request(&self, stream: &mut TcpStream, path: &str, close: bool, deadline: Instant) -> Result<Answer, Failure> {
        let connection = if close { "close" } else { "keep-alive" };
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n", self.addr);
        stream.write_all(head.as_bytes()).map_err(|error| Failure::from_io(&error, 0))?;
        Answer::read(stream, &self.options.version_header, deadline)
    }
}

fn new_connections(shared: &Shared) {
    let period = Duration::from_secs(1) / shared.options.new_per_second;
    loop {
        let place = shared.next_new.fetch_add(1, Ordering::Relaxed);
        if !shared.goes_on_at(shared.started + period.mul_f64(place as f64)) {
            return;
        }
        match shared.one_request(&shared.options.path) {
            Ok(answer) => shared.answered(&answer),
            Err(failure) => shared.failed("new", &failure),
        }
    }
}

fn slow_requests(shared: &Shared) {
    let mut due = Instant::now();
    while shared.goes_on_at(due) {
        match shared.one_request(&shared.options.slow_path) {
            Ok(_) => shared.answered_slowly(),
            Err(failure) => {
                shared.failed("slow", &failure);
                due = Instant::now() + SLOW_PAUSE;
            }
        }
    }
}

fn keepalive_connection(shared: &Shared, index: u32) {
    let period = shared.options.keepalive_period;
    // Spread over one period: all at once is another load.
    let mut due = shared.started + period.mul_f64(f64::from(index) / f64::from(shared.options.keepalive_connections));
    let mut kept: Option<TcpStream> = None;
    while shared.goes_on_at(due) {
        due = (due + period).max(Instant::now());
        kept = kept.filter(|stream| still_open(shared, stream));
        match keepalive_request(shared, kept.take()) {
            Ok((answer, stream)) => {
                shared.answered(&answer);
                if answer.close {
                    shared.closed(true);
                } else {
                    kept = Some(stream);
                }
            }
            Err(failure) => shared.failed("keep-alive", &failure),
        }
    }
    // The last look: a close that nobody announced counts at the end, too.
    kept.filter(|stream| still_open(shared, stream));
}

fn keepalive_request(shared: &Shared, kept: Option<TcpStream>) -> Result<(Answer, TcpStream), Failure> {
    let deadline = Instant::now() + REQUEST_MAX;
    let mut stream = kept.map_or_else(|| connect(shared.addr), Ok)?;
    let answer = shared.request(&mut stream, &shared.options.path, false, deadline)?;
    Ok((answer, stream))
}

/// Looks whether an idle connection was closed behind our back, and counts it then.
fn still_open(shared: &Shared, stream: &TcpStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let open =
        looked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) && stream.set_nonblocking(false).is_ok();
    if !open {
        shared.closed(false); // end of file, a reset, or bytes that nobody asked for
    }
    open
}

fn connect(addr: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect_timeout(&addr, REQUEST_MAX).map_err(|error| Failure::Connect(error.kind()))?;
    stream.set_nodelay(true).map_err(|error| Failure::Connect(error.kind()))?;
    stream.set_write_timeout(Some(REQUEST_MAX)).map_err(|error| Failure::Connect(error.kind()))?;
    Ok(stream)
}
