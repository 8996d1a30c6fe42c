//! A static web server: files of a directory, whole or in part, and what was asked for.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a client may be silent: none of the tests' is.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long a server that drips waits before the next byte.
const DRIP: Duration = Duration::from_millis(50);

/// What was asked for, and how many bytes were sent for it.
pub(crate) type Asked = Vec<(String, u64)>;

/// A web server on the loopback interface; it ends when it is dropped.
pub(crate) struct Web {
    address: SocketAddr,
    asked: Arc<Mutex<Asked>>,
    ended: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

/// How a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As servers of files do.
    Ranges,
    /// Each file always whole.
    Whole,
    /// What is not there is forbidden.
    Forbids,
    /// Everything is at this address.
    Moved(String),
    /// Half of each file, and then nothing.
    Cuts,
    /// What is not there is a megabyte, a byte at a time.
    Drips,
}

impl Web {
    /// Serves the files of `dir`.
    pub(crate) fn serve(dir: &Path) -> Self {
        Self::serve_as(dir, Manner::Ranges)
    }

    /// Serves the files of `dir` in this manner.
    pub(crate) fn serve_as(dir: &Path, manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
        let (asked, ended) = (Arc::new(Mutex::new(Asked::new())), Arc::new(AtomicBool::new(false)));
        let (log, end, dir) = (Arc::clone(&asked), Arc::clone(&ended), dir.to_owned());
        let accepting = std::thread::spawn(move || {
            let mut serving = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if end.load(Ordering::Acquire) {
                    break;
                }
                let (log, dir, manner, end) = (Arc::clone(&log), dir.clone(), manner.clone(), Arc::clone(&end));
                serving.push(std::thread::spawn(move || answer(stream, &dir, &manner, &log, &end)));
            }
            for thread in serving {
                thread.join().expect("the server does not panic");
            }
        });
        Self { address, asked, ended, accepting: Some(accepting) }
    }

    /// Returns its address as a repository.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns what was asked for since the last time.
    pub(crate) fn asked(&self) -> Asked {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        drop(TcpStream::connect(self.address)); // wakes the one that accepts
        if let Some(accepting) = self.accepting.take() {
            accepting.join().expect("the server does not panic");
        }
    }
}

/// Answers one request and closes the connection: nothing is left when the client has its answer.
fn answer(stream: TcpStream, dir: &Path, manner: &Manner, log: &Mutex<Asked>, end: &AtomicBool) {
    stream.set_read_timeout(Some(SILENCE_MAX)).expect("a socket");
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    if reader.read_line(&mut first).is_err() || first.is_empty() {
        return;
    }
    let mut range = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (first, last) = value.trim().split_once('-').expect("a range");
            range = Some((first.parse::<usize>().expect("a number"), last.parse::<usize>().expect("a number")));
        }
    }
    let path = first.split(' ').nth(1).expect("a path").trim_start_matches('/').to_owned();
    assert!(!path.contains(".."), "{path}");
    let (head, body) = match (fs::read(PathBuf::from(dir).join(&path)), range.filter(|_| *manner != Manner::Whole)) {
        (Err(_), _) if *manner == Manner::Drips => ("200 OK".to_owned(), vec![b' '; 1 << 20]),
        (Err(_), _) if *manner == Manner::Forbids => ("403 Forbidden".to_owned(), Vec::new()),
        (Err(_), _) => ("404 Not Found".to_owned(), Vec::new()),
        (Ok(bytes), None) => ("200 OK".to_owned(), bytes),
        (Ok(bytes), Some((first, last))) => {
            let head = format!("206 Partial Content\r\ncontent-range: bytes {first}-{last}/{}", bytes.len());
            (head, bytes[first..=last].to_vec())
        }
    };
    let (head, body) = if let Manner::Moved(to) = manner {
        (format!("301 Moved Permanently\r\nlocation: {to}/{path}"), Vec::new())
    } else {
        (head, body)
    };
    log.lock().unwrap_or_else(PoisonError::into_inner).push((path, body.len() as u64));
    let head = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let stream = reader.get_mut();
    let sent = match manner {
        Manner::Cuts => &body[..body.len() / 2],
        Manner::Drips => &[],
        Manner::Ranges | Manner::Whole | Manner::Forbids | Manner::Moved(_) => &body,
    };
    // A client that has seen enough goes away.
    let mut sending = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent));
    while *manner == Manner::Drips && sending.is_ok() && !end.load(Ordering::Acquire) {
        std::thread::sleep(DRIP);
        sending = stream.write_all(b" ");
    }
}
