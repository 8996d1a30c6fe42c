//! Clients over plain sockets: those that only load the shop, and the one that looks for the longest silence.
//!
//! Nothing is retried: a request to the shop without a whole answer of status 200 has failed. A kept connection is left only
//! after an answer that announced its end.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// New connections in a second.
pub(crate) const NEW_PER_SECOND: u32 = 200;
/// Threads that share them: so many may wait for an answer before the schedule slips.
const NEW_THREADS: u32 = 8;
/// Connections that are kept.
pub(crate) const KEPT: u32 = 20;
/// From one request of a kept connection to its next.
const KEPT_PERIOD: Duration = Duration::from_millis(50);
/// Requests of [`SLOW_PATH`] under way at any time.
pub(crate) const SLOW: u32 = 3;
/// A request that takes 300 ms.
const SLOW_PATH: &str = "/slow?ms=300";
/// From one look at a listener to the next: no shorter silence can be seen.
pub(crate) const LOOK_PERIOD: Duration = Duration::from_millis(1);
/// A request may take so long: above any pause that a restart may make.
const REQUEST_MAX: Duration = Duration::from_secs(15);
/// The longest head of an answer that is read.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How many failures are kept word for word: the first ones tell why.
const FAILURES_MAX: usize = 5;

/// What the clients have met.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
    /// The first failures.
    reasons: Mutex<Vec<String>>,
    ended: AtomicBool,
}

impl Counts {
    fn count<T>(&self, class: &str, result: &io::Result<T>) {
        match result {
            Ok(_) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
                if reasons.len() < FAILURES_MAX {
                    reasons.push(format!("{class}: {error}"));
                }
            }
        }
    }

    /// Waits until `due`. Returns whether the work goes on then.
    fn goes_on_at(&self, due: Instant) -> bool {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        !self.ended.load(Ordering::Relaxed)
    }
}

/// What a load has met in the end.
#[derive(Debug)]
pub(crate) struct Report {
    /// Whole answers.
    pub(crate) answered: u64,
    /// Requests without one.
    pub(crate) failed: u64,
    /// The first failures.
    pub(crate) reasons: Vec<String>,
}

/// Load that is running.
pub(crate) struct Load {
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts to ask the shop at `address`.
    pub(crate) fn start(address: SocketAddr) -> Self {
        let counts = Arc::new(Counts::default());
        let begun = Instant::now();
        let mut threads = Vec::new();
        let mut spawn = |number: u32, work: fn(&Counts, SocketAddr, Instant, u32)| {
            for index in 0..number {
                let counts = Arc::clone(&counts);
                threads.push(thread::spawn(move || work(&counts, address, begun, index)));
            }
        };
        spawn(NEW_THREADS, new_connections);
        spawn(KEPT, kept_connection);
        spawn(SLOW, slow_requests);
        Self { counts, threads }
    }

    /// Stops, waits for the answers under way, and returns what was counted.
    pub(crate) fn finish(self) -> Report {
        end(&self.counts, self.threads)
    }
}

fn end(counts: &Counts, threads: Vec<JoinHandle<()>>) -> Report {
    counts.ended.store(true, Ordering::Relaxed);
    for thread in threads {
        if thread.join().is_err() {
            counts.count("generator", &Err::<(), _>(io::Error::other("a client of the load itself failed")));
        }
    }
    Report {
        answered: counts.answered.load(Ordering::Relaxed),
        failed: counts.failed.load(Ordering::Relaxed),
        reasons: counts.reasons.lock().unwrap_or_else(PoisonError::into_inner).clone(),
    }
}

/// Open loop: the schedule does not wait for the answers.
fn new_connections(counts: &Counts, address: SocketAddr, begun: Instant, index: u32) {
    let period = Duration::from_secs(1) / NEW_PER_SECOND;
    let mut due = begun + period * index;
    while counts.goes_on_at(due) {
        due += period * NEW_THREADS;
        counts.count("new", &connect(address).and_then(|mut stream| page(&mut stream, "/version", true)));
    }
}

