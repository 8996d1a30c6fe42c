//! The load itself under test: what it must count, it counts. Its servers here are good or bad on purpose.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Load, LoadOptions};

/// How long a condition may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// How a server treats its clients.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Good,
    ClosesSilently,
    AnswersHalf,
    Refuses,
}

/// A server for one test, with the threads that it has.
struct Server {
    addr: SocketAddr,
    ended: Arc<AtomicBool>,
    version: Arc<AtomicU64>,
    manner: Arc<Mutex<Manner>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let (ended, version) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1)));
        let manner = Arc::new(Mutex::new(manner));
        let shared = (Arc::clone(&ended), Arc::clone(&version), Arc::clone(&manner));
        let thread = thread::spawn(move || {
            let (ended, version, manner) = shared;
            while let Ok((stream, _)) = listener.accept() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (version, manner) = (Arc::clone(&version), Arc::clone(&manner));
                thread::spawn(move || serve(stream, &version, &manner));
            }
        });
        Self { addr, ended, version, manner, thread: Some(thread) }
    }

    fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        TcpStream::connect(self.addr).ok(); // wakes the thread out of its accept
        if let Some(thread) = self.thread.take() {
            thread.join().ok(); // a panic there has failed the test already
        }
    }
}

fn serve(mut stream: TcpStream, version: &AtomicU64, manner: &Mutex<Manner>) {
    let mut request = [0; 1024];
    while stream.read(&mut request).is_ok_and(|count| count > 0) {
        let manner = *manner.lock().unwrap_or_else(PoisonError::into_inner);
        let status = if manner == Manner::Refuses { "503 Service Unavailable" } else { "200 OK" };
        let version = version.load(Ordering::SeqCst);
        let mut answer =
            format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\nX-Version: {version}\r\n\r\nfour").into_bytes();
        if manner == Manner::AnswersHalf {
            answer.truncate(answer.len() - 2);
        }
        let sent = stream.write_all(&answer).is_ok();
        if !sent || matches!(manner, Manner::AnswersHalf | Manner::ClosesSilently) {
            return;
        }
    }
}

fn options() -> LoadOptions {
    LoadOptions { keepalive_period: Duration::from_millis(20), ..LoadOptions::default() }
}

#[test]
fn a_good_server_is_clean_and_its_versions_are_seen_in_order() {
    let server = Server::start(Manner::Good);
    let load = Load::start(server.addr, options());
    load.wait_for_version("1", LIMIT).expect("the first version answers");
    server.version.store(2, Ordering::SeqCst);
    load.wait_for_version("2", LIMIT).expect("the second version answers");
    server.version.store(1, Ordering::SeqCst);
    load.wait_for_version("1", LIMIT).expect("the first version answers again");
    load.wait_for_ok(100, LIMIT).expect("the load goes on");
    assert!(load.report().ok >= 100);
    let report = load.finish();
    report.assert_clean();
    assert_eq!(report.versions_seen, ["1", "2"]);
    assert_eq!(report.closed_announced, 0, "{report}");
    assert!(report.slow_ok > 0 && report.longest_gap < report.elapsed, "{report}");
}

#[test]
fn a_silent_close_of_an_idle_connection_is_counted() {
    let server = Server::start(Manner::ClosesSilently);
    let load = Load::start(server.addr, LoadOptions { new_per_second: 0, slow_connections: 0, ..options() });
    load.wait_for_ok(50, LIMIT).expect("new connections are answered");
    let report = load.finish();
    assert!(report.closed_unannounced > 0, "{report}");
}

#[test]
fn whatever_is_no_whole_good_answer_has_failed() {
    for (manner, kind) in [(Manner::AnswersHalf, "closed after"), (Manner::Refuses, "status 503")] {
        let server = Server::start(Manner::Good);
        let load = Load::start(server.addr, options());
        load.wait_for_ok(10, LIMIT).expect("a good server answers");
        server.behave(manner);
        load.wait(LIMIT, |log| log.report.failed > 30).expect("failures are counted");
        let report = load.finish();
        assert!(report.failures.iter().any(|failure| failure.contains(kind)), "{report}");
        assert_eq!(report.failures.len(), super::FAILURES_MAX, "{report}");
    }
}

#[test]
fn a_refused_connection_has_failed() {
    let addr = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
        listener.local_addr().expect("a bound socket has an address")
    };
    let load = Load::start(addr, options());
    load.wait(LIMIT, |log| log.report.failed > 0).expect("failures are counted");
    let report = load.finish();
    assert_eq!(report.ok, 0, "{report}");
    assert!(report.failures[0].contains("cannot connect"), "{report}");
    assert!(load_error(addr).contains("no answer from version"));
}

fn load_error(addr: SocketAddr) -> String {
    let load = Load::start(addr, options());
    load.wait_for_version("1", Duration::from_millis(50)).expect_err("nobody answers")
}