fn kept_connection(counts: &Counts, address: SocketAddr, begun: Instant, index: u32) {
    // Spread over one period: all at once is another load.
    let mut due = begun + KEPT_PERIOD * index / KEPT;
    let mut kept: Option<TcpStream> = None;
    while counts.goes_on_at(due) {
        due = (due + KEPT_PERIOD).max(Instant::now());
        let stream = kept.take().map_or_else(|| connect(address), Ok);
        let result = stream.and_then(|mut stream| {
            let goes_on = page(&mut stream, "/version", false)?;
            kept = goes_on.then_some(stream);
            Ok(goes_on)
        });
        counts.count("kept", &result);
    }
}

fn slow_requests(counts: &Counts, address: SocketAddr, begun: Instant, _index: u32) {
    let mut due = begun;
    while counts.goes_on_at(due) {
        counts.count("slow", &connect(address).and_then(|mut stream| page(&mut stream, SLOW_PATH, true)));
        due = Instant::now() + LOOK_PERIOD; // a failure at once would be asked again without end
    }
}

/// One client that connects anew each [`LOOK_PERIOD`] and notes the longest time without the end of an answer, whatever its
/// status: an appliance that is between two releases says 503 at `/healthz`, and is not silent.
pub(crate) struct Watch {
    counts: Arc<Counts>,
    longest: Arc<Mutex<Duration>>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Starts to ask the listener `name` at `address` for `/healthz`.
    pub(crate) fn start(name: &'static str, address: SocketAddr) -> Self {
        let counts = Arc::new(Counts::default());
        let longest = Arc::new(Mutex::new(Duration::ZERO));
        let (counted, noted) = (Arc::clone(&counts), Arc::clone(&longest));
        let thread = thread::spawn(move || {
            let mut last = Instant::now();
            while counted.goes_on_at(last + LOOK_PERIOD) {
                let result = connect(address).and_then(|mut stream| ask(&mut stream, "/healthz", true));
                counted.count(name, &result);
                if result.is_ok() {
                    let now = Instant::now();
                    let mut longest = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    *longest = longest.max(now - last);
                    last = now;
                }
            }
        });
        Self { counts, longest, thread }
    }

    /// Stops. Returns the longest silence, and what was counted.
    pub(crate) fn finish(self) -> (Duration, Report) {
        let report = end(&self.counts, vec![self.thread]);
        let longest = *self.longest.lock().unwrap_or_else(PoisonError::into_inner);
        (longest, report)
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, REQUEST_MAX)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REQUEST_MAX))?;
    stream.set_write_timeout(Some(REQUEST_MAX))?;
    Ok(stream)
}

/// Asks for `path`, which has to be there. Returns whether the connection goes on.
fn page(stream: &mut TcpStream, path: &str, close: bool) -> io::Result<bool> {
    let Answer { status, goes_on } = ask(stream, path, close)?;
    if status == 200 { Ok(goes_on) } else { Err(wrong(&format!("{path} has the status {status}"))) }
}

/// A whole answer.
struct Answer {
    status: u16,
    /// Whether the connection goes on.
    goes_on: bool,
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

fn ask(stream: &mut TcpStream, path: &str, close: bool) -> io::Result<Answer> {
    let connection = if close { "close" } else { "keep-alive" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(found) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break found + 4;
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(wrong("the head of the answer is too long"));
        }
        read_more(stream, &mut bytes)?;
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
    let status = head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| wrong("the answer is not HTTP/1.1"))?;
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length: usize = field("content-length:")
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| wrong("the answer does not say its length"))?;
    while bytes.len() < head_end + length {
        read_more(stream, &mut bytes)?;
    }
    if close {
        // The server closes first: the port of this end is free again at once.
        stream.read_to_end(&mut bytes)?;
    }
    Ok(Answer { status, goes_on: !close && field("connection:") != Some("close") })
}

fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 4096];
    let count = stream.read(&mut chunk)?;
    if count == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed in the middle of an answer"));
    }
    bytes.extend_from_slice(&chunk[..count]);
    Ok(())
}
